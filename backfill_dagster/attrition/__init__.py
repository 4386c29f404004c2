"""What was lost on the way from the source to the tables: at which step, why, and of whom."""
