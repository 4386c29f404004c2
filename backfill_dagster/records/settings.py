"""What a study wants of the records: which types, from when, and how much of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from backfill_dagster.records.filters import RecordFilter
from backfill_dagster.records.tables import COLLECTIONS, OTHER_RECORDS, TABLES_OF_COLLECTION

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

    `record_types` are collections (NSIDs) out of `COLLECTIONS`, `other_types` collections that have no table of their
    own; records of others are counted as filtered. `outside` says what becomes of a dated record outside the period:
    left out, or kept with a normalised `sync_timestamp`. Without `keep_record_json` the column `record` is null
    throughout, but for records of other types, of which it is all that there is. `filters` say by collection which
    records are kept.

    Raises ValueError for a collection that has no table, or that has one and is named among the others; for an empty
    set of types, which would drop everything; and for a filter of a type that is not wanted.
    """

    record_types: frozenset[str]
    period: StudyPeriod
    outside: OutsidePeriod
    keep_record_json: bool = True
    other_types: frozenset[str] = frozenset()
    filters: Mapping[str, RecordFilter] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if known := self.other_types & set(COLLECTIONS):
            raise ValueError(
                f"{', '.join(sorted(known))} has a table of its own, and is none of the other types"
            )
        if strangers := self.filters.keys() - self.collections:
            raise ValueError(f"filters for {sorted(strangers)}, which are not wanted at all")
        if unknown := self.record_types - set(COLLECTIONS):
            raise ValueError(f"no table for {sorted(unknown)}; known are {', '.join(COLLECTIONS)}")
        if not self.record_types:
            raise ValueError(f"no record type is wanted; known are {', '.join(COLLECTIONS)}")

    @property
    def collections(self) -> frozenset[str]:
        """All collections that are wanted."""
        return self.record_types | self.other_types

    def tables_of(self, collection: str | None) -> tuple[str, ...]:
        """Return the names of the tables that a collection feeds, or would feed if it were wanted."""
        return TABLES_OF_COLLECTION.get(
            collection or "", (OTHER_RECORDS,) if collection in self.other_types else ()
        )

    def keeps_json_of(self, collection: str) -> bool:
        """Tell whether records of a collection are kept as JSON."""
        return self.keep_record_json or collection in self.other_types
