"""Brings a copy of the PLC directory's export up to date: page by page from where it ends, and from mirrors if need be.

Pages are asked for by time, which means the same to the directory and to its mirrors; sequence numbers do not. Times
are exclusive and several operations can have the same, so that each page begins with the last instant of the one
before, and what is known of it is passed over.
Source: did:plc specification 0.1, "Bulk Export".
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.directory.export_copy import (
    FILE_ROWS,
    OPERATIONS_SCHEMA,
    ExportCopy,
    Reached,
    operation_rows,
)
from backfill_dagster.directory.plc_operations import read_operations
from backfill_dagster.errors import DirectoryUnreachableError
from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.network.asking import NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.connections import Connections
    from backfill_dagster.directory.plc_operations import Operation
    from backfill_dagster.network.asking import PoliteHost

logger = logging.getLogger(__name__)

# The most operations that a page may have.
PAGE = 1000
# An operation has at most 7,500 bytes.
_MAX_PAGE_BYTES = 16 * 2**20
# The directory dates operations before it lists them: one of the last minute may still come before another.
SETTLED_AFTER = timedelta(seconds=60)
# However young an export is to be, it is no younger than this.
_LEAST_AGE = timedelta(minutes=5)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_LOG_SECONDS = 15.0


def young_enough(max_age_hours: float) -> datetime:
    """Return until when an export must reach at least, to be no older than so many hours."""
    return datetime.now(UTC) - max(timedelta(hours=max_age_hours), _LEAST_AGE)


class ExportReader:
    """Reads the export of a study's directory into the copy that its storage has."""

    def __init__(self, connections: Connections, *, settled_after: timedelta = SETTLED_AFTER) -> None:
        self.copy = ExportCopy(connections.shared_folder, connections.network)
        self._connections = connections
        self._settled_after = settled_after

    async def bring_up_to(self, needed: datetime, *, stop: bool = False) -> Reached:
        """Have all operations until `needed` in the copy, if they can be had; returns how far it reaches.

        If it does not reach so far already it is brought up to date, or only as far as that, to `stop` there. What a
        mirror lacks is lacking in the end, too. What was read before anything goes wrong stays.

        Raises DirectoryUnreachableError if neither the directory nor a mirror of it answers, RunOverError, and
        StorageError.
        """
        reached = self.copy.reached()
        if reached is not None and reached.until >= needed:
            return reached
        async with self.copy.writer(self._connections.run_time):
            # Another run may have done so while this one waited.
            reached = self.copy.reached()
            if reached is not None and reached.until >= needed:
                return reached
            return await self._read_on(needed if stop else None)

    async def _read_on(self, stop_at: datetime | None) -> Reached:
        network = self._connections.network
        reasons: list[str] = []
        for origin in (network.plc_url, *network.plc_export.mirrors):
            host = self._connections.directory_host(origin)
            reading = _Reading(self.copy, host, origin, self._settled_after)
            try:
                return await reading.run(stop_at, is_mirror=bool(reasons))
            except NoAnswerError as error:
                logger.warning("the PLC directory's export cannot be read on: %s", error)
                reasons.append(str(error))
        raise DirectoryUnreachableError(
            f"the PLC directory's export cannot be read: {'; '.join(reasons)}. What was read is stored; run the same "
            "again, or name a mirror in backfill.network.plc_export.mirrors"
        )


class _Reading:
    """What one server gives, from where the copy ends."""

    def __init__(self, copy: ExportCopy, host: PoliteHost, origin: str, settled_after: timedelta) -> None:
        self._copy = copy
        self._host = host
        self._origin = origin
        self._settled_after = settled_after
        self._reached = copy.reached()
        self._number, self._rows = copy.last_file()
        self._new: list[Operation] = []
        self._total = 0
        self._logged_at = time.monotonic()

    async def run(self, stop_at: datetime | None, *, is_mirror: bool) -> Reached:
        """Read to the export's end, or beyond `stop_at`; raises NoAnswerError, RunOverError and StorageError."""
        try:
            until = await self._read(stop_at, is_mirror=is_mirror)
        except BaseException:
            # Whatever came before is as good as it was: the next one goes on after it.
            self._store()
            raise
        if self._reached is None:
            raise NoAnswerError(f"{self._host.gate.host}: its export is empty")
        self._reached = Reached(self._reached.at, self._reached.cids, max(until, self._reached.until))
        self._store(always=True)
        logger.info("the PLC directory's export: %s more operations, all until %s", f"{self._total:,}", until)
        return self._reached

    async def _read(self, stop_at: datetime | None, *, is_mirror: bool) -> datetime:
        """Read pages; returns until when there is nothing else."""
        while True:
            asked_at = datetime.now(UTC)
            operations = await self._page()
            new = self._unknown(operations)
            if not new and len(operations) >= PAGE:
                raise NoAnswerError(
                    f"{self._host.gate.host}: more operations have the time {self._time()} than fit on a page"
                )
            settled = [one for one in new if one.created_at <= asked_at - self._settled_after]
            self._add(settled)
            if len(settled) == len(new) > 0:
                if stop_at is not None and self._time() > stop_at:
                    return stop_at
                continue
            if is_mirror and self._reached is not None:
                # What it does not have may have come to it late.
                return self._reached.at
            return asked_at - self._settled_after

    async def _page(self) -> list[Operation]:
        params = {"count": str(PAGE)}
        after: datetime | None = None
        if self._reached is not None:
            # Times are given in milliseconds, and a server may keep finer ones.
            after = self._reached.at.replace(microsecond=self._reached.at.microsecond // 1000 * 1000)
            after -= _MILLISECOND
            params["after"] = after.isoformat(timespec="milliseconds").replace("+00:00", "Z")

        def read(body: bytes) -> list[Operation]:
            operations = read_operations(body)
            times = [operation.created_at for operation in operations]
            if times != sorted(times):
                raise BadAnswerError("the operations of the export are not in the order of time")
            if after is not None and not times:
                raise BadAnswerError("the export lacks the operation that the copy ends with")
            if after is not None and times[0] < after:
                raise BadAnswerError(f"the export does not begin after {after}, as it was asked to")
            return operations

        return await self._host.ask(f"{self._origin}/export", params, max_bytes=_MAX_PAGE_BYTES, read=read)

    def _unknown(self, operations: Sequence[Operation]) -> list[Operation]:
        """Leave out what the copy has; `at` is the latest instant of which it has anything."""
        known = self._reached
        if known is None:
            return list(operations)
        return [
            one
            for one in operations
            if one.created_at > known.at or (one.created_at == known.at and one.cid not in known.cids)
        ]

    def _add(self, operations: Sequence[Operation]) -> None:
        if not operations:
            return
        at = operations[-1].created_at
        cids = {one.cid for one in operations if one.created_at == at}
        if self._reached is not None and self._reached.at == at:
            cids |= self._reached.cids
        # Of the last instant there may be more on the next page.
        until = at - _MICROSECOND
        if self._reached is not None:
            until = max(until, self._reached.until)
        self._reached = Reached(at, frozenset(cids), until)
        self._new += operations
        self._total += len(operations)
        if self._rows.height + len(self._new) >= FILE_ROWS:
            self._store()
        if time.monotonic() - self._logged_at > _LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.info("the PLC directory's export: %s operations read, until %s", f"{self._total:,}", at)

    def _store(self, *, always: bool = False) -> None:
        if self._reached is None or not (self._new or always):
            return
        # What was nullified never counted, and what follows on it stands in its place.
        new = operation_rows(one for one in self._new if not one.nullified)
        self._rows = pl.concat([self._rows.select(new.columns), new])
        self._new.clear()
        self._copy.write(self._number, self._rows, self._reached)
        if self._rows.height >= FILE_ROWS:
            self._number, self._rows = self._number + 1, OPERATIONS_SCHEMA.to_frame()

    def _time(self) -> datetime:
        return datetime.min.replace(tzinfo=UTC) if self._reached is None else self._reached.at
