from typing import Any

import pytest

from backfill_dagster.records.tables import BLOCK, FOLLOW, LIKE, REPOST
from backfill_dagster_tests.records.batches import CID, OTHER_DID, URI, row_of

SUBJECT = {"uri": URI, "cid": CID}
VIA = {"uri": f"at://{OTHER_DID}/app.bsky.feed.repost/3l5via", "cid": CID}
COLUMNS = ("subject_uri", "subject_cid", "subject_did", "subject_collection", "via_uri")


@pytest.mark.parametrize(("collection", "record_type"), [(LIKE, "like"), (REPOST, "repost")])
def test_likes_and_reposts_point_at_records(collection: str, record_type: str) -> None:
    row = row_of({"subject": SUBJECT, "via": VIA}, collection)
    assert row["record_type"] == record_type
    assert [row[column] for column in COLUMNS] == [URI, CID, OTHER_DID, "app.bsky.feed.post", VIA["uri"]]
    assert row["issues"] == []
    assert row_of({"subject": SUBJECT}, collection)["via_uri"] is None


@pytest.mark.parametrize(
    ("fields", "values", "issues"),
    [
        ({}, [None] * 5, ["subject:missing"]),
        ({"subject": None}, [None] * 5, ["subject:null"]),
        ({"subject": URI}, [None] * 5, ["subject:not_a_map"]),
        ({"subject": [["uri", URI], ["cid", CID]]}, [None] * 5, ["subject:not_a_map"]),
        ({"subject": {}}, [None] * 5, ["subject.uri:missing", "subject.cid:missing"]),
        ({"subject": {"uri": 7, "cid": None}}, [None] * 5, ["subject.uri:not_a_string", "subject.cid:null"]),
        (
            {"subject": {"uri": "at://bsky.app/app.bsky.feed.post/a", "cid": CID}},
            ["at://bsky.app/app.bsky.feed.post/a", CID, None, "app.bsky.feed.post", None],
            ["subject.uri:no_did"],
        ),
        (
            {"subject": {"uri": f"at://{OTHER_DID}", "cid": "x"}},
            [f"at://{OTHER_DID}", None, OTHER_DID, None, None],
            ["subject.cid:not_a_cid"],
        ),
        (
            {"subject": SUBJECT, "via": URI},
            [URI, CID, OTHER_DID, "app.bsky.feed.post", None],
            ["via:not_a_map"],
        ),
        (
            {"subject": SUBJECT, "via": {}},
            [URI, CID, OTHER_DID, "app.bsky.feed.post", None],
            ["via.uri:missing"],
        ),
    ],
)
def test_bad_subjects_are_null_and_named(
    fields: dict[str, Any], values: list[str | None], issues: list[str]
) -> None:
    row = row_of(fields, LIKE)
    assert [row[column] for column in COLUMNS] == values
    assert row["issues"] == issues


@pytest.mark.parametrize(("collection", "record_type"), [(FOLLOW, "follow"), (BLOCK, "block")])
@pytest.mark.parametrize(
    ("fields", "did", "issues"),
    [
        ({"subject": OTHER_DID}, OTHER_DID, []),
        ({"subject": "did:web:example.com"}, "did:web:example.com", []),
        ({}, None, ["subject:missing"]),
        ({"subject": None}, None, ["subject:null"]),
        ({"subject": 7}, None, ["subject:not_a_string"]),
        ({"subject": SUBJECT}, None, ["subject:not_a_string"]),
        ({"subject": "bsky.app"}, None, ["subject:not_a_did"]),
        ({"subject": f"{OTHER_DID} "}, None, ["subject:not_a_did"]),
        ({"subject": "did:web:" + "a" * 2048}, None, ["subject:not_a_did"]),
    ],
)
def test_follows_and_blocks_point_at_accounts(
    collection: str, record_type: str, fields: dict[str, Any], did: str | None, issues: list[str]
) -> None:
    row = row_of(fields, collection)
    assert (row["record_type"], row["subject_did"], row["issues"]) == (record_type, did, issues)
