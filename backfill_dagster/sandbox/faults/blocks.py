"""Exports with wrong blocks: changed, left out, twice, or of another moment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from backfill_dagster.sandbox.car_writer import write_header
from backfill_dagster.sandbox.dag_cbor import blob_cid, cid_of, encode
from backfill_dagster.sandbox.faults.additions import own_block, own_keys
from backfill_dagster.sandbox.faults.distortion import Distortion
from backfill_dagster.sandbox.mst_writer import Block
from backfill_dagster.sandbox.repo import write_repo

if TYPE_CHECKING:
    from backfill_dagster.sandbox.repo import Draft, RepoFile

Part = Literal["record", "node", "commit"]


def _repo_before(draft: Draft) -> RepoFile:
    """Write the repository as it was when the account had one record more."""
    records = {**draft.records, own_keys(0, 1)[0]: own_block()}
    return write_repo(replace(draft, rev=draft.rev_before, records=records))


class _OfOneBlock(Distortion):
    """A fault of one block: a record's, a tree node's that lies as low as can be, or the commit."""

    __slots__ = ()
    part: Part

    def draft(self, draft: Draft) -> Draft:
        """See to it that there is a record."""
        return draft if draft.records else replace(draft, records={own_keys(0, 1)[0]: own_block()})

    def chosen(self, file: RepoFile, draft: Draft) -> Block:
        """Return the block that it is about."""
        if self.part == "commit":
            return file.commit
        return file.tree.nodes[0] if self.part == "node" else draft.records[min(draft.records)]


@dataclass(frozen=True, slots=True)
class FlippedByte(_OfOneBlock):
    """One bit of a block is not as it was: the block has no longer the hash of its CID."""

    part: Part = "record"

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Change the block in its middle."""
        chosen = self.chosen(file, draft)
        data = bytearray(chosen.data)
        data[len(data) // 2] ^= 1
        flipped = Block(chosen.cid, bytes(data))
        return replace(file, blocks=[flipped if block == chosen else block for block in file.blocks])


@dataclass(frozen=True, slots=True)
class MissingBlock(_OfOneBlock):
    """A block that the commit or the tree leads to is not in the file."""

    part: Part = "record"

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Leave the block out."""
        chosen = self.chosen(file, draft)
        return replace(file, blocks=[block for block in file.blocks if block != chosen])


@dataclass(frozen=True, slots=True)
class ChangedDuringExport(Distortion):
    """The account deleted a record while its repository was exported.

    As the official server does it: the root was read before that write, so many blocks were sent, the commit
    first and the tree's top second; all else comes from the repository as it is now.
    """

    after_blocks: int = 1

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Begin with what the repository was before."""
        before = _repo_before(draft)
        old = [before.commit, *reversed(before.tree.nodes)][: self.after_blocks]
        sent = {block.cid for block in old}
        new = [block for block in file.blocks if block.cid not in sent]
        return replace(file, header=write_header(before.commit.cid), blocks=[*old, *new])


@dataclass(frozen=True, slots=True)
class CutAtBlock(Distortion):
    """The file ends after so many blocks, exactly between two; a negative number counts from its end."""

    blocks: int = -1

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Leave the rest out."""
        del draft
        return replace(file, blocks=file.blocks[: self.blocks])


@dataclass(frozen=True, slots=True)
class DuplicateBlocks(Distortion):
    """Every block comes twice. This is lawful."""

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Repeat all blocks."""
        del draft
        return replace(file, blocks=[*file.blocks, *file.blocks])


@dataclass(frozen=True, slots=True)
class UnlinkedBlocks(Distortion):
    """There are sound blocks that nothing leads to: records, nodes, a commit, a blob. This is lawful."""

    count: int = 10

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Put them before and after the others."""
        before = _repo_before(draft)
        blob = b"\xff\xd8\xff no CBOR"
        rows = [encode({"$type": "com.example.unlinked", "number": number}) for number in range(self.count)]
        return replace(
            file,
            blocks=[
                before.commit,
                *before.tree.nodes,
                Block(blob_cid(sha256(blob).digest()), blob),
                *file.blocks,
                *(Block(cid_of(data), data) for data in rows),
            ],
        )
