"""Who is still to be backfilled: read from a study's own files, since no event of Dagster's names an account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import crawling, pipeline, study_files
from backfill_dagster.api.errors import InvalidRequestError
from backfill_dagster.config.derived import INTERACTIONS
from backfill_dagster.derived.engaged import find_engaged
from backfill_dagster.derived.stored_tables import StoredTables
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from backfill_dagster.config.study import Study


@dataclass(frozen=True, slots=True)
class Waiting:
    """Accounts of a study's source, sorted, of which nothing final is known yet; and how many were looked at."""

    dids: list[str]
    asked: int


def waiting_accounts(study: Study, dids: Sequence[str] = ()) -> Waiting:
    """Return who of a study's source, or of those named, is not collected or settled; asks no PDS for a repository.

    Of a source that a server gives, that server is asked for the list. Raises InvalidRequestError for a name that is
    no account of the source.
    """
    source = pipeline.read_source(study).dids["did"]
    asked = source
    if dids:
        for did in sorted(set(dids) - set(source)):
            raise InvalidRequestError(f"dids = {did!r}: is no account of the source of {study.name}")
        asked = source.filter(source.is_in(list(dids)))
    return Waiting([did for some in _unsettled(study, asked) for did in some], asked.len())


def engaged_accounts(study: Study, start: datetime | None, end: datetime | None) -> list[str]:
    """Return whom the study's accounts engaged with between two instants, both inside, and who is none of them.

    From the tables as they are; raises StorageError if there are none.
    """
    storage = StudyStorage(study.location)
    own = study_files.source_dids(study)
    tables = StoredTables(storage, granularity_of(study.time_range), study_files.study_tables(study))
    kinds = INTERACTIONS if study.discovery is None else study.discovery.interactions
    return [did for lot in find_engaged(tables, own, kinds, start, end) for did in lot.accounts["did"]]


def _unsettled(study: Study, asked: pl.Series) -> Iterator[pl.Series]:
    """Yield those of these accounts of which a fetch would want something more, sorted, some at a time."""
    dids = asked.to_frame("did").sort("did")
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        yield dids["did"]
        return
    answered = pl.col("state").is_in([state.value for state in DirectoryState if state.settled])
    for waiting, lot in crawling.waiting_lots(study, FetchMode.UNSETTLED):
        settled = lot.directory.filter(answered).join(waiting, on="did", how="anti")
        own = dids.filter(lot.dids.holds("did"))
        yield own.join(settled, on="did", how="anti", maintain_order="left")["did"]
