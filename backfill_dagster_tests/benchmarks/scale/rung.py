"""One rung of the ladder: a study of so many accounts on so many hosts, run as a command line runs it, and looked at.

The job is run three times on one folder, each in a process of its own: on a few accounts, which counts for nothing
but tells the study how large a repository is, for on no disk the assumed size would do for 400,000; on all accounts,
which is what is measured; and once more, with nothing left to do.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import yaml

from backfill_dagster_tests.benchmarks import dagster_share
from backfill_dagster_tests.benchmarks.measure import ROOT
from backfill_dagster_tests.benchmarks.scale.frame import did_of, frame_of, whole_accounts
from backfill_dagster_tests.benchmarks.scale.server import served
from backfill_dagster_tests.benchmarks.scale.trees import write_trees
from backfill_dagster_tests.benchmarks.scale.watching import Watched, watch_command
from backfill_dagster_tests.benchmarks.start_up import command, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.scale.server import ServedNetwork

STUDY = "scale"
# What the first run is of: enough repositories for their mean size to be believed.
_FIRST_ACCOUNTS = 60
# Assets that are told of together.
_TABLES = ("posts", "replies", "likes", "reposts", "follows", "blocks")
_STAGE_OF_ASSET = {**dict.fromkeys(_TABLES, "tables"), "undated": "tables"}
START_UP, BETWEEN = "start-up", "between the stages"


@dataclass(frozen=True, slots=True)
class RungSettings:
    """What a rung is of: one record that is written stands for `shrink` of a real repository."""

    accounts: int
    hosts: int
    shrink: float

    @property
    def name(self) -> str:
        """How it is called in files."""
        return f"{self.accounts}-accounts-{self.hosts}-hosts-{self.shrink:g}"


@dataclass(slots=True)
class Stage:
    """What one stage took: CPU seconds of the parent and of its workers, and the most that both were seen to hold."""

    parent_cpu: float = 0.0
    workers_cpu: float = 0.0
    wall: float = 0.0
    parent_bytes: int = 0
    worker_bytes: int = 0

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes."""
        return self.parent_cpu + self.workers_cpu


@dataclass(frozen=True, slots=True)
class JobRun:
    """What one run of the job took: CPU and wall seconds, peaks in bytes, events in Dagster's history, requests."""

    cpu: float
    wall: float
    parent_peak: int
    worker_peak: int
    runs: int
    events: int
    events_by_type: dict[str, int]
    history_bytes: int
    requests: int
    received_bytes: int
    server_cpu: float
    stages: dict[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rung:
    """What a rung came to. `without` is the CPU of the same work by the stage functions, without Dagster."""

    settings: RungSettings
    load: float
    records: int
    complete: int
    packs: int
    stored_bytes: int
    files: int
    first: JobRun
    again: JobRun
    without: float | None

    @property
    def cpu_per_account(self) -> float:
        """CPU seconds of the run on all accounts, for each of them."""
        return self.first.cpu / self.settings.accounts


def climb(folder: Path, settings: RungSettings, *, without_dagster: bool) -> Rung:
    """Run a rung in a folder, which is emptied before. Raises CalledProcessError if a run fails."""
    shutil.rmtree(folder, ignore_errors=True)
    frame = frame_of(settings.accounts, settings.hosts)
    with served(frame, write_trees(settings.shrink)) as network:
        write_study(folder, network)
        write_source(folder, range(_FIRST_ACCOUNTS))
        _run(folder, network)
        write_source(folder, range(settings.accounts))
        load = os.getloadavg()[0]
        first, again = _run(folder, network), _run(folder, network)
        stored = _stored(folder)
        if stored["complete"] != whole_accounts(settings.accounts):
            raise RuntimeError(f"{stored['complete']:,} accounts are complete, and not all that there are")
        without = _run_without(folder, network) if without_dagster else None
    return Rung(settings, load, **stored, first=first, again=again, without=without)


def write_study(folder: Path, network: ServedNetwork) -> None:
    """Write the configuration of a study of this network, with nothing but its pace out of the ordinary."""
    (folder / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "dagster.yaml", folder)
    study = {
        "name": STUDY,
        "source": {"type": "csv", "path": str(folder / "dids.csv"), "column": "did"},
        "storage": {"path": str(folder / "data")},
        "time_range": {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"},
        # Time is compressed by these rates alone.
        "processing": {"requests_per_second": 1000, "workers": 2},
        "automation": {"on_new_data": False},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
        },
    }
    (folder / "configs" / f"{STUDY}.yaml").write_text(yaml.safe_dump({"backfill": study}))


def write_source(folder: Path, numbers: range) -> None:
    """Write the study's list: the accounts of these numbers."""
    # As lists are: in an order that has nothing to do with hosts.
    dids = sorted(map(did_of, numbers))
    (folder / "dids.csv").write_text("\n".join(["did", *dids]) + "\n")


def _run(folder: Path, network: ServedNetwork) -> JobRun:
    network.take_asked()
    with _opened_history(folder) as instance:
        before = {run.run_id for run in instance.get_runs()}
    watched = watch_command(command(STUDY), environment(), folder, folder / "run.log")
    asked = network.take_asked()
    stages, events = _by_stage(folder, before, watched)
    return JobRun(
        watched.cpu,
        watched.wall,
        watched.parent_peak,
        watched.worker_peak,
        runs=len(events),
        events=sum(map(Counter.total, events)),
        events_by_type=dict(sum(events, Counter()).most_common()),
        history_bytes=_size_below(folder / ".dagster"),
        requests=asked.requests,
        received_bytes=asked.repo_bytes,
        server_cpu=asked.cpu,
        stages={name: stages[name] for name in stages},
    )


def _run_without(folder: Path, network: ServedNetwork) -> float:
    """Do the same by the stage functions alone, on a study of its own; return CPU seconds."""
    shutil.rmtree(folder / "data")
    stages = [sys.executable, "-m", dagster_share.__name__, f"configs/{STUDY}.yaml"]
    watched = None
    for accounts in (_FIRST_ACCOUNTS, network.frame.accounts):
        write_source(folder, range(accounts))
        watched = watch_command(stages, environment(), folder, folder / "run.log")
    assert watched is not None
    return watched.cpu


def _by_stage(
    folder: Path, before: set[str], watched: Watched
) -> tuple[dict[str, Stage], list[Counter[str]]]:
    """Return what each stage took, by the times at which Dagster's history has it begin and end; and all events."""
    stages: defaultdict[str, Stage] = defaultdict(Stage)
    counted: list[Counter[str]] = []
    begun = watched.looks[-1].at
    with _opened_history(folder) as instance:
        for run in reversed(instance.get_runs()):
            if run.run_id in before:
                continue
            entries = instance.all_logs(run.run_id)
            types = Counter(_type_of(entry) for entry in entries)
            counted.append(types)
            for step, (start, end) in _step_times(entries).items():
                # The ops of the one command hold the stages' runs and are no stages themselves.
                if run.job_name.startswith(f"{STUDY}_stage"):
                    asset = step.removeprefix(f"{STUDY}__")
                    _add(stages[_STAGE_OF_ASSET.get(asset, asset)], watched, start, end)
                    begun = min(begun, start)
    _add(stages[START_UP], watched, watched.looks[0].at, begun)
    last = watched.looks[-1]
    known = list(stages.values())
    between = stages[BETWEEN]
    between.parent_cpu = last.parent_cpu - sum(stage.parent_cpu for stage in known)
    between.workers_cpu = last.others_cpu - sum(stage.workers_cpu for stage in known)
    between.wall = last.at - watched.looks[0].at - sum(stage.wall for stage in known)
    return dict(stages), counted


def _type_of(entry: dg.EventLogEntry) -> str:
    return entry.dagster_event_type.value if entry.dagster_event_type else "LOG_MESSAGE"


def _step_times(entries: Sequence[dg.EventLogEntry]) -> dict[str, tuple[float, float]]:
    starts: dict[str, float] = {}
    times: dict[str, tuple[float, float]] = {}
    for entry in entries:
        step = entry.step_key
        if step is None:
            continue
        if _type_of(entry) == dg.DagsterEventType.STEP_START.value:
            starts[step] = entry.timestamp
        elif _type_of(entry) == dg.DagsterEventType.STEP_SUCCESS.value:
            times[step] = starts[step], entry.timestamp
    return times


def _add(stage: Stage, watched: Watched, start: float, end: float) -> None:
    if end <= start:
        return
    before, after = watched.cpu_at(start), watched.cpu_at(end)
    stage.parent_cpu += after[0] - before[0]
    stage.workers_cpu += after[1] - before[1]
    stage.wall += end - start
    parent, worker = watched.peaks_within(start, end)
    stage.parent_bytes = max(stage.parent_bytes, parent)
    stage.worker_bytes = max(stage.worker_bytes, worker)


class _opened_history:  # noqa: N801  used like a function
    """Dagster's instance of a folder, as a command that runs in it has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> dg.DagsterInstance:
        self._where = chdir(self._folder)
        self._where.__enter__()
        self._instance = dg.DagsterInstance.from_config(str(self._folder))
        return self._instance

    def __exit__(self, *error: object) -> None:
        self._instance.dispose()
        self._where.__exit__(*error)


def _stored(folder: Path) -> dict[str, Any]:
    root = folder / "data" / STUDY
    accounts = pl.read_parquet(root / "accounts.parquet")
    packs = [path for path in root.glob("repos/*/*.parquet") if ".blocks-" not in path.name]
    return {
        "records": int(accounts["records_fetched"].sum()),
        "complete": accounts.filter(pl.col("state") == "complete").height,
        "packs": len(packs),
        "stored_bytes": _size_below(root),
        "files": sum(1 for path in root.rglob("*") if path.is_file()),
    }


def _size_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rung_json(rung: Rung) -> dict[str, Any]:
    """Return a rung as what `json.dumps` takes."""
    return asdict(rung)


def rung_of(told: dict[str, Any]) -> Rung:
    """Return the rung that `rung_json` told of."""

    def run(of: dict[str, Any]) -> JobRun:
        return JobRun(**{**of, "stages": {name: Stage(**stage) for name, stage in of["stages"].items()}})

    return Rung(
        **{
            **told,
            "settings": RungSettings(**told["settings"]),
            "first": run(told["first"]),
            "again": run(told["again"]),
        }
    )
