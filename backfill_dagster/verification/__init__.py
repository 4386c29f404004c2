"""Proof, from a study's stored files alone, that they are what was signed, fetched and built. Asks nobody."""
