"""What there is to do in a study, told from what is stored: for whoever starts stages by themselves.

Each answer names its work, so that the same work can be told from other work. Nothing here asks a server.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from backfill_dagster import accounting, crawling, derivation, filtering, pipeline, study_files
from backfill_dagster.derived.feed_use import PostsUsedInFeeds
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.records.windows import study_windows
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.repos.packs import stored_hosts
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study


def storage_stamp(study: Study) -> str:
    """Return what is another whenever the study's files may have changed, without reading them.

    Names and times of the files that stages write last, and of the folders that packs and conversions are put into.
    """
    told = StudyStorage(study.location).stamp(
        [".lock", study_files.SOURCE_KEY, study_files.DIRECTORY_KEY, study_files.ACCOUNTS_KEY],
        ["repos/*", "records/*/counts"],
    )
    return hashlib.sha256(repr(told).encode()).hexdigest()


def source_has_changed(study: Study) -> bool:
    """Tell whether the source, read now, gives anything else than what is stored of it, or is looked up in part.

    Raises SourceError.
    """
    storage = StudyStorage(study.location)
    if not all(
        map(
            storage.exists,
            (study_files.SOURCE_KEY, study_files.SOURCE_REJECTS_KEY, study_files.DIRECTORY_KEY),
        )
    ):
        return True
    if storage.keys(study_files.UNFINISHED_DIRECTORY_FOLDER) or not _is_looked_up(storage):
        return True
    collected = pipeline.read_source(study)
    return not (
        collected.dids.equals(storage.read(study_files.SOURCE_KEY))
        and collected.rejects.equals(storage.read(study_files.SOURCE_REJECTS_KEY))
    )


def _is_looked_up(storage: StudyStorage) -> bool:
    source, key = storage.read(study_files.SOURCE_KEY), study_files.DIRECTORY_KEY
    for dids, listed in dealt_by_range(source, account_ranges(source.height)):
        its_rows = storage.scan_as_it_is(key).filter(dids.holds("did")).select("did")
        [known] = storage.collect([its_rows], [key])
        if not listed.join(known, on="did", how="anti").is_empty():
            return False
    return True


def accounts_never_attempted(study: Study) -> dict[str, str]:
    """Return the hosts that have accounts which no fetch has been tried for where they live now; sorted.

    With a digest of these accounts' DIDs for each.
    """
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        return {}
    digests: defaultdict[str, hashlib._Hash] = defaultdict(hashlib.sha256)
    for some in crawling.accounts_never_attempted(study):
        for host, dids in some.group_by("pds_host").agg("did").iter_rows():
            digests[host].update("".join(f"{did}\n" for did in sorted(dids)).encode())
    return {host: digests[host].hexdigest() for host in sorted(digests)}


def nothing_is_fetched_yet(study: Study) -> bool:
    """Tell whether all that the study will be made of is yet to come: accounts wait, and no repository is stored."""
    storage = StudyStorage(study.location)
    if stored_hosts(storage) or not storage.exists(study_files.DIRECTORY_KEY):
        return False
    return any(not some.is_empty() for some in crawling.accounts_never_attempted(study))


def unconverted_packs(study: Study) -> list[tuple[str, str]]:
    """Return (PDS host, pack) of the packs that hold a snapshot and are not converted with the study's settings.

    That is all of them if a list that a filter names seems to have changed: what is to be converted then shows when it
    is read. Raises SourceError.
    """
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        return []
    again = filtering.lists_have_changed(study)
    return [(host, pack) for host, pack, _ in pipeline.packs_to_convert(study, again=again)]


def stale_windows(study: Study) -> dict[str, list[str]]:
    """Return the time windows whose records have changed since they were built, of the tables that have any."""
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        return {}
    return {table: windows for table, windows in pipeline.stale_windows(study).items() if windows}


def stale_derived(study: Study) -> dict[str, list[str]]:
    """Return, of each derived table, the time windows that are not those of the tables as they are now.

    Of posts used in feeds all of them, if the table of feeds has changed. Raises SourceError.
    """
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        return {}
    stale = derivation.stale_derived(study, study_files.study_tables(study))
    if derivation.feeds_have_changed(study):
        stale[PostsUsedInFeeds.name] = study_windows(study.time_range)
    return stale


def engaged_is_stale(study: Study) -> bool:
    """Tell whether the lists of whom and what the accounts engaged with are not those of the tables as they are now."""
    if not StudyStorage(study.location).exists(study_files.SOURCE_KEY):
        return False
    tables = study_files.study_tables(study)
    return derivation.engaged_is_stale(study, tables, study_files.source_dids(study))


def accounts_are_stale(study: Study) -> bool:
    """Tell whether the undated rows, or the table of accounts, are not those of what is stored."""
    if not StudyStorage(study.location).exists(study_files.DIRECTORY_KEY):
        return False
    return pipeline.is_undated_stale(study) or accounting.accounts_are_stale(study)
