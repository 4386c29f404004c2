"""All numbers of the report, read from the study's files once; figures and texts are made of these alone.

Nothing in here depends on the clock, so that the same files give the same page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import study_files
from backfill_dagster.attrition.build import read_attrition
from backfill_dagster.attrition.methods import methods_text
from backfill_dagster.attrition.period import read_decay
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.report.activity import Activity, read_activity
from backfill_dagster.report.days import DaySpan, observed_days
from backfill_dagster.report.hosts import sum_downloads, summarise_hosts
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import read_attempts
from backfill_dagster.repos.snapshots import NOTHING_ASKED, PENDING, TOMBSTONED, UNRESOLVED
from backfill_dagster.sharing.rehydration import Rehydration, stored_rehydration
from backfill_dagster.storage import StudyStorage, without_source
from backfill_dagster.stored_accounts import stored_accounts, stored_sums

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backfill_dagster.attrition.period import Decay
    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.account_sums import AccountSums

# What a state says of an account: a handful of kinds that a reader can keep apart.
COMPLETE, FAILED, BY_SERVER, BY_DIRECTORY, NOT_TRIED, NOT_ASKED = (
    "complete",
    "failed, to be tried again",
    "not active or not found, as its server says",
    "not resolved, as the directory says",
    "not fetched yet",
    "without a record that is asked for",
)
_KIND_OF_STATE = {
    Outcome.COMPLETE.value: COMPLETE,
    Outcome.FAILED.value: FAILED,
    UNRESOLVED: BY_DIRECTORY,
    TOMBSTONED: BY_DIRECTORY,
    PENDING: NOT_TRIED,
    NOTHING_ASKED: NOT_ASKED,
}


@dataclass(frozen=True, slots=True)
class ReportNumbers:
    """What the report says, before it is put into words; all of accounts that the source lists now.

    `attrition` (ATTRITION_SCHEMA) is what was lost on the way, `decay` how fast what was collected goes, and `methods`
    a paragraph about all of it, in Markdown. `rehydration` is what was found again, of a study that is rebuilt from
    what another one has shared.

    `states`: `state, reason, kind, accounts`. `left_out`: `reason, inputs` of the source. `tables`: `table, records,
    in_period`. `filtered`, `rejected`: `reason, records`. `hosts`: `HOSTS_SCHEMA`. `in_tables` is the number of
    accounts whose snapshot's records stand in the tables; `signed` (`signed_by, accounts`) says which key signed those.
    """

    accounts: int
    states: pl.DataFrame
    left_out: pl.DataFrame
    records: Mapping[str, int]
    tables: pl.DataFrame
    filtered: pl.DataFrame
    rejected: pl.DataFrame
    hosts: pl.DataFrame
    in_tables: int
    signed: pl.DataFrame
    first_fetch: datetime | None
    last_fetch: datetime | None
    period_end: datetime | None
    span: DaySpan | None
    activity: Activity
    attrition: pl.DataFrame
    decay: Decay
    methods: str
    rehydration: Rehydration | None

    @property
    def complete(self) -> int:
        """How many accounts are complete."""
        return int(self.states.filter(pl.col("kind") == COMPLETE)["accounts"].sum())

    @property
    def in_period(self) -> int:
        """How many records of the tables are dated within the study's period."""
        return int(self.tables["in_period"].sum())

    @property
    def outside_period(self) -> int:
        """How many records of the tables are dated outside the study's period."""
        return self.records["kept"] - self.records["undated"] - self.in_period

    @property
    def problems(self) -> list[str]:
        """Sums that should agree and do not; none in a sound study whose tables and accounts are of one build."""
        records = self.records
        found = []
        if (total := int(self.states["accounts"].sum())) != self.accounts:
            found.append(f"{self.accounts:,} accounts are listed, but {total:,} have a state")
        ends = records["kept"] + records["filtered"] + records["rejected"]
        if records["fetched"] != ends:
            found.append(f"{records['fetched']:,} records were fetched, but {ends:,} are accounted for")
        if (rows := int(self.tables["records"].sum())) != records["kept"]:
            found.append(f"{records['kept']:,} records were kept, but the tables have {rows:,}")
        if self.outside_period < 0:
            found.append("more records lie in the study's period than accounts.parquet knows of")
        return found


def read_numbers(study: Study) -> ReportNumbers:
    """Read the numbers from the study's files. Raises StorageError for one that is missing or damaged."""
    storage = StudyStorage(study.location)
    accounts = stored_sums(storage).of_source
    tables = study_files.study_tables(study)
    in_tables = accounts.kinds.filter("shown", "has_rev")
    span = observed_days(study.time_range, accounts.first_created_at, accounts.last_fetch)
    attrition = read_attrition(study)
    downloads = sum_downloads(read_attempts(storage), _dids(storage, pl.lit(value=True)))
    shown = _dids(storage, pl.col("shown") & pl.col("repo_rev").is_not_null())
    activity = read_activity(storage, tables, granularity_of(study.time_range), span, shown)
    decay = read_decay(study, accounts, activity.by_day)
    return ReportNumbers(
        accounts=accounts.accounts,
        states=_states(accounts),
        left_out=storage.read(study_files.SOURCE_REJECTS_KEY)
        .group_by("reason")
        .agg(inputs=pl.len())
        .sort("reason"),
        records={
            **{
                fate: accounts.total(f"records_{fate}")
                for fate in ("fetched", "kept", "filtered", "rejected")
            },
            "undated": accounts.total("undated"),
        },
        tables=pl.DataFrame(
            {
                "table": tables,
                "records": [accounts.total(table) for table in tables],
                "in_period": [activity.records_of(table) for table in tables],
            }
        ),
        filtered=accounts.reason_totals("filtered"),
        rejected=accounts.reason_totals("rejected"),
        hosts=summarise_hosts(accounts, downloads),
        in_tables=int(in_tables["accounts"].sum()),
        signed=in_tables.group_by("signed_by")
        .agg(pl.col("accounts").sum().cast(pl.UInt32))
        .sort("signed_by", nulls_last=True),
        first_fetch=accounts.first_fetch,
        last_fetch=accounts.last_fetch,
        period_end=study.time_range.end_date,
        span=span,
        activity=activity,
        attrition=attrition,
        decay=decay,
        methods=methods_text(study, accounts, attrition, decay),
        rehydration=stored_rehydration(study),
    )


def _dids(storage: StudyStorage, chosen: pl.Expr) -> pl.Series:
    """Return the accounts of the source that are chosen by `shown` and `repo_rev`, by DID."""
    lots = stored_accounts(storage, ["did", "in_source", "shown", "repo_rev"])
    return pl.concat(without_source(lot.rows.filter("in_source", chosen).select("did")) for lot in lots)[
        "did"
    ]


def state_label(state: str, reason: str | None) -> str:
    """Name a state with its reason, if that says more."""
    return state if reason is None or reason == state else f"{state} ({reason})"


def _states(accounts: AccountSums) -> pl.DataFrame:
    kind = pl.col("state").replace_strict(_KIND_OF_STATE, default=BY_SERVER, return_dtype=pl.String)
    return (
        accounts.by("state", "reason")
        .select("state", "reason", kind.alias("kind"), "accounts")
        .sort("accounts", "state", "reason", descending=[True, False, False])
    )
