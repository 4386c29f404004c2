"""The study period, and the time windows that the tables are cut into."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from backfill_dagster.config.section import Section

# The first month with public records: what claims to be older was backdated by its client.
NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)

_OLD_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}-\d{2}:\d{2}:\d{2}")


def _parse_instant(value: object, *, day_end: bool) -> datetime:
    """Read a date, `YYYY-MM-DD-HH:MM:SS`, or an ISO 8601 instant; a bare end date includes its whole day."""
    allowed = "must be YYYY-MM-DD, YYYY-MM-DD-HH:MM:SS or an ISO 8601 instant"
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time.max if day_end else time.min, tzinfo=UTC)
    if not isinstance(value, str):
        raise ValueError(allowed)  # noqa: TRY004  pydantic turns only ValueError into a message
    text = value.strip()
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return _parse_instant(date.fromisoformat(text), day_end=day_end)
        if _OLD_INSTANT.fullmatch(text):
            return datetime.strptime(text, "%Y-%m-%d-%H:%M:%S").replace(tzinfo=UTC)
        return _parse_instant(datetime.fromisoformat(text), day_end=day_end)
    except ValueError:
        raise ValueError(allowed) from None


def start_instant(value: object) -> datetime | None:
    """Read the begin of a period: of a bare date, its first instant; in UTC."""
    return None if value is None else _parse_instant(value, day_end=False)


def end_instant(value: object) -> datetime | None:
    """Read the end of a period: of a bare date, its last instant; in UTC."""
    return None if value is None else _parse_instant(value, day_end=True)


class TimeRange(Section):
    """The study period, both ends inside, and what becomes of records outside it.

    `normalize` keeps a record from outside under its true date and gives it a `sync_timestamp` by the rule of
    `records/period.py`; `drop` leaves it out. Without an `end_date` the period is open. `partitions` are the time
    windows that the tables are cut into.
    """

    start_date: Annotated[datetime | None, BeforeValidator(start_instant)] = Field(
        None,
        description="First instant or day; without one the period is open. But if neither end is given, it is "
        "2024-09-27.",
    )
    end_date: Annotated[datetime | None, BeforeValidator(end_instant)] = Field(
        None,
        description="Last instant, or day, of which all is inside; without one the period is open. But if neither end "
        "is given, it is 2024-12-02-00:00:00.",
    )
    outside: Literal["drop", "normalize"] = Field(
        "normalize",
        description="What becomes of records from outside the period: `normalize` keeps them under their true date, "
        "marked, `drop` leaves them out.",
    )
    partitions: Literal["monthly", "weekly", "daily"] = Field(
        "monthly", description="Time windows that the tables are cut into; weeks begin on Monday."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_period(cls, value: Any) -> Any:
        if isinstance(value, dict) and "start_date" not in value and "end_date" not in value:
            return {**value, "start_date": "2024-09-27-00:00:00", "end_date": "2024-12-02-00:00:00"}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> TimeRange:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            start, end = (f"{day:%Y-%m-%d %H:%M:%S}" for day in (self.start_date, self.end_date))
            raise ValueError(f"start_date {start} is after end_date {end}")
        if self.outside == "drop" and self.end_date and self.end_date < NETWORK_START:
            raise ValueError(f"the period ends before the network's first month, {NETWORK_START:%Y-%m}")
        if self.start_date and self.start_date > datetime.now(UTC):
            raise ValueError(
                f"start_date {self.start_date:%Y-%m-%d} is in the future: nothing can be collected yet"
            )
        return self

    @property
    def earliest(self) -> datetime:
        """The earliest instant at which a dated row can have been created."""
        if self.outside == "normalize" or self.start_date is None:
            return NETWORK_START
        return max(NETWORK_START, self.start_date)

    @property
    def latest(self) -> datetime | None:
        """The latest such instant; None if it is now, whenever that is."""
        if self.outside == "normalize" or self.end_date is None or self.end_date > datetime.now(UTC):
            return None
        return self.end_date
