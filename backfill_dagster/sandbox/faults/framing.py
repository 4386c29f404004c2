"""Exports that are no CAR version 1 of one root."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.car_writer import uvarint, write_header
from backfill_dagster.sandbox.dag_cbor import encode
from backfill_dagster.sandbox.faults.distortion import Distortion

if TYPE_CHECKING:
    from backfill_dagster.sandbox.repo import Draft, RepoFile


@dataclass(frozen=True, slots=True)
class CarVersion2(Distortion):
    """The file is a CAR version 2 with the right version 1 inside (https://ipld.io/specs/transport/car/carv2/)."""

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Put the pragma and the second header before all else."""
        del draft
        pragma = encode({"version": 2})
        pragma = uvarint(len(pragma)) + pragma
        start = len(pragma) + 40
        # No characteristics; where the inner file begins, its size; no index.
        header = bytes(16) + struct.pack("<QQQ", start, len(file.write()), 0)
        return replace(file, header=pragma + header + file.header)


@dataclass(frozen=True, slots=True)
class WrongRoots(Distortion):
    """The header names no root, or several: the commit and after it nodes of the tree."""

    count: int = 0

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Change the header."""
        del draft
        roots = [file.commit.cid, *(self.count * [file.tree.root])]
        return replace(file, header=write_header(*roots[: self.count]))
