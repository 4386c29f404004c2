"""Which faults there are, and which of them are on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias, get_args

from backfill_dagster.sandbox.answer import GET_REPO, Answer
from backfill_dagster.sandbox.faults.blocks import (
    ChangedDuringExport,
    CutAtBlock,
    DuplicateBlocks,
    FlippedByte,
    MissingBlock,
    UnlinkedBlocks,
)
from backfill_dagster.sandbox.faults.bombs import CborBomb
from backfill_dagster.sandbox.faults.commits import BadSignature, HighSignature, OversizeCommit, WrongDid
from backfill_dagster.sandbox.faults.framing import CarVersion2, WrongRoots
from backfill_dagster.sandbox.faults.http import (
    EmptyBody,
    EndlessBody,
    GzipBomb,
    HostDown,
    HostileRateLimits,
    HtmlPage,
    RedirectLoop,
    RedirectTo,
    ResetMidBody,
    ServerError,
    SlowDrip,
    Stall,
    TooManyRequests,
    Truncate,
    WrongContentType,
    WrongEncoding,
)
from backfill_dagster.sandbox.faults.pretences import (
    HostileEndpoint,
    SilentSinceMigration,
    StaleDocument,
    View,
)
from backfill_dagster.sandbox.faults.records import HugeRecord, InvalidUtf8
from backfill_dagster.sandbox.faults.trees import (
    KeyTooLong,
    TreeBlowUp,
    TreeCycle,
    WideNode,
    WrongKeyOrder,
    WrongLayer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backfill_dagster.sandbox.account_state import AccountState

HttpFault: TypeAlias = (
    ServerError
    | TooManyRequests
    | HostileRateLimits
    | Stall
    | SlowDrip
    | ResetMidBody
    | Truncate
    | EmptyBody
    | HtmlPage
    | WrongContentType
    | WrongEncoding
    | EndlessBody
    | GzipBomb
    | RedirectLoop
    | RedirectTo
)
StructuralFault: TypeAlias = (
    FlippedByte
    | MissingBlock
    | ChangedDuringExport
    | CutAtBlock
    | DuplicateBlocks
    | UnlinkedBlocks
    | CarVersion2
    | WrongRoots
    | WrongDid
    | BadSignature
    | HighSignature
    | OversizeCommit
    | WrongKeyOrder
    | WrongLayer
    | KeyTooLong
    | WideNode
    | TreeCycle
    | TreeBlowUp
    | InvalidUtf8
    | HugeRecord
    | CborBomb
)
PretenceFault: TypeAlias = StaleDocument | SilentSinceMigration | HostileEndpoint
AccountFault: TypeAlias = HttpFault | StructuralFault | PretenceFault
HostFault: TypeAlias = HostDown | AccountFault


@dataclass(slots=True)
class _Switch:
    """A fault that is on: for some paths or all, for each n-th of some requests or until it is switched off."""

    fault: HostFault
    paths: frozenset[str] | None
    times: int | None
    every: int
    seen: int = 0

    def takes(self, path: str | None) -> bool:
        """Say whether a request meets the fault, and count it if so; without a path, it is one of its paths."""
        if self.paths is not None and path is not None and path not in self.paths:
            return False
        self.seen += 1
        return self.seen % self.every == 0 and (self.times is None or self.seen <= self.times * self.every)


class Faults:
    """Which faults are on. Safe to use from any thread at any time.

    There are three families. HTTP faults change an answer on its way; structural faults change what `getRepo`
    exports; pretences change what the directory or the export shows of an account. A fault of a host meets
    every request to it or, if it is not one of HTTP, every account asked for there; one of an account meets
    `getRepo` for that account, on whichever host, or what a pretence is about. `paths` chooses other paths for
    HTTP faults; `every` lets a fault meet only each n-th request, and `times` switches it off after it has met
    so many. If several are on, the host's come before the account's, each kind in the order given.
    """

    kinds: ClassVar[frozenset[type]] = frozenset(get_args(HostFault))
    http_kinds: ClassVar[frozenset[type]] = frozenset({HostDown, *get_args(HttpFault)})
    structural_kinds: ClassVar[frozenset[type]] = frozenset(get_args(StructuralFault))
    pretence_kinds: ClassVar[frozenset[type]] = frozenset(get_args(PretenceFault))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, list[_Switch]] = {}
        self._accounts: dict[str, list[_Switch]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def set_host(
        self,
        host: str,
        *faults: HostFault,
        times: int | None = None,
        every: int = 1,
        paths: Iterable[str] | None = None,
    ) -> None:
        """Give a host these faults in place of those it has; in force when this returns."""
        chosen = None if paths is None else frozenset(paths)
        with self._lock:
            self._hosts[host] = [_Switch(fault, chosen, times, every) for fault in faults]
        self._tell(host)

    def set_account(
        self,
        did: str,
        *faults: AccountFault,
        times: int | None = None,
        every: int = 1,
        paths: Iterable[str] = (GET_REPO,),
    ) -> None:
        """Give an account these faults in place of those it has."""
        chosen = frozenset(paths)
        with self._lock:
            self._accounts[did] = [_Switch(fault, chosen, times, every) for fault in faults]

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            hosts = list(self._hosts)
            self._hosts.clear()
            self._accounts.clear()
        for host in hosts:
            self._tell(host)

    def is_down(self, host: str) -> bool:
        """Say whether a host refuses connections."""
        with self._lock:
            return any(isinstance(switch.fault, HostDown) for switch in self._hosts.get(host, ()))

    def change(self, answer: Answer, *, host: str, path: str, did: str | None) -> Answer:
        """Pass an answer through the HTTP faults of its host and its account."""
        with self._lock:
            met = [
                switch.fault
                for switch in self._switches(host, did)
                if isinstance(switch.fault, HttpFault) and switch.takes(path)
            ]
        for fault in met:
            answer = fault.change(answer)
        return answer

    def distortions(self, host: str, did: str) -> tuple[StructuralFault, ...]:
        """Return the structural faults that an export of an account meets."""
        with self._lock:
            return tuple(
                switch.fault
                for switch in self._switches(host, did)
                if isinstance(switch.fault, StructuralFault) and switch.takes(None)
            )

    def shown(self, state: AccountState, view: View, host: str) -> AccountState:
        """Return the state of an account that a host shows."""
        with self._lock:
            met = [
                switch.fault
                for switch in self._switches(host, state.did)
                if isinstance(switch.fault, PretenceFault)
                and view in switch.fault.views
                and switch.takes(None)
            ]
        for fault in met:
            state = fault.shown(state)
        return state

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with a host's name when its faults change, in the thread that does it."""
        self._listeners.append(listener)

    def _switches(self, host: str, did: str | None) -> list[_Switch]:
        return [*self._hosts.get(host, ()), *self._accounts.get(did or "", ())]

    def _tell(self, host: str) -> None:
        for listener in self._listeners:
            listener(host)
