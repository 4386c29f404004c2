from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backfill_dagster.records import timestamps
from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.timestamps import read_datetimes


def read(raw: Sequence[str | None]) -> list[tuple[datetime | None, str | None]]:
    frame = read_datetimes(pl.Series(raw, dtype=pl.String))
    assert frame.schema == {"instant": pl.Datetime("us", "UTC"), "problem": pl.String}
    return frame.rows()


def vectors(shared_dir: Path, name: str) -> list[str]:
    lines = (shared_dir / f"vectors/interop/syntax/datetime_{name}.txt").read_text().split("\n")
    return [line for line in lines if line and not line.startswith("#")]


NAIVE = datetime(1985, 4, 12, 23, 20, 50, 123_000, tzinfo=UTC)

# The invalid ones of the protocol's own list that mean one instant all the same.
TOLERATED = {
    "1985-04-12T23:20:50.123z": (NAIVE, FieldProblem.NONSTANDARD),
    " 1985-04-12T23:20:50.123Z": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12T23:20:50.123Z ": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12t23:20:50.123Z": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12T23:20:50.123-00:00": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12_23:20:50.123Z": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12 23:20:50.123Z": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12T23:20:50.123+00": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12T23:20:50.123+0000": (NAIVE, FieldProblem.NONSTANDARD),
    "1985-04-12T23:20Z": (NAIVE.replace(second=0, microsecond=0), FieldProblem.NONSTANDARD),
    "1985-04-12T23:20:50.123": (NAIVE, FieldProblem.NO_ZONE),
    "1985-04-12T23:20:50": (NAIVE.replace(microsecond=0), FieldProblem.NO_ZONE),
    "1985-04-12": (datetime(1985, 4, 12, tzinfo=UTC), FieldProblem.DATE_ONLY),
}


def test_what_the_syntax_allows_is_read_without_a_problem(shared_dir: Path) -> None:
    valid = vectors(shared_dir, "syntax_valid")
    assert len(valid) > 30
    for raw, (instant, problem) in zip(valid, read(valid), strict=True):
        if raw.startswith("0000-"):
            assert (instant, problem) == (None, FieldProblem.OUT_OF_RANGE)
        else:
            date, time = raw.split("T")
            clock, zone = (time[:-1], "+00:00") if time[-1] == "Z" else (time[:-6], time[-6:])
            seconds, _, fraction = clock.partition(".")
            cut = f"{date}T{seconds}.{(fraction or '0')[:6]:0<6}{zone}"
            assert instant == datetime.fromisoformat(cut)
            assert problem is None


def test_what_the_syntax_forbids_is_tolerated_exactly_where_it_is_clear(shared_dir: Path) -> None:
    invalid = vectors(shared_dir, "syntax_invalid")
    assert len(invalid) > 40
    assert set(TOLERATED) <= set(invalid)
    for raw, found in zip(invalid, read(invalid), strict=True):
        assert found == TOLERATED.get(raw, (None, FieldProblem.UNPARSEABLE)), raw


def test_what_is_no_date_is_read_as_nothing(shared_dir: Path) -> None:
    impossible = vectors(shared_dir, "parse_invalid")
    expected = {"0000-01-01T00:00:00+01:00": (None, FieldProblem.OUT_OF_RANGE)}
    assert len(impossible) == 7
    for raw, found in zip(impossible, read(impossible), strict=True):
        assert found == expected.get(raw, (None, FieldProblem.UNPARSEABLE)), raw


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("raw", "instant", "problem"),
    [
        ("2024-10-05T12:00:00.123456789Z", at(2024, 10, 5, 12, 0, 0, 123_456), None),
        ("2024-10-05T12:00:00.999999999Z", at(2024, 10, 5, 12, 0, 0, 999_999), None),
        ("2024-10-05T12:00:00.5+05:30", at(2024, 10, 5, 6, 30, 0, 500_000), None),
        ("2024-01-01T00:30:00+01:00", at(2023, 12, 31, 23, 30), None),
        ("2023-12-31T23:30:00-01:00", at(2024, 1, 1, 0, 30), None),
        ("2024-02-29T00:00:00.000Z", at(2024, 2, 29), None),
        ("2023-02-29T00:00:00.000Z", None, FieldProblem.UNPARSEABLE),
        ("2024-02-30T00:00:00Z", None, FieldProblem.UNPARSEABLE),
        ("2024-12-31T24:00:00Z", at(2025, 1, 1), FieldProblem.NONSTANDARD),
        ("2024-12-31T24:00:00.000Z", at(2025, 1, 1), FieldProblem.NONSTANDARD),
        ("2024-12-31T24:00:01Z", None, FieldProblem.UNPARSEABLE),
        ("2024-12-31T24:00:00.001Z", None, FieldProblem.UNPARSEABLE),
        ("2016-12-31T23:59:60Z", at(2017, 1, 1), None),
        ("2016-12-31T15:59:60.5-08:00", at(2017, 1, 1, 0, 0, 0, 500_000), None),
        ("2016-12-31T23:59:60-08:00", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05T12:00:60Z", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05T12:00:00+00:00Z", at(2024, 10, 5, 12), FieldProblem.NONSTANDARD),
        ("2024-10-05T12:00:00+01:00Z", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05 12:00:00 UTC", at(2024, 10, 5, 12), FieldProblem.NONSTANDARD),
        ("2024-10-05 12:00:00 +0200", at(2024, 10, 5, 10), FieldProblem.NONSTANDARD),
        ("2024-10-05T12:00:00,25Z", at(2024, 10, 5, 12, 0, 0, 250_000), FieldProblem.NONSTANDARD),
        ("2024-10-05T12:00:00+24:00", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05T12:00:00+01:60", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05T12:00", at(2024, 10, 5, 12), FieldProblem.NO_ZONE),
        ("0001-01-01", at(1, 1, 1), FieldProblem.DATE_ONLY),
        ("0001-01-01T00:00:00Z", at(1, 1, 1), None),
        ("0001-01-01T00:00:00+01:00", None, FieldProblem.OUT_OF_RANGE),
        ("0000-12-31T23:59:59.999Z", None, FieldProblem.OUT_OF_RANGE),
        ("0000-12-31T23:59:59-01:00", at(1, 1, 1, 0, 59, 59), None),
        ("9999-12-31T23:59:59.999999Z", at(9999, 12, 31, 23, 59, 59, 999_999), None),
        ("9999-12-31T23:59:59.999-01:00", None, FieldProblem.OUT_OF_RANGE),
        ("9999-12-31T24:00:00Z", None, FieldProblem.OUT_OF_RANGE),
        ("2024-10-05T12:00:00Z\n", at(2024, 10, 5, 12), FieldProblem.NONSTANDARD),
        ("٢٠٢٤-10-05T12:00:00Z", None, FieldProblem.UNPARSEABLE),
        ("2024-10-05T12:00:00Z\0", None, FieldProblem.UNPARSEABLE),
        ("1728129600000", None, FieldProblem.UNPARSEABLE),
        ("Sat, 05 Oct 2024 12:00:00 GMT", None, FieldProblem.UNPARSEABLE),
        ("yesterday", None, FieldProblem.UNPARSEABLE),
        ("", None, FieldProblem.UNPARSEABLE),
        (None, None, None),
    ],
)
def test_each_form(raw: str | None, instant: datetime | None, problem: FieldProblem | None) -> None:
    assert read([raw]) == [(instant, problem)]


USUAL = "2024-10-05T12:00:00.000Z"


@pytest.mark.parametrize(
    "odd",
    [
        "2024-02-30T00:00:00.000Z",
        "0000-01-01T00:00:00.000Z",
        "9999-12-31T24:00:00.000Z",
        "2024-10-05",
        "?",
        None,
    ],
)
def test_one_odd_date_costs_no_other_row_its_date(odd: str | None) -> None:
    usual = (datetime(2024, 10, 5, 12, tzinfo=UTC), None)
    assert read([USUAL, odd, USUAL]) == [usual, *read([odd]), usual]


def test_no_rows_and_no_dates_keep_their_types() -> None:
    assert read([]) == []
    assert read([None, None]) == [(None, None), (None, None)]


zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC) | zones)  # noqa: DTZ001


@given(
    st.lists(moments, min_size=1, max_size=8), st.sampled_from(["milliseconds", "microseconds", "seconds"])
)
def test_whatever_python_writes_is_read_as_python_means_it(written: list[datetime], precision: str) -> None:
    raw = [moment.isoformat(timespec=precision) for moment in written]
    found = read(raw)
    assert [instant for instant, _ in found] == [datetime.fromisoformat(text).astimezone(UTC) for text in raw]
    assert [problem for _, problem in found] == [None] * len(raw)


@given(st.lists(st.none() | st.text(alphabet="0123456789-+:.TtZz _, ", max_size=32), max_size=8))
@example(["2024-10-05T12:00:00.000Z", "2024-13-05T12:00:00.000Z"])
def test_rows_never_depend_on_their_neighbours(raw: list[str | None]) -> None:
    assert read(raw) == [read([text])[0] for text in raw]


written = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["2024-", "1969-", "0000-", "0001-", "9999-", "202-"]),
        st.sampled_from(["01-", "02-", "12-", "13-", "1-"]),
        st.sampled_from(["01", "29", "30", "31", "00"]),
        st.sampled_from(["T", "T", "T", "t", " "]),
        st.sampled_from(["00:00", "23:59", "24:00", "12:30", "9:00"]),
        st.sampled_from([":00", ":59", ":60", ""]),
        st.sampled_from(["", ".000", ".123", ".1", ".123456", ".1234567", ".123456789", ".1234567890", ",5"]),
        st.sampled_from(
            ["Z", "Z", "z", "", "+00:00", "-00:00", "+09:00", "-00:30", "+23:59", "+24:00", "+0900"]
        ),
    ),
)


@given(st.lists(written | st.none() | st.text(max_size=3), max_size=40))
def test_the_usual_forms_are_read_as_the_general_way_reads_them(raw: list[str | None]) -> None:
    column = pl.Series(raw, dtype=pl.String)
    assert read_datetimes(column).equals(timestamps._read_any(column))
