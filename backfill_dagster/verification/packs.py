"""One pack, proven again: its files, its blocks, and each account's tree, commit and signature.

The work of one worker process, with one blocks file's row group and one pack's keys and CIDs in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from backfill_dagster.errors import StorageError
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.repos.blocks_file import BLOCKS_SCHEMA
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX, cid_text, dag_cbor_cid
from backfill_dagster.repos.commit import Commit, parse_commit
from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster.repos.keys import SigningKey, SigningKeyError, verify_signature
from backfill_dagster.repos.mst_node import MAX_KEY_BYTES
from backfill_dagster.repos.mst_root import tree_roots
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.verdicts import (
    VERDICTS_SCHEMA,
    FileProblem,
    Found,
    KeySource,
    SnapshotVerdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from backfill_dagster.stores.location import Location

# A DID that a purge has masked, in bytes.
_MASKED_DID = re.compile(rb"did(?::|%3[Aa])(?:plc(?::|%3[Aa])x{24}|web(?::|%3[Aa])x[x.-]*)")


class ToldKey(NamedTuple):
    """A signing key of an account as a document has it, and what kind of document."""

    did: str
    key_type: str
    key_multibase: str
    source: str


@dataclass(frozen=True, slots=True)
class PackToProve:
    """One pack: its host, name and key in the storage, and what is known of its accounts' keys.

    Of those accounts that `must_be_signed` the signature was checked when they were fetched.
    """

    pds_host: str
    pack: str
    key: str
    keys: tuple[ToldKey, ...]
    must_be_signed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PackProof:
    """The verdicts (VERDICTS_SCHEMA, `is_snapshot` yet to be set) of a pack's complete accounts, and what is wrong.

    `records` were looked at.
    """

    verdicts: pl.DataFrame
    found: list[Found]
    records: int


@dataclass(slots=True)
class _Blocks:
    """The records of a pack as columns in the order of its files: owner (place of the account's row), key, CID.

    `other` are the positions of those whose block does not have the hash of its CID, with path and SHA-256.
    """

    owners: list[NDArray[np.int64]] = field(default_factory=list)
    keys: list[pa.Array] = field(default_factory=list)
    cids: list[NDArray[np.uint8]] = field(default_factory=list)
    other: dict[int, list[tuple[str, str, bytes]]] = field(default_factory=dict)
    strays: int = 0


def prove_pack(root: Location, pack: PackToProve) -> PackProof:
    """Prove one pack's accounts again; raises StorageError if the pack itself cannot be read."""
    storage = StudyStorage(root)
    [rows] = storage.collect([storage.scan([pack.key], PACK_SCHEMA)], [pack.key])
    rows = rows.filter(pl.col("outcome") == Outcome.COMPLETE.value)
    found: list[Found] = []
    told = rows.to_dicts()
    with ExitStack() as lent:
        files: list[Path] = []
        damage = _damage(storage, pack.key, rows, files, lent)
        if damage is None:
            blocks = _read_blocks(files, [row["did"] for row in told])
    if damage is not None:
        found.append(damage)
        verdicts = [
            _row(pack, row, _Judgement(SnapshotVerdict.DAMAGED_FILE, detail=damage.detail), 0) for row in told
        ]
        return PackProof(_frame(verdicts), found, 0)
    if blocks.strays:
        found.append(Found(FileProblem.STRAY_RECORDS, pack.key, f"{blocks.strays:,} records"))
    prover = _Prover(pack, Tombstones.load(storage), blocks, told)
    return PackProof(_frame(prover.rows()), found, sum(map(len, blocks.owners)))


def _frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=VERDICTS_SCHEMA, orient="row")


def _files(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return list(rows["blocks_files"].to_list()[0] or ()) if rows.height else []


def _damage(
    storage: StudyStorage, key: str, rows: pl.DataFrame, files: list[Path], lent: ExitStack
) -> Found | None:
    """Return what is wrong with the blocks files that a pack names; else they are added to `files`.

    Each is brought here once, if it lies elsewhere, for as long as `lent` lasts.
    """
    if rows["blocks_files"].n_unique() > 1:
        return Found(FileProblem.CHANGED, key, "its rows name different blocks files")
    for file in _files(rows):
        name = f"{key.rpartition('/')[0]}/{file['name']}"
        if not storage.exists(name):
            return Found(FileProblem.MISSING, name, "its pack names it")
        path = lent.enter_context(storage.local(name))
        files.append(path)
        try:
            with path.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                size = content.tell()
        except OSError as error:
            raise StorageError(f"{storage.where(name)} cannot be read: {error}") from error
        if (size, sha256) != (file["bytes"], file["sha256"]):
            return Found(FileProblem.CHANGED, name, "it has other bytes than its pack tells")
        try:
            metadata, schema = pq.read_metadata(path), pq.read_schema(path)
            if metadata.num_rows != file["rows"]:
                return Found(FileProblem.CHANGED, name, "it has other rows than its pack tells")
            if schema.remove_metadata() != BLOCKS_SCHEMA:
                return Found(FileProblem.CHANGED, name, "it has other columns than a blocks file")
        except (OSError, pa.ArrowException) as error:
            return Found(FileProblem.UNREADABLE, name, f"{error!s:.200}")
    return None


def _read_blocks(files: Sequence[Path], dids: Sequence[str]) -> _Blocks:
    blocks = _Blocks()
    places = pa.array(dids, pa.string())
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                for number in range(file.num_row_groups):
                    _add(blocks, file.read_row_group(number), places)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{path} cannot be read: {error}") from error
    return blocks


def _add(blocks: _Blocks, group: pa.Table, dids: pa.Array) -> None:
    """Hash the blocks of a row group, and put their keys and CIDs aside."""
    known = pc.index_in(group["did"].combine_chunks(), dids)
    owners = pc.fill_null(known, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    blocks.strays += int((owners < 0).sum())
    paths = pc.binary_join_element_wise(
        group["collection"].combine_chunks().cast(pa.large_string()),
        group["rkey"].combine_chunks().cast(pa.large_string()),
        pa.scalar("/", pa.large_string()),
    )
    cids, is_cid = _cid_rows(group["cid"].combine_chunks())
    sha256 = hashlib.sha256
    stored = group["block"].combine_chunks()
    offsets = np.frombuffer(stored.buffers()[1], np.int64)[
        stored.offset : stored.offset + len(stored) + 1
    ].tolist()
    content = memoryview(stored.buffers()[2] or b"")
    digests = b"".join([sha256(content[start:end]).digest() for start, end in pairwise(offsets)])
    hashes = np.frombuffer(digests, np.uint8).reshape(len(cids), -1)
    prefix = len(DAG_CBOR_PREFIX)
    same = is_cid & (cids[:, prefix:] == hashes).all(axis=1)
    for row in np.flatnonzero(~same).tolist():
        path = group["collection"][row].as_py(), group["rkey"][row].as_py()
        block = bytes(content[offsets[row] : offsets[row + 1]])
        blocks.other.setdefault(int(owners[row]), []).append((*path, block))
    blocks.owners.append(owners)
    blocks.keys.append(paths.cast(pa.large_binary()))
    blocks.cids.append(cids)


def _cid_rows(cids: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return CIDs as rows of 36 bytes, and which of them are of the form that repositories use."""
    lengths = pc.fill_null(pc.binary_length(cids), 0).to_numpy(zero_copy_only=False)
    if (lengths == CID_BYTES).all() and not cids.null_count:
        data = b"".join(cids.to_pylist())
    else:
        data = b"".join([(cid or b"")[:CID_BYTES].ljust(CID_BYTES, b"\0") for cid in cids.to_pylist()])
    rows = np.frombuffer(data, np.uint8).reshape(len(cids), CID_BYTES)
    heads = rows[:, : len(DAG_CBOR_PREFIX)]
    usual = (heads == np.frombuffer(DAG_CBOR_PREFIX, np.uint8)).all(axis=1)
    usual |= (heads == np.frombuffer(RAW_PREFIX, np.uint8)).all(axis=1)
    return rows, usual & (lengths == CID_BYTES)


@dataclass(frozen=True, slots=True)
class _Judgement:
    verdict: SnapshotVerdict
    key_source: KeySource | None = None
    masked: int = 0
    detail: str | None = None


class _WrongError(Exception):
    """A check that fails: the verdict, and what was seen."""

    def __init__(self, verdict: SnapshotVerdict, detail: str) -> None:
        super().__init__(detail)
        self.verdict = verdict
        self.detail = detail


class _Prover:
    """Judges the accounts of one pack."""

    def __init__(
        self, pack: PackToProve, tombstones: Tombstones, blocks: _Blocks, told: list[dict[str, Any]]
    ) -> None:
        self._pack = pack
        self._tombstones = tombstones
        self._blocks = blocks
        self._told = told
        self._rows_of = Counter(row["did"] for row in told)
        self._keys: dict[str, list[ToldKey]] = {}
        for key in pack.keys:
            self._keys.setdefault(key.did, []).append(key)
        owners = np.concatenate([np.zeros(0, np.int64), *blocks.owners])
        self._counts = np.bincount(owners[owners >= 0], minlength=len(told)).tolist()
        self._roots, self._repeats = self._make_trees(owners)

    def rows(self) -> list[tuple[object, ...]]:
        """Return a row of verdicts for each account."""
        made = []
        for place, row in enumerate(self._told):
            try:
                judgement = self._judge(place, row)
            except _WrongError as wrong:
                judgement = _Judgement(wrong.verdict, detail=wrong.detail)
            made.append(_row(self._pack, row, judgement, self._counts[place]))
        return made

    def _make_trees(self, owners: NDArray[np.int64]) -> tuple[dict[int, bytes], set[int]]:
        """Return the roots of the trees of those accounts that are stored whole, and who has a record twice."""
        if not len(owners):
            # Of repositories without a record.
            return {
                place: tree_roots([], np.zeros((0, CID_BYTES), np.uint8), [0])[0] for place in self._whole()
            }, set()
        keys = pa.concat_arrays(self._blocks.keys)
        cids = np.concatenate(self._blocks.cids)
        order = pc.sort_indices(
            pa.table({"owner": pa.array(owners), "key": keys}),
            sort_keys=[("owner", "ascending"), ("key", "ascending")],
        ).to_numpy()
        sorted_keys, sorted_owners = keys.take(pa.array(order)), owners[order]
        same = pc.equal(sorted_keys[1:], sorted_keys[:-1]).to_numpy(zero_copy_only=False)
        repeats = set(sorted_owners[1:][same & (sorted_owners[1:] == sorted_owners[:-1])].tolist())
        longest = pc.binary_length(sorted_keys).to_numpy(zero_copy_only=False) > MAX_KEY_BYTES
        unusable = repeats | set(sorted_owners[longest].tolist())
        whole = [place for place in self._whole() if place not in unusable]
        chosen = np.isin(sorted_owners, whole)
        sizes = [self._counts[place] for place in whole]
        roots = tree_roots(sorted_keys.filter(pa.array(chosen)).to_pylist(), cids[order[chosen]], sizes)
        return dict(zip(whole, roots, strict=True)), repeats

    def _whole(self) -> list[int]:
        """Return the places of those whose whole repository is stored."""
        return [
            place
            for place, row in enumerate(self._told)
            if _obtained(row) is Obtained.REPO and not row["purged"]
        ]

    def _judge(self, place: int, row: dict[str, Any]) -> _Judgement:
        """Return what is proven of one account; raises _WrongError."""
        obtained, purged = _obtained(row), row["purged"] or 0
        self._check_count(place, row)
        masked = self._check_blocks(place, row)
        if purged and not (self._tombstones.dids or self._tombstones.holds_records_of(row["did"])):
            raise _WrongError(SnapshotVerdict.UNEXPLAINED, f"{purged:,} records are said to be purged")
        if obtained is Obtained.LIST_RECORDS:
            return _Judgement(SnapshotVerdict.LISTED, masked=masked)
        if row["commit_block"] is None and obtained is Obtained.RECORD_PROOF and not self._counts[place]:
            # All that was asked for is said not to be there.
            return _Judgement(SnapshotVerdict.PROVEN_WHEN_FETCHED)
        commit = _commit_of(row)
        if obtained is Obtained.REPO and not purged and self._roots.get(place) != commit.data:
            raise _WrongError(SnapshotVerdict.TREE_DIFFERS, f"the commit names {cid_text(commit.data)}")
        source = self._check_signature(row, commit)
        if source is None:
            verdict = SnapshotVerdict.SIGNATURE_UNCHECKED
        elif source is KeySource.PACK:
            verdict = SnapshotVerdict.KEY_UNKNOWN
        elif obtained is Obtained.RECORD_PROOF:
            verdict = SnapshotVerdict.PROVEN_WHEN_FETCHED
        elif purged:
            verdict = SnapshotVerdict.PROVEN_BEFORE_PURGE
        else:
            verdict = SnapshotVerdict.PROVEN_MASKED if masked else SnapshotVerdict.PROVEN
        return _Judgement(verdict, source, masked)

    def _check_count(self, place: int, row: dict[str, Any]) -> None:
        if self._rows_of[row["did"]] > 1:
            raise _WrongError(SnapshotVerdict.ROWS_DIFFER, "the pack tells of the account twice")
        if place in self._repeats:
            raise _WrongError(SnapshotVerdict.ROWS_DIFFER, "a record is stored twice")
        absent = row["absent"] or 0
        left_out = len(row["not_taken"] or ()) - absent
        expected = row["records"] - (row["purged"] or 0) - left_out
        if self._counts[place] != expected:
            detail = f"{self._counts[place]:,} records are stored of {expected:,}"
            raise _WrongError(SnapshotVerdict.ROWS_DIFFER, detail)

    def _check_blocks(self, place: int, row: dict[str, Any]) -> int:
        """Return in how many records the purged are masked; raises _WrongError for others with another hash."""
        told = {(one["collection"], one["rkey"]): one["sha256"] for one in row["masked"] or ()}
        other = self._blocks.other.get(place, [])
        for collection, rkey, block in other:
            noted = told.get((collection, rkey))
            if noted is None:
                raise _WrongError(SnapshotVerdict.BLOCK_DIFFERS, f"{collection}/{rkey}")
            if hashlib.sha256(block).hexdigest() != noted or not _MASKED_DID.search(block):
                raise _WrongError(SnapshotVerdict.BLOCK_DIFFERS, f"{collection}/{rkey}, which is masked")
        if other and not self._tombstones.dids:
            raise _WrongError(SnapshotVerdict.UNEXPLAINED, f"{len(other):,} records are said to be masked")
        return len(other)

    def _check_signature(self, row: dict[str, Any], commit: Commit) -> KeySource | None:
        """Return what tells of the key that made the signature; None if nothing does, and nothing has to."""
        named = row["signing_key"]
        known = self._keys.get(row["did"], [])
        for told in known:
            try:
                key = SigningKey.from_verification_method(told.key_type, told.key_multibase)
            except SigningKeyError:
                continue
            if verify_signature(key, commit.unsigned, commit.signature):
                if named not in (None, key.did_key):
                    raise _WrongError(
                        SnapshotVerdict.SIGNATURE_DIFFERS, f"the pack names {named}, not {key.did_key}"
                    )
                return KeySource(told.source)
        if named is None and row["did"] not in self._pack.must_be_signed:
            return None
        if known:
            detail = f"none of {len(known)} known keys has made it"
            raise _WrongError(SnapshotVerdict.SIGNATURE_DIFFERS, detail)
        if named is None:
            raise _WrongError(SnapshotVerdict.KEY_UNKNOWN, "neither a document nor the pack names any")
        try:
            key = SigningKey.from_did_key(named)
        except SigningKeyError:
            raise _WrongError(SnapshotVerdict.SIGNATURE_DIFFERS, "the pack names no key") from None
        if not verify_signature(key, commit.unsigned, commit.signature):
            raise _WrongError(
                SnapshotVerdict.SIGNATURE_DIFFERS, "the key that the pack names has not made it"
            )
        return KeySource.PACK


def _obtained(row: dict[str, Any]) -> Obtained:
    return Obtained(row["obtained"] or Obtained.REPO.value)


def _commit_of(row: dict[str, Any]) -> Commit:
    block = row["commit_block"]
    if block is None:
        raise _WrongError(SnapshotVerdict.COMMIT_DIFFERS, "there is none")
    if cid_text(dag_cbor_cid(block)) != row["commit_cid"]:
        raise _WrongError(SnapshotVerdict.COMMIT_DIFFERS, "it does not have its CID")
    try:
        commit = parse_commit(block)
    except RepoRejectedError as error:
        raise _WrongError(SnapshotVerdict.COMMIT_DIFFERS, error.detail) from None
    if commit.did != row["did"]:
        raise _WrongError(SnapshotVerdict.COMMIT_DIFFERS, "it is another account's")
    if commit.rev != row["repo_rev"]:
        raise _WrongError(SnapshotVerdict.COMMIT_DIFFERS, "it is another revision")
    return commit


def _row(pack: PackToProve, row: dict[str, Any], judgement: _Judgement, records: int) -> tuple[object, ...]:
    return (
        row["did"],
        pack.pds_host,
        pack.pack,
        False,
        judgement.verdict.value,
        None if judgement.key_source is None else judgement.key_source.value,
        _obtained(row).value,
        row["repo_rev"],
        row["commit_cid"],
        records,
        row["purged"] or 0,
        judgement.masked,
        judgement.detail,
    )
