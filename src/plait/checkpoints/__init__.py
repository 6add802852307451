"""Checkpoints: opened lazily, aligned, understood by one topology table, written atomically."""
