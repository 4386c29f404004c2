"""Other ways from a repository's export to its records, to measure the pipeline against."""
