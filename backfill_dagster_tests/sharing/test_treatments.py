"""Every column of every table that can be shared is classified, and what is kept as it is holds no name."""

from datetime import UTC, datetime

import polars as pl
import pytest

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import ReconciliationError
from backfill_dagster.records.tables import TABLE_BY_NAME, TABLES
from backfill_dagster.sharing.pseudonyms import Pseudonyms
from backfill_dagster.sharing.treatments import (
    ACCOUNT_TREATMENTS,
    KNOWN_WORDS,
    RECORD_TREATMENTS,
    Treatment,
    columns_of,
    treated,
    treatments_of,
)

EVERYTHING = ("accounts", *TABLES)
# Texts that are kept as they are, though no closed set lists them: the names of collections and kinds, and two states.
KEPT_TEXTS = {"collection", "record_type", "signed_by"}
PSEUDONYMS = Pseudonyms(b"correct horse battery staple 0123456789")


def column(name: str) -> Column:
    return next(one for table in EVERYTHING for one in columns_of(table) if one.name == name)


@pytest.mark.parametrize("table", EVERYTHING)
def test_every_column_is_classified(table: str) -> None:
    names = [column.name for column in columns_of(table)]
    assert list(treatments_of(table, names)) == names


def test_no_column_is_classified_that_there_is_not() -> None:
    assert set(RECORD_TREATMENTS) == {column.name for table in TABLES for column in columns_of(table)}
    assert set(ACCOUNT_TREATMENTS) == {column.name for column in columns_of("accounts")}


@pytest.mark.parametrize("table", EVERYTHING)
def test_what_is_kept_cannot_hold_what_somebody_wrote(table: str) -> None:
    columns = {column.name: column for column in columns_of(table)}
    for name, treatment in treatments_of(table, list(columns)).items():
        kind = columns[name].dtype
        if treatment is Treatment.KEPT:
            assert kind.is_numeric() or kind == pl.Boolean or columns[name].words or name in KEPT_TEXTS, name
        if treatment is Treatment.COARSENED:
            assert kind.is_temporal(), name
        if treatment is Treatment.KNOWN:
            assert name in KNOWN_WORDS
        if kind.is_temporal():
            assert treatment in (Treatment.COARSENED, Treatment.DROPPED), name


def test_a_column_that_is_not_classified_is_an_error() -> None:
    with pytest.raises(ReconciliationError, match="the columns mood of posts are not classified"):
        treatments_of("posts", ["did", "mood"])


def test_what_is_made_of_a_row() -> None:
    did, uri = f"did:plc:{24 * 'a'}", f"at://did:plc:{24 * 'b'}/app.bsky.feed.post/1"
    row = {column.name: None for column in TABLE_BY_NAME["posts"].columns} | {
        "did": did,
        "uri": uri,
        "date_quality": "consistent",
        "created_at": datetime(2024, 10, 5, 13, 14, 15, tzinfo=UTC),
        "langs": ["pt-BR", "EN", "x-secret", "klingon", None],
        "labels": ["porn", "alice is here"],
        "embed_type": "com.alice.embed",
        "media_types": ["image/jpeg", "image/alice"],
        "facet_mentions": [did, None],
        "reply_parent_did": did,
        "quoted_uri": uri,
    }
    rows = pl.DataFrame([row, {**row, "date_quality": "missing"}], schema=schema_of(columns_of("posts")))
    first, undated = treated("posts", rows, PSEUDONYMS, "hour").to_dicts()
    assert first["created_at"] == datetime(2024, 10, 5, 13, tzinfo=UTC)
    assert undated["created_at"] is None
    assert first["langs"] == ["pt", "en", None, None, None]
    assert first["labels"] == ["porn", None]
    assert first["embed_type"] is None
    assert first["media_types"] == ["image/jpeg", None]
    assert first["facet_mentions"] == [first["did"], None]
    assert first["reply_parent_did"] == first["did"] == PSEUDONYMS.of(did)
    assert first["quoted_uri"] == first["uri"] == PSEUDONYMS.of(uri) != first["did"]
    assert set(first).isdisjoint({"text", "rkey", "cid", "record", "facets", "embed", "issues", "pds"})


def test_purged_accounts_have_no_pseudonym() -> None:
    # It would be one for all of them, and look like an account that everybody knows.
    did, masked, web = f"did:plc:{24 * 'a'}", f"did:plc:{24 * 'x'}", "did:web:xxxxx.xxx"
    row = {column.name: None for column in TABLE_BY_NAME["posts"].columns} | {
        "did": did,
        "uri": f"at://{did}/app.bsky.feed.post/1",
        "date_quality": "consistent",
        "facet_mentions": [did, masked, web],
        "reply_parent_did": masked,
        "reply_parent_uri": f"at://{masked}/app.bsky.feed.post/1",
        "quoted_did": web,
        "quoted_uri": f"at://{web}/app.bsky.feed.post/1",
    }
    [told] = treated(
        "posts", pl.DataFrame([row], schema=schema_of(columns_of("posts"))), PSEUDONYMS, "day"
    ).to_dicts()
    assert told["facet_mentions"] == [told["did"], None, None]
    assert {told[name] for name in row if name.startswith(("reply_parent_", "quoted_")) and name in told} == {
        None
    }
    assert told["did"] == PSEUDONYMS.of(did)
