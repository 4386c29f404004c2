"""Which records of a collection a study keeps: by their URI, their subject, their languages, their text.

All that a filter says must hold of a record. The first that does not, in the order of `FilterReason`, is the reason why
it is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.cid_texts import cid_texts
from backfill_dagster.records.outcomes import FilterReason
from backfill_dagster.repos.cid import CID_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# Columns that say what a record is about: a record by its URI, or an account.
_SUBJECT_COLUMNS = ("subject_uri", "subject_did")


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """What a record of one collection must be to be kept; what is None asks nothing.

    `uris`: AT-URIs of records, one of which must be its own. `subjects`: AT-URIs and DIDs (text), one of which must be
    what it is about; a DID stands for all that is its account's. `languages`: tags, of which a post must have one, or
    one that goes on where the tag ends (`en` is also `en-GB`), whatever the case of letters. `text`: a regular
    expression of Rust's regex crate, which must be found in a post's text. `cids`: beside each of `uris` the CID (text)
    that the record must have, where not null.
    """

    uris: pl.Series | None = None
    subjects: pl.Series | None = None
    languages: tuple[str, ...] | None = None
    text: str | None = None
    cids: pl.Series | None = None


def is_off_the_list(filters: Mapping[str, RecordFilter], uri: pl.Expr) -> pl.Expr:
    """Tell which records are not among the URIs that the filter of their `collection` lists."""
    off = [
        (pl.col("collection") == collection) & ~uri.is_in(wanted.uris.implode()).fill_null(value=False)
        for collection, wanted in filters.items()
        if wanted.uris is not None
    ]
    return pl.any_horizontal(off) if off else pl.lit(value=False)


def is_another_version(filters: Mapping[str, RecordFilter], records: pl.DataFrame) -> pl.Series:
    """Tell which records are listed with another CID than they have.

    `records`: `collection, uri` (text) and `cid`, the CID's bytes.
    """
    listed = [
        wanted.uris.alias("uri").to_frame().with_columns(collection=pl.lit(kind), listed=wanted.cids)
        for kind, wanted in filters.items()
        if wanted.uris is not None and wanted.cids is not None
    ]
    if not listed:
        return pl.repeat(value=False, n=records.height, eager=True)
    versions = pl.concat(listed).drop_nulls("listed")
    numbered = records.with_row_index("place")
    found = numbered.join(versions, on=["collection", "uri"])
    has_length = found["cid"].bin.size() == CID_BYTES
    usable = found.filter(has_length)
    same = usable.filter(cid_texts(usable["cid"]) == usable["listed"])["place"]
    others = found.filter(~pl.col("place").is_in(same.implode()))["place"]
    return numbered["place"].is_in(others.implode())


def reason_left_out(wanted: RecordFilter, columns: Collection[str]) -> pl.Expr:
    """Say why typed rows of one collection, which have these columns, are left out; null for those that are kept.

    What shows by their URI is passed over here.
    """
    reason = pl.lit(None, pl.String)
    # The last first: each of the others goes before it.
    if wanted.text is not None:
        reason = _unless(pl.col("text").str.contains(wanted.text), FilterReason.TEXT, reason)
    if wanted.languages is not None:
        reason = _unless(_has_language(wanted.languages), FilterReason.LANGUAGE, reason)
    if wanted.subjects is not None:
        subjects = wanted.subjects.implode()
        about = pl.any_horizontal(
            pl.col(name).is_in(subjects).fill_null(value=False)
            for name in _SUBJECT_COLUMNS
            if name in columns
        )
        reason = _unless(about, FilterReason.NOT_IN_SUBJECTS, reason)
    return reason


def _unless(holds: pl.Expr, reason: FilterReason, otherwise: pl.Expr) -> pl.Expr:
    return pl.when(holds.fill_null(value=False)).then(otherwise).otherwise(pl.lit(reason.value))


def _has_language(languages: tuple[str, ...]) -> pl.Expr:
    # Letters of ASCII only: to Unicode, the sign of the kelvin is a k as well.
    one_of = rf"^(?i-u:{'|'.join(map(re.escape, languages))})(?:-|$)"
    return pl.col("langs").list.eval(pl.element().str.contains(one_of)).list.any()
