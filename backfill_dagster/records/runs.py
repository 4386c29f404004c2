"""The records of a chunk that are of one collection: read one by one, or at once if many are of the same shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.records.blocks import (
    Failure,
    Record,
    decode_blocks,
    has_reserved_key,
    may_hold_links,
    may_hold_reserved_keys,
)
from backfill_dagster.records.dates import read_created_at
from backfill_dagster.records.issues import FieldProblem, Issues, problem_of
from backfill_dagster.records.posts import is_reply, read_posts
from backfill_dagster.records.profiles import PROFILE_RKEY, read_profiles
from backfill_dagster.records.record_json import records_as_json
from backfill_dagster.records.shapes import PLAIN_FORM, Slot, find_alike
from backfill_dagster.records.subjects import (
    SUBJECT_ACCOUNT_SLOTS,
    SUBJECT_RECORD_SLOTS,
    read_subject_accounts,
    read_subject_records,
)
from backfill_dagster.records.tables import (
    BLOCK,
    FOLLOW,
    LIKE,
    OTHER_RECORDS,
    POST,
    PROFILE,
    REPOST,
    TABLES_OF_COLLECTION,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from backfill_dagster.records.shapes import Positions


@dataclass(frozen=True, slots=True)
class _Reader:
    """How records of a collection are read: one by one; and if many are of the same shape, the slots of that.

    `is_dated` says whether its lexicon requires `createdAt`, `rkey` which key is the only one that it knows.
    """

    read: Callable[[list[Record], Issues], dict[str, pl.Series]]
    slots: tuple[Slot, ...] = ()
    is_dated: bool = True
    rkey: str | None = None


# Columns that are the JSON of the field of the same name.
_WRITTEN_AS_JSON = ("embed", "facets")
_CREATED_AT = Slot(("createdAt",), PLAIN_FORM, {"created_at_raw": 0})
_SUBJECT_RECORDS = _Reader(read_subject_records, (_CREATED_AT, *SUBJECT_RECORD_SLOTS))
_SUBJECT_ACCOUNTS = _Reader(read_subject_accounts, (_CREATED_AT, *SUBJECT_ACCOUNT_SLOTS))
_READERS: dict[str, _Reader] = {
    POST: _Reader(read_posts),
    LIKE: _SUBJECT_RECORDS,
    REPOST: _SUBJECT_RECORDS,
    FOLLOW: _SUBJECT_ACCOUNTS,
    BLOCK: _SUBJECT_ACCOUNTS,
    PROFILE: _Reader(read_profiles, is_dated=False, rkey=PROFILE_RKEY),
}
# Of a collection whose lexicon is not known here: its records are kept as JSON alone.
_OF_OTHERS = _Reader(lambda _records, _issues: {}, is_dated=False)


@dataclass(slots=True)
class Run:
    """Records of one collection. `alone` were decoded one by one; `alike` has the columns of the others.

    `rows` says which row each is of, first of `alone`, then of `alike`.
    """

    collection: str
    alone: list[Record]
    may_reserve: list[bool]
    alike: pl.DataFrame
    rows: Positions

    def __len__(self) -> int:
        return len(self.rows)

    def created_at(self) -> pl.DataFrame:
        """Return `created_at_raw` and `created_at_problem` of each row."""
        return self._in_order(read_created_at(self.alone))

    def tables(self) -> pl.Series:
        """Return the name of each row's table."""
        names = TABLES_OF_COLLECTION.get(self.collection, (OTHER_RECORDS,))
        if self.collection != POST:
            return pl.Series(names[:1]).new_from_index(0, len(self))
        return pl.Series(
            ["replies" if is_reply(record) else "posts" for record in self.alone], dtype=pl.String
        )

    def keep(self, stays: npt.NDArray[np.bool_]) -> None:
        """Leave out the rows that do not stay."""
        is_kept = stays[self.rows]
        alone = is_kept[: len(self.alone)].tolist()
        self.alike = self.alike.filter(is_kept[len(self.alone) :])
        self.alone = list(compress(self.alone, alone))
        self.may_reserve = list(compress(self.may_reserve, alone))
        self.rows = _renumbered(self.rows[is_kept], stays)

    def columns(self, rows: pl.DataFrame, *, keep_record_json: bool) -> pl.DataFrame:
        """Return the columns that come from the records themselves, with `record` and `issues`, row by row.

        `rows`: `rkey` and `created_at_problem`.
        """
        reader = _reader(self.collection)
        issues = Issues()
        _check_type(self.alone, self.collection, issues)
        for position in compress(range(len(self.alone)), self.may_reserve):
            if has_reserved_key(self.alone[position]):
                issues.add(position, "record", FieldProblem.RESERVED_KEY)
        self._note_dates(rows["created_at_problem"], reader, issues)
        self._note_keys(rows["rkey"], reader, issues)
        columns = reader.read(self.alone, issues)
        if keep_record_json:
            written = {name: columns[name] for name in _WRITTEN_AS_JSON if name in columns}
            columns["record"] = records_as_json(self.alone, written)
        ordered = self._in_order(pl.DataFrame(columns))
        by_row = Issues()
        by_row.add_all(issues, self.rows.tolist())
        return ordered.with_columns(
            by_row.column(len(self)),
            *([] if keep_record_json else [pl.lit(None, pl.String).alias("record")]),
        )

    def _note_dates(self, problems: pl.Series, reader: _Reader, issues: Issues) -> None:
        if problems.null_count() == len(problems):
            return
        positions = np.argsort(self.rows)
        for row, problem in enumerate(problems):
            if problem is not None and (reader.is_dated or problem != FieldProblem.MISSING):
                issues.add(int(positions[row]), "createdAt", FieldProblem(problem))

    def _note_keys(self, rkeys: pl.Series, reader: _Reader, issues: Issues) -> None:
        if reader.rkey is None:
            return
        positions = np.argsort(self.rows)
        for row in (rkeys != reader.rkey).arg_true():
            issues.add(int(positions[row]), "rkey", FieldProblem.NOT_SELF)

    def _in_order(self, alone: pl.DataFrame) -> pl.DataFrame:
        """Put what was made of the records in the order of the rows, with the same columns of those alike."""
        if not self.alike.height:
            return alone
        whole = pl.concat([alone, self.alike.select(alone.columns)], rechunk=True)
        return whole[np.argsort(self.rows)]


def read_run(blocks: pl.Series, collection: str, *, keep_record_json: bool) -> tuple[Run, list[Failure]]:
    """Decode blocks of one collection. The rows of the run are the blocks without those that failed."""
    alike = _read_alike(blocks, collection, keep_record_json=keep_record_json)
    positions = np.arange(len(blocks))
    if alike.height:
        is_alone = np.ones(len(blocks), np.bool_)
        is_alone[alike["position"].to_numpy()] = False
        positions = np.flatnonzero(is_alone)
        blocks = blocks.gather(positions)
    block = pl.col("block")
    may = blocks.to_frame("block").select(link=may_hold_links(block), reserve=may_hold_reserved_keys(block))
    records, failures = decode_blocks(blocks.to_list(), may["link"].to_list())
    may_reserve = may["reserve"].to_list()
    rows = np.concatenate([positions, alike["position"].to_numpy()])
    if failures:
        is_sound = np.ones(len(rows), np.bool_)
        is_sound[[failure.position for failure in failures]] = False
        failures = [replace(failure, position=int(positions[failure.position])) for failure in failures]
        may_reserve = list(compress(may_reserve, is_sound.tolist()))
        stays = np.ones(len(rows), np.bool_)
        stays[rows[~is_sound]] = False
        rows = _renumbered(rows[is_sound], stays)
    return Run(collection, records, may_reserve, alike, rows), failures


def _read_alike(blocks: pl.Series, collection: str, *, keep_record_json: bool) -> pl.DataFrame:
    """Read blocks of the same shape: `position`, what `Run.created_at` and `Run.columns` return, but no `issues`."""
    slots = _reader(collection).slots
    names = [column for slot in slots for column in slot.columns]
    frames = [pl.DataFrame({"position": np.zeros(0, np.int64)})]
    if slots:
        for shape, positions, matrix in find_alike(blocks, collection, slots):
            strings = {name: shape.texts(name, matrix) for name in names}
            if keep_record_json:
                strings["record"] = shape.as_json(matrix)
            frames.append(pl.DataFrame({"position": positions, **strings}))
    whole = pl.concat(frames[1:] or frames, rechunk=True)
    return whole.with_columns(created_at_problem=pl.lit(None, pl.String))


def _reader(collection: str) -> _Reader:
    return _READERS.get(collection, _OF_OTHERS)


def _check_type(records: list[Record], collection: str, issues: Issues) -> None:
    types = [record.get("$type") for record in records]
    if types.count(collection) == len(types):
        return
    for row, (record, kind) in enumerate(zip(records, types, strict=True)):
        if kind != collection:
            otherwise = FieldProblem.DIFFERS if type(kind) is str else FieldProblem.NOT_A_STRING
            issues.add(row, "$type", problem_of(record, "$type", otherwise))


def _renumbered(rows: Positions, stays: npt.NDArray[np.bool_]) -> Positions:
    """Give rows their numbers among those that stay; all of these rows do."""
    return (stays.cumsum() - 1)[rows]
