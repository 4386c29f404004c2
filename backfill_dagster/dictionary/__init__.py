"""The data dictionary: every kind of file of a study, and what its columns mean, for people and for programs."""
