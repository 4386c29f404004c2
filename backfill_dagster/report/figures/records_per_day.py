"""Records per day by type, over the study's period."""

from __future__ import annotations

from datetime import time
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.report.drawing import (
    BLUE,
    FAINT,
    INK,
    Drawing,
    count_axis,
    day_axis,
    day_place,
    new_figure,
)
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.wording import compact, counted, instant, percent

if TYPE_CHECKING:
    from datetime import date

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from backfill_dagster.report.days import DaySpan
    from backfill_dagster.report.markup import Cell
    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "records-per-day"
# A longer period's table counts by month.
_MAX_DAYS_LISTED = 100


def records_per_day(numbers: ReportNumbers) -> ReportFigure:
    """Show one panel per type, each with a scale of its own: likes outnumber blocks a hundredfold."""
    span = numbers.span
    if span is None or not numbers.in_period:
        title = "No record is dated within the study's period"
        return ReportFigure(_NAME, title, _caption(numbers), title, None, (_by_type(numbers),))
    calendar = _calendar(numbers, span)
    top = numbers.tables.sort("in_period", descending=True).row(0, named=True)
    title = (
        f"Records per day by type: most are {top['table']}, {top['in_period']:,} of "
        f"{counted(numbers.in_period, 'record')} in the period ({percent(top['in_period'], numbers.in_period)})"
    )
    return ReportFigure(
        name=_NAME,
        title=title,
        caption=_caption(numbers),
        alt=_alt(numbers, calendar, span),
        drawing=Drawing(_draw, (numbers.tables["table"].to_list(), calendar, span)),
        tables=(_by_type(numbers), _by_time(numbers, calendar)),
    )


def _calendar(numbers: ReportNumbers, span: DaySpan) -> pl.DataFrame:
    """Return every day of the span, with a column for each table; a day without records has 0."""
    tables = numbers.tables["table"].to_list()
    days = pl.DataFrame({"day": pl.date_range(span.first, span.last, "1d", eager=True)})
    counted = numbers.activity.by_day
    for table in tables:
        of_one = counted.filter(pl.col("table") == table).select("day", pl.col("records").alias(table))
        days = days.join(of_one, on="day", how="left")
    return days.with_columns(pl.col(*tables).fill_null(0)).sort("day")


def _draw(tables: list[str], calendar: pl.DataFrame, span: DaySpan) -> Figure:
    figure = new_figure(0.75 + 0.95 * len(tables))
    panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
    edges = [day_place(span.first) + number for number in range(span.length + 1)]
    for panel, table in zip(panels, tables, strict=True):
        _draw_panel(panel, table, calendar[table].to_list(), edges)
    day_axis(panels[-1], span)
    figure.supylabel("records per day", fontsize=8)
    return figure


def _draw_panel(panel: Axes, table: str, counts: list[int], edges: list[float]) -> None:
    panel.stairs(counts, edges, fill=True, facecolor=BLUE, alpha=0.85, linewidth=0)
    panel.stairs(counts, edges, fill=False, color=INK, linewidth=0.5)
    panel.set_ylim(0, max(*counts, 1) * 1.08)
    count_axis(panel, "y", bins=3)
    panel.tick_params(axis="x", color=FAINT)
    said = f"{sum(counts):,} in the period, at most {compact(max(counts))} a day" if any(counts) else "none"
    panel.set_title(f"{table}: {said}", pad=3)


def _by_type(numbers: ReportNumbers) -> NumbersTable:
    rows = [(table, kept, inside) for table, kept, inside in numbers.tables.iter_rows()]
    total = ("all types", int(numbers.tables["records"].sum()), numbers.in_period)
    return NumbersTable(
        "records-by-type",
        "Records by type",
        ("type", "in the tables", "of these in the study's period"),
        (*rows, total),
    )


def _by_time(numbers: ReportNumbers, calendar: pl.DataFrame) -> NumbersTable:
    tables = numbers.tables["table"].to_list()
    by_month = calendar.height > _MAX_DAYS_LISTED
    form = "%Y-%m" if by_month else "%Y-%m-%d"
    listed = calendar.with_columns(pl.col("day").dt.strftime(form)).group_by("day").agg(pl.col(*tables).sum())
    rows: list[tuple[Cell, ...]] = list(listed.sort("day").iter_rows())
    unit = "month" if by_month else "day"
    return NumbersTable(
        "records-by-time", f"Records in the period by type and {unit} (UTC)", (unit, *tables), tuple(rows)
    )


def _caption(numbers: ReportNumbers) -> str:
    span, said = numbers.span, []
    if span is not None:
        said.append(
            "Each panel counts one type of record by the day, in UTC, on which its client says that it was created. "
            "The panels have scales of their own, each from zero: compare shapes between them, and heights only "
            "within one."
        )
    said.append(
        f"Counted are records that stand in the tables and are dated within the study's period; "
        f"{numbers.outside_period:,} records of the tables are dated outside it and {numbers.records['undated']:,} "
        "have no date that can be believed."
    )
    if _ends_at_midnight(numbers):
        said.append("The period ends as its last day begins, which has at most the records of that instant.")
    if _ends_while_fetching(numbers):
        said.append(
            f"Repositories were fetched from {instant(numbers.first_fetch)} to {instant(numbers.last_fetch)}: "
            "the last days are seen only as far as each account had been active when it was fetched."
        )
    said.append(
        "Records that were deleted before the fetch are in no repository: older days are lower by what was deleted "
        "since."
    )
    return " ".join(said)


def _ends_at_midnight(numbers: ReportNumbers) -> bool:
    span, end = numbers.span, numbers.period_end
    return span is not None and end is not None and end.date() == span.last and end.time() == time()


def _ends_while_fetching(numbers: ReportNumbers) -> bool:
    span, first = numbers.span, numbers.first_fetch
    return span is not None and first is not None and first.date() <= span.last


def _alt(numbers: ReportNumbers, calendar: pl.DataFrame, span: DaySpan) -> str:
    told = [
        f"{table} {inside:,} in all, most on {_peak(calendar, table)}"
        for table, _, inside in numbers.tables.iter_rows()
        if inside
    ]
    return f"One panel of counts per day for each type, {span.first} to {span.last}: {'; '.join(told)}."


def _peak(calendar: pl.DataFrame, table: str) -> date:
    day: date = calendar.sort(table, descending=True, maintain_order=True).row(0, named=True)["day"]
    return day
