"""Stage 2: the directory of a study, one row per DID, looked up at a bounded pace and kept for a while.

What is known of accounts, and what of it is due, is told of any set of them: so it can be of one range of DIDs after
the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.directory.resolver import DirectoryRow
from backfill_dagster.errors import DirectoryUnreachableError
from backfill_dagster.ticking import ticking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import datetime, timedelta

    from backfill_dagster.directory.resolver import Resolver

logger = logging.getLogger(__name__)

# Every column of the directory, with its type and its meaning.
DIRECTORY_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "The account's DID: the key of this table.", required=True),
    Column("handle", pl.String(), "Handle that the DID document names; not checked against DNS."),
    Column("pds", pl.String(), "Origin of the account's PDS, `scheme://host[:port]`; null unless resolved."),
    Column(
        "pds_host",
        pl.String(),
        "Host of the PDS, `host[:port]`, the key of its partition; null unless resolved.",
    ),
    Column("key_type", pl.String(), "Type of the signing key's verification method, such as Multikey."),
    Column("key_multibase", pl.String(), "The signing key's text in multibase, as the document has it."),
    Column("state", pl.String(), "What the lookup came to.", required=True, words=(DirectoryState,)),
    Column("reason", pl.String(), "What was wrong, in words; null if nothing was."),
    Column(
        "resolved_at",
        pl.Datetime("us", "UTC"),
        "When the answer, or the failure to get one, came; of an export, the time that it is good for.",
        required=True,
    ),
    Column(
        "resolved_by",
        pl.String(),
        "How: by a `lookup` of this account, or from the PLC directory's export, `plc_export`.",
    ),
)
DIRECTORY_SCHEMA = schema_of(DIRECTORY_COLUMNS)

CONCURRENCY = 32
# Lookups that must all fail to connect, before any other, for the directory to count as unreachable.
UNREACHABLE_AFTER = 8
# Failures without a success between them after which the rest is not asked for any more in this run.
LOST_AFTER = 64
CHECKPOINT_ROWS = 1024

_SETTLED = [state.value for state in DirectoryState if state.settled]
_NO_CONNECTION = frozenset({DirectoryState.UNREACHABLE, DirectoryState.REFUSED_ADDRESS})


@dataclass(slots=True)
class DirectoryProgress:
    """How far a study's directory is; `done` counts also what was known before, `states` what was looked up."""

    total: int
    done: int = 0
    states: Counter[str] = field(default_factory=Counter)


async def _nobody(dids: pl.Series) -> AsyncIterator[pl.DataFrame]:  # noqa: ARG001  they are all looked up
    return
    yield


def as_directory(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows of a directory, perhaps of an older version, in today's columns; those they lack are null."""
    present = [name for name in DIRECTORY_SCHEMA.names() if name in rows.columns]
    return pl.concat([DIRECTORY_SCHEMA.to_frame(), rows.select(present)], how="diagonal")


def latest_known(directory: pl.DataFrame | None, unfinished: pl.DataFrame) -> pl.DataFrame:
    """Return the latest row known of each DID (DIRECTORY_SCHEMA): of a directory, and of one left unfinished.

    Of the latter only what the directory answered: a failure must not take the place of an answer.
    """
    known = DIRECTORY_SCHEMA.to_frame() if directory is None else as_directory(directory)
    if unfinished.is_empty():
        return known
    rows = pl.concat([known, unfinished.filter(pl.col("state").is_in(_SETTLED))])
    return rows.sort("resolved_at", maintain_order=True).unique("did", keep="last", maintain_order=True)


def due_lookups(dids: pl.Series, known: pl.DataFrame, *, max_age: timedelta, now: datetime) -> pl.Series:
    """Return those of these DIDs, in their order, that are to be looked up.

    Not those of which there is a row among `known`, the latest of each DID, that is younger than `max_age` and settled,
    which a failure never is.
    """
    fresh = known.filter(pl.col("state").is_in(_SETTLED) & (pl.col("resolved_at") > now - max_age))
    return dids.to_frame("did").join(fresh, on="did", how="anti", maintain_order="left")["did"]


def brought_up_to_date(known: pl.DataFrame, looked_up: pl.DataFrame) -> pl.DataFrame:
    """Return what is known (DIRECTORY_SCHEMA, each DID once) with what was looked up since, sorted by DID.

    A DID whose lookup failed keeps the row with which it was resolved before, with its time, so that it is looked up
    again next time: an outage says nothing about an account, and no good row gives way to one. What the directory does
    answer, be it a tombstone or a document gone bad, replaces what was known.
    """
    others = known.join(looked_up, on="did", how="anti")
    return pl.concat([others, _without_regress(looked_up, known)]).sort("did")


async def look_up(
    dids: pl.Series,
    *,
    resolver: Resolver,
    checkpoint: Callable[[pl.DataFrame], None],
    progress: DirectoryProgress,
    on_progress: Callable[[DirectoryProgress], None] = lambda _: None,
    in_bulk: Callable[[pl.Series], AsyncIterator[pl.DataFrame]] = _nobody,
    concurrency: int = CONCURRENCY,
) -> None:
    """Look up DIDs, each of them once, and hand their rows (DIRECTORY_SCHEMA) on as they come.

    `checkpoint` gets a row of each DID, in parts of at most CHECKPOINT_ROWS. No more than these are held: there may be
    far more accounts than fit into memory with all that is said of them.

    `in_bulk` is given the DIDs, and yields settled rows of as many of them as it knows; the others are looked up one by
    one.

    `on_progress` is called after each lookup, and several times a second while none ends; it must be quick.

    What the run has no time to ask for, by the resolver's `run_time`, gets the state `not_asked`.

    Raises DirectoryUnreachableError if the PLC directory cannot be reached from the beginning. If it fails
    later, the DIDs that remain get that failure as their state, unasked.
    """
    async with ticking(lambda: on_progress(progress)):
        async for rows in in_bulk(dids):
            for part in rows.iter_slices(CHECKPOINT_ROWS):
                checkpoint(part)
                progress.done += part.height
                progress.states.update(part["state"])
                # Of a large part this takes seconds, in which requests of others go on.
                await asyncio.sleep(0)
            dids = dids.filter(~dids.is_in(rows["did"].implode()))
    await _Lookups(resolver, progress, on_progress, checkpoint).run(dids, concurrency)


def _without_regress(looked_up: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Put the rows that resolved a DID before in the place of failures to look it up again."""
    failed = looked_up.filter(~pl.col("state").is_in(_SETTLED)).select(
        "did", failure=pl.format("looked up again in vain: {}: {}", "state", pl.col("reason").fill_null(""))
    )
    kept = (
        known.filter(pl.col("state") == DirectoryState.RESOLVED.value)
        .join(failed, on="did")
        .with_columns(reason="failure")
        .select(DIRECTORY_SCHEMA.names())
    )
    return pl.concat([looked_up.join(kept, on="did", how="anti"), kept])


class _Lookups:
    """One run's lookups: the rows that are yet to be handed on, and how the PLC directory is doing."""

    def __init__(
        self,
        resolver: Resolver,
        progress: DirectoryProgress,
        on_progress: Callable[[DirectoryProgress], None],
        checkpoint: Callable[[pl.DataFrame], None],
    ) -> None:
        self._resolver = resolver
        self._progress = progress
        self._on_progress = on_progress
        self._checkpoint = checkpoint
        self._rows: list[DirectoryRow] = []
        self._plc_answered = False
        self._plc_failures_in_a_row = 0
        self._plc_lookups = 0
        self._lost: DirectoryRow | None = None

    async def run(self, dids: pl.Series, concurrency: int) -> None:
        """Look all of them up, `concurrency` at once; hosts of did:web, which may be slow, delay no others."""
        at_plc = dids.str.starts_with("did:plc:")
        plc, web = dids.filter(at_plc), dids.filter(~at_plc)
        self._plc_lookups = len(plc)
        # Tasks as many as work at once, not as many as there are DIDs.
        workers = [
            asyncio.create_task(work(source))
            for work, group in ((self._ask_plc, plc), (self._ask_web, web))
            for source in [iter(group)]
            for _ in range(min(concurrency, len(group)))
        ]
        try:
            async with ticking(lambda: self._on_progress(self._progress)):
                await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        self._seal()

    async def _ask_web(self, dids: Iterator[str]) -> None:
        for did in dids:
            self._add(await self._resolver.resolve(did))

    async def _ask_plc(self, dids: Iterator[str]) -> None:
        for did in dids:
            if self._lost is not None:
                self._add(_unasked(did, self._lost))
                continue
            row = await self._resolver.resolve(did)
            self._add(row)
            self._judge_plc(row)

    def _judge_plc(self, row: DirectoryRow) -> None:
        if row.state is DirectoryState.NOT_ASKED:
            return
        self._plc_answered |= row.state not in _NO_CONNECTION
        if row.state.settled:
            self._plc_failures_in_a_row = 0
            return
        self._plc_failures_in_a_row += 1
        if not self._plc_answered and self._plc_failures_in_a_row >= min(
            UNREACHABLE_AFTER, self._plc_lookups
        ):
            raise DirectoryUnreachableError(_unreachable(self._resolver.plc_url, row))
        if self._plc_failures_in_a_row == LOST_AFTER:
            logger.error("the PLC directory fails; what remains is not asked for: %s", row.reason)
            self._lost = row

    def _add(self, row: DirectoryRow) -> None:
        self._rows.append(row)
        self._progress.done += 1
        self._progress.states[row.state.value] += 1
        self._on_progress(self._progress)
        if len(self._rows) >= CHECKPOINT_ROWS:
            self._seal()

    def _seal(self) -> None:
        if not self._rows:
            return
        part = pl.DataFrame([astuple(row) for row in self._rows], schema=DIRECTORY_SCHEMA, orient="row")
        self._rows.clear()
        self._checkpoint(part)


def _unasked(did: str, lost: DirectoryRow) -> DirectoryRow:
    reason = f"not asked, after {LOST_AFTER} failures in a row: {lost.reason}"
    return DirectoryRow(did, None, None, None, None, None, lost.state, reason, lost.resolved_at)


def _unreachable(plc_url: str, row: DirectoryRow) -> str:
    advice = "check the network connection and backfill.network.plc_url"
    if row.state is DirectoryState.REFUSED_ADDRESS:
        advice = "if it is to be a private one, set backfill.network.allow_private_addresses: true"
    return f"the PLC directory at {plc_url} cannot be reached ({row.reason}); {advice}"
