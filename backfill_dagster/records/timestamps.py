"""`createdAt` as clients write it -> an instant in UTC, and what was odd about the way it was written.

What conforms to the protocol's syntax (Lexicon specification, format `datetime`) is read as it says: offsets are
converted, and digits past the microsecond cut off. Of the rest, whatever can mean only one instant is read too:

| written                                              | read as                              | problem      |
|------------------------------------------------------|--------------------------------------|--------------|
| lower-case t or z; a space or _ instead of T         | T, Z                                 | nonstandard  |
| white space around it; a space before the zone       | without it                           | nonstandard  |
| a comma before the fraction; no seconds              | a dot; second 0                      | nonstandard  |
| -00:00; UTC; GMT; +00:00Z (isoformat() + "Z")        | Z                                    | nonstandard  |
| +0900; +09                                           | +09:00                               | nonstandard  |
| T24:00:00                                            | the next day's first instant         | nonstandard  |
| a leap second, 23:59:60 in UTC                       | the second after it                  | none         |
| no zone                                              | UTC, as the network's servers do     | no_zone      |
| a date only                                          | midnight UTC, as ECMAScript defines  | date_only    |
| outside the years 1 to 9999, once in UTC             | nothing                              | out_of_range |
| anything else                                        | nothing                              | unparseable  |

Among "anything else" are days that do not exist, epochs, years of other than four digits, and numbers without
their leading zero, since those may be strings that were cut short; and whatever is longer than a kilobyte.
"""

from datetime import UTC, datetime

import polars as pl

from backfill_dagster.records.fields import no_texts
from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.syntax import whole

_INSTANT = pl.Datetime("us", "UTC")
_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(instant: datetime) -> int:
    since = instant - _EPOCH
    return since.days * _DAY + since.seconds * _SECOND + since.microseconds


# What Python's datetime holds: anything else could be stored, but half the tools could not read it back.
_FIRST = _microseconds(datetime.min.replace(tzinfo=UTC))
_LAST = _microseconds(datetime.max.replace(tzinfo=UTC))

# What JavaScript's toISOString writes, and with it nearly every client; and what the others write, nearly always.
_USUAL = whole(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9]\.[0-9]{3}Z")
_USUAL_FORMAT = "%Y-%m-%dT%H:%M:%S.%3fZ"
_ORDINARY = whole(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_ORDINARY_FORMAT = "%+"
_UNKNOWN_ZONE = "-00:00"
_STANDARD = whole(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]T(?:[01][0-9]|2[0-3]):[0-6][0-9]:[0-6][0-9](?:\.[0-9]{1,20})?"
    r"(?:Z|[+-][0-2][0-9]:[0-5][0-9])"
)
_ZONE = r"(?P<zone>[Zz]|UTC|GMT|[+-]00:00Z|(?P<sign>[+-])(?P<zone_hours>[0-9]{2})(?::?(?P<zone_minutes>[0-9]{2}))?)"
_TIME = (
    r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?"
    rf"(?: ?{_ZONE})?"
)
_READABLE = whole(rf"(?P<date>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:[Tt _]{_TIME})?")
# The protocol's own limit is 64. To take a long string apart costs a microsecond per byte, and megabytes are sent.
_MAX_BYTES = 1024


def read_datetimes(raw: pl.Series) -> pl.DataFrame:
    """Read strings (or nulls) as instants: columns `instant` (datetime[us, UTC]) and `problem` (text).

    `problem` is a value of `FieldProblem`, or null for a string that conforms; where `raw` is null, both are. One
    string never costs another its instant.
    """
    text = pl.col("raw")
    usual = text.str.to_datetime(_USUAL_FORMAT, strict=False, time_unit="us", cache=False).cast(_INSTANT)
    instants = _read_form(raw, text.str.contains(_USUAL), usual)
    problems = no_texts(len(raw))
    rest = _unread(raw, instants)
    if len(rest):
        ordinary = text.str.to_datetime(
            _ORDINARY_FORMAT, strict=False, time_unit="us", time_zone="UTC", cache=False
        )
        is_ordinary = text.str.contains(_ORDINARY) & ~text.str.ends_with(_UNKNOWN_ZONE)
        read = _read_form(raw.gather(rest), is_ordinary, ordinary)
        instants = instants.scatter(rest, read)
        rest = rest.filter(read.is_null())
    if len(rest):
        other = _read_any(raw.gather(rest))
        instants = instants.scatter(rest, other["instant"])
        problems = problems.scatter(rest, other["problem"])
    return pl.DataFrame({"instant": instants, "problem": problems})


def _read_form(raw: pl.Series, is_form: pl.Expr, instant: pl.Expr) -> pl.Series:
    """Read strings of one form; null for others, and for those that name no day or, as the year 0, cannot be held."""
    read = pl.DataFrame({"raw": raw}).select(pl.when(is_form).then(instant)).to_series()
    is_held = read.to_physical().is_between(_FIRST, _LAST)
    if is_held.all(ignore_nulls=True):
        return read
    return pl.select(pl.when(is_held).then(read)).to_series()


def _unread(raw: pl.Series, instants: pl.Series) -> pl.Series:
    """Return the positions of strings of which no instant is known."""
    if instants.null_count() == raw.null_count():
        return pl.Series(dtype=pl.UInt32)
    return (raw.is_not_null() & instants.is_null()).arg_true()


def _read_any(raw: pl.Series) -> pl.DataFrame:
    """Read strings of every form of the table above, one vectorised step after the other."""
    text = pl.col("raw").str.strip_chars()
    readable = pl.when(text.str.len_bytes() <= _MAX_BYTES).then(text)
    whole_seconds = (
        pl.col("day") * _DAY
        + pl.col("hour") * _HOUR
        + pl.col("minute") * _MINUTE
        + pl.col("second") * _SECOND
        - (pl.col("zone_hours") * _HOUR + pl.col("zone_minutes") * _MINUTE)
        * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    )
    hour, minute, second, fraction = (pl.col(name) for name in ("hour", "minute", "second", "fraction"))
    is_end_of_day = (hour == 24) & (minute == 0) & (second == 0) & (fraction == 0)
    is_leap_second = (second == 60) & (pl.col("whole_seconds") % _DAY == 0)
    is_time = ((hour <= 23) | is_end_of_day) & (minute <= 59) & ((second <= 59) | is_leap_second)
    is_zone = (pl.col("zone_hours") <= 23) & (pl.col("zone_minutes") <= 59)
    is_standard = pl.col("raw").str.contains(_STANDARD) & ~pl.col("raw").str.ends_with(_UNKNOWN_ZONE)
    # One step after the other: an expression that repeats another is planned, and checked, each time that it does.
    return (
        pl.LazyFrame({"raw": raw})
        .with_columns(readable.str.extract_groups(_READABLE).struct.unnest())
        .with_columns(
            day=pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64),
            has_time=pl.col("hour").is_not_null(),
            hour=_number("hour"),
            minute=_number("minute"),
            second=_number("second"),
            fraction=pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64).fill_null(0),
            zone_hours=_number("zone_hours"),
            zone_minutes=_number("zone_minutes"),
        )
        .with_columns(whole_seconds=whole_seconds)
        .with_columns(
            microseconds=pl.col("whole_seconds") + fraction,
            is_read=pl.col("day").is_not_null() & is_time & is_zone,
            is_standard=is_standard,
        )
        .with_columns(is_in_range=pl.col("microseconds").is_between(_FIRST, _LAST))
        .select(
            instant=pl.when("is_read", "is_in_range").then(pl.col("microseconds").cast(_INSTANT)),
            problem=pl.when(pl.col("raw").is_null())
            .then(None)
            .when(~pl.col("is_read"))
            .then(pl.lit(FieldProblem.UNPARSEABLE.value))
            .when(~pl.col("is_in_range"))
            .then(pl.lit(FieldProblem.OUT_OF_RANGE.value))
            .when(~pl.col("has_time"))
            .then(pl.lit(FieldProblem.DATE_ONLY.value))
            .when(pl.col("zone").is_null())
            .then(pl.lit(FieldProblem.NO_ZONE.value))
            .when(~pl.col("is_standard"))
            .then(pl.lit(FieldProblem.NONSTANDARD.value)),
        )
        .collect(engine="in-memory")
    )


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64).fill_null(0)
