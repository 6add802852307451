"""Scores and the model card: what a result says of itself."""
