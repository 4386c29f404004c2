"""Every family of metrics: its name, its type, its labels and what it means.

Names begin with `backfill_` and end in their base unit; seconds and bytes. No label is made of anything but closed
sets, the configuration, and the hosts of `HostLabels`. None names an account.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# When each series was made tells nothing that Prometheus does not know, and would double their number.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From an answer of a neighbour to the longest that a repository may take.
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
PACK_BYTES = tuple(2.0**power for power in range(14, 32, 2))

_STUDY = ("study",)
_HOST = ("study", "host")
_STAGE = ("study", "stage")


@dataclass(frozen=True, slots=True)
class Description:
    """One family, as its documentation has it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Families:
    """The families of one registry; `descriptions` are those of all of them, in order."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.descriptions: list[Description] = []

        def described(kind: str, name: str, meaning: str, labels: tuple[str, ...]) -> str:
            whole_name = f"backfill_{name}"
            self.descriptions.append(Description(whole_name, kind, labels, meaning))
            return whole_name

        def counter(name: str, meaning: str, labels: tuple[str, ...]) -> Counter:
            return Counter(described("counter", name, meaning, labels), meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(described("gauge", name, meaning, labels), meaning, labels, registry=registry)

        def histogram(
            name: str, meaning: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            whole_name = described("histogram", name, meaning, labels)
            return Histogram(whole_name, meaning, labels, buckets=buckets, registry=registry)

        self.build = gauge("build_info", "Always 1; the version of the code that runs.", ("study", "version"))

        self.stage_active = gauge("stage_active", "1 while the stage is at work, else 0.", _STAGE)
        self.stage_work = gauge(
            "stage_work",
            "What the stage has to do: DIDs of the directory, accounts of repos, packs of records.",
            _STAGE,
        )
        self.stage_work_done = gauge("stage_work_done", "How much of it is done.", _STAGE)
        self.stage_seconds = gauge(
            "stage_duration_seconds", "How long the stage took when it last ran.", _STAGE
        )
        self.stage_succeeded = gauge(
            "stage_succeeded_timestamp_seconds",
            "When the stage last succeeded in this process, in Unix time; 0 if it did not.",
            _STAGE,
        )
        self.stage_failed = gauge(
            "stage_failed_timestamp_seconds",
            "When the stage last failed in this process, in Unix time; 0 if it did not.",
            _STAGE,
        )

        self.requests = counter(
            "requests_total",
            "Requests that were sent, by how they ended: the class of the answer's status, or why there was none.",
            (*_HOST, "outcome"),
        )
        self.request_seconds = histogram(
            "request_duration_seconds",
            "From a request's turn to the last byte of its answer, or to its failure.",
            _HOST,
            REQUEST_SECONDS,
        )
        self.received = counter("received_bytes_total", "Bytes of the bodies of whole answers.", _HOST)
        self.retries = counter(
            "retries_total",
            "Tries after a failure; asking again after a pause that the host wanted is none.",
            _HOST,
        )

        self.attempts = counter(
            "account_attempts_total",
            "Accounts that a fetch has settled or given up, by how the attempt ended.",
            (*_HOST, "outcome"),
        )
        self.failures = counter(
            "account_failures_total", "Accounts that a fetch has given up, by the reason.", (*_HOST, "reason")
        )
        self.fetch_hosts = gauge(
            "fetch_hosts",
            "Hosts of the fetch by what they do: queued, active, waiting (for the host, a retry or another run), done.",
            ("study", "state"),
        )
        self.accounts = gauge(
            "accounts",
            "The source's accounts by their state, as the table of accounts last had it.",
            ("study", "state"),
        )

        self.converted = counter(
            "converted_records_total",
            "Records that were converted, by type and fate; one that is converted again counts again.",
            ("study", "type", "fate"),
        )
        self.records = gauge(
            "records",
            "Records of the source's accounts by type and fate, as the table of accounts last had it: those kept by "
            "table, the others as `all`.",
            ("study", "type", "fate"),
        )

        self.queue = gauge(
            "queue_length",
            "What waits: requests for their turn, full packs to be proven and written.",
            ("study", "queue"),
        )
        self.work_seconds = counter(
            "work_seconds_total",
            "Seconds of the workers, all together: to verify and write packs, to decode and write records, to build "
            "and write tables.",
            (*_STAGE, "work"),
        )
        self.pack_bytes = histogram("pack_size_bytes", "Sizes of the packs written.", _STUDY, PACK_BYTES)
        self.packed_accounts = counter("packed_accounts_total", "Accounts in the packs written.", _STUDY)
        self.packed_records = counter("packed_records_total", "Records in the packs written.", _STUDY)

        self.memory = gauge("memory_bytes", "Resident memory of the process that runs the study.", _STUDY)
        self.memory_peak = gauge(
            "memory_peak_bytes",
            "The most resident memory that one process has had: the run's own, or any worker of it.",
            ("study", "process"),
        )
        self.memory_limit = gauge(
            "memory_limit_bytes", "Memory of the machine or, if it is less, of the container.", _STUDY
        )
        self.workers = gauge("workers", "Worker processes that are at hand now.", _STUDY)
