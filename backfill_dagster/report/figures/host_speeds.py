"""Hosts by size and speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from backfill_dagster.report.drawing import BLUE, FAINT, INK, VERMILLION, Drawing, lay_out, new_figure
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.hosts import MIN_ACCOUNTS_TO_NAME, is_named, megabytes_per_second
from backfill_dagster.report.wording import compact, counted, plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from backfill_dagster.report.markup import Cell
    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "host-speeds"
_LISTED = 25
_LABELLED_LARGEST = 4
_LABELLED_SLOWEST = 4
_HOST_CHARACTERS = 42
# A host that lost more of its accounts than this is marked.
_MANY_FAILED = 0.1
# Points around a number where no other stands.
_FREE = 9
# More hosts than these would hide one another.
_CROWD = 100
_ALIKE = 5
_SPREAD = 0.3
_GOLDEN_RATIO = 0.6180339887498949
# An axis that spans less than this factor has ticks between the powers of ten.
_FEW_DECADES = 300


@dataclass(frozen=True, slots=True)
class _Label:
    """A host that is named in the drawing, by a number at its point and a line beside the axes."""

    number: int
    accounts: int
    speed: float
    host: str

    @property
    def line(self) -> str:
        """What stands beside the axes."""
        return f"{self.number}  {self.host}\n    {self.accounts:,} accounts, {self.speed:.3g} MB/s"


def host_speeds(numbers: ReportNumbers) -> ReportFigure:
    """Show a point per host on logarithmic axes, and name the largest and the slowest."""
    hosts = numbers.hosts.with_columns(speed=megabytes_per_second())
    timed = hosts.drop_nulls("speed")
    labels = _labels(timed)
    return ReportFigure(
        name=_NAME,
        title=_title(hosts, timed),
        caption=(
            "Each point is a host (PDS): to the right are hosts with more of the study's accounts, further up hosts "
            "whose repositories came faster. Both axes are logarithmic. Speed is the sum of the bytes of all whole "
            "repositories divided by the sum of the times of their downloads: that of one download, of which several "
            "run at once, without the pauses that politeness asks for. A triangle has more than "
            f"{100 * _MANY_FAILED:.0f} % of its accounts failed. Hosts from which nothing came whole have no speed "
            "and stand below the axis as crosses. Where hosts are many, those of as many accounts are moved a little "
            "sideways, so that they can be told apart. Hosts with few or small repositories are slow by the time that "
            "any answer takes; that says little about them. Numbered are the largest hosts, and the slowest of those "
            f"larger than the mean. Hosts with fewer than {MIN_ACCOUNTS_TO_NAME} of the study's accounts are not "
            "named, because the name of a host that serves one person can be that person's handle."
        ),
        alt=_alt(hosts, timed, labels),
        drawing=Drawing(_draw, (hosts, labels)) if hosts.height else None,
        tables=(_table(hosts),),
    )


def _title(hosts: pl.DataFrame, timed: pl.DataFrame) -> str:
    if hosts.is_empty():
        return "No account has a known host"
    accounts = int(hosts["accounts"].sum())
    largest = hosts["accounts"].to_list()[0]
    spread = f"{counted(accounts, 'account')} on {counted(hosts.height, 'host')}"
    if hosts.height > 1:
        spread += f", {largest:,} of them on the largest"
    if timed.is_empty():
        return f"{spread}; none served a whole repository yet"
    [speed] = timed.select(pl.col("speed").median()).to_series().to_list()
    return f"{spread}; the median host sends {speed:.3g} MB/s in a download"


def _labels(timed: pl.DataFrame) -> list[_Label]:
    """Choose the largest hosts, and the slowest of those that are larger than the mean."""
    named = timed.filter(is_named())
    largest = named.head(_LABELLED_LARGEST)
    # Of those with accounts enough that their speed matters to the whole.
    slowest = (
        named.filter(pl.col("accounts") >= pl.col("accounts").mean())
        .sort("speed", "pds_host")
        .head(_LABELLED_SLOWEST)
    )
    chosen = pl.concat([largest, slowest]).unique("pds_host", maintain_order=True)
    return [
        _Label(
            number,
            row["accounts"],
            row["speed"],
            plain_text(row["pds_host"], _HOST_CHARACTERS),
        )
        for number, row in enumerate(chosen.iter_rows(named=True), start=1)
    ]


def _draw(hosts: pl.DataFrame, labels: list[_Label]) -> Figure:
    timed, untimed = hosts.drop_nulls("speed"), hosts.filter(pl.col("speed").is_null())
    has_strip = bool(untimed.height and timed.height)
    figure = new_figure((3.2 if timed.height else 0.8) + 0.28 * -(-len(labels) // 2))
    rows = figure.subplots(
        2 if has_strip else 1, 1, sharex=True, squeeze=False, height_ratios=[12, 1] if has_strip else None
    )[:, 0]
    key = []
    if timed.height:
        key += _scatter(rows[0], timed)
    if untimed.height:
        key.append(_cross_out(rows[-1], untimed["accounts"].to_list()))
    rows[-1].set_xscale("log")
    # Half an account's room beside a host of one.
    most = max(hosts["accounts"].to_list())
    rows[-1].set_xlim(0.7, most * 1.6)
    rows[-1].xaxis.set_major_locator(_ticks(1, most))
    rows[-1].xaxis.set_major_formatter(FuncFormatter(lambda number, _: compact(number)))
    rows[-1].xaxis.set_minor_formatter(NullFormatter())
    rows[-1].set_xlabel("accounts of the study on the host (logarithmic)")
    figure.legend(handles=key, loc="outside upper right", ncols=len(key), fontsize=7.5, handletextpad=0.2)
    if labels:
        named = [Line2D([], [], linestyle="none", label=label.line) for label in labels]
        figure.legend(
            handles=named, loc="outside lower left", ncols=2, fontsize=7, handlelength=0, handletextpad=0
        )
        # The points must be where they stay before numbers are put beside them.
        lay_out(figure)
        _number_points(rows[0], labels)
    return figure


def _scatter(axes: Axes, timed: pl.DataFrame) -> list[Line2D]:
    lossy = pl.col("failed") > _MANY_FAILED * pl.col("accounts")
    placed = timed.with_columns(place=_spread() if timed.height > _CROWD else pl.col("accounts"))
    key = []
    for rows, marker, colour, name in (
        (placed.filter(~lossy), "o", BLUE, "host"),
        (placed.filter(lossy), "^", VERMILLION, f"host with more than {100 * _MANY_FAILED:.0f} % failed"),
    ):
        if rows.height:
            [line] = axes.plot(
                rows["place"].to_list(),
                rows["speed"].to_list(),
                linestyle="none",
                marker=marker,
                markersize=6 if timed.height <= _CROWD else 3,
                markerfacecolor=colour,
                markeredgewidth=0,
                alpha=0.4 if timed.height > _CROWD and marker == "o" else 0.9,
                label=name,
            )
            key.append(line)
    axes.set_yscale("log")
    speeds = timed["speed"].to_list()
    axes.set_ylim(min(speeds) / 1.8, max(speeds) * 1.8)
    axes.yaxis.set_major_locator(_ticks(min(speeds), max(speeds)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("MB per second of a download\n(logarithmic)")
    axes.grid(visible=True)
    return key


def _spread() -> pl.Expr:
    """Move hosts of as many accounts a little sideways, each by another amount, and the same one each time."""
    rank = pl.int_range(pl.len()).over("accounts")
    # Fractional parts of multiples of the golden ratio fill an interval evenly, however many there are.
    moved = pl.col("accounts") * (1 + _SPREAD * ((rank * _GOLDEN_RATIO) % 1 - 0.5))
    return pl.when(pl.len().over("accounts") > _ALIKE).then(moved).otherwise("accounts")


def _ticks(least: float, most: float) -> LogLocator:
    return LogLocator(subs=(1, 2, 5) if most < _FEW_DECADES * least else (1,))


def _cross_out(axes: Axes, accounts: list[int]) -> Line2D:
    [line] = axes.plot(
        accounts, [0] * len(accounts), linestyle="none", marker="x", color=INK, markersize=4, alpha=0.6
    )
    line.set_label("nothing came whole")
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    for spine in ("left", "bottom"):
        axes.spines[spine].set_color(FAINT)
    return line


def _number_points(axes: Axes, labels: list[_Label]) -> None:
    """Put each label's number beside its point, on the side where no number stands yet."""
    taken: list[tuple[float, float]] = []
    points = 72 / axes.figure.dpi
    for label in labels:
        x, y = (float(place) * points for place in axes.transData.transform((label.accounts, label.speed)))
        offset = next(
            (
                side
                for side in _sides()
                if all(abs(x + side[0] - a) > _FREE or abs(y + side[1] - b) > _FREE for a, b in taken)
            ),
            (0, _FREE),
        )
        taken.append((x + offset[0], y + offset[1]))
        axes.annotate(
            str(label.number),
            (label.accounts, label.speed),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": INK, "shrinkA": 1, "shrinkB": 1},
        )


def _sides() -> Iterable[tuple[int, int]]:
    """Yield offsets around a point in points, nearest first."""
    for distance in (10, 20, 30):
        for x, y in ((1, 0), (0, 1), (1, 1), (1, -1), (0, -1), (-1, 1), (-1, 0), (-1, -1)):
            yield x * distance, y * distance


def _table(hosts: pl.DataFrame) -> NumbersTable:
    """List the largest hosts that may be named, and sum up all others."""
    named = hosts.filter(is_named()).head(_LISTED)
    others = hosts.join(named, on="pds_host", how="anti")
    rows = [_row(plain_text(row["pds_host"]), row) for row in named.iter_rows(named=True)]
    for name, part in (
        (f"{counted(others.height, 'host')} with fewer accounts", others),
        ("all hosts", hosts),
    ):
        if part.height:
            rows.append(_row(name, part.select(pl.exclude("pds_host").sum()).row(0, named=True)))
    return NumbersTable(
        _NAME,
        f"The largest hosts (at most {_LISTED}) and the sum of all others",
        ("host", "accounts", "complete", "failed", "whole downloads", "MB", "seconds of downloads", "MB/s"),
        tuple(rows),
    )


def _row(name: str, row: dict[str, float]) -> tuple[Cell, ...]:
    speed = row["bytes"] / row["seconds"] / 1e6 if row["seconds"] else None
    counts = (int(row[column]) for column in ("accounts", "complete", "failed", "downloads"))
    return (name, *counts, row["bytes"] / 1e6, row["seconds"], speed)


def _alt(hosts: pl.DataFrame, timed: pl.DataFrame, labels: list[_Label]) -> str:
    if timed.is_empty():
        return f"{counted(hosts.height, 'host')}, none with a speed."
    told = "; ".join(" ".join(label.line.split()[1:]) for label in labels)
    speeds = timed["speed"].to_list()
    range_of_speeds = f"{min(speeds):.3g} to {max(speeds):.3g} MB/s"
    return f"Scatter of {counted(timed.height, 'host')} by accounts and speed, from {range_of_speeds}. {told}"
