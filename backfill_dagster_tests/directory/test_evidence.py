"""What was received about accounts' keys: kept once, byte for byte, and out of which a purge takes people."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.directory import evidence
from backfill_dagster.directory.evidence import (
    DOCUMENTS_FOLDER,
    EVIDENCE_SCHEMA,
    EvidenceKind,
    EvidenceLog,
    KnownKey,
    keys_told,
    purge_evidence,
    put_together,
)
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.verification.packed import DIDS, SIGNERS, document

FIRST, SECOND = DIDS
NOW = datetime(2025, 1, 1, tzinfo=UTC)
KEY = SIGNERS[0].did_key.removeprefix("did:key:")


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    (tmp_path / "study").mkdir()
    return StudyStorage(tmp_path / "study")


def stored(storage: StudyStorage) -> pl.DataFrame:
    keys = storage.keys(DOCUMENTS_FOLDER)
    return pl.concat([EVIDENCE_SCHEMA.to_frame(), *map(storage.read, keys)]).sort("did", "kind", "sha256")


def add(storage: StudyStorage, *bodies: bytes, did: str = FIRST) -> None:
    log = EvidenceLog(storage)
    for body in bodies:
        log.add(did, EvidenceKind.DID_DOCUMENT, body)
    log.flush()


def test_a_document_is_kept_as_it_was_received_and_once(storage: StudyStorage) -> None:
    body = b'{"id": "did:plc:x",   "spaces": "kept"}'
    add(storage, body, body)
    add(storage, body)
    rows = stored(storage)
    assert rows["body"].to_list() == [body]
    assert rows["sha256"].to_list() == [hashlib.sha256(body).hexdigest()]
    assert rows["masked"].to_list() == [False]


def test_another_document_is_kept_beside_the_first(storage: StudyStorage) -> None:
    add(storage, b"{}")
    add(storage, b'{"other": 1}', b"{}")
    assert sorted(stored(storage)["body"]) == [b'{"other": 1}', b"{}"]


def test_much_is_written_before_it_is_much(storage: StudyStorage) -> None:
    log = EvidenceLog(storage)
    for number in range(1025):
        log.add(FIRST, EvidenceKind.DID_DOCUMENT, str(number).encode())
    assert stored(storage).height == 1024
    log.add(SECOND, EvidenceKind.PLC_AUDIT_LOG, bytes(9 * 2**20))
    assert stored(storage).height == 1026


def test_of_many_documents_each_is_kept_once(storage: StudyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_RECENT", 5)
    bodies = [str(number).encode() for number in range(40)]
    log = EvidenceLog(storage)
    # Each a second time: in the same lot, some lots later, and when it is stored since long.
    for first in range(0, 40, 3):
        for body in (*bodies[first : first + 3], bodies[first], *bodies[:first:7]):
            log.add(FIRST, EvidenceKind.DID_DOCUMENT, body)
        log.flush()
    add(storage, *bodies)
    assert sorted(stored(storage)["body"]) == sorted(bodies)


def test_what_the_export_says_is_kept_with_the_key(storage: StudyStorage) -> None:
    row = {
        "did": FIRST,
        "handle": "a.test",
        "pds": "https://pds.test",
        "key_type": "Multikey",
        "key_multibase": KEY,
        "state": "resolved",
        "resolved_at": NOW,
    }
    log = EvidenceLog(storage)
    log.add_exported(
        pl.DataFrame([row, {**row, "did": SECOND, "key_multibase": None}], schema=DIRECTORY_SCHEMA)
    )
    log.flush()
    log.add_exported(
        pl.DataFrame([{**row, "resolved_at": datetime(2025, 2, 1, tzinfo=UTC)}], schema=DIRECTORY_SCHEMA)
    )
    log.flush()
    [(did, kind, body)] = stored(storage).select("did", "kind", "body").iter_rows()
    assert keys_told(did, kind, body) == [KnownKey("Multikey", KEY, EvidenceKind.PLC_OPERATION)]


def test_many_small_files_become_few(storage: StudyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_MANY_FILES", 4)
    bodies = [str(number).encode() for number in range(6)]
    for body in bodies:
        add(storage, body)
    before = stored(storage)
    assert len(storage.keys(DOCUMENTS_FOLDER)) == 6
    put_together(storage)
    assert len(storage.keys(DOCUMENTS_FOLDER)) == 1
    assert stored(storage).equals(before)
    add(storage, *bodies)
    assert stored(storage).equals(before)


# --- purge ---


def test_nothing_of_a_purged_account_is_kept(storage: StudyStorage) -> None:
    add(storage, document(FIRST, SIGNERS[0].did_key))
    add(storage, document(SECOND, SIGNERS[1].did_key), did=SECOND)
    tombstones = bury(storage, [FIRST], [], NOW)
    assert purge_evidence(storage, tombstones) == 1
    assert purge_evidence(storage, tombstones) == 0
    add(storage, document(FIRST, SIGNERS[0].did_key))
    assert stored(storage)["did"].to_list() == [SECOND]


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("already_buried", [False, True])
def test_a_purged_account_is_masked_where_another_s_document_names_it(
    escaped: bool, already_buried: bool, storage: StudyStorage
) -> None:
    body = document(SECOND, SIGNERS[1].did_key, also=f"at://{FIRST}")
    if escaped:
        body = body.replace(FIRST.encode(), FIRST.replace(":", "\\u003a").encode())
        assert json.loads(body)["alsoKnownAs"] == [f"at://{FIRST}"]
    if not already_buried:
        add(storage, body, did=SECOND)
    tombstones = bury(storage, [FIRST], [], NOW)
    if already_buried:
        add(storage, body, did=SECOND)
    purge_evidence(storage, tombstones)
    [(did, kind, masked_body, sha256, masked)] = (
        stored(storage).select("did", "kind", "body", "sha256", "masked").iter_rows()
    )
    assert FIRST not in json.dumps(json.loads(masked_body))
    assert (masked, sha256) == (True, hashlib.sha256(masked_body).hexdigest())
    assert [key.key_multibase for key in keys_told(did, kind, masked_body)] == [
        SIGNERS[1].did_key.removeprefix("did:key:")
    ]


def test_a_purge_of_nobody_that_is_named_changes_no_file(storage: StudyStorage) -> None:
    add(storage, document(SECOND, SIGNERS[1].did_key), did=SECOND)
    before = {key: storage.sha256(key) for key in storage.keys(DOCUMENTS_FOLDER)}
    assert purge_evidence(storage, bury(storage, [FIRST], [], NOW)) == 0
    assert {key: storage.sha256(key) for key in storage.keys(DOCUMENTS_FOLDER)} == before


# --- keys ---


def audit_log(did: str, *keys: str) -> bytes:
    return json.dumps(
        [
            {
                "did": did,
                "nullified": False,
                "operation": {"verificationMethods": {"atproto": f"did:key:{key}"}},
            }
            for key in keys
        ]
    ).encode()


def test_an_audit_log_tells_of_all_keys() -> None:
    told = keys_told(FIRST, "plc_audit_log", audit_log(FIRST, "zOld", "zNew"))
    assert [key.key_multibase for key in told] == ["zNew", "zOld"]
    assert keys_told(FIRST, "plc_audit_log", audit_log(SECOND, "zOld")) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'"text"',
        document(SECOND, SIGNERS[0].did_key),
        b"\xff",
        b'{"id": "' + FIRST.encode() + b'", "verificationMethod": 7}',
        json.dumps({"did": FIRST, "type": 7, "publicKeyMultibase": None}).encode(),
    ],
)
@pytest.mark.parametrize("kind", EvidenceKind)
def test_what_tells_of_no_key_of_the_account_gives_none(kind: EvidenceKind, body: bytes) -> None:
    assert keys_told(FIRST, kind.value, body) == []
