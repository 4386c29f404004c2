"""Packs written by hand, compared: over several packs and files, without what is not known, and sums that hold."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from backfill_dagster.repos import packs
from backfill_dagster.repos.blocks_file import Records
from backfill_dagster.repos.cid import dag_cbor_cid
from backfill_dagster.repos.outcomes import LeftOut, Obtained, Outcome
from backfill_dagster.repos.packs import Attempt, PackWriter, read_ledger
from backfill_dagster.repos.spans import NotTaken
from backfill_dagster.storage import StudyStorage
from backfill_dagster.survivorship.chains import snapshot_chains
from backfill_dagster.survivorship.comparison import (
    UNACCOUNTED,
    Comparison,
    compare,
    comparisons,
    is_compared,
)
from backfill_dagster.survivorship.inventory import has_inventory, inventory_key, take_inventory
from backfill_dagster.survivorship.record_changes import misfits, read_events, record_changes, repeated
from backfill_dagster.survivorship.stored import told_of

NOON = datetime(2024, 10, 1, 12, tzinfo=UTC)
HOST = "one.test"
POST = "app.bsky.feed.post"
# A repository as its records' contents by key.
Repo = Mapping[str, str]


def attempt(did: str, hour: int, repo: Repo, **columns: object) -> Attempt:
    made = Attempt(did, f"https://{HOST}", Outcome.COMPLETE, NOON + timedelta(hours=hour), records=len(repo))
    return replace(made, repo_rev=f"{hour:05d}", **columns)  # type: ignore[arg-type]


def write(
    storage: StudyStorage, repos: Mapping[str, Repo], hour: int, host: str = HOST, **columns: object
) -> str:
    """Write a pack of accounts, and return its name."""
    with storage.scratch() as scratch:
        writer = PackWriter(storage, host, scratch)
        for did, repo in repos.items():
            writer.add_attempt(attempt(did, hour, repo, **columns))
            keys = sorted(repo)
            cids = [np.frombuffer(dag_cbor_cid(repo[key].encode()), np.uint8) for key in keys]
            if keys:
                writer.add_records(
                    Records(
                        did,
                        pa.array([POST] * len(keys), pa.large_string()),
                        pa.array(keys, pa.large_string()),
                        np.stack(cids),
                        [repo[key].encode() for key in keys],
                    )
                )
        pack = writer.commit()
    assert pack is not None
    return pack


def compared(storage: StudyStorage) -> tuple[list[tuple[str, str, bool, bool]], int]:
    """Return all events (account, key, whether it ended, whether the key has another), and how many sums fail."""
    wanted = comparisons(snapshot_chains(read_ledger(storage)))
    events, wrong = [], 0
    for each in wanted:
        assert not is_compared(storage, each)
        compare(storage.folder, each)
        assert is_compared(storage, each)
        events += storage.read(each.key).select("did", "rkey", "stood_before", "changed").rows()
        wrong += int(told_of(storage, each.key)[UNACCOUNTED])
    return sorted(events), wrong


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path)


def test_accounts_are_compared_with_the_packs_that_they_stood_in(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each repository several files.
    monkeypatch.setattr(packs, "BLOCKS_FILE_ROWS", 2)
    write(storage, {"a": {"1": "x", "2": "x", "3": "x"}, "b": {"1": "x"}}, 0)
    write(storage, {"c": {"1": "x", "2": "y"}, "d": {}}, 0)
    write(storage, {"a": {"2": "x", "3": "z", "4": "x"}, "c": {"1": "x", "2": "y"}, "d": {"1": "x"}}, 1)
    assert len(storage.keys("repos", "*.blocks-*.parquet")) > 4
    assert compared(storage) == (
        [
            ("a", "1", True, False),
            ("a", "3", False, True),
            ("a", "3", True, True),
            ("a", "4", False, False),
            ("d", "1", False, False),
        ],
        0,
    )


def test_the_same_content_elsewhere_is_another_record(storage: StudyStorage) -> None:
    write(storage, {"a": {"1": "x"}, "b": {"2": "x"}}, 0)
    write(storage, {"a": {"2": "x"}, "b": {"1": "x"}}, 1)
    events, wrong = compared(storage)
    assert len(events) == 4
    assert wrong == 0


def test_what_was_listed_and_could_not_be_taken_says_nothing(storage: StudyStorage) -> None:
    listed = {"obtained": Obtained.LIST_RECORDS, "asked": "d"}
    write(storage, {"a": {"1": "x", "2": "x", "3": "x"}}, 0, **listed)
    left = tuple(
        NotTaken(POST, key, None, reason)
        for key, reason in (("1", LeftOut.CID_MISMATCH), ("2", LeftOut.NOT_FOUND), (None, LeftOut.MALFORMED))
    )
    # Of the three, two count among the records: something is there, and not known.
    write(storage, {"a": {"3": "x"}}, 1, not_taken=left, records=3, **listed)
    assert compared(storage) == ([("a", "2", True, False)], 0)


def test_purged_records_are_on_neither_side(storage: StudyStorage) -> None:
    write(storage, {"a": {"1": "x", "2": "x"}}, 0, records=4, purged=2)
    write(storage, {"a": {"1": "x"}}, 1, records=3, purged=2)
    assert compared(storage) == ([("a", "2", True, False)], 0)


@pytest.mark.parametrize(("before", "now"), [(3, 1), (2, 2)])
def test_sums_that_do_not_hold_are_found(storage: StudyStorage, before: int, now: int) -> None:
    """What is stored of a snapshot is not as much as was counted in its tree."""
    write(storage, {"a": {"1": "x", "2": "x"}, "b": {"1": "x"}}, 0, records=before)
    write(storage, {"a": {"1": "x"}}, 1, records=now)
    assert compared(storage)[1] == 1


def test_a_comparison_is_another_when_the_pack_before_is_another(storage: StudyStorage) -> None:
    write(storage, {"a": {"1": "x"}}, 0)
    write(storage, {"a": {}}, 1)
    compared(storage)
    [wanted] = comparisons(snapshot_chains(read_ledger(storage)))
    [(host, pack, dids)] = wanted.before
    assert not is_compared(storage, replace(wanted, before=((host, f"other{pack}", dids),)))
    storage.path(wanted.key).write_bytes(b"no parquet")
    assert not is_compared(storage, wanted)


def test_versions_that_come_and_go_over_many_snapshots_have_a_row_for_each_time(
    storage: StudyStorage,
) -> None:
    lives = ["x", "", "x", "y", "x", "x"]
    for hour, content in enumerate(lives):
        write(storage, {"a": {"1": content, "2": "other"} if content else {"2": "other"}}, hour)
    chains = snapshot_chains(read_ledger(storage))
    wanted = comparisons(chains)
    for each in wanted:
        compare(storage.folder, each)
    rows = record_changes(pl.concat(read_events(storage, [chains.drop_nulls("before_pack")])))
    hours = [
        None if value is None else round((value - NOON).total_seconds() / 3600)
        for row in rows.sort("first_seen").iter_rows(named=True)
        for value in (
            row["not_seen_at"],
            row["first_seen"],
            row["last_seen"],
            *((row["gone_between"] or {"from": None, "to": None}).values()),
        )
    ]
    assert [tuple(hours[n : n + 5]) for n in range(0, len(hours), 5)] == [
        (None, 0, 0, 0, 1),
        (1, 2, 2, 2, 3),
        (2, 3, 3, 3, 4),
        (3, 4, 5, None, None),
    ]
    assert rows.sort("first_seen")["ended"].to_list() == ["deleted", "changed", "changed", "stands"]
    assert misfits(rows) == repeated(rows) == 0
    swapped = rows.with_columns(first_seen="last_seen", last_seen="first_seen")
    assert misfits(swapped) == 1
    assert misfits(rows.with_columns(ended=pl.lit("stands"))) == 3
    assert repeated(pl.concat([rows, rows.head(1)])) == 1


def test_an_inventory_counts_by_account_collection_and_age(storage: StudyStorage) -> None:
    # The time in this key is 2024-09-24, a week before.
    pack = write(storage, {"a": {"3l4udwe7c2k22": "x", "self": "x"}, "b": {"self": "x"}, "c": {}}, 0)
    assert not has_inventory(storage, HOST, pack)
    take_inventory(storage.folder, HOST, pack)
    assert has_inventory(storage, HOST, pack)
    rows = storage.read(inventory_key(HOST, pack))
    assert rows.select("did", "collection", "records").rows() == [
        ("a", POST, 1),
        ("a", POST, 1),
        ("b", POST, 1),
    ]
    assert rows["age"].null_count() == 2


def test_where_a_comparison_is_stored_says_whose_it_is() -> None:
    assert Comparison("h:1", "p", ()).key == "survivorship/comparisons/pds=h%3A1/p.parquet"
