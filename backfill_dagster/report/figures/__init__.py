"""The figures of the report, one a file: a drawing, words on how to read it, and the numbers behind it."""
