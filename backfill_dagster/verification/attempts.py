"""The ledger of all attempts as the packs tell of them, whatever has become of their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.repos.packs import LEDGER_SCHEMA, PACK_SCHEMA, pack_keys
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backfill_dagster.storage import StudyStorage

_PACKS_AT_ONCE = 64
_TOLD = [name for name in LEDGER_SCHEMA if name not in ("pds_host", "pack")]


def all_attempts(storage: StudyStorage, damaged: Collection[str] = ()) -> Iterator[pl.DataFrame | Found]:
    """Yield all attempts (LEDGER_SCHEMA), some packs' after the others', and which packs cannot be read.

    Packs of which it is known that they are `damaged` are not read at all.

    Unlike the ledger that stages go by, it has also those whose blocks are lost: what there was is to be told.
    """
    packs = [pack for pack in pack_keys(storage) if pack[2] not in damaged]
    for first in range(0, len(packs), _PACKS_AT_ONCE):
        some = packs[first : first + _PACKS_AT_ONCE]
        try:
            yield _read(storage, some)
        except (StorageError, pl.exceptions.PanicException):
            for pack in some:
                try:
                    yield _read(storage, [pack])
                except (StorageError, pl.exceptions.PanicException) as error:
                    yield Found(FileProblem.UNREADABLE, pack[2], f"{error!s:.200}")


def _read(storage: StudyStorage, packs: Sequence[tuple[str, str, str]]) -> pl.DataFrame:
    hosts, names, keys = zip(*packs, strict=True)
    origin = pl.LazyFrame({"key": keys, "pds_host": hosts, "pack": names})
    rows = storage.scan_named({key: key for key in keys}, PACK_SCHEMA, "key").select(*_TOLD, "key")
    told = rows.join(origin, on="key").select(LEDGER_SCHEMA.names())
    return storage.collect([told], keys)[0]
