"""How the accounts' activity covers the study's period."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.report.days import DAYS_OF_WEEK, DaySpan
from backfill_dagster.report.drawing import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SKY,
    Drawing,
    day_axis,
    day_place,
    new_figure,
)
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.wording import counted, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from backfill_dagster.report.markup import Cell
    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "coverage"
# More lines than these cannot be told apart.
_MAX_LINES = 80
# More bars than these have no outline, which would be all that one sees.
_MAX_OUTLINED_WEEKS = 60
_DAY_SECONDS = 86_400
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def coverage(numbers: ReportNumbers) -> ReportFigure:
    """Show each account's first and last record (a line, or for many their distribution), and activity by week."""
    span, active = numbers.span, numbers.activity.spans.height
    if span is None or not active:
        title = "No account has a record in the study's period"
        return ReportFigure(_NAME, title, _MEANING, title, None, ())
    weekly = _weekly(numbers, span)
    shares = weekly["accounts"].to_list()
    few = active <= _MAX_LINES
    return ReportFigure(
        name=_NAME,
        title=(
            f"{active:,} of {counted(numbers.in_tables, 'account')} with a whole repository wrote in the period "
            f"({percent(active, numbers.in_tables)}); " + _range_of_weeks(shares, numbers.in_tables)
        ),
        caption=_caption(numbers, span, few=few),
        alt=(
            f"{'One line per account' if few else 'Two cumulative curves'} of first and last records, and bars of the "
            f"accounts active in each of {span.weeks} weeks, between {min(shares):,} and {max(shares):,} of "
            f"{numbers.in_tables:,}."
        ),
        drawing=Drawing(_draw, (numbers.activity.spans, weekly, span, numbers.in_tables)),
        tables=(_weeks_table(numbers, weekly), _quantiles_table(numbers.activity.spans)),
    )


_MEANING = (
    "What is shown is activity, not missing data: a complete repository was proven whole, so that a time without "
    "records is one in which the account wrote nothing that is still there. Accounts whose repository did not arrive "
    "are not in this figure; the figure of account states has them."
)


def _range_of_weeks(active: list[int], accounts: int) -> str:
    least, most = percent(min(active), accounts), percent(max(active), accounts)
    return f"{least} in every week" if least == most else f"{least} to {most} in a week"


def _weekly(numbers: ReportNumbers, span: DaySpan) -> pl.DataFrame:
    """Return every week of the span: `week, start, accounts`."""
    weeks = pl.DataFrame({"week": range(span.weeks)}, schema={"week": pl.UInt16()})
    return weeks.join(numbers.activity.by_week, on="week", how="left", maintain_order="left").select(
        "week",
        pl.Series("start", [span.week_start(week) for week in range(span.weeks)]),
        pl.col("accounts").fill_null(0),
    )


def _draw(spans: pl.DataFrame, weekly: pl.DataFrame, span: DaySpan, accounts: int) -> Figure:
    few = spans.height <= _MAX_LINES
    above = 0.8 + 0.055 * spans.height if few else 2.3
    figure = new_figure(above + 2.3)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[above, 2])
    if few:
        _draw_lines(upper, spans)
    else:
        _draw_shares(upper, spans, span, accounts)
    _draw_weeks(lower, weekly, span, accounts)
    day_axis(lower, span)
    return figure


def _draw_lines(axes: Axes, spans: pl.DataFrame) -> None:
    ordered = spans.sort("first", "last")
    firsts, lasts = (
        [instant.timestamp() / _DAY_SECONDS for instant in ordered[end]] for end in ("first", "last")
    )
    places = range(1, ordered.height + 1)
    axes.hlines(places, firsts, lasts, color=BLUE, linewidth=1.6)
    axes.plot(firsts, places, linestyle="none", marker="|", color=INK, markersize=5, label="first record")
    axes.plot(lasts, places, linestyle="none", marker=".", color=INK, markersize=5, label="last record")
    axes.set_ylim(ordered.height + 1, 0)
    axes.set_yticks([])
    axes.set_ylabel("accounts,\nby first record")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7.5, borderaxespad=0.2)
    axes.set_title("first to last record of each account in the period")


def _draw_shares(axes: Axes, spans: pl.DataFrame, span: DaySpan, accounts: int) -> None:
    began, ended = (_cumulative(spans[end], span, accounts) for end in ("first", "last"))
    axes.step(*began, where="post", color=BLUE, linewidth=1.6, label="have had their first record")
    axes.step(
        *ended, where="post", color=ORANGE, linewidth=1.6, linestyle="--", label="have had their last record"
    )
    # A line along the edge would be cut in half.
    axes.set_ylim(-2, 102)
    axes.set_ylabel("% of accounts")
    axes.grid(visible=True, axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=7.5, borderaxespad=0.2)
    axes.set_title("accounts between first and last record")


def _cumulative(instants: pl.Series, span: DaySpan, accounts: int) -> tuple[list[float], list[float]]:
    """Return the days of some instants as places on the axis, and the share of accounts by each, in percent."""
    by_day = instants.dt.date().value_counts(name="accounts").sort(by=pl.col(instants.name))
    days = [day_place(day) for day in by_day[instants.name]]
    shares = (by_day["accounts"].cum_sum() * 100 / accounts).to_list()
    return [day_place(span.first), *days, day_place(span.last) + 1], [0.0, *shares, shares[-1]]


def _draw_weeks(axes: Axes, weekly: pl.DataFrame, span: DaySpan, accounts: int) -> None:
    widths = [DAYS_OF_WEEK] * (span.weeks - 1) + [span.last_week_days]
    bars = axes.bar(
        [day_place(day) for day in weekly["start"]],
        [100 * number / accounts for number in weekly["accounts"]],
        widths,
        align="edge",
        color=SKY,
        edgecolor=INK if span.weeks <= _MAX_OUTLINED_WEEKS else SKY,
        linewidth=0.5,
    )
    if span.last_week_days < DAYS_OF_WEEK:
        bars[-1].set_hatch("////")
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of accounts")
    axes.grid(visible=True, axis="y")
    axes.tick_params(axis="x", color=FAINT)
    axes.set_title("accounts with at least one record in the week")


def _weeks_table(numbers: ReportNumbers, weekly: pl.DataFrame) -> NumbersTable:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (f"{start}", accounts, percent(accounts, numbers.in_tables))
        for _, start, accounts in weekly.iter_rows()
    )
    return NumbersTable(
        "coverage-weeks",
        f"Accounts with at least one record in each week, of {numbers.in_tables:,}",
        ("week from (UTC)", "accounts", "share"),
        rows,
    )


def _quantiles_table(spans: pl.DataFrame) -> NumbersTable:
    """Say how first and last records and weeks of activity are spread; a row per account would be about a person."""
    rows: list[tuple[Cell, ...]] = []
    for quantile in _QUANTILES:
        first, last, weeks = (
            spans[column].sort().gather([round(quantile * (spans.height - 1))]).to_list()[0]
            for column in ("first", "last", "weeks")
        )
        rows.append((f"{quantile:.0%}", f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}", weeks))
    return NumbersTable(
        "coverage-quantiles",
        "Quantiles over accounts with a record in the period, each column by itself",
        ("quantile", "first record", "last record", "weeks with a record"),
        tuple(rows),
    )


def _caption(numbers: ReportNumbers, span: DaySpan, *, few: bool) -> str:
    said = [_MEANING]
    silent = numbers.in_tables - numbers.activity.spans.height
    if few:
        said.append(
            "Above, each line runs from an account's first to its last record in the period, ordered by the first; it "
            "does not mean that the account was active all the way."
        )
    else:
        said.append(
            "Above, the curves say which share of the accounts had their first (solid) and their last (dashed) record "
            "in the period by each day; the distance between the two is the share that is between the two."
        )
    said.append(
        "Below, each bar is the share of accounts with at least one record of any type in a week, counted from the "
        "first day of the period."
    )
    if span.last_week_days < DAYS_OF_WEEK:
        said.append(f"The last, hatched one has {span.last_week_days} of {DAYS_OF_WEEK} days.")
    said.append(
        f"Shares are of the {counted(numbers.in_tables, 'account')} whose records stand in the tables, of which "
        f"{silent:,} wrote nothing in the period."
    )
    return " ".join(said)
