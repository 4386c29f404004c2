"""A tree of the previous system goes in, and comes out equal; what has no place is listed, and nothing is dropped."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backfill_dagster.errors import SourceError
from backfill_dagster.legacy import tree
from backfill_dagster.legacy.tables import LEGACY_TABLES, legacy_columns, legacy_schema
from backfill_dagster.legacy.tree import REPORT_KEY, ImportReport, import_tree, purge_legacy
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.records.settings import StudyPeriod
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.legacy.trees import ALICE, BLOB, BOB, CAROL, CID, imported, row, write
from backfill_dagster_tests.purge.stored_bytes import files_with

NOON = datetime(2024, 10, 10, 12, tzinfo=UTC)
PERIOD = StudyPeriod(datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 12, 2, tzinfo=UTC))
POST_URI = f"at://{BOB}/app.bsky.feed.post/3l66666666666"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "old"


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path / "data" / "study")


def take_over(root: Path, storage: StudyStorage) -> ImportReport:
    return import_tree(root, storage, PERIOD)


def test_every_type_comes_out_equal(root: Path, storage: StudyStorage) -> None:
    reference = {"cid": CID, "uri": POST_URI}
    image = {"$type": "blob", "ref": {"$link": BLOB}, "mimeType": "image/png", "size": 5}
    embed = {"$type": "app.bsky.embed.images", "images": [{"alt": "a cat", "image": image}]}
    facet = {
        "index": {"byteStart": 0, "byteEnd": 4},
        "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "cats"}],
    }
    labels = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "nudity"}]}
    post = row(
        "post",
        "p1",
        text="#cats “x”\u0000",
        embed=json.dumps(embed),
        facets=json.dumps([facet]),
        labels=json.dumps(labels),
        langs="en,pt-BR",
        tags='["one", "two"]',
    )
    reply = row("reply", "r1", text="so it is", reply=repr({"parent": reference, "root": reference}))
    write(root, "post", [post])
    write(root, "reply", [reply])
    for kind in ("like", "repost"):
        write(root, kind, [row(kind, "l1", subject=json.dumps(reference))])
    for kind in ("follow", "block"):
        write(root, kind, [row(kind, "f1", subject=BOB)])

    report = take_over(root, storage)
    assert report.rows_by_table == dict.fromkeys(LEGACY_TABLES, 1)
    assert report.rows_read == 6
    assert report.issues == report.rejected == report.unknown_columns == {}
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert stored == {
        **dict.fromkeys(legacy_schema("posts")),
        "did": ALICE,
        "collection": "app.bsky.feed.post",
        "rkey": "p1",
        "uri": f"at://{ALICE}/app.bsky.feed.post/p1",
        "cid": CID,
        "obtained": "legacy",
        "record_type": "post",
        "created_at_raw": "2024-10-10T12:00:00.000Z",
        "created_at": NOON,
        "sync_timestamp": NOON,
        "in_range": True,
        "date_quality": "no_rkey_time",
        "issues": [],
        "text": "#cats “x”\u0000",
        "langs": ["en", "pt-BR"],
        "tags": ["one", "two"],
        "labels": ["nudity"],
        "embed_type": "app.bsky.embed.images",
        "embed": json.dumps(embed, separators=(",", ":")),
        "media_types": ["image/png"],
        "alt_texts": ["a cat"],
        "blob_cids": [BLOB],
        "facets": json.dumps([facet], separators=(",", ":")),
        "facet_links": [],
        "facet_mentions": [],
        "facet_tags": ["cats"],
        "proven": False,
        "legacy_file": "raw_sync/create/post/active/partition_date=2024-10-10/0.parquet",
        "legacy_layer": "active",
        "legacy_synctimestamp": "2024-10-10-12:00:00",
    }
    [stored] = imported(storage.folder, "replies").to_dicts()
    assert (stored["text"], stored["reply_parent_uri"], stored["reply_root_did"]) == (
        "so it is",
        POST_URI,
        BOB,
    )
    for table in ("likes", "reposts"):
        [stored] = imported(storage.folder, table).to_dicts()
        assert (stored["subject_uri"], stored["subject_cid"], stored["subject_did"]) == (POST_URI, CID, BOB)
    for table in ("follows", "blocks"):
        assert imported(storage.folder, table)["subject_did"].to_list() == [BOB]


def test_what_an_sdk_writes_is_read_in_lexicons_terms(root: Path, storage: StudyStorage) -> None:
    image = {"py_type": "blob", "ref": {"link": BLOB}, "mime_type": "image/png", "size": 5}
    embed = {
        "py_type": "app.bsky.embed.images",
        "images": [
            {"py_type": "app.bsky.embed.images#image", "alt": "a cat", "image": image, "aspect_ratio": None}
        ],
    }
    facet = {
        "py_type": "app.bsky.richtext.facet",
        "index": {"byte_start": 0, "byte_end": 4, "py_type": "app.bsky.richtext.facet#byteSlice"},
        "features": [{"did": BOB, "py_type": "app.bsky.richtext.facet#mention"}],
    }
    subject = {"cid": CID, "uri": POST_URI, "py_type": "com.atproto.repo.strongRef"}
    write(root, "post", [row("post", "p1", embed=repr(embed), facets=repr([facet]), text="@bob")])
    write(root, "like", [row("like", "l1", subject=repr(subject))])
    assert take_over(root, storage).issues == {}
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert (stored["media_types"], stored["blob_cids"], stored["alt_texts"]) == (
        ["image/png"],
        [BLOB],
        ["a cat"],
    )
    assert stored["facet_mentions"] == [BOB]
    assert json.loads(stored["facets"])[0]["index"]["byteEnd"] == 4
    assert json.loads(stored["embed"])["images"][0]["image"]["ref"] == {"$link": BLOB}
    assert imported(storage.folder, "likes")["subject_uri"].to_list() == [POST_URI]


def test_what_cannot_be_read_is_named_and_kept_as_it_stood(root: Path, storage: StudyStorage) -> None:
    odd = row(
        "post",
        "p1",
        text="t",
        cid="no cid",
        author=BOB,
        embed="<removed>",
        facets="[{'x': __import__('os').system('true')}]",
        labels="nan",
        langs="en fr",
        tags="a,b",
        entities='[{"index": {}}]',
        synctimestamp="yesterday",
        partition_date="2024-10-11",
        record_type="reply",
    )
    write(root, "post", [{**odd, "extra": "x", "number": 5}], schema={"number": pl.Int64()})
    report = take_over(root, storage)
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert json.loads(stored["legacy_rest"]) == {
        "cid": "no cid",
        "author": BOB,
        "facets": odd["facets"],
        "labels": "nan",
        "langs": "en fr",
        "entities": '[{"index": {}}]',
        "partition_date": "2024-10-11",
        "record_type": "reply",
        "extra": "x",
        "number": "5",
    }
    assert stored["issues"] == [
        "embed:removed",
        "facets:unreadable",
        "labels:unreadable",
        "langs:unreadable",
        "tags:comma_joined",
        "cid:not_a_cid",
        "author:differs",
        "record_type:differs",
        "partition_date:differs",
        "synctimestamp:unreadable",
    ]
    assert stored["legacy_synctimestamp"] == "yesterday"
    assert stored["sync_timestamp"] is None
    assert stored["tags"] == ["a", "b"]
    assert report.unknown_columns == {"extra": 1, "number": 1}
    assert report.issues["facets:unreadable"] == 1


def test_rows_without_a_place_are_listed_whole(root: Path, storage: StudyStorage) -> None:
    bad = [
        row("post", "p1", uri=None, text="lost"),
        row("post", "p2", uri="at://alice.example.com/app.bsky.feed.post/p2"),
        row("post", "p3", uri=f"at://{ALICE}/app.bsky.feed.post/../../../etc/passwd"),
        row("post", "p4", uri=f"at://{ALICE}/app.bsky.feed.like/p4"),
        row("post", "p5", uri=f"x at://{ALICE}/app.bsky.feed.post/p5"),
    ]
    write(root, "post", [*bad, row("post", "fine", text="t")])
    report = take_over(root, storage)
    assert report.rejected == {"bad_uri": 3, "no_uri": 1, "other_collection": 1}
    assert report.rows_read == 6 == sum(report.rows_by_table.values()) + sum(report.rejected.values())
    rejects = pl.read_parquet(storage.folder / "legacy/rejects/*.parquet").sort("row")
    assert rejects["row"].to_list() == [0, 1, 2, 3, 4]
    assert json.loads(rejects["content"][0])["text"] == "lost"
    assert [json.loads(content).get("uri") for content in rejects["content"]] == [one["uri"] for one in bad]


def test_of_several_rows_of_a_uri_one_is_taken(root: Path, storage: StudyStorage) -> None:
    for layer, sync, text in (
        ("cache", "2025-01-01-00:00:00", "in the cache, latest of all"),
        ("active", "2024-10-10-12:00:00", "earlier"),
        ("active", "2024-10-12-12:00:00", "taken"),
    ):
        name = f"{sync.replace(':', '')}.parquet"
        write(root, "post", [row("post", "p1", text=text, synctimestamp=sync)], layer=layer, name=name)
    same = row("post", "p2", text="same")
    write(root, "post", [same, same], name="twice.parquet")
    write(root, "post", [same], layer="cache", day="2024-11-01", name="again.parquet")
    report = take_over(root, storage)
    assert imported(storage.folder, "posts")["text"].to_list() == ["taken", "same"]
    assert report.repeated == 2
    assert report.rejected == {"superseded": 2}
    assert report.rows_read == 6 == sum(report.rows_by_table.values()) + 2 + 2
    rejects = pl.read_parquet(storage.folder / "legacy/rejects/*.parquet")
    assert {json.loads(content)["text"] for content in rejects["content"]} == {
        "in the cache, latest of all",
        "earlier",
    }


def test_months_and_undated_rows(root: Path, storage: StudyStorage) -> None:
    dates = {
        "a": "2024-10-31T23:30:00-02:00",
        "b": "2024-10-01",
        "c": "2035-01-01T00:00:00Z",
        "d": None,
        "e": "soon",
    }
    write(root, "like", [row("like", rkey, created_at=value) for rkey, value in dates.items()])
    report = take_over(root, storage)
    assert report.undated == 3
    months = sorted(path.parent.name for path in storage.folder.glob("legacy/likes/month=*/*.parquet"))
    assert months == ["month=2024-10", "month=2024-11"]
    likes = imported(storage.folder, "likes")
    assert likes["date_quality"].to_list() == [
        "no_rkey_time",
        "no_rkey_time",
        "future",
        "missing",
        "unparseable",
    ]
    assert likes["in_range"].to_list() == [True, True, False, False, False]


def test_what_is_in_the_tree_and_is_not_read_is_listed(
    root: Path, storage: StudyStorage, tmp_path: Path
) -> None:
    path = write(root, "post", [row("post", "p1", text="t")])
    secret = tmp_path / "secret.parquet"
    path.rename(secret)
    write(root, "post", [row("post", "p2", text="t")])
    create = root / "raw_sync/create"
    (path.parent / "link.parquet").symlink_to(secret)
    (create / "like").symlink_to(create / "post")
    (path.parent / "notes.txt").write_text("x")
    (path.parent / "broken.parquet").write_bytes(b"PAR1 nothing")
    (create / "post/active/partition_date=2024-13-45").mkdir()
    (create / "post/active/_temporary").mkdir()
    (create / "post/archive").mkdir()
    (create / "profile").mkdir()
    (root / "raw_sync/delete").mkdir()
    report = take_over(root, storage)
    assert imported(storage.folder, "posts")["rkey"].to_list() == ["p2"]
    partition = "raw_sync/create/post/active/partition_date=2024-10-10"
    assert {stranger["name"]: stranger["reason"] for stranger in report.passed_over} == {
        f"{partition}/link.parquet": "symbolic_link",
        "raw_sync/create/like": "symbolic_link",
        f"{partition}/notes.txt": "no_parquet",
        f"{partition}/broken.parquet": "unreadable",
        "raw_sync/create/post/active/partition_date=2024-13-45": "no_partition",
        "raw_sync/create/post/active/_temporary": "no_partition",
        "raw_sync/create/post/archive": "unknown_layer",
        "raw_sync/create/profile": "unknown_type",
        "raw_sync/delete": "other_operation",
    }
    assert json.loads(storage.path(REPORT_KEY).read_bytes())["passed_over"] == report.passed_over


@pytest.mark.parametrize(
    ("kind", "column", "text"),
    [
        ("post", "embed", "5"),
        ("post", "facets", '{"a": 1}'),
        ("post", "labels", '{"values": [{"val": "nudity", "neg": true}]}'),
        ("post", "labels", '{"values": [{"val": "nudity"}], "more": 1}'),
        ("post", "langs", '"en"'),
        ("post", "py_type", "com.example.post"),
        ("reply", "reply", "7"),
        ("reply", "reply", '{"root": {"uri": "x", "cid": "y"}, "parent": {"uri": "x", "cid": "y"}}'),
        ("like", "subject", "[1]"),
        ("like", "subject", json.dumps({"uri": POST_URI, "cid": CID, "more": 1})),
        ("follow", "subject", "did:nobody"),
    ],
)
def test_what_has_no_place_in_a_column_stays_as_it_stood(
    root: Path, storage: StudyStorage, kind: str, column: str, text: str
) -> None:
    write(root, kind, [row(kind, "p1", **{column: text})])
    take_over(root, storage)
    table = {"post": "posts", "reply": "replies", "like": "likes", "follow": "follows"}[kind]
    [stored] = imported(storage.folder, table).to_dicts()
    assert json.loads(stored["legacy_rest"])[column] == text


def test_no_row_column_or_name_ends_the_import(root: Path, storage: StudyStorage) -> None:
    half = '{"$type": "x", "alt": "\\ud800"}'
    path = write(root, "post", [row("post", "p1", text="t", embed=half)])
    nanoseconds = pa.array([1_728_561_600_000_000_001], pa.timestamp("ns"))
    pq.write_table(pq.read_table(path, partitioning=None).append_column("at", nanoseconds), path)
    zoned = write(root, "post", [row("post", "p2", text="t")], name="zone.parquet")
    nowhere = pa.array([1], pa.timestamp("us", "Nowhere/Land"))
    pq.write_table(pq.read_table(zoned, partitioning=None).append_column("at", nowhere), zoned)
    named = write(root, "post", [row("post", "p3", text="t")], name="name.parquet")
    named.rename(os.fsdecode(os.fsencode(named.parent) + b"/\xff.parquet"))
    report = take_over(root, storage)
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert stored["rkey"] == "p1"
    assert json.loads(stored["legacy_rest"]) == {"embed": half, "at": "2024-10-10T12:00:00.000000001"}
    passed_over = {Path(one["name"]).name: one["reason"] for one in report.passed_over}
    assert passed_over == {"?.parquet": "unreadable", "zone.parquet": "unreadable"}


def test_dates_that_are_no_texts_are_those_that_they_are(root: Path, storage: StudyStorage) -> None:
    values = {"partition_date": NOON.date(), "created_at": NOON}
    types: dict[str, pl.DataType] = {"partition_date": pl.Date(), "created_at": pl.Datetime("us", "UTC")}
    write(root, "post", [{**row("post", "p1", text="t"), **values}], schema=types)
    report = take_over(root, storage)
    assert report.other_types == {"created_at": 1, "partition_date": 1}
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert (stored["created_at"], stored["issues"], stored["legacy_rest"]) == (NOON, [], None)


def test_a_synctimestamp_that_is_no_time_is_not_the_latest(root: Path, storage: StudyStorage) -> None:
    times = {"no time": "yesterday", "fine": "2024-10-10-12:00:00"}
    write(root, "post", [row("post", "p1", text=text, synctimestamp=at) for text, at in times.items()])
    write(root, "post", [row("post", "p2", text="t", synctimestamp="2024-13-45-00:00:00")], name="1.parquet")
    take_over(root, storage)
    first, second = imported(storage.folder, "posts").to_dicts()
    assert (first["text"], first["issues"]) == ("fine", [])
    assert (second["sync_timestamp"], second["issues"]) == (None, ["synctimestamp:unreadable"])


def test_columns_of_other_types_and_missing_ones(root: Path, storage: StudyStorage) -> None:
    few = {"uri": f"at://{ALICE}/app.bsky.feed.post/p1", "text": "t", "langs": ["en"], "created_at": None}
    write(root, "post", [few], schema={"langs": pl.List(pl.String())})
    report = take_over(root, storage)
    assert report.other_types == {"langs": 1}
    assert report.missing_columns["cid"] == 1
    [stored] = imported(storage.folder, "posts").to_dicts()
    assert (stored["langs"], stored["cid"], stored["date_quality"]) == (["en"], None, "missing")
    assert "$type:missing" in stored["issues"]


def test_many_rows_in_buckets_and_an_import_in_the_place_of_another(
    root: Path, storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_ROWS_OF_BUCKET", 50)
    monkeypatch.setattr(tree, "_ROWS_AT_ONCE", 16)
    rows = [row("post", f"p{number:03d}", text=f"number {number}") for number in range(300)]
    write(root, "post", rows)
    write(root, "post", rows[::2], layer="cache")
    write(root, "follow", [row("follow", "f1", subject=BOB)])
    report = take_over(root, storage)
    assert (report.rows_by_table["posts"], report.repeated) == (300, 150)
    whole = imported(storage.folder, "posts")
    assert whole["text"].to_list() == [f"number {number}" for number in range(300)]
    first = {key: storage.sha256(key) for key in storage.keys("legacy")}
    assert len(first) > 5
    take_over(root, storage)
    assert {key: storage.sha256(key) for key in storage.keys("legacy")} == first
    for path in root.rglob("post"):
        path.rename(root / "elsewhere")
        break
    take_over(root, storage)
    assert [key.split("/")[1] for key in storage.keys("legacy")] == ["follows"]


def test_a_root_without_a_tree(root: Path, storage: StudyStorage) -> None:
    with pytest.raises(SourceError, match="has no folder raw_sync/create"):
        take_over(root, storage)
    assert not storage.folder.exists()


def test_who_has_withdrawn_stays_out_and_goes(root: Path, storage: StudyStorage) -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    mention = {"index": {}, "features": [{"$type": "app.bsky.richtext.facet#mention", "did": ALICE}]}
    rows = [
        row("post", "p1", ALICE, text="mine"),
        row("post", "p2", BOB, text=f"see {ALICE}", facets=json.dumps([mention])),
        row("post", "p3", ALICE, uri="lost", text="of mine"),
        row("post", "p4", CAROL, text="hers"),
    ]
    write(root, "post", rows)
    take_over(root, storage)
    tombstones = bury(storage, [ALICE], [(CAROL, "app.bsky.feed.post", "p4")], now)
    assert purge_legacy(storage, tombstones) == (3, 1)
    assert files_with(storage.folder, "a" * 24) == []
    posts = imported(storage.folder, "posts")
    assert posts["rkey"].to_list() == ["p2"]
    assert posts["facet_mentions"].to_list() == [[f"did:plc:{'x' * 24}"]]
    purged = {key: storage.read(key).rows() for key in storage.keys("legacy")}
    report = take_over(root, storage)
    assert report.purged == 3
    assert files_with(storage.folder, "a" * 24) == []
    assert {key: storage.read(key).rows() for key in storage.keys("legacy")} == purged


def test_the_tables_have_our_columns_and_say_what_they_mean() -> None:
    for table in LEGACY_TABLES:
        columns = legacy_columns(table)
        assert [column.name for column in columns][: len(TABLE_BY_NAME[table].columns)] == [
            column.name for column in TABLE_BY_NAME[table].columns
        ]
        assert all(column.description for column in columns)
        assert {column.name for column in columns} >= {"proven", "legacy_file", "legacy_rest"}
