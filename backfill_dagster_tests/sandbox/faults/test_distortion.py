"""Every structural fault beside what a reader of its own and the project's verifier make of it."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

import pytest

from backfill_dagster.repos.faults import RepoFault
from backfill_dagster.sandbox.faults import (
    BadSignature,
    CarVersion2,
    CborBomb,
    ChangedDuringExport,
    CutAtBlock,
    DuplicateBlocks,
    Faults,
    FlippedByte,
    HighSignature,
    HugeRecord,
    InvalidUtf8,
    KeyTooLong,
    MissingBlock,
    OversizeCommit,
    StructuralFault,
    TreeBlowUp,
    TreeCycle,
    UnlinkedBlocks,
    WideNode,
    WrongDid,
    WrongKeyOrder,
    WrongLayer,
    WrongRoots,
)
from backfill_dagster.sandbox.population import Role

if TYPE_CHECKING:
    from .export import Fetch

CASES: list[tuple[StructuralFault, RepoFault | None]] = [
    (FlippedByte("record"), RepoFault.CORRUPT_BLOCK),
    (FlippedByte("node"), RepoFault.CORRUPT_BLOCK),
    (FlippedByte("commit"), RepoFault.CORRUPT_BLOCK),
    (MissingBlock("record"), RepoFault.MISSING_BLOCK),
    (MissingBlock("node"), RepoFault.MISSING_BLOCK),
    (MissingBlock("commit"), RepoFault.MISSING_BLOCK),
    (ChangedDuringExport(), RepoFault.MISSING_BLOCK),
    (ChangedDuringExport(after_blocks=0), RepoFault.MISSING_BLOCK),
    (CutAtBlock(), RepoFault.MISSING_BLOCK),
    (CutAtBlock(0), RepoFault.MISSING_BLOCK),
    (DuplicateBlocks(), None),
    (UnlinkedBlocks(), None),
    (CarVersion2(), RepoFault.UNSUPPORTED_CAR),
    (WrongRoots(0), RepoFault.UNSUPPORTED_CAR),
    (WrongRoots(2), RepoFault.UNSUPPORTED_CAR),
    (WrongDid(), RepoFault.WRONG_DID),
    (BadSignature("other_key"), RepoFault.BAD_SIGNATURE),
    (BadSignature("zeros"), RepoFault.BAD_SIGNATURE),
    (BadSignature("short"), RepoFault.BAD_SIGNATURE),
    (HighSignature(), RepoFault.BAD_SIGNATURE),
    (OversizeCommit(), RepoFault.TOO_LARGE),
    (WrongKeyOrder("swapped"), RepoFault.BAD_TREE),
    (WrongKeyOrder("repeated"), RepoFault.BAD_TREE),
    (WrongKeyOrder("between_nodes"), RepoFault.BAD_TREE),
    (WrongLayer(0), RepoFault.BAD_TREE),
    (WrongLayer(1), RepoFault.BAD_TREE),
    (WrongLayer(127), RepoFault.BAD_TREE),
    (WrongLayer(300), RepoFault.BAD_TREE),
    (KeyTooLong(), RepoFault.BAD_TREE),
    (KeyTooLong(1024), None),
    (WideNode(20_000), RepoFault.TOO_LARGE),
    (WideNode(3000, padding=1000), RepoFault.TOO_LARGE),
    (WideNode(3000), None),
    (TreeCycle(), RepoFault.CORRUPT_BLOCK),
    (TreeBlowUp(), RepoFault.BAD_TREE),
    (InvalidUtf8(), None),
    (HugeRecord(), None),
    *((CborBomb("record", kind), None) for kind in ("nesting", "array", "map", "text", "bytes")),
    *((CborBomb("node", kind), RepoFault.BAD_TREE) for kind in ("nesting", "array", "map", "text", "bytes")),
    *((CborBomb("commit", kind), RepoFault.BAD_COMMIT) for kind in ("array", "map", "text", "bytes")),
    (CborBomb("commit", "nesting"), RepoFault.TOO_LARGE),
]


def name(fault: object) -> str:
    return re.sub(r"\w+=", "", str(fault))


def test_every_structural_fault_is_here() -> None:
    assert {type(fault) for fault, _ in CASES} == Faults.structural_kinds


@pytest.mark.parametrize(("fault", "verdict"), CASES, ids=name)
@pytest.mark.parametrize("role", [Role.UNICODE, Role.EMPTY])
def test_the_verdict(fetch: Fetch, fault: StructuralFault, verdict: RepoFault | None, role: Role) -> None:
    assert fetch(fault, role=role).verdict() == verdict


@pytest.mark.parametrize(
    "fault", [fault for fault, _ in CASES if not isinstance(fault, CarVersion2)], ids=name
)
@pytest.mark.parametrize("role", [Role.UNICODE, Role.EMPTY])
def test_nothing_else_is_wrong(fetch: Fetch, fault: StructuralFault, role: Role) -> None:
    """Else a reader would be spared what the fault is about, by an earlier check of something else."""
    found = fetch(fault, role=role)
    assert len(found.wrong_hashes) == isinstance(fault, FlippedByte | TreeCycle)
    commit = found.roots[0] if found.roots else None
    if commit not in found.blocks or fault == FlippedByte("commit"):
        return
    if isinstance(fault, CborBomb) and fault.part == "commit" and fault.kind != "nesting":
        return
    if fault != CborBomb("commit", "nesting"):
        assert found.is_signed() is not isinstance(fault, BadSignature | HighSignature)
        assert (found.commit["did"] == found.account.did) is not isinstance(fault, WrongDid)


@pytest.mark.parametrize("fault", [fault for fault, verdict in CASES if verdict is None], ids=name)
def test_what_is_lawful_keeps_all_records_of_the_account(fetch: Fetch, fault: StructuralFault) -> None:
    healthy, found = fetch().verify(), fetch(fault).verify()
    added = {(record.collection, record.rkey) for record in fault.written()}
    pairs = set(zip(found.collections, found.rkeys, strict=True))
    assert added <= pairs
    assert len(found.spans) == len(pairs)
    own = {(collection, rkey) for collection, rkey in pairs if collection == "com.example.fault"}
    assert pairs - added - own == set(zip(healthy.collections, healthy.rkeys, strict=True))
    assert (found.rev, found.signed_by) == (healthy.rev, "current")


def test_an_export_with_a_fault_is_the_same_every_time_and_leaves_no_trace(fetch: Fetch) -> None:
    healthy = fetch().car
    for fault, _ in CASES[:5]:
        spoilt = fetch(fault).car
        assert spoilt != healthy
        assert fetch(fault).car == spoilt
    assert fetch().car == healthy


def test_structural_faults_add_up(fetch: Fetch) -> None:
    found = fetch(InvalidUtf8(), DuplicateBlocks(), WrongDid())
    assert found.verdict() is RepoFault.WRONG_DID
    assert len(found.sections) == 2 * len(found.blocks)
    assert InvalidUtf8().written()[0].rkey in {key.partition("/")[2] for key, _ in found.leaves}


@pytest.mark.parametrize(
    ("part", "size"), list(product(["record", "node", "commit"], [2**24, 2**31, 2**32, 2**63, 2**64 - 1]))
)
def test_no_claimed_length_is_believed(fetch: Fetch, part: str, size: int) -> None:
    expected = {"record": None, "node": RepoFault.BAD_TREE, "commit": RepoFault.BAD_COMMIT}
    for kind in ("array", "map", "text", "bytes"):
        assert fetch(CborBomb(part, kind, size)).verdict() is expected[part]  # type: ignore[arg-type]
