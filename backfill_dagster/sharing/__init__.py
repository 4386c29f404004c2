"""What of a study can be handed on to others, and what they find again of it."""
