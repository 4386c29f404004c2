"""Frozen builds: what a paper was written from, under a label of its own while the collection goes on."""
