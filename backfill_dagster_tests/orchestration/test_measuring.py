"""The metrics of a run, in its process, where its study wants them shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from backfill_dagster.monitoring.exposition import Exposition
from backfill_dagster.monitoring.study_metrics import Metrics
from backfill_dagster.orchestration import measuring
from backfill_dagster_tests.monitoring.scraped import Scraped
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import dagster as dg


@pytest.fixture(autouse=True)
def fresh_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """Those of a process in which nothing was run before."""
    metrics = Metrics()
    exposition = Exposition(metrics.registry)
    monkeypatch.setattr(measuring, "_METRICS", metrics)
    monkeypatch.setattr(measuring, "_EXPOSITION", exposition)
    yield metrics
    exposition.close()


def test_a_run_of_single_stages_shows_what_they_came_to(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    shown = tmp_path / "metrics.prom"
    study = sandbox_study(tmp_path, monitoring={"prometheus_textfile": str(shown)})
    assert execute(tmp_path, f"{study.name}_stage_discover", instance)
    scraped = Scraped(shown.read_text())
    assert scraped.by("stage", "backfill_stage_active") == {"directory": 0, "source_dids": 0}
    assert all(scraped.by("stage", "backfill_stage_succeeded_timestamp_seconds").values())
    assert scraped.sum("backfill_stage_work_done", stage="directory") == 60
    assert scraped.sum("backfill_requests_total", host="plc.sandbox.test") >= 55


def test_a_stage_that_fails_is_shown_failed(tmp_path: Path) -> None:
    shown = tmp_path / "metrics.prom"
    study = sandbox_study(tmp_path, monitoring={"prometheus_textfile": str(shown)})
    with pytest.raises(ValueError, match="of itself"), measuring.measured_stage(study, "repos"):
        raise ValueError("of itself")
    scraped = Scraped(shown.read_text())
    assert scraped.sum("backfill_stage_failed_timestamp_seconds", stage="repos") > 0
    assert scraped.sum("backfill_stage_succeeded_timestamp_seconds", stage="repos") == 0


def test_what_cannot_be_shown_fails_no_stage(tmp_path: Path) -> None:
    folder = tmp_path / "unwritable.prom"
    folder.mkdir()
    monitoring = {
        "prometheus_textfile": str(folder),
        # Whoever may listen there is no gateway, and a port that only some may have.
        "prometheus_pushgateway": "http://127.0.0.1:1",
        "prometheus_port": 1 if os.getuid() else 65535,
        "prometheus_address": "192.0.2.1",
    }
    study = sandbox_study(tmp_path, monitoring=monitoring)
    with measuring.measured_stage(study, "repos") as metrics:
        metrics.retried("pds.test")


def test_a_collector_that_breaks_fails_no_stage(tmp_path: Path, fresh_metrics: Metrics) -> None:
    class Broken:
        done, total = property(lambda self: 1 / 0), 1

    study = sandbox_study(tmp_path, monitoring={"prometheus_textfile": str(tmp_path / "metrics.prom")})
    with measuring.measured_stage(study, "repos") as metrics:
        metrics.following("repos", lambda progress: None)(Broken())
