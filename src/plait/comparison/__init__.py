"""Which way of combining is best for given models: every candidate made, scored, and put on one page."""
