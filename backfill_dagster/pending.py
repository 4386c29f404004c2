"""What there is to do in a study, told from what is stored: for whoever starts stages by themselves.

Each answer names its work, so that the same work can be told from other work. Nothing here asks a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster import pipeline
from backfill_dagster.dids.collect import collect_dids
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config import Study


def source_has_changed(study: Study) -> bool:
    """Tell whether the source, read now, gives anything else than what is stored of it; raises SourceError."""
    storage = StudyStorage(study.root)
    if not all(
        map(storage.exists, (pipeline.SOURCE_KEY, pipeline.SOURCE_REJECTS_KEY, pipeline.DIRECTORY_KEY))
    ):
        return True
    collected = collect_dids(study.source, Tombstones.load(storage))
    return not (
        collected.dids.equals(storage.read(pipeline.SOURCE_KEY))
        and collected.rejects.equals(storage.read(pipeline.SOURCE_REJECTS_KEY))
    )


def accounts_never_attempted(study: Study) -> dict[str, list[str]]:
    """Return the DIDs that no fetch has been tried for where they live now, by host."""
    if not StudyStorage(study.root).exists(pipeline.DIRECTORY_KEY):
        return {}
    waiting = pipeline.waiting_accounts(study, FetchMode.UNSETTLED).join(
        pipeline.waiting_accounts(study, FetchMode.FAILED), on="did", how="anti"
    )
    by_host = waiting.group_by("pds_host").agg("did").sort("pds_host")
    return {host: sorted(dids) for host, dids in by_host.iter_rows()}


def unconverted_packs(study: Study) -> list[tuple[str, str]]:
    """Return (PDS host, pack) of the packs that hold a snapshot and are not converted with the study's settings."""
    if not StudyStorage(study.root).exists(pipeline.DIRECTORY_KEY):
        return []
    return [(host, pack) for host, pack, _ in pipeline.packs_to_convert(study)]


def stale_windows(study: Study) -> dict[str, list[str]]:
    """Return the time windows whose records have changed since they were built, of the tables that have any."""
    if not StudyStorage(study.root).exists(pipeline.DIRECTORY_KEY):
        return {}
    return {table: windows for table, windows in pipeline.stale_windows(study).items() if windows}


def accounts_are_stale(study: Study) -> bool:
    """Tell whether the undated rows, or the table of accounts, are not those of what is stored."""
    if not StudyStorage(study.root).exists(pipeline.DIRECTORY_KEY):
        return False
    return pipeline.is_undated_stale(study) or pipeline.accounts_are_stale(study)
