"""One file per perturbation; importing the package imports none of them, the registry does."""
