"""A chat's webhook on loopback, which answers as it is told and keeps what it gets."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Chat:
    def __init__(self) -> None:
        self.answers: list[int] = []
        self.messages: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(chat.delay)
                status = chat.answers.pop(0) if chat.answers else 200
                if status == 200:
                    chat.messages.append(json.loads(body))
                self.send_response(status)
                for name, value in chat.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/secret"

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.messages]


@contextmanager
def running_chat() -> Iterator[Chat]:
    chat = Chat()
    thread = threading.Thread(target=lambda: chat.server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.server.shutdown()
        thread.join()
        chat.server.server_close()
