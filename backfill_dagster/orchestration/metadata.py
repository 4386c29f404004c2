"""What the UI shows about a materialization: stage reports as Dagster metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from backfill_dagster.dids.handle_syntax import may_name_somebody
from backfill_dagster.dids.syntax import DidRejection
from backfill_dagster.records.outcomes import Fate
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.snapshots import latest_attempts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backfill_dagster.dids.collect import CollectedDids
    from backfill_dagster.records.filter_lists import StoredList
    from backfill_dagster.report.page import Report
    from backfill_dagster.repos.crawl import HostReport
    from backfill_dagster.resolving import DirectorySummary
    from backfill_dagster.stores.location import Location
    from backfill_dagster.tables.account_sums import AccountSums
    from backfill_dagster.tables.build import PartitionReport

Metadata = dict[str, Any]

# Rows of a table that the UI shows in full; what is longer is cut, and says so by its count.
_SHOWN_ROWS = 20
# Why an input was left out that cannot be anybody's DID.
_NO_DIDS = [reason.value for reason in DidRejection if reason.malformed]


def file_path(path: Location) -> dg.MetadataValue[Any]:
    """Show where a file is."""
    return dg.MetadataValue.path(str(path.absolute() if isinstance(path, Path) else path))


def counts_table(frame: pl.DataFrame) -> dg.MetadataValue[Any]:
    """Show a small frame as a Markdown table; a column that says nothing is left out."""
    frame = frame.select(column for column in frame if column.is_empty() or column.is_not_null().any())
    header = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + "".join(" ---: |" if kind.is_numeric() else " --- |" for kind in frame.dtypes)
    rows = [
        "| " + " | ".join("" if value is None else _cell(value) for value in row) + " |"
        for row in frame.head(_SHOWN_ROWS).iter_rows()
    ]
    more = [f"\n… and {frame.height - _SHOWN_ROWS} more"] if frame.height > _SHOWN_ROWS else []
    return dg.MetadataValue.md("\n".join([header, rule, *rows, *more]))


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    # What servers and files said may hold anything; it must not become markup.
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def source_metadata(collected: CollectedDids, path: Location) -> Metadata:
    """Say how many inputs were given, kept and left out, and why."""
    reasons = (
        collected.rejects.group_by("reason")
        .agg(inputs=pl.len())
        .sort("inputs", "reason", descending=[True, False])
    )
    return {
        "dagster/row_count": collected.dids.height,
        "given": collected.given,
        "left_out": collected.rejects.height,
        "left_out_by_reason": counts_table(reasons),
        # What names somebody stays out of the event log, from which nobody can be taken out one by one.
        "left_out_inputs": counts_table(
            collected.rejects.filter(pl.col("reason").is_in(_NO_DIDS) & ~may_name_somebody(pl.col("input")))
        ),
        "given_by_source": counts_table(_counts(collected.given_by_source, "field", "inputs")),
        **_exclusions(collected),
        "path": file_path(path),
    }


def _exclusions(collected: CollectedDids) -> Metadata:
    """Say which entries of `exclude` leave out nobody, if any."""
    if not collected.useless_exclusions:
        return {}
    return {
        "exclusions_of_nobody": counts_table(_counts(collected.useless_exclusions, "reason", "inputs")),
    }


def _counts(counts: Mapping[str, int], name: str, number: str) -> pl.DataFrame:
    return pl.DataFrame({name: list(counts), number: list(counts.values())})


def directory_metadata(directory: DirectorySummary, path: Location, *, new_hosts: int) -> Metadata:
    """Say how many DIDs ended in which state, and how the accounts are spread over hosts."""
    states = _counts(directory.states, "state", "accounts").sort(
        "accounts", "state", descending=[True, False]
    )
    hosts = _counts(directory.hosts, "pds_host", "accounts").sort(
        "accounts", "pds_host", descending=[True, False]
    )
    return {
        "dagster/row_count": directory.accounts,
        "accounts_by_state": counts_table(states),
        "hosts": hosts.height,
        "new_hosts": new_hosts,
        "largest_hosts": counts_table(hosts),
        "path": file_path(path),
    }


def host_metadata(ledger: pl.DataFrame, report: HostReport, *, stored_bytes: int, path: Location) -> Metadata:
    """Say how the accounts of one host stand by all attempts on them, what is stored, and what this run did.

    What is a number has the same name for every host and in every run, so that it can be plotted; what begins with
    `run_` is of this run alone.
    """
    outcome = pl.col("outcome").replace({Outcome.UNCHANGED.value: Outcome.COMPLETE.value})
    attempts = latest_attempts(ledger).with_columns(outcome)
    states = attempts.group_by("outcome", "reason").agg(accounts=pl.len()).sort("outcome", "reason")
    complete = attempts.filter(pl.col("outcome") == Outcome.COMPLETE.value).height
    failed = attempts.filter(pl.col("outcome") == Outcome.FAILED.value).height
    obtained = (
        _latest_complete(ledger)
        .group_by(pl.col("obtained").fill_null(Obtained.REPO.value))
        .agg(accounts=pl.len(), records=pl.col("records").sum(), absent=pl.col("absent").sum())
        .sort("obtained")
    )
    attempted = sum(report.outcomes.values())
    megabytes = report.bytes_received / 1e6
    seconds = report.seconds
    return {
        "dagster/partition_row_count": stored_records(ledger),
        "accounts": attempts.height,
        "accounts_complete": complete,
        "accounts_not_active": attempts.height - complete - failed,
        "accounts_failed": failed,
        "accounts_by_state": counts_table(states),
        "stored_by_how_obtained": counts_table(obtained),
        "records_absent": int(obtained["absent"].sum()),
        "megabytes_stored": round(stored_bytes / 1e6, 3),
        "run_accounts": attempted,
        "run_changed_during_export": report.changed_during_export,
        "run_requests": report.requests,
        "run_pauses_asked_for": report.pauses,
        "run_megabytes_received": round(megabytes, 3),
        "run_seconds": round(seconds, 2),
        "run_accounts_per_second": _per_second(attempted, seconds),
        "run_requests_per_second": _per_second(report.requests, seconds),
        "run_megabytes_per_second": _per_second(megabytes, seconds),
        "path": file_path(path),
    }


def stored_records(ledger: pl.DataFrame) -> int:
    """Sum the records of the latest repository of each account that is stored whole."""
    return int(_latest_complete(ledger)["records"].sum())


def _latest_complete(ledger: pl.DataFrame) -> pl.DataFrame:
    return latest_attempts(ledger.filter(pl.col("outcome") == Outcome.COMPLETE.value))


def _per_second(amount: float, seconds: float) -> float:
    return round(amount / seconds, 3) if seconds else 0.0


def conversion_metadata(
    counts: pl.DataFrame, lists: Sequence[StoredList], *, packs_converted: int, path: Location
) -> Metadata:
    """Say what became of the records of one host's accounts (`table, fate, reason, records`), and what this run did.

    `lists` are those that the study's filters name.
    """
    fates = (
        counts.group_by("fate", "table", "reason")
        .agg(pl.col("records").sum())
        .sort("fate", "records", descending=[False, True])
    )
    totals = {fate: int(counts.filter(pl.col("fate") == fate)["records"].sum()) for fate in sorted(set(Fate))}
    return {
        "dagster/partition_row_count": totals[Fate.KEPT],
        "records_fetched": sum(totals.values()),
        **{f"records_{fate}": number for fate, number in totals.items()},
        "records_by_fate": counts_table(fates),
        **({"filter_lists": counts_table(_lists_table(lists))} if lists else {}),
        "run_packs_converted": packs_converted,
        "path": file_path(path),
    }


def _lists_table(lists: Sequence[StoredList]) -> pl.DataFrame:
    """Say of each list how many entries it has, how many of them are kept, each once, and why others are not."""
    return pl.DataFrame(
        {
            "list": [stored.key.rpartition("/")[2].removesuffix(".parquet") for stored in lists],
            "entries": [stored.given for stored in lists],
            "kept": [stored.kept for stored in lists],
            "left out": [
                ", ".join(f"{number:,} {reason}" for reason, number in stored.rejected.items())
                for stored in lists
            ],
        }
    )


def window_metadata(report: PartitionReport, path: Location, *, table_rows: int) -> Metadata:
    """Say what one time window of a table holds, and how many rows all of them do."""
    return {
        "dagster/partition_row_count": report.rows,
        "dagster/row_count": table_rows,
        "megabytes": round(report.bytes / 1e6, 3),
        "files": report.parts,
        "path": file_path(path),
    }


def derived_metadata(report: PartitionReport, path: Location, notes: Mapping[str, int]) -> Metadata:
    """Say what one time window of a derived table holds, and what there is to say of the whole table."""
    return {
        "dagster/partition_row_count": report.rows,
        "megabytes": round(report.bytes / 1e6, 3),
        "files": report.parts,
        **notes,
        "path": file_path(path),
    }


def engaged_metadata(rows: int, unusable: int, path: Location) -> Metadata:
    """Say how many accounts or posts were engaged with, and how many interactions name no account."""
    return {"dagster/row_count": rows, "interactions_without_account": unusable, "path": file_path(path)}


def accounts_metadata(accounts: AccountSums, path: Location) -> Metadata:
    """Say how the accounts ended and what became of their records."""
    states = accounts.by("state", "reason").sort(
        "accounts", "state", "reason", descending=[True, False, False], nulls_last=True
    )
    fates = ("fetched", "absent", "kept", "filtered", "rejected")
    return {
        "dagster/row_count": accounts.accounts,
        "accounts_by_state": counts_table(states),
        # The same for programs.
        "accounts_per_state": dict(accounts.by("state").sort("state").iter_rows()),
        **{f"records_{fate}": accounts.total(f"records_{fate}") for fate in fates},
        "undated": accounts.total("undated"),
        "rejected_by_reason": counts_table(accounts.reason_totals("rejected")),
        "filtered_by_reason": counts_table(accounts.reason_totals("filtered")),
        "path": file_path(path),
    }


def report_metadata(report: Report, path: Location) -> Metadata:
    """Show the report's numbers, and where its page is."""
    return {"summary": dg.MetadataValue.md(report.summary_markdown), "path": file_path(path)}
