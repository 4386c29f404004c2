"""Where what was seen over time is stored, and how a file says what it was made of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from backfill_dagster.storage import StudyStorage, partition_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import polars as pl

# What is taken from single packs, once: the pipeline's own.
FOLDER = "survivorship"
RECORD_CHANGES_FOLDER = "record_changes"
ACCOUNT_HISTORY_KEY = "account_history.parquet"
DELETION_RATES_KEY = "deletion_rates.parquet"

_MADE_OF = "made_of"
_ROWS_AT_ONCE = 50_000


def of_pack(kind: str, pds_host: str, pack: str) -> str:
    """Return where what is taken of one pack is stored."""
    return f"{FOLDER}/{kind}/{partition_folder(pds_host)}/{pack}.parquet"


def told_of(storage: StudyStorage, key: str) -> Mapping[str, str]:
    """Return what a file says of itself; nothing if it is not there or cannot be read."""
    return storage.metadata_of([key]).get(key, {})


def is_made_of(storage: StudyStorage, key: str, identity: str) -> bool:
    """Tell whether a file was made of just this."""
    return told_of(storage, key).get(_MADE_OF) == identity


def digest_of(rows: pl.DataFrame) -> str:
    """Return a digest of the values of a frame, the same on every machine."""
    digest = hashlib.sha256()
    for some in rows.iter_slices(_ROWS_AT_ONCE):
        digest.update(some.write_ndjson().encode())
    return digest.hexdigest()


def store(storage: StudyStorage, key: str, rows: pl.DataFrame, identity: str, **said: str) -> None:
    """Store rows with what they were made of, and what else there is to say."""
    storage.write(key, rows, metadata={_MADE_OF: identity, **said})


def discard(storage: StudyStorage, keys: Iterable[str]) -> None:
    """Delete files that stand for nothing any more."""
    for key in keys:
        storage.remove(key)
