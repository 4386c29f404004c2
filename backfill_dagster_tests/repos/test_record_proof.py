"""Proofs of single records, made by hand: what holds is told as it is, and whatever does not hold is refused."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from cbrrr import decode_dag_cbor
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.asked import RecordPath
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.limits import RECORD_PROOF_LIMITS
from backfill_dagster.repos.record_proof import FoundRecord, RecordProver
from backfill_dagster.repos.verify import Claim
from backfill_dagster_tests.repos.forge import (
    DID,
    REV,
    ForgedRepo,
    K256Signer,
    Link,
    P256Signer,
    car,
    car_of_tree,
    cbor,
    cid_of,
    entry,
    keys_at_layer,
    layer_of,
    node,
)

POST = "app.bsky.feed.post"
REPO = ForgedRepo({f"{POST}/{number:04d}": {"number": number} for number in range(0, 400, 2)})
KEY = SigningKey.from_did_key(K256Signer().did_key)
CLAIM = Claim(DID, [KEY])


def path_of(key: bytes) -> RecordPath:
    return RecordPath(*key.decode().split("/", 1))


def prove(content: bytes, key: bytes, claim: Claim = CLAIM) -> tuple[str | None, bytes | None]:
    """Return who signed, and the record's block."""
    header, found = RecordProver(claim).prove(content, path_of(key))
    assert header.did == DID
    return header.signed_by, None if found is None else block_of(content, found)


def block_of(content: bytes, found: FoundRecord) -> bytes:
    block = content[found.start : found.end]
    assert cid_of(block) == found.cid
    return block


def fault_of(content: bytes, key: bytes, claim: Claim = CLAIM) -> RepoFault:
    with pytest.raises(RepoRejectedError) as raised:
        prove(content, key, claim)
    return raised.value.fault


def nodes_to(repo: ForgedRepo, key: bytes) -> list[Link]:
    """The nodes on the way down to a key, and without it on to where no subtree follows."""
    way: list[Link] = []
    link: Link | None = repo.data
    while link is not None:
        way.append(Link(link))
        read: Any = decode_dag_cbor(repo.nodes[Link(link)])
        below, text = read["l"], b""
        for part in read["e"]:
            text = text[: part["p"]] + part["k"]
            if text == key:
                return way
            if text > key:
                break
            below = part["t"]
        link = None if below is None else Link(below.cid_bytes)
    return way


def blocks_for(repo: ForgedRepo, key: bytes) -> dict[Link, bytes]:
    wanted = [repo.root, *nodes_to(repo, key), *([repo.leaves[key]] if key in repo.leaves else [])]
    return {cid: repo.blocks[cid] for cid in wanted}


def proof_of(repo: ForgedRepo, key: bytes) -> bytes:
    return car(repo.root, blocks_for(repo, key))


ABSENT = [f"{POST}/{number:04d}".encode() for number in range(1, 400, 2)] + [
    b"a.b.c/0",
    b"zzz.zzz.zzz/9",
    *keys_at_layer(6, 1),
]


def test_every_record_is_proven_by_the_nodes_on_its_way() -> None:
    for key, cid in REPO.leaves.items():
        assert prove(proof_of(REPO, key), key) == ("current", REPO.blocks[cid])


def test_every_absence_is_proven() -> None:
    assert {layer_of(key) for key in ABSENT} >= {0, 1, 2, 6}
    for key in ABSENT:
        assert prove(proof_of(REPO, key), key) == ("current", None)
    empty = ForgedRepo({})
    assert prove(empty.car(), ABSENT[0]) == ("current", None)


def test_a_whole_repository_proves_it_as_well() -> None:
    key = next(iter(REPO.leaves))
    assert prove(REPO.car(), key) == ("current", REPO.blocks[REPO.leaves[key]])
    assert prove(REPO.car(), ABSENT[0]) == ("current", None)


def deep_absent() -> bytes:
    """A key whose own layer lies above the lowest node on its way."""
    return max(ABSENT, key=lambda key: len(nodes_to(REPO, key)) * (0 < layer_of(key) < 6))


def test_nodes_below_the_key_s_own_layer_are_not_needed() -> None:
    key = deep_absent()
    way = nodes_to(REPO, key)
    top = max(map(layer_of, REPO.leaves))
    needed = top - layer_of(key) + 1
    assert 1 <= needed < len(way)
    blocks = blocks_for(REPO, key)
    for cid in way[needed:]:
        del blocks[cid]
    assert prove(car(REPO.root, blocks), key) == ("current", None)
    del blocks[way[needed - 1]]
    assert fault_of(car(REPO.root, blocks), key) is RepoFault.MISSING_BLOCK


def test_a_proof_without_any_one_of_its_blocks_proves_nothing() -> None:
    for key in list(REPO.leaves)[::20]:
        blocks = blocks_for(REPO, key)
        for cid in blocks:
            rest = {other: block for other, block in blocks.items() if other != cid}
            assert fault_of(car(REPO.root, rest), key) is RepoFault.MISSING_BLOCK


def test_a_block_that_is_not_what_its_cid_says_proves_nothing() -> None:
    key = next(iter(REPO.leaves))
    for cid, block in blocks_for(REPO, key).items():
        forged = blocks_for(REPO, key) | {cid: block[:-1] + bytes([block[-1] ^ 1])}
        assert fault_of(car(REPO.root, forged), key) is RepoFault.CORRUPT_BLOCK


def test_signatures() -> None:
    key = next(iter(REPO.leaves))
    content = proof_of(REPO, key)
    other = SigningKey.from_did_key(P256Signer().did_key)
    assert prove(content, key, Claim(DID, [other], [KEY]))[0] == "previous"
    assert fault_of(content, key, Claim(DID, [other])) is RepoFault.BAD_SIGNATURE
    assert fault_of(content, key, Claim("did:plc:" + "a" * 24, [KEY])) is RepoFault.WRONG_DID
    header, _ = RecordProver(Claim(DID, [other]), check_signature=False).prove(content, path_of(key))
    assert (header.rev, header.signed_by) == (REV, None)


def test_a_commit_that_several_proofs_share_is_checked_for_each_account() -> None:
    prover = RecordProver(CLAIM)
    for key in REPO.leaves:
        header, found = prover.prove(proof_of(REPO, key), path_of(key))
        assert header.commit_cid == REPO.root
        assert found is not None
    without = blocks_for(REPO, ABSENT[0])
    del without[REPO.root]
    with pytest.raises(RepoRejectedError, match="missing_block"):
        prover.prove(car(REPO.root, without), path_of(ABSENT[0]))


VALUE = cbor({"a": "record"})
V = cid_of(VALUE)


def made(*nodes: bytes) -> bytes:
    """A CAR whose tree has the first of these nodes at its top."""
    return car_of_tree(cid_of(nodes[0]), {V: VALUE, **{cid_of(each): each for each in nodes}})


LOW, LOWER = keys_at_layer(0, 40), keys_at_layer(1, 10)


def leaf(*keys: bytes) -> bytes:
    entries, before = [], b""
    for key in keys:
        entries.append(entry(key, V, previous=before))
        before = key
    return node(entries)


def misplaced() -> Iterable[tuple[str, bytes, bytes]]:
    between = [key for key in LOW if key > LOWER[0]]
    before = [key for key in LOW if key < LOWER[0]]
    assert between
    assert before
    yield "a key on the layer above", made(leaf(LOWER[0], between[0])), between[0]
    yield (
        "a key on the layer below",
        made(node([entry(LOWER[0], V, cid_of(leaf(LOWER[1])))]), leaf(LOWER[1])),
        LOWER[1],
    )
    wrong = leaf(before[0], between[0])
    yield (
        "a subtree that begins before its place",
        made(node([entry(LOWER[0], V, cid_of(wrong))]), wrong),
        between[0],
    )
    yield (
        "a subtree that ends behind its place",
        made(node([entry(LOWER[0], V)], cid_of(wrong)), wrong),
        before[0],
    )
    empty = node([])
    yield "an empty subtree", made(node([entry(LOWER[0], V, cid_of(empty))]), empty), between[0]
    under = leaf(between[1])
    deep = node([entry(between[0], V, cid_of(under))])
    yield "a subtree below the lowest layer", made(deep, under), between[1]
    top = leaf(LOWER[0])
    yield "a top without keys", made(node([], cid_of(top)), top), LOWER[0]
    raw = Link(b"\x01\x55\x12\x20" + cid_of(top)[4:])
    yield "a node under the codec of blobs", made(node([entry(LOWER[0], V, raw)])), between[0]


@pytest.mark.parametrize(("content", "key"), [pytest.param(*rest, id=name) for name, *rest in misplaced()])
def test_nodes_that_are_not_where_they_must_be_are_refused(content: bytes, key: bytes) -> None:
    assert fault_of(content, key) is RepoFault.BAD_TREE


def test_a_node_with_only_a_subtree_leads_on_below_the_top() -> None:
    [high] = keys_at_layer(2, 1)
    behind = [key for key in LOW if key > high]
    low = leaf(behind[0])
    bare = node([], cid_of(low))
    content = made(node([entry(high, V, cid_of(bare))]), bare, low)
    assert prove(content, behind[0]) == ("current", VALUE)
    assert prove(content, behind[1]) == ("current", None)


def test_what_is_larger_than_any_proof_is_refused() -> None:
    key = next(iter(REPO.leaves))
    content = proof_of(REPO, key)
    for limits in (
        replace(RECORD_PROOF_LIMITS, max_car_bytes=len(content) - 1),
        replace(RECORD_PROOF_LIMITS, max_blocks=2),
        replace(RECORD_PROOF_LIMITS, max_node_entries=1),
        replace(RECORD_PROOF_LIMITS, max_node_bytes=40),
        replace(RECORD_PROOF_LIMITS, max_commit_bytes=40),
        replace(RECORD_PROOF_LIMITS, max_depth=1),
    ):
        with pytest.raises(RepoRejectedError, match="too_large"):
            RecordProver(CLAIM, limits=limits).prove(content, path_of(key))


# What somebody may do to a proof, who has another repository of the same account at hand.
OLDER = ForgedRepo({f"{POST}/{number:04d}": {"old": number} for number in range(0, 400, 3)})
Blocks = list[tuple[bytes, bytes]]


def flipped(blocks: Blocks, draw: Callable[..., Any]) -> Blocks:
    number = draw(st.integers(0, len(blocks) - 1))
    cid, block = blocks[number]
    whole = bytearray(cid + block)
    place = draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << draw(st.integers(0, 7))
    return [*blocks[:number], (bytes(whole[:36]), bytes(whole[36:])), *blocks[number + 1 :]]


def omitted(blocks: Blocks, draw: Callable[..., Any]) -> Blocks:
    number = draw(st.integers(0, len(blocks) - 1))
    return blocks[:number] + blocks[number + 1 :]


def replaced(blocks: Blocks, draw: Callable[..., Any]) -> Blocks:
    """Put another sound block under the CID of one, or in its place."""
    number = draw(st.integers(0, len(blocks) - 1))
    others: Mapping[Link, bytes] = {**REPO.blocks, **OLDER.blocks}
    cid = draw(st.sampled_from(sorted(others)))
    name = draw(st.sampled_from([bytes(cid), blocks[number][0]]))
    return [*blocks[:number], (name, others[cid]), *blocks[number + 1 :]]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_proof_that_was_tampered_with_is_refused_or_tells_the_truth(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*REPO.leaves, *ABSENT]))
    blocks: Blocks = [(bytes(cid), block) for cid, block in blocks_for(REPO, key).items()]
    for change in data.draw(st.lists(st.sampled_from([flipped, omitted, replaced]), min_size=1, max_size=3)):
        if blocks:
            blocks = change(blocks, data.draw)
    content = car(REPO.root, blocks)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    try:
        found = prove(content, key)
    except RepoRejectedError:
        return
    assert found == ("current", REPO.blocks[REPO.leaves[key]] if key in REPO.leaves else None)
