"""One file per gate; importing the package imports none of them, the registry does."""
