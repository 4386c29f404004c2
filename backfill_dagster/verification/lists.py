"""The stored lists that filters name, against their own digests, and against the YAML if they stand in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import filtering
from backfill_dagster.config.sources import InlineSource
from backfill_dagster.dids.entries import as_entries
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.filter_lists import (
    LIST_SCHEMA,
    digest_of,
    in_order,
    read_entries,
    read_list,
    without_purged,
)
from backfill_dagster.records.list_entries import ListRejection, judge_entries
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.guard import CANNOT_BE_READ
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study
    from backfill_dagster.filtering import NamedList
    from backfill_dagster.records.filter_lists import StoredList


def check_lists(study: Study) -> list[Found]:
    """Say what is wrong with the stored lists; conversions believe the digests that stand in the files.

    What a source outside of the YAML has given cannot be told from what somebody has put in its place.
    """
    storage = StudyStorage(study.location)
    tombstones = Tombstones.load(storage)
    found = []
    for named in filtering.named_lists(study):
        try:
            seen = _differences(storage, named, tombstones)
        except CANNOT_BE_READ as error:
            found.append(Found(FileProblem.UNREADABLE, named.key, f"{type(error).__name__}: {error!s:.200}"))
        else:
            found += [Found(FileProblem.LIST_DIFFERS, named.key, detail) for detail in seen]
    return found


def _differences(storage: StudyStorage, named: NamedList, tombstones: Tombstones) -> list[str]:
    stored = read_list(storage, named.key)
    if stored is None:
        return ["it is not there, or cannot be read"]
    entries = read_entries(storage, named.key)
    return [
        *_of_itself(named, stored, entries, tombstones),
        *_of_the_yaml(named, stored, entries, tombstones),
    ]


def _of_itself(
    named: NamedList, stored: StoredList, entries: pl.DataFrame, tombstones: Tombstones
) -> Iterator[str]:
    rejected = stored.rejected
    purged = rejected.get(ListRejection.PURGED, 0)
    if purged and not tombstones:
        yield f"{purged:,} entries are said to be purged, and the study has purged nothing"
    # Of what was purged the digest tells on, so that nothing can be compared with it any more.
    if not purged and digest_of(entries) != stored.digest:
        yield "its entries do not have its digest"
    if min([stored.given, *rejected.values()]) < 0 or stored.kept + sum(rejected.values()) > stored.given:
        yield f"{stored.given:,} entries are said to have been given, which are fewer than it tells of"
    given = as_entries(entries["entry"])
    judged = judge_entries(given, named.record_type, named.field)
    told = ["did", "entry"]
    if judged["reason"].count() or not judged.select(told).equals(entries.select(told)):
        yield "it has entries that can keep no record, or that are told as of another account"
    if not in_order(entries).equals(entries):
        yield "its entries are not in their order, or there twice"


def _of_the_yaml(
    named: NamedList, stored: StoredList, entries: pl.DataFrame, tombstones: Tombstones
) -> Iterator[str]:
    if not isinstance(named.source, InlineSource):
        return
    values = pl.Series(named.source.dids or named.source.uris or (), dtype=pl.String)
    judged = judge_entries(as_entries(values), named.record_type, named.field)
    kept = in_order(_listed(judged.filter(pl.col("reason").is_null())))
    expected = without_purged(kept, tombstones)
    if (stored.digest, stored.given) != (digest_of(kept), values.len()) or not expected.equals(entries):
        yield "it is not the list that stands in the YAML"


def _listed(judged: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([LIST_SCHEMA.to_frame(), judged.drop("reason")], how="diagonal")
