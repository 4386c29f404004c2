"""Records of `app.bsky.feed.post`: posts and replies, which have the same columns."""

from typing import Any

import polars as pl

from backfill_dagster.records.embeds import read_embeds
from backfill_dagster.records.facets import read_facets
from backfill_dagster.records.fields import (
    Map,
    Parents,
    read_lists,
    read_maps,
    read_text_lists,
    read_texts,
    text_series,
    texts_series,
)
from backfill_dagster.records.issues import Issues, Problem
from backfill_dagster.records.references import References, read_references


def is_reply(record: Map) -> bool:
    """Tell a reply from a post: it has a field `reply`, whatever that holds.

    Where it holds no map, the reply's references are null, and the issues say so (`reply:null`).
    """
    return "reply" in record


def read_posts(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the columns that are posts' and replies' own."""
    reply = read_maps(records, "reply", "reply", issues, required=False)
    parent = _read_reply(reply, "parent", issues)
    root = _read_reply(reply, "root", issues)
    return {
        "text": text_series(read_texts(records, "text", "text", issues)),
        "langs": texts_series(read_text_lists(records, "langs", issues)),
        "tags": texts_series(read_text_lists(records, "tags", issues)),
        "labels": texts_series(_read_labels(records, issues)),
        **read_embeds(records, issues),
        **read_facets(records, issues),
        "reply_parent_uri": parent.uri,
        "reply_parent_cid": parent.cid,
        "reply_parent_did": parent.did,
        "reply_root_uri": root.uri,
        "reply_root_cid": root.cid,
        "reply_root_did": root.did,
    }


def _read_reply(reply: Parents, key: str, issues: Issues) -> References:
    path = f"reply.{key}"
    return read_references(read_maps(reply, key, path, issues), path, issues)


def _read_labels(records: list[Map], issues: Issues) -> list[list[str] | None]:
    """Read the values of self-labels (`com.atproto.label.defs#selfLabels`)."""
    self_labels = read_maps(records, "labels", "labels", issues, required=False)
    values = read_lists(self_labels, "values", "labels.values", issues)
    return [
        None if labels is None else _label_values(labels, row, issues) for row, labels in enumerate(values)
    ]


def _label_values(labels: list[Any], row: int, issues: Issues) -> list[str]:
    values = [label.get("val") if type(label) is dict else None for label in labels]
    texts = [value for value in values if type(value) is str]
    if len(texts) < len(values):
        issues.add(row, "labels.values", Problem.BAD_ELEMENT)
    return texts
