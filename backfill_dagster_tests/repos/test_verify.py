import pickle
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.car_bytes import CarBytes, CarFile
from backfill_dagster.repos.cid import cid_text
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import RepoLimits, verify_repo
from backfill_dagster_tests.repos.exported import CARS, WHOLE_REPOS, ExportedRepo, exported_repo
from backfill_dagster_tests.repos.forge import (
    DID,
    REV,
    ForgedRepo,
    K256Signer,
    Link,
    P256Signer,
    Signer,
    car,
    car_header,
    car_of_tree,
    cbor,
    cid_of,
    frame,
    node,
    of_json,
    tree,
)
from backfill_dagster_tests.repos.plain import PlainRepo, plain_repo

K256, P256 = K256Signer(), P256Signer()
STRANGER = SigningKey.from_did_key(K256Signer(b"\x33" * 32).did_key)
RECORDS: Mapping[str, object] = {
    f"{collection}/3l4qxwyzabc{number:02x}".replace("0", "2")
    .replace("1", "3")
    .replace("8", "7")
    .replace("9", "6"): {
        "$type": collection,
        "text": f"record {number}",
        "createdAt": "2024-10-01T00:00:00Z",
    }
    for collection in ("app.bsky.feed.like", "app.bsky.feed.post", "com.example.thing")
    for number in range(4)
}
REPO = ForgedRepo(RECORDS)


def key_of(signer: Signer) -> SigningKey:
    return SigningKey.from_did_key(signer.did_key)


def verify(content: bytes, limits: RepoLimits | None = None) -> PlainRepo:
    repo = verify_repo(content, did=DID, keys=[key_of(K256)], limits=limits or RepoLimits())
    return plain_repo(repo, content)


def refusal(content: bytes, limits: RepoLimits | None = None) -> RepoFault:
    with pytest.raises(RepoRejectedError) as caught:
        verify(content, limits)
    return caught.value.fault


def blocks_of(repo: PlainRepo, content: bytes) -> list[bytes]:
    return [content[start:end] for start, end in repo.spans]


# Repositories of official PDS software


def verify_exported(repo: ExportedRepo, content: CarBytes | None = None) -> PlainRepo:
    key = SigningKey.from_did_key(repo.signing_key)
    car = repo.car if content is None else content
    return plain_repo(verify_repo(car, did=repo.did, keys=[key]), car)


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_exported_repositories_hold_what_their_manifests_say(name: str) -> None:
    exported = exported_repo(name)

    repo = verify_exported(exported)

    paths = zip(repo.collections, repo.rkeys, strict=True)
    uris = [f"at://{repo.did}/{collection}/{rkey}" for collection, rkey in paths]
    assert dict(zip(uris, map(cid_text, repo.cids), strict=True)) == exported.live_records
    assert len(uris) == exported.manifest["liveRecords"]
    assert uris == sorted(uris)
    assert [cid_of(block) for block in blocks_of(repo, exported.car)] == repo.cids
    assert (repo.signed_by, repo.signing_key) == ("current", exported.signing_key)
    assert repo.commit_cid == cid_of(repo.commit_block)
    account = exported.manifest["account"]
    if account["status"] == "active":
        assert (cid_text(repo.commit_cid), repo.rev) == (account["head"], account["rev"])


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_the_blocks_of_exported_records_are_the_manifests_values(name: str) -> None:
    exported = exported_repo(name)
    repo = verify_exported(exported)
    live = [record for record in exported.manifest["records"] if record["status"] == "live"]

    blocks = dict(
        zip(zip(repo.collections, repo.rkeys, strict=True), blocks_of(repo, exported.car), strict=True)
    )

    assert blocks == {
        (record["collection"], record["rkey"]): cbor(of_json(record["value"])) for record in live
    }


def test_a_diff_is_not_a_repository() -> None:
    exported = exported_repo("partial-since")

    with pytest.raises(RepoRejectedError) as caught:
        verify_exported(exported)

    assert caught.value.fault is RepoFault.MISSING_BLOCK


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_an_exported_repository_is_signed_by_its_own_key_only(name: str) -> None:
    exported = exported_repo(name)

    with pytest.raises(RepoRejectedError) as caught:
        verify_repo(exported.car, did=exported.did, keys=[STRANGER, key_of(P256)])

    assert caught.value.fault is RepoFault.BAD_SIGNATURE


def test_a_large_file_is_verified_without_being_read_whole() -> None:
    exported = exported_repo("small-1")

    with (CARS / "small-1.car").open("rb") as file:
        assert verify_exported(exported, CarFile(file.fileno())) == verify_exported(exported)


def test_a_repository_cut_at_any_byte_is_refused() -> None:
    exported = exported_repo("small-1")
    key = SigningKey.from_did_key(exported.signing_key)
    faults = set()

    for length in range(len(exported.car)):
        with pytest.raises(RepoRejectedError) as caught:
            verify_repo(exported.car[:length], did=exported.did, keys=[key])
        faults.add(caught.value.fault)

    assert faults == {RepoFault.EMPTY_BODY, RepoFault.TRUNCATED, RepoFault.MISSING_BLOCK}


def test_a_repository_with_any_byte_changed_is_refused() -> None:
    exported = exported_repo("empty")
    key = SigningKey.from_did_key(exported.signing_key)
    for content, did, keys in ((exported.car, exported.did, [key]), (REPO.car(), DID, [key_of(K256)])):
        verify_repo(content, did=did, keys=keys)
        for position in range(len(content)):
            for change in (0x01, 0x80, 0xFF):
                changed = bytearray(content)
                changed[position] ^= change
                with pytest.raises(RepoRejectedError):
                    verify_repo(bytes(changed), did=did, keys=keys)


def test_a_change_in_each_block_of_a_real_repository_is_seen() -> None:
    exported = exported_repo("weird")
    chance = random.Random(7)
    repo = verify_exported(exported)
    assert len(repo.spans) > 100

    for start, end in repo.spans:
        changed = bytearray(exported.car)
        changed[chance.randrange(start, end)] ^= chance.randrange(1, 256)
        with pytest.raises(RepoRejectedError) as caught:
            verify_exported(exported, bytes(changed))
        assert caught.value.fault is RepoFault.CORRUPT_BLOCK


# Repositories made here


def test_a_repository_comes_out_as_it_went_in() -> None:
    content = REPO.car()

    repo = verify(content)

    paths = [f"{collection}/{rkey}" for collection, rkey in zip(repo.collections, repo.rkeys, strict=True)]
    assert paths == sorted(RECORDS)
    assert blocks_of(repo, content) == [cbor(RECORDS[path]) for path in paths]
    assert (repo.did, repo.rev, repo.commit_cid) == (DID, REV, REPO.root)
    assert repo.commit_block == REPO.blocks[REPO.root]


def test_the_order_of_blocks_and_what_else_is_there_make_no_difference() -> None:
    blocks = list(REPO.blocks.items())
    random.Random(3).shuffle(blocks)
    stale = cbor({"text": "deleted long ago"})
    unrelated = [
        (cid_of(stale), stale),
        (b"\x12\x20" + bytes(32), b"version 0"),
        (cid_of(b"corrupt"), b"other"),
    ]

    repo = verify(car(REPO.root, [*unrelated, *blocks, *unrelated, *blocks]))

    assert replace(repo, spans=[]) == replace(verify(REPO.car()), spans=[])


@pytest.mark.parametrize("signer", [K256, P256])
def test_signatures_of_both_curves(signer: Signer) -> None:
    content = ForgedRepo(RECORDS, signer).car()

    current = verify_repo(content, did=DID, keys=[STRANGER, key_of(signer)])
    previous = verify_repo(content, did=DID, keys=[STRANGER], previous_keys=[STRANGER, key_of(signer)])
    both = verify_repo(content, did=DID, keys=[key_of(signer)], previous_keys=[key_of(signer)])
    unchecked = verify_repo(content, did=DID, keys=[STRANGER], check_signature=False)

    assert (current.signed_by, current.signing_key) == ("current", signer.did_key)
    assert (previous.signed_by, previous.signing_key) == ("previous", signer.did_key)
    assert both.signed_by == "current"
    assert (unchecked.signed_by, unchecked.signing_key) == (None, None)
    for keys in ([], [STRANGER]):
        with pytest.raises(RepoRejectedError) as caught:
            verify_repo(content, did=DID, keys=keys)
        assert caught.value.fault is RepoFault.BAD_SIGNATURE


def test_a_signature_covers_fields_that_nobody_knows() -> None:
    assert verify(ForgedRepo(RECORDS, commit_fields={"newer": {"field": [Link(REPO.data)]}}).car()).rev == REV

    unsigned = {"did": DID, "version": 3, "data": Link(REPO.data), "rev": REV, "prev": None}
    block = cbor({"sig": K256.sign(cbor(unsigned))} | unsigned | {"newer": 1})
    blocks = {cid_of(block): block, **REPO.blocks}
    assert refusal(car(cid_of(block), blocks)) is RepoFault.BAD_SIGNATURE


def test_a_signature_in_another_form_is_refused() -> None:
    unsigned = {"did": DID, "version": 3, "data": Link(REPO.data), "rev": REV, "prev": None}
    for signature in (b"", bytes(64), K256.sign(cbor(unsigned)) + b"\0", b"\x30\x44" + bytes(68)):
        block = cbor({"sig": signature} | unsigned)
        assert refusal(car(cid_of(block), {cid_of(block): block, **REPO.blocks})) is RepoFault.BAD_SIGNATURE


def test_another_accounts_repository_is_refused_however_well_signed() -> None:
    content = ForgedRepo(RECORDS, commit_fields={"did": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}).car()

    assert refusal(content) is RepoFault.WRONG_DID
    with pytest.raises(RepoRejectedError) as caught:
        verify_repo(content, did=DID, keys=[], check_signature=False)
    assert caught.value.fault is RepoFault.WRONG_DID


def test_old_commits_without_a_revision() -> None:
    assert verify(ForgedRepo(RECORDS, commit_fields={"version": 2, "rev": ...}).car()).rev is None


def test_a_record_may_be_large_or_no_cbor_at_all() -> None:
    leaves = {}
    blocks = {}
    for path, block, codec in (
        (b"app.bsky.feed.post/large", b"x" * 5_000_000, 0x71),
        (b"app.bsky.feed.post/broken", b"\xff\xff", 0x71),
        (b"app.bsky.feed.post/empty", b"", 0x71),
        (b"app.bsky.feed.post/raw", b"text", 0x55),
    ):
        leaves[path] = cid_of(block, codec)
        blocks[leaves[path]] = block
    data, nodes = tree(leaves)
    content = car_of_tree(data, {**nodes, **blocks})

    repo = verify(content)

    assert repo.rkeys == ["broken", "empty", "large", "raw"]
    assert blocks_of(repo, content) == [b"\xff\xff", b"", b"x" * 5_000_000, b"text"]


def test_one_block_under_many_keys() -> None:
    block = cbor({"text": "again"})
    leaves = {b"app.bsky.feed.post/%02d" % number: cid_of(block) for number in range(50)}
    data, nodes = tree(leaves)
    content = car_of_tree(data, {**nodes, cid_of(block): block})

    assert set(blocks_of(verify(content), content)) == {block}
    assert verify(content, RepoLimits(max_records_bytes=50 * len(block)))
    assert refusal(content, RepoLimits(max_records_bytes=50 * len(block) - 1)) is RepoFault.TOO_LARGE


def test_a_key_that_is_no_path_costs_its_record_only_unless_it_is_not_even_text() -> None:
    for key, path in ((b"k/00", ("k", "00")), (b"com.example.thing/..", ("com.example.thing", ".."))):
        data, nodes = tree({key: cid_of(b"")})
        repo = verify(car_of_tree(data, {**nodes, cid_of(b""): b""}))
        assert list(zip(repo.collections, repo.rkeys, strict=True)) == [path]

    data, nodes = tree({b"com.example.thing/\xff": cid_of(b"")})
    assert refusal(car_of_tree(data, {**nodes, cid_of(b""): b""})) is RepoFault.BAD_TREE


def test_every_missing_block_is_missed_and_every_corrupt_one_seen() -> None:
    for lost in REPO.blocks:
        without = {cid: block for cid, block in REPO.blocks.items() if cid != lost}
        assert refusal(car(REPO.root, without)) is RepoFault.MISSING_BLOCK
        assert refusal(car(REPO.root, {**without, lost: b"something else"})) is RepoFault.CORRUPT_BLOCK


@pytest.mark.parametrize(
    "limits",
    [
        RepoLimits(max_car_bytes=len(REPO.car()) - 1),
        RepoLimits(max_blocks=len(REPO.blocks) - 1),
        RepoLimits(max_commit_bytes=len(REPO.blocks[REPO.root]) - 1),
        RepoLimits(max_records=len(RECORDS) - 1),
    ],
    ids=str,
)
def test_limits(limits: RepoLimits) -> None:
    assert refusal(REPO.car(), limits) is RepoFault.TOO_LARGE


def test_a_repository_survives_the_way_between_processes() -> None:
    repo = verify_repo(REPO.car(), did=DID, keys=[key_of(K256)])

    assert plain_repo(pickle.loads(pickle.dumps(repo)), REPO.car()) == plain_repo(repo, REPO.car())


EXAMPLES: dict[RepoFault, bytes] = {
    RepoFault.EMPTY_BODY: b"",
    RepoFault.NOT_A_CAR: b"<html>Bad Gateway</html>",
    RepoFault.UNSUPPORTED_CAR: car_header([REPO.root], version=2),
    RepoFault.TRUNCATED: REPO.car()[:-1],
    RepoFault.CORRUPT_BLOCK: REPO.car()[:-1] + b"\0",
    RepoFault.MISSING_BLOCK: car_header([REPO.root]),
    RepoFault.BAD_TREE: car_of_tree(
        cid_of(node([], REPO.data)), {cid_of(node([], REPO.data)): node([], REPO.data)}
    ),
    RepoFault.BAD_COMMIT: car_header([REPO.data]) + frame(REPO.data, REPO.nodes[REPO.data]),
    RepoFault.WRONG_DID: ForgedRepo({}, commit_fields={"did": "did:web:example.com"}).car(),
    RepoFault.BAD_SIGNATURE: ForgedRepo({}, signer=P256).car(),
    RepoFault.TOO_LARGE: car_of_tree(REPO.data, REPO.blocks, padding="x" * 10_000),
}


@pytest.mark.parametrize("fault", RepoFault)
def test_every_fault_has_its_cause(fault: RepoFault) -> None:
    assert refusal(EXAMPLES[fault]) is fault


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_done_to_a_file_it_is_refused_or_the_same(data: st.DataObject) -> None:
    content = REPO.car()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 80)))
    changed = content[:start] + data.draw(st.binary(max_size=80)) + content[end:]

    try:
        repo = verify(changed)
    except RepoRejectedError:
        return
    assert replace(repo, spans=[]) == replace(verify(content), spans=[])
    assert blocks_of(repo, changed) == blocks_of(verify(content), content)
