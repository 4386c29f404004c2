"""The PLC directory and all hosts of the simulated network, on one port of loopback, in a process of their own.

    with served(frame, trees) as network: ...

What a request asks for is written when it comes, from the number that its DID holds: no account takes memory. A host
knows its own accounts only. Nobody is made to wait, and no rate is kept: the clients' own limits are all there is.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote_to_bytes

from backfill_dagster_tests.benchmarks.scale.frame import PLC_HOST, Fate, Frame, fate_of, key_of, number_of
from backfill_dagster_tests.benchmarks.scale.trees import WrittenTree, repo_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

_PATIENCE_SECONDS = 60
_HEAD_END = b"\r\n\r\n"
_BACKLOG = 4096
_XRPC = "/xrpc/com.atproto.sync."
_JSON = "application/json; charset=utf-8"
_STATUS_OF_FATE = {Fate.DEACTIVATED: "deactivated", Fate.TAKENDOWN: "takendown"}


@dataclass(slots=True)
class Asked:
    """What the servers were asked so far, and what they sent; `cpu` are their own seconds."""

    documents: int = 0
    repos: int = 0
    other: int = 0
    refused: int = 0
    repo_bytes: int = 0
    cpu: float = 0.0

    @property
    def requests(self) -> int:
        """Requests of all kinds."""
        return self.documents + self.repos + self.other


@dataclass(frozen=True, slots=True)
class ServedNetwork:
    """Where the network is."""

    frame: Frame
    port: int
    _pipe: Connection

    @property
    def plc_url(self) -> str:
        """The URL of the PLC directory."""
        return f"http://{PLC_HOST}"

    @property
    def connect_to(self) -> dict[str, str]:
        """Where each host is: `name:80` to `127.0.0.1:PORT`."""
        return {f"{host}:80": f"127.0.0.1:{self.port}" for host in (PLC_HOST, *self.frame.host_names)}

    def take_asked(self) -> Asked:
        """Return what was asked since the last call."""
        self._pipe.send("asked")
        asked: Asked = self._pipe.recv()
        return asked


@contextmanager
def served(frame: Frame, trees: Sequence[WrittenTree]) -> Iterator[ServedNetwork]:
    """Serve a network while the context lasts."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, frame, list(trees)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_PATIENCE_SECONDS):
            raise TimeoutError("the server did not start")
        yield ServedNetwork(frame, ours.recv(), ours)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _serve(pipe: Connection, frame: Frame, trees: list[WrittenTree]) -> None:
    asyncio.run(_run(pipe, Servers(frame, trees)))


async def _run(pipe: Connection, servers: Servers) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    listening = await loop.create_server(lambda: _Talk(servers), "127.0.0.1", 0, backlog=_BACKLOG)

    def answer_parent() -> None:
        try:
            pipe.recv()
            pipe.send(servers.take_asked())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            ended.set_result(None)

    loop.add_reader(pipe.fileno(), answer_parent)
    pipe.send(listening.sockets[0].getsockname()[1])
    await ended


@dataclass(slots=True)
class Servers:
    """What the PLC directory and the hosts answer."""

    frame: Frame
    trees: Sequence[WrittenTree]
    _asked: Asked = field(default_factory=Asked)
    _cpu_before: float = 0.0

    def take_asked(self) -> Asked:
        """Return what was asked since the last call."""
        asked, self._asked = self._asked, Asked()
        asked.cpu, self._cpu_before = time.process_time() - self._cpu_before, time.process_time()
        return asked

    def answer(self, host: str, target: str) -> tuple[int, str, bytes]:
        """Answer a GET of a path with its query: status, content type, body."""
        if host == PLC_HOST:
            self._asked.documents += 1
            return self._document(target.removeprefix("/"))
        path, _, query = target.partition("?")
        did = parse_qs(query).get("did", [""])[0]
        number = number_of(did)
        if path == f"{_XRPC}getRepo":
            self._asked.repos += 1
        else:
            self._asked.other += 1
        if number is None or number >= self.frame.accounts or self.frame.host_of(number) != host:
            return self._error(Fate.NOT_FOUND.value, did)
        fate = fate_of(number)
        if path == f"{_XRPC}getRepo":
            if fate is not Fate.WHOLE:
                return self._error(fate.value, did)
            body = repo_of(number, self.trees)
            self._asked.repo_bytes += len(body)
            return 200, "application/vnd.ipld.car", body
        if path == f"{_XRPC}getRepoStatus" and fate is not Fate.NOT_FOUND:
            status = _STATUS_OF_FATE.get(fate)
            told = {"did": did, "active": status is None, **({"status": status} if status else {})}
            return 200, _JSON, json.dumps(told).encode()
        return self._error("RepoNotFound", did)

    def _error(self, name: str, did: str) -> tuple[int, str, bytes]:
        self._asked.refused += 1
        return (
            400,
            _JSON,
            json.dumps({"error": name, "message": f"Could not find repo for DID: {did}"}).encode(),
        )

    def _document(self, did: str) -> tuple[int, str, bytes]:
        number = number_of(did)
        if number is None or number >= self.frame.accounts:
            return 404, _JSON, json.dumps({"message": f"DID not registered: {did}"}).encode()
        if fate_of(number) is Fate.TOMBSTONED:
            return 410, _JSON, json.dumps({"message": f"DID not available: {did}"}).encode()
        key = {"id": f"{did}#atproto", "type": "Multikey", "controller": did}
        endpoint = f"http://{self.frame.host_of(number)}"
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
        document = {
            "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
            "id": did,
            "alsoKnownAs": [f"at://account{number}.scale.test"],
            "verificationMethod": [{**key, "publicKeyMultibase": key_of(number).multikey}],
            "service": [service],
        }
        return 200, "application/did+ld+json; charset=utf-8", json.dumps(document).encode()


def _head(status: int, length: int, content_type: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"content-type: {content_type}",
        f"content-length: {length}",
        # What the reference PDS says with every answer, but for the number.
        "ratelimit-limit: 1000000000",
        "ratelimit-remaining: 999999999",
        f"ratelimit-reset: {int(time.time()) + 300}",
        "ratelimit-policy: 1000000000;w=300",
        "connection: keep-alive",
    ]
    return "\r\n".join(lines).encode() + _HEAD_END


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 410: "Gone"}


class _Talk(asyncio.Protocol):
    """One connection, kept alive; a request ends with its head."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(_HEAD_END)) >= 0:
            head, self._buffer = self._buffer[:end], self._buffer[end + len(_HEAD_END) :]
            first, *headers = head.split(b"\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in headers)
            target = unquote_to_bytes(first.split(b" ", 2)[1]).decode()
            status, content_type, body = self._servers.answer(fields[b"host"].decode(), target)
            self._transport.write(_head(status, len(body), content_type) + body)
