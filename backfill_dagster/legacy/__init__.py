"""What the system before left: its YAML turned into ours, and its Parquet files read into tables of our columns.

Nothing of it is proven: it never becomes part of a study's own tables, which are made of packs alone.
"""
