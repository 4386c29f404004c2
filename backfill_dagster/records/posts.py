"""Records of `app.bsky.feed.post`: posts and replies, which have the same columns."""

import polars as pl

from backfill_dagster.records.embeds import read_embeds
from backfill_dagster.records.facets import read_facets
from backfill_dagster.records.fields import (
    Map,
    read_maps,
    read_present,
    read_text_lists,
    read_texts,
    spread,
    text_series,
)
from backfill_dagster.records.issues import FieldProblem, Issues
from backfill_dagster.records.references import read_all_references
from backfill_dagster.records.self_labels import read_self_labels


def is_reply(record: Map) -> bool:
    """Tell a reply from a post: it has a field `reply`, whatever that holds.

    Where it holds no map, the reply's references are null, and the issues say so (`reply:null`).
    """
    return "reply" in record


def read_posts(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the columns that are posts' and replies' own."""
    rows, replies = read_present(records, "reply", dict, FieldProblem.NOT_A_MAP, issues)
    apart = {path: Issues() for path in ("reply.parent", "reply.root", "embed", "embed.record")}
    parents, roots = (
        spread(read_maps(replies, key, path, apart[path].of_rows(rows)), rows, len(records))
        for key, path in (("parent", "reply.parent"), ("root", "reply.root"))
    )
    embeds = read_embeds(records, apart["embed"])
    # All three at once: to look at a column takes longer than to look at its values.
    parent, root, quoted = read_all_references(
        [
            (parents, "reply.parent", apart["reply.parent"]),
            (roots, "reply.root", apart["reply.root"]),
            (embeds.quoted, "embed.record", apart["embed.record"]),
        ]
    )
    issues.add_all(apart["reply.parent"])
    issues.add_all(apart["reply.root"])
    text = read_texts(records, "text", "text", issues)
    lists = {
        "langs": read_text_lists(records, "langs", issues),
        "tags": read_text_lists(records, "tags", issues),
        "labels": read_self_labels(records, issues),
    }
    issues.add_all(apart["embed"])
    issues.add_all(apart["embed.record"])
    return {
        "text": text_series(text),
        **lists,
        **embeds.columns,
        "quoted_uri": quoted.uri,
        "quoted_cid": quoted.cid,
        "quoted_did": quoted.did,
        **read_facets(records, issues),
        "reply_parent_uri": parent.uri,
        "reply_parent_cid": parent.cid,
        "reply_parent_did": parent.did,
        "reply_root_uri": root.uri,
        "reply_root_cid": root.cid,
        "reply_root_did": root.did,
    }
