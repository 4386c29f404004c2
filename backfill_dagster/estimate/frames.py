"""How many accounts a study has, on which hosts and how large: as far as that is known without asking anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import pipeline
from backfill_dagster.dids.sources.lineage import study_sources
from backfill_dagster.errors import BackfillError, ConfigError
from backfill_dagster.estimate.figures import Skew
from backfill_dagster.estimate.model import Frame
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.repos.preflight import ENOUGH_TO_KNOW
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import DIRECTORY_KEY, SOURCE_KEY

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.estimate.figures import Figures

# Sources whose lists servers give: to count them would be to ask.
_ASKING = frozenset({"handles", "pds", "collection", "list", "plc_export", "s3"})


@dataclass(frozen=True, slots=True)
class KnownFrame:
    """A frame, and in words where its accounts, its hosts and its sizes are known from."""

    frame: Frame
    accounts_from: str
    hosts_from: str
    sizes_from: str


def frame_of(study: Study, figures: Figures, accounts: int | None = None) -> KnownFrame:
    """Say what is known of a study; with `accounts`, of as many.

    Raises ConfigError if the accounts cannot be counted without asking servers.
    """
    storage = StudyStorage(study.location)
    hosts: list[int] | None = None
    hosts_from = "assumed, as 340 hosts shared 383,598 accounts"
    accounts_from = "as given"
    if accounts is None and storage.exists(DIRECTORY_KEY):
        located = storage.read(DIRECTORY_KEY)["pds_host"].drop_nulls().value_counts(sort=True)
        hosts, hosts_from = located["count"].to_list(), "as the directory was resolved"
        accounts_from = hosts_from
    elif accounts is None:
        accounts, accounts_from = _count_source(study, storage)
    per_account, sizes_from = figures.records_per_account * figures.bytes_per_record, "assumed"
    records = figures.records_per_account
    ledger = read_ledger(storage).filter(pl.col("outcome") == Outcome.COMPLETE.value)
    if ledger.height >= ENOUGH_TO_KNOW:
        per_account = float(ledger["bytes_received"].sum()) / ledger.height
        records = float(ledger["records"].sum()) / ledger.height
        sizes_from = f"as {ledger.height:,} repositories were"
    spread = Skew().spread(accounts or 0) if hosts is None else hosts
    return KnownFrame(Frame(spread, records, per_account), accounts_from, hosts_from, sizes_from)


def _count_source(study: Study, storage: StudyStorage) -> tuple[int, str]:
    if storage.exists(SOURCE_KEY):
        return storage.read(SOURCE_KEY).height, "as the source was last read"
    asking = sorted({source.type for _, source in study_sources(study)} & _ASKING)
    if asking:
        raise ConfigError(
            f"{study.name}: its accounts come from servers (source type {', '.join(asking)}), and nothing is asked "
            "for an estimate; say how many by --accounts"
        )
    try:
        return pipeline.read_source(study).dids.height, "as the source is now"
    except BackfillError as error:
        raise ConfigError(
            f"{study.name}: its accounts cannot be counted: {error}; or give --accounts"
        ) from error
