import asyncio
import gzip
import re
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from aiohttp import web

from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.network.http import (
    Answer,
    Download,
    HttpClient,
    RedirectedError,
    RequestFailedError,
    RequestFault,
    user_agent,
)
from backfill_dagster_tests.network.certificates import tls_contexts
from backfill_dagster_tests.network.loopback import answering, loopback_client, serve, serve_bytes

BODY = bytes(range(256)) * 1000
MAX = 10_000_000
Result = TypeVar("Result")
Do = Callable[[HttpClient, str], Coroutine[Any, Any, Result]]


class Ask(Protocol):
    """Makes a request of either kind."""

    def __call__(self, *, max_bytes: int = MAX, total_timeout: float = 5.0) -> Do[Any]: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchange(
    server: AbstractAsyncContextManager[str], do: Do[Result], client: HttpClient | None = None
) -> Result:
    """Run `do(client, url)` against one server and return what it returns."""

    async def run() -> Result:
        async with server as address, client or loopback_client() as asking:
            return await do(asking, f"http://{address}")

    return asyncio.run(run())


def fault_of(
    server: AbstractAsyncContextManager[str], do: Do[Any], client: HttpClient | None = None
) -> RequestFault:
    with pytest.raises(RequestFailedError) as caught:
        exchange(server, do, client)
    assert caught.value.detail
    assert len(caught.value.detail) <= 300
    return caught.value.kind


def getting(path: str = "/", *, max_bytes: int = MAX, total_timeout: float = 5.0) -> Do[Answer]:
    return lambda client, url: client.get(url + path, max_bytes=max_bytes, total_timeout=total_timeout)


def downloading(
    to: Path, path: str = "/", *, max_bytes: int = MAX, total_timeout: float = 5.0
) -> Do[Download]:
    return lambda client, url: client.download(
        url + path, to=to, max_bytes=max_bytes, total_timeout=total_timeout
    )


@pytest.fixture(params=["get", "download"])
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ask]:
    """Both ways to ask; a failed download must leave nothing behind."""
    target = tmp_path / "body"

    def make(*, max_bytes: int = MAX, total_timeout: float = 5.0) -> Do[Any]:
        if request.param == "get":
            return getting(max_bytes=max_bytes, total_timeout=total_timeout)
        return downloading(target, max_bytes=max_bytes, total_timeout=total_timeout)

    yield make
    assert not target.exists()


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=BODY, headers={"X-Test": "1"})


def test_a_small_answer_comes_into_memory() -> None:
    answer = exchange(serve(hello), getting())

    assert (answer.status, answer.body) == (200, BODY)
    assert answer.headers["x-test"] == answer.headers["X-Test"] == "1"


def test_a_body_comes_into_a_file(tmp_path: Path) -> None:
    download = exchange(serve(hello), downloading(tmp_path / "body"))

    assert (tmp_path / "body").read_bytes() == BODY
    assert (download.status, download.error_body) == (200, b"")
    assert download.bytes_received == download.bytes_written == len(BODY)
    assert 0 < download.seconds < 5


def test_a_chunked_body_and_an_empty_one_come_whole(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        if request.path != "/empty":
            for start in range(0, len(BODY), 10_000):
                await response.write(BODY[start : start + 10_000])
        return response

    assert exchange(serve(handler), getting()).body == BODY
    download = exchange(serve(handler), downloading(tmp_path / "empty", "/empty"))
    assert (download.bytes_written, (tmp_path / "empty").read_bytes()) == (0, b"")


def test_a_leftover_of_an_earlier_try_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"x" * (len(BODY) + 1))

    exchange(serve(hello), downloading(tmp_path / "body"))

    assert (tmp_path / "body").read_bytes() == BODY


def test_what_is_sent_is_plain_and_says_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return web.Response(headers={"Set-Cookie": "track=1; Path=/"})

    async def twice(client: HttpClient, url: str) -> None:
        await client.get(url + "/xrpc/a", params={"did": "did:plc:abc", "q": "a&b c"}, max_bytes=9)
        await client.get(url + "/xrpc/b", max_bytes=9)

    exchange(serve(handler), twice, loopback_client(contact="lab@example.org"))

    first, second = seen
    assert first.query == {"did": "did:plc:abc", "q": "a&b c"}
    assert first.headers["Accept-Encoding"] == "identity"
    assert re.fullmatch(r"backfill-dagster/\d+\.\d+\S* \(\+lab@example\.org\)", first.headers["User-Agent"])
    assert "Cookie" not in second.headers


def test_a_contact_that_would_break_the_header_is_refused() -> None:
    assert "(" not in user_agent(None)
    for contact in ("a\r\nX-Evil: 1", "müller@example.org", "a) (b"):
        with pytest.raises(ConfigError, match=r"network\.contact"):
            user_agent(contact)


@pytest.mark.parametrize("status", [201, 204, 304, 400, 404, 429, 500, 503])
def test_a_status_is_an_answer_and_writes_no_file(status: int, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=b"" if status in (204, 304) else b'{"error": "Name"}')

    answer = exchange(serve(handler), getting())
    download = exchange(serve(handler), downloading(tmp_path / "body"))

    assert answer.status == download.status == status
    assert answer.body == download.error_body == (b"" if status in (204, 304) else b'{"error": "Name"}')
    assert not (tmp_path / "body").exists()


def test_of_an_error_only_the_beginning_is_read(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, body=b"e" * 5_000_000)

    assert exchange(serve(handler), getting(max_bytes=10)).body == b"e" * 65_536
    download = exchange(serve(handler), downloading(tmp_path / "body", max_bytes=10))
    assert download.error_body == b"e" * 65_536
    assert download.bytes_received < 300_000


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 429 Slow\nContent-Length: 100\nRetry-After: 3",
        "HTTP/1.1 429 Slow\nContent-Encoding: br\nRetry-After: 3",
        "HTTP/1.1 429 Slow\nContent-Encoding: gzip\nContent-Length: 4\nRetry-After: 3",
    ],
)
def test_an_error_whose_body_is_damaged_is_still_that_error(head: str, tmp_path: Path) -> None:
    answer = exchange(serve_bytes(answering(head, b"oops")), getting())
    download = exchange(serve_bytes(answering(head, b"oops")), downloading(tmp_path / "body"))

    assert answer.status == download.status == 429
    assert answer.headers["Retry-After"] == "3"


def test_an_error_whose_body_never_ends_is_still_that_error() -> None:
    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nbegin")
        await writer.drain()
        await asyncio.sleep(5)

    answer = exchange(serve_bytes(talk), getting(total_timeout=3), loopback_client(read_timeout=0.2))

    assert (answer.status, answer.body) == (500, b"begin")


# --- compression ---


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_what_comes_compressed_all_the_same_is_decoded(
    coding: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    packed = compress(BODY)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": coding})

    assert exchange(serve(handler), getting()).body == BODY
    download = exchange(serve(handler), downloading(tmp_path / "body"))
    assert (tmp_path / "body").read_bytes() == BODY
    assert (download.bytes_received, download.bytes_written) == (len(packed), len(BODY))


def test_a_compressed_bomb_is_too_large(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"\0" * 50_000_000), headers={"Content-Encoding": "gzip"})

    assert fault_of(serve(handler), ask(max_bytes=1_000_000)) is RequestFault.TOO_LARGE


def test_a_compressed_body_that_decodes_to_nothing_is_bounded_too(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
        await response.prepare(request)
        while True:
            await response.write(gzip.compress(b"") * 1000)

    assert fault_of(serve(handler), ask(max_bytes=1_000_000)) is RequestFault.TOO_LARGE


@pytest.mark.parametrize("coding", ["br", "gzip", "deflate"])
def test_a_body_that_cannot_be_decoded_is_told(coding: str, ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"<html>no</html>", headers={"Content-Encoding": coding})

    assert fault_of(serve(handler), ask()) is RequestFault.BAD_ENCODING


def test_a_compressed_body_cut_short_is_truncated(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(BODY)[:-9], headers={"Content-Encoding": "gzip"})

    assert fault_of(serve(handler), ask()) is RequestFault.TRUNCATED


# --- bounds ---


def test_a_body_that_says_it_is_too_large_is_not_read(ask: Ask) -> None:
    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(5)

    assert fault_of(serve_bytes(talk), ask(max_bytes=1_000_000)) is RequestFault.TOO_LARGE


def test_a_body_of_unknown_length_stops_at_the_bound(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 100_000)

    assert fault_of(serve(handler), ask(max_bytes=1_000_000)) is RequestFault.TOO_LARGE


def test_a_body_of_just_the_bound_passes(tmp_path: Path) -> None:
    assert exchange(serve(hello), getting(max_bytes=len(BODY))).body == BODY
    assert fault_of(serve(hello), getting(max_bytes=len(BODY) - 1)) is RequestFault.TOO_LARGE


# --- broken connections ---


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 200 OK\nContent-Length: 100", b"short"),
        ("HTTP/1.1 200 OK\nContent-Length: 100", b""),
        ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"5\r\nshort\r\n"),
    ],
)
def test_a_body_that_breaks_off_is_truncated(head: str, body: bytes, ask: Ask) -> None:
    assert fault_of(serve_bytes(answering(head, body)), ask()) is RequestFault.TRUNCATED


def test_a_body_that_stops_making_sense_is_truncated(ask: Ask) -> None:
    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(b"not a chunk size\r\nshort\r\n")

    begun = time.monotonic()
    fault = fault_of(serve_bytes(talk), ask(), loopback_client(read_timeout=0.3))

    # Which of the two it is depends on whether aiohttp's parser tells its reader; waiting for the end is no answer.
    assert fault in (RequestFault.TRUNCATED, RequestFault.TIMED_OUT)
    assert time.monotonic() - begun < 4


def test_a_connection_reset_within_the_body_is_truncated(ask: Ask) -> None:
    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
        await writer.drain()
        await asyncio.sleep(0.1)
        # Lingering for no time makes the close a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    assert fault_of(serve_bytes(talk), ask()) is RequestFault.TRUNCATED


@pytest.mark.parametrize(
    "head",
    [
        "",
        "SSH-2.0-OpenSSH_9.6",
        "HTTP/1.1",
        "HTTP/1.1 200 OK\nContent-Length: -1",
        "HTTP/1.1 200 OK\nX: " + "y" * 99_999,
    ],
    ids=["nothing", "ssh", "half a line", "bad length", "huge header"],
)
def test_what_is_no_http_is_unreachable(head: str, ask: Ask) -> None:
    assert fault_of(serve_bytes(answering(head)), ask()) is RequestFault.UNREACHABLE


def test_a_closed_port_is_unreachable(ask: Ask) -> None:
    async def elsewhere(client: HttpClient, url: str) -> Any:
        return await ask()(client, f"http://127.0.0.1:{free_port()}")

    assert fault_of(serve(hello), elsewhere) is RequestFault.UNREACHABLE


def test_a_name_that_does_not_exist_is_unreachable(ask: Ask) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    async def elsewhere(client: HttpClient, url: str) -> Any:
        return await ask()(client, "http://nowhere.test")

    assert fault_of(serve(hello), elsewhere, loopback_client(lookup=lookup)) is RequestFault.UNREACHABLE


# --- time ---


def test_silence_before_the_answer_is_timed_out(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    assert fault_of(serve(handler), ask(), loopback_client(read_timeout=0.2)) is RequestFault.TIMED_OUT


def test_silence_within_the_body_is_timed_out(ask: Ask) -> None:
    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
        await writer.drain()
        await asyncio.sleep(5)

    assert fault_of(serve_bytes(talk), ask(), loopback_client(read_timeout=0.2)) is RequestFault.TIMED_OUT


def test_a_slow_drip_is_timed_out_as_a_whole(ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)

    assert fault_of(serve(handler), ask(total_timeout=0.4)) is RequestFault.TIMED_OUT


async def drip(request: web.Request) -> web.StreamResponse:
    """Answer with 60 bytes in 0.6 s."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(30):
        await response.write(b"xx")
        await asyncio.sleep(0.02)
    return response


def test_a_download_that_drips_is_given_up(tmp_path: Path) -> None:
    client = loopback_client(min_bytes_per_second=1000, pace_grace=0.2)
    with pytest.raises(RequestFailedError, match="fewer than 1000 a second") as caught:
        exchange(serve(drip), downloading(tmp_path / "body"), client)

    assert caught.value.kind is RequestFault.TIMED_OUT
    assert not (tmp_path / "body").exists()


@pytest.mark.parametrize(("pace", "grace"), [(10, 0.2), (0, 0.2), (1000, 30)])
def test_a_download_that_is_fast_enough_goes_on(tmp_path: Path, pace: float, grace: float) -> None:
    client = loopback_client(min_bytes_per_second=pace, pace_grace=grace)
    assert exchange(serve(drip), downloading(tmp_path / "body"), client).bytes_written == 60


def test_a_download_may_be_slow_to_begin_with(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response(body=b"x" * 100)

    client = loopback_client(min_bytes_per_second=1000, pace_grace=0.2)
    assert exchange(serve(handler), downloading(tmp_path / "body"), client).bytes_written == 100


def test_a_name_that_takes_forever_is_timed_out(ask: Ask) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        await asyncio.sleep(5)
        return []

    async def elsewhere(client: HttpClient, url: str) -> Any:
        return await ask()(client, "http://slow.test")

    assert (
        fault_of(serve(hello), elsewhere, loopback_client(lookup=lookup, connect_timeout=0.2))
        is RequestFault.TIMED_OUT
    )


# --- redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "http://{host}/b"),
        ("d?e=%2F", "http://{host}/a/d?e=%2F"),
        ("//other.test/e", "http://other.test/e"),
        ("HTTPS://Other.test:8443", "https://other.test:8443"),
    ],
)
def test_a_redirect_is_told_and_not_followed(status: int, location: str, target: str, ask: Ask) -> None:
    """It is the caller's to follow, in the turn of the host that it leads to."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.host)
        headers = {"Location": location, "RateLimit-Remaining": "7"}
        return web.Response(status=status, headers=headers, body=b"x" * 100_000)

    async def below(client: HttpClient, url: str) -> Any:
        return await ask()(client, url + "/a")

    with pytest.raises(RedirectedError) as caught:
        exchange(serve(handler), below)
    assert caught.value.kind is RequestFault.BAD_REDIRECT
    assert caught.value.target == target.format(host=asked[0])
    assert (caught.value.status, caught.value.headers["ratelimit-remaining"]) == (status, "7")
    assert len(asked) == 1


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "ftp://{host}/x",
        "file:///etc/passwd",
        "http://user:pw@{host}/x",
        "http://[",
        "http://[::::]/",
        "javascript:1",
    ],
)
def test_a_redirect_that_leads_nowhere_is_refused(location: str | None, ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {} if location is None else {"Location": location.format(host=request.host)}
        return web.Response(status=302, headers=headers)

    with pytest.raises(RequestFailedError) as caught:
        exchange(serve(handler), ask())
    assert caught.value.kind is RequestFault.BAD_REDIRECT
    assert not isinstance(caught.value, RedirectedError)


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    server_tls, client_tls = tls_contexts("pds.test", tmp_path)

    async def run() -> Any:
        async with (
            serve_bytes(answering("HTTP/1.1 302 Found\nLocation: http://pds.test/"), server_tls) as secure,
            loopback_client(connect_to={"pds.test:443": secure}, tls=client_tls) as client,
        ):
            await client.get("https://pds.test/", max_bytes=MAX)

    with pytest.raises(RequestFailedError) as caught:
        asyncio.run(run())
    assert caught.value.kind is RequestFault.BAD_REDIRECT
    assert not isinstance(caught.value, RedirectedError)


@pytest.mark.parametrize("target", ["127.0.0.1", "[::1]", "169.254.169.254", "2130706433", "127.1", "0x7f.1"])
def test_a_redirect_to_an_address_of_the_own_network_is_refused(target: str, ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"http://{target}/inner"})

    async def run() -> Any:
        async with (
            serve(handler) as address,
            loopback_client(allow_private=False, connect_to={"pds.test:80": address}) as client,
        ):
            await ask()(client, "http://pds.test")

    with pytest.raises(RequestFailedError) as caught:
        asyncio.run(run())
    assert caught.value.kind is RequestFault.REFUSED_ADDRESS


# --- addresses ---


@pytest.mark.parametrize(
    "host",
    ["{address}", "localhost:{port}", "[::ffff:127.0.0.1]:{port}", "127.1:{port}", "2130706433:{port}"],
)
def test_the_own_machine_is_refused_however_it_is_spelled(host: str, ask: Ask) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise AssertionError("the request must not arrive")

    async def elsewhere(client: HttpClient, url: str) -> Any:
        address = url.removeprefix("http://")
        return await ask()(client, "http://" + host.format(address=address, port=address.rpartition(":")[2]))

    assert (
        fault_of(serve(handler), elsewhere, loopback_client(allow_private=False))
        is RequestFault.REFUSED_ADDRESS
    )


def test_a_name_is_judged_again_for_each_connection() -> None:
    """DNS rebinding: a name that was public when it was first met may lead inside the next time."""
    judged: list[str] = []

    async def lookup(host: str, port: int) -> list[str]:
        judged.append(host)
        return ["127.0.0.1"]

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=b"ok")
        response.force_close()
        return response

    async def run() -> Any:
        async with serve(handler) as address, loopback_client(lookup=lookup, connect_timeout=1) as client:
            # As if 127.0.0.1 were public, at first.
            port = address.rpartition(":")[2]
            client.policy.allow_private = True
            assert (await client.get(f"http://rebind.test:{port}", max_bytes=9)).body == b"ok"
            client.policy.allow_private = False
            await client.get(f"http://rebind.test:{port}", max_bytes=9)

    with pytest.raises(RequestFailedError) as caught:
        asyncio.run(run())
    assert caught.value.kind is RequestFault.REFUSED_ADDRESS
    assert judged == ["rebind.test", "rebind.test"]


def test_connect_to_keeps_the_host_header_and_the_tls_name(tmp_path: Path) -> None:
    server_tls, client_tls = tls_contexts("pds1.sandbox.test", tmp_path)
    heads: list[bytes] = []

    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(request)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def run() -> Any:
        async with serve_bytes(talk) as plain, serve_bytes(talk, server_tls) as secure:
            mapped = {"pds1.sandbox.test:80": plain, "pds1.sandbox.test:443": secure}
            async with loopback_client(allow_private=False, connect_to=mapped, tls=client_tls) as client:
                first = await client.get("http://pds1.sandbox.test/a", max_bytes=9)
                second = await client.get("https://PDS1.sandbox.test/b", max_bytes=9)
                return first.body, second.body

    assert asyncio.run(run()) == (b"ok", b"ok")
    assert all(b"\r\nhost: pds1.sandbox.test\r\n" in head.lower() for head in heads)


def test_a_certificate_that_is_not_trusted_is_bad_tls(tmp_path: Path, ask: Ask) -> None:
    server_tls, client_tls = tls_contexts("other.test", tmp_path)

    async def run(tls: ssl.SSLContext | None) -> None:
        async with (
            serve_bytes(answering("HTTP/1.1 200 OK\nContent-Length: 0"), server_tls) as secure,
            loopback_client(connect_to={"pds.test:443": secure}, tls=tls) as client,
        ):
            await ask()(client, "https://pds.test")

    for tls in (client_tls, None):
        with pytest.raises(RequestFailedError) as caught:
            asyncio.run(run(tls))
        assert caught.value.kind is RequestFault.BAD_TLS


def test_plain_http_on_a_tls_port_is_bad_tls(ask: Ask) -> None:
    async def elsewhere(client: HttpClient, url: str) -> Any:
        return await ask()(client, url.replace("http:", "https:"))

    assert fault_of(serve(hello), elsewhere) is RequestFault.BAD_TLS


# --- use ---


def test_connections_are_kept_and_given_back() -> None:
    peers: set[object] = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        peers.add(request.get_extra_info("peername"))
        return web.Response(body=b"x" * 1000, status=200 if request.path == "/ok" else 404)

    async def many(client: HttpClient, url: str) -> None:
        for path in ("/ok", "/missing", "/ok", "/missing"):
            await client.get(url + path, max_bytes=9999)

    exchange(serve(handler), many)

    assert len(peers) == 1


def test_a_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 2_000_000)
        await asyncio.sleep(5)
        return response

    async def cancelled(client: HttpClient, url: str) -> None:
        task = asyncio.create_task(downloading(tmp_path / "body")(client, url))
        await asyncio.sleep(0.3)
        assert (tmp_path / "body").exists()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    exchange(serve(handler), cancelled)

    assert not (tmp_path / "body").exists()


def test_a_full_disk_is_no_fault_of_the_server(tmp_path: Path) -> None:
    async def do(client: HttpClient, url: str) -> Any:
        return await client.download(url, to=tmp_path / "missing" / "body", max_bytes=MAX, total_timeout=5)

    with pytest.raises(StorageError, match="body cannot be written"):
        exchange(serve(hello), do)


def test_a_large_body_is_never_held_in_memory(tmp_path: Path) -> None:
    size = 64 * 2**20

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        for _ in range(size // 2**16):
            await response.write(b"\0" * 2**16)
        return response

    tracemalloc.start()
    try:
        download = exchange(serve(handler), downloading(tmp_path / "body", max_bytes=size, total_timeout=60))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert download.bytes_written == (tmp_path / "body").stat().st_size == size
    assert peak < 16 * 2**20
