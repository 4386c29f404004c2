"""Facets of posts: annotations of stretches of the text, each with features that link, mention or tag."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import polars as pl

from backfill_dagster.records import syntax
from backfill_dagster.records.fields import Map, Note, read_present, spread, texts_series
from backfill_dagster.records.issues import FieldProblem, Issues
from backfill_dagster.records.record_json import json_series, to_json

_DID = re.compile(syntax.DID)


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_did(value: object) -> bool:
    return type(value) is str and len(value) <= syntax.MAX_DID_BYTES and _DID.fullmatch(value) is not None


# Type of feature -> its column, its field, and what that must hold. The union is open: others are no problem.
_FEATURES: dict[str, tuple[str, str, Callable[[object], bool]]] = {
    "app.bsky.richtext.facet#link": ("facet_links", "uri", _is_text),
    "app.bsky.richtext.facet#mention": ("facet_mentions", "did", _is_did),
    "app.bsky.richtext.facet#tag": ("facet_tags", "tag", _is_text),
}


def read_facets(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the columns of posts that come from the field `facets`."""
    rows, values = read_present(records, "facets", list, FieldProblem.NOT_A_LIST, issues)
    found = [
        _read_features(facets, partial(issues.add, row)) for row, facets in zip(rows, values, strict=True)
    ]
    columns = {
        column: texts_series(spread((features[column] for features in found), rows, len(records)))
        for column, _, _ in _FEATURES.values()
    }
    texts = spread((to_json(facets) for facets in values), rows, len(records))
    return {"facets": json_series(texts), **columns}


def _read_features(facets: list[Any], note: Note) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"facet_links": [], "facet_mentions": [], "facet_tags": []}
    for facet in facets:
        features = facet.get("features") if type(facet) is dict else None
        if type(features) is not list:
            note("facets", FieldProblem.BAD_ELEMENT)
            continue
        for feature in features:
            kind = feature.get("$type") if type(feature) is dict else None
            if type(kind) is not str:
                note("facets.features", FieldProblem.BAD_ELEMENT)
            elif kind in _FEATURES:
                column, key, is_valid = _FEATURES[kind]
                value = feature.get(key)
                if is_valid(value):
                    found[column].append(value)
                else:
                    note("facets.features", FieldProblem.BAD_ELEMENT)
    return found
