"""The part of a repository that proves one of its records, or that there is no such record, as `getRecord` exports it.

Which blocks that takes is told as the official server does: the nodes on the way down to the record, and without one
down to where no subtree follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cbrrr import CID, decode_dag_cbor

from backfill_dagster.sandbox.car_writer import write_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.sandbox.repo import RepoFile

# No tree is that deep, unless a fault makes it lead in a circle.
_MAX_STEPS = 128


def prove_record(file: RepoFile, collection: str, rkey: str) -> bytes:
    """Write the CAR; what is wrong with the repository's blocks is wrong with these."""
    wanted = {bytes(file.commit.cid), *_path(file, f"{collection}/{rkey}".encode())}
    return file.header + write_blocks(block for block in file.blocks if bytes(block.cid) in wanted)


def _path(file: RepoFile, key: bytes) -> list[bytes]:
    nodes: Mapping[bytes, bytes] = {bytes(node.cid): node.data for node in file.tree.nodes}
    path: list[bytes] = []
    link: bytes | None = bytes(file.tree.root)
    while link is not None and len(path) < _MAX_STEPS:
        path.append(link)
        try:
            node: Any = decode_dag_cbor(nodes[link])
            below, found = _step(node, key)
        except (KeyError, ValueError, TypeError):
            # A node that a fault has made is sent, and nobody knows what follows.
            return path
        if found is not None:
            return [*path, found]
        link = below
    return path


def _step(node: Any, key: bytes) -> tuple[bytes | None, bytes | None]:
    """Return the subtree that a key must be in, and the value if the key is in the node itself."""
    below: CID | None = node["l"]
    own = b""
    for entry in node["e"]:
        own = own[: entry["p"]] + entry["k"]
        if own == key:
            return None, entry["v"].cid_bytes
        if own > key:
            break
        below = entry["t"]
    return (None if below is None else below.cid_bytes), None
