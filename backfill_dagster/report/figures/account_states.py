"""Accounts by the one final state of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.report.drawing import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Drawing,
    labelled_bars,
    new_figure,
)
from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
from backfill_dagster.report.numbers import (
    BY_DIRECTORY,
    BY_SERVER,
    COMPLETE,
    FAILED,
    NOT_ASKED,
    NOT_TRIED,
    state_label,
)
from backfill_dagster.report.wording import counted, percent, plain_text

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from backfill_dagster.report.numbers import ReportNumbers

_NAME = "account-states"
_LOOK = {
    COMPLETE: (BLUE, ""),
    FAILED: (VERMILLION, "////"),
    BY_SERVER: (SKY, r"\\\\"),
    BY_DIRECTORY: (ORANGE, "xxxx"),
    NOT_TRIED: (PURPLE, "----"),
    NOT_ASKED: (GREEN, "...."),
}
_ALL_OTHERS = "all others"


def account_states(numbers: ReportNumbers) -> ReportFigure:
    """Show complete accounts against all others, and below the others by state on a scale of their own."""
    total, complete = numbers.accounts, numbers.complete
    title = (
        f"{complete:,} of {counted(total, 'account')} complete ({percent(complete, total)})"
        if total
        else "The source lists no account"
    )
    labels = _labels(numbers.states)
    told = ", ".join(
        f"{number:,} {label}"
        for label, number in zip(labels, numbers.states["accounts"].to_list(), strict=True)
    )
    rows = tuple(
        (label, kind, accounts, percent(accounts, total))
        for label, (kind, accounts) in zip(
            labels, numbers.states.select("kind", "accounts").iter_rows(), strict=True
        )
    )
    return ReportFigure(
        name=_NAME,
        title=title,
        caption=(
            "Every account of the source ends in exactly one state. Complete means that the account's whole "
            "repository arrived and was proven: every block has its hash, the tree has no gap, and the account's own "
            "key signed it, where the study asks for signatures; or, in a study that asks for less, that all it asks "
            "for arrived. Only failed accounts are tried again; what a server "
            "or the directory says of an account is taken as said and looked at again by a refresh. "
            "The lower panel has a scale of its own, so that few failures can be seen beside many complete accounts; "
            "the percentages of both are of all accounts."
        ),
        alt=f"Bars of accounts by state: {told}." if total else title,
        drawing=Drawing(_draw, (numbers.states, labels, total, complete)) if total else None,
        tables=(
            NumbersTable(
                _NAME,
                "Accounts by state",
                ("state", "kind", "accounts", "share"),
                (*rows, ("all states", "", total, percent(total, total))),
            ),
        ),
    )


def _labels(states: pl.DataFrame) -> list[str]:
    return [
        plain_text(state_label(state, reason).replace("_", " "))
        for state, reason in states.select("state", "reason").iter_rows()
    ]


def _draw(states: pl.DataFrame, labels: list[str], total: int, complete: int) -> Figure:
    others = [
        (label, kind, accounts)
        for label, (kind, accounts) in zip(labels, states.select("kind", "accounts").iter_rows(), strict=True)
        if kind != COMPLETE
    ]

    def written(accounts: int) -> str:
        return f"{accounts:,} ({percent(accounts, total)})"

    if not others:
        figure = new_figure(0.9)
        labelled_bars(figure.subplots(), ["complete"], [complete], [BLUE], [""], written)
        figure.axes[0].set_xlabel("accounts")
        return figure
    # The legend is as high as three bars.
    heights = [2 + 1.6, len(others) + 4]
    figure = new_figure(0.19 * sum(heights) + 0.3)
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    labelled_bars(
        upper, ["complete", _ALL_OTHERS], [complete, total - complete], [BLUE, "#dddddd"], ["", ""], written
    )
    kinds = [kind for _, kind, _ in others]
    labelled_bars(
        lower,
        [label for label, _, _ in others],
        [accounts for _, _, accounts in others],
        [_LOOK[kind][0] for kind in kinds],
        [_LOOK[kind][1] for kind in kinds],
        written,
    )
    lower.set_title(f"{_ALL_OTHERS}, on a scale of their own", color=FAINT)
    lower.set_xlabel("accounts")
    shown = {kind: lower.patches[place] for place, kind in reversed(list(enumerate(kinds)))}
    chosen = [kind for kind in _LOOK if kind in shown]
    figure.legend([shown[kind] for kind in chosen], chosen, loc="outside lower right", ncols=2, fontsize=7.5)
    return figure
