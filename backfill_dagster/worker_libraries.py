"""Loads what workers need, once, in the process that they are forked off; it is imported there and nowhere else."""

from __future__ import annotations

import gc

from backfill_dagster.library_environment import set_worker_up

set_worker_up()

from backfill_dagster.records import conversion  # noqa: E402, F401
from backfill_dagster.repos import proof  # noqa: E402, F401
from backfill_dagster.tables import build  # noqa: E402, F401

# What is loaded stays, and is not to be copied into every worker because a collector has looked at it.
gc.collect()
gc.freeze()
