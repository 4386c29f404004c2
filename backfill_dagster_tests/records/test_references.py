from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.records.issues import Issues
from backfill_dagster.records.references import read_dids, read_references
from backfill_dagster_tests.records.batches import CID, OTHER_DID, URI


def vectors(shared_dir: Path, name: str) -> list[str]:
    lines = (shared_dir / f"vectors/interop/syntax/{name}.txt").read_text().split("\n")
    return [line for line in lines if line and not line.startswith("# ")]


def issues_of(issues: Issues, rows: int) -> list[list[str]]:
    return [list(found) for found in issues.column(rows).to_list()]


def read_uri(uri: Any) -> tuple[str | None, str | None, str | None, list[str]]:
    issues = Issues()
    read = read_references([{"uri": uri, "cid": CID}], "subject", issues)
    assert read.cid.to_list() == [CID]
    return read.uri[0], read.did[0], read.collection[0], issues_of(issues, 1)[0]


def test_the_protocols_own_uris_are_judged_alike(shared_dir: Path) -> None:
    valid, invalid = vectors(shared_dir, "aturi_syntax_valid"), vectors(shared_dir, "aturi_syntax_invalid")
    assert len(valid) > 20
    assert len(invalid) > 50
    for uri in valid:
        authority, *path = uri.removeprefix("at://").split("/")
        did = authority if authority.startswith("did:") else None
        issues = [] if did else ["subject.uri:no_did"]
        assert read_uri(uri) == (uri, did, path[0] if path else None, issues)
    for uri in invalid:
        assert read_uri(uri) == (None, None, None, ["subject.uri:not_an_at_uri"]), uri


def test_the_protocols_own_cids_and_dids_are_judged_alike(shared_dir: Path) -> None:
    for name, good in (("valid", True), ("invalid", False)):
        cids, dids = vectors(shared_dir, f"cid_syntax_{name}"), vectors(shared_dir, f"did_syntax_{name}")
        assert len(cids) > 4
        assert len(dids) > 10
        issues = Issues()
        read = read_references([{"uri": URI, "cid": cid} for cid in cids], "subject", issues)
        assert read.cid.to_list() == (cids if good else [None] * len(cids))
        assert issues_of(issues, len(cids)) == [[] if good else ["subject.cid:not_a_cid"]] * len(cids)
        issues = Issues()
        assert read_dids([{"subject": did} for did in dids], "subject", issues).to_list() == (
            dids if good else [None] * len(dids)
        )
        assert issues_of(issues, len(dids)) == [[] if good else ["subject:not_a_did"]] * len(dids)


@pytest.mark.parametrize(
    ("uri", "issue"),
    [
        (None, "subject.uri:null"),
        (7, "subject.uri:not_a_string"),
        (URI.encode(), "subject.uri:not_a_string"),
        ([URI], "subject.uri:not_a_string"),
        ("", "subject.uri:not_an_at_uri"),
        (f"{URI}\n", "subject.uri:not_an_at_uri"),
        (f"at://{OTHER_DID}/com.{'a' * 64}.post", "subject.uri:not_an_at_uri"),
        ("https://bsky.app/profile/bsky.app", "subject.uri:not_an_at_uri"),
    ],
)
def test_what_is_no_uri_is_null_and_named(uri: Any, issue: str) -> None:
    assert read_uri(uri) == (None, None, None, [issue])


def test_rows_keep_to_themselves() -> None:
    issues = Issues()
    parents = [
        None,
        {},
        {"uri": URI, "cid": CID},
        {"uri": 1, "cid": "x"},
        {"uri": "at://bsky.app", "cid": CID},
    ]
    read = read_references(parents, "via", issues)
    assert read.uri.to_list() == [None, None, URI, None, "at://bsky.app"]
    assert read.cid.to_list() == [None, None, CID, None, CID]
    assert read.did.to_list() == [None, None, OTHER_DID, None, None]
    assert read.collection.to_list() == [None, None, "app.bsky.feed.post", None, None]
    assert issues_of(issues, len(parents)) == [
        [],
        ["via.uri:missing", "via.cid:missing"],
        [],
        ["via.uri:not_a_string", "via.cid:not_a_cid"],
        ["via.uri:no_did"],
    ]
