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
import pyarrow as pa

from backfill_dagster.records.issues import Problem
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

# What JavaScript's toISOString writes, and with it nearly every client.
_USUAL = whole(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
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

    `problem` is a value of `Problem`, or null for a string that conforms; where `raw` is null, both are. One
    string never costs another its instant.
    """
    is_usual = raw.str.contains(_USUAL)
    usual = _read_usual(raw, is_usual)
    if usual is None:
        return _read_any(raw)
    read = pl.DataFrame({"instant": usual}).with_columns(problem=pl.lit(None, pl.String))
    unusual = (~is_usual).fill_null(value=False)
    if not unusual.any():
        return read
    rest = _read_any(raw.filter(unusual)).with_columns(row=unusual.arg_true())
    return read.with_row_index("row").update(rest, on="row", how="left").drop("row")


def _read_usual(raw: pl.Series, is_usual: pl.Series) -> pl.Series | None:
    """Read the strings in their usual form, in a tenth of the time; None if one of them is no date after all."""
    strings = pl.select(pl.when(is_usual).then(raw)).to_series().to_arrow()
    try:
        instants = pl.Series("instant", strings.cast(pa.timestamp("us", tz="UTC")), dtype=_INSTANT)
    except pa.ArrowInvalid:
        return None
    # The year 0 has the usual form too.
    in_range = instants.to_physical().is_between(_FIRST, _LAST).all(ignore_nulls=True)
    return instants if in_range else None


def _read_any(raw: pl.Series) -> pl.DataFrame:
    """Read strings of every form of the table above, one vectorised step after the other."""
    text = pl.col("raw").str.strip_chars()
    readable = pl.when(text.str.len_bytes() <= _MAX_BYTES).then(text)
    parts = pl.DataFrame({"raw": raw}).with_columns(readable.str.extract_groups(_READABLE).struct.unnest())
    day = pl.col("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
    hour, minute, second = (_number(name) for name in ("hour", "minute", "second"))
    fraction = pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64).fill_null(0)
    zone_hours, zone_minutes = _number("zone_hours"), _number("zone_minutes")
    east = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    offset = (zone_hours * _HOUR + zone_minutes * _MINUTE) * east
    whole_seconds = day * _DAY + hour * _HOUR + minute * _MINUTE + second * _SECOND - offset

    is_end_of_day = (hour == 24) & (minute == 0) & (second == 0) & (fraction == 0)
    is_leap_second = (second == 60) & (whole_seconds % _DAY == 0)
    is_time = ((hour <= 23) | is_end_of_day) & (minute <= 59) & ((second <= 59) | is_leap_second)
    is_zone = (zone_hours <= 23) & (zone_minutes <= 59)
    is_read = day.is_not_null() & is_time & is_zone
    microseconds = whole_seconds + fraction
    is_in_range = microseconds.is_between(_FIRST, _LAST)
    is_standard = pl.col("raw").str.contains(_STANDARD) & ~pl.col("raw").str.ends_with("-00:00")
    return parts.select(
        instant=pl.when(is_read & is_in_range).then(microseconds.cast(_INSTANT)),
        problem=pl.when(pl.col("raw").is_null())
        .then(None)
        .when(~is_read)
        .then(pl.lit(Problem.UNPARSEABLE.value))
        .when(~is_in_range)
        .then(pl.lit(Problem.OUT_OF_RANGE.value))
        .when(pl.col("hour").is_null())
        .then(pl.lit(Problem.DATE_ONLY.value))
        .when(pl.col("zone").is_null())
        .then(pl.lit(Problem.NO_ZONE.value))
        .when(~is_standard)
        .then(pl.lit(Problem.NONSTANDARD.value)),
    )


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64).fill_null(0)
