"""How fast what was collected goes, and how much had gone before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
from matplotlib.ticker import FuncFormatter, NullFormatter

from backfill_dagster.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    new_figure,
)
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.wording import compact, percent, plain_text
from backfill_dagster.survivorship.ages import CLASSES
from backfill_dagster.survivorship.rates import ALL_AGES, Watching

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from backfill_dagster.report.markup import Cell
    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "deletions"
# Rates are told per so many records and days.
_PER = 1000 * 30
_MOST_BELOW = 100
_LOOKS = (
    *((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (VERMILLION, "D", ":"), (PURPLE, "v", "-")),
    (SKY, "P", "--"),
)
_MEANING = (
    "Records that their authors had deleted before a collection are not in it. Each time that accounts are collected "
    "again, records that were there and are no more count as deleted, and the time for which each record was watched "
    "counts as record-days; a deletion counts in the middle between the two collections. Intervals are exact Poisson "
    "intervals at 95 %, widened by how much deletions come in bursts of single accounts. Age is from the time in a "
    "record's key. Records that went with their account are not counted here, and those that were made and deleted "
    "between two collections are seen by nobody."
)
_ASSUMED = (
    " What share of the study period's records had gone before the collection is an estimate: it takes deletion to "
    "depend on age alone, and to have been in the period what it was when it was watched."
)


def deletions(numbers: ReportNumbers) -> ReportFigure:
    """Show rates of deletion by collection, and by age of the record."""
    decay = numbers.decay
    rates = decay.rates.filter(watched=Watching.RECORDS.value)
    if rates.is_empty():
        title = "How much is deleted cannot be told from a single collection; a refresh shows it"
        return ReportFigure(_NAME, title, _MEANING, title, None, ())
    whole = decay.records
    deleted, days = int(whole["deleted"].sum()), float(whole["days"].sum())
    return ReportFigure(
        name=_NAME,
        title=(
            f"{deleted:,} deleted in {days:,.0f} record-days: {_per(deleted / days)} per 1,000 records and 30 days"
        ),
        caption=_MEANING + (_ASSUMED if decay.lost else ""),
        alt="Rates of deletion with their intervals: "
        + "; ".join(
            f"{collection} {_per(rate)}"
            for collection, rate in whole.select("collection", "rate").iter_rows()
        )
        + ".",
        drawing=Drawing(_draw, (rates,)) if deleted else None,
        tables=(_rates_table(decay.rates), *([_lost_table(numbers)] if decay.lost else [])),
    )


def _draw(rates: pl.DataFrame) -> Figure:
    whole = rates.filter(pl.col("age") == ALL_AGES, pl.col("deleted") > 0).sort("rate", descending=True)
    figure = new_figure(0.26 * whole.height + 3.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[0.26 * whole.height + 0.5, 2.4])
    _draw_types(upper, whole)
    _draw_ages(lower, rates, whole["collection"].to_list())
    return figure


def _draw_types(axes: Axes, whole: pl.DataFrame) -> None:
    for place, (_, rate, low, high) in enumerate(
        whole.select("collection", "rate", "rate_low", "rate_high").iter_rows()
    ):
        colour, marker, _ = _LOOKS[place % len(_LOOKS)]
        axes.plot([low * _PER, high * _PER], [place, place], color=INK, linewidth=1)
        axes.plot([rate * _PER], [place], color=colour, marker=marker, markersize=5, linestyle="none")
    axes.set_yticks(range(whole.height), [plain_text(name) for name in whole["collection"]])
    axes.set_ylim(whole.height - 0.5, -0.5)
    axes.set_xlim(0, max(float(high) * _PER for high in whole["rate_high"]) * 1.05)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: compact(number)))
    axes.grid(visible=True, axis="x")
    axes.set_title("deleted per 1,000 records and 30 days, all ages")


def _draw_ages(axes: Axes, rates: pl.DataFrame, collections: list[str]) -> None:
    for number, collection in enumerate(collections):
        colour, marker, line = _LOOKS[number % len(_LOOKS)]
        own = {
            # A bound next to nothing would leave no room for anything else.
            age: (rate * _PER, max(low, rate / _MOST_BELOW) * _PER, high * _PER)
            for age, rate, low, high in rates.filter(
                pl.col("collection") == collection, pl.col("age").is_in(CLASSES), pl.col("deleted") > 0
            )
            .select("age", "rate", "rate_low", "rate_high")
            .iter_rows()
        }
        places = [place for place, age in enumerate(CLASSES) if age in own]
        shown = [own[CLASSES[place]] for place in places]
        shift = (number - (len(collections) - 1) / 2) * 0.06
        axes.vlines(
            [p + shift for p in places], [one[1] for one in shown], [one[2] for one in shown], color=colour
        )
        axes.plot(
            [p + shift for p in places],
            [one[0] for one in shown],
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=4,
            linewidth=1,
            label=plain_text(collection),
        )
    axes.set_xticks(range(len(CLASSES)), [age.replace(" to ", "\nto ") for age in CLASSES])
    axes.set_xlim(-0.5, len(CLASSES) - 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: compact(number)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="y")
    axes.set_title("the same by age of the record; ages at which none was deleted have no mark")
    axes.legend(loc="upper right", fontsize=7)


def _rates_table(rates: pl.DataFrame) -> NumbersTable:
    rows: list[tuple[Cell, ...]] = [
        (
            "accounts" if collection is None else plain_text(collection),
            age,
            days,
            deleted,
            changed,
            _per(rate),
            _per(low),
            _per(high),
        )
        for _, collection, age, days, deleted, changed, _, rate, low, high in rates.iter_rows()
    ]
    return NumbersTable(
        _NAME,
        "Deletions per 1,000 and 30 days, with the bounds of the 95 % interval; of accounts, those that went",
        ("of", "age", "days watched", "deleted", "changed", "rate", "from", "to"),
        tuple(rows),
    )


def _lost_table(numbers: ReportNumbers) -> NumbersTable:
    rows: list[tuple[Cell, ...]] = [
        (
            plain_text(lost.collection),
            lost.present,
            percent(lost.share, 1),
            percent(lost.low, 1),
            percent(lost.high, 1),
            ", ".join(lost.from_older) or "-",
            ", ".join(lost.from_younger) or "-",
        )
        for lost in numbers.decay.lost
    ]
    return NumbersTable(
        f"{_NAME}-before",
        "Share of the study period's records that had been deleted before the collection, estimated, with what the "
        "lower, and the upper, bounds of all rates come to together; and the ages of which nothing is known, for which "
        "the rate of the next older, or else of the next younger, age was taken",
        (
            "collection",
            "records there",
            "had gone",
            "from",
            "to",
            "older rate taken at",
            "younger rate taken at",
        ),
        tuple(rows),
    )


def _per(rate: float) -> str:
    value = rate * _PER
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
