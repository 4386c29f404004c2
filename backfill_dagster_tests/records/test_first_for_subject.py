"""The first record about each subject, against a plain loop: in one file, and in an account that fills several."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backfill_dagster.purge.mentions import mask_text
from backfill_dagster.records import first_for_subject as module
from backfill_dagster.records.conversion import PackFiles, converted_packs, records_key
from backfill_dagster.records.first_for_subject import SUBJECT_COLUMNS
from backfill_dagster.records.tables import BLOCK, FOLLOW, LIKE, REPOST
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.records.batches import (
    CID,
    DID,
    OTHER_DID,
    block_row,
    blocks,
    cbor,
    settings,
    transform,
)
from backfill_dagster_tests.records.test_conversion import HOST, PACK, convert, store

TABLE_OF = {LIKE: "likes", REPOST: "reposts", FOLLOW: "follows", BLOCK: "blocks"}
SUBJECTS = ["did:plc:" + letter * 24 for letter in "abc"]
MASKED = ["did:plc:" + "x" * 24, "did:web:xxx.xxxxxxx.xxx"]
PERIOD_START = datetime(2024, 6, 1, tzinfo=UTC)
# Later ones first in the order of their keys; of the last two nothing is believed.
DATES = [
    "2024-10-05T12:00:02.000Z",
    "2024-10-05T12:00:01.000Z",
    "2024-10-05T12:00:01.000Z",
    "2024-01-01T00:00:00.000Z",
    "1970-01-01T00:00:00.000Z",
    "2099-01-01T00:00:00.000Z",
    None,
]

drawn_records = st.lists(
    st.tuples(
        st.sampled_from([DID, OTHER_DID]),
        st.sampled_from(list(TABLE_OF)),
        st.sampled_from([f"key{number}" for number in range(30)]),
        st.sampled_from([*SUBJECTS, *MASKED, None]),
        st.sampled_from(DATES),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda drawn: drawn[:3],
)
Drawn = tuple[str, str, str, str | None, str | None]


def row_of(drawn: Drawn) -> dict[str, Any]:
    did, collection, rkey, subject, created = drawn
    whole: Any = subject
    if subject is not None and collection in (LIKE, REPOST):
        whole = {"uri": f"at://{subject}/app.bsky.feed.post/a", "cid": CID}
    return block_row(
        cbor({"$type": collection, "createdAt": created, "subject": whole}), collection, rkey, did
    )


def expected_firsts(drawn: list[Drawn], outside: str) -> dict[tuple[str, str, str], bool | None]:
    """Say of every record that is kept whether it is the first, as slowly and plainly as can be."""
    kept = [each for each in drawn if outside == "normalize" or each[4] != "2024-01-01T00:00:00.000Z"]
    firsts: dict[tuple[str, str, str], bool | None] = {}
    for did, collection, rkey, subject, created in kept:
        alike = [each for each in kept if each[:2] == (did, collection) and each[3] == subject]
        if subject is None or (subject in MASKED and len(alike) > 1):
            firsts[did, collection, rkey] = None
        else:
            firsts[did, collection, rkey] = (rank(created), rkey) == min(
                (rank(other), key) for *_, key, _, other in alike
            )
    return firsts


def rank(created: str | None) -> str:
    return created if created is not None and created.startswith("2024") else "undated"


@examples(max_examples=200, deadline=None)
@given(drawn_records, st.sampled_from(["drop", "normalize"]))
def test_in_one_file_it_is_as_the_plain_loop_says(drawn: list[Drawn], outside: Any) -> None:
    rows = sorted(map(row_of, drawn), key=lambda row: (row["collection"], row["did"], row["rkey"]))
    result = transform(rows, settings(start=PERIOD_START, outside=outside))
    found = {
        tuple(key): first
        for table in SUBJECT_COLUMNS
        for *key, first in result.tables[table]
        .select("did", "collection", "rkey", "first_for_subject")
        .iter_rows()
    }
    assert found == expected_firsts(drawn, outside)


def test_what_is_masked_in_a_purge_is_what_cannot_be_told_apart() -> None:
    for subject, masked in zip([SUBJECTS[0], "did:web:pds.example.com"], MASKED, strict=True):
        assert mask_text(subject, lambda _: True) == masked
    rows = [row_of((DID, FOLLOW, rkey, MASKED[0], DATES[0])) for rkey in ("a", "b")]
    assert transform(rows).tables["follows"]["first_for_subject"].to_list() == [None, None]
    assert transform(rows[:1]).tables["follows"]["first_for_subject"].to_list() == [True]


def large_account(number: int) -> list[Drawn]:
    """Make up records of two accounts, a third of them about a few subjects again and again."""
    rng = random.Random(12)
    start = datetime(2024, 10, 1, tzinfo=UTC)
    drawn: list[Drawn] = []
    for key in range(number):
        subject = rng.choice(
            [*SUBJECTS, *MASKED, None, *(f"did:plc:{rng.randrange(10**6):024}" for _ in range(9))]
        )
        created = (start + timedelta(seconds=rng.randrange(50))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        collection = rng.choice([LIKE, FOLLOW, FOLLOW])
        drawn.append((DID, collection, f"k{key:04}", subject, rng.choice([created, created, DATES[4]])))
    return [*drawn, *((OTHER_DID, *rest) for _, *rest in drawn[:20])]  # type: ignore[list-item]


def stored_in(root: Path, drawn: list[Drawn], files: int) -> PackFiles:
    """Store records as a pack does, one account after the other, in so many blocks files."""
    rows, storage = [row_of(each) for each in drawn], StudyStorage(root)
    size = -(-len(rows) // files)
    pack = store(root, rows)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    written = []
    for number, part in enumerate(parts):
        ordered = sorted(part, key=lambda row: (row["collection"], row["did"], row["rkey"]))
        stored = storage.write(
            f"repos/pds={HOST}/{PACK}.blocks-{number}.parquet", pl.DataFrame(blocks(ordered))
        )
        written.append((stored.key, stored.sha256))
    return PackFiles(pack.pds_host, pack.pack, pack.key, tuple(written))


@pytest.mark.parametrize("at_once", [1, 2**18])
@pytest.mark.parametrize("files", [1, 2, 5])
def test_an_account_in_several_files_is_settled_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, at_once: int
) -> None:
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", at_once)
    drawn = large_account(300)
    pack = stored_in(tmp_path, drawn, files)
    assert len(pack.blocks) == files
    convert(tmp_path, pack, settings())
    storage = StudyStorage(tmp_path)
    rows = pl.concat(
        storage.read(records_key(HOST, table, PACK, number)).select(
            "did", "collection", "rkey", "first_for_subject"
        )
        for table in ("likes", "follows")
        for number in range(files)
        if storage.exists(records_key(HOST, table, PACK, number))
    )
    found = {tuple(key): first for *key, first in rows.iter_rows()}
    assert found == expected_firsts(drawn, "normalize")
    # Also of the files that were written anew the size is the one that is told.
    assert converted_packs(storage, [(HOST, PACK)], "fingerprint")
    before = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*.parquet")}
    convert(tmp_path, pack, settings())
    assert {path: path.read_bytes() for path in before} == before
