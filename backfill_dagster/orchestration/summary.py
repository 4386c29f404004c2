"""What the one command says at its end: a page that a person can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster import study_files
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stored_accounts import stored_sums

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.account_sums import AccountSums


def study_summary(study: Study) -> str:
    """Return accounts by final state, records by table, rejects by reason, where the files are, what is next."""
    storage = StudyStorage(study.location)
    accounts = stored_sums(storage).of_source
    states = accounts.by("state", "reason").sort(
        "accounts", "state", "reason", descending=[True, False, False]
    )
    tables, word = study_files.study_tables(study), granularity_of(study.time_range).word
    first = f"{study.location}/tables/{tables[0]}/*/*.parquet"
    left_out = storage.read(study_files.SOURCE_REJECTS_KEY).group_by("reason").len().sort("reason")
    sections = [
        f"Study {study.name}: {accounts.accounts:,} accounts",
        *_rows(
            (f"{state} ({reason})" if reason else state, number)
            for state, reason, number in states.iter_rows()
        ),
        *_rows((f"left out of the source ({reason})", number) for reason, number in left_out.iter_rows()),
        "",
        f"Records in the tables: {accounts.total('records_kept'):,} "
        f"of {accounts.total('records_fetched'):,} fetched",
        *_rows((table, accounts.total(table)) for table in tables),
        *_rows([("of these without a believable date", accounts.total("undated"))]),
        *_fate(accounts, "filtered", "Left out by the study's choice"),
        *_fate(accounts, "rejected", "Rejected"),
        "",
        f"Files: {study.location}/tables/<table>/{word}=.../*.parquet, undated/<table>/*.parquet, accounts.parquet",
        "Next:",
        "  dagster dev -w workspace.yaml         # then open the address it prints",
        f"  python -c \"import polars as pl; print(pl.read_parquet('{first}'))\"",
        f"  python -c \"import duckdb; print(duckdb.read_parquet('{first}'))\"   # after pip install duckdb",
    ]
    return "\n".join(["", *sections, ""])


def _fate(accounts: AccountSums, fate: str, title: str) -> list[str]:
    return [
        f"{title}: {accounts.total(f'records_{fate}'):,}",
        *_rows(accounts.reason_totals(fate).iter_rows()),
    ]


def _rows(rows: object) -> list[str]:
    return [f"  {name:<44}{number:>10,}" for name, number in rows]  # type: ignore[attr-defined]
