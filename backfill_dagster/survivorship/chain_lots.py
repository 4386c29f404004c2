"""The chains of all accounts in bounded memory: made of one range of DIDs after the other, and read by their packs.

Only snapshots that something is to be told of are kept, in a scratch file: those that follow another one, and those
that were watched. Of a study that was collected once these are none.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Self

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.storage import without_source
from backfill_dagster.survivorship.chains import CHAIN_SCHEMA
from backfill_dagster.survivorship.stored import RowsDigest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

_PACK = ["pds_host", "pack"]
_SPAN = ("did", "fetched_at", "confirmed_at", "confirmations", "next_at")
_ALL, _LOT = "all", "_lot"
# Snapshots that are dealt out at once; some 200 bytes each.
_ROWS_AT_ONCE = 50_000


class Kept(StrEnum):
    """Why a snapshot is kept."""

    COMPARED = "compared"  # it follows another one that it can be compared with
    WATCHED = "watched"  # it was looked at again: it held for a while


_IS_KEPT = {
    Kept.COMPARED: pl.col("before_pack").is_not_null(),
    Kept.WATCHED: pl.coalesce("next_at", "confirmed_at") > pl.col("fetched_at"),
}
_PACKS_SCHEMA = pl.Schema(
    {**{name: CHAIN_SCHEMA[name] for name in _PACK}, **{kept.value: pl.Boolean() for kept in _IS_KEPT}}
)


class ChainLots:
    """Chains that are added range by range, and then read. A context manager; its files stay in `scratch`.

    `compared` counts the snapshots that can be compared with one before. Raises StorageError.
    """

    def __init__(self, scratch: Path) -> None:
        self.compared = 0
        self._scratch = scratch
        self._kept = DealtRows(scratch / "chains.arrow", CHAIN_SCHEMA)
        self._packs = _PACKS_SCHEMA.to_frame()
        self._spans = RowsDigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kept.__exit__(kind, error, traceback)

    def add(self, chains: pl.DataFrame) -> None:
        """Add the snapshots (CHAIN_SCHEMA, sorted by DID and time) of accounts behind those before."""
        self.compared += chains["before_pack"].count()
        self._spans.add(chains.select(_SPAN))
        marked = chains.group_by(_PACK).agg(is_kept.any().alias(kept) for kept, is_kept in _IS_KEPT.items())
        packs = pl.concat([self._packs, marked]).group_by(_PACK).agg(pl.col(*_IS_KEPT).any())
        self._packs = without_source(packs)
        self._kept.add(_ALL, chains.filter(pl.any_horizontal(_IS_KEPT.values())))

    @property
    def spans_digest(self) -> str:
        """A digest of when each snapshot was fetched, confirmed and followed."""
        return self._spans.hexdigest()

    def packs(self, kept: Kept | None = None) -> list[tuple[str, str]]:
        """Return the packs (host, name) in which snapshots stand, sorted: all, or those with one that is kept so."""
        return self._packs_with(kept).rows()

    def by_packs(self, kept: Kept, packs_at_once: int) -> Iterator[pl.DataFrame]:
        """Yield the snapshots that are kept so, of some packs at a time; sorted by pack, DID and time."""
        packs = self._packs_with(kept)
        if packs.is_empty():
            return
        lots = packs.with_columns((pl.int_range(pl.len()) // packs_at_once).alias(_LOT))
        path = self._scratch / f"chains_{kept}_{packs_at_once}.arrow"
        with DealtRows(path, CHAIN_SCHEMA) as dealt:
            for rows in self._kept_so(kept):
                numbered = rows.join(lots, on=_PACK, maintain_order="left")
                for (lot,), some in numbered.partition_by(_LOT, as_dict=True, include_key=False).items():
                    dealt.add(lot, some)
            for lot in range(len(dealt.rows_of)):
                yield dealt.of(lot).sort(_PACK, maintain_order=True)

    def _kept_so(self, kept: Kept) -> Iterator[pl.DataFrame]:
        """Yield the snapshots that are kept so, many at a time: to deal out many small pieces takes longer."""
        held: list[pl.DataFrame] = []
        for part in self._kept.parts_of(_ALL):
            held.append(part.filter(_IS_KEPT[kept]))
            if sum(rows.height for rows in held) >= _ROWS_AT_ONCE:
                yield pl.concat(held)
                held = []
        if held:
            yield pl.concat(held)

    def _packs_with(self, kept: Kept | None) -> pl.DataFrame:
        chosen = self._packs if kept is None else self._packs.filter(kept)
        return chosen.select(_PACK).sort(_PACK)
