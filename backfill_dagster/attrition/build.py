"""The table of attrition of a study, and the paragraph about it, made of the study's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.attrition.losses import LOSS_COLUMNS, KnownLot, is_seen, losses, tenths
from backfill_dagster.attrition.methods import methods_text
from backfill_dagster.attrition.period import read_decay
from backfill_dagster.attrition.steps import (
    ATTRITION_KEY,
    ATTRITION_SCHEMA,
    Step,
    Unit,
    attrition_table,
    totals,
)
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.storage import StudyStorage, without_source
from backfill_dagster.stored_accounts import stored_accounts, stored_sums
from backfill_dagster.study_files import (
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    account_lots,
    lot_ranges,
    study_tables,
)
from backfill_dagster.survivorship.ages import BIN_EDGES
from backfill_dagster.survivorship.inventory import INVENTORY_SCHEMA, KIND
from backfill_dagster.survivorship.stored import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.account_sums import AccountSums

METHODS_KEY = "methods.md"
FIGURE_KEY = "attrition.svg"
_PACKS_AT_ONCE = 64
_AGES_SCHEMA = pl.Schema({"did": pl.String(), "days": pl.Float64()})
_TAKEN_SCHEMA = pl.Schema({**_AGES_SCHEMA, "pack": pl.String()})
_UNDATED_SCHEMA = pl.Schema({"did": pl.String(), "date_quality": pl.String(), "records": pl.Int64()})


@dataclass(frozen=True, slots=True)
class Attrition:
    """The table of attrition (ATTRITION_SCHEMA) as it is stored, the paragraph, and what does not agree, in words."""

    table: pl.DataFrame
    methods: str
    problems: tuple[str, ...]


def build_attrition(study: Study) -> Attrition:
    """Write the table and the paragraph of a study whose accounts are built; the same data give the same bytes.

    Raises StorageError.
    """
    storage = StudyStorage(study.location)
    accounts = stored_sums(storage).of_source
    made = read_attrition(study)
    text = methods_text(study, accounts, made, read_decay(study, accounts))
    is_news = not (
        storage.exists(ATTRITION_KEY)
        and storage.exists(FIGURE_KEY)
        and storage.read(ATTRITION_KEY).equals(made)
    )
    if is_news:
        storage.write(ATTRITION_KEY, made)
        storage.write_bytes(FIGURE_KEY, _figure(made))
    if not storage.exists(METHODS_KEY) or storage.read_bytes(METHODS_KEY) != text.encode():
        storage.write_bytes(METHODS_KEY, text.encode())
    stored = storage.read(ATTRITION_KEY)
    listed, rejects = storage.rows(SOURCE_KEY), storage.rows(SOURCE_REJECTS_KEY)
    return Attrition(stored, text, tuple(problems(stored, accounts, listed, rejects)))


def _figure(table: pl.DataFrame) -> bytes:
    """Draw what each step left and lost, as an image that stands by itself."""
    # Matplotlib takes a while to import, and most runs have nothing new to draw.
    from backfill_dagster.report.drawing import Drawing
    from backfill_dagster.report.figures.attrition import draw_steps

    return Drawing(draw_steps, (table,)).svg("attrition", "What each step left, and what it lost").encode()


def read_attrition(study: Study) -> pl.DataFrame:
    """Return the table of attrition of the study's accounts (ATTRITION_SCHEMA); stores nothing."""
    storage = StudyStorage(study.location)
    # Of all accounts, and of each of them a few bytes.
    activity = tenths(
        pl.concat(
            lot.rows.filter("in_source").select("records_fetched", seen=is_seen())
            for lot in stored_accounts(storage, ["in_source", "records_fetched", "obtained"])
        )
    )
    rejects = storage.read(SOURCE_REJECTS_KEY)
    return attrition_table(losses(rejects, activity, _lots(study)))


def _lots(study: Study) -> Iterator[KnownLot]:
    """Yield the accounts of the source by ranges of their DIDs."""
    storage = StudyStorage(study.location)
    undated = pl.concat([_UNDATED_SCHEMA.to_frame(), *map(without_source, _undated(study))])
    columns = ["in_source", *LOSS_COLUMNS]
    inventories = storage.keys(f"{FOLDER}/{KIND}")
    if not inventories:
        for dids, rows in stored_accounts(storage, columns):
            of_range = undated.filter(dids.holds("did"))
            yield KnownLot(rows.filter("in_source"), of_range, _AGES_SCHEMA.to_frame())
        return
    with storage.scratch() as scratch, DealtRows(scratch / "ages.arrow", _TAKEN_SCHEMA) as taken:
        ranges = lot_ranges(storage)
        for some in _ages(storage, inventories):
            for dids, rows in dealt_by_range(some, ranges):
                taken.add(dids, rows)
        for lot in account_lots(study, ranges=ranges):
            [(_, rows)] = stored_accounts(storage, columns, [lot.dids])
            current = snapshots(lot.directory, lot.ledger)
            ages = (
                taken.of(lot.dids).join(current, on=["did", "pack"], how="semi").select(_AGES_SCHEMA.names())
            )
            yield KnownLot(rows.filter("in_source"), undated.filter(lot.dids.holds("did")), ages)


def problems(table: pl.DataFrame, accounts: AccountSums, source: int, rejects: int) -> Iterator[str]:
    """Say what in the table does not agree: within itself, and with the files that it was not made of step by step.

    `accounts` are those of the source, by accounts.parquet; `source` and `rejects` say how many the source gave.
    """
    if table.schema != ATTRITION_SCHEMA:
        yield "the table does not have the columns that it is described with"
        return
    kind = ["unit", "by", "class"]
    before = pl.col("left").shift(1).over(kind)
    told = pl.col("reasons").list.eval(pl.element().struct.field("number")).list.sum()
    broken = table.sort(*kind, "place").filter(
        (pl.col("entered") - pl.col("lost") != pl.col("left"))
        | (before.is_not_null() & (pl.col("entered") != before))
        | (told != pl.col("lost"))
        | (pl.min_horizontal("entered", "lost", "left") < 0)
    )
    if broken.height:
        yield f"{broken.height:,} rows do not add up"
    sums = table.group_by("unit", "by", "step").agg(pl.col("entered", "lost", "left").sum())
    apart = sums.group_by("unit", "step").agg(pl.col("entered", "lost", "left").n_unique())
    if uneven := apart.filter(pl.max_horizontal("entered", "lost", "left") > 1).height:
        yield f"{uneven:,} steps have other sums by class than over all"
    of_accounts, of_records = totals(table, Unit.ACCOUNTS), totals(table, Unit.RECORDS)
    with_snapshot = accounts.kinds.filter(is_seen())
    expected = {
        "entries of the source": (of_accounts[Step.VALID][0], source + rejects),
        "accounts that the source lists": (of_accounts[Step.WANTED][2], source),
        "accounts with a snapshot": (of_accounts[Step.COMPLETE][2], int(with_snapshot["accounts"].sum())),
        "accounts that are shown": (
            of_accounts[Step.ACTIVE][2],
            int(with_snapshot.filter("shown")["accounts"].sum()),
        ),
        "accounts in the tables": (of_accounts[Step.IN_TABLES][2], accounts.total("in_tables")),
        "records in the snapshots": (of_records[Step.FOUND][2], accounts.total("records_fetched")),
        "records rejected": (of_records[Step.USABLE][1], accounts.total("records_rejected")),
        "records kept": (of_records[Step.SHOWN][2], accounts.total("records_kept")),
        "records undated": (of_records[Step.DATED][1], accounts.total("undated")),
    }
    for what, (found, stored) in expected.items():
        if found != stored:
            yield f"{what}: {found:,} here and {stored:,} in what is stored"


def _undated(study: Study) -> Iterator[pl.DataFrame]:
    """Yield the undated rows of each table by account and judgement."""
    storage = StudyStorage(study.location)
    for table in study_tables(study):
        for key in storage.keys(f"{UNDATED}/{table}"):
            rows = storage.scan([key], {"did": pl.String(), "date_quality": pl.String()})
            [counted] = storage.collect([rows.group_by("did", "date_quality").agg(records=pl.len())], [key])
            yield counted.cast(_UNDATED_SCHEMA)


def _ages(storage: StudyStorage, inventories: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the ages in days of accounts (_TAKEN_SCHEMA) by these inventories, some packs' after the other's.

    To the edge of a bin: classes of ages are made of whole bins.
    """
    days = dict(enumerate(BIN_EDGES))
    for first in range(0, len(inventories), _PACKS_AT_ONCE):
        some = inventories[first : first + _PACKS_AT_ONCE]
        rows = (
            storage.scan_named({key: Path(key).stem for key in some}, INVENTORY_SCHEMA, "pack")
            .group_by("did", "pack")
            .agg(pl.col("age").max())
            .drop_nulls("age")
            .select("did", "pack", days=pl.col("age").replace_strict(days, return_dtype=pl.Float64))
            .select(_TAKEN_SCHEMA.names())
        )
        yield from storage.collect([rows], some)
