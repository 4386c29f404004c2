"""Every file of a study's folder, with its rows, size and digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Self

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.places import FROZEN_FOLDER
from backfill_dagster.manifest.keys import MANIFEST_FOLDER, MANIFEST_KEY, PROOF_FOLDER
from backfill_dagster.repos.packs import PACK_SCHEMA, pack_keys
from backfill_dagster.storage import without_source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backfill_dagster.storage import StudyStorage
    from backfill_dagster.stores.store import StoredObject

# Of files that have not changed since their digests were taken; a manifest is made with it, and never checked by it.
_KNOWN_KEY = ".digests"
# What is in a study's folder and no part of its data, by name or folder, and why.
NOT_COVERED: Mapping[str, str] = {
    ".lock": "is held by the run that has the study",
    ".scratch": "is written and deleted by each run",
    _KNOWN_KEY: "spares the next manifest some work, and is not believed when anything is verified",
    MANIFEST_KEY: "is the manifest itself; the certificate has its digest",
    MANIFEST_FOLDER: "is the manifest's own, which has their digests",
    PROOF_FOLDER: "comes of a verification, and is checked by the next one against its own certificate",
    FROZEN_FOLDER: "holds frozen builds, each with a manifest of its own, against which it is verified",
    "audit_log.parquet": "goes on with each run, also with one that verifies",
    "run_metadata.parquet": "goes on with each run",
    "user_metadata.parquet": "repeats what the store of metadata has noted, and when",
    "monitoring": "goes on with each run",
    "shared": "is made of the dataset for others, and has manifests of its own",
    "handoff": "is taken away by those to whom it is handed",
    "metadata.sqlite": "is shared with others, who may write to it",
    "metadata.sqlite-wal": "belongs to metadata.sqlite",
    "metadata.sqlite-shm": "belongs to metadata.sqlite",
    "metadata.sqlite-journal": "belongs to metadata.sqlite",
}

FILE_COLUMNS: tuple[Column, ...] = (
    Column("key", pl.String(), "Path of the file below the study's folder.", required=True),
    Column("rows", pl.Int64(), "Its rows; null if it is no Parquet file."),
    Column("bytes", pl.Int64(), "Its size.", required=True),
    Column("sha256", pl.String(), "SHA-256 of its bytes, in hex.", required=True),
)
FILES_SCHEMA = schema_of(FILE_COLUMNS)
_KNOWN_SCHEMA = pl.Schema({**FILES_SCHEMA, "version": pl.String()})
_PLACE = "place"
_SEEN_SCHEMA = pl.Schema({_PLACE: pl.UInt32(), "rows": pl.Int64(), "sha256": pl.String()})
_PACKS_AT_ONCE = 64
_LOOKS_AT_ONCE = 1_000
# Of what a pack tells of a file: whenever that was written.
_ANY_VERSION = ""


def covered_files(storage: StudyStorage) -> list[StoredObject]:
    """Return the files of a study that a manifest covers, sorted by key."""
    return storage.everything(NOT_COVERED)


def told_name(key: str) -> str:
    """Return a file's name as it can be stored: bytes that are no text, as systems allow, as numbers."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_files(storage: StudyStorage, threads: int) -> pl.DataFrame:
    """Return all covered files (FILES_SCHEMA); those that did not change since the last time are not read again.

    Of a blocks file its pack tells the digest with which it was written: that one is taken if the size is right.
    """
    there = _Covered.of(storage)
    is_same = (pl.col("bytes_told") == pl.col("bytes")) & (
        (pl.col("version_told") == pl.col("version")) | (pl.col("version_told") == _ANY_VERSION)
    )
    told = there.files.join(
        _known(storage), on="key", how="left", suffix="_told", maintain_order="left"
    ).with_columns(is_known=(pl.col("is_text") & is_same).fill_null(value=False))
    states = _with_states(storage, there, told, threads)
    storage.write(_KNOWN_KEY, states)
    return without_source(states.select(FILES_SCHEMA.names()))


def read_files(storage: StudyStorage, threads: int) -> pl.DataFrame:
    """Return all covered files (FILES_SCHEMA), each read whole for it."""
    there = _Covered.of(storage)
    unknown = there.files.with_columns(
        rows=pl.lit(None, pl.Int64), sha256=pl.lit(None, pl.String), is_known=pl.lit(value=False)
    )
    return _with_states(storage, there, unknown, threads).select(FILES_SCHEMA.names())


class _Covered(NamedTuple):
    """The covered files, sorted by key: `key` as it can be stored, `bytes`, `version` and whether the key `is_text`.

    And the true keys of those for which it is not, by their place.
    """

    files: pl.DataFrame
    keys: dict[int, str]

    @classmethod
    def of(cls, storage: StudyStorage) -> Self:
        found = covered_files(storage)
        names = [told_name(file.key) for file in found]
        columns = {
            "key": names,
            "bytes": [file.bytes for file in found],
            "version": [file.version for file in found],
            "is_text": [file.key == name for file, name in zip(found, names, strict=True)],
        }
        schema = {"key": pl.String, "bytes": pl.Int64, "version": pl.String, "is_text": pl.Boolean}
        keys = {
            place: file.key
            for place, (file, name) in enumerate(zip(found, names, strict=True))
            if file.key != name
        }
        return cls(pl.DataFrame(columns, schema=schema), keys)

    def key(self, place: int) -> str:
        return self.keys.get(place) or str(self.files["key"][place])


def _with_states(storage: StudyStorage, there: _Covered, told: pl.DataFrame, threads: int) -> pl.DataFrame:
    """Return the covered files (_KNOWN_SCHEMA), of which `told` has the `rows` and `sha256` of those that are known.

    The others are read for it.
    """

    def look_at(place: int) -> tuple[int, int | None, str]:
        key = there.key(place)
        sha256 = storage.sha256(key)
        return place, _rows(storage, key), sha256

    placed = told.with_row_index(_PLACE)
    seen = [pl.DataFrame(schema=_SEEN_SCHEMA)]
    with ThreadPoolExecutor(threads) as pool:
        # Some at a time: whatever waits for a thread takes more memory than its name.
        for some in placed.filter(~pl.col("is_known"))[_PLACE].to_frame().iter_slices(_LOOKS_AT_ONCE):
            looks = list(pool.map(look_at, some[_PLACE]))
            seen.append(pl.DataFrame(looks, schema=_SEEN_SCHEMA, orient="row"))
    both = placed.join(pl.concat(seen), on=_PLACE, how="left", suffix="_seen", maintain_order="left")
    return both.select(
        pl.when("is_known").then(pl.col(name)).otherwise(pl.col(f"{name}_seen")).alias(name)
        if name in ("rows", "sha256")
        else pl.col(name)
        for name in _KNOWN_SCHEMA
    )


def _rows(storage: StudyStorage, key: str) -> int | None:
    if not key.endswith(".parquet"):
        return None
    try:
        return storage.rows(key)
    except StorageError:
        # Also for names of columns that are no text.
        return None


def _known(storage: StudyStorage) -> pl.DataFrame:
    """Return what is told of files already (_KNOWN_SCHEMA), each once: by the last manifest, or else by its pack."""
    try:
        [last] = storage.collect([storage.scan([_KNOWN_KEY], _KNOWN_SCHEMA)], [_KNOWN_KEY])
    except StorageError:
        last = _KNOWN_SCHEMA.to_frame()
    by_packs = pl.concat([_KNOWN_SCHEMA.to_frame(), *_told_by_packs(storage)])
    return pl.concat([by_packs, last]).unique("key", keep="last", maintain_order=True)


def _told_by_packs(storage: StudyStorage) -> Iterator[pl.DataFrame]:
    """Yield what some packs after the others tell of their blocks files (_KNOWN_SCHEMA)."""
    packs = [key for *_, key in pack_keys(storage)]
    folder = pl.col("pack_key").str.replace("[^/]*$", "")
    for first in range(0, len(packs), _PACKS_AT_ONCE):
        named = {key: key for key in packs[first : first + _PACKS_AT_ONCE]}
        listed = storage.scan_named(named, PACK_SCHEMA, "pack_key").group_by("pack_key")
        files = (
            listed.agg(pl.col("blocks_files").first())
            .explode("blocks_files")
            .unnest("blocks_files")
            .drop_nulls("name")
            .select(
                pl.concat_str(folder, "name").alias("key"),
                *("rows", "bytes", "sha256"),
                pl.lit(_ANY_VERSION).alias("version"),
            )
        )
        yield from map(without_source, storage.collect([files], named))
