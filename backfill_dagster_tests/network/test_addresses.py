import asyncio
import socket
import string
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.errors import ConfigError
from backfill_dagster.network.addresses import (
    AddressPolicy,
    BadEndpointError,
    PolicyResolver,
    RefusedAddressError,
    host_of,
    is_public,
    look_up,
    parse_endpoint,
)


@pytest.mark.parametrize(
    ("text", "origin", "host"),
    [
        ("https://pds.example.com", "https://pds.example.com", "pds.example.com"),
        ("HTTPS://PDS.Example.COM:443/", "https://pds.example.com", "pds.example.com"),
        ("http://pds.example.com:80", "http://pds.example.com", "pds.example.com"),
        ("https://pds.example.com:80", "https://pds.example.com:80", "pds.example.com:80"),
        ("http://localhost:2583", "http://localhost:2583", "localhost:2583"),
        ("http://127.0.0.1:2583/", "http://127.0.0.1:2583", "127.0.0.1:2583"),
        ("https://bücher.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("https://8chan.example", "https://8chan.example", "8chan.example"),
        (f"https://{'a' * 63}.example", f"https://{'a' * 63}.example", f"{'a' * 63}.example"),
    ],
)
def test_endpoint_is_normalised(text: str, origin: str, host: str) -> None:
    endpoint = parse_endpoint(text)

    assert endpoint.origin == origin
    assert endpoint.host == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pds.example.com",
        "//pds.example.com",
        "ftp://pds.example.com",
        "https://",
        "https:///path",
        "https://pds.example.com/xrpc",
        "https://pds.example.com//",
        "https://pds.example.com?",
        "https://pds.example.com?a=b",
        "https://pds.example.com#",
        "https://user@pds.example.com",
        "https://user:secret@pds.example.com",
        "https://good.example\\@evil.example",
        "https://[::1]",
        "https://[2606:4700::1111]:443",
        "https://pds.example.com.",
        "https://pds..example",
        "https://.example",
        "https://pds_1.example.com",
        "https://-pds.example.com",
        "https://pds-.example.com",
        "https://a%2Fb.example",
        "https://../../etc",
        "https://pds.example.com:0",
        "https://pds.example.com:65536",
        "https://pds.example.com:port",
        " https://pds.example.com",
        "https://pds.example.com ",
        "https://pds.example.com\n",
        "https://127.1",
        "https://2130706433",
        "https://0x7f000001",
        "https://0x7f.1",
        "https://1.2.3.4.5",
        "https://1.2.3.256",
        "https://017.0.0.1",
        "https://" + "a" * 64 + ".example",
        "https://" + ".".join(["a" * 60] * 5),
        "https://" + "a" * 100_000,
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(BadEndpointError) as caught:
        parse_endpoint(text)
    assert len(str(caught.value)) < 500


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(alphabet=string.printable, max_size=40).map("https://".__add__))
def test_an_endpoint_is_in_normal_form_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except BadEndpointError:
        return
    assert parse_endpoint(endpoint.origin) == endpoint
    assert not set(endpoint.host) - set(string.ascii_lowercase + string.digits + "-.:")
    assert ".." not in endpoint.host
    assert len(endpoint.name) <= 240


PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "64:ff9b::808:808",
]
PRIVATE = [
    *("0.0.0.0", "10.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
    *(
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
    ),
    *("168.63.129.16", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "fe80::1", "fe80::1%2", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "3fff::1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1", "5f00::1", "4000::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    AddressPolicy().check(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_other_addresses_are_refused_unless_allowed(address: str) -> None:
    with pytest.raises(RefusedAddressError):
        AddressPolicy().check(address)
    AddressPolicy(allow_private=True).check(address)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_nothing_that_python_calls_private_is_public(address: IPv4Address) -> None:
    assert not (is_public(address) and (address.is_private or address.is_multicast or address.is_reserved))


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_a_translated_address_is_judged_by_the_one_within(address: IPv4Address) -> None:
    translated = ip_address((0x64FF9B << 96) | int(address))

    assert is_public(translated) == is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "2130706433", "127.1", "0x7f000001", "017700000001", "10.0.0.1."]
)
def test_an_address_in_a_url_is_refused_in_any_spelling(host: str) -> None:
    with pytest.raises(RefusedAddressError):
        AddressPolicy().check_literal(host, 80)


def test_names_and_public_addresses_in_a_url_pass() -> None:
    policy = AddressPolicy()
    policy.check_literal("pds.example.com", 443)
    policy.check_literal("8.8.8.8", 443)


def test_an_address_can_be_let_through_by_mapping_it_to_itself() -> None:
    policy = AddressPolicy(connect_to={"127.0.0.1:2583": "127.0.0.1:2583"})

    policy.check_literal("127.0.0.1", 2583)
    with pytest.raises(RefusedAddressError):
        policy.check_literal("127.0.0.1", 2584)


def test_an_address_cannot_be_led_elsewhere() -> None:
    with pytest.raises(ConfigError, match="host name"):
        AddressPolicy(connect_to={"127.0.0.1:80": "127.0.0.1:2583"})


def resolve(
    policy: AddressPolicy, host: str, port: int, found: dict[str, list[str]]
) -> list[tuple[str, int]]:
    async def lookup(name: str, port: int) -> list[str]:
        if name not in found:
            raise OSError("no such name")
        return found[name]

    results = asyncio.run(PolicyResolver(policy, lookup).resolve(host, port))
    return [(result["host"], result["port"]) for result in results]


def test_only_allowed_addresses_of_a_name_are_connected_to() -> None:
    found = {"mixed.test": ["10.0.0.1", "8.8.8.8", "::1"]}

    assert resolve(AddressPolicy(), "mixed.test", 443, found) == [("8.8.8.8", 443)]


def test_a_name_without_any_allowed_address_is_refused() -> None:
    with pytest.raises(RefusedAddressError, match=r"169\.254\.169\.254"):
        resolve(AddressPolicy(), "metadata.test", 80, {"metadata.test": ["169.254.169.254"]})


def test_a_name_without_addresses_fails_as_one_that_does_not_exist() -> None:
    with pytest.raises(OSError, match="no address"):
        resolve(AddressPolicy(), "empty.test", 80, {"empty.test": []})


def test_connect_to_leads_a_host_and_port_elsewhere_whatever_the_address() -> None:
    policy = AddressPolicy(
        connect_to={"PDS1.sandbox.test:80": "127.0.0.1:4001", "b.test:80": "backend.test:5"}
    )

    assert resolve(policy, "pds1.sandbox.test", 80, {}) == [("127.0.0.1", 4001)]
    assert resolve(policy, "b.test", 80, {"backend.test": ["10.0.0.9"]}) == [("10.0.0.9", 5)]
    with pytest.raises(RefusedAddressError):
        resolve(policy, "pds1.sandbox.test", 81, {"pds1.sandbox.test": ["127.0.0.1"]})


def test_the_system_resolver_is_asked() -> None:
    assert "127.0.0.1" in asyncio.run(look_up("localhost", 80))
    with pytest.raises(socket.gaierror):
        asyncio.run(look_up("no-such-host.invalid", 80))
    with pytest.raises(OSError, match="cannot be looked up"):
        asyncio.run(look_up("a" * 64 + ".test", 80))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://PDS.test/a?b#c", "pds.test"),
        ("https://pds.test:443", "pds.test"),
        ("HTTP://pds.test:80/", "pds.test"),
        ("https://pds.test:80/", "pds.test:80"),
        ("http://pds.test.:8080/", "pds.test:8080"),
        ("https://m\u00fcnchen.test", "xn--mnchen-3ya.test"),
        ("http://[2001:0DB8::0:1]:81/", "[2001:db8::1]:81"),
    ],
)
def test_a_host_has_one_name_in_all_its_spellings(url: str, host: str) -> None:
    assert host_of(url) == host
