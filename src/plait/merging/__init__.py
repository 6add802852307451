"""Merging: rules (pure functions of one parameter), the engine that runs them, the merged checkpoint."""
