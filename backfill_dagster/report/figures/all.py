"""All figures of the report, in their order on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.report.figures.account_states import account_states
from backfill_dagster.report.figures.attrition import attrition, losses
from backfill_dagster.report.figures.coverage import coverage
from backfill_dagster.report.figures.deletions import deletions
from backfill_dagster.report.figures.host_speeds import host_speeds
from backfill_dagster.report.figures.left_out_records import left_out_records
from backfill_dagster.report.figures.records_per_day import records_per_day

if TYPE_CHECKING:
    from backfill_dagster.report.figures.figure import ReportFigure
    from backfill_dagster.report.numbers import ReportNumbers


def all_figures(numbers: ReportNumbers) -> list[ReportFigure]:
    """Make every figure, all but its drawing."""
    makers = (
        *(records_per_day, account_states, host_speeds, left_out_records, coverage),
        *(attrition, losses, deletions),
    )
    return [make(numbers) for make in makers]
