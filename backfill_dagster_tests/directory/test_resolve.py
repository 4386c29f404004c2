"""The directory stage against servers on loopback: every state, retries, reuse, outages."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import polars as pl
import pytest
from aiohttp import web

from backfill_dagster.config.network import Network
from backfill_dagster.config.processing import Processing
from backfill_dagster.directory.documents import DirectoryState, LookupFailedError
from backfill_dagster.directory.resolve import (
    DIRECTORY_COLUMNS,
    DIRECTORY_SCHEMA,
    LOST_AFTER,
    DirectoryProgress,
    brought_up_to_date,
    due_lookups,
    latest_known,
    look_up,
)
from backfill_dagster.directory.resolver import DirectoryRow, Resolver
from backfill_dagster.errors import DirectoryUnreachableError
from backfill_dagster.network.leases import HostLeases, LocalHostLeases
from backfill_dagster.network.limits import HostGate, HostGates
from backfill_dagster.network.patience import RunTime
from backfill_dagster.network.turns import Turns
from backfill_dagster_tests.network.loopback import Handler, Talk, loopback_client, serve, serve_bytes
from backfill_dagster_tests.network.test_http import free_port

Result = TypeVar("Result")
DAY = timedelta(days=1)
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def plc(number: int) -> str:
    return "did:plc:" + "".join(LETTERS[number // 32**place % 32] for place in range(24))


def document(did: str, pds: str = "https://pds.example.com") -> dict[str, Any]:
    return {
        "id": did,
        "alsoKnownAs": ["at://alice.test"],
        "verificationMethod": [{"id": "#atproto", "type": "Multikey", "publicKeyMultibase": "zQ3sh"}],
        "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": pds}],
    }


@dataclass
class FakeDirectory:
    """Answers by DID; a DID without an answer of its own resolves. Counts what it was asked."""

    answers: Mapping[str, Handler] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    under_way: int = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        did = request.path.removeprefix("/").removesuffix("/log/audit")
        if request.path == "/.well-known/did.json":
            did = f"did:web:{request.host}"
        self.asked[did] += 1
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            await asyncio.sleep(0)
            answer = self.answers.get(did)
            return await answer(request) if answer else web.json_response(document(did))
        finally:
            self.under_way -= 1


def says(status: int = 200, body: Any = b"", headers: Mapping[str, str] | None = None) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=content, headers=headers)

    return handler


def of_did(make: Callable[[str], Any]) -> Handler:
    """Answer with what `make` makes of the DID that is asked for."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(make(request.path.removeprefix("/")))

    return handler


def in_turn(*handlers: Handler) -> Handler:
    """Answer by the first of these, then the second, and so on; the last one stays."""
    left = list(handlers)

    async def handler(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return handler


@asynccontextmanager
async def resolver_for(
    address: str,
    *,
    retries: int = 2,
    max_park: float = 30,
    connect_to: Mapping[str, str] | None = None,
    allow_private: bool = True,
    read_timeout: float = 2,
    rate: float = 1000,
    leases: HostLeases | None = None,
    run_time: RunTime | None = None,
) -> AsyncIterator[Resolver]:
    network = Network(
        plc_url=f"http://{address}",
        plc_requests_per_second=rate,
        retry_base_seconds=0.001,
        max_park_minutes=max_park,
    )
    gates = HostGates(rate=1000, burst=100, in_flight=8)
    client = loopback_client(connect_to=connect_to, allow_private=allow_private, read_timeout=read_timeout)
    async with client as http:
        processing = Processing(max_retries=retries)
        turns = Turns(http, gates, leases, rate=1000, in_flight=8)
        yield Resolver(
            turns, gates, network, processing, leases=leases, run_time=run_time, jitter=lambda: 0.5
        )


def with_resolver(
    handler: Handler, do: Callable[[Resolver], Coroutine[Any, Any, Result]], **options: Any
) -> Result:
    async def run() -> Result:
        async with serve(handler) as address, resolver_for(address, **options) as resolver:
            return await do(resolver)

    return asyncio.run(run())


def look_up_one(did: str, handler: Handler, **options: Any) -> tuple[DirectoryRow, int]:
    """Return the row of one DID, and how often it was asked for."""
    directory = FakeDirectory({did: handler})
    row = with_resolver(directory, lambda resolver: resolver.resolve(did), **options)
    return row, directory.asked[did]


# --- one DID ---


def test_a_did_is_resolved_with_all_that_its_document_says() -> None:
    before = datetime.now(UTC)
    row, asked = look_up_one(plc(1), says(body=document(plc(1), "https://PDS.example.com:8443/")))

    assert asked == 1
    assert before <= row.resolved_at <= datetime.now(UTC)
    assert (row.did, row.handle, row.pds, row.pds_host) == (
        plc(1),
        "alice.test",
        "https://pds.example.com:8443",
        "pds.example.com:8443",
    )
    assert (row.key_type, row.key_multibase) == ("Multikey", "zQ3sh")
    assert (row.state, row.reason) == (DirectoryState.RESOLVED, None)


def test_a_document_without_a_key_is_resolved_and_says_so() -> None:
    row, _ = look_up_one(plc(1), says(body={**document(plc(1)), "verificationMethod": []}))

    assert (row.state, row.key_multibase) == (DirectoryState.RESOLVED, None)
    assert row.reason == "the document names no signing key"


SETTLED_ANSWERS = [
    (says(404, {"message": "DID not registered: did:plc:x"}), DirectoryState.NOT_FOUND),
    (says(410, {"message": "DID not available: did:plc:x"}), DirectoryState.TOMBSTONED),
    (says(404, {"message": "DID not available: did:plc:x"}), DirectoryState.TOMBSTONED),
    (says(200, b"<html>"), DirectoryState.BAD_DOCUMENT),
    (says(200, document(plc(2))), DirectoryState.BAD_DOCUMENT),
    (of_did(lambda did: document(did, "ftp://x")), DirectoryState.BAD_DOCUMENT),
    (says(200, b" " * 300_000), DirectoryState.BAD_DOCUMENT),
    (says(200, b"x", {"Content-Encoding": "br"}), DirectoryState.BAD_DOCUMENT),
    (of_did(lambda did: {"id": did}), DirectoryState.NO_PDS),
]


@pytest.mark.parametrize(("handler", "state"), SETTLED_ANSWERS)
def test_an_answer_that_settles_a_did_is_asked_for_once(handler: Handler, state: DirectoryState) -> None:
    row, asked = look_up_one(plc(1), handler)

    assert (row.state, asked) == (state, 1)
    assert row.state.settled
    assert row.reason
    assert len(row.reason) <= 300
    assert row.pds is row.pds_host is row.handle is row.key_multibase is None


@pytest.mark.parametrize("status", [400, 403, 418])
def test_a_refusal_of_the_directory_is_a_failure_that_is_not_tried_again(status: int) -> None:
    row, asked = look_up_one(plc(1), says(status, b"go\n away"))

    assert (row.state, row.reason, asked) == (DirectoryState.SERVER_ERROR, f"HTTP {status}: go away", 1)
    assert not row.state.settled


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_is_tried_again_and_kept_at_last(status: int) -> None:
    row, asked = look_up_one(plc(1), says(status))

    assert (row.state, asked) == (DirectoryState.SERVER_ERROR, 3)
    assert str(status) in (row.reason or "")


def test_a_redirect_loop_is_a_failure_of_the_server() -> None:
    row, asked = look_up_one(plc(1), says(302, headers={"Location": f"/{plc(1)}"}))

    assert (row.state, asked) == (DirectoryState.SERVER_ERROR, 6)


def test_what_works_at_the_second_try_is_resolved() -> None:
    row, asked = look_up_one(plc(1), in_turn(says(500), says(body=document(plc(1)))))

    assert (row.state, asked) == (DirectoryState.RESOLVED, 2)


def test_silence_is_tried_again_and_unreachable_at_last() -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    row, asked = look_up_one(plc(1), silent, read_timeout=0.1)

    assert (row.state, asked) == (DirectoryState.UNREACHABLE, 3)
    assert "timed_out" in (row.reason or "")


def test_a_document_cut_short_is_tried_again() -> None:
    tries = 0

    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{")

    row = raw_look_up(talk)

    assert (row.state, tries) == (DirectoryState.UNREACHABLE, 3)
    assert "truncated" in (row.reason or "")


def raw_look_up(talk: Talk) -> DirectoryRow:
    async def run() -> DirectoryRow:
        async with serve_bytes(talk) as address, resolver_for(address) as resolver:
            return await resolver.resolve(plc(1))

    return asyncio.run(run())


def test_a_private_address_is_refused_at_once() -> None:
    row, asked = look_up_one(plc(1), says(), allow_private=False)

    assert (row.state, asked) == (DirectoryState.REFUSED_ADDRESS, 0)


def test_another_method_is_not_looked_up() -> None:
    row, asked = look_up_one("did:key:zQ3sh", says())

    assert (row.state, asked) == (DirectoryState.BAD_DOCUMENT, 0)


# --- rate limits ---


def test_a_rate_limit_costs_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.network.limits.MIN_PARK", 0.01)
    monkeypatch.setattr("backfill_dagster.network.limits.FIRST_PARK", 0.01)
    slow = says(429, b"<html>slow down</html>")
    row, asked = look_up_one(plc(1), in_turn(slow, slow, slow, slow, says(body=document(plc(1)))), retries=0)

    assert (row.state, asked) == (DirectoryState.RESOLVED, 5)


def test_a_rate_limit_holds_everybody_back() -> None:
    times: list[float] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        times.append(time.monotonic())
        if len(times) == 1:
            return web.Response(status=429, headers={"Retry-After": "1"})
        return web.json_response(document(request.path.removeprefix("/")))

    async def do(resolver: Resolver) -> list[DirectoryRow]:
        first = asyncio.create_task(resolver.resolve(plc(1)))
        await asyncio.sleep(0.1)
        return [*await asyncio.gather(*(resolver.resolve(plc(n)) for n in range(2, 6))), await first]

    rows = with_resolver(handler, do)

    assert {row.state for row in rows} == {DirectoryState.RESOLVED}
    assert min(times[1:]) - times[0] >= 0.99


def test_the_plc_directory_is_left_to_whoever_has_its_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "backfill_dagster.network.leases")
    directory = FakeDirectory()

    async def run() -> None:
        mine, theirs = LocalHostLeases(tmp_path, "study a"), LocalHostLeases(tmp_path, "study b")
        async with serve(directory) as address, resolver_for(address, leases=mine) as resolver:
            gate = HostGate(address, rate=1, burst=1, in_flight=1)
            lease = await theirs.take(gate)
            assert lease is not None
            lookups = [asyncio.create_task(resolver.resolve(plc(n))) for n in range(5)]
            await asyncio.sleep(0.2)
            assert not directory.asked
            await lease.release()
            rows = await asyncio.gather(*lookups)
            assert {row.state for row in rows} == {DirectoryState.RESOLVED}
            # It is theirs again as soon as nothing is looked up.
            assert await theirs.take(gate) is not None

    asyncio.run(run())
    assert len(caplog.records) == 1


def test_a_rate_limit_without_end_is_given_up() -> None:
    begun = time.monotonic()
    row, asked = look_up_one(plc(1), says(429, headers={"Retry-After": "600"}), max_park=5)

    assert (row.state, asked) == (DirectoryState.RATE_LIMITED, 1)
    assert time.monotonic() - begun < 60
    assert not row.state.settled


def test_those_behind_a_lasting_rate_limit_do_not_wait_for_it() -> None:
    directory = FakeDirectory(dict.fromkeys([plc(1)], says(429, headers={"Retry-After": "600"})))

    async def do(resolver: Resolver) -> list[DirectoryRow]:
        return [await resolver.resolve(plc(n)) for n in (1, 2, 3)]

    rows = with_resolver(directory, do, max_park=5)

    assert [row.state for row in rows] == [DirectoryState.RATE_LIMITED] * 3
    assert directory.asked.total() == 1


def test_time_that_is_over_ends_the_wait_for_another_run_s_lease(tmp_path: Path) -> None:
    directory = FakeDirectory()
    begun = time.monotonic()

    async def run() -> pl.DataFrame:
        mine, theirs = LocalHostLeases(tmp_path, "study a"), LocalHostLeases(tmp_path, "study b")
        async with serve(directory) as address:
            assert await theirs.take(HostGate(address, rate=1, burst=1, in_flight=1)) is not None
            async with resolver_for(address, leases=mine, run_time=RunTime(0.3)) as resolver:
                return await resolve_directory([plc(n) for n in range(200)], resolver=resolver)

    rows = asyncio.run(asyncio.wait_for(run(), 20))

    assert time.monotonic() - begun < 10
    assert set(states(rows)) == {"not_asked"}
    assert not DirectoryState.NOT_ASKED.settled
    assert (
        rows["reason"]
        .str.contains(r"^processing.max_run_minutes is over, .* is being asked by study b \(process")
        .all()
    )
    assert not directory.asked


def test_time_that_is_over_keeps_what_was_looked_up_and_asks_for_no_more() -> None:
    """Also while the directory asks for a pause, which would be waited for otherwise."""
    directory = FakeDirectory({plc(50): says(429, headers={"Retry-After": "600"})})
    parts: list[pl.DataFrame] = []
    begun = time.monotonic()

    async def do(resolver: Resolver) -> pl.DataFrame:
        return await resolve_directory(
            [plc(n) for n in range(1000)],
            resolver=resolver,
            concurrency=1,
            checkpoint=parts.append,
        )

    async def run() -> pl.DataFrame:
        async with serve(directory) as address, resolver_for(address, run_time=RunTime(1.5)) as resolver:
            return await do(resolver)

    rows = asyncio.run(asyncio.wait_for(run(), 20))

    assert time.monotonic() - begun < 10
    assert Counter(states(rows)) == {"resolved": 50, "not_asked": 950}
    assert states(pl.concat(parts)).count("resolved") == 50
    assert directory.asked.total() == 51
    # Whoever comes next goes on from there.
    again = resolve(FakeDirectory(), rows["did"].to_list(), known=rows)
    assert set(states(again)) == {"resolved"}


def test_a_redirect_of_the_directory_to_another_host_is_asked_in_that_host_s_turn(tmp_path: Path) -> None:
    async def run() -> tuple[str, str]:
        async with serve(FakeDirectory()) as mirror:

            async def moved(request: web.Request) -> web.StreamResponse:
                return web.Response(status=302, headers={"Location": f"http://{mirror}{request.path}"})

            leases = LocalHostLeases(tmp_path, "study a")
            async with serve(moved) as address, resolver_for(address, leases=leases) as resolver:
                row = await resolver.resolve(plc(1))
                assert (row.state, row.did) == (DirectoryState.RESOLVED, plc(1))
            return address, mirror

    asked = asyncio.run(run())
    assert {path.name for path in tmp_path.iterdir()} == {f"{quote(host, safe='')}.lease" for host in asked}


def test_the_directory_has_a_pace_of_its_own() -> None:
    directory = FakeDirectory()

    async def do(resolver: Resolver) -> float:
        resolver._plc_gate()._bucket.slow_down(50, 1)
        begun = time.monotonic()
        await asyncio.gather(*(resolver.resolve(plc(n)) for n in range(15)))
        return time.monotonic() - begun

    assert with_resolver(directory, do) > 0.25


# --- did:web ---


def web_look_up(
    did: str, handler: Handler, *, mapped: str | None = None, **options: Any
) -> tuple[DirectoryRow, int]:
    """Look up a did:web whose host is led to a server on loopback."""
    directory = FakeDirectory({did: handler})

    async def run() -> DirectoryRow:
        async with serve(directory) as address:
            connect_to = {mapped or f"{did.removeprefix('did:web:').lower()}:80": address}
            async with resolver_for("127.0.0.1:9", connect_to=connect_to, **options) as resolver:
                return await resolver.resolve(did)

    return asyncio.run(run()), directory.asked[did]


def test_a_did_web_is_looked_up_at_its_own_host() -> None:
    did = "did:web:carol.sandbox.test"
    row, asked = web_look_up(did, says(body=document(did)))

    assert (row.state, row.pds_host, asked) == (DirectoryState.RESOLVED, "pds.example.com", 1)


@pytest.mark.parametrize(
    ("status", "state"),
    [(404, "not_found"), (410, "not_found"), (403, "server_error"), (500, "server_error")],
)
def test_a_did_web_without_a_document_has_its_state(status: int, state: str) -> None:
    row, _ = web_look_up("did:web:carol.sandbox.test", says(status, {"message": "DID not available"}))

    assert row.state == state


def test_plain_http_is_for_hosts_that_the_study_maps() -> None:
    did = "did:web:localhost"
    row, asked = web_look_up(did, says(body=document(did)), mapped="other.test:80")

    # https://localhost:443 is asked instead, where nobody answers.
    assert (row.state, asked) == (DirectoryState.UNREACHABLE, 0)


def test_a_did_web_of_the_own_network_is_refused() -> None:
    row, _ = web_look_up("did:web:localhost", says(), mapped="other.test:80", allow_private=False)

    assert row.state is DirectoryState.REFUSED_ADDRESS


@pytest.mark.parametrize("host", ["127.0.0.1", "a:b", "a%3A80", "..", "a/b", ""])
def test_a_did_web_that_names_no_host_is_not_looked_up(host: str) -> None:
    row, asked = look_up_one(f"did:web:{host}", says())

    assert (row.state, asked) == (DirectoryState.BAD_DOCUMENT, 0)


# --- earlier keys ---


def test_earlier_keys_come_from_the_audit_log() -> None:
    log = [
        {"operation": {"verificationMethods": {"atproto": f"did:key:z{name}"}}, "nullified": name == "X"}
        for name in "AXB"
    ]
    directory = FakeDirectory({plc(1): in_turn(says(500), says(body=log))})

    assert with_resolver(directory, lambda resolver: resolver.audit_keys(plc(1))) == [
        ("Multikey", "zB"),
        ("Multikey", "zA"),
    ]
    assert with_resolver(directory, lambda resolver: resolver.audit_keys("did:web:a.test")) == []


@pytest.mark.parametrize(
    ("handler", "state"),
    [
        (says(404, b"{}"), DirectoryState.NOT_FOUND),
        (says(500), DirectoryState.SERVER_ERROR),
        (says(200, b"{}"), DirectoryState.BAD_DOCUMENT),
        (says(200, b" " * 5_000_000), DirectoryState.BAD_DOCUMENT),
    ],
)
def test_an_audit_log_that_cannot_be_had_is_not_an_empty_one(handler: Handler, state: DirectoryState) -> None:
    with pytest.raises(LookupFailedError) as caught:
        with_resolver(FakeDirectory({plc(1): handler}), lambda resolver: resolver.audit_keys(plc(1)))
    assert caught.value.state is state


# --- many DIDs ---


async def resolve_directory(
    dids: list[str],
    *,
    resolver: Resolver,
    known: pl.DataFrame | None = None,
    max_age: timedelta = DAY,
    checkpoint: Callable[[pl.DataFrame], None] = lambda _: None,
    **options: Any,
) -> pl.DataFrame:
    """Do what the stage does of one range of accounts, and return the directory."""
    wanted = pl.Series("did", dids, dtype=pl.String)
    rows = latest_known(known, DIRECTORY_SCHEMA.to_frame())
    due = due_lookups(wanted, rows, max_age=max_age, now=datetime.now(UTC))
    parts = [DIRECTORY_SCHEMA.to_frame()]

    def keep(part: pl.DataFrame) -> None:
        parts.append(part)
        checkpoint(part)

    progress = DirectoryProgress(wanted.len(), done=wanted.len() - due.len())
    await look_up(due, resolver=resolver, checkpoint=keep, progress=progress, **options)
    return brought_up_to_date(rows, pl.concat(parts))


def resolve(
    handler: Handler, dids: list[str], *, options: Mapping[str, Any] | None = None, **arguments: Any
) -> pl.DataFrame:
    return with_resolver(
        handler, lambda resolver: resolve_directory(dids, resolver=resolver, **arguments), **(options or {})
    )


def states(directory: pl.DataFrame) -> list[str]:
    assert directory.schema == DIRECTORY_SCHEMA
    return directory["state"].to_list()


def test_each_did_has_one_row_and_they_are_sorted() -> None:
    answers = {plc(number): handler for number, (handler, _) in enumerate(SETTLED_ANSWERS, start=100)}
    expected = {did: state.value for did, (_, state) in zip(answers, SETTLED_ANSWERS, strict=True)}
    expected |= dict.fromkeys([plc(1), plc(2), plc(3)], "resolved")
    directory = FakeDirectory(answers)
    rows = resolve(directory, list(expected))

    assert rows["did"].to_list() == sorted(expected)
    assert dict(zip(rows["did"], states(rows), strict=True)) == expected
    assert max(directory.asked.values()) == 1


def test_every_column_is_described() -> None:
    assert [column.name for column in DIRECTORY_COLUMNS] == DIRECTORY_SCHEMA.names()
    assert all(column.description.endswith(".") for column in DIRECTORY_COLUMNS)


def test_nothing_to_look_up_is_an_empty_directory() -> None:
    rows = resolve(says(500), [])

    assert states(rows) == []


def test_no_more_lookups_are_under_way_than_asked_for() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.005)
        return web.json_response(document(request.path.removeprefix("/")))

    dids = [plc(number) for number in range(60)]
    directory = FakeDirectory(dict.fromkeys(dids, slow))
    tasks: list[int] = []

    def count(progress: DirectoryProgress) -> None:
        tasks.append(len(asyncio.all_tasks()))

    rows = resolve(directory, dids, concurrency=5, on_progress=count)

    assert set(states(rows)) == {"resolved"}
    assert directory.peak == 5
    assert max(tasks) < 40


def test_progress_and_checkpoints_tell_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.directory.resolve.CHECKPOINT_ROWS", 4)
    dids = [plc(number) for number in range(10)]
    done: list[int] = []
    parts: list[pl.DataFrame] = []
    seen: DirectoryProgress | None = None

    def note(progress: DirectoryProgress) -> None:
        nonlocal seen
        seen = progress
        done.append(progress.done)

    known = resolve(FakeDirectory(), dids[:3])
    resolve(FakeDirectory({dids[4]: says(404)}), dids, known=known, on_progress=note, checkpoint=parts.append)

    assert set(done) == set(range(3, 11))
    assert seen is not None
    assert (seen.total, dict(seen.states)) == (10, {"resolved": 6, "not_found": 1})
    assert [part.height for part in parts] == [4, 3]
    assert sorted(pl.concat(parts)["did"]) == sorted(dids[3:])


# --- what is known already ---


def known_rows(state: str, *, age: timedelta, pds: str | None = "https://old.example.com") -> pl.DataFrame:
    row = {
        "did": plc(1),
        "handle": "old.test",
        "pds": pds,
        "pds_host": pds and pds.partition("//")[2],
        "state": state,
        "resolved_at": datetime.now(UTC) - age,
    }
    return pl.DataFrame([row], schema=DIRECTORY_SCHEMA)


@pytest.mark.parametrize("state", [state for state in DirectoryState if state.settled])
def test_a_settled_row_is_believed_for_a_while(state: DirectoryState) -> None:
    young, old = known_rows(state, age=DAY / 2), known_rows(state, age=DAY * 2)
    directory = FakeDirectory()

    assert resolve(directory, [plc(1)], known=young).equals(young)
    assert directory.asked.total() == 0
    renewed = resolve(directory, [plc(1)], known=old)
    assert directory.asked.total() == 1
    assert renewed["pds"].to_list() == ["https://pds.example.com"]


@pytest.mark.parametrize("state", [state for state in DirectoryState if not state.settled])
def test_a_failure_is_never_believed(state: DirectoryState) -> None:
    directory = FakeDirectory()
    rows = resolve(directory, [plc(1)], known=known_rows(state, age=timedelta(0), pds=None))

    assert (states(rows), directory.asked.total()) == (["resolved"], 1)


def test_no_age_at_all_believes_nothing() -> None:
    directory = FakeDirectory()
    resolve(directory, [plc(1)], known=known_rows("resolved", age=timedelta(0)), max_age=timedelta(0))

    assert directory.asked.total() == 1


def test_a_failed_lookup_keeps_what_was_resolved_before() -> None:
    old = known_rows("resolved", age=DAY * 2)
    rows = resolve(FakeDirectory({plc(1): says(500)}), [plc(1), plc(2)], known=old)

    assert states(rows) == ["resolved", "resolved"]
    kept = rows.row(0, named=True)
    assert kept["pds"] == "https://old.example.com"
    assert kept["resolved_at"] == old["resolved_at"][0]
    assert kept["reason"].startswith("looked up again in vain: server_error: ")


@pytest.mark.parametrize("status", [404, 410])
def test_an_answer_replaces_what_was_resolved_before(status: int) -> None:
    rows = resolve(
        FakeDirectory({plc(1): says(status, b"{}")}), [plc(1)], known=known_rows("resolved", age=DAY * 2)
    )

    assert states(rows) == ["not_found" if status == 404 else "tombstoned"]
    assert rows["pds"].to_list() == [None]


def test_a_failure_without_anything_better_stands() -> None:
    old = known_rows("not_found", age=DAY * 2, pds=None)
    rows = resolve(FakeDirectory({plc(1): says(500)}), [plc(1)], known=old)

    assert states(rows) == ["server_error"]


def test_known_rows_of_other_accounts_stay_as_they_are() -> None:
    known = known_rows("resolved", age=DAY * 2)
    rows = resolve(FakeDirectory(), [plc(2)], known=known)

    assert rows["did"].to_list() == [plc(1), plc(2)]
    assert rows.head(1).equals(known)


def test_of_what_is_left_unfinished_an_answer_counts_and_a_failure_does_not() -> None:
    known = known_rows("resolved", age=DAY * 2)
    moved = known_rows("resolved", age=DAY, pds="https://new.example.com")
    failed = known_rows("unreachable", age=timedelta(0), pds=None)

    assert latest_known(known, pl.concat([failed, moved])).equals(moved)
    assert latest_known(known, failed).equals(known)
    # An interrupted run of long ago knows less than the directory does since.
    assert latest_known(moved, known).equals(moved)


# --- outages ---


def unreachable(do: Callable[[Resolver], Awaitable[Any]], **options: Any) -> tuple[str, float]:
    """Return what is said of a directory where nobody listens, and after how many seconds."""
    address = f"127.0.0.1:{free_port()}"

    async def run() -> None:
        async with resolver_for(address, **options) as resolver:
            await do(resolver)

    begun = time.monotonic()
    with pytest.raises(DirectoryUnreachableError) as caught:
        asyncio.run(run())
    message = str(caught.value)
    assert f"http://{address}" in message
    return message, time.monotonic() - begun


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_a_directory_that_cannot_be_reached_ends_it_soon(count: int) -> None:
    dids = [plc(number) for number in range(count)]
    parts: list[pl.DataFrame] = []
    message, seconds = unreachable(
        lambda resolver: resolve_directory(dids, resolver=resolver, checkpoint=parts.append)
    )

    assert "cannot be reached" in message
    assert "backfill.network.plc_url" in message
    assert seconds < 15
    assert parts == []


def test_a_directory_at_a_private_address_says_how_to_allow_it() -> None:
    message, _ = unreachable(
        lambda resolver: resolve_directory([plc(1)], resolver=resolver),
        allow_private=False,
    )

    assert "allow_private_addresses: true" in message


def test_a_source_of_did_web_alone_needs_no_directory() -> None:
    did = "did:web:carol.sandbox.test"

    async def run() -> pl.DataFrame:
        async with serve(FakeDirectory()) as address:
            mapped = {"carol.sandbox.test:80": address}
            async with resolver_for("127.0.0.1:9", connect_to=mapped) as resolver:
                return await resolve_directory([did, "did:web:gone.invalid"], resolver=resolver)

    assert states(asyncio.run(run())) == ["resolved", "unreachable"]


def test_a_directory_that_is_lost_half_way_keeps_what_it_gave() -> None:
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked > 100:
            return web.Response(status=502)
        return web.json_response(document(request.path.removeprefix("/")))

    dids = [plc(number) for number in range(1000)]
    rows = resolve(handler, dids, options={"retries": 0}, concurrency=4)

    assert Counter(states(rows)) == {"resolved": 100, "server_error": 900}
    assert asked < 100 + LOST_AFTER + 8
    unasked = rows.filter(pl.col("reason").str.starts_with("not asked"))
    assert unasked.height > 800
    assert "502" in unasked["reason"][0]


def test_failures_between_successes_do_not_count_as_an_outage() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        did = request.path.removeprefix("/")
        return web.json_response(document(did)) if did < plc(16) else web.Response(status=500)

    dids = [plc(number) for number in range(300)]
    rows = resolve(handler, dids, options={"retries": 0}, concurrency=4)

    assert not rows["reason"].str.starts_with("not asked").any()
    assert 0 < states(rows).count("server_error") < 300


def test_a_slow_host_of_a_did_web_delays_no_did_plc() -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    web_dids = [f"did:web:slow{number}.test" for number in range(4)]
    directory = FakeDirectory(dict.fromkeys(web_dids, silent))
    finished: list[dict[str, int]] = []

    async def run() -> pl.DataFrame:
        async with serve(directory) as address:
            mapped = {f"{did.removeprefix('did:web:')}:80": address for did in web_dids}
            async with resolver_for(address, connect_to=mapped, read_timeout=1, retries=0) as resolver:
                return await resolve_directory(
                    [*web_dids, *(plc(number) for number in range(20))],
                    resolver=resolver,
                    concurrency=4,
                    on_progress=lambda progress: finished.append(dict(progress.states)),
                )

    rows = asyncio.run(run())

    assert Counter(states(rows)) == {"resolved": 20, "unreachable": 4}
    assert {"resolved": 20} in finished
