"""Stage 5, the table of accounts: what became of each, counted by reading the final files again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dictionary.written import write_dictionary
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.fingerprints import records_fingerprint
from backfill_dagster.records.conversion import read_counts
from backfill_dagster.repos.packs import pack_keys, read_ledger
from backfill_dagster.repos.snapshots import PENDING, UNRESOLVED, snapshots
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    asked_directory,
    study_tables,
)
from backfill_dagster.tables.accounts import misplaced, summarise
from backfill_dagster.tables.build import table_keys
from backfill_dagster.tables.kept import KEPT_SCHEMA, add_kept, count_kept
from backfill_dagster.tables.ledger import ledger_key
from backfill_dagster.tables.repeated_uris import count_repeated_uris
from backfill_dagster.workers import SMALL_BYTES, worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study

# In the metadata of the accounts' file: what it was made of.
_MADE_OF = "made_of"
# Accounts are summed up by so many at least, and in so many lots at most: what that takes besides is small then, and
# so is what it costs to pick out a lot.
_ACCOUNTS_AT_ONCE = 2_000
_LOTS = 32


@dataclass(frozen=True, slots=True)
class AccountsBuild:
    """The table of accounts, the DIDs that it must have, and what reading the final files again found wrong."""

    accounts: pl.DataFrame
    source: pl.DataFrame
    misplaced: pl.DataFrame
    repeated_uris: int


def build_accounts(study: Study) -> AccountsBuild:
    """Stage 5: write the table of accounts, counting the records kept by reading the final files again."""
    storage = StudyStorage(study.location)
    made_of = accounts_inputs(study)
    kept, repeated = _recount(study)
    source = storage.read(SOURCE_KEY)
    accounts, wrong = _summarise(study, source, kept)
    storage.write(ACCOUNTS_KEY, accounts, metadata={_MADE_OF: made_of})
    write_dictionary(study)
    return AccountsBuild(accounts, source, wrong, repeated)


def _summarise(study: Study, source: pl.DataFrame, kept: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the table of accounts, and what is misplaced; `kept` is what the final files hold (KEPT_SCHEMA)."""
    accounts, wrong = zip(*_summarise_lots(study, source, kept), strict=True)
    return pl.concat(accounts).sort("did"), pl.concat(wrong).sort("did", "table")


def _summarise_lots(
    study: Study, source: pl.DataFrame, kept: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Do so for some accounts at a time: the conversions' counts are many more than the accounts."""
    storage = StudyStorage(study.location)
    directory, ledger = asked_directory(study, source["did"]), read_ledger(storage)
    told = ledger.select("did", "pds_host", "pack", "outcome", "obtained", "asked", "repo_rev", "fetched_at")
    current = snapshots(directory, told).select("did", "pds_host", "pack")
    # By pack, so that each is looked into once or twice.
    everybody = (
        pl.concat([directory.select("did"), kept.select("did")])
        .unique()
        .join(current, on="did", how="left")
        .sort("pds_host", "pack", "did")
    )
    at_once = max(_ACCOUNTS_AT_ONCE, -(-everybody.height // _LOTS))
    for first in range(0, max(1, everybody.height), at_once):
        some = everybody.slice(first, at_once)
        packs = some.select("pds_host", "pack").drop_nulls().unique(maintain_order=True)
        counts = read_counts(storage, packs.iter_rows()).join(some, on=["did", "pack"], how="semi")
        kept_of_some = kept.join(some, on="did", how="semi", nulls_equal=True)
        accounts = summarise(
            source.join(some, on="did", how="semi"),
            directory.join(some, on="did", how="semi"),
            ledger.join(some, on="did", how="semi"),
            counts,
            kept_of_some,
            tables=study_tables(study),
            hide_inactive=study.inactive_accounts != "keep",
        )
        yield accounts, misplaced(accounts, some.drop_nulls("pack"), counts, kept_of_some)


def _recount(study: Study) -> tuple[pl.DataFrame, int]:
    """Read all final files again: what they hold of each account (KEPT_SCHEMA), and how many URIs are repeated."""
    storage = StudyStorage(study.location)
    sizes = {
        table: sum(storage.sizes_of(table_keys(storage, table)).values()) for table in study_tables(study)
    }
    # What takes longest first.
    tables = sorted(sizes, key=lambda table: -sizes[table])
    kept, repeated = KEPT_SCHEMA.to_frame(), 0
    if sum(sizes.values()) < SMALL_BYTES:
        for table in tables:
            kept = add_kept([kept, count_kept(storage, table)])
            repeated += count_repeated_uris(storage, table)
        return kept, repeated
    with worker_pool(study.processing.worker_count) as workers:
        counting = [
            (workers.submit(count_kept, storage, table), workers.submit(count_repeated_uris, storage, table))
            for table in tables
        ]
        while counting:
            of_table, number = counting.pop(0)
            kept = add_kept([kept, of_table.result()])
            repeated += number.result()
    return kept, repeated


def accounts_are_stale(study: Study) -> bool:
    """Tell whether anything that the table of accounts is made of is another than when it was written."""
    storage = StudyStorage(study.location)
    if not storage.exists(ACCOUNTS_KEY):
        return True
    return storage.metadata(ACCOUNTS_KEY).get(_MADE_OF) != accounts_inputs(study)


def accounts_inputs(study: Study) -> str:
    """Return the identity of all that the table of accounts is made of; content, not time."""
    storage = StudyStorage(study.location)
    tables = study_tables(study)
    files = [SOURCE_KEY, DIRECTORY_KEY, *(ledger_key(table) for table in tables)]
    digests = [storage.sha256(key) if storage.exists(key) else None for key in files]
    # A pack's name is made of its content.
    packs = [key for *_, key in pack_keys(storage)]
    settings = [records_fingerprint(study), study.inactive_accounts, study.fetch]
    told = json.dumps([digests, packs, tables, *settings])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def unfinished_accounts(study: Study) -> tuple[int, int]:
    """Count the source's accounts that the PLC directory failed to tell of, and those not attempted yet."""
    accounts = StudyStorage(study.location).read(ACCOUNTS_KEY).filter("in_source")
    failures = [state.value for state in DirectoryState if not state.settled]
    unknown = (pl.col("state") == UNRESOLVED) & pl.col("reason").is_in(failures)
    at_plc = pl.col("did").str.starts_with("did:plc:")
    return accounts.filter(unknown & at_plc).height, accounts.filter(pl.col("state") == PENDING).height
