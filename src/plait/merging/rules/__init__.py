"""One file per merge rule; importing the package imports none of them, the registry does."""
