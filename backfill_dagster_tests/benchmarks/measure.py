"""Measuring subjects against each other in one run, and printing what came out.

A shared machine runs the same code at twice the time from one minute to the next, so figures are only compared
within one run: every round runs each subject once, and the order turns from round to round, so that no subject
always follows the same neighbour.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]

Cell: TypeAlias = str | int | float | None
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of every benchmark.

    `folder` is for generated data and results, and is deleted at the end of the run unless it was named.
    """

    folder: Path
    rounds: int = 5
    cars: tuple[Path, ...] = ()
    atcute: bool = False


# --- timing ---


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to be timed; whether the garbage collector runs meanwhile is the subject's own business.

    What runs in another process that goes on living returns its Cost itself.
    """

    name: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that something took."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each counted round of one subject."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median CPU seconds of a round: this process, with all threads, and its children that ended in it."""
        return statistics.median(self.cpu)

    @property
    def minimum(self) -> float:
        """Least CPU seconds of a round."""
        return min(self.cpu)

    @property
    def median_wall(self) -> float:
        return statistics.median(self.wall)

    @property
    def minimum_wall(self) -> float:
        return min(self.wall)


def interleave(subjects: Sequence[Subject], rounds: int, *, warm_up: bool = True) -> list[Measured]:
    """Time every subject once per round, after one round that is not counted (imports, page cache, allocator)."""
    measured = [Measured(subject.name) for subject in subjects]
    for subject in subjects if warm_up else ():
        _time_once(subject)
    for number in range(rounds):
        for position in range(len(subjects)):
            index = (position + number) % len(subjects)
            cost = _time_once(subjects[index])
            measured[index].cpu.append(cost.cpu)
            measured[index].wall.append(cost.wall)
    return measured


def _time_once(subject: Subject) -> Cost:
    was_enabled = gc.isenabled()
    gc.collect()
    cpu, wall = cpu_seconds(), time.perf_counter()
    try:
        result = subject.run()
        cost = Cost(cpu_seconds() - cpu, time.perf_counter() - wall)
        return result if isinstance(result, Cost) else cost
    finally:
        (gc.enable if was_enabled else gc.disable)()


def without_collector(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same with the garbage collector off, as it is in a worker; `interleave` puts it back."""

    def quiet() -> object:
        gc.disable()
        return run()

    return quiet


def with_collector(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same with the garbage collector on, as it is in an ordinary script."""

    def collected() -> object:
        gc.enable()
        return run()

    return collected


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process with all its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def ratio(numerator: Measured, denominator: Measured) -> float:
    """Return the median over rounds of numerator / denominator, in CPU: what ran side by side is compared."""
    return _median_ratio(numerator.cpu, denominator.cpu)


def wall_ratio(numerator: Measured, denominator: Measured) -> float:
    """Return the median over rounds of numerator / denominator, in wall time."""
    return _median_ratio(numerator.wall, denominator.wall)


def _median_ratio(tops: list[float], bottoms: list[float]) -> float:
    pairs = zip(tops, bottoms, strict=True)
    return statistics.median(top / bottom if bottom else math.inf for top, bottom in pairs)


# --- reporting ---


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit that a measured figure is held against: at least so much, or at most."""

    what: str
    limit: float
    at_least: bool
    measured: float

    @property
    def met(self) -> bool:
        """Whether the figure keeps to the limit; both ends are inside."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class Report:
    """One table of figures, the goals that they answer, and what a reader must know to judge them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()


def report_text(report: Report) -> str:
    """Return a report as Markdown."""
    lines = [f"### {report.title}", ""]
    if report.rows:
        lines += [markdown_table(report.columns, report.rows), ""]
    return "\n".join([*lines, *(f"{note}\n" for note in report.notes)])


def report_json(report: Report) -> dict[str, Any]:
    """Return a report as what `json.dumps` takes."""
    return {
        "title": report.title,
        "columns": list(report.columns),
        "rows": [list(row) for row in report.rows],
        "goals": [
            {
                "what": goal.what,
                "limit": goal.limit,
                "at_least": goal.at_least,
                "measured": goal.measured,
                "met": goal.met,
            }
            for goal in report.goals
        ],
        "notes": list(report.notes),
    }


def goals_text(goals: Sequence[Goal]) -> str:
    """Return a table of goals, limits, measured figures and whether each is met, as Markdown."""
    rows = [
        (
            goal.what,
            f"{'≥' if goal.at_least else '≤'} {_text(goal.limit)}",
            goal.measured,
            "met" if goal.met else "NOT met",
        )
        for goal in goals
    ]
    return markdown_table(("what", "goal", "measured", ""), rows)


def timing_rows(measured: Sequence[Measured], records: int, base: Measured) -> list[list[Cell]]:
    """Return a row of TIMING_COLUMNS for each subject; the ratio is of its CPU to that of `base`."""
    return [
        [
            one.name,
            1000 * one.median,
            1000 * one.minimum,
            1e6 * one.median / records,
            1e6 * one.minimum / records,
            ratio(one, base),
        ]
        for one in measured
    ]


TIMING_COLUMNS = ("CPU", "median ms", "min ms", "µs/record median", "µs/record min", "ratio")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return an aligned Markdown table; figures stand right, with three digits that count."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(text) for text in column)) for column in zip(columns, *cells, strict=True)]
    right = [
        all(isinstance(row[place], int | float | None) for row in rows) and bool(rows)
        for place in range(len(columns))
    ]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(texts, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, right, strict=True)
    ]
    return "\n".join([line(columns), line(rule), *map(line, cells)])


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:#.3g}".rstrip(".")


# --- one subject in a process of its own ---


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most memory that a process held, in bytes.

    `resident` is the kernel's own high-water mark, mapped file pages included; `anonymous` leaves those out, which
    the kernel can drop at any time, and is sampled. (`ru_maxrss` would begin with what the parent held at the fork.)
    """

    resident: int
    anonymous: int


@dataclass(frozen=True, slots=True)
class FreshRun(Generic[_Result]):
    """What a call in a process of its own returned and cost; CPU with the processes that it started itself."""

    result: _Result
    cpu: float
    wall: float
    own: Peaks
    children: tuple[Peaks, ...]


def run_fresh(
    call: Callable[..., _Result], *arguments: Any, polars_threads: int | None = 1
) -> FreshRun[_Result]:
    """Call a module's function in a new Python process and return what it returned, with its cost and its memory.

    Function, arguments and result are pickled. Polars reads its number of threads once, when it is first imported:
    here it is set before that; None leaves one per core. Raises CalledProcessError if the call raised; its
    traceback stands on standard error.
    """
    environment = {name: value for name, value in os.environ.items() if name != "POLARS_MAX_THREADS"}
    if polars_threads is not None:
        environment["POLARS_MAX_THREADS"] = str(polars_threads)
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "question"), Path(folder, "answer")
        question.write_bytes(pickle.dumps((call, arguments)))
        code = f"from {__name__} import _answer; _answer({str(question)!r}, {str(answer)!r})"
        run = run_command([sys.executable, "-c", code], environment)
        result, resident = pickle.loads(answer.read_bytes())
    # The sampling misses what the process takes up last.
    own = Peaks(max(resident, run.own.resident), run.own.anonymous)
    return FreshRun(result, run.cpu, run.wall, own, run.children)


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path = ROOT,
    output: BinaryIO | None = None,
) -> FreshRun[None]:
    """Run a command to its end in a folder, and return its cost and memory. Raises CalledProcessError."""
    adopt_orphans()
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
    )
    peaks, status, usage = _watch(process.pid)
    wall = time.perf_counter() - started
    # Waited for above, where what it used can be had.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    own = peaks.pop(process.pid)
    cpu = usage.ru_utime + usage.ru_stime + orphans_cpu_seconds(process.pid)
    return FreshRun(None, cpu, wall, own, tuple(peaks.values()))


def adopt_orphans() -> None:
    """Become the parent of what children leave behind, as the process that workers are forked off: it counts."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def orphans_cpu_seconds(session: int) -> float:
    """Wait for what a child that has ended, and that began this session, left behind; return what that has used."""
    total = 0.0
    for orphan in _children(os.getpid()):
        fields = Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()
        if int(fields[3]) == session:
            usage = os.wait4(orphan, 0)[2]
            total += usage.ru_utime + usage.ru_stime
    return total


# See prctl(2).
_PR_SET_CHILD_SUBREAPER = 36


def _answer(question: str, answer: str) -> None:
    call, arguments = pickle.loads(Path(question).read_bytes())
    result = call(*arguments)
    Path(answer).write_bytes(pickle.dumps((result, peak_resident())))


def peak_resident() -> int:
    """Return the most memory in bytes that this process has held until now."""
    return memory_of(os.getpid()).resident


def _watch(pid: int) -> tuple[dict[int, Peaks], int, resource.struct_rusage]:
    """Wait for a child to end; return the peaks of it and its descendants, its status and what it used."""
    peaks: dict[int, Peaks] = {}
    while True:
        for one in (pid, *descendants(pid)):
            now, before = memory_of(one), peaks.get(one, Peaks(0, 0))
            peaks[one] = Peaks(max(now.resident, before.resident), max(now.anonymous, before.anonymous))
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return peaks, status, usage
        time.sleep(_SAMPLE_SECONDS)


_SAMPLE_SECONDS = 0.05


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that these have, as far as they are alive."""
    for child in _children(pid):
        yield child
        yield from descendants(child)


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def memory_of(pid: int) -> Peaks:
    """Return the high-water mark of a process, and what it holds of its own now; zeros for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Peaks(0, 0)
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return Peaks(*(1024 * int(lines.get(name, "0 kB").split()[0]) for name in ("VmHWM", "RssAnon")))
