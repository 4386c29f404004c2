"""The crawl: many hosts at once, each at its own pace, downloads joined to the workers by a bounded queue.

A host is worked in rounds. A round asks for each of its open accounts once; what failed is asked for again in
the next round, after a pause, until its tries are used up. Files that arrive are handed to the worker processes
in packs; a pack is committed as soon as it is full, so that an interruption loses only packs under way.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from backfill_dagster.directory.documents import DirectoryState, LookupFailedError
from backfill_dagster.monitoring import events
from backfill_dagster.network.backoff import full_jitter
from backfill_dagster.network.leases import hold_host
from backfill_dagster.network.patience import Patience, RunOverError
from backfill_dagster.repos.accounts import Account, by_host, did_key_of
from backfill_dagster.repos.client import DownloadBounds, RepoAnswer, get_account_state
from backfill_dagster.repos.faults import RepoFault
from backfill_dagster.repos.fetching import AskedHost, FetchesRepos
from backfill_dagster.repos.outcomes import HOST_FAILURES, FailureReason, Outcome, failure_of
from backfill_dagster.repos.packs import Attempt
from backfill_dagster.repos.proof import Delivery, PackReport, ProofSettings, prove_and_pack
from backfill_dagster.repos.revisions import RevisionSource, unchanged_accounts
from backfill_dagster.storage import StudyStorage
from backfill_dagster.ticking import ticking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from backfill_dagster.directory.resolver import DirectoryRow, Resolver
    from backfill_dagster.network.leases import HostLeases
    from backfill_dagster.network.limits import HostGate, HostGates
    from backfill_dagster.network.patience import RunTime
    from backfill_dagster.network.turns import Turns
    from backfill_dagster.repos.fetching import AccountFetch, Fetching
    from backfill_dagster.stores.location import Location

logger = logging.getLogger(__name__)

# The share of a host's accounts that it may fail over, by an error or a time-out, without having failed itself.
TOLERATED_FAILURES = 0.1
# How often an account is followed to another host within one run.
MAX_MOVES = 2


@dataclass(frozen=True, slots=True)
class CrawlSettings:
    """The pace and bounds of a crawl; bytes and seconds."""

    batch_size: int
    pack_bytes: int
    max_concurrent_pds: int
    requests_in_flight: int
    requests_per_second: float
    max_retries: int
    retry_base_seconds: float
    max_park_seconds: float
    bounds: DownloadBounds
    proof: ProofSettings


@dataclass(slots=True)
class HostReport:
    """What one host's crawl came to: `left` for want of time, `moved` to another host by now.

    `requests` counts what was asked of the host, `pauses` how often it wanted to be left alone for a while,
    `changed_during_export` files that lacked a block, as one does that was exported beside a write.
    """

    pds_host: str
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    records: int = 0
    bytes_received: int = 0
    requests: int = 0
    pauses: int = 0
    seconds: float = 0.0
    packs: list[str] = field(default_factory=list)
    left: int = 0
    changed_during_export: int = 0
    moved: list[Account] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the host, rather than single accounts of it, is to be tried again.

        A host that could not be reached, or never had enough of our pauses, is; one that failed over a few of
        many accounts is not, or a single broken repository would fail its host for ever.
        """
        host_failures = sum(self.reasons[reason] for reason in HOST_FAILURES)
        lasting = self.reasons[FailureReason.UNREACHABLE] + self.reasons[FailureReason.RATE_LIMITED]
        return lasting > 0 or host_failures > TOLERATED_FAILURES * sum(self.outcomes.values())

    def add(self, other: HostReport) -> None:
        """Count in another report of the same host: accounts that moved in come after its own."""
        self.outcomes.update(other.outcomes)
        self.reasons.update(other.reasons)
        self.records += other.records
        self.bytes_received += other.bytes_received
        self.requests += other.requests
        self.pauses += other.pauses
        self.seconds += other.seconds
        self.packs.extend(other.packs)
        self.left += other.left
        self.changed_during_export += other.changed_during_export
        self.moved.extend(other.moved)


@dataclass(slots=True)
class Progress:
    """How far a crawl is, in accounts (`total`, `done`, `failures` by reason), bytes and hosts.

    A host that is neither active, nor parked, nor done has not had its turn yet. A parked one is left alone for a
    while: because it asked for that, before another try, or because another run is at it. `packs_open` are full and
    not written yet.
    """

    total: int
    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    bytes_received: int = 0
    hosts: int = 0
    hosts_active: int = 0
    hosts_parked: int = 0
    hosts_done: int = 0
    packs_open: int = 0


@dataclass(slots=True)
class _Work:
    """One account on its way: tries made, and what was learned of it meanwhile.

    Of the tries, `spent` are those that count against it: an account of many requests may fail over some of them, as
    long as each try brings it further than it ever was, which is `furthest`. `arrived` says that nothing more is to be
    asked for, `rejections` how often what had arrived did not hold.
    """

    account: Account
    attempts: int = 0
    spent: int = 0
    rejections: int = 0
    furthest: int = 0
    refreshed: bool = False
    previous_keys: tuple[str, ...] = ()
    fetch: AccountFetch | None = None
    arrived: bool = False
    answer: RepoAnswer | None = None
    fetched_at: datetime | None = None

    def discard(self) -> None:
        """Delete what has arrived; the next try begins anew."""
        if self.fetch is not None:
            self.fetch.discard()
        self.fetch = None
        self.arrived = False


class Crawl:
    """Fetches accounts from their hosts; one instance per run, on one event loop."""

    def __init__(
        self,
        *,
        root: Location,
        scratch: Path,
        turns: Turns,
        gates: HostGates,
        leases: HostLeases,
        resolver: Resolver,
        run_time: RunTime,
        workers: Executor,
        worker_count: int,
        settings: CrawlSettings,
        fetching: Fetching | None = None,
        before_pack: Callable[[], None] = lambda: None,
    ) -> None:
        """Take `before_pack` to be called whenever what has arrived is about to be stored."""
        self.root = root
        self.scratch = scratch
        self.turns = turns
        self.metrics = turns.metrics
        self.gates = gates
        self.leases = leases
        self.resolver = resolver
        self.run_time = run_time
        self.settings = settings
        self.fetching = fetching or FetchesRepos()
        self._workers = workers
        self._before_pack = before_pack
        self._active_hosts = asyncio.Semaphore(settings.max_concurrent_pds)
        # Two packs per worker keep it busy while bounding what waits on disk.
        self._packs_under_way = asyncio.Semaphore(2 * worker_count)
        self._files = 0
        self.progress = Progress(total=0)

    async def run(
        self,
        waiting: Mapping[str, Collection[Account]],
        on_host: Callable[[HostReport], None] = lambda _: None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> list[HostReport]:
        """Fetch all accounts, given by host, the largest hosts first; accounts found to have moved are followed.

        `on_progress` is called several times a second, also while nothing comes in, and must be quick.
        """
        self.progress.total += sum(map(len, waiting.values()))
        async with ticking(lambda: on_progress(self.progress)):
            return await self._crawl_rounds(waiting, on_host)

    async def _crawl_rounds(
        self, waiting: Mapping[str, Collection[Account]], on_host: Callable[[HostReport], None]
    ) -> list[HostReport]:
        reports: list[HostReport] = []
        while waiting:
            hosts = sorted(waiting.items(), key=lambda item: (-len(item[1]), item[0]))
            self.progress.hosts += len(hosts)
            round_reports: list[HostReport] = []
            async with asyncio.TaskGroup() as tasks:
                for host, members in hosts:
                    crawl = HostCrawl(self, host, members)
                    tasks.create_task(self._crawl_host(crawl, round_reports, on_host))
            reports.extend(round_reports)
            waiting = by_host(account for report in round_reports for account in report.moved)
        return reports

    async def _crawl_host(
        self, crawl: HostCrawl, reports: list[HostReport], on_host: Callable[[HostReport], None]
    ) -> None:
        async with self._active_hosts:
            self.progress.hosts_active += 1
            events.emit(events.HOST_BEGUN, host=crawl.pds_host, accounts=crawl.accounts_left)
            try:
                report = await crawl.run()
            finally:
                self.progress.hosts_active -= 1
        self.progress.hosts_done += 1
        reports.append(report)
        events.emit(
            events.HOST_DONE,
            host=report.pds_host,
            duration=report.seconds,
            outcomes=dict(report.outcomes),
            reasons=dict(report.reasons),
            records=report.records,
            bytes=report.bytes_received,
            requests=report.requests,
            pauses=report.pauses,
            left=report.left,
        )
        on_host(report)

    @asynccontextmanager
    async def without_host_slot(self) -> AsyncIterator[None]:
        """Give the caller's place among the active hosts to another while it only waits."""
        self._active_hosts.release()
        self.progress.hosts_active -= 1
        self.progress.hosts_parked += 1
        try:
            yield
        finally:
            await self._active_hosts.acquire()
            self.progress.hosts_parked -= 1
            self.progress.hosts_active += 1

    async def pack(self, pds_host: str, deliveries: Sequence[Delivery]) -> PackReport:
        """Have a worker prove and pack these deliveries; waits while the workers have enough to do."""
        self.progress.packs_open += 1
        try:
            async with self._packs_under_way:
                self._before_pack()
                report = await asyncio.get_running_loop().run_in_executor(
                    self._workers, prove_and_pack, self.root, pds_host, tuple(deliveries), self.settings.proof
                )
        finally:
            self.progress.packs_open -= 1
        self.metrics.packed(report)
        return report

    def count_bytes(self, received: int) -> None:
        """Count bytes that have arrived."""
        self.progress.bytes_received += received

    def scratch_file(self) -> Path:
        """Return a fresh name in scratch; never made from anything that a server said. Raises StorageError."""
        StudyStorage(self.root).ensure_headroom()
        self._files += 1
        return self.scratch / f"{self._files}.car"


class HostCrawl:
    """The accounts of one host, in rounds, within one place among the active hosts."""

    def __init__(self, crawl: Crawl, pds_host: str, accounts: Collection[Account]) -> None:
        self._crawl = crawl
        self._settings = crawl.settings
        self._gate: HostGate = crawl.gates.gate(
            pds_host, rate=crawl.settings.requests_per_second, in_flight=crawl.settings.requests_in_flight
        )
        self._report = HostReport(pds_host)
        self._accounts = accounts
        # Those of the first round, of whom only the one whose turn it is is held; and those that are tried again.
        self._first = iter(accounts)
        self._first_left = len(accounts)
        self._queue: deque[_Work] = deque()
        self._again: list[_Work] = []
        self._batch: list[tuple[_Work, Delivery]] = []
        self._batch_bytes = 0
        # A pack that cannot be written ends the host, and with it the run: no account is lost unnoticed.
        self._packs = asyncio.TaskGroup()
        self._packing: set[asyncio.Task[None]] = set()
        self._unreachable_in_a_row = 0
        self._given_up: RepoAnswer | None = None
        self._patience = Patience(crawl.settings.max_park_seconds, crawl.run_time, self._wait)
        self._waiting = asyncio.Lock()

    @property
    def pds_host(self) -> str:
        """The host."""
        return self._report.pds_host

    @property
    def accounts_left(self) -> int:
        """Accounts that wait for their turn."""
        return self._first_left + len(self._queue)

    async def run(self) -> HostReport:
        """Work until every account of the host is settled, has failed for good, or has moved."""
        started, requests, pauses = time.monotonic(), self._gate.requests, self._gate.parks
        turn = hold_host(
            self._crawl.leases,
            self._gate,
            wait=self._wait,
            give_up=lambda: self._crawl.run_time.is_over,
        )
        async with turn as held:
            if held:
                async with self._packs:
                    await self._work()
        self._report.left = self.accounts_left
        self._report.requests = self._gate.requests - requests
        self._report.pauses = self._gate.parks - pauses
        self._report.seconds = time.monotonic() - started
        return self._report

    async def _work(self) -> None:
        await self._pass_over_unchanged()
        while self.accounts_left and not self._crawl.run_time.is_over:
            # Accounts that a try brought further do not wait longer each time.
            failures = max((work.spent for work in self._queue), default=0)
            if failures:
                await self._wait(
                    partial(full_jitter, failures, self._settings.retry_base_seconds, random.random)
                )
            self._unreachable_in_a_row = 0
            loops = min(self._settings.requests_in_flight, self.accounts_left)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(loops):
                    tasks.create_task(self._fetch_until_empty())
            await self._finish_packs()
            self._queue.extend(self._again)
            self._again.clear()

    async def _pass_over_unchanged(self) -> None:
        """Settle the accounts that are still at the revision that is stored, by origin of their host."""
        known: dict[str, dict[str, str]] = {}
        for account in self._accounts:
            if account.known_rev is not None:
                known.setdefault(account.pds, {})[account.did] = account.known_rev
        unchanged: set[str] = set()
        for origin, revs in known.items():
            source = RevisionSource(self._crawl.turns, self._gate, origin, self._patience)
            unchanged |= await unchanged_accounts(source, revs)
        if not unchanged:
            return
        self._first = (account for account in self._accounts if account.did not in unchanged)
        for account in self._accounts:
            if account.did in unchanged:
                self._first_left -= 1
                work = _Work(account, attempts=1, answer=RepoAnswer(Outcome.UNCHANGED))
                work.fetched_at = datetime.now(UTC)
                await self._add(work, Delivery(self._attempt(work)))
        await self._seal_batch()

    def _next(self) -> _Work | None:
        """Take the account whose turn it is; None if there is none."""
        for account in self._first:
            self._first_left -= 1
            return _Work(account)
        return self._queue.popleft() if self._queue else None

    async def _fetch_until_empty(self) -> None:
        while not self._crawl.run_time.is_over and (work := self._next()) is not None:
            if work.arrived:
                # Only its keys were looked up again; the file is here already.
                await self._deliver(work)
            elif self._given_up is not None:
                work.attempts += 1
                work.spent += 1
                work.answer = self._given_up
                await self._failed(work, FailureReason.RATE_LIMITED)
            elif self._unreachable_in_a_row >= 2 * self._settings.requests_in_flight:
                # The host is down: the rest of the round need not wait for a time-out each.
                work.attempts += 1
                work.spent += 1
                work.answer = RepoAnswer(
                    Outcome.FAILED, FailureReason.UNREACHABLE, "the host did not answer others"
                )
                await self._failed(work, FailureReason.UNREACHABLE)
            else:
                try:
                    await self._fetch(work)
                except RunOverError:
                    self._queue.append(work)

    async def _fetch(self, work: _Work) -> None:
        fetch = work.fetch or self._crawl.fetching.begin(work.account.did, self._crawl.scratch_file())
        work.fetch, before = fetch, fetch.answered
        answer = await fetch.go_on(self._asked_host(work.account))
        # A redirect can lead to another host, whose pauses are not those of this one.
        if (
            answer.reason is FailureReason.RATE_LIMITED
            and self._gate.limited_for() > self._settings.max_park_seconds
        ):
            self._given_up = answer
        work.fetched_at = datetime.now(UTC) - timedelta(seconds=answer.seconds)
        work.answer = answer
        work.attempts += 1
        work.spent += 1
        if fetch.answered > before:
            self._unreachable_in_a_row = 0
        if answer.outcome is Outcome.COMPLETE:
            self._unreachable_in_a_row = 0
            work.arrived = True
            await self._deliver(work)
            return
        if answer.outcome is not Outcome.FAILED:
            self._unreachable_in_a_row = 0
            work.discard()
            await self._account_state(work)
            return
        # Further than ever: what was begun anew, and came as far as before, has not.
        if fetch.answered > work.furthest:
            work.furthest = fetch.answered
            work.spent = work.rejections + 1
        reason = answer.reason or FailureReason.UNEXPECTED_ANSWER
        unreachable = reason in (FailureReason.UNREACHABLE, FailureReason.TIMED_OUT)
        self._unreachable_in_a_row = self._unreachable_in_a_row + 1 if unreachable else 0
        await self._failed(work, reason)

    def _asked_host(self, account: Account) -> AskedHost:
        return AskedHost(
            self._crawl.turns,
            self._gate,
            account.pds,
            self._settings.bounds,
            self._patience,
            on_bytes=self._crawl.count_bytes,
        )

    async def _account_state(self, work: _Work) -> None:
        """Record what the server says of the account, unless the account lives elsewhere by now.

        The old host of a migrated account calls it deactivated, so the DID is resolved afresh first. As long as
        that fails, nothing is known of the account.
        """
        account = work.account
        row = await self._crawl.resolver.resolve(account.did)
        if not row.state.settled:
            self._crawl.run_time.check()
            await self._failed(work, FailureReason.DIRECTORY_FAILED, f"{row.state}: {row.reason}")
            return
        elsewhere = row.state is DirectoryState.RESOLVED and row.pds_host != account.pds_host
        if elsewhere and account.moves < MAX_MOVES:
            self._report.moved.append(replace(_account(row), moves=account.moves + 1))
            return
        if row.state is DirectoryState.TOMBSTONED:
            state: Outcome | None = Outcome.DELETED
        else:
            state = await get_account_state(
                self._crawl.turns, self._gate, account.pds, account.did, self._patience
            )
        if work.answer is not None and state is not None:
            work.answer = replace(work.answer, outcome=state)
        await self._add(work, Delivery(self._attempt(work)))

    async def _deliver(self, work: _Work) -> None:
        key = work.account.key
        if key is None and self._settings.proof.check_signature:
            work.discard()
            await self._add(work, Delivery(self._attempt(work, failure=FailureReason.NO_SIGNING_KEY)))
            return
        keys = () if key is None else (key,)
        car, parts = (None, ()) if work.fetch is None else (work.fetch.file, tuple(work.fetch.parts))
        await self._add(work, Delivery(self._attempt(work), car, keys, work.previous_keys, parts))

    async def _failed(self, work: _Work, reason: FailureReason, detail: str | None = None) -> None:
        """Put the account off to the next round, or record the failure when its tries are used up."""
        if work.spent <= self._settings.max_retries and reason not in _LASTING:
            self._crawl.metrics.retried(self._report.pds_host)
            self._again.append(work)
            return
        work.discard()
        await self._add(work, Delivery(self._attempt(work, failure=reason, detail=detail)))

    async def _add(self, work: _Work, delivery: Delivery) -> None:
        self._batch.append((work, delivery))
        self._batch_bytes += delivery.car.stat().st_size if delivery.car else 0
        if len(self._batch) >= self._settings.batch_size or self._batch_bytes >= self._settings.pack_bytes:
            await self._seal_batch()

    async def _seal_batch(self) -> None:
        if not self._batch:
            return
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        task = self._packs.create_task(self._pack(batch))
        self._packing.add(task)
        task.add_done_callback(self._packing.discard)
        if len(self._packing) > 1:
            # One pack is built while the next is fetched; more would only pile up on disk.
            await asyncio.wait(self._packing, return_when=asyncio.FIRST_COMPLETED)

    async def _finish_packs(self) -> None:
        """Pack what has gathered and wait for every pack; what one rejects may fill another."""
        await self._seal_batch()
        while self._packing:
            await asyncio.wait(self._packing)
            await self._seal_batch()

    async def _pack(self, batch: list[tuple[_Work, Delivery]]) -> None:
        begun = time.monotonic()
        report = await self._crawl.pack(self._report.pds_host, [delivery for _, delivery in batch])
        if report.pack is not None:
            self._report.packs.append(report.pack)
        for attempt in report.written:
            self._count(attempt)
        if events.is_heard():
            _tell_of_pack(self._report.pds_host, report, time.monotonic() - begun)
        for work, delivery in batch:
            fault = report.rejected.get(delivery.attempt.did)
            if fault is not None:
                await self._rejected(work, *fault)

    def _count(self, attempt: Attempt) -> None:
        self._crawl.progress.done += 1
        self._report.outcomes[attempt.outcome] += 1
        self._report.records += attempt.records
        self._report.bytes_received += attempt.bytes_received
        self._crawl.metrics.attempted(self._report.pds_host, attempt.outcome, attempt.reason)
        if attempt.reason is not None:
            self._report.reasons[attempt.reason] += 1
            self._crawl.progress.failures[attempt.reason] += 1

    async def _rejected(self, work: _Work, fault: RepoFault, detail: str) -> None:
        """Answer a file that did not hold: look the keys up again once, or fetch the repository again."""
        account = work.account
        if fault is RepoFault.BAD_SIGNATURE and not work.refreshed:
            work.refreshed = True
            row = await self._crawl.resolver.resolve(account.did)
            if row.state is DirectoryState.RESOLVED and row.pds_host == account.pds_host:
                work.account = _account(row)
            work.previous_keys = await _earlier_keys(self._crawl.resolver, account.did)
            self._again.append(work)
            return
        work.discard()
        work.rejections += 1
        self._report.changed_during_export += fault is RepoFault.MISSING_BLOCK
        await self._failed(work, failure_of(fault), detail)

    def _attempt(
        self, work: _Work, failure: FailureReason | None = None, detail: str | None = None
    ) -> Attempt:
        answer = work.answer or RepoAnswer(Outcome.FAILED)
        asks, did = self._crawl.fetching.asks, work.account.did
        rev = work.fetch.repo_rev if work.fetch is not None and failure is None else None
        return Attempt(
            did=did,
            pds=work.account.pds,
            outcome=answer.outcome if failure is None else Outcome.FAILED,
            obtained=asks.obtained,
            asked=asks.of(did),
            reason=failure,
            detail=detail or answer.detail,
            fetched_at=work.fetched_at or datetime.now(UTC),
            attempts=work.attempts,
            http_status=answer.http_status,
            server_error=answer.server_error,
            bytes_received=answer.bytes_received,
            repo_rev=work.account.known_rev if answer.outcome is Outcome.UNCHANGED else rev,
            seconds=answer.seconds,
        )

    async def _wait(self, seconds: Callable[[], float]) -> None:
        """Wait without a place among the active hosts: of those who work on the host, one lays it down for all."""
        async with self._waiting:
            if (left := seconds()) > 0:
                async with self._crawl.without_host_slot():
                    await asyncio.sleep(left)


def _tell_of_pack(pds_host: str, report: PackReport, seconds: float) -> None:
    """Tell of a pack that is stored, which took so long to prove and write, and of each account in it."""
    for attempt in report.written:
        failed = attempt.outcome is Outcome.FAILED
        events.emit(
            events.ACCOUNT_FAILED if failed else events.ACCOUNT_SETTLED,
            host=pds_host,
            did=attempt.did,
            pack=report.pack,
            duration=attempt.seconds,
            state=str(attempt.outcome),
            reason=None if attempt.reason is None else str(attempt.reason),
            bytes=attempt.bytes_received,
            records=attempt.records,
            attempts=attempt.attempts,
            http_status=attempt.http_status,
            repo_rev=attempt.repo_rev,
            detail=attempt.detail,
        )
    if report.pack is not None:
        events.emit(
            events.PACK_COMMITTED,
            host=pds_host,
            pack=report.pack,
            duration=seconds,
            accounts=len(report.written),
            records=sum(attempt.records for attempt in report.written),
            bytes=sum(attempt.bytes_received for attempt in report.written),
        )


def _account(row: DirectoryRow) -> Account:
    return Account.from_directory(row.did, row.pds or "", row.pds_host or "", row.key_type, row.key_multibase)


async def _earlier_keys(resolver: Resolver, did: str) -> tuple[str, ...]:
    """Return the keys of the account's audit log that can be read; none if the log cannot."""
    try:
        methods = await resolver.audit_keys(did)
    except LookupFailedError as error:
        logger.warning("the earlier keys of an account cannot be had: %s", error.state)
        return ()
    keys = (did_key_of(*method) for method in methods)
    return tuple(key for key in keys if key is not None)


# What another try cannot change within one run.
_LASTING = frozenset(
    {
        FailureReason.RATE_LIMITED,
        FailureReason.REFUSED_ADDRESS,
        FailureReason.TOO_LARGE,
        FailureReason.UNSUPPORTED_CAR,
    }
)
