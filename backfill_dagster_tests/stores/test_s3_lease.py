import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backfill_dagster.stores import s3_lease
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.run_lock import run_lock
from backfill_dagster.stores.s3 import s3_client
from backfill_dagster.stores.s3_lease import LeaseState, S3Lease
from backfill_dagster_tests.dids.sources.s3_server import BUCKET


@pytest.fixture
def lease(s3: Any) -> S3Lease:
    place = S3Folder(BUCKET, uuid.uuid4().hex)
    return S3Lease(s3_client(place), BUCKET, place.prefix)


def test_one_has_it_and_hands_on_what_it_noted(lease: S3Lease) -> None:
    held = lease.take("first")
    assert held is not None
    assert held.found == LeaseState()
    assert lease.take("second") is None
    assert lease.take("second", alone=False) is None
    assert lease.read().last == "first"
    held.note({"tokens": 1})
    held.release({"tokens": 2})
    again = lease.take("second")
    assert again is not None
    assert (again.found.note, again.found.was_handed_on) == ({"tokens": 2}, True)
    again.release()


def test_many_share_it_and_keep_out_who_wants_it_alone(lease: S3Lease) -> None:
    shared = [lease.take(f"stage {number}", alone=False) for number in range(3)]
    assert None not in shared
    for held in shared:
        assert lease.take("alone") is None
        assert held is not None
        held.release()
    assert lease.read().holders == ()
    alone = lease.take("alone")
    assert alone is not None
    alone.release()


def test_of_many_at_once_one_gets_it(lease: S3Lease) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda number: lease.take(str(number)), range(8)))
    [held] = [one for one in taken if one is not None]
    held.release()


def test_many_who_share_it_at_once_all_get_it(lease: S3Lease) -> None:
    with ThreadPoolExecutor(6) as threads:
        taken = list(threads.map(lambda number: lease.take(str(number), alone=False), range(6)))
        assert len(lease.read().holders) == 6
        list(threads.map(lambda one: one and one.release(), taken))
    assert lease.read().holders == ()


def test_it_is_kept_while_its_holder_lives_and_runs_out_when_it_dies(
    lease: S3Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server tells time in whole seconds.
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.5)
    held = lease.take("first")
    assert held is not None
    held.note({"parked_until": 7})
    time.sleep(4.5)
    assert lease.take("second") is None
    held._ended.set()  # as if its process had died
    deadline = time.monotonic() + 10
    while (second := lease.take("second")) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert second is not None
    # Nothing was handed on, but what was noted is known.
    assert (second.found.note, second.found.was_handed_on) == ({"parked_until": 7}, False)
    # The first one has come back to life, finds that it has lost it, and takes nothing away.
    held.note({"parked_until": 8})
    held.release({"parked_until": 9})
    assert held.is_lost
    assert lease.take("third") is None
    assert lease.read().note == {"parked_until": 7}
    second.release()


def test_who_was_held_up_goes_on_if_nobody_has_taken_over(
    lease: S3Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 1.0)
    held = lease.take("first")
    assert held is not None
    time.sleep(2.2)
    assert lease.read().holders == ()
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 60.0)
    held._change(held._renewed)
    assert not held.is_lost
    assert lease.take("second") is None
    held.release()


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b'{"holders": [[1]]}', b"\xff", b"[" * 100_000])
def test_what_is_no_lease_is_taken_over_with_care(lease: S3Lease, s3: Any, content: bytes) -> None:
    s3.put_object(Bucket=BUCKET, Key=lease._name, Body=content)
    held = lease.take("first")
    assert held is not None
    assert not held.found.was_handed_on
    held.release()


def test_a_study_in_s3_has_a_lock(s3: Any) -> None:
    lock = run_lock(S3Folder(BUCKET, uuid.uuid4().hex))
    assert not lock.is_held()
    alone = lock.take("run 1", alone=True)
    assert alone is not None
    assert lock.is_held()
    assert lock.signature() == "run 1"
    assert lock.take("run 2", alone=False) is None
    alone.release()
    shared = [lock.take(f"run {number}", alone=False) for number in (2, 3)]
    assert lock.signature() == ""
    assert lock.take("run 4", alone=True) is None
    for held in shared:
        assert held is not None
        held.release()
    assert not lock.is_held()
