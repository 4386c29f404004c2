from itertools import pairwise

import polars as pl
import pytest

from backfill_dagster.dids.did_ranges import dealt_by_range, did_ranges

DIDS = [
    "did:plc:222222222222222222222222",
    "did:plc:7zzzzzzzzzzzzzzzzzzzzzzz",
    "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa",
    "did:plc:hb5r4nmjqojcrvpcz4kbsnwe",
    "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz",
    "did:web:example.com",
    "did:web:0.example.com",
    "did:example:short",
    "",
]


@pytest.mark.parametrize(("rows", "ranges"), [(0, 1), (10, 1), (11, 2), (40, 4), (41, 8), (10**9, 1024)])
def test_every_did_is_in_one_range_and_there_are_as_many_as_the_rows_want(rows: int, ranges: int) -> None:
    cut = did_ranges(rows, 10)
    assert len(cut) == ranges
    frame = pl.DataFrame({"did": DIDS, "uri": [f"at://{did}/x/y" for did in DIDS]})
    for column, prefix in (("did", ""), ("uri", "at://")):
        inside = frame.select(one.holds(column, prefix).alias(str(number)) for number, one in enumerate(cut))
        assert inside.select(pl.sum_horizontal(pl.all().cast(pl.Int64))).to_series().to_list() == [1] * len(
            DIDS
        )


def test_ranges_are_in_the_order_of_the_text_and_of_about_the_same_size() -> None:
    cut = did_ranges(32, 1)
    assert [one.first for one in cut][:3] == [None, "did:plc:32", "did:plc:42"]
    assert all(one.end == other.first for one, other in pairwise(cut))


def test_no_value_is_in_no_range() -> None:
    frame = pl.DataFrame({"did": [None]}, schema={"did": pl.String})
    assert not any(frame.filter(one.holds("did")).height for one in did_ranges(100, 10))


@pytest.mark.parametrize("rows", [10, 40, 10**9])
def test_rows_are_dealt_out_to_the_range_that_holds_them(rows: int) -> None:
    cut, frame = did_ranges(rows, 10), pl.DataFrame({"did": DIDS, "row": range(len(DIDS))})
    dealt = list(dealt_by_range(frame, cut))
    assert sorted(row for _, some in dealt for row in some["row"]) == list(range(len(DIDS)))
    for dids, some in dealt:
        assert some.filter(dids.holds("did")).equals(some)
        assert some.columns == ["did", "row"]
