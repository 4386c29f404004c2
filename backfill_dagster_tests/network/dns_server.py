"""A DNS server on loopback for tests: answers TXT over UDP, or fails as it is told to."""

from __future__ import annotations

import socketserver
import threading
from collections import Counter
from typing import TYPE_CHECKING, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType


class DnsServer:
    """A server from `with` to its end; `texts` has the TXT records by name, whose parts are joined by `|`.

    A name that is not there does not exist. Of `empty` ones there are no TXT records, `failing` ones get SERVFAIL,
    `silent` ones no answer. `asked` counts the questions by name.
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[str]],
        *,
        empty: Sequence[str] = (),
        failing: Sequence[str] = (),
        silent: Sequence[str] = (),
    ) -> None:
        self.texts = dict(texts)
        self.empty = set(empty)
        self.failing = set(failing)
        self.silent = set(silent)
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, connection = self.request
                answer = outer.answer(dns.message.from_wire(data))
                if answer is not None:
                    connection.sendto(answer.to_wire(), self.client_address)

        self._server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def address(self) -> str:
        """Where it is, as `address:port`."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """Answer one question; None stays silent."""
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked[name] += 1
        if name in self.silent:
            return None
        answer = dns.message.make_response(query, recursion_available=True)
        if name in self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name in self.texts and question.rdtype == dns.rdatatype.TXT:
            records = [" ".join(f'"{part}"' for part in text.split("|")) for text in self.texts[name]]
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", *records))
        elif name not in self.empty:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()
