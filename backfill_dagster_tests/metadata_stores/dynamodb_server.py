"""A DynamoDB on loopback, spoken to over HTTP by way of a server that can turn requests away.

Of a request that writes, the server can leave items undone: it hands on the others alone and says so, as DynamoDB does.
"""

import http.client
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

REGION, TABLE = "us-east-2", "backfill_metadata"


@dataclass
class Troubles:
    """What is to happen to the next requests, one after the other: an error by its name and message, or how many items
    are done.

    `asked` counts requests by operation; `batches` are the numbers of items of those that write.
    """

    errors: list[str] = field(default_factory=list)
    items_done: list[int] = field(default_factory=list)
    dropped: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    largest_item: int = 0


@dataclass(frozen=True)
class DynamoDb:
    """Where the server is, what troubles it makes, and a client that speaks to the store behind it."""

    url: str
    troubles: Troubles
    client: Any

    def clear(self) -> None:
        """Forget all items and troubles."""
        for name in self.client.list_tables()["TableNames"]:
            self.client.delete_table(TableName=name)
        self.troubles.__init__()  # type: ignore[misc]
        make_table(self.client, TABLE)


def make_table(client: Any, name: str, keys: tuple[str, str] = ("pk", "sk")) -> None:
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
        KeySchema=[
            {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=True)
        ],
    )


@contextmanager
def serve_dynamodb() -> Iterator[DynamoDb]:
    """Serve a DynamoDB with one empty table, whose keys are `pk` and `sk`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    troubles = Troubles()
    handler = type("Handler", (_Handler,), {"host": host, "port": port, "troubles": troubles})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = boto3.session.Session(aws_access_key_id="test", aws_secret_access_key="test").client(
        "dynamodb", region_name=REGION, endpoint_url=f"http://{host}:{port}"
    )
    served = DynamoDb(f"http://127.0.0.1:{server.server_port}", troubles, client)
    # What another server of this process has.
    served.clear()
    try:
        yield served
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()
        moto.stop()


def set_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment as a user has it, whom nobody asks the cloud about."""
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def _size(request: dict[str, Any]) -> int:
    item = request.get("PutRequest", {}).get("Item", {})
    return sum(len(name) + len(next(iter(value.values())).encode()) for name, value in item.items())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: str
    port: int
    troubles: Troubles

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        self.troubles.asked[operation] += 1
        if self.troubles.dropped:
            self.troubles.dropped -= 1
            self.close_connection = True
            return
        if self.troubles.errors:
            name, _, message = self.troubles.errors.pop(0).partition(": ")
            told = {"__type": f"com.amazonaws.dynamodb.v20120810#{name}", "message": message}
            is_server_s = name == "InternalServerError" or name.endswith(" 503")
            self._answer(500 if is_server_s else 400, json.dumps(told).encode())
            return
        if operation == "BatchWriteItem":
            self._write(json.loads(body))
        else:
            self._answer(*self._hand_on(body))

    def _write(self, asked: dict[str, Any]) -> None:
        [(table, requests)] = asked["RequestItems"].items()
        self.troubles.batches.append(len(requests))
        self.troubles.largest_item = max(self.troubles.largest_item, *map(_size, requests))
        done = self.troubles.items_done.pop(0) if self.troubles.items_done else len(requests)
        undone = {table: requests[done:]} if requests[done:] else {}
        status, answer = 200, b"{}"
        if done:
            told = {**asked, "RequestItems": {table: requests[:done]}}
            status, answer = self._hand_on(json.dumps(told).encode())
        if status == 200:
            answer = json.dumps({**json.loads(answer), "UnprocessedItems": undone}).encode()
        self._answer(status, answer)

    def _hand_on(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port)
        try:
            kept = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("content-length", "host", "connection")
            }
            connection.request("POST", "/", body, kept)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass
