"""The paragraph for a paper: right for nothing, one and many, for every way of fetching, and without any name."""

import re
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from backfill_dagster.attrition.methods import listed, methods_text, number_of
from backfill_dagster.attrition.period import Decay
from backfill_dagster.attrition.steps import attrition_table
from backfill_dagster.config.study import Study
from backfill_dagster.survivorship.rates import RATES_SCHEMA, Lost
from backfill_dagster.tables.account_sums import sum_up
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA
from backfill_dagster_tests.attrition.test_losses import losses_of, with_snapshot, without
from backfill_dagster_tests.report.stored import did_of

NOTHING_SEEN = Decay(RATES_SCHEMA.to_frame(), (), None)
POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"


def study_of(**parts: Any) -> Study:
    return Study.model_validate({"name": "study", "source": {"type": "inline", "dids": [did_of(0)]}, **parts})


def paragraph(
    rows: list[dict[str, Any]], rejects: tuple[str, ...] = (), decay: Decay = NOTHING_SEEN, **parts: Any
) -> str:
    accounts = pl.DataFrame(rows, schema=ACCOUNTS_SCHEMA, orient="row")
    told = pl.DataFrame({"reason": rejects}, schema={"reason": pl.String})
    table = attrition_table(losses_of(told, [accounts]))
    return methods_text(study_of(**parts), sum_up([accounts]), table, decay)


def test_of_nothing_nothing_is_claimed() -> None:
    text = paragraph([])
    assert "The list of accounts had no entries. Nothing was collected." in text
    assert "verified" not in text
    assert "record." not in text.replace("data. How", "")
    only_bad = paragraph([], ("empty",))
    assert "had 1 entry. 1 entry that could not be read as an account's identifier was left out" in only_bad
    assert "which left no accounts." in only_bad


def test_of_one_account_with_one_record_the_singular_is_used() -> None:
    text = paragraph([with_snapshot(1, records_fetched=1, records_kept=1)], ("duplicate",))
    assert "had 2 entries. 1 entry that repeated another was left out, which left 1 account." in text
    assert "the one account led to a personal data server (PDS)." in text
    assert "From its PDS we obtained the whole repository of the one account (2025-03-01 12:30 UTC)." in text
    assert "1 repository was verified block by block" in text
    assert "so that it holds all records" in text
    assert "of 1 account by the current key." in text
    assert (
        "The repositories held 1 record. The data set has 1 record of 1 account (100.0 % of what was found)."
        in text
    )


def test_of_many_each_number_is_in_its_place() -> None:
    rows = [
        with_snapshot(1, records_fetched=5, records_kept=3, records_rejected=2, undated=1)
        | {"rejected": [{"reason": "bad_key", "records": 2}], "signed_by": "previous"},
        *(with_snapshot(n, records_fetched=1000, records_kept=1000) for n in range(2, 5)),
        with_snapshot(5, state="deactivated", shown=False, records_fetched=2, records_filtered=2)
        | {"filtered": [{"reason": "account_inactive", "records": 2}]},
        *(without(n, "failed", "timed_out") for n in (6, 7)),
        without(8, "takendown"),
        without(9, "unresolved", "no_pds", None),
    ]
    text = paragraph(rows, ("empty", "excluded", "purged"))
    for part in (
        "The list of accounts had 12 entries.",
        "1 entry that could not be read as an account's identifier and 2 entries of accounts that were excluded or had "
        "been withdrawn were left out, which left 9 accounts.",
        "8 of 9 accounts (88.9 %) led to a personal data server (PDS), the others did not (no pds 1).",
        "we obtained whole repositories of 5 of 8 accounts (62.5 %)",
        "2 accounts could not be reached or were not attempted (timed out 2).",
        "Of 1 account no repository was to be had, or none that held (takendown 1).",
        "1 account had been collected and was no longer active at the last look (deactivated 1); its records are not",
        "4 repositories were verified block by block",
        "of 3 accounts by the current key and of 1 account by an earlier one.",
        "The repositories held 3,007 records.",
        "2 records were unusable (bad key 2); 2 records were left out with accounts that are not shown "
        "(account inactive 2).",
        "The data set has 3,003 records of 4 accounts (99.9 % of what was found).",
        "Of these, 1 record has no date that can be believed (undated 1) and is kept apart.",
        "Not verified are dates, which clients write, handles, and what had been deleted before the collection.",
    ):
        assert part in text, part
    assert not re.search(r"\b0 |\b1 (accounts|records|entries|repositories)\b|None|  ", text)
    assert "did:" not in text
    assert "one.test" not in text
    assert "person-" not in text


def test_unchecked_signatures_and_all_times_are_said() -> None:
    rows = [with_snapshot(1, records_fetched=1, records_kept=1, signed_by=None)]
    text = paragraph(
        rows, processing={"verify": "structure"}, time_range={"start_date": None, "end_date": "2024-12-01"}
    )
    assert "Of 1 account the signature was not checked." in text
    assert "Signatures were checked" not in text
    assert "from the beginning to 2024-12-01 23:59 UTC" in text
    assert "kept as well, and marked" in text
    dropped = {"start_date": "2024-10-01", "end_date": "2024-12-01", "outside": "drop"}
    assert "were dated outside it were left out" in paragraph(rows, time_range=dropped)


@pytest.mark.parametrize(
    ("fetch", "obtained", "said", "unsaid"),
    [
        (
            "records",
            "record_proof",
            "each with a proof that it stands in the account's signed tree",
            "the tree has no gap",
        ),
        ("list_records", "list_records", "neither that a listing is whole", "Signatures were checked"),
    ],
)
def test_what_is_not_proven_is_not_claimed(fetch: str, obtained: str, said: str, unsaid: str) -> None:
    uris = {POST: {"uris": {"type": "inline", "uris": [f"at://{did_of(1)}/{POST}/3l5uvwqz2fk2k"]}}}
    rows = [
        with_snapshot(1, obtained=obtained, records_fetched=3, records_kept=3, records_absent=2),
        without(2, "nothing_asked"),
    ]
    text = paragraph(rows, fetch=fetch, record_types=[POST], filters=uris)
    assert said in text
    assert unsaid not in text
    assert "whole repositor" not in text
    assert "2 more records that were asked for did not exist any more." in text
    assert "Of 1 account no record was on the list" in text


def rates(*rows: tuple[str | None, float, int, float, float, float]) -> pl.DataFrame:
    whole = [
        (
            "accounts" if collection is None else "records",
            collection,
            "all ages",
            days,
            deleted,
            0,
            1.0,
            rate,
            low,
            high,
        )
        for collection, days, deleted, rate, low, high in rows
    ]
    return pl.DataFrame(whole, schema=RATES_SCHEMA, orient="row")


def test_what_goes_is_told_with_its_assumptions() -> None:
    decay = Decay(
        rates(
            (LIKE, 50_000.0, 1, 0.00002, 0.000001, 0.0001),
            (POST, 100_000.0, 100, 0.001, 0.0008, 0.0012),
            (None, 900.0, 3, 3 / 900, 0.0006, 0.01),
        ),
        (Lost(POST, 500, 0.123, 0.1, 0.15, ("under 1 day",), ()), Lost(LIKE, 9, 0.5, 0.0, 1.0, (), ())),
        datetime(2025, 3, 1, tzinfo=UTC),
    )
    text = paragraph([with_snapshot(1, records_fetched=1, records_kept=1)], decay=decay)
    for part in (
        "records were watched for 150,000 record-days in all, during which 101 records were deleted.",
        f"{LIKE} 0.6 (0.03 to 3); {POST} 30 (24 to 36).",
        f"The time watched is too short to tell of {LIKE}.",
        f"had been deleted before the collection: {POST} 12.3 % (10.0 % to 15.0 %).",
        "If deletion depends on a record's age alone",
        "what the lower, and the upper, bounds of the rates of all ages come to together, which is wider than a 95 %",
        "of this age, for which the next older rate was taken: under 1 day. This makes the shares too low if younger",
        "Records that were made and deleted between two collections were never seen.",
        "in 900.0 account-days, 3 accounts that had been complete were found deleted",
        "100 per 1,000 accounts and 30 days (18 to 300).",
    ):
        assert part in text, part
    assert "next younger" not in text
    once = paragraph([with_snapshot(1, records_fetched=1, records_kept=1)])
    assert "cannot be told from a single collection" in once


def test_rates_that_were_taken_of_younger_records_are_told_as_such() -> None:
    lost = Lost(POST, 500, 0.123, 0.1, 0.15, (), ("30 to 90 days", "90 days to 1 year"))
    decay = Decay(rates((POST, 100_000.0, 100, 0.001, 0.0008, 0.0012)), (lost,), None)
    text = paragraph([with_snapshot(1, records_fetched=1, records_kept=1)], decay=decay)
    assert (
        "of these ages, for which the next younger rate was taken: 30 to 90 days, 90 days to 1 year. This makes the "
        "shares too high if older records are deleted more slowly."
    ) in text
    assert "next older" not in text
    assert "too low" not in text


def test_seconds_between_two_collections_say_nothing() -> None:
    decay = Decay(rates((POST, 0.01, 0, 0.0, 0.0, 369.0), (None, 0.001, 0, 0.0, 0.0, 3689.0)), (), None)
    text = paragraph([with_snapshot(1, records_fetched=1, records_kept=1)], decay=decay)
    assert f"too short to tell of {POST}" in text
    assert "Deletions per" not in text
    assert "account-days" not in text


def test_numbers_and_lists_in_words() -> None:
    assert [number_of(n, "entry", "entries") for n in (0, 1, 2000)] == [
        "no entries",
        "1 entry",
        "2,000 entries",
    ]
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
