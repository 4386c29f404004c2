"""Operations of the log, and the documents that the directory's own software makes of them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.directory.documents import Claims, LookupFailedError, claims_of, parse_document
from backfill_dagster.directory.plc_operations import Effect, document_of, read_operations
from backfill_dagster.network.answers import BadAnswerError

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
PDS = {"type": "AtprotoPersonalDataServer", "endpoint": "https://pds.test"}
CREATE = {
    "type": "create",
    "signingKey": "did:key:zSigning",
    "recoveryKey": "did:key:zRecovery",
    "handle": "alice.test",
    "service": "https://pds.test",
    "prev": None,
    "sig": "x",
}


def operation(**fields: Any) -> dict[str, Any]:
    return {
        "type": "plc_operation",
        "verificationMethods": {"atproto": "did:key:zSigning"},
        "rotationKeys": ["did:key:zRotation"],
        "alsoKnownAs": ["at://alice.test"],
        "services": {"atproto_pds": PDS},
        "prev": "cid",
        "sig": "x",
        **fields,
    }


def line(operation: Any, **fields: Any) -> bytes:
    entry = {
        "did": DID,
        "operation": operation,
        "cid": "cid2",
        "nullified": False,
        "createdAt": "2023-05-01T12:00:00.123Z",
        **fields,
    }
    return json.dumps(entry).encode()


ALICE = Claims("alice.test", "https://pds.test", "Multikey", "zSigning")


@pytest.mark.parametrize(
    ("made", "claims"),
    [
        (operation(), ALICE),
        (CREATE, ALICE),
        ({**CREATE, "handle": "at://alice.test", "service": "https://pds.test"}, ALICE),
        ({**CREATE, "handle": "https://alice.test", "service": "pds.test"}, ALICE),
        ({**CREATE, "service": "http://pds.test"}, ALICE._replace(pds="http://pds.test")),
        (operation(alsoKnownAs=["https://alice.example", "at://alice.test", "at://b.test"]), ALICE),
        (operation(alsoKnownAs=[]), ALICE._replace(handle=None)),
        (operation(verificationMethods={"other": "did:key:zOther", "atproto": "did:key:zSigning"}), ALICE),
        (operation(verificationMethods={"atproto": "zSigning"}), ALICE),
        (operation(verificationMethods={}), ALICE._replace(key_type=None, key_multibase=None)),
        (operation(services={"atproto_labeler": PDS, "atproto_pds": PDS}), ALICE),
        (operation(services={"atproto_pds": {**PDS, "type": "Other"}}), ALICE._replace(pds=None)),
        (operation(services={}), ALICE._replace(pds=None)),
    ],
)
def test_what_an_operation_makes_its_document_say(made: dict[str, Any], claims: Claims) -> None:
    [read] = read_operations(line(made))

    assert (read.effect, read.claims) == (Effect.DOCUMENT, claims)


def test_what_the_directory_says_of_an_operation() -> None:
    first, second, third = read_operations(
        b"\n".join(
            [
                line(CREATE),
                line(operation(), nullified=True),
                line(
                    {"type": "plc_tombstone", "prev": "cid2", "sig": "x"},
                    createdAt="2024-01-01T00:00:00+00:00",
                ),
            ]
        )
    )

    assert (first.did, first.cid, first.is_genesis, first.nullified) == (DID, "cid2", True, False)
    assert first.created_at == datetime(2023, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)
    assert (second.is_genesis, second.nullified) == (False, True)
    assert (third.effect, third.is_genesis) == (Effect.TOMBSTONE, False)
    assert third.created_at == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "future"},
        {},
        [],
        None,
        operation(services={"atproto_pds": {**PDS, "endpoint": 5}}),
        operation(services=["https://pds.test"]),
        operation(services={"atproto_pds": None}),
        operation(verificationMethods={"atproto": 5}),
        {**CREATE, "handle": None},
    ],
)
def test_an_operation_in_no_known_form_is_kept_as_such(odd: Any) -> None:
    [read] = read_operations(line(odd))

    assert (read.effect, read.claims) == (Effect.UNKNOWN, Claims(None, None, None, None))


@pytest.mark.parametrize(
    "bad",
    [
        *(b"{", b"[]", b"5", line(CREATE, did=5), line(CREATE, cid=None)),
        *(
            line(CREATE, createdAt=time)
            for time in ("2023", "2023-05-01T12:00:00", 5, "0001-01-01T00:00:00Z")
        ),
        line(CREATE, createdAt="0001-01-01T00:00:00+05:00"),
    ],
)
def test_a_line_that_does_not_say_who_and_when_spoils_its_page(bad: bytes) -> None:
    with pytest.raises(BadAnswerError, match="line 2 ") as raised:
        read_operations(line(CREATE) + b"\n" + bad)
    assert "did:" not in str(raised.value)


def test_the_official_software_makes_the_same_document(shared_dir: Path) -> None:
    """Captured from one server: an account's document, and the data of the operation that made it."""
    chapter = (shared_dir / "realpds/responses.md").read_text().split("\n# G. ")[1]
    bodies = [json.loads(line) for line in chapter.splitlines() if line.startswith('{"')]
    documents = {body["id"]: body for body in bodies if "verificationMethod" in body}
    [data] = [body for body in bodies if "rotationKeys" in body and "did" in body]

    document = document_of({"type": "plc_operation", **data})

    assert document is not None
    assert claims_of(document) == claims_of(documents[data["did"]])
    assert claims_of(document).key_multibase is not None


def test_a_document_is_what_its_claims_make_of_it() -> None:
    body = json.dumps({**(document_of(operation()) or {}), "id": DID}).encode()
    identity = parse_document(DID, body)

    assert (identity.handle, identity.pds_origin, identity.key_multibase) == (
        "alice.test",
        "https://pds.test",
        "zSigning",
    )
    with pytest.raises(LookupFailedError, match="no personal data server"):
        parse_document(DID, json.dumps({**(document_of(operation(services={})) or {}), "id": DID}).encode())
