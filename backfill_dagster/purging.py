"""Taking accounts and records out of everything that a study stores, for good."""

from __future__ import annotations

from concurrent.futures import as_completed
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import derivation, filtering, handing_over
from backfill_dagster.config.sources import InlineSource
from backfill_dagster.derived.feed_use import purge_shown
from backfill_dagster.dids.sources.lineage import study_sources
from backfill_dagster.directory.evidence import purge_evidence
from backfill_dagster.frozen.purge import purge_frozen
from backfill_dagster.legacy.tree import purge_legacy
from backfill_dagster.manifest.keys import MANIFEST_KEY
from backfill_dagster.manifest.written import (
    manifest_runs,
    remove_manifest,
    remove_proof,
    write_manifest,
)
from backfill_dagster.metadata_stores import of_study
from backfill_dagster.monitoring.account_names import AccountHashes
from backfill_dagster.monitoring.log_key import stored_log_key
from backfill_dagster.pipeline import rebuild
from backfill_dagster.purge.expiry import GONE_STATES, expired_accounts
from backfill_dagster.purge.logs import log_mask, purge_log
from backfill_dagster.purge.report import PurgeReport
from backfill_dagster.purge.request import PurgeRequest, read_request
from backfill_dagster.purge.rewrite import (
    PackPurge,
    count_rows,
    purge_pack,
    purge_rows,
    purge_source,
    remove_leftovers,
)
from backfill_dagster.purge.tombstones import Tombstones, bury, settle
from backfill_dagster.repos.ledger_lots import ledger_by_range
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.sharing.purge import purge_shared
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_HISTORY_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    UNFINISHED_DIRECTORY_FOLDER,
    lot_ranges,
    rows_in,
)
from backfill_dagster.survivorship.purge import purge_observations
from backfill_dagster.tables.accounts import INACTIVE_STATES
from backfill_dagster.workers import SMALL_BYTES, worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backfill_dagster.config.study import Study


def purge(
    study: Study,
    *,
    dids: Sequence[str] = (),
    uris: Sequence[str] = (),
    file: Path | None = None,
    rebuild: Callable[[Study], None] = rebuild,
) -> PurgeReport:
    """Remove accounts (DIDs) and single records (AT-URIs) from all that is stored, for good.

    `file` has one DID or URI a line. Tombstones keep them from being collected again. The tables are built anew if
    anything was changed that they are made of. Only while nothing else works on the study. One that was interrupted
    is finished by the next one, whatever that one is for; so is one that found a file of a frozen build that cannot be
    read (`not_purged` in the report), and that stands in the way of nothing else. Raises ConfigError for what is no DID
    or URI; then nothing is changed.
    """
    return _purge(study, read_request(dids, uris, file), rebuild)


def purge_expired(
    study: Study, now: datetime | None = None, rebuild: Callable[[Study], None] = rebuild
) -> PurgeReport | None:
    """Purge the accounts that the study's settings want purged by now; None if there are none."""
    storage, days = StudyStorage(study.location), study.purge_deleted_after_days
    inactive_too = study.inactive_accounts == "purge"
    if days is None and not inactive_too:
        return None
    states = INACTIVE_STATES if inactive_too else GONE_STATES
    until = (now or datetime.now(UTC)) - timedelta(days=days or 0)
    ranges = lot_ranges(storage)
    with ledger_by_range(storage, ranges) as ledger:
        lots = ((rows_in(storage, DIRECTORY_KEY, dids), ledger(dids)) for dids in ranges)
        expired = [did for lot in lots for did in expired_accounts(*lot, states, until)]
    return _purge(study, PurgeRequest(tuple(expired)), rebuild) if expired else None


def is_purge_unfinished(study: Study) -> bool:
    """Tell whether an earlier purge was interrupted, or left something: what it is about may still be stored."""
    tombstones = Tombstones.load(StudyStorage(study.location))
    return tombstones.unfinished + tombstones.left_in_frozen > 0


def _purge(study: Study, request: PurgeRequest, rebuild: Callable[[Study], None]) -> PurgeReport:
    storage = StudyStorage(study.location)
    storage.sweep_scratch()
    earlier = Tombstones.load(storage)
    if earlier.left_in_frozen and not (request.dids or request.records):
        return _purge_left(study, storage, earlier)
    # First the tombstones, marked as unfinished, and last that mark: whatever happens between, nothing of this comes
    # back, and nobody takes it for done.
    tombstones = bury(storage, request.dids, request.records, datetime.now(UTC))
    if not tombstones:
        return PurgeReport()
    removed = _count_derived(storage, tombstones)
    handles = _handles_of_purged(storage, tombstones)
    # Before the source and the directory, which know whom the hashes of a log stand for.
    masked_in_log = _purge_log(study, request, tombstones, handles)
    # They name accounts, and are of what is about to change.
    had_manifest, runs = storage.exists(MANIFEST_KEY), manifest_runs(storage)
    remove_manifest(storage)
    remove_proof(storage)
    packs = _purge_packs(study)
    remove_leftovers(storage)
    handed_over = handing_over.purge(study, tombstones)
    legacy = purge_legacy(storage, tombstones)
    removed |= {
        "attempts": sum(pack.attempts for pack in packs),
        "blocks": sum(pack.blocks for pack in packs),
        "documents": purge_evidence(storage, tombstones),
        "feeds": purge_shown(storage, tombstones),
        "filters": filtering.purge_lists(storage, tombstones),
        "handoff": handed_over[0],
        "legacy": legacy[0],
        "metadata_store": of_study.purge(study, tombstones),
        # Before the directory, which alone knows the handles: a purge that is interrupted looks for them again.
        "source_dids": purge_source(storage, SOURCE_KEY, SOURCE_REJECTS_KEY, tombstones, handles),
        "directory": purge_rows(storage, DIRECTORY_KEY, tombstones)
        + sum(purge_rows(storage, key, tombstones) for key in storage.keys(UNFINISHED_DIRECTORY_FOLDER)),
        "directory_history": purge_rows(storage, DIRECTORY_HISTORY_KEY, tombstones),
        **purge_observations(storage, tombstones),
        **purge_shared(storage, tombstones),
    }
    frozen = purge_frozen(study, tombstones)
    removed["frozen"] = frozen.rows
    report = PurgeReport(
        accounts=len(request.dids),
        records=len(request.records),
        removed=dict(sorted(removed.items())),
        masked=sum(pack.masked for pack in packs) + handed_over[1] + legacy[1],
        hosts=tuple(sorted({pack.pds_host for pack in packs})),
        masked_in_log=masked_in_log,
        named_in_config=_named_in_config(study, tombstones),
        not_purged=frozen.unreadable,
    )
    if (report.changed or earlier.unfinished) and storage.exists(DIRECTORY_KEY):
        derivation.remove_all(study)
        rebuild(study)
    storage.forget_removed()
    settle(storage, datetime.now(UTC), but_for_frozen=bool(report.not_purged))
    if had_manifest or storage.exists(MANIFEST_KEY):
        # Of the tombstones as well, which are settled now.
        write_manifest(study, manifest_runs(storage) or runs)
    return report


def _purge_left(study: Study, storage: StudyStorage, tombstones: Tombstones) -> PurgeReport:
    """Purge the frozen builds once more: nothing else that is stored holds what is left."""
    frozen = purge_frozen(study, tombstones)
    storage.forget_removed()
    if not frozen.unreadable:
        settle(storage, datetime.now(UTC))
        if storage.exists(MANIFEST_KEY):
            write_manifest(study, manifest_runs(storage))
    return PurgeReport(removed={"frozen": frozen.rows}, not_purged=frozen.unreadable)


def _handles_of_purged(storage: StudyStorage, tombstones: Tombstones) -> list[str]:
    """Return the handles, in lower case, that the directory still has of purged accounts."""
    handles: set[str] = set()
    for key in (DIRECTORY_KEY, *storage.keys(UNFINISHED_DIRECTORY_FOLDER), DIRECTORY_HISTORY_KEY):
        if storage.exists(key):
            # Not all columns: there may be many accounts.
            [rows] = storage.collect([storage.scan_as_it_is(key).select("did", "handle")], [key])
            held = rows.filter(pl.col("did").is_in(tombstones.held_among(rows["did"])))
            handles.update(held["handle"].drop_nulls().str.to_lowercase())
    return sorted(handles)


def _purge_log(study: Study, request: PurgeRequest, tombstones: Tombstones, handles: Sequence[str]) -> int:
    """Mask the purged in the study's structured log, if there is one; return how many lines named them."""
    path, storage = study.monitoring.log_file, StudyStorage(study.location)
    if path is None:
        return 0
    key = stored_log_key(storage)
    known = [SOURCE_KEY, DIRECTORY_KEY, *storage.keys(UNFINISHED_DIRECTORY_FOLDER)]
    held = {
        did
        for name in known
        if storage.exists(name)
        for did in tombstones.held_among(_dids_in(storage, name))
    }
    mask = log_mask(
        tombstones,
        handles=handles,
        hashes=None if key is None else AccountHashes(key),
        dids=sorted(held.union(request.dids)),
        records=request.records,
    )
    return purge_log(path, study.name, mask)


def _dids_in(storage: StudyStorage, key: str) -> pl.Series:
    [rows] = storage.collect([storage.scan_as_it_is(key).select("did")], [key])
    return rows["did"]


def _purge_packs(study: Study) -> list[PackPurge]:
    storage = StudyStorage(study.location)
    packs = [(host, key) for host, _, key in pack_keys(storage)]
    if sum(storage.sizes("repos").values()) < SMALL_BYTES:
        done = [purge_pack(study.location, host, key) for host, key in packs]
    else:
        with worker_pool(study.processing.worker_count) as workers:
            futures = [workers.submit(purge_pack, study.location, host, key) for host, key in packs]
            done = [future.result() for future in as_completed(futures)]
    return [pack for pack in done if pack is not None]


def _count_derived(storage: StudyStorage, tombstones: Tombstones) -> dict[str, int]:
    """Count the rows that are about to go from the files that are built from packs."""
    converted = [key for key in storage.keys("records") if key.split("/")[2] not in ("counts", "windows")]
    rejects = [key for key in converted if key.split("/")[2] == "rejects"]
    with_uri = {
        "records": sorted(set(converted) - set(rejects)),
        "rejects": rejects,
        "tables": storage.keys("tables"),
        "undated": storage.keys("undated"),
    }
    counts = {kind: count_rows(storage, keys, tombstones, by_uri=True) for kind, keys in with_uri.items()}
    accounts = [ACCOUNTS_KEY] if storage.exists(ACCOUNTS_KEY) else []
    return counts | {"accounts": count_rows(storage, accounts, tombstones, by_uri=False)}


def _named_in_config(study: Study, tombstones: Tombstones) -> int:
    """Count the entries that the YAML itself lists and that name a purged account, which are its owner's to change."""
    inline = [source for _, source in study_sources(study) if isinstance(source, InlineSource)]
    listed = {entry for source in inline for entry in (*(source.dids or ()), *(source.uris or ()))}
    return sum(tombstones.named_in(entry) for entry in listed)
