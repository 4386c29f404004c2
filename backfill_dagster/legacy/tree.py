"""The previous system's Parquet tree, read into tables of our columns: each URI once, and nothing dropped in silence.

Rows are spilt into buckets by their URI first, so that all rows of one stand together and memory has a bound. Of
several rows of a URI, one of the layer `active` is taken before one of `cache`, then the one with the latest
`synctimestamp`, then the latest partition, file and row. What the others say, if it is something else, is listed among
the rejects.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from backfill_dagster.legacy.layout import COLLECTION_OF_TYPE, PassedOver, Stranger, find_files
from backfill_dagster.legacy.rows import ROWS_SCHEMA, SYNC_PATTERN, convert, listed, rejected
from backfill_dagster.legacy.tables import (
    LEGACY_FOLDER,
    LEGACY_INPUTS,
    LEGACY_TABLES,
    REJECTS_FOLDER,
    LegacyReject,
    legacy_schema,
)
from backfill_dagster.purge.record_rows import masked, purged_rows, without_purged_records
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.windows import GRANULARITIES, UNDATED
from backfill_dagster.storage import arrow_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.legacy.layout import LegacyFile
    from backfill_dagster.records.settings import StudyPeriod
    from backfill_dagster.storage import StudyStorage

REPORT_KEY = f"{LEGACY_FOLDER}/import_report.json"
# Rows that are read, or converted, at once; rows of a bucket, which are held whole as they stood; and buckets, each of
# which is an open file.
_ROWS_AT_ONCE = 20_000
_ROWS_OF_BUCKET = 100_000
_MOST_BUCKETS = 400
# What a file can raise whose bytes, types or name are not fit for reading: also a time zone that nobody knows, and a
# name that is no UTF-8. None of it may end the import.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    pa.ArrowException,
    pl.exceptions.PolarsError,
)
_MONTHLY = GRANULARITIES["monthly"]
# What makes two rows of a URI the same, wherever they stood.
_CONTENT = [name for name in LEGACY_INPUTS if name not in ("synctimestamp", "partition_date")]


@dataclass(slots=True)
class ImportReport:
    """What became of every row of the tree: `rows_read` = rows in tables, rejected, repeated and purged.

    `repeated` rows say what the one that was taken says. `rejected` counts by reason, `issues` by what is amiss with
    rows that were taken, `unknown_columns` the rows that had a value there, `missing_columns` the files that lack one,
    `other_types` the files whose column was no text. `passed_over` lists what is in the tree and was not read.
    """

    files: int = 0
    rows_read: int = 0
    rows_by_table: dict[str, int] = field(default_factory=dict)
    undated: int = 0
    repeated: int = 0
    purged: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    issues: dict[str, int] = field(default_factory=dict)
    unknown_columns: dict[str, int] = field(default_factory=dict)
    missing_columns: dict[str, int] = field(default_factory=dict)
    other_types: dict[str, int] = field(default_factory=dict)
    passed_over: list[dict[str, str]] = field(default_factory=list)


def import_tree(
    root: Path,
    storage: StudyStorage,
    period: StudyPeriod,
    on_file: Callable[[int, int], None] = lambda _done, _all: None,
) -> ImportReport:
    """Read a tree into `legacy/` of a study's folder, in the place of what was imported there before.

    What the study has purged stays out. Raises SourceError for a root without a tree, and StorageError.
    """
    files, strangers = find_files(root)
    with storage.alone(LEGACY_FOLDER):
        importing = _Import(storage, period, strangers)
        return importing.run(files, on_file)


def purge_legacy(storage: StudyStorage, tombstones: Tombstones) -> tuple[int, int]:
    """Take what is purged out of what was imported; return rows removed, and rows masked."""
    removed = changed = 0
    with storage.alone(LEGACY_FOLDER):
        for key in storage.keys(LEGACY_FOLDER):
            rows = storage.read(key)
            left = _without_authors(rows, tombstones) if key.startswith(f"{REJECTS_FOLDER}/") else rows
            kept, _, of_key = purged_rows(left, tombstones)
            removed, changed = removed + rows.height - kept.height, changed + of_key
            if kept.is_empty():
                storage.remove(key)
            elif kept.height < rows.height or of_key:
                storage.write(key, kept)
    return removed, changed


def _without_authors(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return the rows whose `author` is not purged, whatever their URI says."""
    held = tombstones.held_among(rows["author"])
    return rows.filter(~pl.col("author").is_in(held).fill_null(value=False))


class _Import:
    def __init__(self, storage: StudyStorage, period: StudyPeriod, strangers: list[Stranger]) -> None:
        self._storage = storage
        self._period = period
        self._strangers = strangers
        self._tombstones = Tombstones.load(storage)
        self._report = ImportReport()
        self._rejected: Counter[str] = Counter()
        self._issues: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._other_types: Counter[str] = Counter()
        self._rows: Counter[str] = Counter(dict.fromkeys(LEGACY_TABLES, 0))
        self._written: set[str] = set()

    def run(self, files: Sequence[LegacyFile], on_file: Callable[[int, int], None]) -> ImportReport:
        self._storage.remove(REPORT_KEY)
        done = 0
        for collection in dict.fromkeys(COLLECTION_OF_TYPE.values()):
            own = [file for file in files if COLLECTION_OF_TYPE[file.kind] == collection]
            with self._storage.scratch() as scratch:
                for bucket, path in enumerate(self._spill(own, scratch)):
                    self._take(collection, bucket, path)
            done += len(own)
            on_file(done, len(files))
        for key in set(self._storage.keys(LEGACY_FOLDER)) - self._written:
            self._storage.remove(key)
        return self._finish()

    def _finish(self) -> ImportReport:
        report = self._report
        report.rows_by_table = dict(self._rows)
        report.rejected = dict(sorted(self._rejected.items()))
        report.issues = dict(sorted(self._issues.items()))
        report.unknown_columns = dict(sorted(self._unknown.items()))
        report.missing_columns = dict(sorted(self._missing.items()))
        report.other_types = dict(sorted(self._other_types.items()))
        report.passed_over = [
            {"name": stranger.name, "reason": stranger.reason.value} for stranger in self._strangers
        ]
        told = json.dumps(asdict(report), indent=2, sort_keys=True)
        self._storage.write_bytes(REPORT_KEY, told.encode())
        return report

    def _spill(self, files: Sequence[LegacyFile], scratch: Path) -> list[Path]:
        """Write all rows of some files into buckets by their URI; return the buckets' files."""
        rows = sum(self._rows_of(file) for file in files)
        buckets = min(_MOST_BUCKETS, max(1, -(-rows // _ROWS_OF_BUCKET)))
        paths = [scratch / f"{number:05d}.arrows" for number in range(buckets)]
        schema = arrow_table(ROWS_SCHEMA.to_frame()).schema
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with ExitStack() as opened:
            sinks = [opened.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
            writers = [
                opened.enter_context(pa.ipc.new_stream(sink, schema, options=options)) for sink in sinks
            ]
            for file in files:
                for batch in self._read(file):
                    for bucket, part in _by_bucket(batch, buckets):
                        writers[bucket].write_table(arrow_table(part))
        return paths

    def _rows_of(self, file: LegacyFile) -> int:
        try:
            return int(pq.read_metadata(file.path).num_rows)
        except _UNREADABLE:
            return 0

    def _read(self, file: LegacyFile) -> Iterator[pl.DataFrame]:
        """Yield the rows of a file (ROWS_SCHEMA); of one that is damaged, those before the damage."""
        self._report.files += 1
        position = 0
        try:
            with pq.ParquetFile(file.path) as parquet:
                self._look_at_columns(parquet.schema_arrow)
                for batch in parquet.iter_batches(_ROWS_AT_ONCE):
                    batch.validate(full=True)
                    rows = self._of_file(batch, file, position)
                    position += rows.height
                    self._report.rows_read += rows.height
                    yield rows
        except _UNREADABLE:
            self._strangers.append(Stranger(file.name, PassedOver.UNREADABLE))

    def _look_at_columns(self, schema: pa.Schema) -> None:
        self._missing.update(set(LEGACY_INPUTS) - set(schema.names) - {"partition_date"})
        for column in schema:
            if column.name in LEGACY_INPUTS and not _is_text(column.type):
                self._other_types[column.name] += 1

    def _of_file(self, batch: pa.RecordBatch, file: LegacyFile, position: int) -> pl.DataFrame:
        # The first of two columns of one name is taken.
        columns = dict(reversed(list(zip(batch.schema.names, batch.columns, strict=True))))
        known = {
            name: _texts(columns[name]) if name in columns else [None] * batch.num_rows
            for name in LEGACY_INPUTS
        }
        others = {name: _texts(values) for name, values in columns.items() if name not in LEGACY_INPUTS}
        for name, values in others.items():
            self._unknown[name] += sum(value is not None for value in values)
        place = {
            "_file": [file.name] * batch.num_rows,
            "_row": list(range(position, position + batch.num_rows)),
            "_kind": [file.kind] * batch.num_rows,
            "_layer": [file.layer] * batch.num_rows,
            "_day": [file.day] * batch.num_rows,
            "_written_at": [file.written_at] * batch.num_rows,
            "_other": _as_json(others, batch.num_rows),
        }
        return pl.DataFrame({**known, **place}, schema=ROWS_SCHEMA)

    def _take(self, collection: str, bucket: int, path: Path) -> None:
        """Make of a bucket's rows parts of tables, and the list of those that are in none."""
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
            rows = pl.DataFrame(stream.read_all()).cast(ROWS_SCHEMA)
        rows = self._without_purged(rows)
        reasons = rejected(rows)
        is_sound = reasons.is_null()
        rejects = [listed(rows.filter(~is_sound), reasons.filter(~is_sound))]
        taken, superseded = self._of_each_uri(rows.filter(is_sound))
        reason = pl.Series([LegacyReject.SUPERSEDED.value] * superseded.height, dtype=pl.String)
        rejects.append(listed(superseded, reason))
        made: dict[str, list[pl.DataFrame]] = {}
        for some in taken.iter_slices(_ROWS_AT_ONCE):
            for table, frame in convert(some, self._period).items():
                made.setdefault(table, []).append(frame)
        for table, frames in made.items():
            self._write_windows(table, bucket, pl.concat(frames))
        every = pl.concat(rejects)
        if every.height:
            self._rejected.update(every["reason"].to_list())
            name = collection.rpartition(".")[2]
            self._write(f"{REJECTS_FOLDER}/{name}-{bucket:05d}.parquet", every.sort("file", "row"))

    def _without_purged(self, rows: pl.DataFrame) -> pl.DataFrame:
        if not self._tombstones:
            return rows
        kept = without_purged_records(_without_authors(rows, self._tombstones), self._tombstones)
        self._report.purged += rows.height - kept.height
        return masked(kept, self._tombstones)

    def _of_each_uri(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the one row of each URI that is taken, by URI, and those others that say something else."""
        ordered = rows.sort(
            "uri",
            pl.col("_layer") == "cache",
            # A text that is no time is later than none.
            pl.when(pl.col("synctimestamp").str.contains(SYNC_PATTERN)).then("synctimestamp").fill_null(""),
            "_day",
            "_file",
            "_row",
            descending=[False, False, True, True, True, True],
        )
        is_taken = ordered["uri"].is_first_distinct()
        says = pl.struct(*_CONTENT, "_kind", "_other")
        differs = ordered.select(says.ne_missing(says.first().over("uri"))).to_series()
        superseded = ordered.filter(~is_taken & differs)
        self._report.repeated += int((~is_taken & ~differs).sum())
        return ordered.filter(is_taken), superseded

    def _write_windows(self, table: str, bucket: int, rows: pl.DataFrame) -> None:
        self._rows[table] += rows.height
        self._issues.update(rows["issues"].explode().drop_nulls().to_list())
        starts = rows.with_columns(_start=_MONTHLY.start_of_row())
        for (start,), part in starts.partition_by("_start", as_dict=True, include_key=False).items():
            window = _MONTHLY.key(start)
            if window == UNDATED:
                self._report.undated += part.height
                folder = f"{LEGACY_FOLDER}/{UNDATED}/{table}"
            else:
                folder = f"{LEGACY_FOLDER}/{table}/{_MONTHLY.folder(window)}"
            self._write(
                f"{folder}/part-{bucket:05d}.parquet", part.select(legacy_schema(table).names()).sort("uri")
            )

    def _write(self, key: str, rows: pl.DataFrame) -> None:
        self._storage.write(key, rows)
        self._written.add(key)


def _by_bucket(batch: pl.DataFrame, buckets: int) -> Iterator[tuple[int, pl.DataFrame]]:
    if buckets == 1:
        yield 0, batch
        return
    numbers = [zlib.crc32((uri or "").encode()) % buckets for uri in batch["uri"]]
    parts = batch.with_columns(_bucket=pl.Series(numbers, dtype=pl.Int32)).partition_by(
        "_bucket", as_dict=True, include_key=False
    )
    for (bucket,), part in parts.items():
        yield bucket, part


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _texts(values: pa.Array) -> list[str | None]:
    """Return values as texts; what is none is written as JSON, and times as ISO 8601 has them."""
    if pa.types.is_temporal(values.type):
        # By Arrow, since Python has no nanoseconds.
        return [
            value if value is None else value.replace(" ", "T")
            for value in values.cast(pa.string()).to_pylist()
        ]
    return [
        value if value is None or isinstance(value, str) else _text(value) for value in values.to_pylist()
    ]


def _text(value: Any) -> str:
    return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def _as_json(columns: dict[str, list[str | None]], rows: int) -> list[str | None]:
    told: list[str | None] = []
    for row in range(rows):
        values = {name: texts[row] for name, texts in columns.items() if texts[row] is not None}
        told.append(orjson.dumps(values).decode() if values else None)
    return told
