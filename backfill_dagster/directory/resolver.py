"""Looks one DID up: at the PLC directory (did:plc) or at its own host (did:web).

What can go wrong is told apart, because it is answered differently: a server that cannot be reached or fails
is asked again with growing pauses; one that asks for a pause gets it, and that costs no try; an answer that
makes no sense would make no more sense a second time.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backfill_dagster.directory.audit_log import MAX_AUDIT_LOG_BYTES, parse_audit_keys
from backfill_dagster.directory.documents import (
    MAX_DOCUMENT_BYTES,
    NO_SIGNING_KEY,
    DirectoryState,
    Identity,
    LookupFailedError,
    parse_document,
)
from backfill_dagster.directory.evidence import EvidenceKind
from backfill_dagster.network.addresses import host_of, is_host_name
from backfill_dagster.network.backoff import full_jitter
from backfill_dagster.network.http import RequestFailedError, RequestFault
from backfill_dagster.network.leases import hold_host
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.network.patience import Patience, RunOverError, RunTime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from backfill_dagster.config.network import Network
    from backfill_dagster.config.processing import Processing
    from backfill_dagster.network.http import Answer
    from backfill_dagster.network.leases import HostLeases
    from backfill_dagster.network.limits import HostGate, HostGates
    from backfill_dagster.network.turns import Turns

# What a row's `resolved_by` says of one that was looked up by itself.
LOOKUP = "lookup"
# The directory's rate bounds its requests; this many at once keep to it at any latency that occurs.
PLC_IN_FLIGHT = 32
_MAX_REASON = 300
_STATES_BY_FAULT = {
    RequestFault.UNREACHABLE: DirectoryState.UNREACHABLE,
    RequestFault.TIMED_OUT: DirectoryState.UNREACHABLE,
    RequestFault.TRUNCATED: DirectoryState.UNREACHABLE,
    RequestFault.BAD_TLS: DirectoryState.UNREACHABLE,
    RequestFault.REFUSED_ADDRESS: DirectoryState.REFUSED_ADDRESS,
    RequestFault.BAD_REDIRECT: DirectoryState.SERVER_ERROR,
    RequestFault.TOO_LARGE: DirectoryState.BAD_DOCUMENT,
    RequestFault.BAD_ENCODING: DirectoryState.BAD_DOCUMENT,
}
_WORTH_ANOTHER_TRY = frozenset({RequestFault.UNREACHABLE, RequestFault.TIMED_OUT, RequestFault.TRUNCATED})


@dataclass(frozen=True, slots=True)
class DirectoryRow:
    """What one DID's lookup came to: one row of the directory, see DIRECTORY_COLUMNS."""

    did: str
    handle: str | None
    pds: str | None
    pds_host: str | None
    key_type: str | None
    key_multibase: str | None
    state: DirectoryState
    reason: str | None
    resolved_at: datetime
    resolved_by: str = LOOKUP


class Resolver:
    """Looks DIDs up, each in the turn of the host that is asked; of use on one event loop.

    With `leases`, the PLC directory is only asked while no other process does. What would have to be asked for
    after `run_time` is NOT_ASKED.
    """

    def __init__(
        self,
        turns: Turns,
        gates: HostGates,
        network: Network,
        processing: Processing,
        *,
        leases: HostLeases | None = None,
        run_time: RunTime | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.plc_url = network.plc_url
        self._turns = turns
        self._gates = gates
        self._network = network
        self._processing = processing
        self._jitter = jitter
        self._leases = leases
        self._patience = Patience(network.max_park_minutes * 60, run_time or RunTime())
        self._plc_host = host_of(self.plc_url)
        self._taking_lease = asyncio.Lock()
        # Told of everything received that names an account's keys, byte for byte.
        self.on_evidence: Callable[[str, EvidenceKind, bytes], None] = lambda *_: None

    async def resolve(self, did: str) -> DirectoryRow:
        """Look up a DID now, past any cache; every outcome is a row."""
        try:
            url, gate = self._document_url(did)
            answer = await self.ask(url, gate, MAX_DOCUMENT_BYTES)
            identity = parse_document(did, _document_of(did, answer))
        except LookupFailedError as error:
            return DirectoryRow(did, None, None, None, None, None, error.state, error.reason, _now())
        self.on_evidence(did, EvidenceKind.DID_DOCUMENT, answer.body)
        return _resolved(identity)

    async def audit_keys(self, did: str) -> list[tuple[str, str]]:
        """Return the signing keys that an account has had, newest first: (`Multikey`, text in multibase).

        The current key is among them. A did:web keeps no log and gives none. Raises LookupFailedError if the
        log cannot be had or read.
        """
        if not did.startswith("did:plc:"):
            return []
        answer = await self.ask(f"{self.plc_url}/{did}/log/audit", self._plc_gate(), MAX_AUDIT_LOG_BYTES)
        keys = parse_audit_keys(_document_of(did, answer))
        self.on_evidence(did, EvidenceKind.PLC_AUDIT_LOG, answer.body)
        return keys

    def _plc_gate(self) -> HostGate:
        rate = self._network.plc_requests_per_second
        return self._gates.gate(self._plc_host, rate=rate, in_flight=PLC_IN_FLIGHT)

    def _document_url(self, did: str) -> tuple[str, HostGate]:
        if did.startswith("did:plc:"):
            return f"{self.plc_url}/{did}", self._plc_gate()
        host = did.removeprefix("did:web:").lower()
        if not did.startswith("did:web:") or not is_host_name(host):
            raise LookupFailedError(DirectoryState.BAD_DOCUMENT, "only did:plc and did:web can be looked up")
        # The method demands https. A host that the study itself maps on plain HTTP's port is one of a
        # sandbox.
        scheme = "http" if self._turns.http.policy.target(host, 80) else "https"
        gate = self._gates.gate(
            host,
            rate=self._processing.requests_per_second,
            in_flight=self._processing.requests_in_flight,
        )
        return f"{scheme}://{host}/.well-known/did.json", gate

    async def ask(self, url: str, gate: HostGate, max_bytes: int) -> Answer:
        """Get an answer that is neither a refusal for the time being nor a server's failure.

        Raises LookupFailedError if there is none in the end.
        """
        async with self._turn_at(gate):
            return await self._ask_in_turn(url, gate, max_bytes)

    @asynccontextmanager
    async def _turn_at(self, gate: HostGate) -> AsyncIterator[None]:
        """Hold the PLC directory's lease. A host of did:web has one document and needs none."""
        if self._leases is None or gate.host != self._plc_host:
            yield
            return
        async with AsyncExitStack() as stack:
            # One of those who wait looks out for the lease; when it is there, it is there for all.
            async with self._taking_lease:
                turn = hold_host(self._leases, gate, give_up=lambda: self._patience.run_time.is_over)
                if not await stack.enter_async_context(turn):
                    holder = await self._leases.holder(gate.host)
                    raise LookupFailedError(
                        DirectoryState.NOT_ASKED,
                        f"processing.max_run_minutes is over, and {gate.host} is being asked by {holder}",
                    )
            yield

    async def _ask_in_turn(self, url: str, gate: HostGate, max_bytes: int) -> Answer:
        """Get an answer that is neither a refusal for the time being nor a server's failure."""
        failures = 0
        while True:
            try:
                answer = await self._turns.get(gate, url, max_bytes=max_bytes, patience=self._patience)
            except HostParkedError as error:
                raise LookupFailedError(DirectoryState.RATE_LIMITED, str(error)) from None
            except RunOverError as error:
                raise LookupFailedError(DirectoryState.NOT_ASKED, str(error)) from None
            except RequestFailedError as error:
                lasting = error.kind not in _WORTH_ANOTHER_TRY
                failed = LookupFailedError(_STATES_BY_FAULT[error.kind], f"{gate.host}: {error}")
            else:
                if answer.status == 429:
                    raise LookupFailedError(
                        DirectoryState.RATE_LIMITED, f"{gate.host} answered 429 for too long"
                    )
                if answer.status < 500:
                    return answer
                lasting = False
                failed = LookupFailedError(
                    DirectoryState.SERVER_ERROR, f"{gate.host} answered {answer.status}"
                )
            failures += 1
            if lasting or failures > self._processing.max_retries:
                raise failed
            self._turns.metrics.retried(gate.host)
            await asyncio.sleep(full_jitter(failures, self._network.retry_base_seconds, self._jitter))


def _document_of(did: str, answer: Answer) -> bytes:
    """Return the body of an answer that is a document; raises LookupFailedError for any other."""
    if answer.status == 200:
        return answer.body
    said = " ".join(answer.body[:_MAX_REASON].decode("utf-8", "replace").split())
    reason = f"HTTP {answer.status}: {said}"
    if did.startswith("did:plc:") and (
        # The directory's own server, as published on npm, has 404 for tombstones too.
        answer.status == 410 or (answer.status == 404 and b"DID not available" in answer.body)
    ):
        raise LookupFailedError(DirectoryState.TOMBSTONED, reason)
    if answer.status in (404, 410):
        raise LookupFailedError(DirectoryState.NOT_FOUND, reason)
    raise LookupFailedError(DirectoryState.SERVER_ERROR, reason)


def _resolved(identity: Identity) -> DirectoryRow:
    return DirectoryRow(
        did=identity.did,
        handle=identity.handle,
        pds=identity.pds_origin,
        pds_host=identity.pds_host,
        key_type=identity.key_type,
        key_multibase=identity.key_multibase,
        state=DirectoryState.RESOLVED,
        reason=None if identity.key_multibase else NO_SIGNING_KEY,
        resolved_at=_now(),
    )


def _now() -> datetime:
    return datetime.now(UTC)
