import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.config import InlineSource, ParquetSource, TextSource
from backfill_dagster.dids.collect import DIDS_SCHEMA, REJECTS_SCHEMA, CollectedDids, collect_dids
from backfill_dagster.dids.sources import BATCH_ROWS
from backfill_dagster.dids.syntax import DidRejection, check_did
from backfill_dagster.errors import SourceError

ALICE = "did:plc:" + "a" * 24
BOB = "did:plc:" + "b" * 24
CAROL = "did:web:carol.example"


def collect(*entries: str) -> CollectedDids:
    return collect_dids(InlineSource(type="inline", dids=entries))


def test_dids_come_once_in_the_order_of_their_first_mention() -> None:
    collected = collect(BOB, f" {ALICE} ", "x", CAROL, ALICE, BOB, "", "did:plc:short")

    assert collected.dids.schema == DIDS_SCHEMA
    assert collected.dids["did"].to_list() == [BOB, ALICE, CAROL]
    assert collected.rejects.schema == REJECTS_SCHEMA
    assert collected.rejects.rows() == [
        (2, "x", "not_a_did"),
        (4, ALICE, "duplicate"),
        (5, BOB, "duplicate"),
        (6, "", "empty"),
        (7, "did:plc:short", "bad_plc"),
    ]
    assert collected.given == 8


def test_a_long_reject_is_shown_in_part() -> None:
    collected = collect(ALICE, "é" * 5000)

    assert collected.rejects.rows() == [(1, "é" * 200, "too_long")]


def reference(entries: Iterable[str]) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Do the same one by one."""
    seen: list[str] = []
    rejects: list[tuple[int, str, str]] = []
    for position, entry in enumerate(entries):
        did = entry.strip()
        reason = check_did(did) or (DidRejection.DUPLICATE if did in seen else None)
        if reason is None:
            seen.append(did)
        else:
            rejects.append((position, did, reason.value))
    return seen, rejects


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([ALICE, BOB, CAROL, f"\t{ALICE}", "", "x", "did:key:z1", "did:web:a"]), min_size=1
    )
)
def test_each_entry_is_kept_or_rejected(entries: list[str]) -> None:
    dids, rejects = reference(entries)
    if not dids:
        with pytest.raises(SourceError):
            collect(*entries)
        return
    collected = collect(*entries)

    assert collected.dids["did"].to_list() == dids
    assert collected.rejects.rows() == rejects
    assert collected.given == len(entries) == collected.dids.height + collected.rejects.height


def test_duplicates_are_found_across_batches(tmp_path: Path) -> None:
    letters = random.Random(1)
    dids = ["did:plc:" + "".join(letters.choices("abcdefgh234567", k=24)) for _ in range(BATCH_ROWS)]
    path = tmp_path / "dids.txt"
    path.write_text("\n".join([*dids, "x", *dids[:10]]))

    collected = collect_dids(TextSource(type="text", path=path))

    assert collected.dids["did"].to_list() == dids
    assert collected.rejects["position"].to_list() == list(range(BATCH_ROWS, BATCH_ROWS + 11))
    assert collected.given == BATCH_ROWS + 11


def test_a_source_of_rejects_alone_says_so() -> None:
    with pytest.raises(SourceError) as caught:
        collect("alice.bsky.social", "bob.bsky.social", "did:plc:short", "")
    message = str(caught.value)
    assert message.startswith("backfill.source.dids: ")
    assert "none of its 4 entries" in message
    assert "2 not_a_did, 1 bad_plc, 1 empty" in message
    assert "'alice.bsky.social'" in message


def test_an_empty_source_says_so(tmp_path: Path) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("# nobody yet\n\n")
    table = tmp_path / "empty.parquet"
    DIDS_SCHEMA.to_frame().write_parquet(table)

    for source in (TextSource(type="text", path=text), ParquetSource(type="parquet", path=table)):
        with pytest.raises(SourceError, match="it is empty") as caught:
            collect_dids(source)
        assert str(source.path) in str(caught.value)


def test_many_dids_never_become_python_objects(tmp_path: Path) -> None:
    numbers = (
        pl.int_range(500_000, eager=True)
        .cast(pl.String)
        .str.replace_all("[0189]", "a")
        .str.pad_start(24, "b")
    )
    path = tmp_path / "dids.parquet"
    pl.DataFrame({"did": "did:plc:" + numbers}).write_parquet(path)

    tracemalloc.start()
    try:
        collected = collect_dids(ParquetSource(type="parquet", path=path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert collected.given == 500_000
    assert peak < 5_000_000
