"""The sources that a YAML can name, a class each, behind the interface of `dids/entries.py`."""
