"""Stage 6: what is made of the record tables. Tables for analysis by time window, and whom the study engaged with."""
