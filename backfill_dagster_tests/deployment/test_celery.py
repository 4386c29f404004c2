"""The example with Celery, its services as their units start them: two workers, Redis and Postgres, and one that dies.

Opt in with `pytest --celery`. Needs Debian's packages `postgresql` and `redis-server`.
"""

import os
from collections.abc import Iterator

import pytest

from backfill_dagster_tests.deployment import shared_out
from backfill_dagster_tests.deployment.dagster_dev import Deployment, free_port
from backfill_dagster_tests.deployment.servers import postgres, redis
from backfill_dagster_tests.deployment.shared_out import SharedOut
from backfill_dagster_tests.deployment.units import EXAMPLES, services

pytestmark = pytest.mark.celery

EXAMPLE = EXAMPLES / "celery"
# Of the machine that starts no runs.
MAIN = EXAMPLES / "single-host/systemd"
WORKERS = ("1", "2")
# For a test to wait.
SOONER = {
    "worker_silence_seconds: 60": "worker_silence_seconds: 5",
    "poll_interval_seconds: 15": "poll_interval_seconds: 5",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedOut]:
    folder, ports = tmp_path_factory.mktemp("main"), (free_port(), free_port())
    config = (EXAMPLE / "dagster.yaml").read_text(encoding="utf-8")
    for usual, sooner in SOONER.items():
        assert usual in config
        config = config.replace(usual, sooner)
    (folder / "dagster.yaml").write_text(config)
    with (
        postgres() as database,
        redis() as broker,
        shared_out.networks() as (plain, shared),
        services(
            folder,
            EXAMPLE,
            {
                "BACKFILL_POSTGRES_URL": database,
                "BACKFILL_REDIS_URL": broker,
                "BACKFILL_CONFIGS": str(folder / "configs"),
                "BACKFILL_COMPUTE_LOGS": str(folder / "compute_logs"),
            },
            ports,
        ) as running,
        shared_out.the_one_command(tmp_path_factory.mktemp("local")) as expected,
    ):
        shared_out.write_studies(folder, plain, shared)
        for name in ("backfill-code", "backfill-daemon", "backfill-webserver"):
            running.start(MAIN / f"{name}.service")
        for number in WORKERS:
            running.start(EXAMPLE / "systemd/backfill-worker@.service", number)
        deployment = Deployment(folder, f"http://127.0.0.1:{ports[1]}", running.is_alive, running.log)
        deployment.wait_for("the web server answers", deployment.is_loaded, shared_out.SECONDS)

        def kill(process: int) -> None:
            """End the worker whose process this is, as a machine ends that is switched off."""
            [worker] = [name for name, one in running.processes.items() if one.pid == os.getpgid(process)]
            assert worker.startswith("backfill-worker")
            running.kill(worker)

        yield shared_out.share_out(deployment, plain, shared, expected, kill)


def test_two_runs_are_under_way_at_once(result: SharedOut) -> None:
    shared_out.check_runs_at_once(result)


def test_a_run_whose_worker_is_gone_is_retried_by_another(result: SharedOut) -> None:
    shared_out.check_retry(result)


def test_the_tables_are_those_of_the_one_command(result: SharedOut) -> None:
    shared_out.check_tables(result)


def test_two_workers_on_one_host_keep_to_its_limit_together(result: SharedOut) -> None:
    shared_out.check_limits(result)
