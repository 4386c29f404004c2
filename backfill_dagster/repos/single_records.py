"""Single records of an account, each by `com.atproto.sync.getRecord`, which proves that it is there or that it is not.

https://docs.bsky.app/docs/api/com-atproto-sync-get-record. The proofs are kept one behind the other in one file.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError
from backfill_dagster.repos.client import DownloadBounds, RepoAnswer
from backfill_dagster.repos.fetching import TOO_SLOW, AskedHost, Part, is_slow
from backfill_dagster.repos.limits import RECORD_PROOF_LIMITS
from backfill_dagster.repos.outcomes import FailureReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backfill_dagster.repos.asked import AsksRecords, RecordPath

_METHOD = "com.atproto.sync.getRecord"
# How a server without the proof that a record is absent says that it is.
_DENIAL = "RecordNotFound"
_MAX_SECONDS = 120.0


class SingleRecords:
    """Records of one account: asked for one after the other."""

    def __init__(self, did: str, paths: Sequence[RecordPath], file: Path) -> None:
        self.file = file
        self.parts: list[Part] = []
        self.repo_rev: str | None = None
        self._did = did
        self._paths = paths
        self._size = 0
        self._seconds = 0.0
        file.touch()

    @property
    def answered(self) -> int:
        """How many of the records have an answer."""
        return len(self.parts)

    async def go_on(self, host: AskedHost) -> RepoAnswer:
        """Ask for the records that have no answer yet."""
        bounds = DownloadBounds(RECORD_PROOF_LIMITS.max_car_bytes, min(host.bounds.seconds, _MAX_SECONDS))
        arrived = self.file.with_suffix(".part")
        while self.answered < len(self._paths):
            if is_slow(self._seconds, self.answered, host):
                return self._summed(TOO_SLOW)
            path = self._paths[self.answered]
            params = {"did": self._did, "collection": path.collection, "rkey": path.rkey}
            answer = await host.download(_METHOD, params, arrived, bounds)
            self._seconds += answer.seconds
            if answer.outcome is Outcome.COMPLETE:
                self._keep(path, arrived)
            elif answer.server_error == _DENIAL and answer.reason is FailureReason.UNEXPECTED_ANSWER:
                self.parts.append(Part(*path, size=0, is_denied=True))
            else:
                return self._summed(answer)
            if self._size > host.bounds.max_bytes:
                detail = f"the proofs have more than {host.bounds.max_bytes} bytes"
                return self._summed(RepoAnswer(Outcome.FAILED, FailureReason.TOO_LARGE, detail))
        return self._summed(RepoAnswer(Outcome.COMPLETE, http_status=200))

    def discard(self) -> None:
        """Delete the proofs."""
        self.file.unlink(missing_ok=True)

    def _keep(self, path: RecordPath, arrived: Path) -> None:
        try:
            with arrived.open("rb") as source, self.file.open("ab") as target:
                shutil.copyfileobj(source, target)
                size = source.tell()
            arrived.unlink()
        except OSError as error:
            raise StorageError.unwritable(self.file, error) from error
        self.parts.append(Part(*path, size=size))
        self._size += size

    def _summed(self, answer: RepoAnswer) -> RepoAnswer:
        return replace(answer, bytes_received=self._size, seconds=self._seconds)


class FetchesRecords:
    """Fetches the records that a study asks for by name."""

    def __init__(self, asks: AsksRecords) -> None:
        self.asks = asks

    def begin(self, did: str, file: Path) -> SingleRecords:
        """Prepare to fetch an account's records."""
        return SingleRecords(did, self.asks.paths(did), file)
