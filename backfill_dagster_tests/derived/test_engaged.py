from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from backfill_dagster import derivation, study_files
from backfill_dagster.config.derived import Discovery
from backfill_dagster.config.study import Study
from backfill_dagster.derived import engaged
from backfill_dagster.derived.engaged import (
    ENGAGED_ACCOUNTS,
    ENGAGED_ACCOUNTS_KEY,
    ENGAGED_POSTS,
    ENGAGED_POSTS_KEY,
)
from backfill_dagster.dids.syntax import check_did
from backfill_dagster_tests.derived import plain


def fewer(study: Study, number: int, **discovery: Any) -> tuple[Study, pl.Series]:
    """Return the study as if its source had so many accounts fewer, so that the others are strangers."""
    own = pl.read_parquet(study.root / "source_dids.parquet")["did"].sort().tail(-number)
    return study.model_copy(update={"discovery": Discovery(**discovery)}), own


def lists(study: Study) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(study.root / ENGAGED_ACCOUNTS_KEY), pl.read_parquet(study.root / ENGAGED_POSTS_KEY)


@pytest.mark.parametrize("at_once", [10**6, 200])
def test_whom_and_what_the_accounts_engaged_with(
    collected: Study, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engaged, "_AT_ONCE", at_once)
    study, own = fewer(collected, 30)
    told = derivation.discover_engaged(study, study_files.study_tables(study), own)
    accounts, posts = lists(study)
    assert accounts.schema == {column.name: column.dtype for column in ENGAGED_ACCOUNTS}
    assert posts.schema == {column.name: column.dtype for column in ENGAGED_POSTS}
    assert (told.accounts, told.posts) == (accounts.height, posts.height)
    assert accounts["did"].is_sorted()
    assert posts["uri"].is_sorted()
    period = study.time_range
    of_accounts, of_posts = plain.engaged(study, set(own), period.start_date, period.end_date)
    assert {row.pop("did"): row for row in accounts.to_dicts()} == {
        did: row for did, row in of_accounts.items() if check_did(did) is None
    }
    assert len(of_accounts) > 20
    found = {row.pop("uri"): row for row in posts.to_dicts()}
    assert found.keys() == {uri for uri in of_posts if check_did(uri.split("/")[2]) is None}
    for uri, row in found.items():
        assert row.pop("in_study") == (row.pop("did") in set(own))
        assert row == {name: value for name, value in of_posts[uri].items() if name != "follows"}


def test_only_the_asked_interactions_of_the_asked_period_count(collected: Study) -> None:
    study, own = fewer(
        collected, 30, interactions=["like", "follow"], start_date="2024-10-05", end_date="2024-10-20"
    )
    derivation.discover_engaged(study, study_files.study_tables(study), own)
    accounts, posts = lists(study)
    start = datetime(2024, 10, 5, tzinfo=UTC)
    end = datetime(2024, 10, 20, 23, 59, 59, 999999, tzinfo=UTC)
    of_accounts, _ = plain.engaged(study, set(own), start, end)
    wanted = {
        did: row["likes"] + row["follows"]
        for did, row in of_accounts.items()
        if row["likes"] + row["follows"] and check_did(did) is None
    }
    assert dict(accounts.select("did", "interactions").iter_rows()) == wanted
    assert set(accounts["reposts"]) == set(accounts["replies"]) == set(accounts["quotes"]) == {0}
    assert start <= accounts["first"].min() <= accounts["last"].max() <= end  # type: ignore[operator]
    assert posts["likes"].min() == 1


def test_the_lists_are_stale_when_what_they_are_made_of_has_changed(collected: Study) -> None:
    tables = study_files.study_tables(collected)
    study, own = fewer(collected, 30)
    derivation.discover_engaged(study, tables, own)
    assert not derivation.engaged_is_stale(study, tables, own)
    assert derivation.engaged_is_stale(study, tables, own.tail(-1))
    other = study.model_copy(update={"discovery": Discovery(interactions=("like",))})
    assert derivation.engaged_is_stale(other, tables, own)
    assert not derivation.engaged_is_stale(study.model_copy(update={"discovery": None}), tables, own)
    before = (study.root / ENGAGED_POSTS_KEY).read_bytes()
    derivation.discover_engaged(study, tables, own)
    assert (study.root / ENGAGED_POSTS_KEY).read_bytes() == before
    (study.root / ENGAGED_ACCOUNTS_KEY).unlink()
    assert derivation.engaged_is_stale(study, tables, own)
