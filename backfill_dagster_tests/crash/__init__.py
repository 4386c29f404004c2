"""Runs that are killed, interrupted or left without space, and what the next run makes of them."""
