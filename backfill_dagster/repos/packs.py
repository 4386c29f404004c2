"""Packs: the unit of commit of a fetch, and the ledger of every attempt.

A pack is one row per account attempted, and beside it one or more blocks files with every record of those of its
accounts that are complete. The blocks files are published first and the pack last: a blocks file that no pack
names is the left-over of an interrupted run. Names are made from the content's identity.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.repos.blocks_file import write_blocks_file
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Obtained, Outcome
from backfill_dagster.storage import (
    StoredFile,
    StudyStorage,
    partition_folder,
    partition_host,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from backfill_dagster.repos.blocks_file import Records
    from backfill_dagster.repos.masked import Masked
    from backfill_dagster.repos.spans import NotTaken

logger = logging.getLogger(__name__)

# A blocks file is full with so many bytes of blocks, or so many records. What is made of one is held in memory whole,
# in the stages after this one as well.
BLOCKS_FILE_BYTES = 32 * 2**20
BLOCKS_FILE_ROWS = 2**16
# The share from which on it is closed where an account ends, so that only those of large ones are in several files.
_NEARLY_FULL = 0.75
# Packs whose attempts are read at once.
_PACKS_AT_ONCE = 64

# Every column of a pack, one row per account attempted, with its type and its meaning.
PACK_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "The account's DID: the key within a pack.", required=True),
    Column("pds", pl.String(), "Origin of the PDS that was asked.", required=True),
    Column("outcome", pl.String(), "How the attempt ended.", required=True, words=(Outcome,)),
    Column(
        "obtained",
        pl.String(),
        "What was asked for; null in packs of older versions, which is repo.",
        words=(Obtained,),
    ),
    Column(
        "asked",
        pl.String(),
        "Digest of what was asked for, another of each list of records; null for the whole repository.",
    ),
    Column("reason", pl.String(), "Why it failed; null if it did not.", words=(FailureReason,)),
    Column("detail", pl.String(), "What the server or the check said, in its words."),
    Column("http_status", pl.Int32(), "HTTP status of the last answer; null if there was none."),
    Column("server_error", pl.String(), "Name that the server gave its error, if it did."),
    Column("attempts", pl.Int32(), "Tries that it took, or that were made in vain.", required=True),
    Column("bytes_received", pl.Int64(), "Bytes of the last answer's body on the wire.", required=True),
    Column("seconds", pl.Float64(), "Duration of the last answer."),
    Column("fetched_at", pl.Datetime("us", "UTC"), "When the last answer was asked for.", required=True),
    Column(
        "repo_rev",
        pl.String(),
        "Revision (TID) in the repository's commit: of several the oldest; of a listing what the host named, unproven.",
    ),
    Column("commit_cid", pl.String(), "CID of the commit, the root of the repository."),
    Column("commit_block", pl.Binary(), "The signed commit's exact bytes."),
    Column("signed_by", pl.String(), "Which key signed the commit: current, previous, or null if unchecked."),
    Column("signing_key", pl.String(), "That key, as did:key."),
    Column(
        "records",
        pl.Int64(),
        "Records in the repository's tree, counted by walking it; or those that were asked for and are there.",
        required=True,
    ),
    Column("absent", pl.Int64(), "Records that were asked for and are not there; null for older packs."),
    Column(
        "not_taken",
        pl.List(
            pl.Struct(
                {"collection": pl.String(), "rkey": pl.String(), "cid": pl.String(), "reason": pl.String()}
            )
        ),
        "Those, and what was listed and could not be taken, which counts among the records; with the reason.",
        words=(LeftOut,),
    ),
    Column("purged", pl.Int64(), "Of these, those that are not stored because the study has purged them."),
    Column(
        "masked",
        pl.List(pl.Struct({"collection": pl.String(), "rkey": pl.String(), "sha256": pl.String()})),
        "Those in whose bytes the study has masked accounts that it has purged, with the SHA-256 of what is stored.",
    ),
    Column(
        "blocks_files",
        pl.List(
            pl.Struct({"name": pl.String(), "rows": pl.Int64(), "bytes": pl.Int64(), "sha256": pl.String()})
        ),
        "The files beside the pack with every record's exact bytes; the same for all rows.",
    ),
)
PACK_SCHEMA = schema_of(PACK_COLUMNS)

# What a resumed run and the choice of snapshots read of a pack.
LEDGER_SCHEMA = pl.Schema(
    {
        **{
            name: PACK_SCHEMA[name]
            for name in (
                "did",
                "pds",
                "outcome",
                "obtained",
                "asked",
                "reason",
                "detail",
                "http_status",
                "attempts",
                "bytes_received",
                "seconds",
                "fetched_at",
                "repo_rev",
                "signed_by",
                "records",
                "absent",
            )
        },
        "pds_host": pl.String(),
        "pack": pl.String(),
    }
)
LEDGER_ORDER = ("did", "fetched_at", "pack")

# Between the name of a pack and the number of a file with its blocks.
_BLOCKS = ".blocks-"
_PACK_NAME = re.compile(r"(?P<pack>[0-9a-f]{20})\.parquet")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the latest attempt on one account ended; one row of a pack.

    `seconds` are of the download. Of the `records` of its tree, or of those asked for, `purged` are not stored, because
    the study has purged them, nor are those `not_taken` that are there; `masked` are stored with purged accounts
    masked in them.
    """

    did: str
    pds: str
    outcome: Outcome
    fetched_at: datetime
    obtained: Obtained = Obtained.REPO
    asked: str | None = None
    attempts: int = 1
    reason: FailureReason | None = None
    detail: str | None = None
    http_status: int | None = None
    server_error: str | None = None
    bytes_received: int = 0
    seconds: float = 0.0
    repo_rev: str | None = None
    commit_cid: str | None = None
    commit_block: bytes | None = None
    signed_by: str | None = None
    signing_key: str | None = None
    records: int = 0
    absent: int = 0
    not_taken: tuple[NotTaken, ...] = ()
    purged: int = 0
    masked: tuple[Masked, ...] = ()


class PackWriter:
    """Gathers proven repositories and writes them as one pack; holds at most one blocks file in memory.

    `bytes_written` is the size of the pack, with its blocks files, when it is committed.
    """

    def __init__(self, storage: StudyStorage, pds_host: str, scratch: Path) -> None:
        self._storage = storage
        self._folder = f"repos/{partition_folder(pds_host)}"
        self._scratch = scratch
        self._pending: list[Records] = []
        self._pending_bytes = 0
        self._pending_rows = 0
        self._files: list[tuple[Path, int]] = []
        self._attempts: list[Attempt] = []
        self.bytes_written = 0

    def add_records(self, records: Records) -> None:
        """Add records; those of an account and a collection must come in the order of their keys."""
        if self._pending and records.did != self._pending[-1].did and self._is_full(_NEARLY_FULL):
            self._write_blocks()
        self._pending.append(records)
        self._pending_bytes += sum(map(len, records.blocks))
        self._pending_rows += len(records.blocks)
        if self._is_full(1):
            self._write_blocks()

    def add_attempt(self, attempt: Attempt) -> None:
        """Add the row of one account."""
        self._attempts.append(attempt)

    def commit(self) -> str | None:
        """Publish the blocks files and then the pack; return the pack's name, None if it has no rows."""
        if not self._attempts:
            return None
        self._write_blocks()
        self._attempts.sort(key=lambda attempt: attempt.did)
        pack = _pack_name(self._attempts)
        # A worker can outlive its killed parent by a moment, in which the next run may sweep already.
        with self._storage.shared(self._folder):
            stored = [
                self._storage.publish(path, f"{self._folder}/{blocks_file_name(pack, number)}", rows=rows)
                for number, (path, rows) in enumerate(self._files)
            ]
            rows = _pack_frame(self._attempts, stored)
            written = self._storage.write(f"{self._folder}/{pack}.parquet", rows)
        self.bytes_written = sum(file.bytes for file in (*stored, written))
        return pack

    def _is_full(self, share: float) -> bool:
        return (
            self._pending_bytes >= share * BLOCKS_FILE_BYTES or self._pending_rows >= share * BLOCKS_FILE_ROWS
        )

    def _write_blocks(self) -> None:
        if not self._pending_rows:
            return
        path = self._scratch / f"blocks-{len(self._files)}.parquet"
        with self._storage.clock.writing():
            write_blocks_file(path, self._pending)
        self._files.append((path, self._pending_rows))
        self._pending, self._pending_bytes, self._pending_rows = [], 0, 0


def blocks_file_name(pack: str, number: int) -> str:
    """Return the name of a pack's n-th blocks file."""
    return f"{pack}{_BLOCKS}{number}.parquet"


def pack_keys(storage: StudyStorage, pds_hosts: Iterable[str] | None = None) -> list[tuple[str, str, str]]:
    """Return (PDS host, pack, key) of every committed pack, sorted; of all hosts unless some are named."""
    if pds_hosts is None and not storage.keeps_on_disk:
        # One listing of all: there are hundreds of hosts, most with a file or two.
        keys = storage.keys("repos")
    else:
        hosts = stored_hosts(storage) if pds_hosts is None else set(pds_hosts)
        keys = [key for host in hosts for key in storage.keys(f"repos/{partition_folder(host)}")]
    found = []
    for key in keys:
        folder, _, name = key.removeprefix("repos/").partition("/")
        host, match = partition_host(folder), _PACK_NAME.fullmatch(name.rpartition("/")[2])
        if match and partition_folder(host) == folder:
            found.append((host, match["pack"], key))
    return sorted(found, key=lambda pack: (pack[0], pack[2]))


def pack_sizes(storage: StudyStorage) -> Counter[str]:
    """Return how many bytes of blocks each pack has, by the pack's key; from a listing alone."""
    sizes: Counter[str] = Counter()
    for key, size in storage.sizes("repos").items():
        pack, is_blocks, _ = key.partition(_BLOCKS)
        if is_blocks:
            sizes[f"{pack}.parquet"] += size
    return sizes


def stored_hosts(storage: StudyStorage) -> list[str]:
    """Return the PDS hosts that have a folder of packs."""
    return sorted(partition_host(folder) for folder in storage.folders("repos"))


def read_ledger(storage: StudyStorage, pds_hosts: Iterable[str] | None = None) -> pl.DataFrame:
    """Return every attempt ever recorded (LEDGER_SCHEMA), sorted by DID and time.

    A repository whose blocks are missing, or not of the size that its pack tells, counts as never fetched.
    """
    return pl.concat([LEDGER_SCHEMA.to_frame(), *read_attempts(storage, pds_hosts)]).sort(LEDGER_ORDER)


def read_attempts(storage: StudyStorage, pds_hosts: Iterable[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the ledger's rows, some packs' after the other's, in no order."""
    packs = pack_keys(storage, pds_hosts)
    for first in range(0, len(packs), _PACKS_AT_ONCE):
        yield _attempts_of(storage, packs[first : first + _PACKS_AT_ONCE])


def _attempts_of(storage: StudyStorage, packs: Sequence[tuple[str, str, str]]) -> pl.DataFrame:
    """Return the attempts of these packs (LEDGER_SCHEMA), given as (PDS host, pack, key)."""
    hosts, names, keys = zip(*packs, strict=True)
    stored = storage.scan_named({key: key for key in keys}, PACK_SCHEMA, "key")
    origin = pl.LazyFrame({"key": keys, "pds_host": hosts, "pack": names})
    rows, files = storage.collect(
        [
            stored.join(origin, on="key").select(*LEDGER_SCHEMA, "key"),
            # Every row of a pack names the same files.
            stored.group_by("key").agg(pl.col("blocks_files").first()),
        ],
        keys,
    )
    named = {
        key: {f"{key.rpartition('/')[0]}/{file['name']}": file["bytes"] for file in files or ()}
        for key, files in files.iter_rows()
    }
    sizes = storage.sizes_of(name for of_pack in named.values() for name in of_pack)
    lost = [
        key
        for key, of_pack in named.items()
        if any(sizes.get(name) != size for name, size in of_pack.items())
    ]
    for key in lost:
        logger.warning("%s has lost blocks; its accounts are to be fetched again", storage.where(key))
    sound = ~pl.col("key").is_in(lost) | (pl.col("outcome") != Outcome.COMPLETE.value)
    return rows.filter(sound).drop("key")


def sweep_uncommitted_blocks(storage: StudyStorage, pds_host: str, *, by_one_alone: bool = False) -> int:
    """Delete blocks files that no pack names and no process is about to name; return how many.

    Where no lock tells, those are old ones; but any, if the caller is the only one at work on the study.
    """
    folder = f"repos/{partition_folder(pds_host)}"
    with storage.sweeping(folder, f"*{_BLOCKS}*.parquet", by_one_alone=by_one_alone) as blocks:
        packs = {pack for _, pack, _ in pack_keys(storage, [pds_host])}
        left_over = [
            file.key for file in blocks if file.key.rpartition("/")[2].partition(".")[0] not in packs
        ]
        for key in left_over:
            storage.remove(key)
    return len(left_over)


def _pack_name(attempts: Iterable[Attempt]) -> str:
    identity = hashlib.sha256()
    for attempt in attempts:
        parts = (
            attempt.did,
            attempt.outcome,
            attempt.reason,
            attempt.commit_cid,
            attempt.fetched_at.isoformat(),
        )
        identity.update(repr([str(part) for part in parts]).encode())
    return identity.hexdigest()[:20]


def _pack_frame(attempts: Sequence[Attempt], files: Sequence[StoredFile]) -> pl.DataFrame:
    named = [
        {
            "name": stored.key.rpartition("/")[2],
            "rows": stored.rows,
            "bytes": stored.bytes,
            "sha256": stored.sha256,
        }
        for stored in files
    ]
    own = [name for name in PACK_SCHEMA if name not in ("blocks_files", "not_taken", "masked")]
    columns: dict[str, list[object]] = {
        name: [getattr(attempt, name) for attempt in attempts] for name in own
    }
    columns["not_taken"] = [[left._asdict() for left in attempt.not_taken] for attempt in attempts]
    columns["masked"] = [[one._asdict() for one in attempt.masked] for attempt in attempts]
    columns["blocks_files"] = [named] * len(attempts)
    return pl.DataFrame({name: columns[name] for name in PACK_SCHEMA}, schema=PACK_SCHEMA)
