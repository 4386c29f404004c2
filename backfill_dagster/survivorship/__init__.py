"""What was seen of records and accounts over time, and how fast they go."""
