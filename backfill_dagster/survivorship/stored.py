"""Where what was seen over time is stored, and how a file says what it was made of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from backfill_dagster.storage import RowGroupWriter, StudyStorage, arrow_table, partition_folder

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


class RowsDigest:
    """A digest of the values of rows, the same on every machine and however many are added at once."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows behind those before."""
        for some in rows.iter_slices(_ROWS_AT_ONCE):
            self._digest.update(some.write_ndjson().encode())

    def hexdigest(self) -> str:
        """Return the digest of all rows so far."""
        return self._digest.hexdigest()


def store(storage: StudyStorage, key: str, rows: pl.DataFrame, identity: str, **said: str) -> None:
    """Store rows with what they were made of, and what else there is to say."""
    storage.write(key, rows, metadata={_MADE_OF: identity, **said})


def store_news(storage: StudyStorage, key: str, parts: Iterable[pl.DataFrame], schema: pl.Schema) -> None:
    """Store the rows of all parts (`schema`), each as a row group, unless what is stored was made of just these.

    No more than one part is held: whether they are the same is known after the last one only.
    """
    with storage.scratch() as folder:
        local, digest, rows = folder / "parts.parquet", RowsDigest(), 0
        with RowGroupWriter(local, arrow_table(schema.to_frame()).schema, dictionary=True) as file:
            for part in parts:
                digest.add(part)
                if part.height:
                    file.write(arrow_table(part))
                    rows += part.height
            file.note(_MADE_OF, digest.hexdigest())
        if not is_made_of(storage, key, digest.hexdigest()):
            storage.publish(local, key, rows=rows)


def discard(storage: StudyStorage, keys: Iterable[str]) -> None:
    """Delete files that stand for nothing any more."""
    for key in keys:
        storage.remove(key)
