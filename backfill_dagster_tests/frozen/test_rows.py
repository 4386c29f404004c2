"""What is purged is taken out of rows as it would be if they were made anew."""

from pathlib import Path

import polars as pl

from backfill_dagster.attrition.steps import ATTRITION_SCHEMA
from backfill_dagster.frozen.rows import (
    recounted_accounts,
    settled_firsts,
    without_lost_hosts,
    without_purged,
)
from backfill_dagster.purge.tombstones import Tombstones, bury
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.kept import KEPT_SCHEMA
from backfill_dagster_tests.frozen.builds import ALICE, BOB, CAROL, DAVE, OCTOBER, accounts, row, write_rows

POST = "app.bsky.feed.post"
MASKED = "did:plc:" + "x" * 24


def buried(folder: Path, dids: list[str], records: list[tuple[str, str, str]]) -> Tombstones:
    return bury(StudyStorage(folder), dids, records, OCTOBER)


def test_rows_go_by_account_by_record_and_by_a_key_that_names_somebody(tmp_path: Path) -> None:
    rows = [
        row("posts", ALICE, "1", text="gone"),
        row("posts", BOB, "1", text=f"@{ALICE}!", facet_mentions=[ALICE, CAROL], tags=None),
        row("posts", BOB, "2"),
        row("posts", BOB, ALICE),
        row("posts", CAROL, DAVE, facet_mentions=[]),
    ]
    frame = pl.DataFrame(rows, schema=TABLE_BY_NAME["posts"].schema)
    stays = without_purged(frame, buried(tmp_path, [ALICE], [(BOB, POST, "2"), (CAROL, POST, "1")]))
    assert stays.select("did", "rkey").rows() == [(BOB, "1"), (CAROL, DAVE)]
    assert stays["text"].to_list() == [f"@{MASKED}!", None]
    assert stays["facet_mentions"].to_list() == [[MASKED, CAROL], []]
    assert stays["tags"].to_list() == [None, None]
    assert without_purged(frame, buried(tmp_path / "other", [DAVE], []))["did"].len() == 4
    assert without_purged(frame, Tombstones(b"salt")).equals(frame)


def test_the_next_one_is_the_first_where_the_first_is_gone_and_masked_ones_cannot_be_told(
    tmp_path: Path,
) -> None:
    storage = StudyStorage(tmp_path)
    subject, masked = f"at://{DAVE}/{POST}/1", f"at://{MASKED}/{POST}/1"
    keys = [f"tables/likes/month=2024-{month}/part-00000.parquet" for month in (10, 11)]
    write_rows(
        storage,
        keys[0],
        [
            # Of Bob's the first is gone; of Carol's two they are of purged subjects now; Alice's are as they were.
            row("likes", CAROL, "1", subject_uri=masked, first_for_subject=True),
            row("likes", ALICE, "1", subject_uri=subject, first_for_subject=True),
        ],
    )
    write_rows(
        storage,
        keys[1],
        [
            row("likes", BOB, "3", subject_uri=subject, first_for_subject=False),
            row("likes", BOB, "2", subject_uri=subject, first_for_subject=False),
            row("likes", CAROL, "2", subject_uri=masked, first_for_subject=False),
            row("likes", ALICE, "2", subject_uri=subject, first_for_subject=False),
        ],
    )
    tombstones = buried(tmp_path, [], [(BOB, "app.bsky.feed.like", "1")])
    for key, rows in settled_firsts(storage, "likes", keys, tombstones):
        storage.write(key, rows)
    assert storage.read(keys[0])["first_for_subject"].to_list() == [None, True]
    assert storage.read(keys[1])["first_for_subject"].to_list() == [False, True, None, False]
    assert list(settled_firsts(storage, "likes", keys, tombstones)) == []
    assert list(settled_firsts(storage, "posts", keys, tombstones)) == []


def test_an_account_that_lost_records_is_counted_again(tmp_path: Path) -> None:
    now = {"did": [BOB, CAROL], "posts": [1, 1], "likes": [0, 1], "undated": [1, 0], "first": [None, OCTOBER]}
    kept = pl.DataFrame(now, schema_overrides=KEPT_SCHEMA).match_to_schema(
        KEPT_SCHEMA, missing_columns="insert"
    )
    counts = pl.col(*(name for name, kind in KEPT_SCHEMA.items() if kind == pl.UInt32))
    found = recounted_accounts(accounts(), kept.with_columns(counts.fill_null(0)))
    assert found.filter(pl.col("did") != BOB).equals(accounts().filter(pl.col("did") != BOB))
    bob = found.row(by_predicate=pl.col("did") == BOB, named=True)
    assert (bob["records_kept"], bob["records_filtered"], bob["records_fetched"]) == (1, 4, 5)
    assert (bob["posts"], bob["likes"], bob["undated"], bob["first_created_at"]) == (1, 0, 1, None)
    assert bob["filtered"] == [{"reason": "purged", "records": 3}, {"reason": "record_type", "records": 1}]


def test_a_host_that_nobody_is_left_on_is_no_class_any_more() -> None:
    kept = [
        ("all", "all"),
        ("host", "a.test"),
        ("host", "no host"),
        ("host", "no account"),
        ("age", "unknown"),
    ]
    rows = [(by, name) for by, name in [*kept, ("host", "bob.test")]]
    table = pl.DataFrame(rows, schema=["by", "class"], orient="row").match_to_schema(
        ATTRITION_SCHEMA, missing_columns="insert"
    )
    assert without_lost_hosts(table, ["a.test"]).select("by", "class").rows() == kept
