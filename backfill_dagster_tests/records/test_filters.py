"""Filters against a plain loop over the records, which asks of each what the study asks, in the same order."""

import re
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backfill_dagster.records.filters import RecordFilter
from backfill_dagster.records.outcomes import Fate, FilterReason
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.tables import BLOCK, FOLLOW, LIKE, POST, PROFILE, REPOST
from backfill_dagster_tests.records.batches import (
    CID,
    CREATED,
    DID,
    OTHER_DID,
    block_row,
    cbor,
    settings,
    transform,
)

STUDY_START = datetime(2024, 9, 27, tzinfo=UTC)
BEFORE = "2024-01-01T00:00:00.000Z"
ABOUT_RECORDS, ABOUT_ACCOUNTS = (LIKE, REPOST), (FOLLOW, BLOCK)

dids = st.sampled_from([DID, OTHER_DID, "did:web:example.com"])
rkeys = st.sampled_from(["a", "b", "c", "3l5ra5iy62222"])
uris = st.builds("at://{}/{}/{}".format, dids, st.sampled_from([POST, LIKE]), rkeys)
tags = st.sampled_from(["en", "EN", "en-GB", "en_GB", "eng", "e", "pt", "pt-BR", "PT-br", "zh-Hant-TW", ""])
texts = st.sampled_from(["", "the rain", "THE RAIN", "rainbow\nsoup", "a.b", "axb", "日本の雨"])


@st.composite
def drawn_records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw records, each with the value that its block holds; None if it cannot be decoded."""
    keys = draw(
        st.lists(
            st.tuples(dids, st.sampled_from([POST, POST, POST, *SUBJECT_OF]), rkeys),
            min_size=1,
            max_size=20,
            unique=True,
        )
    )
    found = []
    for did, collection, rkey in keys:
        value = {
            "$type": collection,
            "createdAt": draw(st.sampled_from([CREATED, CREATED, BEFORE, "no date", None])),
            **draw(SUBJECT_OF[collection]),
        }
        whole = value if draw(st.integers(0, 9)) else None
        found.append({"did": did, "collection": collection, "rkey": rkey, "value": whole})
    return found


references = st.fixed_dictionaries(
    {"uri": uris | st.just("at://a.test/app.bsky.feed.post/a"), "cid": st.just(CID)}
)
SUBJECT_OF: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    POST: st.fixed_dictionaries(
        {"text": texts | st.just(7)},
        optional={"langs": st.lists(tags, max_size=3) | st.just("en"), "reply": st.just({})},
    ),
    LIKE: st.fixed_dictionaries({"subject": references | st.none()}),
    REPOST: st.fixed_dictionaries({"subject": references}),
    FOLLOW: st.fixed_dictionaries({"subject": dids | st.just(7)}),
    BLOCK: st.fixed_dictionaries({"subject": dids}),
    PROFILE: st.fixed_dictionaries({}),
}
lists = st.lists(uris | dids, max_size=5).map(lambda entries: as_series(entries))
languages = st.lists(st.sampled_from(["en", "pt-BR", "ZH"]), min_size=1, max_size=2).map(tuple)
patterns = st.sampled_from(["rain", "(?i)the rain", "^$", "a.b", r"a\.b", "(?m)^soup$", "雨$", "rain|soup"])


@st.composite
def drawn_cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, RecordFilter]]:
    """Draw records, and filters for some of their types, each with some of the fields that its records have."""
    drawn = draw(drawn_records())
    own = [uri_of(record) for record in drawn]
    listed = st.lists(st.sampled_from(own), max_size=20).map(as_series)
    filters = {}
    for collection in SUBJECT_OF:
        uris = draw(listed) if draw(st.integers(0, 3)) == 0 else None
        if collection == POST and draw(st.integers(0, 3)):
            filters[POST] = RecordFilter(uris, None, draw(st.none() | languages), draw(st.none() | patterns))
        elif draw(st.booleans()):
            about = draw(st.none() | lists) if collection in (*ABOUT_RECORDS, *ABOUT_ACCOUNTS) else None
            filters[collection] = RecordFilter(uris, about)
    return drawn, filters


def as_series(entries: list[str]) -> pl.Series:
    return pl.Series(sorted(entries), dtype=pl.String)


def uri_of(record: dict[str, Any]) -> str:
    return f"at://{record['did']}/{record['collection']}/{record['rkey']}"


def expected_fate(record: dict[str, Any], wanted: RecordSettings) -> tuple[Fate, str | None]:
    """Say what becomes of a record, as slowly and plainly as can be."""
    asked = wanted.filters.get(record["collection"], RecordFilter())
    value = record["value"]
    if asked.uris is not None and uri_of(record) not in asked.uris.to_list():
        return Fate.FILTERED, FilterReason.NOT_IN_URIS
    if value is None:
        return Fate.REJECTED, "undecodable"
    if wanted.outside == "drop" and value["createdAt"] == BEFORE:
        return Fate.FILTERED, FilterReason.OUT_OF_RANGE
    if asked.subjects is not None and not is_about(value.get("subject"), asked.subjects.to_list()):
        return Fate.FILTERED, FilterReason.NOT_IN_SUBJECTS
    if asked.languages is not None and not any(
        tag.lower() == wish.lower() or tag.lower().startswith(f"{wish.lower()}-")
        for tag in (value.get("langs") if isinstance(value.get("langs"), list) else [])
        for wish in asked.languages
    ):
        return Fate.FILTERED, FilterReason.LANGUAGE
    if asked.text is not None and not (
        isinstance(value["text"], str) and re.search(asked.text, value["text"])
    ):
        return Fate.FILTERED, FilterReason.TEXT
    return Fate.KEPT, None


def is_about(subject: Any, listed: list[str]) -> bool:
    if isinstance(subject, dict):
        return subject["uri"] in listed or subject["uri"].split("/")[2] in listed
    return subject in listed


@examples(max_examples=200, deadline=None)
@given(drawn_cases(), st.sampled_from(["drop", "normalize"]))
def test_every_record_ends_as_the_plain_loop_says(
    case: tuple[list[dict[str, Any]], dict[str, RecordFilter]], outside: Any
) -> None:
    drawn, filters = case
    wanted = settings(start=STUDY_START, outside=outside, filters=filters)
    rows = [
        block_row(
            b"\xff" if record["value"] is None else cbor(record["value"]),
            record["collection"],
            record["rkey"],
            record["did"],
        )
        for record in drawn
    ]
    result = transform(rows, wanted)

    expected = [(*(record[key] for key in KEY), *expected_fate(record, wanted)) for record in drawn]
    kept = {key for frame in result.tables.values() for key in frame.select(KEY).iter_rows()}
    assert kept == {tuple(path) for *path, fate, _ in expected if fate is Fate.KEPT}
    assert set(result.rejects.select(KEY).iter_rows()) == {
        tuple(path) for *path, fate, _ in expected if fate is Fate.REJECTED
    }
    counted = {(did, collection, fate, reason): 0 for did, collection, _, fate, reason in expected}
    for did, collection, _, fate, reason in expected:
        counted[did, collection, fate, reason] += 1
    found = result.counts.group_by("did", "collection", "fate", "reason").agg(pl.col("records").sum())
    assert {tuple(kind): number for *kind, number in found.iter_rows()} == counted
    # Of what is left out it is known what it would have been, but for posts that nobody looked at.
    unknown = result.counts.filter(pl.col("table").is_null())
    assert set(unknown["collection"]) <= {POST}
    assert set(unknown["reason"]) <= {FilterReason.NOT_IN_URIS, "undecodable"}


KEY = ["did", "collection", "rkey"]


def posts_kept(wanted: RecordFilter, *values: dict[str, Any]) -> list[int]:
    rows = [
        block_row(cbor({"$type": POST, "createdAt": CREATED, "text": "", **value}), rkey=f"{number}")
        for number, value in enumerate(values)
    ]
    kept = transform(rows, settings(filters={POST: wanted}))
    return sorted(int(rkey) for name in ("posts", "replies") for rkey in kept.tables[name]["rkey"])


def test_a_language_is_the_tag_or_what_begins_with_it() -> None:
    langs = [
        ["en"],
        ["en-GB"],
        ["EN"],
        ["de", "en-us"],
        ["eng"],
        ["e"],
        ["xen"],
        ["de-en"],
        [],
        None,
        ["\u212aa"],
    ]
    values = [{} if tags is None else {"langs": tags} for tags in langs]
    assert posts_kept(RecordFilter(languages=("en",)), *values) == [0, 1, 2, 3]
    assert posts_kept(RecordFilter(languages=("en-GB", "de-EN")), *values) == [1, 7]
    # The sign of the kelvin is no k.
    assert posts_kept(RecordFilter(languages=("ka",)), *values) == []


def test_a_did_stands_for_all_that_is_its_accounts() -> None:
    subjects = [f"at://{DID}/{POST}/a", f"at://{DID}/{POST}/b", f"at://{OTHER_DID}/{POST}/a"]
    rows = [
        block_row(
            cbor({"$type": LIKE, "createdAt": CREATED, "subject": {"uri": uri, "cid": CID}}),
            LIKE,
            f"{number}",
        )
        for number, uri in enumerate(subjects)
    ]
    for listed, kept in (([DID], ["0", "1"]), ([subjects[1], OTHER_DID], ["1", "2"]), ([], [])):
        wanted = settings(filters={LIKE: RecordFilter(subjects=pl.Series(listed, dtype=pl.String))})
        assert transform(rows, wanted).tables["likes"]["rkey"].to_list() == kept


def test_what_is_on_no_list_is_not_decoded_and_not_rejected() -> None:
    rows = [block_row(b"\xff", rkey=rkey) for rkey in ("on", "off", "no key")]
    listed = pl.Series([f"at://{DID}/{POST}/on"])
    result = transform(rows, settings(filters={POST: RecordFilter(uris=listed)}))
    assert result.rejects["rkey"].to_list() == ["on"]
    assert result.counts.select("fate", "reason", "records").rows() == [
        (Fate.FILTERED, FilterReason.NOT_IN_URIS, 2),
        (Fate.REJECTED, "undecodable", 1),
    ]


def test_filters_of_types_that_are_not_wanted_are_refused() -> None:
    with pytest.raises(ValueError, match="not wanted at all"):
        settings(record_types=[POST], filters={LIKE: RecordFilter(text="a")})
    with pytest.raises(ValueError, match="table of its own"):
        settings(other_types=[LIKE])
