"""One file per estimator; importing the registry imports them all."""
