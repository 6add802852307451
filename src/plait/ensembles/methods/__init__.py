"""One file per method; importing the package imports none of them, the registry does."""
