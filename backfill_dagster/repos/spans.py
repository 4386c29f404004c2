"""Records of one account that lie somewhere in a file, on their way into a pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from backfill_dagster.repos.blocks_file import Records
from backfill_dagster.repos.car_bytes import join_rows
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.masked import masked_among

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.repos.asked import RecordPath
    from backfill_dagster.repos.masked import Masked
    from backfill_dagster.repos.outcomes import LeftOut
    from backfill_dagster.repos.packs import PackWriter
    from backfill_dagster.repos.verify import Header

# What is handed to the pack at once, in records and in bytes.
_SLICE_RECORDS = 4096
_SLICE_BYTES = 8 * 2**20


class Span(NamedTuple):
    """A record: its path, its CID (36 bytes), and where in the file its block begins and ends."""

    path: RecordPath
    cid: bytes
    start: int
    end: int


class NotTaken(NamedTuple):
    """What was asked for or listed and is not among an account's records: what is known of it, and why."""

    collection: str
    rkey: str | None
    cid: str | None
    reason: LeftOut


class Gathered(NamedTuple):
    """What an account gave: its records in the order of their keys, in a file; what was not taken; and the commit.

    Of the commits that the records were proven by it is the oldest one; None if nothing was proven.
    """

    file: Path
    spans: list[Span]
    not_taken: list[NotTaken]
    header: Header | None = None


def add_spans(
    did: str, gathered: Gathered, writer: PackWriter, tombstones: Tombstones
) -> tuple[int, list[Masked]]:
    """Add an account's records to the pack, but for those that the study has purged.

    Returns how many these are, and in which of the others purged accounts are masked.
    """
    masked: list[Masked] = []
    paths = [span.path for span in gathered.spans]
    withheld = withheld_paths(did, paths, tombstones)
    spans = [span for number, span in enumerate(gathered.spans) if number not in withheld]
    with gathered.file.open("rb") as file:
        for some in _slices(spans):
            found = [_read(file, span) for span in some]
            blocks = tombstones.mask_blocks(found)
            collections, rkeys = [span.path.collection for span in some], [span.path.rkey for span in some]
            masked += [one for _, one in masked_among(collections, rkeys, found, blocks)]
            writer.add_records(
                Records(
                    did,
                    pa.array(collections, pa.large_string()),
                    pa.array(rkeys, pa.large_string()),
                    join_rows([span.cid for span in some], CID_BYTES),
                    blocks,
                )
            )
    return len(withheld), masked


def withheld_paths(did: str, paths: Sequence[tuple[str, str]], tombstones: Tombstones) -> set[int]:
    """Return the positions of the records of an account that the study has purged."""
    collections, rkeys = [path[0] for path in paths], [path[1] for path in paths]
    return set(tombstones.withheld_rows([did] * len(paths), collections, rkeys))


def _slices(spans: Sequence[Span]) -> Iterator[list[Span]]:
    some: list[Span] = []
    size = 0
    for span in spans:
        some.append(span)
        size += span.end - span.start
        if len(some) == _SLICE_RECORDS or size >= _SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _read(file: BinaryIO, span: Span) -> bytes:
    file.seek(span.start)
    return file.read(span.end - span.start)
