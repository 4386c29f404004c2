"""What the stages of one study count, in their own words; the families of metrics are known to this side alone.

The object is handed down to whoever has something to count. It is used from the thread of the stage, and read from
those that expose it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar

from prometheus_client import CollectorRegistry

from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.monitoring.families import Families
from backfill_dagster.monitoring.host_gauges import HostGauges, HostStanding
from backfill_dagster.monitoring.host_labels import HostLabels
from backfill_dagster.monitoring.memory import current_memory, memory_limit, peak_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Counter

    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.families import Description
    from backfill_dagster.monitoring.work_cost import WorkCost
    from backfill_dagster.network.limits import HostGates
    from backfill_dagster.records.conversion import ConversionReport
    from backfill_dagster.repos.crawl import Progress
    from backfill_dagster.repos.proof import PackReport


class HasProgress(Protocol):
    """How far something is: `done` of `total`; of what, the stage says."""

    total: int
    done: int


AnyProgress = TypeVar("AnyProgress", bound=HasProgress)

# The type of records that are in no table, and are not told apart by what they are.
ALL_TYPES = "all"
# Whose memory is told: that of the process of the run, and that of any worker of it.
RUN, WORKER = "run", "worker"


class Metrics:
    """The metrics of one process: a registry, and in it those of each study that the process works on."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families = Families(self.registry)
        self._hosts = HostGauges()
        self.registry.register(self._hosts)
        self._studies: dict[str, StudyMetrics] = {}

    @property
    def descriptions(self) -> list[Description]:
        """What each family is."""
        return [*self._families.descriptions, *self._hosts.descriptions]

    def of(self, study: Study) -> StudyMetrics:
        """Return the metrics of a study; they go on from stage to stage."""
        return self.named(study.name, study.monitoring.prometheus_hosts)

    def named(self, study: str, hosts: int) -> StudyMetrics:
        """Return the metrics of the study of this name, of which so many hosts are told apart."""
        if study not in self._studies:
            self._studies[study] = made = StudyMetrics(self._families, study, HostLabels(hosts))
            self._hosts.watch(study, made)
        return self._studies[study]


class HostRequests:
    """The requests to the hosts of one label."""

    def __init__(self, families: Families, study: str, label: str) -> None:
        self._labels = (study, label)
        self._requests = families.requests
        self._seconds = families.request_seconds.labels(*self._labels)
        self._received = families.received.labels(*self._labels)
        self._by_outcome: dict[str, Counter] = {}

    def ended(self, outcome: str, seconds: float, received: int) -> None:
        """Count a request with its outcome, which is out of a closed set, and the bytes that it brought."""
        counted = self._by_outcome.get(outcome)
        if counted is None:
            counted = self._by_outcome[outcome] = self._requests.labels(*self._labels, outcome)
        counted.inc()
        self._seconds.observe(seconds)
        if received:
            self._received.inc(received)


class StudyMetrics:
    """The metrics of one study in this process."""

    def __init__(self, families: Families, study: str, labels: HostLabels) -> None:
        self._families = families
        self._study = study
        self._labels = labels
        self._by_label: dict[str, HostRequests] = {}
        self._by_host: dict[str, HostRequests] = {}
        self._gates: HostGates | None = None
        self._workers = 0
        self._worker_peak = 0
        families.build.labels(study, code_version()).set(1)
        families.memory.labels(study).set_function(current_memory)
        families.memory_limit.labels(study).set_function(memory_limit)
        families.memory_peak.labels(study, RUN).set_function(peak_memory)
        families.memory_peak.labels(study, WORKER).set_function(lambda: self._worker_peak)
        families.workers.labels(study).set_function(lambda: self._workers)
        families.queue.labels(study, "requests").set_function(
            lambda: sum(standing.waiting for _, standing in self.standings())
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell that a stage is at work, how long it took and how it ended."""
        labels = (self._study, name)
        active = self._families.stage_active.labels(*labels)
        ended = {
            True: self._families.stage_succeeded.labels(*labels),
            False: self._families.stage_failed.labels(*labels),
        }
        begun, succeeded = time.monotonic(), False
        active.set(1)
        try:
            yield
            succeeded = True
        finally:
            active.set(0)
            self._families.stage_seconds.labels(*labels).set(time.monotonic() - begun)
            ended[succeeded].set_to_current_time()

    def following(
        self, stage: str, on_progress: Callable[[AnyProgress], None]
    ) -> Callable[[AnyProgress], None]:
        """Return what hands progress on, and from the first time on tells how far the stage is."""
        done = self._families.stage_work_done.labels(self._study, stage)
        total = self._families.stage_work.labels(self._study, stage)
        is_followed = False

        def follow(progress: AnyProgress) -> None:
            nonlocal is_followed
            if not is_followed:
                is_followed = True
                done.set_function(lambda: progress.done)
                total.set_function(lambda: progress.total)
            on_progress(progress)

        return follow

    def fetch_progress(self, progress: Progress) -> None:
        """Tell from now on how far a fetch is with its hosts, and how many packs are being written."""
        states: dict[str, Callable[[], int]] = {
            "active": lambda: progress.hosts_active,
            "waiting": lambda: progress.hosts_parked,
            "done": lambda: progress.hosts_done,
            "queued": lambda: (
                progress.hosts - progress.hosts_active - progress.hosts_parked - progress.hosts_done
            ),
        }
        for state, count in states.items():
            self._families.fetch_hosts.labels(self._study, state).set_function(count)
        self._families.queue.labels(self._study, "packs").set_function(lambda: progress.packs_open)

    @contextmanager
    def workers(self, number: int) -> Iterator[None]:
        """Tell that there are so many worker processes while the block lasts."""
        self._workers += number
        try:
            yield
        finally:
            self._workers -= number

    def always_name(self, host: str) -> None:
        """Tell of a host of the study's configuration by its name."""
        self._labels.always(host)
        self._by_host.pop(host, None)

    def name_hosts(self, accounts: Mapping[str, int]) -> None:
        """Tell of the hosts with the most accounts by their names, of the rest together; the first choice holds."""
        self._labels.choose(accounts)
        for host in self._by_host:
            self._by_host[host] = self._of_label(self._labels.of(host))

    def watch_gates(self, gates: HostGates) -> None:
        """Tell from now on of the pauses and limits of the hosts that are asked through these gates."""
        self._gates = gates

    def requests_to(self, host: str) -> HostRequests:
        """Return what counts the requests to a host."""
        requests = self._by_host.get(host)
        if requests is None:
            requests = self._by_host[host] = self._of_label(self._labels.of(host))
        return requests

    def standings(self) -> Iterable[tuple[str, HostStanding]]:
        """Return how each host that was asked stands now, with its label."""
        if self._gates is None:
            return
        for host in list(self._by_host):
            gate = self._gates.known_gate(host)
            if gate is None:
                continue
            pause = gate.parked_for()
            yield (
                self._labels.of(host),
                HostStanding(
                    pause=pause,
                    parked=max(0.0, gate.limited_for() - pause) if pause else 0.0,
                    tokens=gate.state().tokens,
                    rate=gate.rate,
                    under_way=gate.under_way,
                    waiting=gate.waiting,
                ),
            )

    def retried(self, host: str) -> None:
        """Count a try after a failure."""
        self._families.retries.labels(self._study, self._labels.of(host)).inc()

    def attempted(self, host: str, outcome: str, reason: str | None) -> None:
        """Count an account that a fetch is done with; `reason` if it failed."""
        label = self._labels.of(host)
        self._families.attempts.labels(self._study, label, outcome).inc()
        if reason is not None:
            self._families.failures.labels(self._study, label, reason).inc()

    def packed(self, report: PackReport) -> None:
        """Count what a worker has proven, and the pack that it may have written of it."""
        self.worked("repos", "verify", report.cost)
        if report.pack is not None:
            self._families.pack_bytes.labels(self._study).observe(report.bytes_written)
            self._families.packed_accounts.labels(self._study).inc(len(report.written))
            self._families.packed_records.labels(self._study).inc(
                sum(attempt.records for attempt in report.written)
            )

    def worked(self, stage: str, work: str, cost: WorkCost) -> None:
        """Count what a piece of work took; `work` is what it was besides writing."""
        self._families.work_seconds.labels(self._study, stage, work).inc(cost.seconds)
        self._families.work_seconds.labels(self._study, stage, "write").inc(cost.write_seconds)
        # Small work is done by the process of the run itself.
        if cost.process != os.getpid():
            self._worker_peak = max(self._worker_peak, cost.peak_bytes)

    def converted(self, report: ConversionReport) -> None:
        """Count what a worker has converted."""
        self.worked("records", "decode", report.cost)
        for table, fate, _, number in report.counts:
            self._families.converted.labels(self._study, table or ALL_TYPES, fate).inc(number)

    def accounted(
        self, states: Mapping[str, int], kept: Mapping[str, int], *, filtered: int, rejected: int
    ) -> None:
        """Tell of the accounts of the source: how many are in which state, and what their records became.

        `kept` are those in each table.
        """
        # A state that there is no account in any more must not keep its number.
        self._families.accounts.remove_by_labels({"study": self._study})
        for state, number in states.items():
            self._families.accounts.labels(self._study, state).set(number)
        told = [
            *((table, "kept", records) for table, records in kept.items()),
            (ALL_TYPES, "filtered", filtered),
            (ALL_TYPES, "rejected", rejected),
        ]
        for kind, fate, records in told:
            self._families.records.labels(self._study, kind, fate).set(records)

    def _of_label(self, label: str) -> HostRequests:
        if label not in self._by_label:
            self._by_label[label] = HostRequests(self._families, self._study, label)
        return self._by_label[label]


@cache
def unmeasured() -> StudyMetrics:
    """Return what counts for nobody, where nobody asked for metrics; it tells no host apart."""
    return Metrics().named("", 0)
