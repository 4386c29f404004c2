"""Rows that stand for records, by their AT-URIs: what of them is purged, and what in the others is masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from backfill_dagster.purge.tombstones import Tombstones

_TEXTS = pl.List(pl.String())


def without_purged_records(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return the rows whose `uri` is neither a purged account's, nor a purged record, nor names the purged."""
    if not tombstones or rows.is_empty():
        return rows
    # at: // authority / collection / rkey
    parts = rows.select(pl.col("uri").fill_null("").str.splitn("/", 5).struct.unnest()).fill_null("")
    dids, collections, rkeys = (parts[f"field_{number}"].to_list() for number in (2, 3, 4))
    purged = set(tombstones.held_among(parts["field_2"]))
    withheld = set(tombstones.withheld_rows(dids, collections, rkeys))
    stays = [place not in withheld and did not in purged for place, did in enumerate(dids)]
    return rows.filter(pl.Series(stays, dtype=pl.Boolean))


def masked(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return a frame with purged accounts masked in all columns of texts and of lists of texts."""
    if not tombstones.dids:
        return rows
    rows = tombstones.mask_texts(rows)
    for name in [name for name, kind in rows.schema.items() if kind == _TEXTS]:
        texts = rows[name].explode().drop_nulls().unique()
        changed = {text: other for text in texts if (other := tombstones.mask(text)) != text}
        if changed:
            rows = rows.with_columns(pl.col(name).list.eval(pl.element().replace(changed)))
    return rows


def purged_rows(rows: pl.DataFrame, tombstones: Tombstones) -> tuple[pl.DataFrame, int, int]:
    """Return the rows without what is purged, how many rows went, and in how many of the others something is masked."""
    kept = without_purged_records(rows, tombstones)
    told = masked(kept, tombstones)
    if told.equals(kept):
        return kept, rows.height - kept.height, 0
    changed = kept.hash_rows(seed=0) != told.hash_rows(seed=0)
    return told, rows.height - kept.height, int(changed.sum())
