"""TXT lookups against a real server on loopback."""

import asyncio
import socket

import pytest

from backfill_dagster.network.dns import DnsUnreachableError, TxtLookup
from backfill_dagster_tests.network.dns_server import DnsServer


def texts(server: str, name: str, timeout: float = 5) -> list[str]:
    return asyncio.run(TxtLookup(server, timeout).texts(name))


def test_the_pieces_of_a_text_are_put_together() -> None:
    with DnsServer({"a.test": ["did=did:plc:|abc", "other"]}) as server:
        assert sorted(texts(server.address, "a.test")) == ["did=did:plc:abc", "other"]


def test_a_name_that_is_not_there_or_has_no_text_has_none() -> None:
    with DnsServer({}, empty=["there.test"]) as server:
        assert texts(server.address, "not.test") == []
        assert texts(server.address, "there.test") == []


def test_a_name_too_long_for_dns_has_none() -> None:
    with DnsServer({}) as server:
        assert texts(server.address, "_atproto." + "a" * 60 + ".b" * 96) == []


@pytest.mark.parametrize("how", ["failing", "silent"])
def test_a_server_that_fails_is_told_from_one_that_knows_nothing(how: str) -> None:
    server = DnsServer({}, failing=["a.test"]) if how == "failing" else DnsServer({}, silent=["a.test"])
    with server, pytest.raises(DnsUnreachableError, match=r"a\.test"):
        texts(server.address, "a.test", timeout=0.3)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    with pytest.raises(DnsUnreachableError):
        texts(f"127.0.0.1:{port}", "a.test", timeout=0.5)


def test_many_records_of_other_services_are_not_all_looked_at() -> None:
    with DnsServer({"a.test": [f"v=spf{number}" for number in range(20)]}) as server:
        assert len(texts(server.address, "a.test")) == 20
