"""Rows of the previous system, of which each URI stands once, as rows of our tables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl

from backfill_dagster.dids.syntax import check_did
from backfill_dagster.legacy.layout import COLLECTION_OF_TYPE
from backfill_dagster.legacy.tables import (
    LEGACY_INPUTS,
    OBTAINED,
    REJECT_SCHEMA,
    LegacyProblem,
    LegacyReject,
    legacy_schema,
)
from backfill_dagster.legacy.values import is_absent, read_structured
from backfill_dagster.records import syntax
from backfill_dagster.records.dates import date_rows
from backfill_dagster.records.record_keys import tid_times
from backfill_dagster.records.runs import Run
from backfill_dagster.records.tables import POST, TABLE_BY_NAME, TABLES_OF_COLLECTION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.records.settings import StudyPeriod

# Beside the previous system's own columns: where a row stood.
PLACE_SCHEMA = pl.Schema(
    {
        "_file": pl.String(),
        "_row": pl.Int64(),
        "_kind": pl.String(),
        "_layer": pl.String(),
        "_day": pl.String(),
        "_written_at": pl.Datetime("us", "UTC"),
        "_other": pl.String(),  # values of columns that are none of the known ones, as JSON
    }
)
ROWS_SCHEMA = pl.Schema({**dict.fromkeys(LEGACY_INPUTS, pl.String()), **PLACE_SCHEMA})
_SYNC_FORMAT = "%Y-%m-%d-%H:%M:%S"
SYNC_PATTERN = r"^\d{4}-\d{2}-\d{2}-\d{2}:\d{2}:\d{2}$"
_STUB = "<removed>"
_RKEY = re.compile(syntax.RECORD_KEY)
_CID = re.compile(syntax.CID)
_LANGUAGES = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8})*(,[a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8})*)*")
_NO_LIST = re.compile(r"[^\[\]{}'\"]+")
# What a post has beside its text, and whether a list of it may have been joined by commas.
_OF_POSTS = {"embed": False, "facets": False, "labels": False, "reply": False, "langs": True, "tags": True}


@dataclass(slots=True)
class _Read:
    """What one row says: a record, what is amiss with it, and what has no place in it."""

    record: dict[str, Any] = field(default_factory=dict)
    issues: list[str] = field(default_factory=list)
    rest: dict[str, str] = field(default_factory=dict)
    sync: str | None = None
    cid: str | None = None

    def note(self, column: str, problem: LegacyProblem, value: str | None = None) -> None:
        issue = f"{column}:{problem}"
        if issue not in self.issues:
            self.issues.append(issue)
        if value is not None:
            self.rest[column] = value


def rejected(rows: pl.DataFrame) -> pl.Series:
    """Return why no row can be made of each row (ROWS_SCHEMA); null where one can."""
    reasons = [_why_rejected(uri, kind) for uri, kind in rows.select("uri", "_kind").iter_rows()]
    return pl.Series("reason", reasons, pl.String)


def _why_rejected(uri: str | None, kind: str) -> str | None:
    if is_absent(uri) or uri is None:
        return LegacyReject.NO_URI.value
    scheme, _, rest = uri.partition("at://")
    did, _, path = rest.partition("/")
    collection, _, rkey = path.partition("/")
    if scheme or check_did(did) is not None or did != did.strip() or not _RKEY.fullmatch(rkey):
        return LegacyReject.BAD_URI.value
    return None if collection == COLLECTION_OF_TYPE[kind] else LegacyReject.OTHER_COLLECTION.value


def listed(rows: pl.DataFrame, reasons: pl.Series) -> pl.DataFrame:
    """Return rows that are left out, with their reasons, as a list (REJECT_SCHEMA) that holds all they say."""
    contents = [
        orjson.dumps({name: value for name, value in row.items() if value is not None}, default=str).decode()
        for row in rows.select(*LEGACY_INPUTS, "_other").iter_rows(named=True)
    ]
    return rows.select(
        file="_file",
        row="_row",
        uri="uri",
        author="author",
        reason=reasons,
        content=pl.Series(contents, dtype=pl.String),
    ).cast(REJECT_SCHEMA)


def convert(rows: pl.DataFrame, period: StudyPeriod) -> dict[str, pl.DataFrame]:
    """Return rows (ROWS_SCHEMA, none of them rejected) of one collection as rows of its tables (`legacy_schema`)."""
    if rows.is_empty():
        return {}
    [collection] = {COLLECTION_OF_TYPE[kind] for kind in rows["_kind"].unique()}
    read = [_read(row, collection) for row in rows.iter_rows(named=True)]
    parts = rows.select(pl.col("uri").str.splitn("/", 5).struct.unnest())
    run = Run(
        collection,
        [one.record for one in read],
        [False] * rows.height,
        pl.DataFrame({"position": np.zeros(0, np.int64)}),
        np.arange(rows.height),
    )
    keyed = rows.select(
        "uri",
        did=parts["field_2"],
        collection=pl.lit(collection),
        rkey=parts["field_4"],
        rkey_time=tid_times(parts["field_4"]),
        fetched_at=pl.col("_written_at"),
    )
    dated = date_rows(keyed, run.created_at(), period)
    columns = run.columns(dated, keep_record_json=False)
    for row, issues, one in zip(rows.iter_rows(named=True), columns["issues"], read, strict=True):
        _keep_what_was_refused(row, issues, one)
    sync = pl.Series([one.sync for one in read], dtype=pl.String)
    typed = dated.hstack(columns).with_columns(
        run.tables().alias("table"),
        cid=pl.Series([one.cid for one in read], dtype=pl.String),
        repo_rev=pl.lit(None, pl.String),
        pds=pl.lit(None, pl.String),
        obtained=pl.lit(OBTAINED),
        first_for_subject=pl.lit(None, pl.Boolean),
        proven=pl.lit(value=False),
        sync_timestamp=sync.str.to_datetime(_SYNC_FORMAT, time_unit="us", strict=False).dt.replace_time_zone(
            "UTC"
        ),
        issues=pl.concat_list("issues", pl.Series([one.issues for one in read], dtype=pl.List(pl.String))),
        legacy_file=rows["_file"],
        legacy_layer=rows["_layer"],
        legacy_synctimestamp=rows["synctimestamp"],
        legacy_rest=pl.Series(
            [orjson.dumps(one.rest).decode() if one.rest else None for one in read], dtype=pl.String
        ),
    )
    made = {}
    for table in TABLES_OF_COLLECTION[collection]:
        own = typed.filter(pl.col("table") == table).with_columns(
            record_type=pl.lit(TABLE_BY_NAME[table].record_type)
        )
        made[table] = own.select(legacy_schema(table).names()).cast(legacy_schema(table))
    return made


def _read(row: dict[str, Any], collection: str) -> _Read:
    read = _Read()
    record = read.record
    if not is_absent(row["py_type"]):
        record["$type"] = row["py_type"]
    if row["created_at"] is not None:
        record["createdAt"] = row["created_at"]
    if collection == POST:
        _read_post(row, read)
    else:
        _read_subject(row, read)
    _read_what_is_beside(row, read)
    return read


def _read_post(row: dict[str, Any], read: _Read) -> None:
    if row["text"] is not None:
        read.record["text"] = row["text"]
    for column, may_be_joined in _OF_POSTS.items():
        text = row[column]
        if is_absent(text):
            continue
        if text == _STUB:
            read.note(column, LegacyProblem.REMOVED)
        elif may_be_joined and _is_joined(column, text):
            read.record[column] = text.split(",")
            if column == "tags" and "," in text:
                read.note(column, LegacyProblem.COMMA_JOINED)
        else:
            _take(column, text, read)
    if row["_kind"] == "reply" and "reply" not in read.record:
        read.record["reply"] = None
    if row["_kind"] == "post" and "reply" in read.record:
        read.note("record_type", LegacyProblem.DIFFERS, row["record_type"] or "post")
    if not is_absent(row["subject"]):
        read.rest["subject"] = row["subject"]


def _is_joined(column: str, text: str) -> bool:
    return (_LANGUAGES if column == "langs" else _NO_LIST).fullmatch(text) is not None


def _read_subject(row: dict[str, Any], read: _Read) -> None:
    text = row["subject"]
    if not is_absent(text):
        if text.startswith("did:"):
            read.record["subject"] = text
        else:
            _take("subject", text, read)
    for column in ("text", *_OF_POSTS):
        if not is_absent(row[column]):
            read.rest[column] = row[column]


def _take(column: str, text: str, read: _Read) -> None:
    try:
        value = read_structured(text)
    except ValueError:
        read.note(column, LegacyProblem.UNREADABLE, text)
        return
    read.record[column] = value
    if not _has_columns(column, value):
        read.rest[column] = text


def _has_columns(column: str, value: Any) -> bool:
    """Tell whether all that a value has is something that there are columns for."""
    if column == "labels":
        labels = value.get("values") if isinstance(value, dict) else None
        return (
            isinstance(labels, list)
            and _has_only(value, "values")
            and all(_has_only(label, "val") for label in labels)
        )
    if column == "reply":
        return _has_only(value, "root", "parent") and all(
            _has_only(value.get(end), "uri", "cid") for end in ("root", "parent")
        )
    return column != "subject" or isinstance(value, str) or _has_only(value, "uri", "cid")


def _has_only(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and value.keys() <= {"$type", *keys}


def _keep_what_was_refused(row: dict[str, Any], issues: Iterable[str], read: _Read) -> None:
    """Keep the texts of fields that were not fit for their columns; `createdAt` is kept as it stood in any case."""
    for issue in issues:
        name = re.split(r"[.:\[]", issue)[0]
        column = {"$type": "py_type"}.get(name, name)
        if column in LEGACY_INPUTS and not is_absent(row[column]):
            read.rest.setdefault(column, row[column])


def _is_time(text: str) -> bool:
    if not re.fullmatch(SYNC_PATTERN, text):
        return False
    try:
        datetime.strptime(text, _SYNC_FORMAT)  # noqa: DTZ007  only asked whether there is such a time
    except ValueError:
        return False
    return True


def _read_what_is_beside(row: dict[str, Any], read: _Read) -> None:
    if not is_absent(row["entities"]):
        # What facets were before there were facets: there is no column for it.
        if row["entities"] == _STUB:
            read.note("entities", LegacyProblem.REMOVED)
        else:
            read.rest["entities"] = row["entities"]
    cid = row["cid"]
    if not is_absent(cid):
        if _CID.fullmatch(cid) and len(cid) <= syntax.MAX_CID_BYTES:
            read.cid = cid
        else:
            read.note("cid", LegacyProblem.NOT_A_CID, cid)
    expected = {
        "author": row["uri"].split("/")[2],
        "record_type": row["_kind"],
        "partition_date": row["_day"],
    }
    for column, value in expected.items():
        if not is_absent(row[column]) and row[column] != value:
            read.note(column, LegacyProblem.DIFFERS, row[column])
    sync = row["synctimestamp"]
    if not is_absent(sync):
        if _is_time(sync):
            read.sync = sync
        else:
            read.note("synctimestamp", LegacyProblem.UNREADABLE)
    if row["_other"] is not None:
        read.rest.update(orjson.loads(row["_other"]))
