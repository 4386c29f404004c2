"""What was lost on the way from the source to the tables, step by step, and where more was lost than elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.attrition.steps import NO_ACCOUNT, STEPS, Breakdown, Step, Unit, totals
from backfill_dagster.report.drawing import (
    BLUE,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Drawing,
    count_axis,
    new_figure,
)
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.hosts import MIN_ACCOUNTS_TO_NAME
from backfill_dagster.report.wording import counted, percent, plain_text, spaced_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from backfill_dagster.report.numbers import ReportNumbers

_STEPS_NAME, _CLASSES_NAME = "attrition", "losses"
_STARTS = {Unit.ACCOUNTS: "entries of the source", Unit.RECORDS: "records there were, or asked for"}
# What a study leaves out by its own choice is no loss that could bias it unknowingly.
_BY_CHOICE = frozenset({Step.VALID, Step.DISTINCT, Step.WANTED, Step.ASKED, Step.IN_TABLES, Step.CHOSEN})
# Hosts that a figure names, largest first.
_MAX_HOSTS = 12
_BREAKDOWNS = (
    (Breakdown.HOST, "by host"),
    (Breakdown.ACTIVITY, "by tenth of the accounts, from the quietest to the most active"),
    (Breakdown.AGE, "by age of the account"),
)
_CLASS_SCHEMA = pl.Schema(
    {
        "class": pl.String(),
        "accounts": pl.Int64(),
        "accounts_lost": pl.Int64(),
        "records": pl.Int64(),
        "records_lost": pl.Int64(),
    }
)


def attrition(numbers: ReportNumbers) -> ReportFigure:
    """Show what is left after each step, and what the step lost; accounts and records on scales of their own."""
    table = numbers.attrition
    steps = {unit: totals(table, unit) for unit in Unit}
    given, arrived = _ends(steps[Unit.ACCOUNTS])
    found, dated = _ends(steps[Unit.RECORDS])
    title = (
        f"Of {counted(given, 'entry').replace('entrys', 'entries')} of the source, {arrived:,} are accounts in the "
        f"tables; of {counted(found, 'record')}, {dated:,} stand there with a date"
        if given
        else "The source gave nothing"
    )
    rows = [
        (unit.value, spaced_name(step), entered, lost, left, _reasons(reasons))
        for unit in Unit
        for step, (entered, lost, left, reasons) in steps[unit].items()
    ]
    told = "; ".join(
        f"{unit.value}: {', '.join(f'{left:,} {spaced_name(step)}' for step, (_, _, left, _) in steps[unit].items())}"
        for unit in Unit
    )
    return ReportFigure(
        name=_STEPS_NAME,
        title=title,
        caption=(
            "What passes each step (solid) and what the step loses (hatched), from the source to the tables. "
            "Each entry, account and record is lost at one step and for one reason, the first that holds of "
            "it, so that what leaves a step is what enters the next. An account that was collected once "
            "counts as resolved, reached and complete, whatever became of it later; whether it is still there "
            "is the step `active`. The panels have scales of their own."
        ),
        alt=f"Bars of what is left after each step. {told}." if given else title,
        drawing=Drawing(draw_steps, (table,)) if given else None,
        tables=(
            NumbersTable(
                _STEPS_NAME,
                "Losses by step",
                ("of", "step", "entered", "lost", "left", "reasons"),
                tuple(rows),
            ),
        ),
    )


def losses(numbers: ReportNumbers) -> ReportFigure:
    """Show the share lost of each host's accounts and records, of active and quiet, old and young accounts."""
    table = numbers.attrition
    classes = {breakdown: _classes(table, breakdown) for breakdown, _ in _BREAKDOWNS}
    told = "; ".join(
        f"{words}: {', '.join(f'{plain_text(name)} {percent(gone, of)}' for name, of, gone, *_ in rows.iter_rows())}"
        for (_, words), rows in zip(_BREAKDOWNS, classes.values(), strict=True)
    )
    accounts = int(classes[Breakdown.HOST]["accounts"].sum())
    lost = int(classes[Breakdown.HOST]["accounts_lost"].sum())
    title = (
        f"{lost:,} of {counted(accounts, 'account')} lost ({percent(lost, accounts)}), by host, activity and age"
        if accounts
        else "There is no account to lose"
    )
    return ReportFigure(
        name=_CLASSES_NAME,
        title=title,
        caption=(
            "Lost are accounts that did not resolve, were not reached, did not arrive whole or are not active "
            "any more, and records that did not exist any more, could not be used, went with their account, "
            "or have no date; what the study leaves out by its own choice is not among them. A loss that "
            "falls on some hosts, or on active or young accounts, is a bias. How active or how old an account "
            "is, is known only of accounts that were collected once; all others are `unknown`. Hosts with "
            f"fewer than {MIN_ACCOUNTS_TO_NAME} accounts, and all but the {_MAX_HOSTS} largest, stand "
            "together; attrition.parquet has all."
        ),
        alt=f"Bars of shares of accounts lost. {told}." if accounts else title,
        drawing=Drawing(_draw_classes, (classes,)) if accounts else None,
        tables=tuple(
            NumbersTable(
                f"{_CLASSES_NAME}-{breakdown.value}",
                f"Losses {words}",
                ("class", "accounts", "lost", "share", "records", "lost", "share"),
                tuple(
                    (
                        plain_text(name),
                        accounts,
                        lost,
                        percent(lost, accounts),
                        records,
                        gone,
                        percent(gone, records),
                    )
                    for name, accounts, lost, records, gone in classes[breakdown].iter_rows()
                ),
            )
            for breakdown, words in _BREAKDOWNS
        ),
    )


def draw_steps(table: pl.DataFrame) -> Figure:
    """Draw a table of attrition (ATTRITION_SCHEMA), in the report's style."""
    heights = [len(STEPS[unit]) + 1.8 for unit in Unit]
    figure = new_figure(0.21 * sum(heights) + 0.4)
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, unit in zip(axes, Unit, strict=True):
        _draw_way(panel, unit, table)
    return figure


def _draw_way(axes: Axes, unit: Unit, table: pl.DataFrame) -> None:
    steps = totals(table, unit)
    start = next(iter(steps.values()))[0]
    labels = [_STARTS[unit], *(spaced_name(step) for step in steps)]
    left = [start, *(left for _, _, left, _ in steps.values())]
    lost = [0, *(lost for _, lost, _, _ in steps.values())]
    places = range(len(labels))
    colour = BLUE if unit is Unit.ACCOUNTS else SKY
    axes.barh(places, left, height=0.72, color=colour, edgecolor=INK, linewidth=0.5)
    bars = axes.barh(
        places, lost, left=left, height=0.72, color="white", edgecolor=VERMILLION, linewidth=0.5, hatch="////"
    )
    texts = [
        f"{kept:,}" if not gone else f"{kept:,} (-{gone:,})" for kept, gone in zip(left, lost, strict=True)
    ]
    axes.bar_label(bars, labels=texts, padding=3, fontsize=7.5)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, max(start, 1) * 1.28)
    count_axis(axes, "x")
    axes.set_title(unit.value)


def _draw_classes(classes: dict[Breakdown, pl.DataFrame]) -> Figure:
    shown = [(breakdown, words) for breakdown, words in _BREAKDOWNS if classes[breakdown].height]
    heights = [classes[breakdown].height + 2.0 for breakdown, _ in shown]
    figure = new_figure(0.25 * sum(heights) + 0.6)
    axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (breakdown, words) in zip(axes, shown, strict=True):
        _draw_shares(panel, classes[breakdown], words)
    axes[-1].set_xlabel("% lost")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7.5, borderaxespad=0.2)
    return figure


def _draw_shares(axes: Axes, rows: pl.DataFrame, words: str) -> None:
    names = [plain_text(name) for name in rows["class"]]
    series = (("accounts", BLUE, "", -0.19), ("records", ORANGE, "////", 0.19))
    for unit, colour, hatch, shift in series:
        shares = [
            100 * lost / whole if whole else 0.0
            for whole, lost in rows.select(unit, f"{unit}_lost").iter_rows()
        ]
        places = [place + shift for place in range(len(names))]
        bars = axes.barh(places, shares, height=0.36, color=colour, edgecolor=INK, linewidth=0.4, label=unit)
        for bar in bars:
            bar.set_hatch(hatch)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(visible=True, axis="x")
    axes.set_title(words)


def _classes(table: pl.DataFrame, breakdown: Breakdown) -> pl.DataFrame:
    """Return how many accounts and records of each class there are, and were lost (_CLASS_SCHEMA)."""
    rows = table.filter(pl.col("by") == breakdown.value, pl.col("class") != NO_ACCOUNT)
    by_choice = pl.col("step").is_in([step.value for step in _BY_CHOICE])
    order = rows.select("class").unique(maintain_order=True)
    told = order
    for unit, first in ((Unit.ACCOUNTS, Step.RESOLVED), (Unit.RECORDS, Step.FOUND)):
        own = rows.filter(unit=unit.value)
        summed = own.group_by("class").agg(
            pl.col("entered").filter(pl.col("step") == first.value).first().alias(unit.value),
            pl.col("lost").filter(~by_choice).sum().alias(f"{unit.value}_lost"),
        )
        told = told.join(summed, on="class", how="left", maintain_order="left")
    whole = (
        told.with_columns(pl.exclude("class").fill_null(0)).select(_CLASS_SCHEMA.names()).cast(_CLASS_SCHEMA)
    )
    return _largest_hosts(whole) if breakdown is Breakdown.HOST else whole


def _largest_hosts(hosts: pl.DataFrame) -> pl.DataFrame:
    """Put hosts that are not to be named, and those that are too many, together."""
    ordered = hosts.sort("accounts", "class", descending=[True, False])
    # Not that of accounts without a host, whose name has a space and is none.
    named = (pl.col("accounts") >= MIN_ACCOUNTS_TO_NAME) | pl.col("class").str.contains(" ", literal=True)
    shown = ordered.filter(named).head(_MAX_HOSTS)
    rest = ordered.join(shown, on="class", how="anti")
    if rest.is_empty():
        return shown
    told = f"{rest.height:,} other host{'s' * (rest.height > 1)}"
    others = rest.select(pl.lit(told).alias("class"), pl.exclude("class").sum())
    return pl.concat([shown, others.cast(_CLASS_SCHEMA)])


def _ends(steps: dict[Step, tuple[int, int, int, dict[str, int]]]) -> tuple[int, int]:
    ways: Sequence[tuple[int, int, int, dict[str, int]]] = list(steps.values())
    return ways[0][0], ways[-1][2]


def _reasons(reasons: dict[str, int]) -> str:
    return ", ".join(f"{spaced_name(reason)} {number:,}" for reason, number in reasons.items()) or "-"
