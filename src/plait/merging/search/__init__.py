"""Options of a method and weights of sources, found on validation rows."""
