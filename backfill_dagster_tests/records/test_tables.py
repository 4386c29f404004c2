from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from backfill_dagster.config.study import RECORD_TYPES, RecordType
from backfill_dagster.records.tables import (
    COLLECTIONS,
    COUNTS,
    RECORD_TABLES,
    REJECTS,
    TABLE_BY_NAME,
    TABLES,
    TABLES_OF_COLLECTION,
    USUAL_TABLES,
)
from backfill_dagster_tests.records.batches import block_row, cbor, transform

COMMON = [
    "did",
    "collection",
    "rkey",
    "uri",
    "cid",
    "repo_rev",
    "pds",
    "obtained",
    "record_type",
    "created_at_raw",
    "created_at",
    "sync_timestamp",
    "in_range",
    "rkey_time",
    "date_quality",
    "issues",
    "record",
]
OF_POSTS = [
    "text",
    "langs",
    "tags",
    "labels",
    "embed_type",
    "embed",
    "external_uri",
    "media_types",
    "alt_texts",
    "blob_cids",
    "facets",
    "facet_links",
    "facet_mentions",
    "facet_tags",
    "reply_parent_uri",
    "reply_parent_cid",
    "reply_parent_did",
    "reply_root_uri",
    "reply_root_cid",
    "reply_root_did",
    "quoted_uri",
    "quoted_cid",
    "quoted_did",
]
OF_LIKES = [
    "subject_uri",
    "subject_cid",
    "subject_did",
    "subject_collection",
    "via_uri",
    "first_for_subject",
]
OF_FOLLOWS = ["subject_did", "first_for_subject"]
OF_PROFILES = [
    "display_name",
    "description",
    "pronouns",
    "website",
    "labels",
    "avatar_cid",
    "banner_cid",
    "pinned_post_uri",
    "joined_via_starter_pack",
]
OWN = {
    "posts": OF_POSTS,
    "replies": OF_POSTS,
    "likes": OF_LIKES,
    "reposts": OF_LIKES,
    "follows": OF_FOLLOWS,
    "blocks": OF_FOLLOWS,
    "profiles": OF_PROFILES,
    "other_records": [],
}
LISTS = {"issues", "langs", "tags", "labels", "media_types", "alt_texts", "blob_cids"} | {
    "facet_links",
    "facet_mentions",
    "facet_tags",
}
BOOLEANS = {"in_range", "first_for_subject"}
INSTANTS = {"created_at", "sync_timestamp", "rkey_time"}
USUAL = ("posts", "replies", "likes", "reposts", "follows", "blocks")


def test_the_tables_are_the_six_and_two_on_request() -> None:
    assert USUAL_TABLES == USUAL
    assert (*USUAL, "profiles", "other_records") == TABLES
    assert set(TABLE_BY_NAME) == set(TABLES)
    assert TABLES_OF_COLLECTION == {
        "app.bsky.feed.post": ("posts", "replies"),
        "app.bsky.feed.like": ("likes",),
        "app.bsky.feed.repost": ("reposts",),
        "app.bsky.graph.follow": ("follows",),
        "app.bsky.graph.block": ("blocks",),
        "app.bsky.actor.profile": ("profiles",),
    }
    assert tuple(TABLES_OF_COLLECTION) == COLLECTIONS == get_args(RecordType)
    assert {table for kind in RECORD_TYPES for table in TABLES_OF_COLLECTION[kind]} == set(USUAL)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_its_columns(name: str) -> None:
    schema = TABLE_BY_NAME[name].schema
    assert sorted(schema) == sorted(COMMON + OWN[name])
    for column, dtype in schema.items():
        if column in LISTS:
            assert dtype == pl.List(pl.String)
        elif column in INSTANTS:
            assert dtype == pl.Datetime("us", "UTC")
        else:
            assert dtype == (pl.Boolean if column in BOOLEANS else pl.String)


def test_every_column_is_described_in_one_sentence() -> None:
    columns = [column for table in RECORD_TABLES for column in table.columns] + [*REJECTS, *COUNTS]
    for column in columns:
        assert column.description.endswith("."), column
        assert ". " not in column.description, column
        assert column.description[0].isupper() or column.description.startswith("created_at"), column


def test_frames_survive_parquet(tmp_path: Path) -> None:
    result = transform(
        [block_row(cbor({"$type": "app.bsky.feed.post", "text": "a\0b", "langs": ["en"], "tags": []}))]
    )
    for name, frame in result.tables.items():
        path = tmp_path / f"{name}.parquet"
        frame.write_parquet(path)
        assert pl.read_parquet(path).schema == TABLE_BY_NAME[name].schema
        assert pl.read_parquet(path).equals(frame)
