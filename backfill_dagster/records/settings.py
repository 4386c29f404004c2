"""What a study wants of the records: which types, from when, and how much of each."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from backfill_dagster.records.tables import COLLECTIONS

OutsidePeriod = Literal["drop", "normalize"]


@dataclass(frozen=True, slots=True)
class StudyPeriod:
    """The time under study; both ends are inside, and `None` leaves an end open.

    Raises ValueError for an end without a time zone, and for a start after the end.
    """

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        for name, end in (("start", self.start), ("end", self.end)):
            if end is not None and end.tzinfo is None:
                raise ValueError(f"the study period's {name} {end.isoformat()} has no time zone")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError(f"the study period starts {self.start.isoformat()}, after its end")


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """How records become rows.

    `record_types` are collections (NSIDs) out of `COLLECTIONS`; records of others are counted as filtered.
    `outside` says what becomes of a dated record outside the period: left out, or kept with a normalised
    `sync_timestamp`. Without `keep_record_json` the column `record` is null throughout.

    Raises ValueError for a collection that has no table, and for an empty set, which would drop everything.
    """

    record_types: frozenset[str]
    period: StudyPeriod
    outside: OutsidePeriod
    keep_record_json: bool = True

    def __post_init__(self) -> None:
        if unknown := self.record_types - set(COLLECTIONS):
            raise ValueError(f"no table for {sorted(unknown)}; known are {', '.join(COLLECTIONS)}")
        if not self.record_types:
            raise ValueError(f"no record type is wanted; known are {', '.join(COLLECTIONS)}")
