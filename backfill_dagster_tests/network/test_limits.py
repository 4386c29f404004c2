import asyncio
import gc
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.network.limits import (
    FIRST_PARK,
    MAX_PARK,
    MIN_PARK,
    HostGate,
    HostGates,
    HostParkedError,
    TokenBucket,
)

NOW = 1_795_303_128.0  # the unix second of an answer


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def gate(
    *, rate: float = 1000, burst: float = 1000, in_flight: int = 4, clock: Clock | None = None
) -> HostGate:
    return HostGate("pds.test", rate=rate, burst=burst, in_flight=in_flight, clock=clock or time.monotonic)


# --- the bucket ---

rates = st.floats(0.01, 1000)
bursts = st.floats(1, 50)
waits = st.lists(st.floats(0, 5), max_size=200)


@settings(deadline=None)
@given(rates, bursts, waits)
def test_a_bucket_never_gives_more_than_its_bound_in_any_window(
    rate: float, burst: float, waits: list[float]
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    taken = []
    for wait in waits:
        clock.now += wait
        while bucket.take() == 0:
            taken.append(clock.now)
    for first, start in enumerate(taken):
        for count, end in enumerate(taken[first:], start=1):
            assert count <= burst + rate * (end - start) + 1e-6


@settings(deadline=None)
@given(rates, bursts, st.integers(1, 20), st.integers(2, 100))
def test_a_bucket_refills_the_same_however_often_it_is_asked(
    rate: float, burst: float, tokens: int, questions: int
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    taken = 0
    while bucket.take() == 0:
        taken += 1
    for _ in range(tokens * questions):
        clock.now += 1 / (rate * questions)
        taken += bucket.take() == 0
    # What time gave plus what was there, less a fraction of a token that is left.
    assert taken == pytest.approx(tokens + burst, abs=1.001)


@settings(deadline=None)
@given(rates, bursts)
def test_the_wait_that_a_bucket_names_is_just_long_enough(rate: float, burst: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    while bucket.take() == 0:
        pass
    wait = bucket.take()
    clock.now += wait * 0.99
    assert bucket.take() > 0
    clock.now += wait * 0.01 + 1e-9
    assert bucket.take() == 0


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 2, clock)
    assert [bucket.take(), bucket.take()] == [0, 0]
    clock.now -= 100
    assert bucket.take() > 0
    clock.now += 100
    assert bucket.take() == pytest.approx(1)


def test_a_slower_bucket_loses_what_no_longer_fits() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 10, clock)
    bucket.slow_down(1, 2)
    bucket.slow_down(5, 5)

    assert (bucket.rate, bucket.burst) == (1, 2)
    assert [bucket.take() for _ in range(3)] == [0, 0, pytest.approx(1)]


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (1, 0.5), (float("nan"), 1), (float("inf"), 1)]
)
def test_a_bucket_that_cannot_work_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="bucket"):
        TokenBucket(rate, burst)


# --- what headers ask for ---


def parked_for(status: int, headers: Mapping[str, str], *, times: int = 1, now: float = NOW) -> float:
    """Return the pause after the last of so many answers, each of which comes when the pause before is over."""
    clock = Clock()
    subject = gate(clock=clock)
    for _ in range(times):
        clock.now += subject.parked_for()
        subject.observe(status, headers, now)
    assert subject.parked_until == (None if subject.parked_for() == 0 else now + subject.parked_for())
    return subject.parked_for()


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (200, {}, 0),
        (429, {"retry-after": "3"}, 3),
        (429, {"retry-after": "2.5"}, 2.5),
        (429, {"retry-after": "0"}, MIN_PARK),
        (429, {"retry-after": "999999"}, MAX_PARK),
        (429, {"retry-after": format_datetime(datetime.fromtimestamp(NOW + 30, UTC), usegmt=True)}, 30),
        (429, {"retry-after": format_datetime(datetime.fromtimestamp(NOW - 30, UTC), usegmt=True)}, MIN_PARK),
        (503, {"retry-after": "7"}, 7),
        (503, {}, 0),
        (500, {"retry-after": "7"}, 0),
        (200, {"retry-after": "7"}, 0),
        (404, {"retry-after": "7"}, 0),
        # The reset is an absolute second.
        (429, {"ratelimit-remaining": "0", "ratelimit-reset": str(int(NOW) + 42)}, 42),
        (429, {"ratelimit-reset": str(int(NOW) + 42)}, 42),
        (200, {"ratelimit-remaining": "0", "ratelimit-reset": str(int(NOW) + 42)}, 42),
        (400, {"ratelimit-remaining": "0", "ratelimit-reset": str(int(NOW) + 42)}, 42),
        (200, {"ratelimit-remaining": "1", "ratelimit-reset": str(int(NOW) + 42)}, 0),
        (200, {"ratelimit-reset": str(int(NOW) + 42)}, 0),
        (200, {"ratelimit-remaining": "0"}, 0),
        (200, {"ratelimit-remaining": "0", "ratelimit-reset": str(int(NOW) - 9)}, MIN_PARK),
        (200, {"ratelimit-remaining": "0", "ratelimit-reset": "99999999999999"}, MAX_PARK),
        # The IETF drafts have a span instead.
        (200, {"ratelimit-remaining": "0", "ratelimit-reset": "17"}, 17),
        # The longer of two wishes.
        (429, {"retry-after": "3", "ratelimit-remaining": "0", "ratelimit-reset": str(int(NOW) + 9)}, 9),
        # A server whose clock is wrong says so in its Date.
        (
            429,
            {
                "ratelimit-reset": str(int(NOW) + 642),
                "date": format_datetime(datetime.fromtimestamp(NOW + 600, UTC)),
            },
            42,
        ),
    ],
)
def test_a_host_is_left_alone_for_as_long_as_it_asks(
    status: int, headers: dict[str, str], seconds: float
) -> None:
    assert parked_for(status, headers) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "soon", "-5", "nan", "inf", "1e9", "٣", "9" * 5000, "0x10", "Sun, 99 Foo 2024", "3, 4"]
)
def test_a_429_that_makes_no_sense_is_one_without_headers(value: str) -> None:
    headers = {
        "retry-after": value,
        "ratelimit-remaining": value,
        "ratelimit-reset": value,
        "ratelimit-policy": value,
        "date": value,
    }

    assert parked_for(429, headers) == FIRST_PARK
    assert parked_for(200, headers) == 0


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "retry-after",
                "ratelimit-remaining",
                "ratelimit-reset",
                "ratelimit-limit",
                "ratelimit-policy",
                "date",
            ]
        ),
        st.text(max_size=30)
        | st.integers().map(str)
        | st.tuples(st.integers(), st.integers()).map("{0[0]};w={0[1]}".format),
    ),
    st.sampled_from([200, 400, 429, 500, 503]),
)
def test_no_header_breaks_a_gate(headers: dict[str, str], status: int) -> None:
    subject = gate()
    subject.observe(status, headers)

    pause = subject.parked_for()
    assert pause == 0 or MIN_PARK - 0.1 <= pause <= MAX_PARK
    assert 1 / MAX_PARK <= subject.rate <= 1000


def test_pauses_without_headers_double_up_to_a_bound() -> None:
    assert [parked_for(429, {}, times=n) for n in range(1, 10)] == [
        5,
        10,
        20,
        40,
        80,
        160,
        320,
        640,
        MAX_PARK,
    ]
    assert parked_for(429, {}, times=2000) == MAX_PARK


def test_a_pause_that_was_too_short_is_lengthened() -> None:
    """Some servers name a pause, and refuse again when it is over."""
    assert [parked_for(429, {"retry-after": "1"}, times=n) for n in range(1, 5)] == [1, 5, 10, 20]
    assert parked_for(429, {"retry-after": "60"}, times=3) == 60


def test_refusals_of_what_was_sent_before_the_pause_do_not_lengthen_it() -> None:
    subject = gate(clock=(clock := Clock()))
    for _ in range(4):
        subject.observe(429, {}, NOW)
        clock.now += 0.5

    assert subject.parked_for() == FIRST_PARK - 2
    assert subject.parks == 1


def test_a_success_ends_the_doubling_but_not_the_pause() -> None:
    subject = gate(clock=(clock := Clock()))
    subject.observe(429, {}, NOW)
    subject.observe(200, {}, NOW)  # sent before the pause
    assert subject.parked_for() == FIRST_PARK

    clock.now += FIRST_PARK
    subject.observe(429, {}, NOW)
    assert subject.parked_for() == 2 * FIRST_PARK

    clock.now += 2 * FIRST_PARK
    subject.observe(200, {}, NOW)
    subject.observe(429, {}, NOW)
    assert subject.parked_for() == FIRST_PARK
    assert subject.parks == 3


def test_what_remains_may_be_used_up_by_requests_under_way() -> None:
    async def run() -> tuple[float, float]:
        headers = {"ratelimit-remaining": "2", "ratelimit-reset": str(int(NOW) + 42)}
        alone, busy = gate(clock=Clock()), gate(clock=Clock())
        alone.observe(200, headers, NOW)
        async with busy.request(), busy.request():
            busy.observe(200, headers, NOW)
        return alone.parked_for(), busy.parked_for()

    assert asyncio.run(run()) == (0, 42)


@pytest.mark.parametrize(
    ("policy", "rate"),
    [
        ("3000;w=300", 0.9 * (3000 - 10) / 300),
        ("5;w=3", 0.9 * (5 - 1) / 3),
        ("1;w=60", 0.9 / 60),
        ('"default";q=100;w=60', 0.9 * (100 - 10) / 60),
        ("100000;w=1, 600;w=60", 0.9 * (600 - 10) / 60),
        ("1;w=999999999", 1 / MAX_PARK),
        ("6000;w=300", 15),
        ("", 15),
        ("0;w=300", 15),
        ("300;w=0", 15),
        ("300", 15),
        ("nonsense;w=x", 15),
    ],
)
def test_a_lower_limit_of_the_host_holds(policy: str, rate: float) -> None:
    subject = gate(rate=15, burst=10)
    subject.observe(200, {"ratelimit-limit": "3000", "ratelimit-policy": policy}, NOW)

    assert subject.rate == pytest.approx(rate)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 1000), st.floats(0.1, 1000), st.floats(1, 100))
def test_the_rate_fits_any_limit_that_is_stated(limit: int, window: int, rate: float, burst: float) -> None:
    clock = Clock()
    subject = gate(rate=rate, burst=burst, clock=clock)
    subject.observe(200, {"ratelimit-policy": f"{limit};w={window}"}, NOW)
    bucket = subject._bucket
    # As many as can be had from a full bucket within the host's window.
    assert int(bucket.burst + bucket.rate * window + 1e-9) <= max(limit, 1 + window / MAX_PARK)


def test_real_answers_of_official_servers_are_understood(shared_dir: Path) -> None:
    """Every answer in the recorded exchanges that has rate limit headers, with the Date at which it came."""
    exchanges = (shared_dir / "realpds" / "responses.md").read_text(encoding="utf-8")
    heads = re.findall(r"HTTP/1\.1 (\d+) .*\n((?:[A-Za-z-]+: .*\n)+)", exchanges)
    limited = 0
    for status, lines in heads:
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines.splitlines())
        }
        if "ratelimit-reset" not in headers:
            continue
        clock = Clock()
        subject = gate(rate=1000, burst=1, clock=clock)
        subject.observe(int(status), headers, float(headers["ratelimit-reset"]) - 2.5)
        limit, _, window = headers["ratelimit-policy"].partition(";w=")
        assert subject.rate == pytest.approx(0.9 * (int(limit) - 1) / int(window))
        if status == "429":
            limited += 1
            # The two ways in which they say it differ by a fraction of a second.
            assert subject.parked_for() >= int(headers.get("retry-after", "2")) - 1
        else:
            assert (subject.parked_for() > 0) == (headers["ratelimit-remaining"] == "0")
    assert limited >= 4


# --- the gate at work ---


def test_requests_keep_the_rate_and_come_in_turn() -> None:
    subject = gate(rate=100, burst=1, in_flight=50)
    order: list[int] = []
    times: list[float] = []

    async def ask(number: int) -> None:
        async with subject.request():
            order.append(number)
            times.append(time.monotonic())
            await asyncio.sleep(0.05)

    async def run() -> None:
        await asyncio.gather(*(ask(number) for number in range(30)))

    begun = time.monotonic()
    asyncio.run(run())

    assert order == list(range(30))
    assert subject.requests == 30
    # A busy machine may be late, but never early.
    assert all(moment - begun >= number / 100 - 0.01 for number, moment in enumerate(times))


def test_no_more_requests_are_under_way_than_allowed() -> None:
    subject = gate(in_flight=3)
    under_way = peak = 0

    async def ask() -> None:
        nonlocal under_way, peak
        async with subject.request():
            under_way += 1
            peak = max(peak, under_way)
            await asyncio.sleep(0.005)
            under_way -= 1

    async def run() -> None:
        await asyncio.gather(*(ask() for _ in range(30)))

    asyncio.run(run())

    assert peak == 3


def test_a_place_is_not_held_while_waiting_for_a_token() -> None:
    subject = gate(rate=5, burst=1, in_flight=1)

    async def run() -> int:
        async with subject.request():
            pass
        waiting = asyncio.create_task(subject.request().__aenter__())
        await asyncio.sleep(0.05)
        under_way = len(subject._under_way)
        await waiting
        return under_way

    assert asyncio.run(run()) == 0


def test_a_pause_holds_everybody_back_and_lets_them_in_as_slowly_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backfill_dagster.network.limits.MIN_PARK", 0.2)
    subject = gate(rate=50, burst=2, in_flight=10)
    times: list[float] = []

    async def ask() -> None:
        async with subject.request():
            times.append(time.monotonic())

    async def run() -> float:
        await asyncio.gather(*(ask() for _ in range(2)))
        waiting = asyncio.gather(*(ask() for _ in range(6)))
        await asyncio.sleep(0.001)
        subject.observe(429, {"retry-after": "0"})
        paused = time.monotonic()
        await waiting
        return paused

    paused = asyncio.run(run())

    after = sorted(moment - paused for moment in times[2:])
    assert after[0] >= 0.19
    # Two from the bucket, which filled up meanwhile; the rest at its rate of one in 0.02 s.
    assert after[3] >= 0.19 + 0.04
    assert after[5] >= 0.19 + 0.08


def test_who_cannot_wait_is_told_at_once() -> None:
    subject = gate()

    async def run() -> float:
        subject.observe(429, {"retry-after": "600"})
        begun = time.monotonic()
        with pytest.raises(HostParkedError) as caught:
            async with subject.request(max_park=300):
                pass
        assert caught.value.seconds == pytest.approx(600, abs=1)
        assert "pds.test" in str(caught.value)
        return time.monotonic() - begun

    assert asyncio.run(run()) < 10


def test_patience_counts_from_the_first_refusal_since_a_success() -> None:
    subject = gate(clock=(clock := Clock()))

    async def told() -> bool:
        try:
            await asyncio.wait_for(subject.request(max_park=60).__aenter__(), 0.05)
        except HostParkedError:
            return True
        except TimeoutError:
            return False
        return False

    async def run() -> list[bool]:
        answers = []
        for _ in range(3):
            subject.observe(429, {"retry-after": "30"}, NOW)
            answers.append(await told())
            clock.now += 30
        return answers

    assert asyncio.run(run()) == [False, False, True]


def test_those_who_wait_already_are_told_as_well() -> None:
    subject = gate(rate=0.01, burst=1)

    async def ask() -> None:
        async with subject.request(max_park=10):
            pass

    async def run() -> list[object]:
        await ask()
        waiting = asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
        await asyncio.sleep(0.01)
        subject.observe(429, {"retry-after": "60"})
        return list(await asyncio.wait_for(waiting, 1))

    assert [type(outcome) for outcome in asyncio.run(run())] == [HostParkedError] * 5


def test_who_gives_up_waiting_leaves_no_trace() -> None:
    subject = gate(rate=20, burst=1, in_flight=1)

    async def ask() -> None:
        async with subject.request():
            await asyncio.sleep(0.001)

    async def run() -> None:
        tasks = [asyncio.create_task(ask()) for _ in range(20)]
        await asyncio.sleep(0.01)
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)

    asyncio.run(run())

    assert not subject._waiting
    assert not subject._under_way


def test_a_request_that_fails_gives_its_place_back() -> None:
    subject = gate(in_flight=1)

    async def run() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with subject.request():
                    _ = 1 / 0

    asyncio.run(run())


def test_a_gate_outlives_event_loops() -> None:
    subject = gate(rate=100, burst=1, in_flight=1)

    async def ask(times: int) -> None:
        for _ in range(times):
            async with subject.request():
                await asyncio.sleep(0)

    for _ in range(3):
        asyncio.run(ask(3))

    assert subject.requests == 9


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_was_closed_under_its_requests_does_not_block_the_next() -> None:
    subject = gate(in_flight=1)

    async def hold() -> None:
        async with subject.request():
            await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    abandoned = [loop.create_task(hold()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    async def ask() -> None:
        async with subject.request():
            pass

    asyncio.run(asyncio.wait_for(ask(), 1))
    del abandoned
    gc.collect()
    asyncio.run(asyncio.wait_for(ask(), 1))
    assert not subject._under_way
    assert not subject._waiting


def test_a_gate_serves_several_threads_at_once() -> None:
    subject = gate(rate=10_000, burst=1, in_flight=2)
    under_way = 0
    peak = 0
    lock = threading.Lock()

    async def ask() -> None:
        nonlocal under_way, peak
        async with subject.request():
            with lock:
                under_way += 1
                peak = max(peak, under_way)
            await asyncio.sleep(0.001)
            with lock:
                under_way -= 1

    async def many() -> None:
        await asyncio.gather(*(ask() for _ in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert subject.requests == 200
    assert peak == 2


def test_a_parked_host_slows_no_other() -> None:
    gates = HostGates(rate=1000, burst=10, in_flight=2)
    gates.gate("slow.test").observe(429, {"retry-after": "60"})

    async def ask(host: str) -> None:
        async with gates.gate(host).request():
            pass

    async def run() -> None:
        blocked = asyncio.create_task(ask("slow.test"))
        await asyncio.wait_for(asyncio.gather(*(ask(f"{n}.test") for n in range(20))), 1)
        assert not blocked.done()
        blocked.cancel()

    asyncio.run(run())


def test_there_is_one_gate_per_host_and_the_slowest_rate_holds() -> None:
    gates = HostGates(rate=9, burst=10, in_flight=4)

    assert gates.gate("a.test") is gates.gate("a.test")
    assert gates.gate("a.test") is not gates.gate("a.test:8080")
    assert gates.gate("a.test").rate == 9
    assert gates.gate("plc.test", rate=20).rate == 20
    assert gates.gate("plc.test", rate=30).rate == 20
    assert gates.gate("plc.test", rate=2).rate == 2
    assert gates.gate("plc.test").rate == 2
