"""The table of accounts: one row each, with its one final state and what became of every one of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.records.outcomes import FilterReason, RejectReason
from backfill_dagster.records.tables import TABLES, USUAL_TABLES
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Obtained, Outcome
from backfill_dagster.repos.snapshots import (
    NOTHING_ASKED,
    PENDING,
    TOMBSTONED,
    UNRESOLVED,
    StateWithoutAttempt,
    account_states,
    current_hosts,
    latest_attempts,
    snapshots,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# States of an account that its owner or an operator has withdrawn; a failure to reach it is none of these.
INACTIVE_STATES = frozenset(
    {
        Outcome.DEACTIVATED.value,
        Outcome.TAKENDOWN.value,
        Outcome.SUSPENDED.value,
        Outcome.INACTIVE.value,
        Outcome.NOT_FOUND.value,
        Outcome.DELETED.value,
        TOMBSTONED,
    }
)

# The closed set that every account's state is out of.
ACCOUNT_STATES = frozenset(
    {
        *(outcome.value for outcome in Outcome if outcome is not Outcome.UNCHANGED),
        TOMBSTONED,
        UNRESOLVED,
        PENDING,
        NOTHING_ASKED,
    }
)


class HiddenReason(ClosedSet):
    """Why records that were converted are not in the tables: a reason of `filtered`, beside a `FilterReason`."""

    ACCOUNT_INACTIVE = (
        "account_inactive",
        "Its account is not active any more, and `inactive_accounts` hides it.",
        "`inactive_accounts: keep` shows it, if the study may.",
    )
    ACCOUNT_LEFT_SOURCE = "account_left_source", "Its account is not in the source any more."


_REASON_COUNTS = pl.List(pl.Struct({"reason": pl.String(), "records": pl.Int64()}))

_COLUMNS_BEFORE = (
    Column("did", pl.String(), "The account's DID: the key of this table.", required=True),
    Column(
        "handle",
        pl.String(),
        "Handle named by the DID document when it was resolved; not checked against DNS.",
    ),
    Column("pds", pl.String(), "Origin of the PDS that the DID document names."),
    Column(
        "pds_host",
        pl.String(),
        "Host (and port) of the PDS where the account lives by the latest word on it.",
    ),
    Column(
        "state",
        pl.String(),
        "The one state that the account ended in.",
        required=True,
        words=(Outcome, StateWithoutAttempt),
    ),
    Column(
        "reason",
        pl.String(),
        "Why, for a state that needs a reason: a failure, or a directory state.",
        words=(FailureReason, DirectoryState),
    ),
    Column("detail", pl.String(), "What the server or the check said, in its words."),
    Column("in_source", pl.Boolean(), "Whether the study's source lists the account now.", required=True),
    Column("shown", pl.Boolean(), "Whether the account's rows stand in the tables.", required=True),
    Column(
        "obtained",
        pl.String(),
        "How the snapshot was obtained; null if there is no snapshot.",
        words=(Obtained,),
    ),
    Column(
        "repo_rev",
        pl.String(),
        "Revision (TID) of the snapshot; null if there is no snapshot, or its host did not name one.",
    ),
    Column("snapshot_host", pl.String(), "PDS that the snapshot came from."),
    Column("snapshot_fetched_at", pl.Datetime("us", "UTC"), "When the snapshot was fetched."),
    Column(
        "signed_by",
        pl.String(),
        "Which key signed the snapshot's commit: current, previous, or null if unchecked.",
    ),
    Column("attempts", pl.Int32(), "Tries of the latest fetch."),
    Column("http_status", pl.Int32(), "HTTP status of the latest answer."),
    Column("bytes_received", pl.Int64(), "Bytes received for the latest fetch."),
    Column(
        "records_fetched",
        pl.Int64(),
        "Records in the snapshot's tree, counted by walking it; or those that were asked for and are there.",
        required=True,
    ),
    Column(
        "records_absent",
        pl.Int64(),
        "Records that were asked for and are not there, which are not among those fetched.",
        required=True,
    ),
    Column(
        "records_kept",
        pl.Int64(),
        "Records that stand in the tables, counted by reading the final files.",
        required=True,
    ),
    Column("records_filtered", pl.Int64(), "Records left out by the study's own choice.", required=True),
    Column(
        "records_rejected", pl.Int64(), "Records that cannot be decoded or have no usable key.", required=True
    ),
    Column(
        "filtered",
        _REASON_COUNTS,
        "Records left out, by reason.",
        words=(FilterReason, HiddenReason),
    ),
    Column(
        "rejected",
        _REASON_COUNTS,
        "Records rejected, by reason.",
        words=(RejectReason, LeftOut),
    ),
)
_COLUMNS_AFTER = (
    Column(
        "undated",
        pl.Int64(),
        "Of the records kept, those without a date that can be believed.",
        required=True,
    ),
    Column(
        "with_issues",
        pl.Int64(),
        "Of the records kept, those with a field that does not hold what its lexicon promises.",
        required=True,
    ),
    Column(
        "first_created_at",
        pl.Datetime("us", "UTC"),
        "Earliest believed creation time among the records kept.",
    ),
    Column(
        "last_created_at", pl.Datetime("us", "UTC"), "Latest believed creation time among the records kept."
    ),
)


def account_columns(tables: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return every column of accounts.parquet in a study with these tables.

    The usual tables are counted in every study, so that those of several can be read together; others where they are.
    """
    counted = dict.fromkeys([*USUAL_TABLES, *tables])
    return (
        *_COLUMNS_BEFORE,
        *(
            Column(table, pl.Int64(), f"Rows in `{table}`, undated ones included.", required=True)
            for table in counted
        ),
        *_COLUMNS_AFTER,
    )


def accounts_schema(tables: Iterable[str] = ()) -> pl.Schema:
    """Return the schema of accounts.parquet in a study with these tables."""
    return schema_of(account_columns(tables))


# Of a study that has no tables but the usual ones.
ACCOUNTS_SCHEMA = accounts_schema()


def visible_accounts(
    source: pl.DataFrame, directory: pl.DataFrame, ledger: pl.DataFrame, *, hide_inactive: bool
) -> pl.DataFrame:
    """Return `did, in_source, inactive, shown` for every account with a directory row."""
    states = account_states(directory, ledger)
    inactive = pl.col("state").is_in(sorted(INACTIVE_STATES))
    return states.select(
        "did",
        in_source=pl.col("did").is_in(source["did"].implode()),
        inactive=inactive & hide_inactive,
    ).with_columns(shown=pl.col("in_source") & ~pl.col("inactive"))


def rows_from(
    source: pl.DataFrame, directory: pl.DataFrame, ledger: pl.DataFrame, *, hide_inactive: bool
) -> pl.DataFrame:
    """Return `did, pds_host, pack` of the snapshots whose records stand in the tables."""
    shown = visible_accounts(source, directory, ledger, hide_inactive=hide_inactive).filter("shown")
    return snapshots(directory, ledger).join(shown, on="did", how="semi").select("did", "pds_host", "pack")


def summarise(
    source: pl.DataFrame,
    directory: pl.DataFrame,
    ledger: pl.DataFrame,
    counts: pl.DataFrame,
    kept: pl.DataFrame,
    *,
    hide_inactive: bool,
    tables: Iterable[str] = (),
) -> pl.DataFrame:
    """Return the table of accounts (`accounts_schema` of the study's tables), sorted by DID.

    `counts` is the conversions' account of the snapshots' packs; `kept` is what the final files really hold
    (KEPT_SCHEMA).
    """
    schema = accounts_schema(tables)
    visible = visible_accounts(source, directory, ledger, hide_inactive=hide_inactive)
    snapshot = snapshots(directory, ledger)
    fates = _fates(counts.join(snapshot.select("did", "pack"), on=["did", "pack"], how="semi"), visible)
    frame = (
        directory.select("did", "handle", "pds")
        .join(account_states(directory, ledger), on="did", how="left")
        .join(visible.drop("inactive"), on="did", how="left")
        .join(current_hosts(directory, ledger).rename({"current_host": "pds_host"}), on="did", how="left")
        .join(
            snapshot.select(
                "did",
                "repo_rev",
                "signed_by",
                obtained=pl.col("obtained").fill_null(Obtained.REPO.value),
                records_absent="absent",
                snapshot_host="pds_host",
                snapshot_fetched_at="fetched_at",
                records_fetched="records",
            ),
            on="did",
            how="left",
        )
        .join(
            latest_attempts(ledger).select("did", "attempts", "http_status", "bytes_received"),
            on="did",
            how="left",
        )
        .join(fates, on="did", how="left")
        .join(_kept(kept), on="did", how="left")
    )
    numbers = [
        "records_fetched",
        "records_absent",
        "records_kept",
        "records_filtered",
        "records_rejected",
        "undated",
        "with_issues",
        *(table for table in TABLES if table in schema),
    ]
    return frame.with_columns(pl.col(*numbers).fill_null(0)).select(schema.names()).cast(schema).sort("did")


def unreconciled(accounts: pl.DataFrame) -> pl.DataFrame:
    """Return the accounts for which fetched = kept + filtered + rejected does not hold."""
    total = pl.col("records_kept") + pl.col("records_filtered") + pl.col("records_rejected")
    return accounts.filter(pl.col("records_fetched") != total)


def unaccounted(accounts: pl.DataFrame, source: pl.DataFrame) -> pl.DataFrame:
    """Return `did` of accounts that stand here not once, or not in one state of the closed set."""
    stateless = accounts.filter(~pl.col("state").is_in(sorted(ACCOUNT_STATES)).fill_null(value=False))
    repeated = accounts.filter(pl.col("did").is_duplicated())
    absent = source.join(accounts, on="did", how="anti")
    return pl.concat([frame.select("did") for frame in (stateless, repeated, absent)]).unique().sort("did")


def reason_totals(accounts: pl.DataFrame, fate: str) -> pl.DataFrame:
    """Sum the records of one fate (`filtered` or `rejected`) by reason, over all accounts."""
    return (
        accounts.select(pl.col(fate).explode().struct.unnest())
        .drop_nulls("reason")
        .group_by("reason")
        .agg(pl.col("records").sum())
        .sort("records", "reason", descending=[True, False])
    )


def misplaced(
    accounts: pl.DataFrame, snapshot_packs: pl.DataFrame, counts: pl.DataFrame, kept: pl.DataFrame
) -> pl.DataFrame:
    """Return `did, table, converted, rows` where a table does not hold what the conversion kept for it.

    Sums over all tables could agree by two errors that cancel out.
    """
    shown = accounts.filter("shown").select("did").join(snapshot_packs, on="did").select("did", "pack")
    converted = (
        counts.filter(pl.col("fate") == "kept")
        .join(shown, on=["did", "pack"], how="semi")
        .group_by("did", "table")
        .agg(converted=pl.col("records").sum())
    )
    rows = (
        kept.select("did", pl.col(*TABLES).cast(pl.Int64))
        .unpivot(TABLES, index="did", variable_name="table", value_name="rows")
        .filter(pl.col("rows") > 0)
    )
    both = converted.join(rows, on=["did", "table"], how="full", coalesce=True).with_columns(
        pl.col("converted", "rows").fill_null(0)
    )
    return both.filter(pl.col("converted") != pl.col("rows")).sort("did", "table")


def _fates(counts: pl.DataFrame, visible: pl.DataFrame) -> pl.DataFrame:
    """Sum the conversions' counts per account; what was kept there but is not shown counts as filtered."""
    hidden = visible.filter(~pl.col("shown")).select(
        "did",
        hidden=pl.when("in_source")
        .then(pl.lit(HiddenReason.ACCOUNT_INACTIVE.value))
        .otherwise(pl.lit(HiddenReason.ACCOUNT_LEFT_SOURCE.value)),
    )
    told = counts.join(hidden, on="did", how="left").with_columns(
        reason=pl.when((pl.col("fate") == "kept") & pl.col("hidden").is_not_null())
        .then("hidden")
        .otherwise("reason"),
        fate=pl.when((pl.col("fate") == "kept") & pl.col("hidden").is_not_null())
        .then(pl.lit("filtered"))
        .otherwise("fate"),
    )
    by_reason = (
        told.group_by("did", "fate", "reason").agg(pl.col("records").sum()).sort("did", "fate", "reason")
    )
    sums = [
        by_reason.filter(pl.col("fate") == fate)
        .group_by("did")
        .agg(
            pl.col("records").sum().alias(f"records_{fate}"),
            pl.struct("reason", "records").alias(fate),
        )
        for fate in ("filtered", "rejected")
    ]
    return sums[0].join(sums[1], on="did", how="full", coalesce=True)


def _kept(kept: pl.DataFrame) -> pl.DataFrame:
    return kept.select(
        "did",
        pl.sum_horizontal(pl.col(*TABLES).cast(pl.Int64)).alias("records_kept"),
        *TABLES,
        "undated",
        "with_issues",
        pl.col("first").alias("first_created_at"),
        pl.col("last").alias("last_created_at"),
    )
