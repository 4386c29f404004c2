from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backfill_dagster.sandbox.faults import (
    GET_REPO,
    ChangedDuringExport,
    CutAtBlock,
    DuplicateBlocks,
    FlippedByte,
    MissingBlock,
    Part,
    UnlinkedBlocks,
)
from backfill_dagster.sandbox.population import Role

from ..reading import walk

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork
    from backfill_dagster_tests.sandbox.conftest import Ask

    from .export import Export, Fetch


def part_of(healthy: Export, cid: bytes) -> str:
    if cid == healthy.roots[0]:
        return "commit"
    nodes: set[bytes] = set()
    records = {value for _, value in walk(healthy.blocks, healthy.commit["data"], nodes)}
    assert (cid in nodes) is not (cid in records)
    return "node" if cid in nodes else "record"


@pytest.mark.parametrize("part", ["record", "node", "commit"])
def test_one_bit_of_one_block_is_flipped(fetch: Fetch, part: Part) -> None:
    healthy, found = fetch(), fetch(FlippedByte(part))
    changed = [
        (cid, data, other)
        for (cid, data), (_, other) in zip(healthy.sections, found.sections, strict=True)
        if data != other
    ]
    [(cid, data, other)] = changed
    assert part_of(healthy, cid) == part
    assert (int.from_bytes(data) ^ int.from_bytes(other)).bit_count() == 1
    assert found.wrong_hashes == [cid]


@pytest.mark.parametrize("part", ["record", "node", "commit"])
def test_one_block_is_missing(fetch: Fetch, part: Part) -> None:
    healthy, found = fetch(), fetch(MissingBlock(part))
    [cid] = set(healthy.blocks) - set(found.blocks)
    assert part_of(healthy, cid) == part
    assert [section for section in healthy.sections if section[0] != cid] == found.sections


def test_an_export_beside_a_write_ends_with_the_blocks_of_after(
    network: SandboxNetwork, ask: Ask, fetch: Fetch
) -> None:
    now, found = fetch(), fetch(ChangedDuringExport())
    # Its root is the commit before, whole and signed; its tree's root went away with the write.
    assert found.roots != now.roots
    assert found.commit["rev"] < now.commit["rev"]
    assert found.is_signed()
    assert found.commit["data"] not in found.blocks
    assert set(now.blocks) < set(found.blocks)
    assert len(set(found.blocks) - set(now.blocks)) == 1

    later = fetch(ChangedDuringExport(after_blocks=2))
    assert later.commit["data"] in later.blocks

    # Once the account is silent again, the export holds.
    host = str(found.account.pds).removeprefix("http://")
    network.faults.set_account(found.account.did, ChangedDuringExport(), times=2)
    bodies = [ask(host, f"{GET_REPO}?did={found.account.did}").body for _ in range(4)]
    assert bodies == [found.car, found.car, now.car, now.car]


@pytest.mark.parametrize("role", [Role.UNICODE, Role.EMPTY])
def test_a_cut_lies_exactly_between_two_blocks(fetch: Fetch, role: Role) -> None:
    healthy = fetch(role=role)
    for blocks in (0, 1, -1):
        found = fetch(CutAtBlock(blocks), role=role)
        assert healthy.car.startswith(found.car)
        assert found.sections == healthy.sections[:blocks]


def test_lawful_blocks_besides(fetch: Fetch) -> None:
    healthy = fetch()
    twice = fetch(DuplicateBlocks())
    assert twice.sections == healthy.sections + healthy.sections
    more = fetch(UnlinkedBlocks(count=5))
    besides = set(more.blocks) - set(healthy.blocks)
    assert len(besides) > 5 + 2
    assert any(cid.startswith(b"\x01\x55") for cid in besides)
    assert (more.roots, more.leaves) == (healthy.roots, healthy.leaves)
