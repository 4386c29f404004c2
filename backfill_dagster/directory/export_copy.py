"""The copy of the PLC directory's export that the studies of one storage share: every operation, in Parquet.

It is public data about everyone in the directory, and says nothing of whom a study has chosen. Operations stand in
the order in which they were accepted, in files of about so many each; the last one says in its metadata how far the
copy reaches, so that whatever happens to a writer, the two agree.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.network.addresses import host_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.run_lock import run_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from backfill_dagster.config.network import Network
    from backfill_dagster.directory.plc_operations import Operation
    from backfill_dagster.network.patience import RunTime
    from backfill_dagster.stores.location import Location

logger = logging.getLogger(__name__)

OPERATIONS_SCHEMA = pl.Schema(
    {
        "did": pl.String(),
        "created_at": pl.Datetime("us", "UTC"),
        "is_genesis": pl.Boolean(),
        "effect": pl.String(),
        "handle": pl.String(),
        "pds": pl.String(),
        "key_multibase": pl.String(),
    }
)
FILE_ROWS = 100_000
# Files that are looked through at once.
_FILES_AT_ONCE = 4
# Below the storage's path, beside the studies that share it; no study has a name like this.
_FOLDER = ".plc_export"
_FILES = "operations"
_REACHED = "reached"
_HOLDER = "who reads the export"
# Seconds between two looks at whether another writer has done.
_POLL = 0.5


def operation_rows(operations: Iterable[Operation]) -> pl.DataFrame:
    """Write operations as rows (OPERATIONS_SCHEMA); all keys are of type Multikey."""
    rows = [
        (
            one.did,
            one.created_at,
            one.is_genesis,
            one.effect.value,
            one.claims.handle,
            one.claims.pds,
            one.claims.key_multibase,
        )
        for one in operations
    ]
    return pl.DataFrame(rows, schema=OPERATIONS_SCHEMA, orient="row")


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a copy reaches: to the operation accepted at `at`, of which instant it has those with these CIDs.

    Whatever was accepted until `until` is in the copy.
    """

    at: datetime
    cids: frozenset[str]
    until: datetime

    def to_json(self) -> str:
        """Write it as text."""
        return json.dumps(
            {"at": self.at.isoformat(), "cids": sorted(self.cids), "until": self.until.isoformat()}
        )

    @classmethod
    def from_json(cls, text: str) -> Reached:
        """Read what `to_json` wrote; raises ValueError, KeyError or TypeError."""
        told = json.loads(text)
        at, until = (datetime.fromisoformat(told[name]) for name in ("at", "until"))
        return cls(at, frozenset(told["cids"]), until)


class ExportCopy:
    """The copy of one directory's export below a storage's path; nothing is there before it is first written."""

    def __init__(self, shared_folder: Location, network: Network) -> None:
        name = quote(host_of(network.plc_url), safe="")
        if network.sandbox is not None:
            # Sandboxes of other settings are other networks, though their hosts have the same names.
            digest = hashlib.sha256(network.sandbox.model_dump_json().encode())
            name += f"-{digest.hexdigest()[:12]}"
        self.storage = StudyStorage(shared_folder / _FOLDER / name)

    def reached(self) -> Reached | None:
        """Return how far it reaches; None if there is no copy. Raises StorageError for a damaged one."""
        keys = self._keys()
        if not keys:
            return None
        try:
            return Reached.from_json(self.storage.metadata(keys[-1])[_REACHED])
        except (StorageError, ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{self.storage.where(keys[-1])} cannot be read: {error}; remove it, and the copy goes on after "
                "the file before"
            ) from error

    def latest(self, dids: pl.Series) -> Iterator[pl.DataFrame]:
        """Yield the latest operation (OPERATIONS_SCHEMA) of each of these DIDs that has any, in parts and no order."""
        missing = dids.unique().to_frame("did")
        keys = self._keys()
        # The newest first: of a DID that was found, what is older is of no interest.
        while keys and not missing.is_empty():
            keys, some = keys[:-_FILES_AT_ONCE], keys[-_FILES_AT_ONCE:]
            rows = self.storage.scan(some, OPERATIONS_SCHEMA).with_row_index("position")
            theirs = rows.join(missing.lazy(), on="did", how="semi")
            [part] = self.storage.collect([theirs], some)
            part = part.sort("position").unique("did", keep="last").drop("position")
            missing = missing.join(part, on="did", how="anti")
            yield part

    def created(self, since: datetime | None, to: datetime | None) -> Iterator[pl.Series]:
        """Yield the DIDs that were created in a period, both ends inside, in the order of their creation."""
        wanted = pl.col("is_genesis")
        if since is not None:
            wanted &= pl.col("created_at") >= since
        if to is not None:
            wanted &= pl.col("created_at") <= to
        for key in self._keys():
            rows = self.storage.scan([key], OPERATIONS_SCHEMA).filter(wanted).select("did")
            [part] = self.storage.collect([rows], [key])
            yield part["did"]

    def last_file(self) -> tuple[int, pl.DataFrame]:
        """Return the number and the rows of the file that is still to be added to; of a new one, if it is full."""
        keys = self._keys()
        if not keys:
            return 1, OPERATIONS_SCHEMA.to_frame()
        number = int(keys[-1].rpartition("/")[2].partition(".")[0])
        rows = self.storage.read(keys[-1])
        return (number, rows) if rows.height < FILE_ROWS else (number + 1, OPERATIONS_SCHEMA.to_frame())

    def write(self, number: int, rows: pl.DataFrame, reached: Reached) -> None:
        """Write a file, with which the copy reaches so far; in the place of what it had under that number."""
        self.storage.write(f"{_FILES}/{number:06}.parquet", rows, metadata={_REACHED: reached.to_json()})

    @asynccontextmanager
    async def writer(self, run_time: RunTime) -> AsyncIterator[None]:
        """Be the only one who writes; raises RunOverError if another one writes until the run ends."""
        lock = run_lock(self.storage.root)
        waiting = False
        while (held := await asyncio.to_thread(lock.take, _HOLDER, alone=True)) is None:
            if not waiting:
                logger.info("waiting until another run has read the PLC directory's export")
                waiting = True
            run_time.check()
            await asyncio.sleep(_POLL)
        try:
            self.storage.sweep_scratch()
            yield
        finally:
            held.release()

    def _keys(self) -> list[str]:
        return self.storage.keys(_FILES)
