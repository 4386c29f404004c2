import polars as pl

from backfill_dagster.repos.asked import (
    NOTHING,
    WHOLE_REPOS,
    AsksCollections,
    AsksRecords,
    RecordPath,
    with_asked,
)

A, B, C = ("did:plc:" + letter * 24 for letter in "abc")
POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"


def records(*rows: tuple[str, str, str]) -> AsksRecords:
    return AsksRecords(pl.DataFrame(rows, schema=["did", "collection", "rkey"], orient="row"))


def test_records_are_asked_in_the_order_of_their_keys_and_each_once() -> None:
    asks = records((B, POST, "2"), (A, POST, "1"), (A, LIKE, "9"), (A, POST, "1"), (A, POST, "0"))
    assert asks.paths(A) == [RecordPath(LIKE, "9"), RecordPath(POST, "0"), RecordPath(POST, "1")]
    assert asks.paths(B) == [RecordPath(POST, "2")]
    assert asks.paths(C) == []


def test_the_digest_is_that_of_the_account_s_records_alone() -> None:
    one = records((A, POST, "1"), (A, POST, "2"), (B, POST, "1"))
    other = records((A, POST, "2"), (C, POST, "1"), (A, POST, "1"), (B, POST, "3"))
    assert one.of(A) == other.of(A)
    assert one.of(B) != other.of(B)
    # Which record it is, and not only how its key reads.
    assert records((A, POST, "1")).of(A) != records((A, LIKE, "1")).of(A)
    assert one.of(C) == NOTHING
    assert one.of_each(pl.Series([C, A, B])).to_list() == [NOTHING, one.of(A), one.of(B)]


def test_collections_are_asked_of_everyone() -> None:
    asks = AsksCollections([POST, LIKE, POST])
    assert asks.collections == (LIKE, POST)
    assert asks.of(A) == asks.of(B) == AsksCollections([LIKE, POST]).of(A)
    assert asks.of(A) not in (AsksCollections([POST]).of(A), records((A, POST, "1")).of(A), NOTHING)


def test_a_directory_is_told_what_is_asked_of_each_account() -> None:
    directory = pl.DataFrame({"did": [A, C]})
    assert with_asked(directory, WHOLE_REPOS)["asked"].to_list() == [None, None]
    asks = records((A, POST, "1"))
    assert with_asked(directory, asks).rows() == [(A, asks.of(A)), (C, NOTHING)]
    empty = with_asked(directory.clear(), asks)
    assert empty.schema["asked"] == pl.String
    assert with_asked(directory, records()).rows() == [(A, NOTHING), (C, NOTHING)]
