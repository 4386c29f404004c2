import json
from typing import Any

import cbrrr
import pytest

from backfill_dagster_tests.records.batches import CID, OTHER_DID, URI, row_of_post

BLOB_CID = "bafkreiccldh766hwcnuxnf2wh6jgzepf2nlu2lvcllt63eww5p6chi4ity"
BLOB = {"$type": "blob", "ref": cbrrr.CID.decode(BLOB_CID), "mimeType": "image/jpeg", "size": 10_000}
BLOB_JSON = {**BLOB, "ref": {"$link": BLOB_CID}}
LEGACY = {"cid": CID, "mimeType": "image/png"}
VIDEO = {"$type": "blob", "ref": cbrrr.CID.decode(BLOB_CID), "mimeType": "video/mp4", "size": 1}
REF = {"uri": URI, "cid": CID}

IMAGES = "app.bsky.embed.images"
EXTERNAL = {
    "$type": "app.bsky.embed.external",
    "external": {"uri": "https://example.com/a", "title": "", "thumb": BLOB},
}
RECORD = {"$type": "app.bsky.embed.record", "record": REF}
COLUMNS = ("external_uri", "media_types", "alt_texts", "blob_cids", "quoted_uri", "quoted_cid", "quoted_did")


def columns(**said: Any) -> dict[str, Any]:
    """Say what the columns of a post with an embed hold, less what says nothing."""
    nothing: dict[str, Any] = dict.fromkeys(COLUMNS)
    return nothing | {"media_types": [], "alt_texts": [], "blob_cids": []} | said


QUOTED = {"quoted_uri": URI, "quoted_cid": CID, "quoted_did": OTHER_DID}


def beside(media: Any) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.recordWithMedia", "record": RECORD, "media": media}


def images(*items: Any) -> dict[str, Any]:
    return {"$type": IMAGES, "images": list(items)}


def list_quote(kind: str) -> dict[str, Any]:
    return {"$type": "app.bsky.embed.record", "record": {"uri": f"at://{OTHER_DID}/{kind}/a", "cid": CID}}


@pytest.mark.parametrize(
    ("embed", "said"),
    [
        (
            images({"alt": "a", "image": BLOB}, {"alt": "", "image": LEGACY}),
            {
                "media_types": ["image/jpeg", "image/png"],
                "alt_texts": ["a", ""],
                "blob_cids": [BLOB_CID, CID],
            },
        ),
        (images(), {}),
        (
            {"$type": "app.bsky.embed.video", "video": VIDEO},
            {"media_types": ["video/mp4"], "alt_texts": [None], "blob_cids": [BLOB_CID]},
        ),
        (
            {"$type": "app.bsky.embed.video", "video": VIDEO, "alt": "a film"},
            {"media_types": ["video/mp4"], "alt_texts": ["a film"], "blob_cids": [BLOB_CID]},
        ),
        (
            {
                "$type": "app.bsky.embed.gallery",
                "items": [
                    {"$type": "app.bsky.embed.gallery#image", "alt": "a", "image": BLOB},
                    {"$type": "app.bsky.embed.gallery#hologram", "hologram": BLOB},
                ],
            },
            {"media_types": ["image/jpeg"], "alt_texts": ["a"], "blob_cids": [BLOB_CID]},
        ),
        (EXTERNAL, {"external_uri": "https://example.com/a"}),
        (RECORD, QUOTED),
        (
            list_quote("app.bsky.graph.list"),
            {**QUOTED, "quoted_uri": f"at://{OTHER_DID}/app.bsky.graph.list/a"},
        ),
        (
            list_quote("app.bsky.feed.generator"),
            {**QUOTED, "quoted_uri": f"at://{OTHER_DID}/app.bsky.feed.generator/a"},
        ),
        (
            beside(images({"alt": "a", "image": BLOB})),
            {**QUOTED, "media_types": ["image/jpeg"], "alt_texts": ["a"], "blob_cids": [BLOB_CID]},
        ),
        (beside(EXTERNAL), {**QUOTED, "external_uri": "https://example.com/a"}),
        (beside({"$type": "com.example.embed.hologram", "images": [{"alt": 1}]}), QUOTED),
        ({"$type": "com.example.embed.hologram", "record": REF, "images": [{"image": BLOB}]}, {}),
    ],
)
def test_each_kind(embed: dict[str, Any], said: dict[str, Any]) -> None:
    row = row_of_post(embed=embed)
    assert {column: row[column] for column in COLUMNS} == columns(**said)
    assert row["embed_type"] == embed["$type"]
    assert json.loads(row["embed"]) == json.loads(row["record"])["embed"]
    assert json.loads(row["embed"]) == as_json(embed)
    assert row["issues"] == []


def as_json(value: Any) -> Any:
    if isinstance(value, cbrrr.CID):
        return {"$link": value.encode()}
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    return [as_json(child) for child in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("embed", "said", "issues"),
    [
        ({}, {}, ["embed.$type:missing"]),
        ({"$type": 7}, {}, ["embed.$type:not_a_string"]),
        ({"$type": IMAGES}, {}, ["embed.images:missing"]),
        ({"$type": IMAGES, "images": {"alt": "a"}}, {}, ["embed.images:not_a_list"]),
        (
            images(7, {"alt": "a", "image": BLOB}),
            {"media_types": ["image/jpeg"], "alt_texts": ["a"], "blob_cids": [BLOB_CID]},
            ["embed.images:bad_element"],
        ),
        (
            images({"image": BLOB}),
            {"media_types": ["image/jpeg"], "alt_texts": [None], "blob_cids": [BLOB_CID]},
            ["embed.images.alt:missing"],
        ),
        (
            images({"alt": "a"}),
            {"media_types": [None], "alt_texts": ["a"], "blob_cids": [None]},
            ["embed.images.image:missing"],
        ),
        (
            images({"alt": "a", "image": BLOB_CID}),
            {"media_types": [None], "alt_texts": ["a"], "blob_cids": [None]},
            ["embed.images.image:not_a_blob"],
        ),
        (
            # A byte string that looks like a CID is no link.
            images({"alt": "a", "image": {**BLOB, "ref": b"\x01\x55\x12\x20" + bytes(32)}}),
            {"media_types": ["image/jpeg"], "alt_texts": ["a"], "blob_cids": [None]},
            ["embed.images.image:not_a_blob"],
        ),
        (
            # The legacy form counts only where there is no other.
            images({"alt": "a", "image": {**LEGACY, "ref": CID}}),
            {"media_types": ["image/png"], "alt_texts": ["a"], "blob_cids": [None]},
            ["embed.images.image:not_a_blob"],
        ),
        (
            images({"alt": "a", "image": {"ref": BLOB["ref"], "mimeType": None}}),
            {"media_types": [None], "alt_texts": ["a"], "blob_cids": [BLOB_CID]},
            ["embed.images.image.mimeType:null"],
        ),
        (
            {"$type": "app.bsky.embed.video"},
            {"media_types": [None], "alt_texts": [None], "blob_cids": [None]},
            ["embed.video:missing"],
        ),
        (
            {"$type": "app.bsky.embed.gallery", "items": [{"alt": "a", "image": BLOB}]},
            {},
            ["embed.items:bad_element"],
        ),
        ({"$type": "app.bsky.embed.external"}, {}, ["embed.external:missing"]),
        (
            {"$type": "app.bsky.embed.external", "external": {"uri": 1}},
            {},
            ["embed.external.uri:not_a_string"],
        ),
        ({"$type": "app.bsky.embed.record"}, {}, ["embed.record:missing"]),
        (
            {"$type": "app.bsky.embed.record", "record": {"uri": "x"}},
            {},
            ["embed.record.uri:not_an_at_uri", "embed.record.cid:missing"],
        ),
        ({"$type": "app.bsky.embed.recordWithMedia"}, {}, ["embed.record:missing", "embed.media:missing"]),
        (beside("x"), QUOTED, ["embed.media:not_a_map"]),
        (beside({}), QUOTED, ["embed.media.$type:missing"]),
        (
            {"$type": "app.bsky.embed.recordWithMedia", "record": REF, "media": images()},
            {},
            ["embed.record:missing"],
        ),
    ],
)
def test_what_is_wrong_within_an_embed_is_named(
    embed: dict[str, Any], said: dict[str, Any], issues: list[str]
) -> None:
    row = row_of_post(embed=embed)
    assert {column: row[column] for column in COLUMNS} == columns(**said)
    assert json.loads(row["embed"]) == json.loads(row["record"])["embed"]
    assert row["issues"] == issues


@pytest.mark.parametrize(("embed", "issue"), [(None, "null"), ("x", "not_a_map"), ([RECORD], "not_a_map")])
def test_what_is_no_embed_leaves_all_of_its_columns_null(embed: Any, issue: str) -> None:
    row = row_of_post(embed=embed)
    assert {row[column] for column in (*COLUMNS, "embed", "embed_type")} == {None}
    assert row["issues"] == [f"embed:{issue}"]
