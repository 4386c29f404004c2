"""Stage 1: which accounts to collect. Keeps what is a DID in a study's source; says why the rest is not."""
