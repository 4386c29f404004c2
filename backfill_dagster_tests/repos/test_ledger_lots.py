from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.repos import ledger_lots
from backfill_dagster.repos.ledger_lots import account_ranges, ledger_by_range
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.repos.packs import Attempt, PackWriter, read_ledger
from backfill_dagster.storage import StudyStorage

WHEN = datetime(2026, 5, 1, tzinfo=UTC)
DIDS = [f"did:plc:{first}{second}" for first in "27glqz" for second in "2kz"] + ["did:web:a.test"]


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    """Return a study with several attempts on each account, in packs of several hosts."""
    storage = StudyStorage(tmp_path)
    for number in range(3):
        with storage.scratch() as scratch:
            writer = PackWriter(storage, f"pds{number}.test", scratch)
            for did in DIDS[number:]:
                attempt = Attempt(did, "http://pds.test", Outcome.DEACTIVATED, WHEN - timedelta(days=number))
                writer.add_attempt(replace(attempt, outcome=Outcome.FAILED, reason=FailureReason.TRUNCATED))
            writer.commit()
    return storage


@pytest.mark.parametrize("ranges", [1, 2, 16])
def test_the_ledger_by_ranges_is_the_ledger(storage: StudyStorage, ranges: int) -> None:
    cut = did_ranges(ranges, 1)
    assert len(cut) == ranges
    with ledger_by_range(storage, cut) as ledger:
        parts = [ledger(dids) for dids in cut]
        again = ledger(cut[0])
    assert pl.concat(parts).equals(read_ledger(storage))
    assert again.equals(parts[0])
    for dids, part in zip(cut, parts, strict=True):
        assert part.filter(~dids.holds("did")).is_empty()


def test_nothing_is_left_in_scratch(storage: StudyStorage) -> None:
    with ledger_by_range(storage, did_ranges(2, 1)) as ledger:
        ledger(did_ranges(2, 1)[0])
    assert not list(storage.scratch_parent.iterdir())


def test_ranges_are_as_many_as_accounts_need_and_no_more_than_are_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(account_ranges(0)) == 1
    assert len(account_ranges(10_000)) == 1
    assert len(account_ranges(400_000)) == 64
    assert len(account_ranges(40_000_000)) == 256
    monkeypatch.setattr(ledger_lots, "ACCOUNTS_AT_ONCE", 10)
    assert len(account_ranges(40)) == 4
