"""Tombstones: what must not be collected again, kept in `purged.parquet` without naming it.

A tombstone is the SHA-256 of a DID or of a record's URI behind a salt: bytes of chance, made for the study with
its first tombstone and kept in the same file, so that the two cannot part. The file thus holds no DID; the lists of
two studies cannot be matched with each other, and no table of all DIDs' hashes made beforehand fits either. It is
no secret from someone who holds the file and has a particular DID to try: whether a DID was withdrawn must remain
answerable, or it would be collected again.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.purge.mentions import (
    SPELLED_DID,
    canonical_did,
    mask_block,
    mask_text,
    may_name_purged,
    names_purged,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from backfill_dagster.storage import StudyStorage

TOMBSTONES_KEY = "purged.parquet"
PURGED = "purged"

TOMBSTONE_COLUMNS = (
    Column("kind", pl.String(), "What is not to be collected again: did or record.", required=True),
    Column("hash", pl.Binary(), "Salted SHA-256 of its DID or URI.", required=True),
    Column("account", pl.Binary(), "Of a record: the hash of its account's DID."),
    Column("web_length", pl.Int32(), "Of a did:web: its length, by which it is found in bytes."),
    Column("asked_at", pl.Datetime("us", "UTC"), "When the purge was asked for.", required=True),
    Column(
        "removed_at",
        pl.Datetime("us", "UTC"),
        "When nothing that is stored held it any more; null until then.",
    ),
)
_SCHEMA = schema_of(TOMBSTONE_COLUMNS)
_DID, _RECORD = "did", "record"
_SALT = "salt"
_SALT_BYTES = 32
# Accounts of which it is remembered whether they are purged: the same are named again and again.
_MOST_KNOWN = 65_536
# In the metadata of the file: all is done but for a frozen build.
_LEFT_IN_FROZEN = "left_in_frozen"
# As far as a record's key goes; quotes and commas of a JSON text around it are none of it.
_URI = re.compile(r"at://did:[A-Za-z0-9:._%-]+/[A-Za-z0-9.-]+/[A-Za-z0-9._:~-]+")


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The study's list, as hashes; false if it is empty.

    `unfinished` counts what is not yet removed from the study's own files, `left_in_frozen` what is removed from these
    and not yet from all frozen builds.
    """

    salt: bytes = b""
    dids: frozenset[bytes] = frozenset()
    records: frozenset[bytes] = frozenset()
    accounts: frozenset[bytes] = frozenset()
    web_lengths: frozenset[int] = frozenset()
    unfinished: int = 0
    left_in_frozen: int = 0
    _known: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, storage: StudyStorage) -> Tombstones:
        """Read the study's list; an empty one if nothing was ever purged."""
        if not storage.exists(TOMBSTONES_KEY):
            return cls()
        rows = storage.read(TOMBSTONES_KEY)
        of_dids, of_records = (rows.filter(kind=kind) for kind in (_DID, _RECORD))
        told = storage.metadata(TOMBSTONES_KEY)
        waiting = rows["removed_at"].null_count()
        only_frozen = _LEFT_IN_FROZEN in told
        return cls(
            salt=bytes.fromhex(told[_SALT]),
            dids=frozenset(of_dids["hash"]),
            records=frozenset(of_records["hash"]),
            accounts=frozenset(of_records["account"]),
            web_lengths=frozenset(of_dids["web_length"].drop_nulls()),
            unfinished=0 if only_frozen else waiting,
            left_in_frozen=waiting if only_frozen else 0,
        )

    def __bool__(self) -> bool:
        return bool(self.dids or self.records)

    def holds_did(self, did: str) -> bool:
        """Tell whether an account is purged."""
        if not self.dids:
            return False
        known = self._known.get(did)
        if known is None:
            known = self._hash(canonical_did(did)) in self.dids
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[did] = known
        return known

    def holds_records_of(self, did: str) -> bool:
        """Tell whether single records of an account are purged."""
        return bool(self.accounts) and self._hash(canonical_did(did)) in self.accounts

    def holds_record(self, did: str, collection: str, rkey: str) -> bool:
        """Tell whether this one record is purged."""
        return self._hash(_record_uri(did, collection, rkey)) in self.records

    def holds_uri(self, uri: str) -> bool:
        """Tell whether this one record is purged, by its AT-URI as it stands in tables."""
        did, _, path = uri.removeprefix("at://").partition("/")
        return self._hash(f"at://{canonical_did(did)}/{path}") in self.records

    def held_among(self, dids: pl.Series) -> list[str]:
        """Return the DIDs of a column that are purged, each once."""
        return [did for did in dids.unique().drop_nulls() if self.holds_did(did)]

    def withheld_rows(
        self, dids: Sequence[str], collections: Sequence[str], rkeys: Sequence[str]
    ) -> list[int]:
        """Return the positions of records that are purged or whose key, which cannot be masked, names the purged."""
        if not self:
            return []
        accounts = {did for did in set(dids) if self.holds_records_of(did)}
        return [
            position
            for position, (did, collection, rkey) in enumerate(zip(dids, collections, rkeys, strict=True))
            if (did in accounts and self.holds_record(did, collection, rkey))
            or (("did" in rkey or "did" in collection) and self.named_in(f"{collection}/{rkey}"))
        ]

    def named_in(self, text: str) -> bool:
        """Tell whether a text names a purged account."""
        return bool(self.dids) and names_purged(text, self.holds_did)

    def record_named_in(self, text: str) -> bool:
        """Tell whether a text names a purged record by its AT-URI."""
        return bool(self.records) and any(self.holds_uri(uri) for uri in _URI.findall(text))

    def may_be_named_in(self, blocks: Sequence[bytes]) -> bool:
        """Tell quickly whether blocks seem to name a purged account."""
        # Between two blocks stands a byte that no text holds.
        return bool(self.dids) and may_name_purged(b"\xff".join(blocks), self.holds_did, self.web_lengths)

    def mask_blocks(self, blocks: Sequence[bytes]) -> list[bytes]:
        """Return the blocks with purged accounts masked; a block that names none is the same object."""
        if not self.may_be_named_in(blocks):
            return list(blocks)
        return [mask_block(block, self.holds_did, self.web_lengths) for block in blocks]

    def mask(self, text: str | None) -> str | None:
        """Return a text with purged accounts masked."""
        return mask_text(text, self.holds_did) if text and self.dids else text

    def mask_record_uris(self, text: str) -> str:
        """Return a text with the AT-URIs of purged records crossed out; of the same length."""
        if not self.records:
            return text
        return _URI.sub(
            lambda match: (
                re.sub("[A-Za-z0-9]", "x", match.group()) if self.holds_uri(match.group()) else match.group()
            ),
            text,
        )

    def mask_texts(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return a frame with purged accounts masked in all columns of text, and of lists of texts."""
        if not self.dids:
            return frame
        texts = [name for name, kind in frame.schema.items() if kind == pl.String]
        lists = [name for name, kind in frame.schema.items() if kind == pl.List(pl.String)]
        return frame.with_columns(
            *(self._mask_column(frame[name]) for name in texts),
            *(self._mask_lists(frame[name]) for name in lists),
        )

    def withhold(self, entries: pl.DataFrame) -> pl.DataFrame:
        """Take purged DIDs out of a source's entries, by `input` and `reason`: the one is emptied, the other says so.

        So is an input that stands for a purged DID, if `entry` says which it stands for. In the other entries they are
        masked.
        """
        if not self.dids:
            return entries
        naming = [name for name in ("input", "entry") if name in entries.columns]
        purged = pl.any_horizontal(
            pl.col(name).is_in(self.held_among(entries[name])).fill_null(value=False) for name in naming
        )
        return self.mask_texts(
            entries.with_columns(
                *(pl.when(~purged).then(name).alias(name) for name in naming),
                reason=pl.when(purged).then(pl.lit(PURGED)).otherwise("reason"),
            )
        )

    def _mask_column(self, texts: pl.Series) -> pl.Series:
        changed = self._masked(texts)
        return texts.replace(changed) if changed else texts

    def _mask_lists(self, lists: pl.Series) -> pl.Series:
        changed = self._masked(lists.list.explode(keep_nulls=False, empty_as_null=False))
        return lists.list.eval(pl.element().replace(changed)) if changed else lists

    def _masked(self, texts: pl.Series) -> dict[str, str]:
        """Return those of these texts in which purged accounts are named, with what becomes of them."""
        # Each DID is looked up once: there are far fewer of them than texts.
        spelled = texts.str.extract_all(SPELLED_DID).list.explode(keep_nulls=False, empty_as_null=False)
        purged = [did for did in spelled.unique() if self.named_in(did)]
        if not purged:
            return {}
        suspects = texts.filter(texts.str.contains_any(purged)).unique().to_list()
        return {text: mask_text(text, self.holds_did) for text in suspects}

    def _hash(self, text: str) -> bytes:
        return hashlib.sha256(self.salt + text.encode()).digest()


def _record_uri(did: str, collection: str, rkey: str) -> str:
    return f"at://{canonical_did(did)}/{collection}/{rkey}"


def bury(
    storage: StudyStorage, dids: Iterable[str], records: Iterable[tuple[str, str, str]], now: datetime
) -> Tombstones:
    """Add accounts and records (did, collection, rkey) to the study's list, as not yet removed.

    One file is written, in one step: from then on nothing of them is collected again. What is on the list
    already is put on it anew, so that it is looked for once more.
    """
    salt = Tombstones.load(storage).salt or secrets.token_bytes(_SALT_BYTES)
    hashing = Tombstones(salt)
    new = [
        *((_DID, hashing._hash(canonical_did(did)), None, _web_length(did)) for did in dids),
        *(
            (_RECORD, hashing._hash(_record_uri(*record)), hashing._hash(canonical_did(record[0])), None)
            for record in records
        ),
    ]
    if new:
        rows = pl.DataFrame(
            [(*row, now, None) for row in new],
            schema=_SCHEMA,
            orient="row",
        )
        if storage.exists(TOMBSTONES_KEY):
            rows = pl.concat([storage.read(TOMBSTONES_KEY), rows])
        _write(storage, rows.unique(["kind", "hash"], keep="last", maintain_order=True), salt)
    return Tombstones.load(storage)


def settle(storage: StudyStorage, now: datetime, *, but_for_frozen: bool = False) -> None:
    """Note that everything on the list is removed from all that is stored, or from all but a frozen build."""
    if storage.exists(TOMBSTONES_KEY):
        rows, salt = storage.read(TOMBSTONES_KEY), Tombstones.load(storage).salt
        if but_for_frozen:
            _write(storage, rows, salt, {_LEFT_IN_FROZEN: "yes"})
        else:
            _write(storage, rows.with_columns(pl.col("removed_at").fill_null(now)), salt)


def _write(
    storage: StudyStorage, rows: pl.DataFrame, salt: bytes, marks: Mapping[str, str] | None = None
) -> None:
    storage.write(TOMBSTONES_KEY, rows, metadata={_SALT: salt.hex(), **(marks or {})})


def _web_length(did: str) -> int | None:
    return len(did) if did.startswith("did:web:") else None
