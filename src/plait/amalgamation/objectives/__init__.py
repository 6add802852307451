"""One file per objective; importing the package imports none of them, the registry does."""
