"""Whether a fetch will fit on the disk: asked before the first request, so that days of it do not end half-way."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.repos.outcomes import Outcome

if TYPE_CHECKING:
    from backfill_dagster.config.processing import Processing
    from backfill_dagster.storage import StudyStorage

logger = logging.getLogger(__name__)

# Repositories that must have been fetched before their mean size is believed.
ENOUGH_TO_KNOW = 20
# Bytes of a repository while none is known. Low on purpose: active accounts have 1 to 5 MB, most have tens of kB, and a
# run is to be refused only if it is hopeless. The next one knows better.
DEFAULT_REPO_BYTES = 100_000
# Bytes on disk for each byte received: 0.3 to 0.6 in the packs, 0.6 in the records, 0.6 to 0.9 in the tables.
STORED_PER_BYTE = 2.0
# Packs of one host in scratch at once: one that fills, one that waits for a worker and one that is with it.
PACKS_PER_HOST = 3


@dataclass(frozen=True, slots=True)
class SpaceNeeded:
    """What a fetch is expected to take, in bytes; `scratch` of it only while it runs."""

    accounts: int
    repo_bytes: float
    is_measured: bool
    stored: int
    scratch: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.stored + self.scratch

    def __str__(self) -> str:
        known = "as they were so far" if self.is_measured else "assumed: none is known yet"
        return (
            f"about {_size(self.total)}: {self.accounts:,} repositories of {_size(self.repo_bytes)} ({known}), "
            f"with their records and tables, and {_size(self.scratch)} of scratch"
        )


@dataclass(slots=True)
class FetchPlan:
    """What is known of a fetch before it: whom it is for, and how large what was fetched before is.

    `new` are the accounts of each host that are not stored. Those with a known revision are expected not to have moved
    on: they cost a request and no space. `fetched` repositories had `received` bytes.
    """

    new: Counter[str] = field(default_factory=Counter)
    fetched: int = 0
    received: int = 0

    def add(self, waiting: pl.DataFrame, ledger: pl.DataFrame) -> None:
        """Add some accounts: `pds_host, known_rev` of those that wait, and attempts that fetched the like."""
        new = waiting.filter(pl.col("known_rev").is_null())
        self.new.update(dict(new.group_by("pds_host").len().iter_rows()))
        sizes = ledger.filter(pl.col("outcome") == Outcome.COMPLETE.value)["bytes_received"]
        self.fetched += len(sizes)
        self.received += int(sizes.sum())


def estimate_space(plan: FetchPlan, processing: Processing) -> SpaceNeeded:
    """Estimate the space that a fetch will take."""
    is_measured = plan.fetched >= ENOUGH_TO_KNOW
    repo_bytes = plan.received / plan.fetched if is_measured else float(DEFAULT_REPO_BYTES)
    received = plan.new.total() * repo_bytes
    hosts = min(len(plan.new), processing.max_concurrent_pds)
    pack = min(processing.batch_size * repo_bytes, processing.pack_megabytes * 2**20)
    per_host = PACKS_PER_HOST * pack + processing.requests_in_flight * repo_bytes
    return SpaceNeeded(
        accounts=plan.new.total(),
        repo_bytes=repo_bytes,
        is_measured=is_measured,
        stored=int(received * STORED_PER_BYTE),
        scratch=int(min(received, hosts * per_host)),
    )


def ensure_space(storage: StudyStorage, needed: SpaceNeeded) -> None:
    """Log what is needed and what there is; raise StorageError if it does not fit."""
    free = storage.free_bytes()
    if free is None:
        logger.info("The fetch needs %s; how much is free cannot be told.", needed)
        return
    bound = needed.total if storage.keeps_on_disk else needed.scratch
    if bound > free:
        disk = storage.root if storage.keeps_on_disk else storage.scratch_parent
        raise StorageError(
            f"{disk} has {_size(free)} free, and the fetch needs {needed}; "
            "free some space, choose another storage.path, or list fewer accounts"
        )
    logger.info("The fetch needs %s; %s are free.", needed, _size(free))


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
