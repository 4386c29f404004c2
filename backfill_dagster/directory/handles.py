"""Finds the account that a handle names, and asks the account whether it is so.

First DNS is asked, then the handle's own host; whatever they say is what the handle's owner says. So the DID's document
must name the handle in its turn. Source: AT Protocol handle specification, "Handle Resolution".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.dids.handle_syntax import HandleRejection, check_handle, normal_handle
from backfill_dagster.dids.syntax import WHITESPACE, check_did
from backfill_dagster.directory.documents import DirectoryState, LookupFailedError
from backfill_dagster.network.dns import DnsUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.processing import Processing
    from backfill_dagster.directory.resolver import Resolver
    from backfill_dagster.network.addresses import AddressPolicy
    from backfill_dagster.network.dns import TxtLookup
    from backfill_dagster.network.limits import HostGates

CONCURRENCY = 64
# A DID has 2,048 characters at most; what is longer is a page for people.
_MAX_ANSWER_BYTES = 4096
_PREFIX = "did="


@dataclass(frozen=True, slots=True)
class HandleAnswer:
    """What a handle stands for: a DID, or why for none; then `did` is what its owner says, if that much is known."""

    did: str | None
    rejection: HandleRejection | None = None


class HandleResolver:
    """Looks handles up; of use on the event loop of its resolver.

    `txt` is None in a network without DNS. Top-level domains for development are looked up `in_sandbox` only.
    """

    def __init__(
        self,
        resolver: Resolver,
        gates: HostGates,
        policy: AddressPolicy,
        processing: Processing,
        *,
        txt: TxtLookup | None,
        in_sandbox: bool,
    ) -> None:
        self._resolver = resolver
        self._gates = gates
        self._policy = policy
        self._processing = processing
        self._txt = txt
        self._in_sandbox = in_sandbox

    async def resolve_all(self, handles: Sequence[str]) -> list[HandleAnswer]:
        """Return what each handle stands for, in their order; many are looked up at once, each only once."""
        answers: dict[str, HandleAnswer] = {}
        waiting = iter(dict.fromkeys(map(normal_handle, handles)))

        async def work() -> None:
            for handle in waiting:
                answers[handle] = await self.resolve(handle)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(CONCURRENCY, len(handles))):
                tasks.create_task(work())
        return [answers[normal_handle(handle)] for handle in handles]

    async def resolve(self, handle: str) -> HandleAnswer:
        """Look up a handle in its normal form, in both directions; every outcome is an answer."""
        rejection = check_handle(handle, in_sandbox=self._in_sandbox)
        if rejection is not None:
            return HandleAnswer(None, rejection)
        claimed = await self._claimed(handle)
        return claimed if claimed.did is None else await self._confirmed(handle, claimed.did)

    async def _claimed(self, handle: str) -> HandleAnswer:
        """Find the DID that the handle's owner says it stands for."""
        by_dns = await self._by_dns(handle)
        if by_dns.did is not None or by_dns.rejection is HandleRejection.CONFLICT:
            return by_dns
        by_web = await self._by_web(handle)
        # DNS, had it answered, might know what the host does not.
        return by_dns if by_web.did is None and by_dns.rejection is HandleRejection.UNREACHABLE else by_web

    async def _by_dns(self, handle: str) -> HandleAnswer:
        if self._txt is None:
            return HandleAnswer(None, HandleRejection.NOT_FOUND)
        try:
            texts = await self._txt.texts(f"_atproto.{handle}")
        except DnsUnreachableError:
            return HandleAnswer(None, HandleRejection.UNREACHABLE)
        named = {text.removeprefix(_PREFIX) for text in texts if text.startswith(_PREFIX)}
        return HandleAnswer(None, HandleRejection.CONFLICT) if len(named) > 1 else _answer(*named)

    async def _by_web(self, handle: str) -> HandleAnswer:
        # Millions of handles are names below one provider's domain, and its servers answer for all of them.
        above = handle.partition(".")[2]
        gate = self._gates.gate(
            above if "." in above else handle,
            rate=self._processing.requests_per_second,
            in_flight=self._processing.requests_in_flight,
        )
        # A host that the study itself maps on plain HTTP's port is one of a sandbox.
        scheme = "http" if self._policy.target(handle, 80) else "https"
        try:
            answer = await self._resolver.ask(
                f"{scheme}://{handle}/.well-known/atproto-did", gate, _MAX_ANSWER_BYTES
            )
        except LookupFailedError as error:
            if error.state is DirectoryState.REFUSED_ADDRESS:
                return HandleAnswer(None, HandleRejection.REFUSED_ADDRESS)
            if error.state is DirectoryState.BAD_DOCUMENT:
                return HandleAnswer(None, HandleRejection.NOT_FOUND)
            return HandleAnswer(None, HandleRejection.UNREACHABLE)
        if answer.status != 200:
            return HandleAnswer(None, HandleRejection.NOT_FOUND)
        return _answer(answer.body.decode("utf-8", "replace").strip(WHITESPACE))

    async def _confirmed(self, handle: str, did: str) -> HandleAnswer:
        """Ask the DID's document, which must name the handle before any other."""
        row = await self._resolver.resolve(did)
        if not row.state.settled:
            return HandleAnswer(did, HandleRejection.UNREACHABLE)
        if row.handle is None or row.handle.lower() != handle:
            return HandleAnswer(did, HandleRejection.MISMATCH)
        return HandleAnswer(did)


def _answer(did: str = "") -> HandleAnswer:
    if check_did(did) is not None:
        return HandleAnswer(None, HandleRejection.NOT_FOUND)
    return HandleAnswer(did)
