"""The work of one worker process on a fetch: prove downloaded files and write those that hold as one pack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from backfill_dagster.errors import StorageError
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.repos.blocks_file import Records
from backfill_dagster.repos.car_bytes import join_rows, open_car, slices_of
from backfill_dagster.repos.cid import CID_BYTES, cid_text
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.packs import Attempt, PackWriter
from backfill_dagster.repos.verify import RepoLimits, VerifiedRepo, verify_repo
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.repos.car_bytes import CarBytes

# What is handed to the pack at once, in records and in bytes: any number of records can share one large block.
_SLICE_RECORDS = 4096
_SLICE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one account's attempt brought: a downloaded file to be proven, or none and a settled outcome.

    `keys` and `previous_keys` are in the form `did:key:...`.
    """

    attempt: Attempt
    car: Path | None = None
    keys: tuple[str, ...] = ()
    previous_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What counts as proof."""

    check_signature: bool
    limits: RepoLimits


@dataclass(frozen=True, slots=True)
class PackReport:
    """The pack's name (None if nothing was written), its rows, and the files that did not hold, by DID."""

    pack: str | None
    written: tuple[Attempt, ...]
    rejected: dict[str, tuple[RepoFault, str]]


def prove_and_pack(
    root: Path, pds_host: str, deliveries: tuple[Delivery, ...], settings: ProofSettings
) -> PackReport:
    """Verify each delivery's file, write a pack of all that hold and all without a file, and report the rest.

    A file is deleted once its records are in the pack; that of a rejected delivery is kept for the caller. What
    the study has purged does not come in again.
    """
    storage = StudyStorage(root)
    tombstones = Tombstones.load(storage)
    written: list[Attempt] = []
    rejected: dict[str, tuple[RepoFault, str]] = {}
    with storage.scratch() as scratch:
        writer = PackWriter(storage, pds_host, scratch)
        for delivery in deliveries:
            attempt = delivery.attempt
            if delivery.car is not None:
                try:
                    attempt = _prove(delivery, delivery.car, writer, settings, tombstones)
                except RepoRejectedError as error:
                    rejected[attempt.did] = (error.fault, error.detail)
                    continue
                except OSError as error:
                    raise StorageError(
                        f"{delivery.car} cannot be read: {error}; run the same again"
                    ) from error
            attempt = replace(
                attempt,
                detail=tombstones.mask(attempt.detail),
                server_error=tombstones.mask(attempt.server_error),
            )
            writer.add_attempt(attempt)
            written.append(attempt)
        pack = writer.commit()
    for delivery in deliveries:
        if delivery.car is not None and delivery.attempt.did not in rejected:
            delivery.car.unlink(missing_ok=True)
    return PackReport(pack, tuple(replace(attempt, commit_block=None) for attempt in written), rejected)


def _prove(
    delivery: Delivery, car: Path, writer: PackWriter, settings: ProofSettings, tombstones: Tombstones
) -> Attempt:
    with open_car(car) as content:
        repo = verify_repo(
            content,
            did=delivery.attempt.did,
            keys=[SigningKey.from_did_key(key) for key in delivery.keys],
            previous_keys=[SigningKey.from_did_key(key) for key in delivery.previous_keys],
            check_signature=settings.check_signature,
            limits=settings.limits,
        )
        purged = _withheld(repo, tombstones)
        for records in _slices(repo, content, purged, tombstones):
            writer.add_records(records)
    return replace(
        delivery.attempt,
        repo_rev=repo.rev,
        commit_cid=cid_text(repo.commit_cid),
        commit_block=repo.commit_block,
        signed_by=repo.signed_by,
        signing_key=repo.signing_key,
        records=len(repo.starts),
        purged=len(purged),
    )


def _withheld(repo: VerifiedRepo, tombstones: Tombstones) -> list[int]:
    """Return which of the records are not to be stored, because the study has purged them."""
    if not tombstones:
        return []
    collections, rkeys = repo.collections.to_pylist(), repo.rkeys.to_pylist()
    return tombstones.withheld_rows([repo.did] * len(rkeys), collections, rkeys)


def _slices(
    repo: VerifiedRepo, content: CarBytes, withheld: list[int], tombstones: Tombstones
) -> Iterator[Records]:
    kept = np.ones(len(repo.starts), np.bool_)
    kept[withheld] = False
    sizes = np.cumsum(repo.ends - repo.starts)
    first = 0
    while first < len(sizes):
        before = sizes[first - 1] if first else 0
        full = int(sizes.searchsorted(before + _SLICE_BYTES)) + 1
        last = min(first + _SLICE_RECORDS, full, len(sizes))
        rows = first + np.flatnonzero(kept[first:last])
        collections = repo.collections.take(pa.array(rows))
        sections = slices_of(content, repo.starts[rows] - CID_BYTES, repo.ends[rows])
        yield Records(
            repo.did,
            collections.dictionary.take(collections.indices),
            repo.rkeys.take(pa.array(rows)),
            join_rows([section[:CID_BYTES] for section in sections], CID_BYTES),
            tombstones.mask_blocks([section[CID_BYTES:] for section in sections]),
        )
        first = last
