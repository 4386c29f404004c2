"""The independent reader is held against data made by others, and against lawless files, before anything else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cbrrr import CID

from backfill_dagster_tests.fuzz.reader import Tree, UnlawfulError, read_car, read_repo, root_of
from backfill_dagster_tests.repos.exported import WHOLE_REPOS, exported_repo
from backfill_dagster_tests.repos.forge import (
    DID,
    K256_ORDER,
    ForgedRepo,
    K256Signer,
    Link,
    P256Signer,
    Signer,
    car,
    car_of_tree,
    cbor,
    cid_of,
    entry,
    keys_at_layer,
    node,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIGNER = K256Signer()
VALUE = cid_of(b"\xa0")
LOW, HIGH = keys_at_layer(0, 9), keys_at_layer(2, 2)


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_exported_repositories_hold_what_their_manifests_say(name: str) -> None:
    exported = exported_repo(name)

    repo = read_repo(exported.car, exported.did, exported.signing_key)

    found = {
        f"at://{exported.did}/{key.decode()}": str(CID(cid).encode()) for key, (cid, _) in repo.leaves.items()
    }
    assert found == exported.live_records
    assert all(cid_of(block) == cid for cid, block in repo.leaves.values())
    assert list(repo.leaves) == sorted(repo.leaves)


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_exported_repositories_are_of_one_account_and_signed_by_one_key(name: str) -> None:
    exported = exported_repo(name)

    for did, key in (
        (DID, exported.signing_key),
        *((exported.did, s.did_key) for s in (SIGNER, P256Signer())),
    ):
        with pytest.raises(UnlawfulError):
            read_repo(exported.car, did, key)


def test_the_trees_of_others_are_lawful(shared_dir: Path) -> None:
    trees = sorted((shared_dir / "vectors/mst/cars/exhaustive").glob("*.car"))
    assert len(trees) == 128

    for path in trees:
        root, blocks, _ = read_car(path.read_bytes())
        leaves = Tree(blocks).leaves(root)
        assert root_of(leaves) == root


def read_tree(root: Link, blocks: Mapping[Link, bytes]) -> list[bytes]:
    content = car_of_tree(root, {**blocks, VALUE: b"\xa0"}, SIGNER)
    return list(read_repo(content, DID, SIGNER.did_key).leaves)


def nodes(*blocks: bytes) -> tuple[Link, dict[Link, bytes]]:
    return cid_of(blocks[-1]), {cid_of(block): block for block in blocks}


A, B = LOW[:2]
LEAF = node([entry(A, VALUE)])
TO_LEAF = node([], cid_of(LEAF))
EMPTY = node([])


def test_the_lawless_trees_below_start_from_lawful_ones() -> None:
    assert A < B < HIGH[1]
    assert read_tree(*nodes(EMPTY)) == []
    assert read_tree(*nodes(LEAF)) == [A]
    assert read_tree(*nodes(node([entry(A, VALUE), entry(B, VALUE, previous=A)]))) == [A, B]
    assert read_tree(*nodes(LEAF, TO_LEAF, node([entry(HIGH[1], VALUE)], cid_of(TO_LEAF)))) == [A, HIGH[1]]


LAWLESS_TREES = {
    "order": (node([entry(B, VALUE), entry(A, VALUE, previous=B)]),),
    "a key twice": (node([entry(A, VALUE), {"p": len(A), "k": b"", "v": VALUE, "t": None}]),),
    "no key": (node([{"p": 0, "k": b"", "v": VALUE, "t": None}]),),
    "a short prefix": (node([entry(A, VALUE), entry(B, VALUE)]),),
    "a long prefix": (node([{"p": 1, "k": A, "v": VALUE, "t": None}]),),
    "a negative prefix": (node([{"p": -1, "k": A, "v": VALUE, "t": None}]),),
    "layers": (node([entry(A, VALUE), entry(HIGH[1], VALUE, previous=A)]),),
    "a layer left out": (LEAF, node([entry(HIGH[1], VALUE)], cid_of(LEAF))),
    "a layer too many": (LEAF, TO_LEAF),
    "an empty subtree": (EMPTY, node([entry(HIGH[1], VALUE)], cid_of(EMPTY))),
    "a node in two places": (LEAF, TO_LEAF, node([entry(HIGH[1], VALUE, cid_of(TO_LEAF))], cid_of(TO_LEAF))),
    "a node lost": (node([entry(HIGH[1], VALUE)], cid_of(b"lost")),),
    "a record lost": (node([entry(A, cid_of(b"lost"))]),),
    "a field more": (cbor({"e": [], "l": None, "x": 1}),),
    "a field less": (cbor({"e": []}),),
    "a field less in an entry": (node([{"p": 0, "k": A, "v": VALUE}]),),
    "a tail": (EMPTY + b"\0",),
    "bytes for a link": (cbor({"e": [{"p": 0, "k": A, "v": bytes(VALUE), "t": None}], "l": None}),),
    "text for bytes": (cbor({"e": [{"p": 0, "k": A.decode(), "v": VALUE, "t": None}], "l": None}),),
    "no map": (cbor([]),),
    "a long number": (LEAF.replace(b"\x61p\x00", b"\x61p\x18\x00"),),
    "a long key": (node([entry(b"a/" + b"x" * 1023, VALUE)]),),
    "no text": (node([entry(b"a/\xff", VALUE)]),),
}


@pytest.mark.parametrize("blocks", LAWLESS_TREES.values(), ids=LAWLESS_TREES)
def test_lawless_trees_are_refused(blocks: tuple[bytes, ...]) -> None:
    with pytest.raises(UnlawfulError):
        read_tree(*nodes(*blocks))


def test_a_tree_without_end_is_refused() -> None:
    chain = [EMPTY]
    for _ in range(3_000):
        chain.append(node([], cid_of(chain[-1])))

    with pytest.raises(UnlawfulError, match="layers"):
        read_tree(*nodes(*chain))


@pytest.mark.parametrize("signer", [SIGNER, P256Signer()])
def test_signatures_of_both_curves(signer: Signer) -> None:
    content = ForgedRepo({"com.example.thing/a": {}}, signer).car()

    assert list(read_repo(content, DID, signer.did_key).leaves) == [b"com.example.thing/a"]
    with pytest.raises(UnlawfulError):
        read_repo(content, DID, K256Signer(b"\x33" * 32).did_key)


@pytest.mark.parametrize(
    "fields",
    [
        {"did": "did:web:example.com"},
        {"version": 4},
        {"version": True},
        {"rev": "3l4qxwyzabc2"},
        {"rev": None},
        {"data": bytes(VALUE)},
        {"data": ...},
        {"prev": 1},
        {"prev": Link(VALUE[:-1])},
    ],
    ids=str,
)
def test_lawless_commits_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UnlawfulError):
        read_repo(ForgedRepo({}, commit_fields=fields).car(), DID, SIGNER.did_key)


def test_the_other_form_of_a_signature_is_refused() -> None:
    unsigned = {"did": DID, "version": 3, "data": cid_of(EMPTY), "rev": "3l4qxwyzabc2k", "prev": None}
    signature = SIGNER.sign(cbor(unsigned))
    high = signature[:32] + (K256_ORDER - int.from_bytes(signature[32:])).to_bytes(32)

    for given, lawful in ((signature, True), (high, False)):
        block = cbor(unsigned | {"sig": given})
        content = car(cid_of(block), {cid_of(block): block, cid_of(EMPTY): EMPTY})
        if lawful:
            assert read_repo(content, DID, SIGNER.did_key).leaves == {}
        else:
            with pytest.raises(UnlawfulError, match="signature"):
                read_repo(content, DID, SIGNER.did_key)
