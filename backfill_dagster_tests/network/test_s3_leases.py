"""The leases of hosts in S3: as those on a disk, but that a dead holder's runs out instead of being gone at once."""

import asyncio
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from backfill_dagster.network import limits, s3_leases
from backfill_dagster.network.leases import HostLease, hold_host
from backfill_dagster.network.limits import HostGate
from backfill_dagster.network.s3_leases import S3HostLeases
from backfill_dagster.stores import s3_lease
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.s3_lease import Holder, LeaseState
from backfill_dagster_tests.dids.sources.s3_server import BUCKET

HOST = "pds.test:8080"


@pytest.fixture
def folder(s3: Any) -> S3Folder:
    return S3Folder(BUCKET, uuid.uuid4().hex) / ".leases"


def gate(host: str = HOST) -> HostGate:
    return HostGate(host, rate=0.001, burst=10, in_flight=100)


def tokens(subject: HostGate) -> float:
    return round(subject.state().tokens, 1)


async def ask(subject: HostGate, times: int) -> None:
    for _ in range(times):
        async with subject.request():
            pass


async def taken(folder: S3Folder, by: HostGate, holder: str = "study a") -> HostLease:
    lease = await S3HostLeases(folder, holder).take(by)
    assert lease is not None
    return lease


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def in_another_process(folder: S3Folder, body: str, lease_seconds: float = 60) -> subprocess.Popen[str]:
    """Start a process that holds the lease of HOST, with a gate of 10 tokens, and then runs `body`."""
    script = textwrap.dedent(
        f"""
        import asyncio, sys, time
        from backfill_dagster.network.limits import HostGate
        from backfill_dagster.network.s3_leases import S3HostLeases
        from backfill_dagster.stores import s3_lease
        from backfill_dagster.stores.location import S3Folder

        s3_lease.LEASE_SECONDS = {lease_seconds}
        gate = HostGate({HOST!r}, rate=0.001, burst=10, in_flight=100)
        leases = S3HostLeases({folder!r}, "study b")

        async def run():
            lease = await leases.take(gate)
            print("held" if lease else "busy", flush=True)
            BODY

        asyncio.run(run())
        """
    ).replace("BODY", textwrap.indent(textwrap.dedent(body).strip(), " " * 4).strip())
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_must_wait_and_is_told_for_whom(folder: S3Folder) -> None:
    async def work() -> None:
        with in_another_process(folder, "sys.stdin.read()\nawait lease.release()") as other:
            assert await S3HostLeases(folder, "study a").take(gate()) is None
            told = await S3HostLeases(folder, "study a").holder(HOST)
            assert told.startswith(f"study b (process {other.pid} on ")
            elsewhere = await taken(folder, gate("other.test"))
            await elsewhere.release()
            other.communicate()
        assert other.returncode == 0
        await (await taken(folder, gate())).release()

    run(work())


def test_a_killed_holder_s_lease_runs_out_and_its_pause_does_not(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        body = "gate.observe(429, {'retry-after': '600'})\nsys.stdin.readline()\ntime.sleep(60)"
        with in_another_process(folder, body, lease_seconds=3) as other:
            # Until the pause is written down, beside its event loop.
            await asyncio.sleep(0.5)
            other.kill()
            other.wait()
        mine = gate()
        leases = S3HostLeases(folder, "study a")
        assert await leases.take(mine) is None
        async with hold_host(leases, mine) as held:
            assert held
            assert 580 < mine.parked_for() <= 600
            # Nobody knows how many requests it had sent last.
            assert tokens(mine) == 0

    run(work())


def test_the_next_holder_goes_on_with_the_tokens_that_are_left(folder: S3Folder) -> None:
    async def work() -> None:
        first, second = gate(), gate()
        lease = await taken(folder, first)
        await ask(first, 7)
        await lease.release()
        lease = await taken(folder, second, "study b")
        assert tokens(second) == 3
        await lease.release()

    run(work())


def test_those_who_share_a_gate_share_its_lease_and_others_do_not(folder: S3Folder) -> None:
    async def work() -> None:
        shared, other = gate(), gate()
        first, second = await taken(folder, shared), await taken(folder, shared)
        leases = S3HostLeases(folder, "study a")
        assert await leases.take(other) is None
        await first.release()
        assert await leases.take(other) is None
        await second.release()
        await (await taken(folder, other)).release()

    run(work())


def test_of_many_at_once_one_gets_it(folder: S3Folder) -> None:
    async def work() -> None:
        leases = [S3HostLeases(folder, f"study {number}") for number in range(6)]
        got = await asyncio.gather(*(one.take(gate()) for one in leases))
        [held] = [one for one in got if one is not None]
        await held.release()

    run(work())


def test_a_host_s_name_is_a_name(folder: S3Folder, s3: Any) -> None:
    async def work() -> None:
        for host in ("..", "a/b", "%2e", "ö:1", "x" * 300):
            await (await taken(folder, gate(host))).release()

    run(work())
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=folder.prefix)["Contents"]
    assert all(item["Key"].count("/") == folder.prefix.count("/") + 1 for item in listed)


def test_a_lease_is_renewed(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.4)

    async def work() -> None:
        lease = await taken(folder, gate())
        await asyncio.sleep(3.5)
        assert await S3HostLeases(folder, "study b").take(gate()) is None
        await lease.release()

    run(work())


def test_who_has_lost_the_lease_asks_nothing_until_it_is_free_again(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr("backfill_dagster.network.s3_leases._POLL_SECONDS", 0.1)

    async def work() -> None:
        own = gate()
        held = await taken(folder, own)
        await ask(own, 2)
        # As if this process had stood still for longer than the lease lasts.
        lease = S3HostLeases(folder, "study b")._lease(HOST)
        other = Holder("other", "study b", is_alone=True, expires=time.time() + 60)
        assert lease.change(lambda state, _: LeaseState((other,), "study b", was_handed_on=False))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(own, 1), 0.5)
        assert own.requests == 2
        note = {"at": time.time(), "tokens": 3, "parked_until": None}
        assert lease.change(lambda state, _: LeaseState((), "study b", note))
        await asyncio.wait_for(ask(own, 1), 10)
        assert tokens(own) == 2
        await held.release()
        # It was held again, and handed on.
        await (await taken(folder, after := gate(), "study d")).release()
        assert tokens(after) == 2

    run(work())


def test_a_pause_ends_when_it_does_on_machines_whose_clocks_differ(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = SimpleNamespace(time=lambda: time.time() - 600, sleep=time.sleep)

    async def work() -> None:
        with monkeypatch.context() as machine:
            for module in (limits, s3_leases, s3_lease):
                machine.setattr(module, "time", late)
            machine.setattr(s3_lease, "_clock", time.monotonic)
            slow = gate()
            lease = await taken(folder, slow)
            slow.observe(429, {"retry-after": "300"})
            await lease.release()
        right = gate()
        await (await taken(folder, right)).release()
        assert 290 < right.parked_for() <= 303

    run(work())
