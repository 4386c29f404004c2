"""Why records that were fetched stand in no table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.report.drawing import SKY, VERMILLION, Drawing, labelled_bars, new_figure
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.wording import counted, percent, spaced_name

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "left-out-records"
_PANELS = (
    ("filtered", "filtered: left out by the study's own choice", SKY, r"\\\\"),
    ("rejected", "rejected: no usable key, or cannot be decoded", VERMILLION, "////"),
)


def left_out_records(numbers: ReportNumbers) -> ReportFigure:
    """Show the reasons of filtered and of rejected records, each kind on a scale of its own."""
    fetched, filtered, rejected = (numbers.records[fate] for fate in ("fetched", "filtered", "rejected"))
    frames = {"filtered": numbers.filtered, "rejected": numbers.rejected}
    if fetched:
        title = (
            f"Of {counted(fetched, 'record')} fetched, {filtered:,} were filtered ({percent(filtered, fetched)}) "
            f"and {rejected:,} rejected ({percent(rejected, fetched)})"
        )
    else:
        title = "No record was fetched"
    told = [
        f"{fate}: " + ", ".join(f"{number:,} {spaced_name(reason)}" for reason, number in frame.iter_rows())
        for fate, frame in frames.items()
        if frame.height
    ]
    rows = [
        (fate, spaced_name(reason), number, percent(number, fetched))
        for fate, frame in frames.items()
        for reason, number in frame.iter_rows()
    ]
    return ReportFigure(
        name=_NAME,
        title=title,
        caption=(
            "Every record of a fetched repository is kept, filtered or rejected. Filtered are records that the study "
            "did not ask for: of other types (every other application of the network writes into the same "
            "repositories), not on a list that it keeps to, outside a period that is cut off, not about a subject or "
            "in a language or words that it asks for, of accounts that are hidden, or purged on request. "
            "Rejected are records that nobody could use. A record whose single fields are wrong is neither: it is "
            "kept, the wrong field is empty, and its row says so. The panels have scales of their own; percentages "
            "are of all records fetched."
        ),
        alt=f"Bars of records by reason. {'; '.join(told)}." if told else title,
        drawing=Drawing(_draw, (frames, fetched)) if told else None,
        tables=(
            NumbersTable(
                _NAME, "Records left out, by reason", ("fate", "reason", "records", "of fetched"), tuple(rows)
            ),
        ),
    )


def _draw(frames: dict[str, pl.DataFrame], fetched: int) -> Figure:
    panels = [panel for panel in _PANELS if frames[panel[0]].height]
    heights = [frames[fate].height + 1.8 for fate, _, _, _ in panels]
    figure = new_figure(0.19 * sum(heights) + 0.35)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (fate, title, colour, hatch) in zip(axes, panels, strict=True):
        frame = frames[fate]
        labelled_bars(
            panel,
            [spaced_name(reason) for reason in frame["reason"]],
            frame["records"].to_list(),
            [colour] * frame.height,
            [hatch] * frame.height,
            lambda number: f"{number:,} ({percent(number, fetched)})",
        )
        panel.set_title(title)
    axes[-1].set_xlabel("records")
    return figure
