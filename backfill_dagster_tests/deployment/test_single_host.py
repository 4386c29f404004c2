"""The example of one machine, its services as its units start them: Postgres, a queue, and several runs at once.

Opt in with `pytest --postgres`. Needs Debian's package `postgresql`.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from backfill_dagster_tests.deployment import shared_out
from backfill_dagster_tests.deployment.dagster_dev import Deployment, free_port
from backfill_dagster_tests.deployment.servers import postgres
from backfill_dagster_tests.deployment.shared_out import SharedOut
from backfill_dagster_tests.deployment.units import EXAMPLES, services

pytestmark = pytest.mark.postgres

EXAMPLE = EXAMPLES / "single-host"
SERVICES = ("backfill-code", "backfill-daemon", "backfill-webserver")


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(scope="module")
def result(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedOut]:
    folder, ports = tmp_path_factory.mktemp("host"), (free_port(), free_port())
    shutil.copy(EXAMPLE / "dagster.yaml", folder)
    environment = {
        "BACKFILL_POSTGRES_URL": database,
        "BACKFILL_CONFIGS": str(folder / "configs"),
        "BACKFILL_COMPUTE_LOGS": str(folder / "compute_logs"),
    }
    with (
        shared_out.networks() as (plain, shared),
        services(folder, EXAMPLE, environment, ports) as running,
        shared_out.the_one_command(tmp_path_factory.mktemp("local")) as expected,
    ):
        shared_out.write_studies(folder, plain, shared)
        for name in SERVICES:
            running.start(EXAMPLE / f"systemd/{name}.service")
        deployment = Deployment(folder, f"http://127.0.0.1:{ports[1]}", running.is_alive, running.log)
        deployment.wait_for("the web server answers", deployment.is_loaded, shared_out.SECONDS)

        def kill(process: int) -> None:
            os.kill(process, signal.SIGKILL)

        yield shared_out.share_out(deployment, plain, shared, expected, kill)


def test_two_runs_are_under_way_at_once(result: SharedOut) -> None:
    shared_out.check_runs_at_once(result)


def test_a_run_that_is_killed_is_retried(result: SharedOut) -> None:
    shared_out.check_retry(result)


def test_the_tables_are_those_of_the_one_command(result: SharedOut) -> None:
    shared_out.check_tables(result)


def test_two_runs_on_one_host_keep_to_its_limit_together(result: SharedOut) -> None:
    shared_out.check_limits(result)


def test_retention_leaves_what_is_known_of_assets(result: SharedOut, database: str) -> None:
    url = database.replace("+psycopg2", "")

    def ask(*arguments: str) -> str:
        command = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", *arguments, url]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def events(which: str) -> int:
        return int(ask("-c", f"SELECT count(*) FROM event_logs WHERE asset_key IS {which}"))

    known, others = events("NOT NULL"), events("NULL")
    ask("-v", "age=1 day", "-f", str(EXAMPLE / "retention.sql"))
    assert (events("NOT NULL"), events("NULL")) == (known, others)
    ask("-v", "age=0 seconds", "-f", str(EXAMPLE / "retention.sql"))
    assert events("NOT NULL") == known > 300
    assert events("NULL") < others / 10
    assert len(result.deployment.runs()) >= len(result.runs)
