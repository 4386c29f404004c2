"""What the directory has said of accounts' keys, byte for byte: by it a stored repository can be proven again.

Kept apart from the directory, which is read whole in many places. Whatever was received is kept once, in files that
are named by their content. An account that moves, or changes its key, comes to have several documents: the key of
any of them can be the one that its stored commit is signed by.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress
from typing import TYPE_CHECKING

import orjson
import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.directory.audit_log import parse_audit_keys
from backfill_dagster.directory.documents import LookupFailedError, claims_of
from backfill_dagster.purge.mentions import mask_text
from backfill_dagster.purge.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.storage import StudyStorage

DOCUMENTS_FOLDER = "documents"
# What is kept in memory before it is written, in rows and in bytes.
_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 8 * 2**20
# More files than this are put together, of those that are smaller than a full one.
_MANY_FILES = 64
_NAME_DIGITS = 20
_IDENTITY_BYTES = 16
# Identities that are gathered before they are sorted in among all.
_RECENT = 16_384


class EvidenceKind(ClosedSet):
    """What tells of an account's signing keys."""

    DID_DOCUMENT = "did_document", "Its DID document, as the directory or its own host sent it."
    PLC_AUDIT_LOG = (
        "plc_audit_log",
        "The log of its operations, as the PLC directory sent it: all keys that it has had.",
    )
    PLC_OPERATION = (
        "plc_operation",
        "What the PLC directory's export says by the account's latest operation, written here as JSON; the signed "
        "operation itself is not kept.",
    )


EVIDENCE_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "DID of the account that it tells of.", required=True),
    Column("kind", pl.String(), "What it is.", required=True, words=(EvidenceKind,)),
    Column("body", pl.Binary(), "What was received, byte for byte, unless it is masked.", required=True),
    Column("sha256", pl.String(), "SHA-256 of the body as it is stored, in hex.", required=True),
    Column(
        "masked",
        pl.Boolean(),
        "Whether the study has purged an account that it named, and masked it here.",
        required=True,
    ),
    Column("received_at", pl.Datetime("us", "UTC"), "When it was received first.", required=True),
)
EVIDENCE_SCHEMA = schema_of(EVIDENCE_COLUMNS)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A signing key that an account has, or had: its type and text as the evidence has them, and what told it."""

    key_type: str
    key_multibase: str
    kind: EvidenceKind


class EvidenceLog:
    """Keeps what is received while a stage asks the directory; what is stored already is not stored again.

    Nothing is kept of accounts that are purged. `flush` writes what has gathered, and comes before anything is stored
    that rests on it.
    """

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage
        self._tombstones = Tombstones.load(storage)
        self._known: _Identities | None = None
        self._rows: list[tuple[str, str, bytes, datetime]] = []
        self._bytes = 0

    def add(self, did: str, kind: EvidenceKind, body: bytes, received_at: datetime | None = None) -> None:
        """Keep what was received about an account."""
        self._rows.append((did, kind.value, body, received_at or datetime.now(UTC)))
        self._bytes += len(body)
        if len(self._rows) >= _ROWS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self.flush()

    def add_exported(self, rows: pl.DataFrame) -> None:
        """Keep what rows of the directory that come from the export say of keys."""
        columns = ("did", "handle", "pds", "key_type", "key_multibase", "resolved_at")
        for did, handle, pds, key_type, key, until in rows.select(columns).iter_rows():
            if key is not None:
                told = {"did": did, "handle": handle, "pds": pds, "type": key_type, "publicKeyMultibase": key}
                self.add(did, EvidenceKind.PLC_OPERATION, orjson.dumps(told), until)

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._rows:
            return
        rows, self._rows, self._bytes = self._rows, [], 0
        if self._known is None:
            self._known = _Identities(_stored_identities(self._storage))
        received = []
        for did, kind, body, received_at in rows:
            if not self._tombstones.holds_did(did):
                text, masked = _without_purged(body, self._tombstones)
                received.append((did, kind, text, hashlib.sha256(text).hexdigest(), masked, received_at))
        is_new = self._known.add([_identity(did, kind, sha256) for did, kind, _, sha256, *_ in received])
        new = list(compress(received, is_new))
        if new:
            frame = pl.DataFrame(new, schema=EVIDENCE_SCHEMA, orient="row").sort("did", "kind", "sha256")
            with self._storage.shared(DOCUMENTS_FOLDER):
                _write(self._storage, frame)


def put_together(storage: StudyStorage) -> None:
    """Put small files of evidence together, if there are many: each interrupted or short run leaves one."""
    keys = storage.keys(DOCUMENTS_FOLDER)
    if len(keys) <= _MANY_FILES:
        return
    with storage.alone(DOCUMENTS_FOLDER):
        small = [key for key in keys if storage.exists(key) and storage.size(key) < _BYTES_AT_ONCE // 4]
        for some in _lots(storage, small):
            rows = pl.concat([storage.read(key) for key in some]).unique(
                ["did", "kind", "sha256"], keep="first", maintain_order=True
            )
            _replace(storage, some, rows.sort("did", "kind", "sha256"))


def purge_evidence(storage: StudyStorage, tombstones: Tombstones) -> int:
    """Remove what tells of purged accounts, and mask them where others' documents name them; rows removed."""
    removed = 0
    for key in storage.keys(DOCUMENTS_FOLDER):
        rows = storage.read(key)
        stays = rows.filter(~pl.col("did").is_in(tombstones.held_among(rows["did"])))
        removed += rows.height - stays.height
        changed = [_without_purged(body, tombstones) for body in stays["body"]]
        if stays.height < rows.height or any(masked for _, masked in changed):
            bodies = [body for body, _ in changed]
            others = stays.with_columns(
                body=pl.Series(bodies, dtype=pl.Binary),
                sha256=pl.Series([hashlib.sha256(body).hexdigest() for body in bodies], dtype=pl.String),
                masked=pl.col("masked") | pl.Series([masked for _, masked in changed], dtype=pl.Boolean),
            )
            _replace(storage, [key], others)
    return removed


def keys_told(did: str, kind: str, body: bytes) -> list[KnownKey]:
    """Return the signing keys that a piece of evidence gives its account, none of them checked to be any.

    What does not tell of this account, or cannot be read, gives none.
    """
    try:
        if kind == EvidenceKind.PLC_AUDIT_LOG:
            return [KnownKey(*key, EvidenceKind.PLC_AUDIT_LOG) for key in _audit_keys(did, body)]
        document = orjson.loads(body)
        if not isinstance(document, dict):
            return []
        if kind == EvidenceKind.PLC_OPERATION:
            own, key_type, key = document.get("did"), document.get("type"), document.get("publicKeyMultibase")
        else:
            own, claims = document.get("id"), claims_of(document)
            key_type, key = claims.key_type, claims.key_multibase
    except (orjson.JSONDecodeError, LookupFailedError):
        return []
    if own != did or not (isinstance(key_type, str) and isinstance(key, str)):
        return []
    return [KnownKey(key_type, key, EvidenceKind(kind))]


def _audit_keys(did: str, body: bytes) -> list[tuple[str, str]]:
    keys = parse_audit_keys(body)
    entries = orjson.loads(body)
    # The log says of each operation whose it is.
    return keys if all(isinstance(entry, dict) and entry.get("did") == did for entry in entries) else []


def _without_purged(body: bytes, tombstones: Tombstones) -> tuple[bytes, bool]:
    """Return what was received with purged accounts masked, and whether it named any."""
    if not tombstones.dids:
        return body, False
    try:
        # An escaped letter would hide a name.
        plain = orjson.dumps(orjson.loads(body)).decode()
    except orjson.JSONDecodeError:
        plain = body.decode("utf-8", "surrogateescape")
    masked = mask_text(plain, tombstones.holds_did)
    return (body, False) if masked == plain else (masked.encode("utf-8", "surrogateescape"), True)


class _Identities:
    """Which evidence is stored. Sorted numbers of 16 bytes: a set of Python's would take six times as much."""

    def __init__(self, stored: Iterable[list[int]]) -> None:
        self._sorted = pl.concat(
            [pl.Series(dtype=pl.Int128), *(pl.Series(some, dtype=pl.Int128) for some in stored)]
        ).sort()
        self._recent: set[int] = set()

    def add(self, identities: list[int]) -> list[bool]:
        """Add some; tell of each whether it is new."""
        known = self._among_sorted(identities)
        is_new = []
        for identity, is_known in zip(identities, known, strict=True):
            is_new.append(not is_known and identity not in self._recent)
            if is_new[-1]:
                self._recent.add(identity)
        if len(self._recent) >= _RECENT:
            self._sorted = pl.concat([self._sorted, pl.Series(list(self._recent), dtype=pl.Int128)]).sort()
            self._recent.clear()
        return is_new

    def _among_sorted(self, identities: list[int]) -> list[bool]:
        if self._sorted.is_empty():
            return [False] * len(identities)
        asked = pl.Series(identities, dtype=pl.Int128)
        places = self._sorted.search_sorted(asked)
        return (self._sorted.gather(places.clip(0, self._sorted.len() - 1)) == asked).to_list()


def _stored_identities(storage: StudyStorage) -> Iterator[list[int]]:
    """Yield the identities of what is stored, file by file."""
    for key in storage.keys(DOCUMENTS_FOLDER):
        told = storage.scan([key], EVIDENCE_SCHEMA).select("did", "kind", "sha256")
        [rows] = storage.collect([told], [key])
        yield [_identity(*row) for row in rows.iter_rows()]


def _identity(did: str, kind: str, sha256: str) -> int:
    digest = hashlib.sha256(f"{did} {kind} {sha256}".encode()).digest()
    return int.from_bytes(digest[:_IDENTITY_BYTES], signed=True)


def _write(storage: StudyStorage, rows: pl.DataFrame) -> str:
    """Write rows as a file that is named by them; returns its key."""
    told = hashlib.sha256()
    for row in rows.select("did", "kind", "sha256", "received_at").iter_rows():
        told.update(repr(row).encode())
    key = f"{DOCUMENTS_FOLDER}/{told.hexdigest()[:_NAME_DIGITS]}.parquet"
    storage.write(key, rows)
    return key


def _replace(storage: StudyStorage, keys: Iterable[str], rows: pl.DataFrame) -> None:
    """Write rows in the place of files. The new one first, so that what proves an account is never gone."""
    written = _write(storage, rows) if rows.height else None
    for key in keys:
        if key != written:
            storage.remove(key)


def _lots(storage: StudyStorage, keys: list[str]) -> Iterator[list[str]]:
    """Yield files that fit together into one of the usual size."""
    some: list[str] = []
    size = 0
    for key in keys:
        if some and size + storage.size(key) > _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(key)
        size += storage.size(key)
    if len(some) > 1:
        yield some
