"""Blocks files: the exact bytes of every record of a pack's complete accounts, in a Parquet file of their own.

Sorted by collection, so that a reader of one type passes over the row groups of the others.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from backfill_dagster.columns import Column
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.storage import RowGroupWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ROW_GROUP_BYTES = 16 * 2**20

BLOCK_COLUMNS = (
    Column("did", pl.String(), "DID of the account whose repository holds the record.", required=True),
    Column(
        "collection", pl.String(), "First part of the record's key in the repository's tree.", required=True
    ),
    Column("rkey", pl.String(), "Second part of the record's key in the repository's tree.", required=True),
    Column("cid", pl.Binary(), "CID of the block, as its 36 bytes.", required=True),
    Column("block", pl.Binary(), "The record's exact bytes, in DAG-CBOR.", required=True),
)
# A row group's blocks can be more than the offsets of `binary` reach.
_ARROW_TYPES = (pa.string(), pa.string(), pa.string(), pa.binary(), pa.large_binary())
BLOCKS_SCHEMA = pa.schema(
    [
        pa.field(column.name, kind, nullable=not column.required)
        for column, kind in zip(BLOCK_COLUMNS, _ARROW_TYPES, strict=True)
    ]
)


class Records(NamedTuple):
    """Some of one account's records, in the order of its tree, as parallel columns; CIDs are 36 bytes a row."""

    did: str
    collections: pa.LargeStringArray
    rkeys: pa.LargeStringArray
    cids: NDArray[np.uint8]
    blocks: Sequence[bytes]


def write_blocks_file(path: Path, records: Sequence[Records]) -> None:
    """Write records by collection, account and key; raises StorageError.

    Those of an account and a collection must come in the order of their keys.
    """
    with RowGroupWriter(path, BLOCKS_SCHEMA, dictionary=("did", "collection")) as writer:
        for group in _row_groups(records):
            writer.write(group)


def _row_groups(records: Sequence[Records]) -> Iterator[pa.Table]:
    """Yield tables with blocks of about so many bytes each; a larger block stands alone."""
    dids = pa.array([some.did for some in records]).dictionary_encode()
    did_codes = np.repeat(dids.indices.to_numpy(), [len(some.blocks) for some in records])
    collections = pa.concat_arrays([some.collections for some in records]).dictionary_encode()
    collection_codes = collections.indices.to_numpy()
    rkeys = pa.concat_arrays([some.rkeys for some in records])
    cids = np.concatenate([some.cids for some in records])
    blocks = list(chain.from_iterable(some.blocks for some in records))

    order = np.lexsort((_ranks(dids.dictionary)[did_codes], _ranks(collections.dictionary)[collection_codes]))
    sizes = np.fromiter(map(len, blocks), np.int64, len(blocks))[order]
    cuts = np.flatnonzero(np.diff((np.cumsum(sizes) - 1) // ROW_GROUP_BYTES)) + 1
    for rows in np.split(order, cuts):
        columns = [
            dids.dictionary.take(pa.array(did_codes[rows])),
            collections.dictionary.take(pa.array(collection_codes[rows])),
            rkeys.take(pa.array(rows)),
            _binary(cids[rows]),
            pa.array([blocks[row] for row in rows.tolist()], pa.large_binary()),
        ]
        typed = [column.cast(kind.type) for column, kind in zip(columns, BLOCKS_SCHEMA, strict=True)]
        yield pa.table(typed, schema=BLOCKS_SCHEMA)


def _ranks(names: pa.Array) -> NDArray[np.int64]:
    """Return the place of each name in the order of all."""
    ranks = np.empty(len(names), np.int64)
    ranks[np.array(pc.sort_indices(names))] = np.arange(len(names))
    return ranks


def _binary(cids: NDArray[np.uint8]) -> pa.BinaryArray:
    offsets = np.arange(0, len(cids) * CID_BYTES + 1, CID_BYTES, dtype=np.int32)
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(cids), [None, pa.py_buffer(offsets), pa.py_buffer(cids)]
    )
