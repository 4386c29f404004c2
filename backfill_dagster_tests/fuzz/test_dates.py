"""`createdAt` against a slow parser, which goes through the text letter by letter by the table in `timestamps.py`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.timestamps import read_datetimes

DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
WHITE = " \t\n"


class Reading(NamedTuple):
    instant: datetime | None
    problem: FieldProblem | None


class NotADateError(Exception):
    """The text is none of the table's forms."""


class Letters:
    """A text, read from its start."""

    def __init__(self, text: str) -> None:
        self.rest = text

    def number(self, digits: int) -> int:
        taken, self.rest = self.rest[:digits], self.rest[digits:]
        if len(taken) < digits or any(letter not in "0123456789" for letter in taken):
            raise NotADateError
        return int(taken)

    def one_of(self, *choices: str) -> str:
        """Take the first choice that stands here, or nothing."""
        for choice in choices:
            if self.rest.startswith(choice):
                self.rest = self.rest.removeprefix(choice)
                return choice
        return ""

    def expect(self, *choices: str) -> str:
        taken = self.one_of(*choices)
        if not taken:
            raise NotADateError
        return taken


def slow_reading(text: str) -> Reading:
    try:
        return _read(text)
    except NotADateError:
        return Reading(None, FieldProblem.UNPARSEABLE)


def _read(text: str) -> Reading:
    letters = Letters(text.strip(WHITE))
    is_standard = letters.rest == text
    year = letters.number(4)
    letters.expect("-")
    month = letters.number(2)
    letters.expect("-")
    day = letters.number(2)
    if not (1 <= month <= 12 and 1 <= day <= DAYS[month - 1] + (month == 2 and _is_leap(year))):
        raise NotADateError
    days = _days_before(year, month) + day
    if not letters.rest:
        return _at(days * 86_400, 0, FieldProblem.DATE_ONLY)
    is_standard &= letters.expect("T", "t", " ", "_") == "T"
    hour = letters.number(2)
    letters.expect(":")
    minute = letters.number(2)
    second, fraction = 0, ""
    if letters.one_of(":"):
        second = letters.number(2)
        dot = letters.one_of(".", ",")
        while dot and letters.rest and letters.rest[0] in "0123456789":
            fraction += letters.one_of(letters.rest[0])
        if dot and not fraction:
            raise NotADateError
        is_standard &= dot != "," and len(fraction) <= 20
    else:
        is_standard = False
    zone, zone_is_standard = _zone(letters)
    if letters.rest:
        raise NotADateError
    microseconds = int(fraction[:6].ljust(6, "0"))
    is_end_of_day = (hour, minute, second, microseconds) == (24, 0, 0, 0)
    if not (hour <= 23 or is_end_of_day) or minute > 59 or second > 60:
        raise NotADateError
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second - (zone or 0) * 60
    if second == 60 and seconds % 86_400 != 0:
        # A leap second is the last of a day in UTC.
        raise NotADateError
    if zone is None:
        return _at(seconds, microseconds, FieldProblem.NO_ZONE)
    is_standard &= zone_is_standard and hour < 24
    return _at(seconds, microseconds, None if is_standard else FieldProblem.NONSTANDARD)


def _zone(letters: Letters) -> tuple[int | None, bool]:
    """Read the zone, in minutes, and whether it stands as it should; None if there is none."""
    is_standard = letters.one_of(" ") == ""
    if not letters.rest:
        if not is_standard:
            raise NotADateError
        return None, False
    if name := letters.one_of("Z", "z", "UTC", "GMT", "+00:00Z", "-00:00Z"):
        return 0, is_standard and name == "Z"
    sign = letters.expect("+", "-")
    hours = letters.number(2)
    colon = letters.one_of(":")
    minutes = letters.number(2) if letters.rest or colon else None
    if hours > 23 or (minutes or 0) > 59:
        raise NotADateError
    offset = (hours * 60 + (minutes or 0)) * (-1 if sign == "-" else 1)
    return offset, is_standard and colon == ":" and (sign == "+" or offset != 0)


def _days_before(year: int, month: int) -> int:
    """Count the days from the first of the year 0 to the first of a month, less one."""
    years = [366 if _is_leap(past % 400) else 365 for past in range(year % 400)]
    months = [days + (number == 1 and _is_leap(year)) for number, days in enumerate(DAYS[: month - 1])]
    # Four hundred years have as many days, always.
    return year // 400 * 146_097 + sum(years) + sum(months) - 1


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _at(seconds: int, microseconds: int, problem: FieldProblem | None) -> Reading:
    # The year 0 has 366 days.
    try:
        instant = datetime.min.replace(tzinfo=UTC) + timedelta(
            seconds=seconds - 366 * 86_400, microseconds=microseconds
        )
    except OverflowError:
        return Reading(None, FieldProblem.OUT_OF_RANGE)
    return Reading(instant, problem)


def read(raw: list[str]) -> list[Reading]:
    frame = read_datetimes(pl.Series(raw, dtype=pl.String))
    return [
        Reading(instant, None if problem is None else FieldProblem(problem))
        for instant, problem in frame.select("instant", "problem").iter_rows()
    ]


def two(first: int, last: int) -> st.SearchStrategy[str]:
    return st.integers(first, last).map(lambda number: f"{number:02d}")


def mostly(usual: st.SearchStrategy[str], *odd: str) -> st.SearchStrategy[str]:
    """Draw what keeps a date a date, nine times of ten: a date has ten parts, and each can spoil it."""
    return st.integers(0, 9).flatmap(lambda chance: st.sampled_from(odd) if chance == 7 else usual)


years = mostly(
    st.sampled_from(["2024", "2023", "1969", "0001", "9999"]), "1900", "2000", "0000", "999", "02024"
)
months = mostly(two(1, 12), "00", "13", "1", "02")
days = mostly(two(1, 28), "00", "29", "30", "31", "32", "1")
hours = mostly(two(0, 23), "24", "25", "1", "")
minutes = mostly(two(0, 59), "60", "61", "1", "")
seconds = mostly(two(0, 59).map(":".__add__), "", ":60", ":61", ":1", ":")
edges = ["24:00:00", "24:00", "24:00:01", "24:01:00", "23:59:60", "22:59:60", "00:59:60", "23:58:60"]
clocks = mostly(st.tuples(st.tuples(hours, minutes).map(":".join), seconds).map("".join), *edges, *edges)
fractions = st.sampled_from(["", "", ".000", ".5", ".0000009", ".9999999", ",5", "."])
fractions |= st.integers(1, 22).map(lambda digits: "." + ("123456789" * 3)[:digits])
offsets = st.builds(
    lambda sign, hours, colon, minutes: sign + hours + colon + minutes,
    st.sampled_from("+-"),
    mostly(two(0, 23), "24", "1", "99"),
    mostly(st.just(":"), "", "", " "),
    mostly(two(0, 59), "60", "", "1"),
)
odd_zones = [
    "",
    "",
    "z",
    "UTC",
    "GMT",
    "+00:00Z",
    "-00:00Z",
    "-00:00",
    "+00:00",
    " Z",
    "  Z",
    "+24:00",
    "+23:60",
    "ZZ",
]
zones = st.just("Z") | offsets | st.sampled_from(odd_zones)
separators = mostly(st.just("T"), "t", " ", "_", "", "TT")
dates = st.tuples(years, months, days).map("-".join)
written = st.tuples(dates, separators, clocks, fractions, zones).map("".join)
around = mostly(st.just(""), " ", "\n", "\t ")
framed = st.tuples(around, mostly(written, "2024-10-05", "0000-02-29", "2023-02-29"), around).map("".join)


@st.composite
def nearly(draw: st.DrawFn) -> str:
    """Draw a date in which one letter is another, or missing, or one too many."""
    text = draw(framed)
    place = draw(st.integers(0, len(text)))
    letter: str = draw(st.sampled_from([*"0123456789-+:.TZz _,", "", "\u0663", "\0"]))
    return text[:place] + letter + text[place + draw(st.integers(0, 1)) :]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.lists(framed | framed | nearly(), min_size=3, max_size=8))
@example(["0000-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
@example(["0000-02-29", "0000-12-31T23:59:60Z", "2024-06-30T23:59:60.5Z", "2024-07-01T01:59:60+02:00"])
@example(
    ["2024-10-05T22:59:60Z", "2024-10-05T23:59:60+01:00", "2024-10-05T22:59:60-01:00", "2024-10-05T23:59:60"]
)
@example([f"2024-10-05T24:{rest}Z" for rest in ("00", "00:00", "01:00", "00:01", "00:00.1", "00:00.0000001")])
@example([f"2024-10-05T12:00:00.{'1' * digits}Z" for digits in (1, 6, 7, 20, 21)])
@example(["2024-10-05T12:00:00.000Z", "2024-10-05T12:00:00-00:00"])
def test_dates_are_read_as_the_table_says(raw: list[str]) -> None:
    assert read(raw) == [slow_reading(text) for text in raw]


def test_the_slow_parser_knows_the_calendar() -> None:
    for text in (
        "0001-01-01",
        "1969-12-31",
        "1970-01-01",
        "2000-02-29",
        "2024-03-01",
        "2100-03-01",
        "9999-12-31",
    ):
        assert slow_reading(text).instant == datetime.fromisoformat(text).replace(tzinfo=UTC)
    assert slow_reading("2100-02-29") == Reading(None, FieldProblem.UNPARSEABLE)


def test_a_long_text_is_no_date_and_costs_no_time() -> None:
    longest = "2024-10-05T12:00:00." + "1" * 1_003 + "Z"
    assert read([f" {longest} ", f"{longest}Z", longest.replace("Z", "1Z")]) == [
        slow_reading(f" {longest} "),
        Reading(None, FieldProblem.UNPARSEABLE),
        Reading(None, FieldProblem.UNPARSEABLE),
    ]

    megabytes = ["2024-10-05T12:00:00." + "1" * 4_000_000 + "Z"] * 2
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert read(megabytes) == [Reading(None, FieldProblem.UNPARSEABLE)] * 2
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
