"""The reference in `docs/reference`, made of the code: `python -m backfill_dagster.reference` writes it."""
