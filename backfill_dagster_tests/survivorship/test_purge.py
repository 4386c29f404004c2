"""What was taken of packs is purged with them, down to the names of folders."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from backfill_dagster.purge.tombstones import bury
from backfill_dagster.storage import StudyStorage
from backfill_dagster.survivorship.inventory import KIND
from backfill_dagster.survivorship.purge import purge_observations
from backfill_dagster.survivorship.stored import FOLDER, of_pack

PURGED, OTHER = "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "did:plc:z72i7hdynmk6r22z27h6tvur"


def test_the_folder_of_a_server_for_one_person_goes_with_the_person(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    hosts = {"ann.example.co": PURGED, "pds.example.com": OTHER}
    for host, did in hosts.items():
        storage.write(of_pack(KIND, host, "0" * 20), pl.DataFrame({"did": [did]}))
    purge_observations(storage, bury(storage, [PURGED], [], datetime(2026, 5, 1, tzinfo=UTC)))
    assert storage.folders(f"{FOLDER}/{KIND}") == ["pds=pds.example.com"]
    assert not [path for path in tmp_path.rglob("*") if "ann.example.co" in path.name]


def test_a_study_that_has_seen_nothing_can_be_purged(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    tombstones = bury(storage, [PURGED], [], datetime(2026, 5, 1, tzinfo=UTC))
    assert purge_observations(storage, tombstones) == {"record_changes": 0, "account_history": 0}
