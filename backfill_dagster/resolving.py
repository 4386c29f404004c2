"""Stage 2: the directory of a study's accounts, brought up to date.

What is looked up is stored in parts as it comes. At the end they are put together with what was known, one range of
DIDs after the other. So there is never more in memory than the DIDs that are to be looked up and the rows of a range,
however many accounts there are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import schema_of
from backfill_dagster.connections import Connections, with_connections
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.directory.evidence import EvidenceLog, put_together
from backfill_dagster.directory.export_rows import rows_from_export
from backfill_dagster.directory.history import (
    ANSWERS_SCHEMA,
    STATE_SINCE,
    with_new_answers,
    with_state_since,
)
from backfill_dagster.directory.resolve import (
    DIRECTORY_COLUMNS,
    DIRECTORY_SCHEMA,
    DirectoryProgress,
    brought_up_to_date,
    due_lookups,
    latest_known,
    look_up,
)
from backfill_dagster.monitoring.study_metrics import unmeasured
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    DIRECTORY_HISTORY_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    UNFINISHED_DIRECTORY_FOLDER,
    rows_in,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from backfill_dagster.config.network import Network
    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.network.limits import HostGates

_STORED_SCHEMA = schema_of((*DIRECTORY_COLUMNS, STATE_SINCE))
# Parts of an unfinished directory, or of what is looked up, that are dealt out at once.
_PARTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DirectorySummary:
    """What a directory came to: its accounts by state, and those that are resolved by PDS host.

    `version` is another whenever an account, its PDS or its state is.
    """

    states: Mapping[str, int]
    hosts: Mapping[str, int]
    version: str

    @property
    def accounts(self) -> int:
        """How many accounts it has."""
        return sum(self.states.values())


@dataclass(frozen=True, slots=True)
class _Known:
    """What is stored, by ranges, before anything of this run is: `unfinished` gives what interrupted runs left."""

    storage: StudyStorage
    unfinished: Callable[[DidRange], pl.DataFrame]

    def directory(self, dids: DidRange) -> pl.DataFrame | None:
        return self._stored(DIRECTORY_KEY, dids)

    def answers(self, dids: DidRange) -> pl.DataFrame | None:
        return self._stored(DIRECTORY_HISTORY_KEY, dids)

    def latest(self, dids: DidRange) -> pl.DataFrame:
        return latest_known(self.directory(dids), self.unfinished(dids))

    def _stored(self, key: str, dids: DidRange) -> pl.DataFrame | None:
        return rows_in(self.storage, key, dids) if self.storage.exists(key) else None


def resolve_accounts(
    study: Study,
    gates: HostGates | None = None,
    *,
    network: Network | None = None,
    on_progress: Callable[[DirectoryProgress], None] = lambda _: None,
    metrics: StudyMetrics | None = None,
) -> DirectorySummary:
    """Stage 2: resolve every DID of the source to its handle, PDS and key; stores the directory, sorted by DID.

    Rows of accounts that left the source are kept, so that their stored data can still be accounted for. Raises
    DirectoryUnreachableError if the PLC directory cannot be reached from the beginning.
    """
    network, metrics = network or study.network, metrics or unmeasured()
    storage, tombstones = StudyStorage(study.location), Tombstones.load(StudyStorage(study.location))
    # In order, so that each part of what is looked up is of few ranges.
    dids = storage.read(SOURCE_KEY)["did"].sort()
    stored = storage.rows(DIRECTORY_KEY) if storage.exists(DIRECTORY_KEY) else 0
    ranges = account_ranges(max(dids.len(), stored))
    parts = storage.keys(UNFINISHED_DIRECTORY_FOLDER)
    put_together(storage)
    with _by_range(storage, _unfinished(storage, parts), ranges) as unfinished:
        known = _Known(storage, unfinished)
        due = _due(dids, known, ranges, timedelta(hours=network.directory_max_age_hours))
        progress = DirectoryProgress(dids.len(), done=dids.len() - due.len())
        # Lookups can take hours.
        del dids
        # Of its own: another run of this stage can overwrite or remove parts that are stored.
        with storage.scratch() as scratch, DealtRows(scratch / "new.arrow", DIRECTORY_SCHEMA) as new:
            _look_up(
                study.model_copy(update={"network": network}),
                gates,
                due,
                tombstones=tombstones,
                first_part=len(parts),
                keep=partial(new.add, None),
                progress=progress,
                on_progress=metrics.following("directory", on_progress),
                metrics=metrics,
            )
            del due
            with _by_range(storage, new.parts_of(None), ranges) as looked_up:
                summary = _store(known, looked_up, ranges, tombstones)
    # The last one first, so that those that are left have the first numbers.
    for key in reversed(storage.keys(UNFINISHED_DIRECTORY_FOLDER)):
        storage.remove(key)
    return summary


def _due(dids: pl.Series, known: _Known, ranges: Sequence[DidRange], max_age: timedelta) -> pl.Series:
    now = datetime.now(UTC)
    due = [
        due_lookups(some["did"], known.latest(its_range), max_age=max_age, now=now)
        for its_range, some in dealt_by_range(dids.to_frame("did"), ranges)
    ]
    return pl.concat([dids.clear(), *due])


def _look_up(
    study: Study,
    gates: HostGates | None,
    dids: pl.Series,
    *,
    tombstones: Tombstones,
    first_part: int,
    keep: Callable[[pl.DataFrame], None],
    progress: DirectoryProgress,
    on_progress: Callable[[DirectoryProgress], None],
    metrics: StudyMetrics,
) -> None:
    """Look DIDs up, hand their rows on to `keep`, and store them in parts from this number on.

    What an interrupted run has looked up stays looked up, also if this one is interrupted in its turn.
    """
    storage = StudyStorage(study.location)
    evidence = EvidenceLog(storage)
    numbers = itertools.count(first_part)

    def checkpoint(part: pl.DataFrame) -> None:
        evidence.flush()
        # A document can name somebody else.
        masked = tombstones.mask_texts(part)
        storage.write(f"{UNFINISHED_DIRECTORY_FOLDER}/part-{next(numbers):05d}.parquet", masked)
        keep(masked)

    async def ask(connections: Connections) -> None:
        async def in_bulk(missing: pl.Series) -> AsyncIterator[pl.DataFrame]:
            async for rows in rows_from_export(missing, connections):
                evidence.add_exported(rows)
                yield rows

        connections.resolver.on_evidence = evidence.add
        await look_up(
            dids,
            resolver=connections.resolver,
            checkpoint=checkpoint,
            progress=progress,
            on_progress=on_progress,
            in_bulk=in_bulk,
        )

    with_connections(study, gates, ask, metrics=metrics)
    evidence.flush()


def _unfinished(storage: StudyStorage, keys: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows (DIRECTORY_SCHEMA) of each part of an unfinished directory."""
    for key in keys:
        yield from storage.collect([storage.scan([key], DIRECTORY_SCHEMA)], [key])


@contextmanager
def _by_range(
    storage: StudyStorage, parts: Iterator[pl.DataFrame], ranges: Sequence[DidRange]
) -> Iterator[Callable[[DidRange], pl.DataFrame]]:
    """Lend the rows (DIRECTORY_SCHEMA) of parts by ranges; some parts are dealt out at once, since each is small."""
    with storage.scratch() as scratch, DealtRows(scratch / "parts.arrow", DIRECTORY_SCHEMA) as dealt:
        while some := list(itertools.islice(parts, _PARTS_AT_ONCE)):
            for dids, its_rows in dealt_by_range(pl.concat(some), ranges):
                dealt.add(dids, its_rows)
        yield dealt.of


def _store(
    known: _Known,
    looked_up: Callable[[DidRange], pl.DataFrame],
    ranges: Sequence[DidRange],
    tombstones: Tombstones,
) -> DirectorySummary:
    """Store the directory as it is now, and what it says now beside what it said before, if that is anything else."""
    storage = known.storage
    states, hosts, hashes = Counter[str](), Counter[str](), []
    says_anything_new = False
    with storage.scratch() as scratch, DealtRows(scratch / "directory.arrow", _STORED_SCHEMA) as made:
        for dids in ranges:
            earlier, answers = known.directory(dids), known.answers(dids)
            rows = brought_up_to_date(latest_known(earlier, known.unfinished(dids)), looked_up(dids))
            rows = with_state_since(tombstones.mask_texts(rows), earlier)
            made.add(dids, rows)
            states.update(_counted(rows["state"]))
            hosts.update(_counted(rows["pds_host"].drop_nulls()))
            hashes.append(rows.select(pl.struct("did", "pds", "state").hash(seed=0)).to_series())
            says_anything_new = (
                says_anything_new
                or answers is None
                or not with_new_answers(answers, earlier, rows).equals(answers)
            )
        if says_anything_new:
            # First: it would take what is new for what was known.
            told = (
                with_new_answers(known.answers(dids), known.directory(dids), made.of(dids)) for dids in ranges
            )
            storage.write_parts(DIRECTORY_HISTORY_KEY, told, ANSWERS_SCHEMA)
        storage.write_parts(DIRECTORY_KEY, map(made.of, ranges), _STORED_SCHEMA)
    return DirectorySummary(states, hosts, _digest(pl.concat(hashes)))


def _counted(values: pl.Series) -> dict[str, int]:
    return dict(values.value_counts().iter_rows())


def _digest(hashes: pl.Series) -> str:
    """Return a digest of rows by the hash of each, whatever their order."""
    digest = hashlib.sha256()
    for value in hashes.sort():
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()
