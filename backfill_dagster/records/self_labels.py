"""Labels that an author puts on a post or a profile (`com.atproto.label.defs#selfLabels`)."""

from typing import Any

import polars as pl

from backfill_dagster.records.fields import Map, read_lists, read_present, spread, texts_series
from backfill_dagster.records.issues import FieldProblem, Issues


def read_self_labels(records: list[Map], issues: Issues) -> pl.Series:
    """Read the values of each record's labels as list<str>; null for a record without any field `labels`."""
    rows, self_labels = read_present(records, "labels", dict, FieldProblem.NOT_A_MAP, issues)
    own = issues.of_rows(rows)
    values = [
        None if labels is None else _label_values(labels, row, own)
        for row, labels in enumerate(read_lists(self_labels, "values", "labels.values", own))
    ]
    return texts_series(spread(values, rows, len(records)))


def _label_values(labels: list[Any], row: int, issues: Issues) -> list[str]:
    values = [label.get("val") if type(label) is dict else None for label in labels]
    texts = [value for value in values if type(value) is str]
    if len(texts) < len(values):
        issues.add(row, "labels.values", FieldProblem.BAD_ELEMENT)
    return texts
