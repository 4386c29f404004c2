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
from backfill_dagster.report.hosts import summarise_hosts
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.repos.snapshots import NOTHING_ASKED, PENDING, TOMBSTONED, UNRESOLVED
from backfill_dagster.sharing.rehydration import Rehydration, stored_rehydration
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import reason_totals

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backfill_dagster.attrition.period import Decay
    from backfill_dagster.config.study import Study

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
    accounts = storage.read(study_files.ACCOUNTS_KEY).filter("in_source")
    fetched_at = accounts["snapshot_fetched_at"]
    tables = study_files.study_tables(study)
    in_tables = accounts.filter(pl.col("shown") & pl.col("repo_rev").is_not_null())
    span = observed_days(
        study.time_range, _instant(accounts["first_created_at"].min()), _instant(fetched_at.max())
    )
    attrition = read_attrition(study, accounts)
    activity = read_activity(storage, tables, granularity_of(study.time_range), span, in_tables["did"])
    decay = read_decay(study, accounts, activity.by_day)
    return ReportNumbers(
        accounts=accounts.height,
        states=_states(accounts),
        left_out=storage.read(study_files.SOURCE_REJECTS_KEY)
        .group_by("reason")
        .agg(inputs=pl.len())
        .sort("reason"),
        records={
            **{
                fate: int(accounts[f"records_{fate}"].sum())
                for fate in ("fetched", "kept", "filtered", "rejected")
            },
            "undated": int(accounts["undated"].sum()),
        },
        tables=pl.DataFrame(
            {
                "table": tables,
                "records": [int(accounts[table].sum()) for table in tables],
                "in_period": [activity.records_of(table) for table in tables],
            }
        ),
        filtered=reason_totals(accounts, "filtered"),
        rejected=reason_totals(accounts, "rejected"),
        hosts=summarise_hosts(accounts, read_ledger(storage)),
        in_tables=in_tables.height,
        signed=in_tables.group_by("signed_by").agg(accounts=pl.len()).sort("signed_by", nulls_last=True),
        first_fetch=_instant(fetched_at.min()),
        last_fetch=_instant(fetched_at.max()),
        period_end=study.time_range.end_date,
        span=span,
        activity=activity,
        attrition=attrition,
        decay=decay,
        methods=methods_text(study, accounts, attrition, decay),
        rehydration=stored_rehydration(study),
    )


def state_label(state: str, reason: str | None) -> str:
    """Name a state with its reason, if that says more."""
    return state if reason is None or reason == state else f"{state} ({reason})"


def _instant(value: object) -> datetime | None:
    # What Polars' aggregations return is typed as any value.
    return value  # type: ignore[return-value]


def _states(accounts: pl.DataFrame) -> pl.DataFrame:
    kind = pl.col("state").replace_strict(_KIND_OF_STATE, default=BY_SERVER, return_dtype=pl.String)
    return (
        accounts.group_by("state", "reason")
        .agg(accounts=pl.len())
        .select("state", "reason", kind.alias("kind"), pl.col("accounts").cast(pl.Int64))
        .sort("accounts", "state", "reason", descending=[True, False, False])
    )
