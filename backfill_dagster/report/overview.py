"""What the report says before its figures: what the study is, and where all of its accounts and records went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.tables import OTHER_RECORDS, TABLES_OF_COLLECTION
from backfill_dagster.report.figures.figure import NumbersTable
from backfill_dagster.report.numbers import BY_DIRECTORY, BY_SERVER, COMPLETE, FAILED, NOT_ASKED, NOT_TRIED
from backfill_dagster.report.wording import instant, percent, plain_text, spaced_name
from backfill_dagster.sharing.rehydration import Rehydrated

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.config.time_range import TimeRange
    from backfill_dagster.report.numbers import ReportNumbers
    from backfill_dagster.sharing.rehydration import Rehydration

_KINDS = (COMPLETE, FAILED, BY_SERVER, BY_DIRECTORY, NOT_TRIED, NOT_ASKED)
_SIGNED_BY = {
    "current": "signed by the account's current key",
    "previous": "signed by an earlier key of the account",
    None: "signature not checked, as the study chose",
}

_SAID_OF_SHARED = {
    Rehydrated.FOUND: "the same as was shared",
    Rehydrated.EDITED: "changed since",
    Rehydrated.DELETED: "their accounts have them no more",
    Rehydrated.ACCOUNT_GONE: "of accounts that are not active or not found",
    Rehydrated.UNREACHABLE: "of accounts that could not be read",
    Rehydrated.NOT_ASKED: "of accounts that were not asked yet",
    Rehydrated.UNUSABLE: "no row can be made of them",
    Rehydrated.LEFT_OUT: "left out by this study's settings",
}


def facts(study: Study, numbers: ReportNumbers) -> list[tuple[str, str]]:
    """Return what defines the study, and when its data were collected, as names and values."""
    types = ", ".join(
        f"{kind} ({', '.join(tables)})" if len(tables) > 1 else kind
        for kind in study.record_types
        for tables in [TABLES_OF_COLLECTION[kind]]
    )
    if study.other_record_types:
        types += f"; as JSON ({OTHER_RECORDS}): {', '.join(study.other_record_types)}"
    collected = (
        "nothing yet"
        if numbers.last_fetch is None
        else f"{instant(numbers.first_fetch)} to {instant(numbers.last_fetch)}"
    )
    return [
        ("Version", study.version),
        ("Study period", _period(study.time_range)),
        ("Record types", types),
        *_filters(study),
        *([("Rebuilt from", "ids that another study has shared")] if numbers.rehydration else []),
        ("Collected", collected),
    ]


def _filters(study: Study) -> list[tuple[str, str]]:
    """Say of each record type that is filtered which of its records are kept; no source is named."""
    said = []
    for kind, wanted in study.filters.items():
        asked = [
            *(["on a list of URIs"] if wanted.uris is not None else []),
            *(["about subjects on a list"] if wanted.subjects is not None else []),
            *([f"in {' or '.join(wanted.languages)}"] if wanted.languages is not None else []),
            *([f"with a text that matches {plain_text(wanted.text)}"] if wanted.text is not None else []),
        ]
        said.append(f"{kind}: only those {', and '.join(asked)}")
    return [("Filters", "; ".join(said))] if said else []


def accounts_table(numbers: ReportNumbers) -> NumbersTable:
    """Sum the accounts up by kind of state; the last row is their sum."""
    total = numbers.accounts
    by_kind = {kind: int(numbers.states.filter(pl.col("kind") == kind)["accounts"].sum()) for kind in _KINDS}
    shown = [(kind, number) for kind, number in by_kind.items() if number or kind == COMPLETE]
    return NumbersTable(
        "overview-accounts",
        "Accounts",
        ("accounts", "number", "share"),
        tuple((kind, number, percent(number, total)) for kind, number in [*shown, ("in the source", total)]),
    )


def records_table(numbers: ReportNumbers) -> NumbersTable:
    """Say what became of all records fetched: those kept, filtered and rejected; the last row is their sum."""
    fetched = numbers.records["fetched"]
    rows = [
        ("kept, in the tables", numbers.records["kept"]),
        ("filtered, by the study's own choice", numbers.records["filtered"]),
        ("rejected, unusable", numbers.records["rejected"]),
        ("fetched", fetched),
    ]
    return NumbersTable(
        "overview-records",
        "Records",
        ("records", "number", "share"),
        tuple((name, number, percent(number, fetched)) for name, number in rows),
    )


def dates_table(numbers: ReportNumbers) -> NumbersTable:
    """Say where the records that were kept stand to the study's period; the last row is their sum."""
    kept = numbers.records["kept"]
    rows = [
        ("dated within the study's period", numbers.in_period),
        ("dated outside it", numbers.outside_period),
        ("undated: no date that can be believed", numbers.records["undated"]),
        ("kept", kept),
    ]
    return NumbersTable(
        "overview-dates",
        "Dates of the records kept",
        ("records kept", "number", "share"),
        tuple((name, number, percent(number, kept)) for name, number in rows),
    )


def proofs_table(numbers: ReportNumbers) -> NumbersTable:
    """Say who signed the repositories whose records stand in the tables; the last row is their sum."""
    rows = [
        (_SIGNED_BY.get(signed_by) or plain_text(str(signed_by)), accounts)
        for signed_by, accounts in numbers.signed.iter_rows()
    ]
    total = numbers.in_tables
    return NumbersTable(
        "overview-proofs",
        "Repositories in the tables",
        ("repositories", "number", "share"),
        tuple((name, number, percent(number, total)) for name, number in [*rows, ("in the tables", total)]),
    )


def left_out_table(numbers: ReportNumbers) -> NumbersTable:
    """Say why inputs of the source are no accounts of the study; the last row is their sum."""
    rows = [(spaced_name(reason), inputs) for reason, inputs in numbers.left_out.iter_rows()]
    return NumbersTable(
        "overview-left-out",
        "Inputs of the source that are no accounts of the study",
        ("inputs", "number"),
        (*rows, ("left out", sum(inputs for _, inputs in rows))),
    )


def overview_tables(numbers: ReportNumbers) -> list[NumbersTable]:
    """Return all tables above that have something to say."""
    tables = [accounts_table(numbers), records_table(numbers), dates_table(numbers)]
    if numbers.in_tables:
        tables.append(proofs_table(numbers))
    if numbers.left_out.height:
        tables.append(left_out_table(numbers))
    if numbers.rehydration is not None:
        tables.append(rehydration_table(numbers.rehydration))
    return tables


def rehydration_table(found: Rehydration) -> NumbersTable:
    """Say what became of the records that were shared; the last row is their sum."""
    by_outcome = found.by_outcome
    rows = [
        (f"{outcome.value}: {_SAID_OF_SHARED[outcome]}", by_outcome.get(outcome.value, 0))
        for outcome in Rehydrated
    ]
    rows.append(("purged by this study", found.purged))
    told = [(name, number) for name, number in rows if number]
    return NumbersTable(
        "overview-rehydration",
        "Records that were shared",
        ("shared records", "number", "share"),
        tuple(
            (name, number, percent(number, found.shared))
            for name, number in [*told, ("shared", found.shared)]
        ),
    )


def _period(period: TimeRange) -> str:
    start, end = period.start_date, period.end_date
    said = (
        f"{'the beginning' if start is None else instant(start)} to {'now' if end is None else instant(end)}"
    )
    if start is None and end is None:
        return "all time"
    outside = "also kept, marked" if period.outside == "normalize" else "left out"
    return f"{said}, both included; records dated outside are {outside}"
