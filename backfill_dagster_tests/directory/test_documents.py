import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.directory.audit_log import MAX_KEYS, parse_audit_keys
from backfill_dagster.directory.documents import (
    DirectoryState,
    Identity,
    LookupFailedError,
    parse_document,
)

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
KEY = "zQ3shwBiUv5HdeBHD5dzrwdvSPw9ixVWcrRRsvsY25cmHdz2G"


def document(**changes: Any) -> dict[str, Any]:
    """Return a document as the directory gives it today, with these members changed (None removes one)."""
    whole: dict[str, Any] = {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": DID,
        "alsoKnownAs": ["at://alice.test"],
        "verificationMethod": [
            {"id": f"{DID}#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": KEY}
        ],
        "service": [
            {
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": "https://pds.example.com",
            }
        ],
    }
    whole.update(changes)
    return {name: value for name, value in whole.items() if value is not None}


def pds(endpoint: Any = "https://pds.example.com", **changes: Any) -> dict[str, Any]:
    service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
    return {**service, **changes}


def method(key: Any = KEY, **changes: Any) -> dict[str, Any]:
    return {"id": "#atproto", "type": "Multikey", "publicKeyMultibase": key, **changes}


def parse(**changes: Any) -> Identity:
    return parse_document(DID, json.dumps(document(**changes)).encode())


def refusal(body: bytes) -> tuple[DirectoryState, str]:
    with pytest.raises(LookupFailedError) as caught:
        parse_document(DID, body)
    return caught.value.state, caught.value.reason


def test_a_document_of_today_is_read() -> None:
    assert parse() == Identity(
        DID, "alice.test", "https://pds.example.com", "pds.example.com", "Multikey", KEY
    )


def test_the_endpoint_is_normalised() -> None:
    identity = parse(service=[pds("HTTPS://PDS.Example.com:443/")])

    assert (identity.pds_origin, identity.pds_host) == ("https://pds.example.com", "pds.example.com")
    assert parse(service=[pds("http://localhost:2583")]).pds_host == "localhost:2583"


def test_the_pds_is_found_by_id_and_type_among_other_services() -> None:
    services = [
        {"id": "#bsky_notif", "type": "BskyNotificationService", "serviceEndpoint": "https://no.example"},
        "not an object",
        pds("https://no.example", type="SomethingElse"),
        pds("https://no.example", id="#atproto_pds_2"),
        pds("https://no.example", id=7),
        pds("https://yes.example", id=f"{DID}#atproto_pds"),
        pds("https://later.example"),
    ]

    assert parse(service=services).pds_origin == "https://yes.example"


@pytest.mark.parametrize(
    ("names", "handle"),
    [
        (None, None),
        ([], None),
        ("at://alice.test", None),
        (["https://alice.test", 7, "at://alice.test", "at://bob.test"], "alice.test"),
        (["at://"], None),
        (["at://" + "a" * 254], None),
        (["at://é.test"], "é.test"),
    ],
)
def test_the_handle_is_the_first_of_its_kind(names: Any, handle: str | None) -> None:
    assert parse(alsoKnownAs=names).handle == handle


@pytest.mark.parametrize(
    ("methods", "key"),
    [
        ([method()], ("Multikey", KEY)),
        ([method(id=f"{DID}#atproto_label"), method(id=f"{DID}#atproto")], ("Multikey", KEY)),
        (
            [method("zREab3", type="EcdsaSecp256k1VerificationKey2019")],
            ("EcdsaSecp256k1VerificationKey2019", "zREab3"),
        ),
        ([method("zDnae"), method("second")], ("Multikey", "zDnae")),
        (None, (None, None)),
        ([], (None, None)),
        ({"id": "#atproto"}, (None, None)),
        ([method(None)], (None, None)),
        ([method(type=None)], (None, None)),
        ([method("z" * 5000)], (None, None)),
        ([method(id="#other")], (None, None)),
    ],
)
def test_the_signing_key_is_taken_as_it_stands_or_is_missing(methods: Any, key: tuple[str, str]) -> None:
    identity = parse(verificationMethod=methods)

    assert (identity.key_type, identity.key_multibase) == key


@pytest.mark.parametrize("services", [None, [], {}, "x", [None], [pds(type="Other")], [pds(id="#other")]])
def test_a_document_without_a_pds_says_so(services: Any) -> None:
    assert refusal(json.dumps(document(service=services)).encode())[0] is DirectoryState.NO_PDS


@pytest.mark.parametrize(
    "endpoint",
    [
        None,
        7,
        [],
        {"uri": "https://a.example"},
        "",
        "pds.example.com",
        "https://pds.example.com/path",
        "https://[::1]",
    ],
)
def test_an_endpoint_that_is_none_spoils_the_document(endpoint: Any) -> None:
    state, reason = refusal(json.dumps(document(service=[pds(endpoint), pds()])).encode())

    assert state is DirectoryState.BAD_DOCUMENT
    assert "PDS endpoint" in reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502</html>",
        b"[]",
        b"null",
        b'"did:plc:x"',
        b'{"id": "' + DID.encode(),
        b'{"id": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        json.dumps(document(id="did:plc:" + "a" * 24)).encode(),
        json.dumps(document(id=None)).encode(),
        json.dumps(document(id=["x" * 1000])).encode(),
    ],
    ids=range(13),
)
def test_what_is_no_document_of_the_did_is_refused(body: bytes) -> None:
    state, reason = refusal(body)

    assert state is DirectoryState.BAD_DOCUMENT
    assert 0 < len(reason) <= 300


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from(["#atproto", "#atproto_pds"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "type", "serviceEndpoint", "publicKeyMultibase", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["alsoKnownAs", "verificationMethod", "service", "id"]), json_values))
def test_no_document_breaks_the_reader(changes: dict[str, Any]) -> None:
    body = json.dumps({"id": DID, **changes}).encode()
    outcome: DirectoryState | str
    try:
        outcome = parse_document(DID, body).did
    except LookupFailedError as error:
        outcome = error.state
    assert outcome in (DID, DirectoryState.BAD_DOCUMENT, DirectoryState.NO_PDS)


def test_real_documents_of_the_official_directory_are_read(shared_dir: Path) -> None:
    text = (shared_dir / "realpds" / "responses.md").read_text(encoding="utf-8")
    bodies = re.findall(r'^\{"@context".*\}$', text, flags=re.MULTILINE)
    identities = [parse_document(json.loads(body)["id"], body.encode()) for body in bodies]

    assert len(identities) >= 6
    for identity in identities:
        assert identity.handle
        assert identity.handle.endswith(".test")
        assert re.fullmatch(r"http://(localhost|127\.0\.0\.1):258[34]", identity.pds_origin)
        assert identity.key_multibase
        assert identity.key_multibase.startswith("z")
    assert {identity.key_type for identity in identities} == {
        "Multikey",
        "EcdsaSecp256k1VerificationKey2019",
    }


# --- the audit log ---


def operation(key: Any, *, nullified: Any = False, **changes: Any) -> dict[str, Any]:
    body = {"type": "plc_operation", "verificationMethods": {"atproto": key}, **changes}
    return {"did": DID, "operation": body, "nullified": nullified, "createdAt": "2024-01-01T00:00:00Z"}


def keys(entries: Any) -> list[tuple[str, str]]:
    return parse_audit_keys(json.dumps(entries).encode())


def test_earlier_keys_come_newest_first_and_once() -> None:
    log = [
        {"did": DID, "operation": {"type": "create", "signingKey": "did:key:zA"}, "nullified": False},
        operation("did:key:zB"),
        operation("did:key:zX", nullified=True),
        operation("did:key:zA"),
        operation("did:key:zC"),
        operation("did:key:zC"),
    ]

    assert keys(log) == [("Multikey", "zC"), ("Multikey", "zA"), ("Multikey", "zB")]


def test_operations_without_a_key_are_passed_over() -> None:
    log = [
        operation("did:key:zA"),
        operation(None),
        operation("zB"),
        operation("did:key:z" + "q" * 5000),
        {"operation": {"type": "plc_tombstone"}, "nullified": False},
        {"operation": None, "nullified": False},
        None,
    ]

    assert keys(log) == [("Multikey", "zA")]
    assert keys([]) == []


def test_the_number_of_keys_is_bounded() -> None:
    log = [operation(f"did:key:z{number}") for number in range(1000)]

    assert keys(log) == [("Multikey", f"z{number}") for number in range(999, 999 - MAX_KEYS, -1)]


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"<html>", b"[" * 100_000])
def test_what_is_no_audit_log_is_refused(body: bytes) -> None:
    with pytest.raises(LookupFailedError) as caught:
        parse_audit_keys(body)
    assert caught.value.state is DirectoryState.BAD_DOCUMENT


@settings(deadline=None)
@given(json_values)
def test_no_audit_log_breaks_the_reader(value: Any) -> None:
    state = None
    try:
        keys(value)
    except LookupFailedError as error:
        state = error.state
    assert state is (None if isinstance(value, list) else DirectoryState.BAD_DOCUMENT)


def test_the_real_audit_log_of_a_migrated_account_has_both_keys(shared_dir: Path) -> None:
    text = (shared_dir / "realpds" / "responses.md").read_text(encoding="utf-8")
    logs = re.findall(r'^\[\{"did":.*\}\]$', text, flags=re.MULTILINE)

    assert logs
    for log in logs:
        first, second = json.loads(log)
        named = [entry["operation"]["verificationMethods"]["atproto"] for entry in (second, first)]
        assert [f"did:key:{key}" for _, key in parse_audit_keys(log.encode())] == named
