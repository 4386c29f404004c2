"""The metrics of the process of a run: one registry for all studies, shown from the first stage on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from backfill_dagster.monitoring.exposition import Exposition
from backfill_dagster.monitoring.study_metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.study_metrics import StudyMetrics

_METRICS = Metrics()
_EXPOSITION = Exposition(_METRICS.registry)


@contextmanager
def measured_stage(study: Study, name: str) -> Iterator[StudyMetrics]:
    """Give what a stage counts with; tell of the stage while it is at work and when it has ended."""
    metrics = _METRICS.of(study)
    _EXPOSITION.begin(study.name, study.monitoring)
    try:
        with metrics.stage(name):
            yield metrics
    finally:
        _EXPOSITION.refresh()
