"""The body of a run's item, bounded: a store's items have a largest size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill_dagster.metadata_stores.items import RunItem

# Of DynamoDB's 400 kB, with room for keys and names (an item's size counts the UTF-8 of both).
MAX_BODY_BYTES = 350_000
MAX_METADATA_BYTES = 20_000
_MARK = " … [cut: {} bytes]"


def bounded(run: RunItem) -> RunItem:
    """Return the item with its body and metadata cut to what every store can hold, and marked if they are."""
    return replace(run, body=_cut(run.body, MAX_BODY_BYTES), metadata=_cut(run.metadata, MAX_METADATA_BYTES))


def _cut(text: str, most: int) -> str:
    size = len(text.encode())
    if size <= most:
        return text
    mark = _MARK.format(size)
    # A character that the cut parts is left out.
    return text.encode()[: most - len(mark.encode())].decode(errors="ignore") + mark
