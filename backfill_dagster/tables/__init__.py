"""Stage 5: the tables that a study is for, by type and month, and the accounts."""
