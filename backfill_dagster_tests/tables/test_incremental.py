"""Whatever happens between builds, tables that are brought up to date equal those that are built from nothing."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.window_index import index_key
from backfill_dagster.records.windows import GRANULARITIES, UNDATED
from backfill_dagster.storage import StoredFile, StudyStorage
from backfill_dagster.tables.build import WindowedTable, remove_other_tables
from backfill_dagster.tables.contents import TableContents
from backfill_dagster.tables.ledger import ledger_key
from backfill_dagster_tests.tables.converted import TABLE, Record, write_pack

BEGIN = datetime(2024, 9, 30, tzinfo=UTC)
DAYS = 45
WINDOWS = {
    "monthly": ["2024-09", "2024-10", "2024-11"],
    "weekly": [f"{BEGIN + timedelta(weeks=week):%Y-%m-%d}" for week in range(7)],
    "daily": [f"{BEGIN + timedelta(days=day):%Y-%m-%d}" for day in range(DAYS)],
}
# Less than one converted file, so that windows have several parts and get more as they grow.
PART_BYTES = 3_000

accounts = st.integers(0, 7).map(lambda number: f"did:plc:{number}")
# The day of each record; some have none, and most accounts stay within few windows.
days = st.lists(st.none() | st.integers(0, DAYS - 1), max_size=6)


class KilledError(Exception):
    """Stands for the end of a process."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """End whatever writes or deletes for the n-th time, right after it has done so."""
    publish, remove = StudyStorage.publish, StudyStorage.remove
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    def publishing(self: StudyStorage, local: Path, key: str, *, rows: int) -> StoredFile:
        stored = publish(self, local, key, rows=rows)
        count()
        return stored

    def removing(self: StudyStorage, key: str) -> None:
        remove(self, key)
        count()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudyStorage, "publish", publishing)
        patch.setattr(StudyStorage, "remove", removing)
        yield


def contents(root: Path) -> dict[str, bytes | None]:
    """Return every file and folder that users read, and the files' bytes."""
    found = [path for folder in ("tables", "undated") for path in (root / folder).rglob("*")]
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(found)
    }


class Study(RuleBasedStateMachine):
    """One table, whose packs, settings, windows and files change between builds."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.storage = StudyStorage(self.root / "study")
        self.partitions = "monthly"
        self.fingerprint = "one"
        self.packs: dict[str, list[list[Record]]] = {}
        self.snapshots: dict[str, str] = {}
        self.hidden: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # --- what is stored ---

    @rule(repos=st.lists(st.dictionaries(accounts, days, min_size=1, max_size=3), min_size=1, max_size=2))
    def fetch(self, repos: list[dict[str, list[int | None]]]) -> None:
        """Store the newest snapshots of some accounts, new or known, in one pack of one or two files."""
        pack = f"{len(self.packs):020x}"
        # An account that stands in both files has other records in each.
        self.packs[pack] = [
            [
                record(did, f"{file}-{number}", day, hour=number)
                for did, found in part.items()
                for number, day in enumerate(found)
            ]
            for file, part in enumerate(repos)
        ]
        self.snapshots |= {did: pack for part in repos for did in part}
        self.convert(pack)

    @precondition(lambda self: self.packs)
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        """Write a pack anew, under another name, without one of its accounts."""
        pack = data.draw(st.sampled_from(sorted(self.packs)))
        held = {record[0] for part in self.packs[pack] for record in part}
        gone = data.draw(st.sampled_from(sorted(held))) if held else None
        files = [[record for record in part if record[0] != gone] for part in self.packs.pop(pack)]
        for number in range(len(files)):
            self.storage.remove(records_key("host", TABLE, pack, number))
        self.storage.remove(index_key("host", pack))
        new = f"{pack[:10]}{int(pack[10:], 16) + 2**20:010x}"
        self.packs[new] = files
        self.snapshots = {
            did: new if of == pack else of for did, of in self.snapshots.items() if (did, of) != (gone, pack)
        }
        self.convert(new)

    @rule(did=accounts)
    def hide_or_show(self, did: str) -> None:
        self.hidden ^= {did}

    @rule(fingerprint=st.sampled_from(["one", "two"]))
    def change_settings(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        for pack in self.packs:
            self.convert(pack)

    @rule(partitions=st.sampled_from(["monthly", "weekly", "daily"]))
    def change_partitions(self, partitions: str) -> None:
        self.partitions = partitions
        for pack in self.packs:
            self.convert(pack)

    def convert(self, pack: str) -> None:
        write_pack(
            self.storage,
            "host",
            pack,
            *self.packs[pack],
            granularity=GRANULARITIES[self.partitions],
            # As the real one, it stands for all settings.
            fingerprint=f"{self.fingerprint} {self.partitions}",
        )

    # --- what happens to the tables' files ---

    @rule(data=st.data(), harm=st.sampled_from(["delete", "cut", "add", "forget", "tear"]))
    def harm(self, data: st.DataObject, harm: str) -> None:
        """Do to a file of finished tables, or to their ledger, what people and disks do."""
        self.build()
        ledger = self.storage.path(ledger_key(TABLE))
        files = sorted([*self.storage.keys("tables"), *self.storage.keys("undated")])
        if harm == "forget":
            ledger.unlink(missing_ok=True)
        elif harm == "tear":
            ledger.write_bytes(ledger.read_bytes()[:-30])
        else:
            path = self.storage.path(data.draw(st.sampled_from(files)))
            if harm == "delete":
                path.unlink()
            elif harm == "cut":
                path.write_bytes(path.read_bytes()[:-1])
            elif harm == "add":
                shutil.copy(path, path.with_name("part-00077.parquet"))

    # --- builds ---

    @rule(data=st.data())
    def build_some(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from([*WINDOWS[self.partitions], UNDATED]), unique=True))
        reports = self.table().build(chosen)
        assert [report.partition for report in reports] == chosen
        assert self.table().stale(chosen) == []

    @rule(step=st.integers(0, 12))
    def build_and_be_killed(self, step: int) -> None:
        with suppress(KilledError), killed_at(step):
            self.build()

    @rule()
    def build(self) -> None:
        self.table().build([*WINDOWS[self.partitions], UNDATED])
        remove_other_tables(self.storage, [TABLE])

    @invariant()
    def tables_brought_up_to_date_equal_those_built_from_nothing(self) -> None:
        copies = [self.root / name for name in ("incremental", "again", "fresh")]
        for copy in copies:
            if self.storage.folder.exists():
                shutil.copytree(self.storage.folder, copy)
        for folder in ("tables", "undated", "built"):
            shutil.rmtree(copies[2] / folder, ignore_errors=True)
        windows = [*WINDOWS[self.partitions], UNDATED]
        found = []
        for copy in copies:
            storage = StudyStorage(copy)
            reports = self.table(storage).build(windows, again=copy.name == "again")
            remove_other_tables(storage, [TABLE])
            told = [(report.partition, report.rows, report.bytes, report.parts) for report in reports]
            found.append((contents(copy), told))
            assert self.table(storage).stale(windows) == []
        assert found[0] == found[1] == found[2]
        self.check_rows(copies[0])
        for copy in copies:
            shutil.rmtree(copy)

    def check_rows(self, root: Path) -> None:
        """Hold the rows of the tables against the records of the snapshots."""
        stored = [pl.read_parquet(path, hive_partitioning=False)["uri"] for path in root.rglob("part-*")]
        expected = [
            f"at://{did}/c/{rkey}"
            for pack, files in self.packs.items()
            for part in files
            for did, rkey, *_ in part
            if self.snapshots.get(did) == pack and did not in self.hidden
        ]
        assert sorted(pl.concat(stored)) == sorted(expected)

    def table(self, storage: StudyStorage | None = None) -> WindowedTable:
        shown = {did: pack for did, pack in self.snapshots.items() if did not in self.hidden}
        frame = pl.DataFrame(
            {"did": list(shown), "pds_host": ["host"] * len(shown), "pack": list(shown.values())},
            schema=dict.fromkeys(("did", "pds_host", "pack"), pl.String),
        )
        return WindowedTable(
            storage or self.storage,
            TABLE,
            GRANULARITIES[self.partitions],
            WINDOWS[self.partitions],
            TableContents(storage or self.storage, frame, [TABLE], PART_BYTES),
        )


def record(did: str, rkey: str, day: int | None, hour: int) -> Record:
    if day is None:
        return did, rkey, None, "missing"
    return did, rkey, BEGIN + timedelta(days=day, hours=hour), "consistent"


TestStudy: Any = Study.TestCase
TestStudy.settings = settings(
    max_examples=8, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("step", range(14))
def test_settings_that_come_back_after_a_build_was_killed(step: int) -> None:
    study = Study()
    study.fetch([{"did:plc:1": [1, 2, 12], "did:plc:2": [1, None]}, {"did:plc:3": [1, 12]}])
    study.build()
    before = contents(study.storage.folder)
    study.change_settings("two")
    with suppress(KilledError), killed_at(step):
        study.build()
    study.change_settings("one")
    study.build()
    assert contents(study.storage.folder) == before
    study.tables_brought_up_to_date_equal_those_built_from_nothing()
    study.teardown()
