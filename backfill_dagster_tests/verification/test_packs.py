"""A pack that is proven again: what was signed holds, and what somebody changes who cannot sign is found."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backfill_dagster.directory.evidence import EvidenceKind, EvidenceLog
from backfill_dagster.purge.rewrite import purge_pack
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.repos.cid import cid_text
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.verdicts import FileProblem, SnapshotVerdict
from backfill_dagster_tests.repos import forge
from backfill_dagster_tests.repos.exported import WHOLE_REPOS, exported_repo
from backfill_dagster_tests.verification.packed import (
    DIDS,
    REVS,
    SIGNERS,
    Change,
    Forgery,
    document,
    prove,
    records_of,
    repo_of,
    store,
    two_accounts,
    verdicts,
)

PROVEN = SnapshotVerdict.PROVEN.value
FIRST, SECOND = DIDS
THIEF = forge.K256Signer(b"\x66" * 32)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return two_accounts(tmp_path / "study")


def test_what_was_stored_is_proven(storage: StudyStorage) -> None:
    proof = prove(storage)
    assert proof.verdicts["verdict"].to_list() == [PROVEN, PROVEN]
    assert proof.verdicts["key_source"].to_list() == ["did_document"] * 2
    assert proof.verdicts["records"].to_list() == [7, 7]
    assert (proof.found, proof.records) == ([], 14)


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_repositories_of_official_software_are_proven(name: str, tmp_path: Path) -> None:
    exported = exported_repo(name)
    storage = store(tmp_path / "study", {exported.did: (exported.car, exported.signing_key)})
    assert verdicts(storage) == [PROVEN]


def drop_row(pack: Forgery) -> None:
    pack.blocks.remove(pack.blocks_of(FIRST)[2])


def drop_row_and_count(pack: Forgery) -> None:
    drop_row(pack)
    pack.of(FIRST)["records"] -= 1


def excuse_by_purge(pack: Forgery) -> None:
    drop_row(pack)
    pack.of(FIRST)["purged"] = 1


def excuse_by_not_taken(pack: Forgery) -> None:
    dropped = pack.blocks_of(FIRST)[2]
    pack.blocks.remove(dropped)
    left = {"collection": dropped["collection"], "rkey": dropped["rkey"], "cid": None, "reason": "malformed"}
    pack.of(FIRST)["not_taken"] = [left]


def add_row(pack: Forgery) -> None:
    block = forge.cbor({"$type": "app.bsky.feed.post", "text": "never said"})
    row = {"did": FIRST, "collection": "app.bsky.feed.post", "rkey": "3kzzzzzzzzzzz"}
    pack.blocks.append({**row, "cid": bytes(forge.cid_of(block)), "block": block})
    pack.of(FIRST)["records"] += 1


def repeat_row(pack: Forgery) -> None:
    pack.blocks.append(dict(pack.blocks_of(FIRST)[2]))
    pack.blocks.remove(pack.blocks_of(FIRST)[3])


def change_block(pack: Forgery) -> None:
    pack.blocks_of(FIRST)[2]["block"] += b"!"


def change_block_and_cid(pack: Forgery) -> None:
    row = pack.blocks_of(FIRST)[2]
    row["block"] = forge.cbor({"text": "another"})
    row["cid"] = bytes(forge.cid_of(row["block"]))


def change_key_of_row(pack: Forgery) -> None:
    pack.blocks_of(FIRST)[2]["rkey"] = "3kzzzzzzzzzzz"


def shorten_cid(pack: Forgery) -> None:
    pack.blocks_of(FIRST)[2]["cid"] = b"\x01\x71\x12\x20"


def too_long_a_key(pack: Forgery) -> None:
    pack.blocks_of(FIRST)[2]["rkey"] = "a" * 2000


def move_row(pack: Forgery) -> None:
    pack.blocks_of(FIRST)[2]["did"] = SECOND
    pack.of(FIRST)["records"] -= 1


def swap_commits(pack: Forgery) -> None:
    first, second = pack.of(FIRST), pack.of(SECOND)
    for name in ("commit_block", "commit_cid", "repo_rev", "signing_key"):
        first[name], second[name] = second[name], first[name]


def older_commit(pack: Forgery) -> None:
    older = repo_of(0, rev=REVS[0], records=5)
    row = pack.of(FIRST)
    row["commit_block"], row["commit_cid"] = older.blocks[older.root], cid_text(older.root)


def older_commit_and_revision(pack: Forgery) -> None:
    older_commit(pack)
    pack.of(FIRST)["repo_rev"] = REVS[0]


def own_commit(pack: Forgery) -> None:
    drop_row_and_count(pack)
    leaves = {
        f"{row['collection']}/{row['rkey']}".encode(): forge.Link(row["cid"]) for row in pack.blocks_of(FIRST)
    }
    block = forge.commit(forge.tree(leaves)[0], THIEF, did=FIRST, rev=REVS[1])
    row = pack.of(FIRST)
    row["commit_block"], row["commit_cid"] = block, cid_text(forge.cid_of(block))


def own_commit_and_key(pack: Forgery) -> None:
    own_commit(pack)
    pack.of(FIRST)["signing_key"] = THIEF.did_key


def other_commit_cid(pack: Forgery) -> None:
    pack.of(FIRST)["commit_cid"] = cid_text(forge.cid_of(b"another"))


def no_commit(pack: Forgery) -> None:
    pack.of(FIRST)["commit_block"] = None


def broken_commit(pack: Forgery) -> None:
    row = pack.of(FIRST)
    row["commit_block"] = row["commit_block"][:-1]
    row["commit_cid"] = cid_text(forge.cid_of(row["commit_block"]))


def broken_signature(pack: Forgery) -> None:
    row = pack.of(FIRST)
    block = bytearray(row["commit_block"])
    block[block.index(b"csig") + 8] ^= 1
    row["commit_block"], row["commit_cid"] = bytes(block), cid_text(forge.cid_of(bytes(block)))


def other_signing_key(pack: Forgery) -> None:
    pack.of(FIRST)["signing_key"] = THIEF.did_key


def excuse_by_masking(pack: Forgery) -> None:
    row = pack.blocks_of(FIRST)[2]
    row["block"] = forge.cbor({"text": f"not by did:plc:{'x' * 24}"})
    noted = {"collection": row["collection"], "rkey": row["rkey"]}
    pack.of(FIRST)["masked"] = [{**noted, "sha256": hashlib.sha256(row["block"]).hexdigest()}]


FORGERIES: dict[Change, SnapshotVerdict] = {
    drop_row: SnapshotVerdict.ROWS_DIFFER,
    drop_row_and_count: SnapshotVerdict.TREE_DIFFERS,
    excuse_by_purge: SnapshotVerdict.UNEXPLAINED,
    excuse_by_not_taken: SnapshotVerdict.TREE_DIFFERS,
    add_row: SnapshotVerdict.TREE_DIFFERS,
    repeat_row: SnapshotVerdict.ROWS_DIFFER,
    change_block: SnapshotVerdict.BLOCK_DIFFERS,
    change_block_and_cid: SnapshotVerdict.TREE_DIFFERS,
    change_key_of_row: SnapshotVerdict.TREE_DIFFERS,
    shorten_cid: SnapshotVerdict.BLOCK_DIFFERS,
    too_long_a_key: SnapshotVerdict.TREE_DIFFERS,
    move_row: SnapshotVerdict.TREE_DIFFERS,
    swap_commits: SnapshotVerdict.COMMIT_DIFFERS,
    older_commit: SnapshotVerdict.COMMIT_DIFFERS,
    older_commit_and_revision: SnapshotVerdict.TREE_DIFFERS,
    own_commit: SnapshotVerdict.SIGNATURE_DIFFERS,
    own_commit_and_key: SnapshotVerdict.SIGNATURE_DIFFERS,
    other_commit_cid: SnapshotVerdict.COMMIT_DIFFERS,
    no_commit: SnapshotVerdict.COMMIT_DIFFERS,
    broken_commit: SnapshotVerdict.COMMIT_DIFFERS,
    broken_signature: SnapshotVerdict.SIGNATURE_DIFFERS,
    other_signing_key: SnapshotVerdict.SIGNATURE_DIFFERS,
    excuse_by_masking: SnapshotVerdict.UNEXPLAINED,
}


@pytest.mark.parametrize("change", FORGERIES, ids=lambda change: change.__name__)
def test_a_forgery_with_all_digests_mended_is_found(change: Change, storage: StudyStorage) -> None:
    pack = Forgery(storage)
    change(pack)
    pack.write()
    first, second = verdicts(storage)
    assert first == FORGERIES[change].value
    touched: dict[Change, SnapshotVerdict] = {
        move_row: SnapshotVerdict.ROWS_DIFFER,
        swap_commits: SnapshotVerdict.COMMIT_DIFFERS,
    }
    assert second == touched.get(change, SnapshotVerdict.PROVEN).value


def test_what_is_written_back_unchanged_is_proven(storage: StudyStorage) -> None:
    Forgery(storage).write()
    assert verdicts(storage) == [PROVEN, PROVEN]


def test_records_of_accounts_that_are_in_no_row_are_found(storage: StudyStorage) -> None:
    pack = Forgery(storage)
    pack.rows.remove(pack.of(SECOND))
    pack.write()
    proof = prove(storage)
    assert proof.verdicts["verdict"].to_list() == [PROVEN]
    assert [found.problem for found in proof.found] == [FileProblem.STRAY_RECORDS]


@pytest.mark.parametrize("change", ["flipped", "cut", "gone"])
def test_a_damaged_blocks_file_is_found(change: str, storage: StudyStorage) -> None:
    path = storage.path(Forgery(storage).blocks_key)
    data = bytearray(path.read_bytes())
    match change:
        case "flipped":
            data[len(data) // 3] ^= 4
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[:-1])
        case "gone":
            path.unlink()
    proof = prove(storage)
    assert set(proof.verdicts["verdict"]) == {SnapshotVerdict.DAMAGED_FILE.value}
    assert [found.problem for found in proof.found] == [
        FileProblem.MISSING if change == "gone" else FileProblem.CHANGED
    ]


# --- keys ---


def test_without_a_document_the_key_is_not_known_to_be_the_account_s(tmp_path: Path) -> None:
    storage = two_accounts(tmp_path / "study", with_documents=False)
    proof = prove(storage)
    assert proof.verdicts["verdict"].to_list() == [SnapshotVerdict.KEY_UNKNOWN.value] * 2
    assert proof.verdicts["key_source"].to_list() == ["pack"] * 2


def test_a_document_with_another_key_is_found(tmp_path: Path) -> None:
    storage = two_accounts(tmp_path / "study", with_documents=False)
    log = EvidenceLog(storage)
    log.add(FIRST, EvidenceKind.DID_DOCUMENT, document(FIRST, THIEF.did_key))
    log.add(SECOND, EvidenceKind.DID_DOCUMENT, document(FIRST, SIGNERS[1].did_key))
    log.flush()
    # The second one is another account's, and so tells of no key.
    assert verdicts(storage) == [
        SnapshotVerdict.SIGNATURE_DIFFERS.value,
        SnapshotVerdict.KEY_UNKNOWN.value,
    ]


@pytest.mark.parametrize("checks_signatures", [True, False])
@pytest.mark.parametrize("with_documents", [True, False])
def test_a_signature_may_be_unchecked_only_where_none_is_asked_for(
    with_documents: bool, checks_signatures: bool, tmp_path: Path
) -> None:
    storage = two_accounts(tmp_path / "study", with_documents=with_documents)
    pack = Forgery(storage)
    own_commit(pack)
    pack.of(FIRST)["signing_key"] = pack.of(FIRST)["signed_by"] = None
    pack.write()
    if not checks_signatures:
        expected = SnapshotVerdict.SIGNATURE_UNCHECKED
    elif with_documents:
        expected = SnapshotVerdict.SIGNATURE_DIFFERS
    else:
        expected = SnapshotVerdict.KEY_UNKNOWN
    assert verdicts(storage, checks_signatures=checks_signatures)[0] == expected.value


def test_any_of_an_account_s_documents_may_have_the_key(storage: StudyStorage) -> None:
    log = EvidenceLog(storage)
    log.add(FIRST, EvidenceKind.DID_DOCUMENT, document(FIRST, THIEF.did_key))
    log.flush()
    assert verdicts(storage) == [PROVEN, PROVEN]


# --- after a purge ---

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def purge(storage: StudyStorage) -> None:
    for host, _, key in pack_keys(storage):
        purge_pack(storage.folder, host, key)


def test_records_in_which_the_purged_are_masked_are_told_from_changed_ones(tmp_path: Path) -> None:
    named = repo_of(0, name=f"written to {SECOND}")
    cars = {FIRST: (named.car(), SIGNERS[0].did_key), SECOND: (repo_of(1).car(), SIGNERS[1].did_key)}
    storage = store(tmp_path / "study", cars)
    bury(storage, [SECOND], [], NOW)
    purge(storage)
    proof = prove(storage)
    assert proof.verdicts.select("did", "verdict", "masked").rows() == [(FIRST, "proven_masked", 1)]

    pack = Forgery(storage)
    [masked] = [row for row in pack.blocks_of(FIRST) if b"xxxxxxxx" in row["block"]]
    masked["block"] = masked["block"].replace(b"written", b"Written")
    pack.write()
    assert verdicts(storage) == [SnapshotVerdict.BLOCK_DIFFERS.value]


def test_what_is_fetched_anew_and_masked_is_noted(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path / "study")
    storage.folder.mkdir()
    bury(storage, [SECOND], [], NOW)
    named = repo_of(0, name=f"written to {SECOND}")
    store(storage.folder, {FIRST: (named.car(), SIGNERS[0].did_key)})
    proof = prove(storage)
    assert proof.verdicts.select("verdict", "masked").rows() == [("proven_masked", 1)]


def test_after_a_record_was_purged_the_tree_cannot_be_made_again(storage: StudyStorage) -> None:
    path = next(path for path in records_of(0) if "post" in path)
    bury(storage, [], [(FIRST, *path.split("/"))], NOW)  # type: ignore[list-item]
    purge(storage)
    proof = prove(storage)
    assert proof.verdicts.select("verdict", "purged").rows() == [("proven_before_purge", 1), (PROVEN, 0)]


def test_a_masked_record_that_is_purged_is_not_told_of_any_more(tmp_path: Path) -> None:
    named = repo_of(0, name=f"written to {SECOND}")
    storage = store(tmp_path / "study", {FIRST: (named.car(), SIGNERS[0].did_key)})
    bury(storage, [SECOND], [], NOW)
    purge(storage)
    [noted] = Forgery(storage).of(FIRST)["masked"]
    bury(storage, [], [(FIRST, noted["collection"], noted["rkey"])], NOW)
    purge(storage)
    row = Forgery(storage).of(FIRST)
    assert (row["masked"], row["purged"]) == ([], 1)
    assert verdicts(storage) == [SnapshotVerdict.PROVEN_BEFORE_PURGE.value]
