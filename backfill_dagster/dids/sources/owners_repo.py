"""One account's repository, fetched and proven now: what a source reads that somebody has published.

No message from here names the account: messages are kept for longer than accounts.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backfill_dagster.directory.documents import DirectoryState, LookupFailedError
from backfill_dagster.errors import SourceError
from backfill_dagster.network.patience import Patience, RunOverError
from backfill_dagster.records.blocks import MAX_RECORD_BYTES, decode_blocks
from backfill_dagster.repos.car_bytes import open_car
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.client import DownloadBounds, get_repo
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey, SigningKeyError
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.outcomes import FailureReason, Outcome, failure_of
from backfill_dagster.repos.verify import VerifiedRepo, verify_repo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from backfill_dagster.connections import Connections
    from backfill_dagster.directory.resolver import DirectoryRow
    from backfill_dagster.network.asking import PoliteHost
    from backfill_dagster.repos.car_bytes import CarBytes

# What another try cannot change.
_LASTING = frozenset({FailureReason.RATE_LIMITED, FailureReason.REFUSED_ADDRESS, FailureReason.TOO_LARGE})
_DAG_CBOR = 0x71


@dataclass(frozen=True, slots=True)
class OwnersRepo:
    """A proven repository, and the file that it is in."""

    content: CarBytes
    repo: VerifiedRepo

    def record(self, collection: str, rkey: str) -> dict[str, Any] | None:
        """Return one record; None if there is none that can be read."""
        rows = self._rows(collection)
        keys = self.repo.rkeys.take(pa.array(rows))
        found = rows[pc.equal(keys, rkey).to_numpy(zero_copy_only=False)]
        return self._record(int(found[0])) if len(found) else None

    def records(self, collection: str) -> Iterator[dict[str, Any]]:
        """Go through a collection's records in the order of the tree, but for those that cannot be read."""
        for row in self._rows(collection).tolist():
            record = self._record(row)
            if record is not None:
                yield record

    def _rows(self, collection: str) -> NDArray[np.int64]:
        names = self.repo.collections.dictionary.to_pylist()
        if collection not in names:
            return np.zeros(0, np.int64)
        codes = self.repo.collections.indices.to_numpy()
        return np.flatnonzero(codes == names.index(collection))

    def _record(self, row: int) -> dict[str, Any] | None:
        start, end = int(self.repo.starts[row]), int(self.repo.ends[row])
        cid = self.content[start - CID_BYTES : start]
        if cid[1] != _DAG_CBOR or end - start > MAX_RECORD_BYTES:
            return None
        records, _ = decode_blocks([self.content[start:end]], [True])
        return records[0] if records else None


@asynccontextmanager
async def owners_repo(
    connections: Connections, did: str, car: Path, described: str
) -> AsyncIterator[OwnersRepo]:
    """Look an account up, fetch its repository into the file `car` and prove it whole and authentic.

    Raises SourceError, of the source described so, if any of that fails, and StorageError.
    """
    try:
        row = await connections.resolver.resolve(did)
        if row.state is not DirectoryState.RESOLVED or row.pds is None:
            raise SourceError(f"{described}: the owner cannot be looked up: {row.state}")
        repo = await _fetch(connections, row, row.pds, car, described)
    except RunOverError as error:
        raise SourceError(f"{described}: {error}") from error
    with open_car(car) as content:
        yield OwnersRepo(content, repo)


async def _fetch(
    connections: Connections, row: DirectoryRow, origin: str, car: Path, described: str
) -> VerifiedRepo:
    """Download and prove; what may pass is tried again. Raises SourceError and RunOverError."""
    network = connections.network
    host = connections.host(origin)
    bounds = DownloadBounds(network.max_repo_megabytes * 2**20, network.repo_timeout_seconds)
    failures = 0
    while True:
        reason = await _download(connections, host, row, origin, car, bounds, described)
        if reason is None:
            try:
                return await _prove(connections, row, car, bounds)
            except RepoRejectedError as error:
                reason = failure_of(error.fault)
        failures += 1
        if reason in _LASTING or failures > connections.processing.max_retries:
            raise SourceError(
                f"{described}: the owner's repository cannot be had from {host.gate.host}: {reason}"
            )
        await host.pause(failures)


async def _download(
    connections: Connections,
    host: PoliteHost,
    row: DirectoryRow,
    origin: str,
    car: Path,
    bounds: DownloadBounds,
    described: str,
) -> FailureReason | None:
    """Return why the file could not be had, None if it could; raises SourceError for an account that has none."""
    patience = Patience(connections.network.max_park_minutes * 60, connections.run_time)
    async with host.turn():
        answer = await get_repo(connections.turns, host.gate, origin, row.did, car, bounds, patience)
    if answer.outcome is Outcome.COMPLETE:
        return None
    if answer.outcome is Outcome.FAILED:
        return answer.reason or FailureReason.UNEXPECTED_ANSWER
    raise SourceError(f"{described}: {host.gate.host} says of the owner's repository: {answer.outcome}")


async def _prove(
    connections: Connections, row: DirectoryRow, car: Path, bounds: DownloadBounds
) -> VerifiedRepo:
    """Verify in a thread, so that others are served meanwhile; with the owner's earlier keys if need be."""
    check = connections.processing.verify == "full"
    keys = _keys((row.key_type, row.key_multibase)) if check else []

    def verify(earlier: list[SigningKey]) -> VerifiedRepo:
        with open_car(car) as content:
            return verify_repo(
                content,
                did=row.did,
                keys=keys,
                previous_keys=earlier,
                check_signature=check,
                limits=RepoLimits(max_car_bytes=bounds.max_bytes),
            )

    try:
        return await asyncio.to_thread(verify, [])
    except RepoRejectedError as error:
        if error.fault is not RepoFault.BAD_SIGNATURE:
            raise
        # An account that moved keeps its old signature until it writes again.
        try:
            earlier = _keys(*await connections.resolver.audit_keys(row.did))
        except LookupFailedError:
            raise error from None
        return await asyncio.to_thread(verify, earlier)


def _keys(*methods: tuple[str | None, str | None]) -> list[SigningKey]:
    """Read the keys that can be read."""
    keys = []
    for kind, text in methods:
        if kind is not None and text is not None:
            try:
                keys.append(SigningKey.from_verification_method(kind, text))
            except SigningKeyError:
                continue
    return keys
