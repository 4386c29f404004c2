"""Takes what has a tombstone out of Dagster's own memory: the runs of a study, their events and captured output.

Events of this project name no account, but a run's configuration can, where a purge was given its DIDs in it, and so
can an error. Such a run is deleted whole, by the instance's own method; an output that was captured is deleted by
itself. What Dagster keeps beside its runs is out of reach here: backups, and the snapshots of job definitions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeIOType

from backfill_dagster.orchestration.tags import STUDY_TAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.config.study import Study
    from backfill_dagster.purge.tombstones import Tombstones

_RUNS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class ForgottenHistory:
    """What was deleted: runs, and captured outputs of runs that stay. `live` runs name somebody and cannot go yet."""

    runs: int
    outputs: int
    live: tuple[str, ...]


def forget_purged(instance: dg.DagsterInstance, study: Study, tombstones: Tombstones) -> ForgottenHistory:
    """Delete the runs of a study that name an account or a record with a tombstone; also those of purges before."""
    runs = outputs = 0
    live: list[str] = []
    for run in list(_runs_of(instance, study)):
        events = instance.all_logs(run.run_id)
        texts = [_text_of(run), *(str(event.to_json()) for event in events)]  # type: ignore[no-untyped-call]
        if not any(_names(text, tombstones) for text in texts):
            outputs += _delete_outputs(instance, run, events, tombstones)
        elif run.is_finished:
            instance.compute_log_manager.delete_logs(prefix=[run.run_id])
            instance.delete_run(run.run_id)
            runs += 1
        else:
            live.append(run.run_id)
    return ForgottenHistory(runs, outputs, tuple(live))


def _runs_of(instance: dg.DagsterInstance, study: Study) -> Iterator[dg.DagsterRun]:
    """Yield the study's runs."""
    cursor: str | None = None
    while page := instance.get_runs(cursor=cursor, limit=_RUNS_AT_ONCE):
        cursor = page[-1].run_id
        yield from (run for run in page if belongs_to(run, study))


def belongs_to(run: dg.DagsterRun, study: Study) -> bool:
    """Tell whether a run is the study's: those of its jobs carry its tag, those of single assets its assets' keys."""
    assets = run.asset_selection or ()
    return run.tags.get(STUDY_TAG) == study.name or any(key.path[0] == study.name for key in assets)


def _text_of(run: dg.DagsterRun) -> str:
    return json.dumps([run.run_config, dict(run.tags)], default=str)


def _names(text: str, tombstones: Tombstones) -> bool:
    return tombstones.named_in(text) or tombstones.record_named_in(text)


def _delete_outputs(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    events: Iterable[dg.EventLogEntry],
    tombstones: Tombstones,
) -> int:
    """Delete the captured outputs of a run that name somebody; return how many."""
    manager = instance.compute_log_manager
    deleted = 0
    for event in events:
        if event.dagster_event_type is not dg.DagsterEventType.LOGS_CAPTURED or event.dagster_event is None:
            continue
        key = manager.build_log_key_for_run(run.run_id, event.dagster_event.logs_captured_data.file_key)
        parts = [manager.get_log_data_for_type(key, kind, 0, None)[0] for kind in ComputeIOType]
        if any(_names((part or b"").decode("utf-8", "replace"), tombstones) for part in parts):
            manager.delete_logs(log_key=key)
            deleted += 1
    return deleted
