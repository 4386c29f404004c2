import json
from datetime import UTC, datetime, timedelta
from typing import Any

import cbrrr
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backfill_dagster.errors import ReconciliationError
from backfill_dagster.records import chunks as chunks_module
from backfill_dagster.records.blocks import MAX_RECORD_BYTES
from backfill_dagster.records.date_quality import DateQuality
from backfill_dagster.records.outcomes import Fate, FilterReason, RejectReason
from backfill_dagster.records.tables import (
    BLOCK,
    COLLECTIONS,
    FOLLOW,
    LIKE,
    POST,
    PROFILE,
    REPOST,
    TABLE_BY_NAME,
    TABLES,
)
from backfill_dagster.records.transform import TransformedRecords, transform_records
from backfill_dagster_tests.records.batches import (
    CID,
    CREATED,
    CREATED_AT,
    DID,
    FETCHED_AT,
    OTHER_DID,
    PDS,
    REV,
    TID,
    URI,
    accounts,
    block_row,
    blocks,
    cbor,
    cid_of,
    only_row,
    row_of_post,
    settings,
    transform,
)

OTHER = "com.example.other"


def post(text: str = "", **fields: Any) -> bytes:
    return cbor({"$type": POST, "text": text, "createdAt": CREATED, **fields})


def counted(result: TransformedRecords) -> list[tuple[str | None, str | None, str, str | None, int]]:
    return result.counts.select("collection", "table", "fate", "reason", "records").rows()


def test_a_row_says_where_its_record_came_from() -> None:
    block = post("hello")
    found = only_row(transform([block_row(block)]))
    assert found["did"] == DID
    assert found["collection"] == POST
    assert found["rkey"] == TID
    assert found["uri"] == f"at://{DID}/{POST}/{TID}"
    assert found["cid"] == cbrrr.CID(cid_of(block)).encode()
    assert (found["pds"], found["repo_rev"]) == (PDS, REV)
    assert found["created_at_raw"] == CREATED
    assert found["created_at"] == found["sync_timestamp"] == found["rkey_time"] == CREATED_AT
    assert (found["date_quality"], found["in_range"], found["issues"]) == (DateQuality.CONSISTENT, True, [])
    assert json.loads(found["record"]) == {"$type": POST, "text": "hello", "createdAt": CREATED}


@pytest.mark.parametrize(
    ("value", "raw", "quality", "issues"),
    [
        ({}, None, "missing", ["createdAt:missing"]),
        ({"createdAt": None}, None, "missing", ["createdAt:null"]),
        ({"createdAt": 1_728_129_600_000}, None, "unparseable", ["createdAt:not_a_string"]),
        ({"createdAt": CREATED.encode()}, None, "unparseable", ["createdAt:not_a_string"]),
        ({"createdAt": {"$type": "date"}}, None, "unparseable", ["createdAt:not_a_string"]),
        ({"createdAt": "yesterday"}, "yesterday", "unparseable", ["createdAt:unparseable"]),
        (
            {"createdAt": "0000-01-01T00:00:00Z"},
            "0000-01-01T00:00:00Z",
            "unparseable",
            ["createdAt:out_of_range"],
        ),
        ({"createdAt": "0001-01-01"}, "0001-01-01", "before_network", ["createdAt:date_only"]),
        ({"createdAt": "2022-10-31T23:59:59.999Z"}, "2022-10-31T23:59:59.999Z", "before_network", []),
        ({"createdAt": "2025-06-01T00:00:00.001Z"}, "2025-06-01T00:00:00.001Z", "future", []),
    ],
)
@pytest.mark.parametrize("outside", ["drop", "normalize"])
def test_an_undated_record_is_kept_in_both_modes(
    value: dict[str, Any], raw: str | None, quality: str, issues: list[str], outside: Any
) -> None:
    wanted = settings(start=datetime(2024, 9, 27, tzinfo=UTC), outside=outside)
    found = only_row(transform([block_row(cbor({"$type": POST, "text": "", **value}))], wanted))
    assert (found["created_at_raw"], found["date_quality"], found["issues"]) == (raw, quality, issues)
    assert (found["in_range"], found["sync_timestamp"]) == (False, None)


def test_a_dated_record_outside_is_dropped_or_filed_by_the_rule() -> None:
    rows = [block_row(post(createdAt="2024-09-20T12:00:00Z"), rkey="a"), block_row(post(reply={}), rkey="b")]
    start, end = datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 9, 30, tzinfo=UTC)
    kept = transform(rows, settings(start=start, end=end, outside="normalize"))
    assert kept.tables["posts"].select("in_range", "sync_timestamp").row(0) == (
        False,
        datetime(2024, 10, 1, tzinfo=UTC),
    )
    assert kept.tables["posts"]["created_at"].item() == datetime(2024, 9, 20, 12, tzinfo=UTC)
    assert kept.tables["replies"]["sync_timestamp"].item() == datetime(2024, 10, 15, tzinfo=UTC)

    dropped = transform(rows, settings(start=start, end=end, outside="drop"))
    assert all(frame.is_empty() for frame in dropped.tables.values())
    assert counted(dropped) == [
        (POST, "posts", Fate.FILTERED, FilterReason.OUT_OF_RANGE, 1),
        (POST, "replies", Fate.FILTERED, FilterReason.OUT_OF_RANGE, 1),
    ]


def test_dropping_keeps_every_row_with_its_own_issues() -> None:
    rows = [
        block_row(post(text="dropped", langs="en", createdAt="2023-01-01T00:00:00Z"), rkey="a"),
        block_row(post(text="kept"), rkey="b"),
        block_row(post(text="dropped", createdAt="2023-01-01T00:00:00Z"), rkey="c"),
        block_row(post(text="kept too", tags="x"), rkey="d"),
        block_row(b"\xff", rkey="e"),
        block_row(post(text="kept as well", createdAt=None), rkey="f"),
    ]
    result = transform(rows, settings(start=datetime(2024, 1, 1, tzinfo=UTC), outside="drop"))
    assert result.tables["posts"].select("rkey", "text", "issues").rows() == [
        ("b", "kept", []),
        ("d", "kept too", ["tags:not_a_list"]),
        ("f", "kept as well", ["createdAt:null"]),
    ]
    assert result.rejects["rkey"].to_list() == ["e"]


@pytest.mark.parametrize(
    ("value", "issue"),
    [
        ({"$type": LIKE}, "$type:differs"),
        ({"$type": None}, "$type:null"),
        ({"$type": 7}, "$type:not_a_string"),
        ({}, "$type:missing"),
    ],
)
def test_the_tree_decides_the_table_and_a_type_that_disagrees_is_named(
    value: dict[str, Any], issue: str
) -> None:
    found = only_row(transform([block_row(cbor({"text": "a", "createdAt": CREATED, **value}))]))
    assert (found["record_type"], found["text"], found["issues"]) == ("post", "a", [issue])


def test_a_key_that_json_reserves_is_named() -> None:
    assert row_of_post(a=[{"$link": CID}])["issues"] == ["record:reserved_key"]
    assert row_of_post(a={"$bytes": 1})["issues"] == ["record:reserved_key"]
    assert row_of_post(text="$link and $bytes")["issues"] == []


def test_links_and_byte_strings_that_look_like_links_are_told_apart() -> None:
    link = cbrrr.CID.decode(CID)
    record = json.loads(row_of_post(a=link, b=bytes(link), c=b"")["record"])
    assert record["a"] == {"$link": CID}
    assert record["b"].keys() == record["c"].keys() == {"$bytes"}


RAW_CID = b"\x01\x55\x12\x20" + bytes(32)


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        (block_row(post(), rkey="with space"), RejectReason.BAD_KEY),
        (block_row(post(), rkey=""), RejectReason.BAD_KEY),
        (block_row(post(), rkey=".."), RejectReason.BAD_KEY),
        (block_row(post(), rkey="a/b"), RejectReason.BAD_KEY),
        (block_row(post(), rkey="k" * 513), RejectReason.BAD_KEY),
        (block_row(post(), rkey=None), RejectReason.BAD_KEY),
        (block_row(post(), collection=""), RejectReason.BAD_KEY),
        (block_row(post(), collection=None), RejectReason.BAD_KEY),
        (block_row(post(), collection="app.bsky"), RejectReason.BAD_KEY),
        (block_row(post(), cid=RAW_CID), RejectReason.RAW_CODEC),
        (block_row(post(), cid=b""), RejectReason.BAD_CID),
        (block_row(post(), cid=b"\x12\x20" + bytes(32)), RejectReason.BAD_CID),
        (block_row(b"\xff"), RejectReason.UNDECODABLE),
        (block_row(cbor({"text": 1})[:-1]), RejectReason.UNDECODABLE),
        (block_row(b"\xa1\x64text\x63\xed\xa0\x80"), RejectReason.UNDECODABLE),
        (block_row(cbor([1])), RejectReason.NOT_A_MAP),
        (block_row(b"\xa1\x61a" + b"\x81" * 300 + b"\x01"), RejectReason.TOO_DEEP),
        (block_row(cbor({"text": "x" * MAX_RECORD_BYTES})), RejectReason.TOO_LARGE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_without_usable_key_or_content_is_rejected_alone(
    rejected: dict[str, Any], reason: RejectReason
) -> None:
    before, after = block_row(post("before"), rkey="before"), block_row(post("after"), rkey="after")
    result = transform([before, rejected, after])
    assert result.tables["posts"]["text"].to_list() == ["before", "after"]
    (found,) = result.rejects.iter_rows(named=True)
    assert (found["did"], found["collection"], found["rkey"]) == (
        DID,
        rejected["collection"],
        rejected["rkey"],
    )
    assert found["reason"] == reason
    assert len(found["detail"] or "") <= 200
    if rejected["collection"] is None or rejected["rkey"] is None:
        assert found["uri"] is None
    else:
        assert found["uri"] == f"at://{DID}/{rejected['collection']}/{rejected['rkey']}"
    is_cid = reason != RejectReason.BAD_CID
    assert found["cid"] == (cbrrr.CID(rejected["cid"]).encode() if is_cid else None)
    assert (rejected["collection"], None, Fate.REJECTED, reason, 1) in counted(result)
    assert result.counts["records"].sum() == 3


def test_the_detail_of_a_reject_does_not_repeat_a_hostile_key() -> None:
    keys = [b"\x79\x0f\xff" + letter * 0xFFF for letter in (b"b", b"a")]
    result = transform([block_row(b"\xa2" + keys[0] + b"\x01" + keys[1] + b"\x01")])
    assert result.rejects["reason"].to_list() == [RejectReason.UNDECODABLE]
    assert "map key" in result.rejects["detail"].item()
    assert len(result.rejects["detail"].item()) == 200


def test_a_large_record_within_the_bound_is_kept() -> None:
    text = "x" * (MAX_RECORD_BYTES - 200)
    assert row_of_post(text=text)["text"] == text


def test_unwanted_types_are_filtered_unseen() -> None:
    rows = [
        block_row(post()),
        block_row(b"\xff", collection=LIKE),
        block_row(b"\xff", collection="com.example.recipe.entry", rkey="not a key"),
    ]
    result = transform(rows, settings(record_types=[FOLLOW]))
    assert counted(result) == [
        (LIKE, "likes", Fate.FILTERED, FilterReason.UNWANTED_TYPE, 1),
        (POST, None, Fate.FILTERED, FilterReason.UNWANTED_TYPE, 1),
        ("com.example.recipe.entry", None, Fate.FILTERED, FilterReason.UNWANTED_TYPE, 1),
    ]
    assert result.rejects.is_empty()


def test_no_records_make_empty_tables_with_all_columns() -> None:
    for rows in ([], [block_row(b"\xff")]):
        result = transform(rows)
        assert tuple(result.tables) == TABLES
        for name, frame in result.tables.items():
            assert frame.schema == TABLE_BY_NAME[name].schema
            assert frame.is_empty()


def mixed_rows() -> list[dict[str, Any]]:
    values: dict[str, list[dict[str, Any]]] = {
        POST: [{"text": f"post {n}", **({"reply": {}} if n % 3 else {})} for n in range(9)],
        LIKE: [{"subject": {"uri": URI, "cid": CID}} for _ in range(5)],
        REPOST: [{"subject": None} for _ in range(3)],
        FOLLOW: [{"subject": OTHER_DID} for _ in range(4)],
        BLOCK: [{"subject": 1} for _ in range(2)],
        PROFILE: [{"displayName": f"name {n}"} for n in range(4)],
        OTHER: [{}, {}, {}],
        "com.example.unwanted": [{}, {}],
    }
    rows = []
    for did in (OTHER_DID, DID):
        for collection, records in values.items():
            for number, value in enumerate(records):
                block = cbor({"$type": collection, "createdAt": CREATED, "n": number, **value})
                rows.append(block_row(block if number != 1 else b"\xff", collection, f"key-{number}", did))
    return rows[::2] + rows[1::2]


def test_rows_stay_in_the_order_of_the_input() -> None:
    rows = mixed_rows()
    result = transform(rows, settings(other_types=[OTHER]))
    order = {
        (record["did"], record["collection"], record["rkey"]): place for place, record in enumerate(rows)
    }
    for frame in (*result.tables.values(), result.rejects):
        places = [order[key] for key in frame.select("did", "collection", "rkey").iter_rows()]
        assert len(places) > 1
        assert places == sorted(places)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, wanted = mixed_rows(), settings(other_types=[OTHER, "com.example.unwanted"])
    whole = transform(rows, wanted)
    for name, bound in (("CHUNK_RECORDS", 1), ("CHUNK_RECORDS", 3), ("CHUNK_BYTES", 150), ("CHUNK_BYTES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(chunks_module, name, bound)
            pieces = transform(rows, wanted)
        assert {
            table: frame.equals(pieces.tables[table]) for table, frame in whole.tables.items()
        } == dict.fromkeys(TABLES, True)
        assert pieces.rejects.equals(whole.rejects)
        assert pieces.counts.equals(whole.counts)


def test_chunks_are_bounded_in_records_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "CHUNK_RECORDS", 4)
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 100)
    sizes = [10, 10, 10, 10, 10, 60, 60, 60, 0, 250, 1, 1]
    rows = pl.DataFrame({"block": [bytes(size) for size in sizes]})
    pieces = [piece["block"].bin.size().to_list() for piece in chunks_module.chunks(rows)]
    assert [size for piece in pieces for size in piece] == sizes
    assert all(0 < len(piece) <= 4 for piece in pieces)
    assert all(sum(piece[1:]) < 100 for piece in pieces)
    assert list(chunks_module.chunks(rows.clear())) == []


def test_every_account_is_told_apart() -> None:
    table = blocks([block_row(post(), did=did, rkey="a") for did in (DID, OTHER_DID)])
    other = accounts(OTHER_DID, fetched_at=CREATED_AT - timedelta(days=1)).with_columns(
        pds=pl.lit("https://other.example.com"), repo_rev=pl.lit("3other")
    )
    result = transform_records(table, pl.concat([other, accounts(DID)]), settings())
    assert result.tables["posts"].select("did", "pds", "repo_rev", "date_quality").rows() == [
        (DID, PDS, REV, "no_rkey_time"),
        (OTHER_DID, "https://other.example.com", "3other", "future"),
    ]
    assert result.counts.select("did", "records").rows() == [(DID, 1), (OTHER_DID, 1)]


def test_record_batches_and_fixed_size_cids_are_read_too() -> None:
    table = blocks(mixed_rows())
    fixed = table.set_column(3, "cid", table["cid"].cast(pa.binary(36)))
    whole = transform_records(table, accounts(DID, OTHER_DID), settings())
    for same in (table.combine_chunks().to_batches()[0], fixed):
        result = transform_records(same, accounts(DID, OTHER_DID), settings())
        assert all(frame.equals(result.tables[name]) for name, frame in whole.tables.items())


def test_frames_that_do_not_belong_together_are_refused() -> None:
    table = blocks([block_row(post())])
    with pytest.raises(ReconciliationError, match="not among its accounts"):
        transform_records(table, accounts(OTHER_DID), settings())
    with pytest.raises(ReconciliationError, match="twice"):
        transform_records(table, accounts(DID, DID), settings())


KEYS = ["$type", "createdAt", "text", "langs", "tags", "labels", "embed", "facets", "reply", "subject", "via"]
INNER = [
    "$type",
    "uri",
    "cid",
    "record",
    "media",
    "images",
    "items",
    "video",
    "external",
    "image",
    "ref",
    "alt",
]
INNER += ["mimeType", "parent", "root", "values", "val", "features", "did", "tag", "$link", "$bytes"]
KINDS = [
    "app.bsky.embed.images",
    "app.bsky.embed.record",
    "app.bsky.embed.recordWithMedia",
    "app.bsky.embed.video",
]
KINDS += ["app.bsky.embed.external", "app.bsky.embed.gallery", "app.bsky.richtext.facet#link"]
KINDS += ["app.bsky.richtext.facet#mention", "app.bsky.richtext.facet#tag"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([URI, CID, DID, CREATED, *KINDS, *COLLECTIONS])
    | st.just(cbrrr.CID.decode(CID))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)
records = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), values, max_size=6).map(cbor)
# Half of them sound but for one byte.
mangled = st.tuples(records, st.integers(0, 255), st.integers(0, 2**16)).map(
    lambda made: made[0][: made[2] % len(made[0])] + bytes([made[1]]) + made[0][made[2] % len(made[0]) + 1 :]
)
rows = st.builds(
    block_row,
    records | mangled | st.binary(max_size=20),
    st.sampled_from([*COLLECTIONS, OTHER, "not an nsid"]),
    st.sampled_from([TID, "self", "a b"]),
    st.sampled_from([DID, OTHER_DID]),
)


@examples(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=12), st.sampled_from(["drop", "normalize"]), st.booleans())
def test_no_record_raises_and_every_record_is_counted(
    made: list[dict[str, Any]], outside: Any, keep_record_json: bool
) -> None:
    wanted = settings(
        record_types=COLLECTIONS[:-1], start=FETCHED_AT, outside=outside, keep_record_json=keep_record_json
    )
    result = transform(made, wanted)

    for did in (DID, OTHER_DID):
        came = sum(record["did"] == did for record in made)
        assert result.counts.filter(did=did)["records"].sum() == came
    sums = dict(result.counts.group_by("fate").agg(pl.col("records").sum()).iter_rows())
    assert sums.get(Fate.KEPT, 0) == sum(frame.height for frame in result.tables.values())
    assert sums.get(Fate.REJECTED, 0) == result.rejects.height
    for name, frame in result.tables.items():
        assert frame.schema == TABLE_BY_NAME[name].schema
        assert frame["issues"].null_count() == 0
    assert set(result.rejects["reason"]) <= set(RejectReason)
