"""What a result says of itself: its record, its model card, its page."""
