"""The work of one worker process on a fetch: prove downloaded files and write those that hold as one pack."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.work_cost import WorkCost
from backfill_dagster.purge.rewrite import purge_pack
from backfill_dagster.purge.tombstones import TOMBSTONES_KEY, Tombstones
from backfill_dagster.repos.blocks_file import Records
from backfill_dagster.repos.car_bytes import open_car, sections_of
from backfill_dagster.repos.cid import CID_BYTES, cid_text
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.masked import Masked, masked_among
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.repos.packs import Attempt, PackWriter
from backfill_dagster.repos.parts import add_parts
from backfill_dagster.repos.verify import Claim, RepoLimits, VerifiedRepos, prove, prove_together
from backfill_dagster.storage import StudyStorage, partition_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.repos.fetching import Part
    from backfill_dagster.stores.location import Location

# What is handed to the pack at once, in records and in bytes: any number of records can share one large block.
_SLICE_RECORDS = 4096
_SLICE_BYTES = 8 * 2**20
# Smaller files are proven together, up to so many bytes.
_GROUP_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one account's attempt brought: a downloaded file to be proven, or none and a settled outcome.

    `keys` and `previous_keys` are in the form `did:key:...`. The file is a repository or, if the attempt was for less,
    consists of `parts`.
    """

    attempt: Attempt
    car: Path | None = None
    keys: tuple[str, ...] = ()
    previous_keys: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What counts as proof."""

    check_signature: bool
    limits: RepoLimits


@dataclass(frozen=True, slots=True)
class PackReport:
    """The pack's name (None if nothing was written), its rows, and the files that did not hold, by DID.

    And the pack's size in bytes, with what the work took.
    """

    pack: str | None
    written: tuple[Attempt, ...]
    rejected: dict[str, tuple[RepoFault, str]]
    bytes_written: int = 0
    cost: WorkCost = field(default_factory=WorkCost, compare=False)


def prove_and_pack(
    root: Location, pds_host: str, deliveries: tuple[Delivery, ...], settings: ProofSettings
) -> PackReport:
    """Verify each delivery's file, write a pack of all that hold and all without a file, and report the rest.

    A file is deleted once its records are in the pack; that of a rejected delivery is kept for the caller. What
    the study has purged does not come in again.
    """
    storage = StudyStorage(root)
    purges = storage.version(TOMBSTONES_KEY)
    tombstones = Tombstones.load(storage)
    written: list[Attempt] = []
    rejected: dict[str, tuple[RepoFault, str]] = {}
    with storage.scratch() as scratch:
        writer = PackWriter(storage, pds_host, scratch)
        for delivery, outcome in _prove_all(deliveries, writer, settings, tombstones, scratch):
            if isinstance(outcome, RepoRejectedError):
                rejected[delivery.attempt.did] = (outcome.fault, outcome.detail)
                continue
            attempt = replace(
                outcome,
                detail=tombstones.mask(outcome.detail),
                server_error=tombstones.mask(outcome.server_error),
            )
            writer.add_attempt(attempt)
            written.append(replace(attempt, commit_block=None, not_taken=(), masked=()))
        pack = writer.commit()
    if pack is not None and storage.version(TOMBSTONES_KEY) != purges:
        # A purge that did not wait for this process, since it was held up for longer than a lease in S3 lasts, may have
        # looked through the packs before this one was there. What comes after this look finds it.
        purge_pack(root, pds_host, f"repos/{partition_folder(pds_host)}/{pack}.parquet")
    for delivery in deliveries:
        if delivery.car is not None and delivery.attempt.did not in rejected:
            delivery.car.unlink(missing_ok=True)
    return PackReport(pack, tuple(written), rejected, writer.bytes_written, storage.clock.cost())


def _prove_all(
    deliveries: Sequence[Delivery],
    writer: PackWriter,
    settings: ProofSettings,
    tombstones: Tombstones,
    scratch: Path,
) -> Iterator[tuple[Delivery, Attempt | RepoRejectedError]]:
    """Add the records of those that hold to the pack; yield how each of all ended."""
    whole = []
    for delivery in deliveries:
        if delivery.car is None or delivery.attempt.obtained is Obtained.REPO:
            whole.append(delivery)
        else:
            yield delivery, _prove_parts(delivery, delivery.car, writer, settings, tombstones, scratch)
    for group in _groups(whole):
        yield from _prove(group, writer, settings, tombstones)


def _prove_parts(
    delivery: Delivery,
    file: Path,
    writer: PackWriter,
    settings: ProofSettings,
    tombstones: Tombstones,
    scratch: Path,
) -> Attempt | RepoRejectedError:
    with _reading(file):
        try:
            return add_parts(
                file,
                delivery.parts,
                delivery.attempt,
                _claim(delivery),
                writer,
                tombstones,
                check_signature=settings.check_signature,
                scratch=scratch,
            )
        except RepoRejectedError as error:
            return error


def _groups(deliveries: Iterable[Delivery]) -> Iterator[list[Delivery]]:
    """Part deliveries into groups of small files; a larger file is alone."""
    group: list[Delivery] = []
    group_bytes = 0
    for delivery in deliveries:
        with _reading(delivery.car):
            size = 0 if delivery.car is None else delivery.car.stat().st_size
        if group and group_bytes + size > _GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(delivery)
        group_bytes += size
    if group:
        yield group


def _prove(
    group: Sequence[Delivery], writer: PackWriter, settings: ProofSettings, tombstones: Tombstones
) -> list[tuple[Delivery, Attempt | RepoRejectedError]]:
    """Add the records of those that hold to the pack; return how each of all ended, in no particular order."""
    ended: list[tuple[Delivery, Attempt | RepoRejectedError]] = [
        (delivery, delivery.attempt) for delivery in group if delivery.car is None
    ]
    cars = [(delivery, delivery.car) for delivery in group if delivery.car is not None]
    if len(cars) > 1:
        proven = prove_together(
            [_read(car) for _, car in cars],
            [_claim(delivery) for delivery, _ in cars],
            check_signature=settings.check_signature,
            limits=settings.limits,
        )
        if proven is None:
            middle = len(cars) // 2
            for half in (cars[:middle], cars[middle:]):
                ended += _prove([delivery for delivery, _ in half], writer, settings, tombstones)
            return ended
        ended += _add(proven, [delivery for delivery, _ in cars], writer, tombstones)
        cars = [car for number, car in enumerate(cars) if number not in proven.numbers]
    for delivery, car in cars:
        with _reading(car), open_car(car) as content:
            try:
                proven = prove(
                    content,
                    _claim(delivery),
                    check_signature=settings.check_signature,
                    limits=settings.limits,
                )
            except RepoRejectedError as error:
                ended.append((delivery, error))
            else:
                ended += _add(proven, [delivery], writer, tombstones)
    return ended


def _read(car: Path) -> bytes:
    with _reading(car):
        return car.read_bytes()


@contextmanager
def _reading(car: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{car} cannot be read: {error}; run the same again") from error


def _claim(delivery: Delivery) -> Claim:
    return Claim(
        delivery.attempt.did,
        [SigningKey.from_did_key(key) for key in delivery.keys],
        [SigningKey.from_did_key(key) for key in delivery.previous_keys],
    )


def _add(
    proven: VerifiedRepos, deliveries: Sequence[Delivery], writer: PackWriter, tombstones: Tombstones
) -> Iterator[tuple[Delivery, Attempt]]:
    """Add records to the pack; yield those of the deliveries that they are of, and their attempts."""
    purged = _withheld(proven, tombstones)
    masked: defaultdict[str, list[Masked]] = defaultdict(list)
    for records in _slices(proven, purged, tombstones, masked):
        writer.add_records(records)
    left_out = np.diff(np.searchsorted(purged, [0, *accumulate(proven.sizes)])).tolist()
    for number, header, size, without in zip(
        proven.numbers, proven.headers, proven.sizes, left_out, strict=True
    ):
        yield (
            deliveries[number],
            replace(
                deliveries[number].attempt,
                repo_rev=header.rev,
                commit_cid=cid_text(header.commit_cid),
                commit_block=header.commit_block,
                signed_by=header.signed_by,
                signing_key=header.signing_key,
                records=size,
                purged=without,
                masked=tuple(masked.get(header.did, ())),
            ),
        )


def _withheld(proven: VerifiedRepos, tombstones: Tombstones) -> list[int]:
    """Return which of the records are not to be stored, because the study has purged them."""
    if not tombstones:
        return []
    collections, rkeys = proven.collections.to_pylist(), proven.rkeys.to_pylist()
    dids = [
        header.did for header, size in zip(proven.headers, proven.sizes, strict=True) for _ in range(size)
    ]
    return tombstones.withheld_rows(dids, collections, rkeys)


def _slices(
    proven: VerifiedRepos,
    withheld: list[int],
    tombstones: Tombstones,
    masked: defaultdict[str, list[Masked]],
) -> Iterator[Records]:
    """Yield the records that are to be stored; those of each account that are masked in them are added to `masked`."""
    kept = np.ones(len(proven.starts), np.bool_)
    kept[withheld] = False
    bounds = np.cumsum(proven.sizes)
    sizes = np.cumsum(proven.ends - proven.starts)
    first = 0
    while first < len(sizes):
        before = sizes[first - 1] if first else 0
        full = int(sizes.searchsorted(before + _SLICE_BYTES)) + 1
        last = min(first + _SLICE_RECORDS, full, len(sizes))
        rows = first + np.flatnonzero(kept[first:last])
        collections = proven.collections.take(pa.array(rows))
        names = collections.dictionary.take(collections.indices)
        rkeys = proven.rkeys.take(pa.array(rows))
        cids, found = sections_of(proven.content, proven.starts[rows], proven.ends[rows], CID_BYTES)
        blocks = tombstones.mask_blocks(found)
        # Of which accounts these are, and where their rows end.
        owners = range(int(bounds.searchsorted(first, "right")), int(bounds.searchsorted(last)) + 1)
        ends = rows.searchsorted(bounds[owners.start : owners.stop]).tolist()
        for owner, start, end in zip(owners, [0, *ends[:-1]], ends, strict=True):
            some = slice(start, end)
            did = proven.headers[owner].did
            if blocks[some] != found[some]:
                paths = names[some].to_pylist(), rkeys[some].to_pylist()
                masked[did] += [one for _, one in masked_among(*paths, found[some], blocks[some])]
            yield Records(did, names[some], rkeys[some], cids[some], blocks[some])
        first = last
