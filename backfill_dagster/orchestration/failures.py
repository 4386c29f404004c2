"""Errors of this package as failures of a Dagster step: one clear message, and no retry that cannot help."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.errors import BackfillError, first_known

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn a BackfillError, also one out of a group of tasks, into a `dagster.Failure` with its message."""
    try:
        yield
    except BackfillError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except BaseExceptionGroup as group:
        known = first_known(group)
        if known is None:
            raise
        raise dg.Failure(description=str(known), allow_retries=False) from group
