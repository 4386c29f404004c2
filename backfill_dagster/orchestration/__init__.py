"""How the stages stand in Dagster: with `definitions.py`, the only place that imports it."""
