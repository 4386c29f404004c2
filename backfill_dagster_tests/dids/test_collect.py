import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.config.sources import (
    CsvSource,
    ExceptSource,
    InlineSource,
    ParquetSource,
    Source,
    TextSource,
    UnionSource,
)
from backfill_dagster.dids.collect import (
    DIDS_SCHEMA,
    EXCLUDE_FIELD,
    REJECTS_SCHEMA,
    SOURCE_FIELD,
    CollectedDids,
    collect_dids,
)
from backfill_dagster.dids.entries import BATCH_ROWS, ENTRIES_SCHEMA, EntrySource, SourceAccess
from backfill_dagster.dids.handle_syntax import HandleRejection
from backfill_dagster.dids.sources.by_type import entry_source
from backfill_dagster.dids.sources.difference import ExceptEntries
from backfill_dagster.dids.syntax import DidRejection, check_did
from backfill_dagster.errors import SourceError
from backfill_dagster.purge.tombstones import Tombstones, bury
from backfill_dagster.storage import StudyStorage

ALICE = "did:plc:" + "a" * 24
BOB = "did:plc:" + "b" * 24
CAROL = "did:web:carol.example"


def inline(*entries: str) -> InlineSource:
    return InlineSource(type="inline", dids=entries)


def collect_from(
    source: Source | EntrySource,
    exclude: Source | EntrySource | None = None,
    tombstones: Tombstones | None = None,
) -> CollectedDids:
    """Collect from sources of the YAML, none of which downloads anything, or from such as tests make."""
    nowhere = Path("nowhere")

    def opened(listed: Source | EntrySource, field: str) -> EntrySource:
        return listed if isinstance(listed, Listed) else entry_source(listed, field, storage=nowhere)  # type: ignore[arg-type]

    return asyncio.run(
        collect_dids(
            opened(source, SOURCE_FIELD),
            SourceAccess(nowhere),
            exclude=None if exclude is None else opened(exclude, EXCLUDE_FIELD),
            tombstones=tombstones or Tombstones(),
        )
    )


def collect(*entries: str) -> CollectedDids:
    return collect_from(inline(*entries))


def rejects_of(collected: CollectedDids) -> list[tuple[int, str | None, str]]:
    """Return the rejects without what they stand for."""
    return collected.rejects.select("position", "input", "reason").rows()


class Listed:
    """A source that looks its entries up, as handles are: (input, entry, reason) each."""

    needs_network = False

    def __init__(self, *rows: tuple[str, str | None, str | None]) -> None:
        self._rows = rows

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        yield pl.DataFrame(self._rows, schema=ENTRIES_SCHEMA, orient="row")

    def describe(self) -> str:
        return "backfill.listed"

    def stamp(self) -> None:
        return None


def test_dids_come_once_in_the_order_of_their_first_mention() -> None:
    collected = collect(BOB, f" {ALICE} ", "x", CAROL, ALICE, BOB, "", "did:plc:short")

    assert collected.dids.schema == DIDS_SCHEMA
    assert collected.dids["did"].to_list() == [BOB, ALICE, CAROL]
    assert collected.rejects.schema == REJECTS_SCHEMA
    assert rejects_of(collected) == [
        (2, "x", "not_a_did"),
        (4, ALICE, "duplicate"),
        (5, BOB, "duplicate"),
        (6, "", "empty"),
        (7, "did:plc:short", "bad_plc"),
    ]
    assert collected.given == 8


def test_a_long_reject_is_shown_in_part() -> None:
    collected = collect(ALICE, "é" * 5000)

    assert rejects_of(collected) == [(1, "é" * 200, "too_long")]


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
    assert rejects_of(collected) == rejects
    assert collected.given == len(entries) == collected.dids.height + collected.rejects.height


def test_duplicates_are_found_across_batches(tmp_path: Path) -> None:
    letters = random.Random(1)
    dids = ["did:plc:" + "".join(letters.choices("abcdefgh234567", k=24)) for _ in range(BATCH_ROWS)]
    path = tmp_path / "dids.txt"
    path.write_text("\n".join([*dids, "x", *dids[:10]]))

    collected = collect_from(TextSource(type="text", path=path))

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
    assert "The first is a handle, which `type: handles` looks up" in message
    # An error is an event too, and events name nobody.
    assert "alice" not in message


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("user_id", "The first is 'user_id'; a DID looks like did:plc:"),
        (f"https://bsky.app/profile/{ALICE}", "The first has somebody's name in it; a DID looks like"),
    ],
)
def test_what_stands_there_instead_of_dids_is_shown_unless_it_names_somebody(first: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        collect(first, "x")
    assert said in str(caught.value)
    assert ALICE not in str(caught.value)


def test_an_empty_source_says_so(tmp_path: Path) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("# nobody yet\n\n")
    table = tmp_path / "empty.parquet"
    DIDS_SCHEMA.to_frame().write_parquet(table)

    for source in (TextSource(type="text", path=text), ParquetSource(type="parquet", path=table)):
        with pytest.raises(SourceError, match="it is empty") as caught:
            collect_from(source)
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
        collected = collect_from(ParquetSource(type="parquet", path=path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert collected.given == 500_000
    assert peak < 5_000_000


# --- what is excluded ---


def test_what_is_excluded_is_left_out_with_its_own_reason() -> None:
    collected = collect_from(
        inline(ALICE, BOB, f" {BOB} ", CAROL, "x", ALICE), exclude=inline(f"{BOB}\t", "did:web:Carol.EXAMPLE")
    )

    assert collected.dids["did"].to_list() == [ALICE]
    assert rejects_of(collected) == [
        (1, BOB, "excluded"),
        (2, BOB, "excluded"),
        (3, CAROL, "excluded"),
        (4, "x", "not_a_did"),
        (5, ALICE, "duplicate"),
    ]
    assert collected.given == 6
    assert collected.given_by_source == {"backfill.source": 6, "backfill.exclude": 2}


def test_an_exclusion_may_be_empty_and_name_people_who_are_not_there(tmp_path: Path) -> None:
    nobody = tmp_path / "withdrawn.txt"
    nobody.write_text("# nobody yet\n")

    assert collect_from(inline(ALICE), TextSource(type="text", path=nobody)).rejects.is_empty()
    assert collect_from(inline(ALICE), inline(BOB)).dids["did"].to_list() == [ALICE]


def test_an_exclusion_without_any_did_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"backfill\.exclude\.dids: leaves out nobody: none of its 2"
    ) as caught:
        collect_from(inline(ALICE), inline("alice.bsky.social", "@bob"))
    # An error is an event too, and events name nobody.
    assert "alice" not in str(caught.value)


def test_entries_of_an_exclusion_that_name_nobody_are_counted() -> None:
    collected = collect_from(
        inline(ALICE),
        Listed((BOB, BOB, None), ("x", "x", None), ("gone.example", None, HandleRejection.NOT_FOUND.value)),
    )

    assert collected.useless_exclusions == {"handle_not_found": 1, "not_a_did": 1}


def test_nothing_is_collected_while_it_is_not_known_whom_to_leave_out() -> None:
    unsure = Listed((BOB, BOB, None), ("alice.example", None, HandleRejection.UNREACHABLE.value))

    with pytest.raises(
        SourceError, match=r"backfill\.listed: 1 of its 2 entries could not be looked up"
    ) as caught:
        collect_from(inline(ALICE), unsure)
    assert "alice" not in str(caught.value)


def test_all_of_a_source_can_be_excluded_but_then_it_holds_nobody() -> None:
    with pytest.raises(SourceError, match=r"no DIDs to collect among its 1 entries \(1 excluded\)"):
        collect_from(inline(ALICE), inline(ALICE))


# --- sources of sources, and those that look things up ---


def test_members_of_a_union_are_counted_by_their_fields(tmp_path: Path) -> None:
    table = tmp_path / "dids.csv"
    table.write_text(f"did\n{BOB}\n{CAROL}\n")
    inner = UnionSource(type="union", sources=(inline(ALICE, "x"), CsvSource(type="csv", path=table)))
    collected = collect_from(
        UnionSource(
            type="union",
            sources=(inline(ALICE), ExceptSource(type="except", source=inner, without=inline(BOB))),
        )
    )

    assert collected.dids["did"].to_list() == [ALICE, CAROL]
    assert rejects_of(collected) == [
        (1, ALICE, "duplicate"),
        (2, "x", "not_a_did"),
        (3, BOB, "excluded"),
    ]
    assert collected.given_by_source == {
        "backfill.source": 5,
        "backfill.source.sources.0": 1,
        "backfill.source.sources.1": 4,
        "backfill.source.sources.1.without": 1,
        "backfill.source.sources.1.source": 4,
        "backfill.source.sources.1.source.sources.0": 2,
        "backfill.source.sources.1.source.sources.1": 2,
    }


def test_reasons_and_inputs_of_a_source_that_looks_things_up_are_kept() -> None:
    collected = collect_from(
        Listed(
            ("alice.example", ALICE, None),
            ("@alice.example", ALICE, None),
            ("bob.example", BOB, HandleRejection.MISMATCH.value),
            ("carol", None, HandleRejection.BAD_HANDLE.value),
            ("dan.example", "did:key:z1", None),
        )
    )

    assert collected.dids["did"].to_list() == [ALICE]
    assert rejects_of(collected) == [
        (1, "@alice.example", "duplicate"),
        (2, "bob.example", "handle_mismatch"),
        (3, "carol", "bad_handle"),
        (4, "dan.example", "unsupported_method"),
    ]
    assert collected.rejects["entry"].to_list() == [ALICE, BOB, None, "did:key:z1"]


def test_what_stands_for_a_purged_account_is_not_stored(tmp_path: Path) -> None:
    tombstones = bury(StudyStorage(tmp_path), [BOB], [], datetime.now(UTC))
    rows = (
        ("alice.example", ALICE, None),
        ("bob.example", BOB, None),
        ("bobs-other.example", BOB, HandleRejection.MISMATCH.value),
        (f"see {BOB}", None, HandleRejection.BAD_HANDLE.value),
    )
    expected = [
        (1, None, "purged"),
        (2, None, "purged"),
        (3, "see did:plc:" + "x" * 24, "bad_handle"),
    ]

    collected = collect_from(Listed(*rows), tombstones=tombstones)
    assert rejects_of(collected) == expected
    assert collected.rejects["entry"].null_count() == 3
    # Neither if it is excluded as well, at the top or within.
    excluded = collect_from(Listed(*rows), exclude=inline(BOB), tombstones=tombstones)
    assert excluded.rejects["input"].to_list() == [None, None, expected[2][1]]
    within = ExceptEntries(Listed(*rows), entry_source(inline(BOB), "x", storage=tmp_path), "x")
    collected = asyncio.run(collect_dids(within, SourceAccess(tmp_path), tombstones=tombstones))
    assert collected.rejects["input"].to_list() == [None, None, expected[2][1]]


def test_collecting_can_be_interrupted_although_reading_never_waits() -> None:
    read = 0

    class Endless(Listed):
        async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
            nonlocal read
            for read in range(100):
                if read == 3:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                yield pl.DataFrame([(ALICE, ALICE, None)], schema=ENTRIES_SCHEMA, orient="row")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(collect_dids(Endless(), SourceAccess(Path("nowhere"))))
    assert read == 3


def test_what_is_rejected_already_keeps_its_reason_if_it_is_excluded_too() -> None:
    listed = Listed(("bob.example", BOB, HandleRejection.MISMATCH.value), ("alice.example", ALICE, None))

    assert rejects_of(collect_from(listed, exclude=inline(BOB))) == [(0, "bob.example", "handle_mismatch")]
