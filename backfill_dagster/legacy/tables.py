"""The tables of what was taken over: our columns, and where each row stood."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.records.tables import TABLE_BY_NAME, USUAL_TABLES

LEGACY_FOLDER = "legacy"
REJECTS_FOLDER = f"{LEGACY_FOLDER}/rejects"
OBTAINED = "legacy"
# The columns of the previous system's files.
LEGACY_INPUTS = (
    *(
        "uri",
        "cid",
        "author",
        "py_type",
        "created_at",
        "text",
        "embed",
        "entities",
        "facets",
        "labels",
        "langs",
    ),
    *("tags", "reply", "subject", "record_type", "synctimestamp", "partition_date"),
)


class LegacyProblem(ClosedSet):
    """What can be wrong with a value of the previous system, as `<its column>:<problem>` in `issues`."""

    UNREADABLE = (
        "unreadable",
        "It is neither JSON nor a Python value, or no time; `legacy_rest` has it as it stood.",
    )
    REMOVED = "removed", "The previous system had put `<removed>` in its place."
    COMMA_JOINED = (
        "comma_joined",
        "It was joined by commas, so that a value with a comma in it cannot be told from two.",
    )
    DIFFERS = "differs", "It is another than the folder or the URI says; `legacy_rest` has it as it stood."
    NOT_A_CID = "not_a_cid", "It is no CID; `legacy_rest` has it as it stood."


class LegacyReject(ClosedSet):
    """Why no row was made of a row of the previous system; what it held is in `content`."""

    NO_URI = "no_uri", "It has no URI."
    BAD_URI = "bad_uri", "Its URI is not that of a record, with its account's DID."
    OTHER_COLLECTION = "other_collection", "Its URI is of another collection than its folder's."
    SUPERSEDED = (
        "superseded",
        "Another row of the same URI was taken, and this one says something else.",
    )


# What our own columns mean here, where that is something else.
_MEANINGS = {
    "cid": "CID that the previous system noted; nothing was checked against it.",
    "repo_rev": "Null: not told by the previous system.",
    "pds": "Null: not told by the previous system.",
    "obtained": f"Always `{OBTAINED}`: taken over from the previous system, and not proven by anything.",
    "sync_timestamp": "The previous system's `synctimestamp`; null if it is no time.",
    "first_for_subject": "Null: not told of what was taken over.",
    "record": "Null: the previous system did not keep whole records.",
    "date_quality": "How far created_at is believed, as in our own tables; `future` is after the file was written.",
}
_PROVENANCE = (
    Column("proven", pl.Boolean(), "Always false: no signature or hash speaks for the row.", required=True),
    Column("legacy_file", pl.String(), "File below the root that the row stood in.", required=True),
    Column("legacy_layer", pl.String(), "Whether that is of the layer `active` or `cache`.", required=True),
    Column("legacy_synctimestamp", pl.String(), "The row's `synctimestamp` as it stood."),
    Column(
        "legacy_rest",
        pl.String(),
        "What has no column here or cannot be read, as JSON by the column that it stood in; null if nothing.",
    ),
)

LEGACY_TABLES = USUAL_TABLES


def legacy_columns(table: str) -> tuple[Column, ...]:
    """Return the columns of a table of what was taken over."""
    own = [
        replace(column, description=_MEANINGS.get(column.name, column.description), required=False)
        for column in TABLE_BY_NAME[table].columns
    ]
    return (*own, *_PROVENANCE)


def legacy_schema(table: str) -> pl.Schema:
    """Return their types."""
    return schema_of(legacy_columns(table))


REJECT_COLUMNS = (
    Column("file", pl.String(), "File below the root that the row stood in.", required=True),
    Column("row", pl.Int64(), "Its place there, from 0.", required=True),
    Column("uri", pl.String(), "Its URI as it stood."),
    Column("author", pl.String(), "Its author as it stood."),
    Column("reason", pl.String(), "Why no row was made of it.", required=True, words=(LegacyReject,)),
    Column("content", pl.String(), "All that stood there, as JSON.", required=True),
)
REJECT_SCHEMA = schema_of(REJECT_COLUMNS)
