"""The report as Markdown, for where Dagster shows a few lines of an asset and no page of HTML."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backfill_dagster.report.markup import written
from backfill_dagster.report.overview import facts, overview_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
    from backfill_dagster.report.markup import Cell
    from backfill_dagster.report.numbers import ReportNumbers

# Of each table, as many rows: the rest is on the page.
_MAX_ROWS = 15
# Signs of Markdown's syntax, also of addresses that become links by themselves.
_MEANT = re.compile(r"[\\`*_\[\]<>|~@&!#]|(?<=www)\.|:(?=//)", re.IGNORECASE)


def summary_markdown(study: Study, numbers: ReportNumbers, figures: Sequence[ReportFigure], plot: str) -> str:
    """Return the study's facts, its sums, a small plot (a data URI, or nothing) and what each figure shows."""
    parts = [f"**{escaped(name)}:** {escaped(value)}  " for name, value in facts(study, numbers)]
    parts += [f"\n**Do not agree:** {escaped(problem)}" for problem in numbers.problems]
    parts += [_table(table) for table in overview_tables(numbers)]
    if plot:
        parts.append(f"\n![Records per day by type]({plot})")
    for figure in figures:
        parts.append(f"\n**{escaped(figure.title)}**")
        parts += [_table(table) for table in figure.tables if len(table.rows) <= _MAX_ROWS]
    return "\n".join(parts) + "\n"


def escaped(value: str) -> str:
    """Return plain text for Markdown: nothing in it is a sign of its syntax."""
    return _MEANT.sub(r"\\\g<0>", " ".join(value.split()))


def _table(table: NumbersTable) -> str:
    rows = [table.head, *table.rows]
    lines = [_row(rows[0]), "|" + " --- |" * len(table.head), *map(_row, rows[1:])]
    return "\n".join(["", *lines])


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(escaped(written(cell)) for cell in cells) + " |"
