"""Dagster instances of a test's own, on disk, with the storage that the project's `dagster.yaml` names."""

from pathlib import Path
from typing import Any

import dagster as dg

_NO_LOGS = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}


def local_instance(home: Path, *, compute_logs: bool = False) -> dg.DagsterInstance:
    """Return an instance with its files in a folder, for a `with`; it keeps what steps print only if it is asked to.

    That takes two more processes for every step.
    """
    home.mkdir(exist_ok=True)
    storage = {
        "module": "backfill_dagster.orchestration.sqlite_history",
        "class": "SqliteHistory",
        "config": {"base_dir": str(home)},
    }
    settings: dict[str, Any] = {"telemetry": {"enabled": False}, "storage": {"custom": storage}}
    if not compute_logs:
        settings["compute_logs"] = _NO_LOGS
    return dg.DagsterInstance.local_temp(str(home), overrides=settings)
