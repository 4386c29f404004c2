"""Records that are sound blocks in a sound tree, and yet not as they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.dag_cbor import Raw
from backfill_dagster.sandbox.faults.additions import own_post
from backfill_dagster.sandbox.faults.distortion import Distortion
from backfill_dagster.sandbox.written import Defect

if TYPE_CHECKING:
    from backfill_dagster.sandbox.written import Written


@dataclass(frozen=True, slots=True)
class InvalidUtf8(Distortion):
    """There is one more post, whose text is not UTF-8: a lone surrogate."""

    def written(self) -> list[Written]:
        """Return the post."""
        return [own_post(Defect.UNDECODABLE, text=Raw(b"\x65ab\xed\xa0\x80"))]


@dataclass(frozen=True, slots=True)
class HugeRecord(Distortion):
    """There is one more post, with a text of so many bytes."""

    size: int = 2_000_000

    def written(self) -> list[Written]:
        """Return the post."""
        return [own_post(text="x" * self.size)]
