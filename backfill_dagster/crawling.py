"""Stage 3: whom a fetch is for, and the fetch."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import fetch_modes
from backfill_dagster.connections import Connections, with_connections
from backfill_dagster.directory.evidence import EvidenceLog
from backfill_dagster.errors import ConfigError
from backfill_dagster.monitoring.host_labels import accounts_by_host
from backfill_dagster.monitoring.study_metrics import unmeasured
from backfill_dagster.repos.client import DownloadBounds
from backfill_dagster.repos.crawl import Crawl, CrawlSettings, HostReport, Progress
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.repos.packs import stored_hosts, sweep_uncommitted_blocks
from backfill_dagster.repos.preflight import FetchPlan, ensure_space, estimate_space
from backfill_dagster.repos.proof import ProofSettings
from backfill_dagster.repos.snapshots import FetchMode, accounts_to_fetch
from backfill_dagster.repos.verify import RepoLimits
from backfill_dagster.repos.waiting import WaitingAccounts
from backfill_dagster.storage import StudyStorage, without_source
from backfill_dagster.study_files import DIRECTORY_KEY, SOURCE_KEY, account_lots
from backfill_dagster.workers import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from backfill_dagster.config.processing import Processing
    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.network.limits import HostGates
    from backfill_dagster.study_files import AccountLot


def fetch_repos(
    study: Study,
    pds_hosts: Sequence[str] | None = None,
    *,
    mode: FetchMode = FetchMode.UNSETTLED,
    only_dids: Sequence[str] = (),
    processing: Processing | None = None,
    gates: HostGates | None = None,
    on_host: Callable[[HostReport], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    metrics: StudyMetrics | None = None,
) -> list[HostReport]:
    """Stage 3: download, prove and store the repository, or what else the study asks, of all whom the mode is for.

    Of all hosts of the directory, or of those named; of all accounts, or of those named. Returns a report per host
    that there was work for. Raises ConfigError for a name in `only_dids` that is no account of the study, and
    SourceError for a list of records to ask for that cannot be read.
    """
    storage = StudyStorage(study.location)
    processing, metrics = processing or study.processing, metrics or unmeasured()
    storage.sweep_scratch()
    # Of all hosts: a killed run can have followed an account to one that has nothing else to fetch.
    for host in stored_hosts(storage):
        sweep_uncommitted_blocks(storage, host)
    asks = fetch_modes.read_asks(study)
    with storage.scratch() as folder, WaitingAccounts(folder / "waiting.arrow") as waiting:
        plan = _plan(waiting_lots(study, mode, only_dids), pds_hosts, asks.obtained, waiting)
        by_host = waiting.by_host
        if not by_host:
            return []
        ensure_space(storage, estimate_space(plan, processing))
        metrics.name_hosts(_named_hosts(storage))
        evidence = EvidenceLog(storage)

        async def crawl(connections: Connections) -> list[HostReport]:
            count = processing.worker_count
            connections.resolver.on_evidence = evidence.add
            with storage.scratch() as scratch, metrics.workers(count), worker_pool(count) as workers:
                crawl = Crawl(
                    root=study.location,
                    scratch=scratch,
                    turns=connections.turns,
                    gates=connections.gates,
                    leases=connections.leases,
                    resolver=connections.resolver,
                    run_time=connections.run_time,
                    workers=workers,
                    worker_count=count,
                    settings=_crawl_settings(study, processing),
                    fetching=fetch_modes.fetching(asks),
                    before_pack=evidence.flush,
                )
                metrics.fetch_progress(crawl.progress)
                try:
                    return await crawl.run(by_host, on_host, metrics.following("repos", on_progress))
                finally:
                    # Also what was looked up for no pack any more.
                    evidence.flush()

        return with_connections(study, gates, crawl, processing, metrics)


def _plan(
    lots: Iterable[tuple[pl.DataFrame, AccountLot]],
    pds_hosts: Sequence[str] | None,
    obtained: Obtained,
    waiting: WaitingAccounts,
) -> FetchPlan:
    """Put the accounts of these hosts, or of all, among those that wait; say what is known of the fetch."""
    plan, alike = FetchPlan(), pl.col("obtained").fill_null(Obtained.REPO.value) == obtained.value
    for some, lot in lots:
        wanted = some if pds_hosts is None else some.filter(pl.col("pds_host").is_in(list(pds_hosts)))
        waiting.add(wanted)
        plan.add(wanted, lot.ledger.filter(alike))
    return plan


def hosts_to_fetch(
    study: Study, mode: FetchMode, *, only_hosts: Sequence[str] = (), only_dids: Sequence[str] = ()
) -> list[str]:
    """Return the hosts, all or of those named, with accounts, all or of those named, that such a fetch is for.

    Raises ConfigError for a name that is no host or no account of the study, and SourceError for a list of records to
    ask for that cannot be read.
    """
    fetch_modes.read_asks(study)
    storage = StudyStorage(study.location)
    of_directory = storage.scan_as_it_is(DIRECTORY_KEY).select(pl.col("pds_host").drop_nulls().unique())
    known = storage.collect([of_directory], [DIRECTORY_KEY])[0].to_series()
    for host in sorted(set(only_hosts) - set(known)):
        close = difflib.get_close_matches(host, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"run config: only_hosts = {host!r}: is no host of {study.name}{hint}")
    lots = waiting_lots(study, mode, only_dids)
    hosts = {host for some, _ in lots for host in some["pds_host"].unique()}
    return sorted(hosts & set(only_hosts) if only_hosts else hosts)


def waiting_accounts(study: Study, mode: FetchMode, only_dids: Sequence[str] = ()) -> pl.DataFrame:
    """Return `did, pds_host` of accounts of the source, all or of those named, that such a fetch is for.

    Raises ConfigError for a name that is no account of the source.
    """
    lots = waiting_lots(study, mode, only_dids)
    return pl.concat(without_source(some.select("did", "pds_host")) for some, _ in lots)


def accounts_never_attempted(study: Study) -> Iterator[pl.DataFrame]:
    """Yield `did, pds_host` of accounts that no fetch has been tried for where they live now, lot by lot, by DID."""
    signed = _is_signed(study, study.processing)
    for unsettled, lot in waiting_lots(study, FetchMode.UNSETTLED):
        failed = accounts_to_fetch(lot.directory, lot.ledger, FetchMode.FAILED, signed=signed)
        yield unsettled.join(failed, on="did", how="anti", maintain_order="left").select("did", "pds_host")


def _is_signed(study: Study, processing: Processing) -> bool:
    """Tell whether what is fetched must come with a signature that is checked; a listing has none."""
    return processing.verify == "full" and study.fetch != "list_records"


def waiting_lots(
    study: Study, mode: FetchMode, only_dids: Sequence[str] = ()
) -> Iterator[tuple[pl.DataFrame, AccountLot]]:
    """Yield the directory's rows of such accounts, lot by lot, and what is known of all accounts of each lot.

    Raises ConfigError for a name that is no account of the source.
    """
    storage, signed = StudyStorage(study.location), _is_signed(study, study.processing)
    if only_dids:
        given = pl.col("did").is_in(list(only_dids))
        [known] = storage.collect([storage.scan_as_it_is(SOURCE_KEY).filter(given)], [SOURCE_KEY])
        for did in sorted(set(only_dids) - set(known["did"])):
            raise ConfigError(f"run config: only_dids = {did!r}: is no account of {study.name}")
    for lot in account_lots(study):
        wanted = lot.source.filter(pl.col("did").is_in(list(only_dids))) if only_dids else lot.source
        directory = lot.directory.join(wanted, on="did", how="semi", maintain_order="left")
        yield accounts_to_fetch(directory, lot.ledger, mode, signed=signed), lot


def _named_hosts(storage: StudyStorage) -> Mapping[str, int]:
    counted = accounts_by_host(storage.scan_as_it_is(DIRECTORY_KEY))
    return dict(storage.collect([counted], [DIRECTORY_KEY], engine="streaming")[0].iter_rows())


def _crawl_settings(study: Study, processing: Processing) -> CrawlSettings:
    network = study.network
    max_bytes = network.max_repo_megabytes * 2**20
    return CrawlSettings(
        batch_size=processing.batch_size,
        pack_bytes=processing.pack_megabytes * 2**20,
        max_concurrent_pds=processing.max_concurrent_pds,
        requests_in_flight=processing.requests_in_flight,
        requests_per_second=processing.requests_per_second,
        max_retries=processing.max_retries,
        retry_base_seconds=network.retry_base_seconds,
        max_park_seconds=network.max_park_minutes * 60,
        bounds=DownloadBounds(max_bytes, network.repo_timeout_seconds),
        proof=ProofSettings(
            check_signature=_is_signed(study, processing), limits=RepoLimits(max_car_bytes=max_bytes)
        ),
    )
