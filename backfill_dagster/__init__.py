"""Collects the past of Bluesky accounts as proven, typed Parquet tables, orchestrated by Dagster.

`defs` is made when somebody asks for it: worker processes import this package and must not import Dagster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.library_environment import set_allocators_up

if TYPE_CHECKING:
    import dagster

    defs: dagster.Definitions


# Before any module of the package loads Polars or Arrow.
set_allocators_up()


def __getattr__(name: str) -> object:
    if name == "defs":
        from backfill_dagster.definitions import build_defs

        globals()["defs"] = build_defs()
        return globals()["defs"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "defs"]
