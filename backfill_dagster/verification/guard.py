"""Pieces of the work that go on when a file cannot be read: then that is what is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from backfill_dagster.errors import BackfillError
from backfill_dagster.verification.again import check_conversion, check_part
from backfill_dagster.verification.packs import PackProof, prove_pack
from backfill_dagster.verification.verdicts import VERDICTS_SCHEMA, FileProblem, Found

if TYPE_CHECKING:
    from backfill_dagster.stores.location import Location
    from backfill_dagster.tables.parts import Part
    from backfill_dagster.verification.again import Conversion
    from backfill_dagster.verification.packs import PackToProve

# What is raised for a file that holds anything: whoever has changed it may have changed types, names and counts, too,
# or have made it such that a worker ends for want of memory.
CANNOT_BE_READ = (
    *(BackfillError, OSError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException),
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, RuntimeError, MemoryError),
)


def proven_pack(root: Location, pack: PackToProve) -> PackProof:
    """Do what `prove_pack` does; a pack that cannot be read has no verdicts."""
    try:
        return prove_pack(root, pack)
    except CANNOT_BE_READ as error:
        return PackProof(VERDICTS_SCHEMA.to_frame(), [_unreadable(pack.key, error)], 0)


def checked_conversion(root: Location, conversion: Conversion) -> list[Found]:
    """Do what `check_conversion` does."""
    try:
        return check_conversion(root, conversion)
    except CANNOT_BE_READ as error:
        return [_unreadable(conversion.files.key, error)]


def checked_part(root: Location, part: Part) -> list[Found]:
    """Do what `check_part` does."""
    try:
        return check_part(root, part)
    except CANNOT_BE_READ as error:
        return [_unreadable(part.files[0].key if part.files else None, error)]


def _unreadable(key: str | None, error: BaseException) -> Found:
    return Found(FileProblem.UNREADABLE, key, f"{type(error).__name__}: {error!s:.200}")
