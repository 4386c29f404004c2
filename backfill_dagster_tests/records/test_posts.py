from typing import Any

import cbrrr
import pytest

from backfill_dagster_tests.records.batches import CID, OTHER_DID, URI, row_of_post

REF = {"uri": URI, "cid": CID}
ROOT = {"uri": f"at://{OTHER_DID}/app.bsky.feed.post/3l5root", "cid": CID}
LINK = cbrrr.CID.decode(CID)


def test_a_plain_post_has_no_issues_and_null_where_it_says_nothing() -> None:
    row = row_of_post(text="hello")
    assert row["record_type"] == "post"
    assert row["text"] == "hello"
    assert row["issues"] == []
    said = {"did", "collection", "rkey", "uri", "cid", "repo_rev", "pds", "obtained", "record_type"} | {
        "text",
        "record",
        "created_at_raw",
        "created_at",
        "sync_timestamp",
        "in_range",
        "rkey_time",
        "date_quality",
        "issues",
    }
    assert {name for name, value in row.items() if value is not None} == said


@pytest.mark.parametrize(
    "text", ["", "a\0b", "🦋" * 300, "\ud83d".encode("utf-16", "surrogatepass").decode("latin1")]
)
def test_text_is_kept_as_it_is(text: str) -> None:
    assert row_of_post(text=text)["text"] == text


@pytest.mark.parametrize(
    ("fields", "column", "value", "issue"),
    [
        ({"text": None}, "text", None, "text:null"),
        ({"text": 5}, "text", None, "text:not_a_string"),
        ({"text": b"bytes"}, "text", None, "text:not_a_string"),
        ({"text": ["a"]}, "text", None, "text:not_a_string"),
        ({"text": LINK}, "text", None, "text:not_a_string"),
        ({"langs": "en"}, "langs", None, "langs:not_a_list"),
        ({"langs": None}, "langs", None, "langs:null"),
        ({"langs": {"en": "de"}}, "langs", None, "langs:not_a_list"),
        ({"langs": b"en"}, "langs", None, "langs:not_a_list"),
        ({"langs": ["en", None, 3, b"de", "ja"]}, "langs", ["en", "ja"], "langs:bad_element"),
        ({"langs": [None]}, "langs", [], "langs:bad_element"),
        ({"tags": {"a": 1}}, "tags", None, "tags:not_a_list"),
        ({"tags": [["a"], "b"]}, "tags", ["b"], "tags:bad_element"),
        ({"labels": "nsfw"}, "labels", None, "labels:not_a_map"),
        ({"labels": None}, "labels", None, "labels:null"),
        ({"labels": {}}, "labels", None, "labels.values:missing"),
        ({"labels": {"values": {"val": "a"}}}, "labels", None, "labels.values:not_a_list"),
        (
            {"labels": {"values": [{"val": "a"}, {"val": 1}, "b", None]}},
            "labels",
            ["a"],
            "labels.values:bad_element",
        ),
    ],
)
def test_a_bad_field_is_null_and_named_and_costs_nothing_else(
    fields: dict[str, Any], column: str, value: Any, issue: str
) -> None:
    row = row_of_post(**{"text": "kept", "langs": ["en"], "tags": ["a"]} | fields)
    assert row[column] == value
    assert row["issues"] == [issue]
    kept = {"text": "kept", "langs": ["en"], "tags": ["a"]}
    assert {name: row[name] for name in kept if name != column} == {
        name: kept[name] for name in kept if name != column
    }


def test_a_post_without_text_says_so() -> None:
    row = row_of_post(embed={"$type": "app.bsky.embed.record", "record": REF})
    assert (row["text"], row["issues"]) == ("", [])
    assert row_of_post(text=None)["text"] is None


def test_lists_are_read() -> None:
    labels = {
        "$type": "com.atproto.label.defs#selfLabels",
        "values": [{"val": "porn"}, {"val": "!no-unauthenticated"}],
    }
    row = row_of_post(langs=["en", "pt-BR"], tags=[], labels=labels)
    assert (row["langs"], row["tags"]) == (["en", "pt-BR"], [])
    assert row["labels"] == ["porn", "!no-unauthenticated"]
    assert row["issues"] == []


def test_a_reply_points_at_parent_and_root() -> None:
    row = row_of_post(reply={"parent": REF, "root": ROOT})
    assert row["record_type"] == "reply"
    assert (row["reply_parent_uri"], row["reply_parent_cid"], row["reply_parent_did"]) == (
        URI,
        CID,
        OTHER_DID,
    )
    assert (row["reply_root_uri"], row["reply_root_cid"], row["reply_root_did"]) == (
        ROOT["uri"],
        CID,
        OTHER_DID,
    )
    assert row["issues"] == []


@pytest.mark.parametrize(
    ("reply", "issues"),
    [
        (None, ["reply:null"]),
        (URI, ["reply:not_a_map"]),
        ([], ["reply:not_a_map"]),
        ({}, ["reply.parent:missing", "reply.root:missing"]),
        ({"parent": REF}, ["reply.root:missing"]),
        ({"parent": REF, "root": None}, ["reply.root:null"]),
        ({"parent": {"uri": URI}, "root": REF}, ["reply.parent.cid:missing"]),
    ],
)
def test_whatever_has_a_reply_field_is_a_reply(reply: Any, issues: list[str]) -> None:
    row = row_of_post(reply=reply)
    assert row["record_type"] == "reply"
    assert row["issues"] == issues
