"""Lists as they are stored: what is taken from a source, what is not, and what a worker reads of them."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.dids.entries import as_entries
from backfill_dagster.errors import StorageError
from backfill_dagster.purge.tombstones import Tombstones, bury
from backfill_dagster.records.filter_lists import (
    StoredFilter,
    StoredList,
    list_key,
    purge_list,
    read_entries,
    read_list,
    remove_other_lists,
    store_list,
)
from backfill_dagster.records.list_entries import ListField, judge_entries
from backfill_dagster.records.tables import FOLLOW, LIKE, POST
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.records.batches import CREATED_AT, DID, OTHER_DID

URI = f"at://{DID}/{POST}/3l5uvwqz2fk2k"
KEY = list_key(POST, "uris")


def reasons(
    entries: Sequence[str | None], collection: str = POST, field: ListField = "uris"
) -> list[str | None]:
    given = as_entries(pl.Series(entries, dtype=pl.String))
    return judge_entries(given, collection, field)["reason"].to_list()


def stored(storage: StudyStorage, *entries: str, key: str = KEY, stamp: str | None = None) -> StoredList:
    judged = [judge_entries(as_entries(pl.Series(entries, dtype=pl.String)), POST, "uris")]
    return store_list(storage, key, judged, Tombstones.load(storage), stamp)


def test_only_uris_of_records_of_the_type_are_kept() -> None:
    entries = [
        URI,
        f"  {URI}\r\n",
        f"at://{DID}/{LIKE}/a",
        f"at://alice.example.com/{POST}/a",
        f"at://{DID}/{POST}",
        f"at://{DID}",
        DID,
        f"{URI}/",
        f"{URI}#fragment",
        f"at://{DID}/{POST}/..",
        f"at://{DID}/{POST}/{'k' * 513}",
        "https://bsky.app/profile/a/post/b",
        "",
        None,
    ]
    assert reasons(entries) == [
        None,
        None,
        "other_collection",
        "handle",
        "not_a_record",
        "not_a_record",
        *["not_an_at_uri"] * 8,
    ]


def test_subjects_are_uris_of_any_record_or_dids() -> None:
    entries = [
        URI,
        f"at://{DID}/app.bsky.feed.generator/a",
        DID,
        "at://alice.example.com/x.y.z/a",
        "alice.example.com",
    ]
    assert reasons(entries, LIKE, "subjects") == [None, None, None, "handle", "not_an_at_uri"]
    assert reasons(entries, FOLLOW, "subjects") == ["not_a_did", "not_a_did", None, "not_a_did", "not_a_did"]


def test_what_a_source_could_not_look_up_keeps_its_reason() -> None:
    given = pl.DataFrame(
        {"input": ["alice.example.com", DID], "entry": [None, DID], "reason": ["not_resolved", None]},
        schema_overrides={"entry": pl.String},
    )
    assert judge_entries(given, FOLLOW, "subjects")["reason"].to_list() == ["not_resolved", None]


def test_the_same_list_is_the_same_file_in_whatever_order_it_comes(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    uris = [f"at://{did}/{POST}/{rkey}" for did in (DID, OTHER_DID) for rkey in "cab"]
    first = stored(storage, *uris, "nonsense")
    content = storage.path(KEY).read_bytes()
    again = stored(storage, *reversed(uris), uris[0], "nonsense")
    assert again.digest == first.digest
    assert storage.read(KEY)["entry"].to_list() == sorted(uris)
    assert (first.given, first.kept, first.rejected) == (7, 6, {"not_an_at_uri": 1})
    assert (again.given, again.kept) == (8, 6)
    assert stored(storage, *uris, "nonsense") == first == read_list(storage, KEY)
    assert storage.path(KEY).read_bytes() == content
    assert stored(storage, *uris[1:]).digest != first.digest


def test_a_worker_reads_what_concerns_its_accounts(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    uris = [f"at://{did}/{POST}/a" for did in (DID, OTHER_DID)]
    of_uris = stored(storage, *uris)
    of_subjects = stored(storage, *uris, key=list_key(LIKE, "subjects"))
    wanted = StoredFilter(of_uris, of_subjects, ("en",), "x").load(storage, pl.Series([DID]))
    assert wanted.uris is not None
    assert wanted.subjects is not None
    assert wanted.uris.to_list() == uris[:1]
    assert sorted(wanted.subjects) == sorted(uris)
    assert (wanted.languages, wanted.text) == (("en",), "x")
    nothing = StoredFilter().load(storage, pl.Series([DID]))
    assert (nothing.uris, nothing.subjects) == (None, None)


def test_a_list_that_has_changed_meanwhile_is_not_read(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    before = stored(storage, URI)
    stored(storage, f"at://{OTHER_DID}/{POST}/a")
    for gone in (StoredFilter(uris=before), StoredFilter(subjects=before)):
        with pytest.raises(StorageError, match="has changed"):
            gone.load(storage, pl.Series([DID]))
    with pytest.raises(StorageError, match="missing"):
        StoredFilter(uris=StoredList.unread(list_key(LIKE, "uris"))).load(storage, pl.Series([DID]))


def test_an_empty_list_is_told_from_one_that_was_emptied_by_a_purge(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    assert stored(storage).is_empty
    assert stored(storage, "nonsense").is_empty
    before = stored(storage, URI, stamp="stamp")
    assert not before.is_empty
    bury(storage, [DID], [], CREATED_AT)
    assert purge_list(storage, KEY, Tombstones.load(storage)) == 1
    after = read_list(storage, KEY)
    assert after is not None
    assert (after.kept, after.rejected, after.is_empty) == (0, {"purged": 1}, False)
    # Nothing is to be converted again for it, and the source is not to be read again.
    assert (after.digest, after.stamp) == (before.digest, before.stamp)
    assert stored(storage, URI, stamp="stamp") == after
    assert purge_list(storage, KEY, Tombstones.load(storage)) == 0


def test_single_records_and_keys_that_name_the_purged_are_taken_out(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    others = [f"at://{DID}/{POST}/stays", f"at://{OTHER_DID}/{POST}/stays"]
    gone = f"at://{DID}/{POST}/gone"
    naming = f"at://{OTHER_DID}/{POST}/did:web:purged.example.com"
    stored(storage, *others, gone, naming)
    bury(storage, ["did:web:purged.example.com"], [(DID, POST, "gone")], CREATED_AT)
    assert purge_list(storage, KEY, Tombstones.load(storage)) == 2
    assert sorted(storage.read(KEY)["entry"]) == sorted(others)


def test_a_damaged_list_counts_as_none_and_goes_in_a_purge(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    stored(storage, URI)
    storage.path(KEY).write_bytes(b"PAR1" + URI.encode())
    assert read_list(storage, KEY) is None
    assert purge_list(storage, KEY, Tombstones.load(storage)) == 0
    assert not storage.exists(KEY)


def test_lists_that_no_filter_names_go(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    other = list_key(LIKE, "subjects")
    stored(storage, URI)
    stored(storage, URI, key=other)
    remove_other_lists(storage, {KEY})
    assert (storage.exists(KEY), storage.exists(other)) == (True, False)


def test_of_what_was_shared_the_cid_counts_if_it_must_be_the_same(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    given = as_entries(pl.Series([URI, URI, f"{URI}x"])).with_columns(
        cid=pl.Series(["bafyb", "bafya", None]), table=pl.lit("posts")
    )
    listed = store_list(storage, KEY, [judge_entries(given, POST, "uris")], Tombstones())
    assert (listed.given, listed.kept) == (3, 2)
    assert read_entries(storage, KEY)["cid"].to_list() == ["bafya", None]
    other = given.with_columns(cid=pl.Series(["bafyb", "bafyb", None]))
    assert store_list(
        storage, "filters/other.parquet", [judge_entries(other, POST, "uris")], Tombstones()
    ).digest != (listed.digest)
    dids = pl.Series([DID])
    assert StoredFilter(uris=listed).load(storage, dids).cids is None
    strict = StoredFilter(uris=listed, same_version=True).load(storage, dids)
    assert strict.uris is not None
    assert strict.cids is not None
    assert list(zip(strict.uris, strict.cids, strict=True)) == [(URI, "bafya"), (f"{URI}x", None)]
