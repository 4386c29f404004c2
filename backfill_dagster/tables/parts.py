"""One part of a table, written: its rows in some windows, read from converted files, a file for each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from backfill_dagster.monitoring.work_cost import WorkCost
    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StoredFile
    from backfill_dagster.stores.location import Location

# Rows of windows that are read together, unless a single window has more.
ROWS_AT_ONCE = 50_000
# Converted files that are read together: of a hundred accounts each, as a rule.
FILES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class WindowFile:
    """A file that is to be written: its window, its folder and name, and how many rows it must have."""

    window: str
    folder: str
    name: str
    rows: int

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a table: the windows' files to write, oldest first, and what they are made of.

    `sources` are converted files and the packs that they are of. `shown` is a file of this machine with all accounts
    (`did, pack`) whose rows belong in tables: they may be too many for each part to name its own.
    """

    table: str
    granularity: Granularity
    files: tuple[WindowFile, ...]
    sources: tuple[tuple[str, str], ...]
    shown: Path


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """The files of a part as they are stored, and what the work took."""

    files: list[StoredFile]
    cost: WorkCost


def write_part(root: Location, part: Part) -> WrittenPart:
    """Write a part's files; raises StorageError if the converted records are not those of which their index tells."""
    storage = StudyStorage(root)
    shown = _shown(part)
    stored = [stored for files in read_together(part.files) for stored in _write(storage, part, shown, files)]
    return WrittenPart(stored, storage.clock.cost())


def _shown(part: Part) -> pl.DataFrame:
    """Read which accounts (`did, pack`) of the part's packs are shown."""
    packs = {pack for _, pack in part.sources}
    try:
        return pl.scan_parquet(part.shown, glob=False).filter(pl.col("pack").is_in(sorted(packs))).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StorageError(f"{part.shown} cannot be read: {error}") from error


def read_together(files: Sequence[WindowFile]) -> Iterator[list[WindowFile]]:
    """Yield those of a part's files whose windows are read at once; undated rows, found otherwise, by themselves."""
    group: list[WindowFile] = []
    rows = 0
    for file in files:
        if group and (UNDATED in (file.window, group[0].window) or rows + file.rows > ROWS_AT_ONCE):
            yield group
            group, rows = [], 0
        group.append(file)
        rows += file.rows
    if group:
        yield group


def _write(
    storage: StudyStorage, part: Part, shown: pl.DataFrame, files: Sequence[WindowFile]
) -> list[StoredFile]:
    frames = _read(storage, part, shown, [file.window for file in files])
    empty = TABLE_BY_NAME[part.table].schema.to_frame()
    found = [(file.key, frames.get(file.window, empty)) for file in files]
    for file, (_, rows) in zip(files, found, strict=True):
        if rows.height != file.rows:
            raise StorageError(
                f"of the {file.rows:,} records converted for {file.folder}, {rows.height:,} are stored "
                f"below {storage.where('records')}; materialize `records`, which converts them again"
            )
    return list(storage.write_many(found))


def _read(
    storage: StudyStorage, part: Part, shown: pl.DataFrame, windows: Sequence[str]
) -> dict[str, pl.DataFrame]:
    """Read rows by URI and by window."""
    there = storage.sizes_of(key for key, _ in part.sources)
    stored = [(key, pack) for key, pack in part.sources if key in there]
    if not stored:
        return {}
    granularity = part.granularity
    wanted = _in_windows(granularity, [granularity.start(window) for window in windows])
    frame = pl.concat(
        _read_files(storage, part.table, shown, stored[first : first + FILES_AT_ONCE], wanted)
        for first in range(0, len(stored), FILES_AT_ONCE)
    )
    # Those of a single large account are in order as they come, and to put them in order takes their memory again.
    if not frame["uri"].is_sorted():
        frame = frame.sort("uri")
    if len(windows) == 1:
        return {windows[0]: frame}
    starts = frame.with_columns(_start=granularity.start_of_row())
    by_start = starts.partition_by("_start", as_dict=True, include_key=False)
    return {granularity.key(start): rows for (start,), rows in by_start.items()}


def _read_files(
    storage: StudyStorage,
    table: str,
    shown: pl.DataFrame,
    files: Sequence[tuple[str, str]],
    wanted: pl.Expr,
) -> pl.DataFrame:
    """Read the wanted rows of accounts that are shown from these files, given with the packs that they are of."""
    schema = TABLE_BY_NAME[table].schema
    rows = (
        storage.scan_named(dict(files), schema, "_pack")
        .filter(wanted)
        .join(shown.lazy(), left_on=["did", "_pack"], right_on=["did", "pack"], how="semi")
        .select(schema.names())
    )
    return storage.collect([rows], [key for key, _ in files])[0]


def _in_windows(granularity: Granularity, starts: Sequence[datetime | None]) -> pl.Expr:
    undated, created_at = is_undated(pl.col("date_quality")), pl.col("created_at")
    dated = [start for start in starts if start is not None]
    if not dated:
        return undated
    # The range first: by it row groups are passed over.
    in_range = created_at.is_between(min(dated), granularity.after(max(dated)), closed="left")
    return in_range & ~undated & created_at.dt.truncate(granularity.every).is_in(dated)
