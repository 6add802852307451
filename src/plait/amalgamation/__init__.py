"""Teachers with different labels teach one student: label spaces, gates, targets, objectives."""
