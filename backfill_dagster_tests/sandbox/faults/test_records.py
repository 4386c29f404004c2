from __future__ import annotations

from typing import TYPE_CHECKING

import cbrrr
import libipld
import pytest

from backfill_dagster.sandbox.faults import CborBomb, HugeRecord, InvalidUtf8, StructuralFault
from backfill_dagster.sandbox.repo import record_block

if TYPE_CHECKING:
    from .export import Export, Fetch


def added(found: Export, fault: StructuralFault) -> bytes:
    [record] = fault.written()
    cid = dict(found.leaves)[f"{record.collection}/{record.rkey}"]
    assert cid == record_block(record).cid
    return found.blocks[cid]


def test_invalid_utf8(fetch: Fetch) -> None:
    block = added(fetch(InvalidUtf8()), InvalidUtf8())
    for decode in (libipld.decode_dag_cbor, cbrrr.decode_dag_cbor):
        with pytest.raises(ValueError, match="utf"):
            decode(block)
    with pytest.raises(UnicodeDecodeError):
        block.decode()


def test_a_huge_record(fetch: Fetch) -> None:
    fault = HugeRecord(3_000_000)
    block = added(fetch(fault), fault)
    assert libipld.decode_dag_cbor(block) == fault.written()[0].value
    assert 3_000_000 < len(block) < 3_001_000


@pytest.mark.parametrize("kind", ["nesting", "array", "map", "text", "bytes"])
def test_bombs(fetch: Fetch, kind: str) -> None:
    fault = CborBomb("record", kind)  # type: ignore[arg-type]
    block = added(fetch(fault), fault)
    assert len(block) < 200 + 100_000 * (kind == "nesting")
    with pytest.raises((ValueError, RecursionError)):
        libipld.decode_dag_cbor(block)


def test_a_bomb_in_the_tree_or_the_commit_leaves_the_rest_whole(fetch: Fetch) -> None:
    healthy = fetch()
    for fault, besides in ((CborBomb("node", "array"), 2), (CborBomb("commit", "array"), 1)):
        found = fetch(fault)
        assert len(set(found.blocks) - set(healthy.blocks)) == besides
        assert set(healthy.blocks) - set(found.blocks) == {healthy.roots[0]}
