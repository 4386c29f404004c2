"""What a figure of the report consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill_dagster.report.drawing import Drawing
    from backfill_dagster.report.markup import Cell


@dataclass(frozen=True, slots=True)
class NumbersTable:
    """A table of numbers: what it is about, its columns' names, its rows."""

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A figure: `title` says what is seen, `caption` how to read it, `alt` the same to who does not see it.

    All are plain text, still to be escaped. Without a `drawing` there is nothing to show, and the title says so.
    """

    name: str
    title: str
    caption: str
    alt: str
    drawing: Drawing | None
    tables: tuple[NumbersTable, ...]
