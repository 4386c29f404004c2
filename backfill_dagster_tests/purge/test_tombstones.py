from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.purge.tombstones import TOMBSTONES_KEY, Tombstones, bury, settle
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.purge.stored_bytes import files_with

PLC = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
WEB = "did:web:ann.example.co"
OTHER = "did:plc:z72i7hdynmk6r22z27h6tvur"
RECORD = (OTHER, "app.bsky.feed.post", "3l5uvwqz2fk2k")
URI = f"at://{OTHER}/app.bsky.feed.post/3l5uvwqz2fk2k"
NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path)


def test_a_study_that_never_purged_has_none(storage: StudyStorage) -> None:
    tombstones = Tombstones.load(storage)
    assert not tombstones
    assert not tombstones.holds_did(PLC)
    assert not tombstones.holds_uri(URI)
    settle(storage, NOW)
    assert not bury(storage, [], [], NOW)
    assert not storage.exists(TOMBSTONES_KEY)


def test_accounts_and_records_are_known_again_and_named_nowhere(storage: StudyStorage) -> None:
    tombstones = bury(storage, [PLC, WEB], [RECORD], NOW)
    assert [
        tombstones.holds_did(did) for did in (PLC, WEB, WEB.upper().replace("DID:WEB", "did:web"), OTHER)
    ] == [
        True,
        True,
        True,
        False,
    ]
    assert tombstones.holds_uri(URI)
    assert not tombstones.holds_uri(URI + "x")
    assert tombstones.holds_records_of(OTHER)
    assert not tombstones.holds_records_of(PLC)
    assert tombstones.record_named_in(f'{{"uris": ["{URI}"]}}')
    for text in (PLC, WEB, OTHER, "3l5uvwqz2fk2k"):
        assert files_with(storage.folder, text) == []


def test_who_is_purged_is_told_of_any_number_of_accounts_and_few_are_remembered(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill_dagster.purge.tombstones._MOST_KNOWN", 3)
    tombstones = bury(storage, [PLC, WEB], [], NOW)
    asked = [f"did:web:n{number}.test" for number in range(9)]
    assert sorted(tombstones.held_among(pl.Series([*asked, PLC, *asked, WEB, *asked]))) == [PLC, WEB]
    assert len(tombstones._known) <= 3


def test_two_studies_have_unlike_tombstones_of_one_account(tmp_path: Path) -> None:
    first, second = StudyStorage(tmp_path / "first"), StudyStorage(tmp_path / "second")
    hashes = [bury(storage, [PLC], [], NOW).dids for storage in (first, second)]
    assert hashes[0].isdisjoint(hashes[1])


def test_tombstones_add_up_and_are_unfinished_until_settled(storage: StudyStorage) -> None:
    assert bury(storage, [PLC], [], NOW).unfinished == 1
    settle(storage, NOW)
    assert Tombstones.load(storage).unfinished == 0
    both = bury(storage, [WEB], [], NOW)
    assert both.holds_did(PLC)
    assert both.holds_did(WEB)
    assert both.unfinished == 1
    assert bury(storage, [PLC, WEB], [RECORD, RECORD], NOW).unfinished == 3
    assert storage.read(TOMBSTONES_KEY).height == 3


def test_records_are_withheld_by_key_and_by_what_their_key_names(storage: StudyStorage) -> None:
    tombstones = bury(storage, [PLC], [RECORD], NOW)
    keys = [
        (OTHER, "app.bsky.feed.post", "3l5uvwqz2fk2k"),
        (OTHER, "app.bsky.feed.like", "3l5uvwqz2fk2k"),
        (WEB, "app.bsky.feed.post", "3l5uvwqz2fk2k"),
        (WEB, "com.example.note", PLC),
        (WEB, "com.example.note", OTHER),
    ]
    dids, collections, rkeys = (list(column) for column in zip(*keys, strict=True))
    assert tombstones.withheld_rows(dids, collections, rkeys) == [0, 3]
    assert Tombstones().withheld_rows(dids, collections, rkeys) == []


def test_all_texts_of_a_frame_are_masked_and_nulls_stay(storage: StudyStorage) -> None:
    tombstones = bury(storage, [PLC], [], NOW)
    frame = pl.DataFrame({"reason": ["the document is that of " + PLC, None, "no"], "count": [1, 2, 3]})
    masked = tombstones.mask_texts(frame)
    assert masked["reason"].to_list() == ["the document is that of did:plc:" + "x" * 24, None, "no"]
    assert masked["count"].to_list() == [1, 2, 3]
    assert Tombstones().mask_texts(frame).equals(frame)


def test_what_a_source_lists_is_withheld_without_being_repeated(storage: StudyStorage) -> None:
    tombstones = bury(storage, [PLC], [], NOW)
    entries = pl.DataFrame(
        {"input": [PLC, OTHER, f"at://{PLC}", PLC], "reason": [None, None, "not_a_did", "duplicate"]}
    )
    assert tombstones.withhold(entries).to_dict(as_series=False) == {
        "input": [None, OTHER, "at://did:plc:" + "x" * 24, None],
        "reason": ["purged", None, "not_a_did", "purged"],
    }
