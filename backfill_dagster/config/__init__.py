"""What a backfill's YAML may say: the one place where the vocabulary and its defaults are defined."""
