import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores import run_lock as run_lock_module
from backfill_dagster.stores import s3_lease
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.run_lock import run_lock
from backfill_dagster.stores.s3 import s3_client
from backfill_dagster.stores.s3_lease import HeldLease, Holder, LeaseState, S3Lease
from backfill_dagster_tests.dids.sources.s3_server import BUCKET, point_to_s3


@pytest.fixture(scope="module")
def s3(s3_url: str) -> Iterator[Any]:
    """A client; to make one takes longer than many of these tests."""
    with pytest.MonkeyPatch.context() as environment:
        yield point_to_s3(environment, s3_url)


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


def test_a_retry_waits_for_what_its_dead_run_holds_still_and_for_nobody_else(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = run_lock(S3Folder(BUCKET, uuid.uuid4().hex))
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(run_lock_module, "_LOOK_AGAIN_SECONDS", 0.2)
    dead = lock.take("run 1 (process 7)", alone=True)
    assert isinstance(dead, HeldLease)
    # What renews it is gone.
    dead._ended.set()
    assert lock.take("run 3 (process 9)", alone=True, dead="run 2 (process ") is None
    retry = lock.take("run 2 (process 8)", alone=True, dead="run 1 (process ")
    assert retry is not None
    assert lock.signature() == "run 2 (process 8)"
    retry.release()
    dead.release()


class _Client:
    """The client of a server at which something else happens before, or instead of, a put."""

    def __init__(self, lease: S3Lease, put: Callable[..., Any]) -> None:
        self._client = lease._client
        self._put = put
        self.meta = SimpleNamespace(endpoint_url=uuid.uuid4().hex)

    def get_object(self, **parameters: Any) -> Any:
        return self._client.get_object(**parameters)

    def put_object(self, **parameters: Any) -> Any:
        return self._put(self._client, **parameters)


def through(lease: S3Lease, put: Callable[..., Any]) -> S3Lease:
    return S3Lease(_Client(lease, put), lease._bucket, lease._name)


def test_who_has_put_it_has_it_though_the_answer_was_lost(lease: S3Lease) -> None:
    puts = []

    def lose_first_answer(client: Any, **parameters: Any) -> Any:
        answer = client.put_object(**parameters)
        puts.append(parameters)
        if len(puts) == 1:
            # As the client's second try is answered.
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
        return answer

    held = through(lease, lose_first_answer).take("first")
    assert held is not None
    assert held.found == LeaseState()
    assert len(lease.read().holders) == 1
    held.release()


def test_a_server_that_does_not_heed_conditions_is_refused(lease: S3Lease) -> None:
    def heed_none(client: Any, **parameters: Any) -> Any:
        parameters.pop("IfMatch", None)
        parameters.pop("IfNoneMatch", None)
        return client.put_object(**parameters)

    with pytest.raises(StorageError, match=r"does not heed conditional puts .*use a server that does"):
        through(lease, heed_none).take("first")


def test_one_that_is_deleted_meanwhile_is_taken_all_the_same(lease: S3Lease, s3: Any) -> None:
    first = lease.take("first")
    assert first is not None
    first.release()
    deleted: list[Any] = []

    def delete_first(client: Any, **parameters: Any) -> Any:
        if not deleted:
            deleted.append(s3.delete_object(Bucket=BUCKET, Key=lease._name))
        return client.put_object(**parameters)

    held = through(lease, delete_first).take("second")
    assert held is not None
    held.release()


class _Told:
    def __init__(self) -> None:
        self.told: list[str] = []

    def doubted(self, held: HeldLease) -> None:
        self.told.append("doubted")

    def confirmed(self, held: HeldLease) -> None:
        self.told.append("confirmed")

    def lost(self, held: HeldLease) -> None:
        self.told.append("lost")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how many seconds the clock of this process is ahead; leases are renewed all the time."""
    ahead = [0.0]
    clock = s3_lease._clock
    monkeypatch.setattr(s3_lease, "_clock", lambda: clock() + ahead[0])
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.1)
    return ahead


def test_who_cannot_renew_it_doubts_that_it_is_held_until_it_is_confirmed(
    lease: S3Lease, later: list[float]
) -> None:
    is_cut_off = False

    def put(client: Any, **parameters: Any) -> Any:
        if is_cut_off:
            raise EndpointConnectionError(endpoint_url="s3")
        return client.put_object(**parameters)

    told = _Told()
    held = through(lease, put).take("first", watcher=told)
    assert held is not None
    assert held.holds()
    is_cut_off = True
    later[0] += 0.95 * s3_lease.LEASE_SECONDS
    wait_for(lambda: told.told == ["doubted"])
    assert not held.holds()
    is_cut_off = False
    wait_for(lambda: told.told == ["doubted", "confirmed"])
    assert held.holds()
    held.release()


def take_over(lease: S3Lease) -> None:
    other = Holder("other", "another run", is_alone=True, expires=time.time() + 60)
    assert lease.change(lambda state, _: LeaseState((other,), "another run", was_handed_on=False)) is not None


def test_who_has_lost_it_is_told_and_writes_nothing_more(s3: Any, later: list[float]) -> None:
    place = S3Folder(BUCKET, uuid.uuid4().hex)
    storage = StudyStorage(place)
    with storage.alone("ledger"):
        storage.write_bytes("ledger/a", b"a")
        take_over(S3Lease(s3_client(place), BUCKET, f"{place.prefix}/.locks/ledger.lease"))
        later[0] += s3_lease.LEASE_SECONDS
        for write in (lambda: storage.write_bytes("ledger/a", b"b"), lambda: storage.remove("ledger/a")):
            with pytest.raises(StorageError, match=r"ledger\.lease was lost.*run the same again"):
                write()
    assert storage.read_bytes("ledger/a") == b"a"
    storage.write_bytes("ledger/a", b"b")


def test_a_run_that_has_lost_its_study_is_interrupted(s3: Any) -> None:
    place = S3Folder(BUCKET, uuid.uuid4().hex)
    script = f"""
import time
from backfill_dagster.stores import s3_lease
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.run_lock import run_lock
s3_lease.RENEW_SECONDS = 0.1
held = run_lock({place!r}).take("run", alone=True)
print("held", flush=True)
try:
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "held\n"
        take_over(S3Lease(s3_client(place), BUCKET, f"{place.prefix}/.lock"))
        assert run.stdout.readline() == "interrupted\n"


def test_letting_go_of_what_was_deleted_is_no_loss(
    lease: S3Lease, s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    held = lease.take("a run")
    assert held is not None
    s3.delete_object(Bucket=BUCKET, Key=lease._name)
    held.release()
    assert "was lost" not in caplog.text
