"""What the one command says at its end: a page that a person can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import study_files
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import reason_totals

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study


def study_summary(study: Study) -> str:
    """Return accounts by final state, records by table, rejects by reason, where the files are, what is next."""
    storage = StudyStorage(study.location)
    accounts = storage.read(study_files.ACCOUNTS_KEY).filter("in_source")
    states = (
        accounts.group_by("state", "reason")
        .agg(n=pl.len())
        .sort("n", "state", "reason", descending=[True, False, False])
    )
    tables, word = study_files.study_tables(study), granularity_of(study.time_range).word
    first = f"{study.location}/tables/{tables[0]}/*/*.parquet"
    left_out = storage.read(study_files.SOURCE_REJECTS_KEY).group_by("reason").len().sort("reason")
    sections = [
        f"Study {study.name}: {accounts.height:,} accounts",
        *_rows(
            (f"{state} ({reason})" if reason else state, number)
            for state, reason, number in states.iter_rows()
        ),
        *_rows((f"left out of the source ({reason})", number) for reason, number in left_out.iter_rows()),
        "",
        f"Records in the tables: {int(accounts['records_kept'].sum()):,} "
        f"of {int(accounts['records_fetched'].sum()):,} fetched",
        *_rows((table, int(accounts[table].sum())) for table in tables),
        *_rows([("of these without a believable date", int(accounts["undated"].sum()))]),
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


def _fate(accounts: pl.DataFrame, fate: str, title: str) -> list[str]:
    total = int(accounts[f"records_{fate}"].sum())
    return [f"{title}: {total:,}", *_rows(reason_totals(accounts, fate).iter_rows())]


def _rows(rows: object) -> list[str]:
    return [f"  {name:<44}{number:>10,}" for name, number in rows]  # type: ignore[attr-defined]
