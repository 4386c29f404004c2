import time
from typing import Any

import pytest

from backfill_dagster.repos.commit import parse_commit
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster_tests.repos.forge import (
    DID,
    REV,
    K256Signer,
    Link,
    cbor,
    cid_of,
    commit,
    head,
    ordered_map,
)

DATA = cid_of(b"tree")
SIGNER = K256Signer()


def refusal(block: bytes) -> RepoFault:
    with pytest.raises(RepoRejectedError) as caught:
        parse_commit(block)
    return caught.value.fault


def test_a_commit_is_read() -> None:
    parsed = parse_commit(commit(DATA, SIGNER))

    assert (parsed.did, parsed.version, parsed.rev, parsed.data) == (DID, 3, REV, DATA)
    assert parsed.unsigned == cbor({"did": DID, "version": 3, "data": DATA, "rev": REV, "prev": None})
    assert parsed.signature == SIGNER.sign(parsed.unsigned)


def test_fields_that_nobody_knows_stay_in_what_was_signed() -> None:
    extra = {
        "aa": None,
        "zz": [1, -1, True, 1 << 63, "ü", b"bytes", Link(DATA)],
        "nested": {"b": Link(DATA), "aa": {}},
    }

    parsed = parse_commit(commit(DATA, SIGNER, **extra))

    assert parsed.unsigned == cbor({"did": DID, "version": 3, "data": DATA, "rev": REV, "prev": None} | extra)


@pytest.mark.parametrize("rev", [..., REV])
def test_version_2_may_have_no_revision(rev: Any) -> None:
    parsed = parse_commit(commit(DATA, SIGNER, version=2, rev=rev))

    assert parsed.version == 2
    assert parsed.rev == (None if rev is ... else REV)


@pytest.mark.parametrize("prev", [..., None, Link(cid_of(b"before"))])
def test_the_commit_before_is_optional(prev: Any) -> None:
    block = commit(DATA, SIGNER, prev=prev)

    assert parse_commit(block).signature == SIGNER.sign(parse_commit(block).unsigned)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 1},
        {"version": 4},
        {"version": "3"},
        {"version": True},
        {"version": ...},
        {"did": ...},
        {"did": b"did:plc:bytes"},
        {"did": None},
        {"rev": ...},
        {"rev": None},
        {"rev": ""},
        {"rev": "zzzzzzzzzzzzz"},
        {"rev": "latest"},
        {"rev": b"3l4qxwyzabc2k"},
        {"version": 2, "rev": "latest"},
        {"data": ...},
        {"data": None},
        {"data": bytes(DATA)},
        {"data": Link(cid_of(b"tree", codec=0x55))},
        {"data": Link(DATA[:-1])},
        {"data": Link(DATA + b"\0")},
        {"data": Link(b"\x12\x20" + bytes(32))},
        {"prev": bytes(DATA)},
        {"prev": "bafyrei"},
        {"prev": Link(b"\x01\x71\x13\x40" + bytes(64))},
    ],
)
def test_a_field_that_is_not_what_it_should_be(fields: dict[str, object]) -> None:
    assert refusal(commit(DATA, SIGNER, **fields)) is RepoFault.BAD_COMMIT


@pytest.mark.parametrize("signature", [..., None, "sig", Link(DATA)])
def test_a_commit_without_a_signature(signature: object) -> None:
    fields = {"did": DID, "version": 3, "data": DATA, "rev": REV, "prev": None, "sig": signature}

    assert refusal(cbor({k: v for k, v in fields.items() if v is not ...})) is RepoFault.BAD_COMMIT


FIELDS = [("did", DID), ("rev", REV), ("sig", bytes(64)), ("data", DATA), ("prev", None), ("version", 3)]


def test_the_cases_below_start_from_a_commit_that_is_read() -> None:
    assert parse_commit(ordered_map(FIELDS)).rev == REV


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xa0",
        b"\xf6",
        cbor([dict(FIELDS)]),
        b"not CBOR",
        ordered_map(reversed(FIELDS)),
        ordered_map([*FIELDS, ("version", 3)]),
        ordered_map([FIELDS[0], *FIELDS]),
        ordered_map(FIELDS) + b"\xf6",
        ordered_map(FIELDS)[:-1],
        ordered_map(FIELDS).replace(b"\x67version\x03", b"\x67version\x18\x03"),
        ordered_map(FIELDS).replace(b"\x67version\x03", b"\x67version\xfb\x40\x08" + bytes(6)),
        ordered_map(FIELDS).replace(b"\x63rev", b"\x78\x03rev"),
        ordered_map(FIELDS).replace(b"\xa6", b"\xbf", 1) + b"\xff",
        ordered_map([*FIELDS, ("whatever", 1.5)][:0]) + b"\xf9\x3e\x00",
        ordered_map(FIELDS).replace(b"\x64prev\xf6", b"\x64prev\xf7"),
        ordered_map(FIELDS).replace(b"\xd8\x2a\x58\x25\x00", b"\xd9\x00\x2a\x58\x25\x00"),
        ordered_map(FIELDS).replace(DID.encode(), b"\xff" * len(DID)),
    ],
)
def test_another_encoding_is_refused(block: bytes) -> None:
    assert refusal(block) is RepoFault.BAD_COMMIT


@pytest.mark.parametrize("nesting", [b"\x81", b"\x99\x1f\xff", b"\xa1\x61a", b"\x98\xff"])
def test_nesting_costs_neither_the_stack_nor_much_time(nesting: bytes) -> None:
    block = head(5, 1) + b"\x61a" + nesting * (8000 // len(nesting))
    started = time.monotonic()

    assert refusal(block) is RepoFault.BAD_COMMIT
    assert refusal(block + b"\xf6") is RepoFault.BAD_COMMIT
    assert time.monotonic() - started < 2
