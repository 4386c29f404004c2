"""Stage 5: the tables that a study is for, by type and time window, and the accounts."""
