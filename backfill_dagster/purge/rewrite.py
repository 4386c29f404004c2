"""Takes what has a tombstone out of a study's files.

Packs are written anew without it, under a new name. First the new blocks files and the new pack are published, then
the old pack goes, then its blocks files. Whatever step is the last one done, every account's records are still
in a pack: for an account that for a moment stands in two, a snapshot is chosen from one of them. What was
converted from the old pack goes with it, and is converted again from the new one.

Each step asks the tombstones and the files only, so that a purge that was interrupted is finished by doing all
of it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from backfill_dagster.errors import StorageError
from backfill_dagster.purge.tombstones import PURGED, Tombstones
from backfill_dagster.repos.blocks_file import BLOCKS_SCHEMA
from backfill_dagster.repos.masked import masked_among
from backfill_dagster.repos.outcomes import NOT_THERE, Outcome
from backfill_dagster.repos.packs import (
    PACK_SCHEMA,
    blocks_file_name,
    pack_keys,
    stored_hosts,
    sweep_uncommitted_blocks,
)
from backfill_dagster.storage import RowGroupWriter, StoredFile, StudyStorage, partition_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backfill_dagster.repos.masked import Masked
    from backfill_dagster.stores.location import Location

_PACK_NAME_LENGTH = 20
# Files of which rows are counted at once.
_FILES_AT_ONCE = 64
# Rows of a file of accounts that are held at once.
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class PackPurge:
    """What was taken out of one pack: rows of accounts, their records and single records; and records masked."""

    pds_host: str
    attempts: int
    blocks: int
    masked: int


def purge_pack(root: Location, pds_host: str, key: str) -> PackPurge | None:
    """Write one pack anew without what has a tombstone; None if it holds nothing of the kind.

    What is left of a pack that has lost blocks goes too, except for its attempts that brought none: its accounts
    count as never fetched.
    """
    storage = StudyStorage(root)
    with ExitStack() as lent:
        return _purge_pack(storage, pds_host, key, lent)


def _purge_pack(storage: StudyStorage, pds_host: str, key: str, lent: ExitStack) -> PackPurge | None:
    tombstones = Tombstones.load(storage)
    rows = storage.scan([key], PACK_SCHEMA).collect()
    purged = tombstones.held_among(rows["did"])
    stays = rows.filter(~pl.col("did").is_in(purged))
    masked_rows = _without_masked(_without_not_taken(tombstones.mask_texts(stays), tombstones), tombstones)
    folder = f"repos/{partition_folder(pds_host)}"
    old_blocks = [f"{folder}/{file['name']}" for file in rows["blocks_files"].to_list()[0] or []]
    there = storage.sizes_of(old_blocks)
    # Each is brought here once, if it lies elsewhere.
    local = {blocks: lent.enter_context(storage.local(blocks)) for blocks in old_blocks if blocks in there}
    whole = _are_whole(storage, local, folder, rows)
    if not whole:
        masked_rows = masked_rows.filter(pl.col("outcome") != Outcome.COMPLETE.value)
    rows_change = not whole or not masked_rows.equals(rows)
    if not rows_change and not any(_may_hold_purged(path, tombstones) for path in local.values()):
        return None
    with storage.scratch() as scratch:
        files = []
        for number, blocks in enumerate(old_blocks if whole else ()):
            target = scratch / f"blocks-{number}.parquet"
            files.append(_rewrite_blocks(local[blocks], target, frozenset(purged), tombstones))
        if not rows_change and not any(file.removed or file.masked for file in files):
            # Names are made from content: this would be the very pack that is about to be removed.
            return None
        _publish(storage, folder, _less(masked_rows, files), [file for file in files if file.rows])
    storage.remove(key)
    for blocks in old_blocks:
        storage.remove(blocks)
    return PackPurge(
        pds_host,
        attempts=len(purged),
        blocks=sum(file.removed for file in files),
        masked=sum(file.masked for file in files),
    )


def remove_leftovers(storage: StudyStorage) -> None:
    """Delete blocks files and converted records that belong to no pack."""
    for host in stored_hosts(storage):
        # What a run has left that broke off between a pack's files, however young: a purge works alone.
        sweep_uncommitted_blocks(storage, host, by_one_alone=True)
    packs = {(partition_folder(host), pack) for host, pack, _ in pack_keys(storage)}
    for key in storage.keys("records"):
        _, folder, _, name = key.split("/")
        if (folder, name[:_PACK_NAME_LENGTH]) not in packs:
            storage.remove(key)
    for prefix in ("repos", "records"):
        storage.remove_empty_folders(prefix)


def purge_rows(storage: StudyStorage, key: str, tombstones: Tombstones) -> int:
    """Remove the rows of purged accounts from one file with a column `did`, and mask the others; rows removed."""
    if not storage.exists(key):
        return 0
    removed, changes = 0, False
    for rows in _some_rows(storage, key):
        stays = _without_purged(rows, tombstones)
        removed += rows.height - stays.height
        changes = changes or not tombstones.mask_texts(stays).equals(rows)
    if changes:
        stay = (tombstones.mask_texts(_without_purged(rows, tombstones)) for rows in _some_rows(storage, key))
        storage.write_parts(key, stay, storage.schema(key))
    return removed


def _some_rows(storage: StudyStorage, key: str) -> Iterator[pl.DataFrame]:
    for first in range(0, storage.rows(key), _ROWS_AT_ONCE):
        yield from storage.collect([storage.scan_as_it_is(key).slice(first, _ROWS_AT_ONCE)], [key])


def _without_purged(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    return rows.filter(~pl.col("did").is_in(tombstones.held_among(rows["did"])))


def purge_source(
    storage: StudyStorage,
    dids_key: str,
    rejects_key: str,
    tombstones: Tombstones,
    handles: Collection[str] = (),
) -> int:
    """Remove purged DIDs from the list of the source; each is counted there as a reject from then on.

    Of inputs that could not be looked up, `handles` says by their lower-case form which name a purged account.
    """
    if not storage.exists(rejects_key):
        return purge_rows(storage, dids_key, tombstones)
    rejects = storage.read(rejects_key)
    held = tombstones.held_among(storage.read(dids_key)["did"]) if storage.exists(dids_key) else []
    listed = rejects.clear(len(held)).with_columns(reason=pl.lit(PURGED))
    naming = pl.col("input").str.strip_prefix("@").str.to_lowercase().is_in(list(handles))
    unnamed = rejects.with_columns(input=pl.when(naming.not_().fill_null(value=True)).then("input"))
    told = pl.concat([tombstones.withhold(unnamed), listed])
    if not told.equals(rejects):
        storage.write(rejects_key, told)
    return purge_rows(storage, dids_key, tombstones)


def count_rows(storage: StudyStorage, keys: Sequence[str], tombstones: Tombstones, *, by_uri: bool) -> int:
    """Count the rows in files of purged accounts and, in files with a column `uri`, of purged records."""
    some = (keys[first : first + _FILES_AT_ONCE] for first in range(0, len(keys), _FILES_AT_ONCE))
    return sum(_count_rows(storage, each, tombstones, by_uri=by_uri) for each in some)


def _count_rows(storage: StudyStorage, keys: Sequence[str], tombstones: Tombstones, *, by_uri: bool) -> int:
    rows = storage.scan(keys, {"did": pl.String()}).group_by("did").len()
    [by_account] = storage.collect([rows], keys, engine="streaming")
    whole = pl.col("did").is_in(tombstones.held_among(by_account["did"]))
    count = int(by_account.filter(whole)["len"].sum())
    partly = [did for did in by_account.filter(~whole)["did"] if tombstones.holds_records_of(did)]
    if not by_uri or not partly:
        return count
    rows = storage.scan(keys, {"did": pl.String(), "uri": pl.String()}).filter(pl.col("did").is_in(partly))
    [uris] = storage.collect([rows.select("uri")], keys, engine="streaming")
    return count + sum(tombstones.holds_uri(uri) for uri in uris["uri"].drop_nulls())


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A blocks file in scratch: its rows, those left out, and of the latter single records by account.

    And in which records of which account the purged are masked now.
    """

    path: Path
    rows: int
    removed: int
    withheld: Counter[str]
    masked_records: tuple[tuple[str, Masked], ...]

    @property
    def masked(self) -> int:
        """How many records they are."""
        return len(self.masked_records)


def _are_whole(storage: StudyStorage, local: Mapping[str, Path], folder: str, rows: pl.DataFrame) -> bool:
    """Tell whether a pack's blocks files, given by key as far as they are there, are those that it was written with."""
    listed = {f"{folder}/{file['name']}": file["sha256"] for file in rows["blocks_files"].to_list()[0] or []}
    return all(key in local and _sha256(storage, key, local[key]) == sha256 for key, sha256 in listed.items())


def _sha256(storage: StudyStorage, key: str, path: Path) -> str:
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{storage.where(key)} cannot be read: {error}") from error


def _may_hold_purged(path: Path, tombstones: Tombstones) -> bool:
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=["did", "collection", "rkey", "block"])
            if tombstones.withheld_rows(*_keys(group)):
                return True
            blocks = group["block"].combine_chunks()
            # The blocks' bytes, one after the other: a look at each would take far longer.
            if tombstones.may_be_named_in([blocks.buffers()[2] or b""]):
                return True
    return False


def _rewrite_blocks(source: Path, target: Path, purged: frozenset[str], tombstones: Tombstones) -> _Rewritten:
    """Copy a blocks file without what is purged, row group by row group."""
    rows = removed = 0
    withheld: Counter[str] = Counter()
    masked: list[tuple[str, Masked]] = []
    with (
        pq.ParquetFile(source) as file,
        RowGroupWriter(target, BLOCKS_SCHEMA, dictionary=("did", "collection")) as writer,
    ):
        for number in range(file.num_row_groups):
            group = file.read_row_group(number).select(BLOCKS_SCHEMA.names)
            dids, collections, rkeys = _keys(group)
            single = set(tombstones.withheld_rows(dids, collections, rkeys))
            stays = [did not in purged and position not in single for position, did in enumerate(dids)]
            withheld.update(dids[position] for position in single if dids[position] not in purged)
            kept = group.filter(pa.array(stays, pa.bool_()))
            before = kept["block"].to_pylist()
            after = tombstones.mask_blocks(before)
            owners, collections, rkeys = _keys(kept)
            masked += [(owners[place], one) for place, one in masked_among(collections, rkeys, before, after)]
            column = pa.array(after, BLOCKS_SCHEMA.field("block").type)
            kept = kept.set_column(
                BLOCKS_SCHEMA.get_field_index("block"), BLOCKS_SCHEMA.field("block"), column
            )
            rows += kept.num_rows
            removed += group.num_rows - kept.num_rows
            if kept.num_rows:
                writer.write(kept.cast(BLOCKS_SCHEMA))
    return _Rewritten(target, rows, removed, withheld, tuple(masked))


def _without_not_taken(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Take purged records out of what the rows of a pack tell of records that are not among its blocks."""
    told: list[list[dict[str, str | None]]] = []
    absent, purged = [], []
    for did, left in rows.select("did", "not_taken").iter_rows():
        entries = left or []
        paths = [(entry["collection"] or "", entry["rkey"] or "") for entry in entries]
        collections, rkeys = ([path[part] for path in paths] for part in (0, 1))
        withheld = set(tombstones.withheld_rows([did] * len(paths), collections, rkeys))
        not_there = sum(entries[number]["reason"] in NOT_THERE for number in withheld)
        told.append([entry for number, entry in enumerate(entries) if number not in withheld])
        absent.append(not_there)
        purged.append(len(withheld) - not_there)
    if not any(absent) and not any(purged):
        return rows
    return rows.with_columns(
        pl.Series("not_taken", told, PACK_SCHEMA["not_taken"]),
        absent=pl.col("absent") - pl.Series(absent),
        purged=pl.col("purged").fill_null(0) + pl.Series(purged),
    )


def _without_masked(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Take purged records out of what the rows of a pack tell of those that are masked."""
    told: list[list[dict[str, str]]] = []
    for did, entries in rows.select("did", "masked").iter_rows():
        collections, rkeys = ([entry[part] for entry in entries or ()] for part in ("collection", "rkey"))
        withheld = set(tombstones.withheld_rows([did] * len(rkeys), collections, rkeys))
        told.append([entry for number, entry in enumerate(entries or ()) if number not in withheld])
    if sum(map(len, told)) == int(rows["masked"].list.len().sum() or 0):
        return rows
    return rows.with_columns(pl.Series("masked", told, PACK_SCHEMA["masked"]))


def _keys(group: pa.Table) -> tuple[list[str], list[str], list[str]]:
    return group["did"].to_pylist(), group["collection"].to_pylist(), group["rkey"].to_pylist()


def _less(attempts: pl.DataFrame, files: Sequence[_Rewritten]) -> pl.DataFrame:
    """Note in the rows of a pack how many single records of each account were taken out, and which are masked."""
    withheld: Counter[str] = Counter()
    for file in files:
        withheld.update(file.withheld)
    more = [withheld[did] for did in attempts["did"]]
    return attempts.with_columns(
        pl.Series("masked", _all_masked(attempts, files), PACK_SCHEMA["masked"]),
        purged=pl.col("purged").fill_null(0) + pl.Series(more, dtype=pl.Int64),
    )


def _all_masked(attempts: pl.DataFrame, files: Iterable[_Rewritten]) -> list[list[dict[str, str]]]:
    """Return what is masked in the records of each row of a pack: what was before, and what is now."""
    new: defaultdict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for file in files:
        for did, (collection, rkey, sha256) in file.masked_records:
            new[did][collection, rkey] = sha256
    told = []
    for did, before in attempts.select("did", "masked").iter_rows():
        known = {(one["collection"], one["rkey"]): one["sha256"] for one in before or ()} | new[did]
        told.append(
            [
                {"collection": collection, "rkey": rkey, "sha256": sha256}
                for (collection, rkey), sha256 in known.items()
            ]
        )
    return told


def _publish(storage: StudyStorage, folder: str, attempts: pl.DataFrame, files: Sequence[_Rewritten]) -> None:
    """Publish blocks files and then the pack that names them; nothing if no account is left."""
    if attempts.is_empty():
        return
    pack = _pack_name(attempts, files)
    with storage.shared(folder):
        stored = [
            storage.publish(file.path, f"{folder}/{blocks_file_name(pack, number)}", rows=file.rows)
            for number, file in enumerate(files)
        ]
        listed = pl.Series("blocks_files", [_listing(stored)] * attempts.height, PACK_SCHEMA["blocks_files"])
        storage.write(f"{folder}/{pack}.parquet", attempts.with_columns(listed))


def _listing(stored: Iterable[StoredFile]) -> list[dict[str, str | int]]:
    return [
        {
            "name": file.key.rpartition("/")[2],
            "rows": file.rows,
            "bytes": file.bytes,
            "sha256": file.sha256,
        }
        for file in stored
    ]


def _pack_name(attempts: pl.DataFrame, files: Iterable[_Rewritten]) -> str:
    """Name a pack by all that it holds: its attempts alone are those of the pack that it replaces."""
    identity = hashlib.sha256(repr(attempts.drop("blocks_files", "commit_block").rows()).encode())
    for file in files:
        with file.path.open("rb") as content:
            identity.update(hashlib.file_digest(content, "sha256").digest())
    return identity.hexdigest()[:_PACK_NAME_LENGTH]
