import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.network.leases import HostLease, LocalHostLeases, hold_host
from backfill_dagster.network.limits import HostGate

HOST = "pds.test:8080"


def gate(host: str = HOST, *, rate: float = 0.001, burst: float = 10) -> HostGate:
    return HostGate(host, rate=rate, burst=burst, in_flight=100)


def leases(folder: Path, holder: str = "study a") -> LocalHostLeases:
    return LocalHostLeases(folder / ".leases", holder)


async def ask(subject: HostGate, times: int) -> None:
    for _ in range(times):
        async with subject.request():
            pass


async def taken(subject: LocalHostLeases, by: HostGate) -> HostLease:
    lease = await subject.take(by)
    assert lease is not None
    return lease


def tokens(subject: HostGate) -> float:
    return round(subject.state().tokens, 1)


def in_another_process(folder: Path, body: str) -> subprocess.Popen[str]:
    """Start a process that holds the lease of HOST, with a gate of 10 tokens, and then runs `body`."""
    script = textwrap.dedent(
        f"""
        import asyncio, sys, time
        from pathlib import Path
        from backfill_dagster.network.leases import LocalHostLeases
        from backfill_dagster.network.limits import HostGate

        gate = HostGate({HOST!r}, rate=0.001, burst=10, in_flight=100)
        leases = LocalHostLeases(Path(sys.argv[1]) / ".leases", "study b")

        async def run():
            lease = await leases.take(gate)
            print("held" if lease else "busy", flush=True)
            BODY

        asyncio.run(run())
        """
    ).replace("BODY", textwrap.indent(textwrap.dedent(body).strip(), " " * 4).strip())
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_another_process_must_wait_and_is_told_for_whom(tmp_path: Path) -> None:
    subject = leases(tmp_path)

    async def work() -> None:
        with in_another_process(tmp_path, "sys.stdin.read()\nawait lease.release()") as other:
            assert await subject.take(gate()) is None
            assert await subject.holder(HOST) == f"study b (process {other.pid} on {os.uname().nodename})"
            assert await subject.take(gate("other.test")) is not None
            other.communicate()
        assert other.returncode == 0
        assert await subject.take(gate()) is not None

    run(work())


def test_a_killed_holder_frees_its_lease_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        mine = gate()
        with in_another_process(tmp_path, "time.sleep(60)") as other:
            assert await leases(tmp_path).take(mine) is None
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            assert await leases(tmp_path).take(mine) is not None
        # Nobody knows how many requests it had sent last.
        assert tokens(mine) == 0

    run(work())


def test_a_pause_outlives_a_killed_holder(tmp_path: Path) -> None:
    async def work() -> None:
        body = "gate.observe(429, {'retry-after': '600'})\nprint('parked', flush=True)\ntime.sleep(60)"
        with in_another_process(tmp_path, body) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "parked\n"
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
        mine = gate()
        await taken(leases(tmp_path), mine)
        assert 580 < mine.parked_for() <= 600

    run(work())


def test_the_next_holder_goes_on_with_the_tokens_that_are_left(tmp_path: Path) -> None:
    async def work() -> None:
        first, second, third = gate(), gate(), gate()
        lease = await taken(leases(tmp_path), first)
        await ask(first, 7)
        await lease.release()
        lease = await taken(leases(tmp_path, "study b"), second)
        assert tokens(second) == 3
        await ask(second, 2)
        await lease.release()
        await taken(leases(tmp_path), third)
        assert tokens(third) == 1

    run(work())


def test_tokens_refill_between_two_holders(tmp_path: Path) -> None:
    async def work() -> None:
        first, second = gate(rate=1), gate(rate=1)
        lease = await taken(leases(tmp_path), first)
        await ask(first, 10)
        await lease.release()
        path = next((tmp_path / ".leases").iterdir())
        content = json.loads(path.read_bytes())
        path.write_text(json.dumps({**content, "at": content["at"] - 4}))
        await taken(leases(tmp_path), second)
        assert 4 <= second.state().tokens < 9

    run(work())


def test_one_who_had_it_before_forgets_nothing_of_its_own(tmp_path: Path) -> None:
    async def work() -> None:
        subject, mine = leases(tmp_path), gate()
        await (await taken(subject, mine)).release()
        await ask(mine, 6)
        mine.observe(429, {"retry-after": "60"})
        await taken(subject, mine)
        assert tokens(mine) == 4
        assert mine.parked_for() > 55

    run(work())


def test_those_who_share_a_gate_share_its_lease(tmp_path: Path) -> None:
    async def work() -> None:
        shared, other = gate(), gate()
        first = await taken(leases(tmp_path), shared)
        second = await taken(leases(tmp_path, "study b"), shared)
        assert await leases(tmp_path).take(other) is None
        await first.release()
        assert await leases(tmp_path).take(other) is None
        await second.release()
        assert await leases(tmp_path).take(other) is not None

    run(work())


@pytest.mark.parametrize("content", ["", "x", "[]", '{"tokens": 1}', "\0" * 1024, '{"at": NaN}', "[" * 5000])
def test_a_damaged_file_is_no_licence_for_a_burst(tmp_path: Path, content: str) -> None:
    async def work() -> None:
        subject, mine = leases(tmp_path), gate()
        await (await taken(subject, mine)).release()
        path = next((tmp_path / ".leases").iterdir())
        path.write_text(content)
        fresh = gate()
        await taken(subject, fresh)
        # An empty file is one that was made just before its maker died, without a request.
        assert tokens(fresh) == (0 if content else 10)

    run(work())


@pytest.mark.parametrize("host", ["..", "../../x", "/etc/passwd", "a/b", "x" * 300, "a:1", "\N{SNOWMAN}"])
def test_no_host_is_a_path(tmp_path: Path, host: str) -> None:
    async def work() -> None:
        await (await taken(leases(tmp_path / "storage"), gate(host))).release()

    run(work())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in files] == [tmp_path / "storage" / ".leases"]


def test_who_waits_lays_down_what_others_need_and_goes_on_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    laid_down = 0

    async def lay_down(seconds: Callable[[], float]) -> None:
        nonlocal laid_down
        laid_down += 1
        await asyncio.sleep(seconds())

    async def work() -> None:
        lease = await taken(leases(tmp_path), gate())

        async def wait() -> bool:
            turn = hold_host(leases(tmp_path, "study b"), gate(), wait=lay_down)
            async with turn as held:
                return held

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await lease.release()
        assert await waiting
        assert await leases(tmp_path).take(gate()) is not None

    run(work())
    assert laid_down >= 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{HOST}: waiting until study a (process {os.getpid()} on {os.uname().nodename}) has done with it"
    ]


def test_who_gives_up_is_told_that_it_has_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        await taken(leases(tmp_path), gate())
        async with hold_host(leases(tmp_path), gate(), give_up=lambda: True) as held:
            assert not held

    run(work())


def test_a_forked_process_neither_keeps_nor_ends_the_lease_of_its_parent(tmp_path: Path) -> None:
    mine, subject = gate(), leases(tmp_path)
    lease = asyncio.run(taken(subject, mine))
    begun, tell = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(tell, b"!")
        while True:
            signal.pause()
    try:
        os.read(begun, 1)
        assert is_locked(tmp_path)
        asyncio.run(release(lease))
        assert not is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun)
        os.close(tell)


async def release(lease: HostLease) -> None:
    await lease.release()


def is_locked(folder: Path) -> bool:
    with next((folder / ".leases").iterdir()).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
