"""From a study's source to the list of accounts to collect."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.dids.entries import counted_entries
from backfill_dagster.dids.exclusion import Exclusion, read_exclusion
from backfill_dagster.dids.handle_syntax import HandleRejection, is_handle, may_name_somebody, normal_handle
from backfill_dagster.dids.syntax import WHITESPACE, DidRejection, rejection_of, stripped
from backfill_dagster.errors import SourceError
from backfill_dagster.purge.tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.dids.entries import EntrySource, SourceAccess

DID_COLUMNS = (Column("did", pl.String(), "DID of an account of the study, each once.", required=True),)
DIDS_SCHEMA = schema_of(DID_COLUMNS)
REJECT_COLUMNS = (
    Column(
        "position", pl.Int64(), "Place of the entry among all of the source, counted from 0.", required=True
    ),
    Column(
        "input",
        pl.String(),
        "The entry's first 200 characters; null for one that stands for an account that the study has purged.",
    ),
    Column(
        "reason",
        pl.String(),
        "Why it names no account to collect.",
        required=True,
        words=(DidRejection, HandleRejection),
    ),
    Column(
        "entry", pl.String(), "The DID that it stands for, if that is known and another text, as of a handle."
    ),
)
REJECTS_SCHEMA = schema_of(REJECT_COLUMNS)
SOURCE_FIELD, EXCLUDE_FIELD = "backfill.source", "backfill.exclude"
MAX_INPUT_SHOWN = 200

_ACCEPTED = pl.Schema({"position": pl.Int64, "input": pl.String, "did": pl.String})
_MALFORMED = [reason.value for reason in DidRejection if reason.malformed]
_NOTHING_PURGED = Tombstones()


@dataclass(frozen=True, slots=True)
class CollectedDids:
    """What a source came to: `given` entries, of which each is a row of `dids` or of `rejects`.

    `dids` (DIDS_SCHEMA) holds each DID once, in the order in which it was first seen. `rejects`
    (REJECTS_SCHEMA) holds the other entries in their order: their position counted from 0, their text (its
    first 200 characters; null for what stands for a DID that the study has purged), why they were left out, a
    value of DidRejection or one that the source gives, as of HandleRejection, and what the text stands for, if that
    is known and another text, as of a handle. Empty lines and comments of a text file are no entries.

    `given_by_source` counts the entries by the field of the YAML that they come from: the source, what it is made of
    if it is a union or difference, and likewise of `exclude`. `useless_exclusions` counts, by reason, the entries of
    `exclude` that name no account and so leave out nobody.
    """

    dids: pl.DataFrame
    rejects: pl.DataFrame
    given: int
    given_by_source: Mapping[str, int]
    useless_exclusions: Mapping[str, int]


async def collect_dids(
    source: EntrySource,
    access: SourceAccess,
    *,
    exclude: EntrySource | None = None,
    tombstones: Tombstones = _NOTHING_PURGED,
) -> CollectedDids:
    """Read a source and sort its entries into DIDs and rejects.

    Among the latter is also what has a tombstone, and what `exclude` lists. Raises SourceError if a source cannot be
    read, if it holds no DID at all, or if `exclude` lists things of which none is a DID.
    """
    excluded = None if exclude is None else await _read_excluded(exclude, access)
    valid: list[pl.DataFrame] = []
    invalid: list[pl.DataFrame] = []
    given = 0
    async for entries in counted_entries(source, SOURCE_FIELD, access):
        batch = entries.select(
            position=pl.int_range(pl.len(), dtype=pl.Int64) + given,
            input=stripped(pl.col("input")),
            entry=pl.col("entry").str.strip_chars(WHITESPACE),
            reason=pl.col("reason").fill_null(rejection_of(pl.col("entry"))),
        )
        if excluded is not None:
            batch = excluded.withhold(batch)
        batch = tombstones.withhold(batch)
        given += batch.height
        accepted = batch.filter(pl.col("reason").is_null())
        # Most entries stand for themselves, and are not to be held twice.
        told = pl.when(pl.col("input") != pl.col("entry")).then("input")
        valid.append(accepted.select("position", input=told, did="entry"))
        invalid.append(_shown(batch.filter(pl.col("reason").is_not_null())))
        # Reading may never wait for anything; this lets an interrupt take effect.
        await asyncio.sleep(0)
    kept = _concat(valid, _ACCEPTED)
    # A DID compares as bytes; two spellings of one host in did:web are two DIDs.
    kept = kept.with_columns(first=pl.col("did").is_first_distinct())
    repeated = _shown(
        kept.filter(~pl.col("first")).select(
            "position",
            input=pl.col("input").fill_null(pl.col("did")),
            reason=pl.lit(DidRejection.DUPLICATE.value),
            entry="did",
        )
    )
    collected = CollectedDids(
        dids=kept.filter("first").select("did"),
        rejects=_concat([*invalid, repeated], REJECTS_SCHEMA).sort("position"),
        given=given,
        given_by_source=dict(access.given),
        useless_exclusions={} if excluded is None else dict(excluded.unknown),
    )
    if collected.dids.is_empty():
        raise SourceError(f"{source.describe()}: {_why_empty(collected)}")
    return collected


async def _read_excluded(exclude: EntrySource, access: SourceAccess) -> Exclusion:
    excluded = await read_exclusion(exclude, EXCLUDE_FIELD, access)
    reasons = excluded.entries.to_frame("entry").select(reason=rejection_of(pl.col("entry")))["reason"]
    if excluded.given and reasons.null_count() == 0:
        raise SourceError(
            f"{exclude.describe()}: leaves out nobody: none of its {excluded.given:,} entries is a DID; "
            "a DID looks like did:plc:ewvi7nxzyoun6zhxrhs64oiz"
        )
    excluded.unknown.update(dict(reasons.drop_nulls().value_counts().iter_rows()))
    return excluded


def _shown(rejects: pl.DataFrame) -> pl.DataFrame:
    stands_for_another = pl.when(pl.col("entry") != pl.col("input")).then("entry")
    return rejects.select(
        "position",
        pl.col("input").str.head(MAX_INPUT_SHOWN),
        "reason",
        entry=stands_for_another.str.head(MAX_INPUT_SHOWN),
    )


def _concat(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    return pl.concat([schema.to_frame(), *frames])


def _why_empty(collected: CollectedDids) -> str:
    if collected.given == 0:
        return "holds no DIDs: it is empty"
    reasons = Counter(collected.rejects["reason"].to_list())
    if set(reasons) == {DidRejection.PURGED.value}:
        return f"holds no DIDs to collect: all of its {collected.given:,} entries are purged"
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    malformed = collected.rejects.filter(pl.col("reason").is_in(_MALFORMED))["input"].drop_nulls()
    if malformed.is_empty():
        return f"holds no DIDs to collect among its {collected.given:,} entries ({counts})"
    return (
        f"holds no DIDs: none of its {collected.given:,} entries is one ({counts}). {_first(malformed)}; "
        "a DID looks like did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    )


def _first(malformed: pl.Series) -> str:
    """Say what the first entry is, without the name of anybody: messages stay in the log of runs."""
    first = malformed[0]
    if is_handle(normal_handle(first)):
        return "The first is a handle, which `type: handles` looks up"
    named = malformed.to_frame("input").select(may_name_somebody(pl.col("input")).first()).item()
    return "The first has somebody's name in it" if named else f"The first is {first!r}"
