"""Ensembles for the price of one model: shared layers, perturbed members, a regulariser that holds them together."""
