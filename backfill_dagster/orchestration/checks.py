"""Checks of the finished study.

The blocking ones can only fail by a defect of this package or a damaged file. The others warn of what servers did and
clients wrote, held against the thresholds of the study's `quality` section. Each says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from backfill_dagster.orchestration.metadata import counts_table
from backfill_dagster.repos.snapshots import PENDING
from backfill_dagster.tables.quality import Finding, findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.accounting import AccountsBuild
    from backfill_dagster.config.study import Study
    from backfill_dagster.derived.inspection import DerivedInspection
    from backfill_dagster.tables.account_sums import AccountSums
    from backfill_dagster.tables.inspection import Inspection

_SHOWN = 10
_BUILD_AGAIN = (
    "Run the study's rebuild job; if it still fails, a stored file was changed, or this is a defect."
)

_BLOCKING = {
    "records_reconcile": "For every account, the records of its tree = those in the final files + those filtered + "
    "those rejected.",
    "rows_stand_in_their_tables": "For every account and table, the final files hold as many rows as the conversion "
    "kept.",
    "uris_are_unique": "No record stands in its table twice.",
    "every_account_has_a_state": "Every DID of the source stands here once, in one state of the closed set.",
    "signatures_accounted_for": "Every snapshot is signed by a key of its account, current or previous. Warns of those "
    "that were stored unchecked; unless the study verifies the structure alone.",
}
_WARNING = {
    "every_account_attempted": "Every account that has a host has been attempted.",
    "failed_accounts": "The share of accounts that failed is at most `quality.max_failed_accounts` of the YAML.",
    "rejected_records": "The share of records that could not be decoded is at most `quality.max_rejected_records`.",
    "undated_records": "The share of records without a date that can be believed is at most "
    "`quality.max_undated_records`.",
    "records_with_issues": "The share of records that break their lexicon is at most "
    "`quality.max_records_with_issues`.",
    "loss_even_over_hosts": "No host lost a share of its accounts or records that is larger than that of all by "
    "more than `quality.max_uneven_loss`.",
    "loss_even_over_activity": "Neither active nor quiet accounts lost a share that is larger than that of all by more "
    "than `quality.max_uneven_loss`.",
}


_TABLE = {
    "schema_as_declared": "The final files have the columns and types of the table's description.",
    "rows_in_their_partition": "Every row's date of creation lies in the time partition that it stands in.",
}


def table_checks(table: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on a record table; they read what a run has built."""
    return [
        dg.AssetCheckSpec(name, asset=table, blocking=True, description=description)
        for name, description in _TABLE.items()
    ]


def table_check_results(table: dg.AssetKey, found: Inspection) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the partitions of a record table that a run has built."""
    offences = {"schema_as_declared": found.other_schema, "rows_in_their_partition": found.rows_elsewhere}
    yield from _on_partitions(table, offences, found)


def _on_partitions(
    table: dg.AssetKey, offences: dict[str, int], found: Inspection | DerivedInspection
) -> Iterator[dg.AssetCheckResult]:
    for name, number in offences.items():
        yield dg.AssetCheckResult(
            asset_key=table,
            check_name=name,
            passed=number == 0,
            metadata={
                "offences": number,
                "partitions_read": found.windows,
                "files_read": found.files,
                "faulty_partitions": list(found.faulty[:_SHOWN]),
                "what_to_do": "Materialize the faulty partitions again; if it still fails, this is a defect.",
            },
        )


_DERIVED = {
    "schema_as_declared": "The final files have the columns and types of the table's description.",
    "keys_are_unique": "No row stands in its time partition twice.",
}
_RECONCILES = {
    "rows_are_accounted_for": "The rows of the record tables in the same time partition are all accounted for.",
}


def derived_checks(table: dg.AssetKey, *, reconciles: bool) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on a derived table; they read what a run has built."""
    return [
        dg.AssetCheckSpec(name, asset=table, blocking=True, description=description)
        for name, description in {**_DERIVED, **(_RECONCILES if reconciles else {})}.items()
    ]


def derived_check_results(
    table: dg.AssetKey, found: DerivedInspection, *, reconciles: bool
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the partitions of a derived table that a run has built."""
    offences = {
        "schema_as_declared": found.other_schema,
        "keys_are_unique": found.repeated_keys,
        **({"rows_are_accounted_for": found.unaccounted} if reconciles else {}),
    }
    yield from _on_partitions(table, offences, found)


def accounts_checks(accounts: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on the table of accounts."""
    return [
        dg.AssetCheckSpec(name, asset=accounts, blocking=checks is _BLOCKING, description=description)
        for checks in (_BLOCKING, _WARNING)
        for name, description in checks.items()
    ]


def accounts_check_results(study: Study, built: AccountsBuild) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the table of accounts, and on the tables that it counts."""
    yield _blocking(
        "records_reconcile",
        built.unreconciled,
        # Which accounts, `accounts.parquet` says: an event cannot be rid of a name again.
        hosts=list(built.unreconciled_hosts),
    )
    yield _blocking("rows_stand_in_their_tables", built.misplaced.total(), tables=sorted(built.misplaced))
    yield _blocking("uris_are_unique", built.repeated_uris)
    yield _blocking("every_account_has_a_state", built.unaccounted)
    yield _signatures(study, built.sums)
    pending = int(built.sums.of_source.kinds.filter(state=PENDING)["accounts"].sum())
    yield dg.AssetCheckResult(
        check_name="every_account_attempted",
        passed=pending == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "not_attempted": pending,
            "what_to_do": "Run the study's job again, or materialize the missing partitions of repos.",
        },
    )
    for finding in findings(built.sums, study.quality):
        yield _warning(finding)


def _signatures(study: Study, accounts: AccountSums) -> dg.AssetCheckResult:
    """Tell a signature that is nobody's, which cannot be, from one that was stored before signatures were checked."""
    wrong = accounts.missigned
    unchecked = accounts.unsigned if study.processing.verify == "full" else 0
    signed = accounts.kinds.filter("has_rev")
    signers = signed.group_by("signed_by").agg(pl.col("accounts").sum()).sort("signed_by")
    return dg.AssetCheckResult(
        check_name="signatures_accounted_for",
        passed=wrong + unchecked == 0,
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={
            "offences": wrong,
            "not_checked": unchecked,
            "signed_by": counts_table(signers),
            "what_to_do": _BUILD_AGAIN
            if wrong
            else "Run the study's job: it fetches again what was stored while the study verified the structure alone.",
        },
    )


def _blocking(name: str, offences: int, **metadata: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        passed=offences == 0,
        metadata={"offences": offences, **metadata, "what_to_do": _BUILD_AGAIN},
    )


def _warning(finding: Finding) -> dg.AssetCheckResult:
    worst = {} if finding.worst is None else {"where": counts_table(finding.worst)}
    return dg.AssetCheckResult(
        check_name=finding.name,
        passed=finding.passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "share": round(finding.share, 5),
            "limit": finding.limit,
            **finding.numbers,
            **worst,
            "what_to_do": finding.what_to_do,
        },
    )
