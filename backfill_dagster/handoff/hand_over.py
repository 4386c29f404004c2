"""One consumer's share of a study's record tables: what of them it was not handed yet, found and delivered."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.handoff.batches import (
    StagedBatch,
    batch_name,
    of_size,
    purge_batch,
    stage_batch,
)
from backfill_dagster.handoff.ledger import HandoffLedger
from backfill_dagster.handoff.places import (
    Place,
    consumer_folder,
    note_place,
    places_of_all,
    read_places,
)
from backfill_dagster.purge.record_rows import purged_rows
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.tables.ledger import read_built

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.config.integrations import Consumer
    from backfill_dagster.handoff.outbox import Outbox
    from backfill_dagster.handoff.queue import Queue
    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

LOOKED_AT_COLUMNS = (
    Column("file", pl.String(), "A file of the table that was handed over whole.", required=True),
    Column(
        "digest", pl.UInt64(), "The digest of its content then, as the tables' ledger has it.", required=True
    ),
)
_LOOKED_AT = schema_of(LOOKED_AT_COLUMNS)
# Rows of changed files, and of the ledger, of which the URIs are held at once; and rows of one file, which are whole.
_URIS_AT_ONCE = 500_000
_ROWS_AT_ONCE = 50_000
# Of a file, those that are new stand next to each other in some groups.
_ROWS_IN_GROUP = 4_096
# As the previous system writes the time, and its consumers compare it.
_TIME_FORMAT = "%Y-%m-%d-%H:%M:%S"


@dataclass(slots=True)
class HandoffReport:
    """What handing over came to, in records: `offered` = `exported` + `already_exported`, by table and in all.

    `batches` are those that were delivered, with those, `settled`, that an earlier run owed.
    """

    offered: dict[str, int] = field(default_factory=dict)
    exported: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    settled: int = 0

    @property
    def already_exported(self) -> dict[str, int]:
        """Records that were handed over before, by table."""
        return {table: offered - self.exported.get(table, 0) for table, offered in self.offered.items()}


class Handoff:
    """What one consumer of a study is handed, and was."""

    def __init__(
        self, storage: StudyStorage, study: str, name: str, consumer: Consumer, tombstones: Tombstones
    ) -> None:
        self._storage = storage
        self._study = study
        self._owner = f"{study} {name}"
        self._folder = consumer_folder(name)
        self._consumer = consumer
        self._name = name
        self._place = Place.of_consumer(consumer)
        self._destination: Outbox | Queue = self._place.open(storage, study, name, consumer.records_per_row)
        # While a purge is not done, the tables may still hold what must not leave the study any more.
        self._tombstones = tombstones if tombstones.unfinished else None

    def is_pending(self) -> bool:
        """Tell whether there may be something to hand over; reads no records."""
        return bool(self._storage.keys(f"{self._folder}/staged")) or any(
            self._changed(table) for table in self._consumer.tables
        )

    def run(self) -> HandoffReport:
        """Deliver what is owed, and then all that the tables have and the ledger has not."""
        report = HandoffReport()
        with self._storage.alone(self._folder):
            self._destination.prepare()
            note_place(self._storage, self._name, self._place)
            report.settled = self._settle()
            for table in self._consumer.tables:
                self._hand_over(table, report)
        report.batches += report.settled
        return report

    def _settle(self) -> int:
        """Bring to an end what an earlier run has begun; return how many batches that delivered."""
        self._destination.settle(self._tombstones)
        delivered = 0
        for key in self._storage.keys(f"{self._folder}/staged"):
            batch = StagedBatch.of_key(key)
            if not self._ledger(batch.table).holds(batch.name) or self._is_elsewhere(batch):
                self._storage.remove(key)
                continue
            if self._tombstones is not None:
                purge_batch(self._storage, batch, self._tombstones)
            if self._storage.exists(key):
                self._destination.deliver(batch)
                delivered += 1
        return delivered

    def _is_elsewhere(self, batch: StagedBatch) -> bool:
        """Tell whether a queue, from which the consumer has been moved since, had taken a batch before the end came."""
        before = (place for place in read_places(self._storage, self._name) if place != self._place)
        return any(place.open(self._storage, self._study, self._name).has_taken(batch) for place in before)

    def _hand_over(self, table: str, report: HandoffReport) -> None:
        built = self._built(table)
        changed = self._changed(table)
        ledger = self._ledger(table)
        report.offered[table] = sum(rows for _, rows in built.values())
        report.exported[table] = 0
        new = self._new_rows(table, changed, sum(built[file][1] for file in changed), ledger)
        for batch in of_size(new, self._consumer.batch_size):
            rows = batch.sort("uri")
            self._deliver(table, rows, ledger)
            report.exported[table] += rows.height
            report.batches += 1
        ledger.merge()
        if changed or self._looked_at(table).keys() != built.keys():
            files = pl.DataFrame(
                [(file, digest) for file, (digest, _) in sorted(built.items())],
                schema=_LOOKED_AT,
                orient="row",
            )
            self._storage.write(self._looked_at_key(table), files)

    def _deliver(self, table: str, rows: pl.DataFrame, ledger: HandoffLedger) -> None:
        name = batch_name(self._owner, table, rows)
        batch = StagedBatch(name, table, f"{self._folder}/staged/{table}/{name}.parquet")
        stage_batch(
            self._storage, batch, rows.select(self._columns(table)), datetime.now(UTC).strftime(_TIME_FORMAT)
        )
        ledger.enter(name, rows["uri"])
        self._destination.deliver(batch)

    def _new_rows(
        self, table: str, files: Sequence[str], rows: int, ledger: HandoffLedger
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows of these files that the ledger does not hold, one file after the other.

        Which these are is found first, and spilt: to hold URIs against the ledger, accounts are taken in ranges of
        their DIDs, and every range has some in every file.
        """
        if not files:
            return
        with self._storage.scratch() as scratch:
            for number, new in enumerate(self._new_uris(table, files, rows, ledger)):
                new.write_parquet(scratch / f"{number:05d}.parquet", row_group_size=_ROWS_IN_GROUP)
            spilt = pl.scan_parquet(sorted(scratch.glob("*.parquet")), glob=False)
            for place, file in enumerate(files):
                uris = spilt.filter(pl.col("place") == place).select("uri").collect()
                for some in uris.iter_slices(_ROWS_AT_ONCE):
                    yield self._rows(table, file, some)

    def _new_uris(
        self, table: str, files: Sequence[str], rows: int, ledger: HandoffLedger
    ) -> Iterator[pl.DataFrame]:
        """Yield `place, uri` of the records to hand over, by the place of their file, for a range of accounts each."""
        known = ledger.keys()
        names = {file: str(place) for place, file in enumerate(files)}
        offered = self._storage.scan_named(names, TABLE_BY_NAME[table].schema, "place").select("place", "uri")
        for dids in did_ranges(max(rows, ledger.rows()), _URIS_AT_ONCE):
            some = offered.filter(dids.holds("uri", "at://")).unique("uri", keep="any")
            new = some.join(ledger.within(dids, known), on="uri", how="anti")
            [found] = self._storage.collect([new], [*files, *known])
            yield found.with_columns(pl.col("place").cast(pl.UInt32)).sort("place", "uri")

    def _rows(self, table: str, file: str, uris: pl.DataFrame) -> pl.DataFrame:
        columns = list(dict.fromkeys([*self._columns(table), "uri", "cid"]))
        within = pl.col("uri").is_between(pl.lit(uris["uri"][0]), pl.lit(uris["uri"][-1]))
        found = self._storage.scan([file], TABLE_BY_NAME[table].schema).filter(within).select(columns)
        [rows] = self._storage.collect([found.join(uris.lazy(), on="uri", how="semi")], [file])
        rows = rows.unique("uri", keep="first", maintain_order=True).sort("uri")
        return rows if self._tombstones is None else purged_rows(rows, self._tombstones)[0]

    def _columns(self, table: str) -> list[str]:
        chosen = self._consumer.columns
        return [name for name in TABLE_BY_NAME[table].schema if chosen is None or name in ("uri", *chosen)]

    def _built(self, table: str) -> dict[str, tuple[int, int]]:
        """Return the table's files that have rows, by key: the digest of their content, and their rows."""
        built = read_built(self._storage, table).filter(pl.col("part").is_not_null(), pl.col("rows") > 0)
        files = built.select(pl.format("{}/{}", "folder", "part"), "digest", "rows")
        return {file: (digest, rows) for file, digest, rows in files.iter_rows()}

    def _changed(self, table: str) -> list[str]:
        """Return the files whose records were not all looked at as they are now."""
        looked_at = self._looked_at(table)
        return sorted(
            file for file, (digest, _) in self._built(table).items() if looked_at.get(file) != digest
        )

    def _looked_at(self, table: str) -> dict[str, int]:
        key = self._looked_at_key(table)
        return dict(self._storage.read(key).iter_rows()) if self._storage.exists(key) else {}

    def _looked_at_key(self, table: str) -> str:
        return f"{self._folder}/looked_at/{table}.parquet"

    def _ledger(self, table: str) -> HandoffLedger:
        return HandoffLedger(self._storage, f"{self._folder}/ledger/{table}")


def purge_handoffs(storage: StudyStorage, study: str, tombstones: Tombstones) -> tuple[int, int]:
    """Take what is purged out of all that was handed over and is still there, and out of what is noted of it.

    Of all consumers, also those that the YAML does not name any more. Returns rows removed, and rows masked. What
    consumers have taken is out of reach.
    """
    removed = masked = 0
    for consumer, places in places_of_all(storage).items():
        folder = consumer_folder(consumer)
        with storage.alone(folder):
            for place in places:
                of_place = place.open(storage, study, consumer).purge(tombstones)
                removed, masked = removed + of_place[0], masked + of_place[1]
            for key in storage.keys(f"{folder}/staged"):
                of_batch = purge_batch(storage, StagedBatch.of_key(key), tombstones)
                removed, masked = removed + of_batch[0], masked + of_batch[1]
            for table in storage.folders(f"{folder}/ledger"):
                removed += HandoffLedger(storage, f"{folder}/ledger/{table}").purge(tombstones)
    return removed, masked
