"""Dagster's ECS launcher, as `configs/deploy/aws` sets it up, beside an ECS that takes orders and runs nothing."""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import WorkerStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceRequestContext
from dagster._grpc.types import ExecuteRunArgs
from dagster_shared.record import copy

from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.aws.cloud import REGION, STACK, Cloud, Request
from backfill_dagster_tests.deployment.aws.rights import Need, actions_of, allows
from backfill_dagster_tests.deployment.remote_runs import create_remote_run

pytestmark = pytest.mark.aws

_STUDY = """backfill:
  name: panel
  source: {type: inline, dids: ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]}
  storage: {path: ./data}
  run_tags:
    fetch: {ecs/cpu: "4096", ecs/memory: "16384"}
"""
_AS_EVERYWHERE = "*"


@dataclass
class Daemon:
    """What the daemon has: its instance, and the code location."""

    cloud: Cloud
    home: Path
    instance: dg.DagsterInstance
    workspace: WorkspaceRequestContext

    def launch(self, job: str, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        """Have a run of a job launched, and return it as it is then."""
        run = create_remote_run(self.instance, self.workspace, job, tags)
        self.instance.launch_run(run.run_id, self.workspace)
        return self.again(run)

    def again(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Return a run as it is now."""
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found

    def task(self, run: dg.DagsterRun) -> dict[str, Any]:
        """Return what ECS says of the task of a run."""
        tags = self.again(run).tags
        told = self.cloud.client("ecs").describe_tasks(
            cluster=tags["ecs/cluster"], tasks=[tags["ecs/task_arn"]], include=["TAGS"]
        )
        [task] = told["tasks"]
        return dict(task)

    def lose(self, run: dg.DagsterRun, exit_code: int) -> None:
        """Have the task of a run end as one that was killed does."""
        from moto.ecs.models import ecs_backends

        arn = self.again(run).tags["ecs/task_arn"]
        tasks = ecs_backends["123456789012"][REGION].tasks[self.cloud.physical("Cluster")]
        tasks[arn].last_status = "STOPPED"
        tasks[arn].stopped_reason = "OutOfMemoryError: Container killed due to memory usage"
        tasks[arn].containers[0].exitCode = exit_code


@contextmanager
def metadata_endpoint(cluster: str, task: str, container: str) -> Iterator[str]:
    """Serve what ECS tells a container of itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = {"Cluster": cluster, "TaskARN": task} if self.path == "/v4/task" else {"Name": container}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v4"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def daemon(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon's task as its service has it, and in it the launcher of `dagster.yaml`."""
    [task] = cloud.client("ecs").run_task(
        cluster=cloud.physical("Cluster"),
        taskDefinition=f"{STACK}-daemon",
        launchType=_service(cloud)["LaunchType"],
        networkConfiguration=_network(cloud),
    )["tasks"]
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "panel.yaml").write_text(_STUDY)
    settings = yaml.safe_load((ROOT / "configs/deploy/aws/dagster.yaml").read_text())
    with (
        pytest.MonkeyPatch.context() as environment,
        metadata_endpoint(task["clusterArn"], task["taskArn"], "daemon") as url,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        variables = {
            **cloud.environment("daemon"),
            **cloud.task_role_credentials("DaemonRole"),
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
            "ECS_CONTAINER_METADATA_URI_V4": url,
            "BACKFILL_CONFIGS": str(folder),
        }
        for name, value in variables.items():
            environment.setenv(name, value)
        from dagster._core.test_utils import in_process_test_workspace

        overrides = {
            "telemetry": {"enabled": False},
            **{name: settings[name] for name in ("run_launcher", "run_monitoring", "run_retries")},
        }
        (folder / "home").mkdir()
        with (
            dg.DagsterInstance.local_temp(str(folder / "home"), overrides=overrides) as instance,
            in_process_test_workspace(
                instance,
                LoadableTargetOrigin(executable_path=sys.executable, module_name="backfill_dagster"),
            ) as workspace,
        ):
            yield Daemon(cloud, folder / "home", instance, workspace)


def _service(cloud: Cloud) -> dict[str, Any]:
    return dict(cloud.template["Resources"]["DaemonService"]["Properties"])


def _network(cloud: Cloud) -> dict[str, Any]:
    told = _service(cloud)["NetworkConfiguration"]["AwsvpcConfiguration"]
    return {
        "awsvpcConfiguration": {
            "subnets": [cloud.physical(subnet["Ref"]) for subnet in told["Subnets"]],
            "securityGroups": [cloud.physical(group["Ref"]) for group in told["SecurityGroups"]],
            "assignPublicIp": told["AssignPublicIp"],
        }
    }


@pytest.fixture
def orders(daemon: Daemon) -> list[Request]:
    """What the cloud is asked for in a test."""
    daemon.cloud.requests.clear()
    return daemon.cloud.requests


def order(orders: list[Request], operation: str) -> dict[str, Any]:
    """Return the one request for an operation."""
    [body] = [request.body for request in orders if request.operation == operation]
    return dict(json.loads(body))


def test_a_run_is_a_task_that_executes_it(daemon: Daemon, orders: list[Request]) -> None:
    run = daemon.launch("panel")
    asked = order(orders, "RunTask")
    assert asked["taskDefinition"].split("/")[-1].startswith(f"{STACK}-run:")
    assert asked["launchType"] == "FARGATE"
    assert asked["cluster"].endswith(daemon.cloud.physical("Cluster"))
    [container] = asked["overrides"]["containerOverrides"]
    assert container["name"] == "run"
    assert container["command"][:3] == ["dagster", "api", "execute_run"]
    assert dg.deserialize_value(container["command"][3], ExecuteRunArgs).run_id == run.run_id
    assert run.status is dg.DagsterRunStatus.STARTING
    assert daemon.instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_what_a_task_is_told_is_no_longer_than_aws_takes(daemon: Daemon, orders: list[Request]) -> None:
    """With all of `dagster.yaml`, of which this test's own instance has parts."""
    run = daemon.launch("panel_stage_accounts")
    overrides = order(orders, "RunTask")["overrides"]
    told = dg.deserialize_value(overrides["containerOverrides"][0]["command"][3], ExecuteRunArgs)
    whole = InstanceRef.from_dir(str(daemon.home), config_dir=str(ROOT / "configs" / "deploy" / "aws"))
    overrides["containerOverrides"][0]["command"][3] = dg.serialize_value(copy(told, instance_ref=whole))
    assert told.run_id == run.run_id
    assert len(json.dumps(overrides)) < 8192


def test_it_runs_where_the_daemon_is(daemon: Daemon, orders: list[Request]) -> None:
    daemon.launch("panel")
    network = order(orders, "RunTask")["networkConfiguration"]["awsvpcConfiguration"]
    expected = _network(daemon.cloud)["awsvpcConfiguration"]
    assert network["securityGroups"] == expected["securityGroups"]
    assert set(network["subnets"]) <= set(expected["subnets"])


def test_it_carries_the_study_and_gets_what_the_study_asks_for(daemon: Daemon, orders: list[Request]) -> None:
    run = daemon.launch("panel_stage_fetch")
    asked = order(orders, "RunTask")
    assert (asked["overrides"]["cpu"], asked["overrides"]["memory"]) == ("4096", "16384")
    [container] = asked["overrides"]["containerOverrides"]
    assert (container["cpu"], container["memory"]) == (4096, 16384)
    tags = {tag["key"]: tag["value"] for tag in daemon.task(run)["tags"]}
    assert tags == {
        "dagster/run_id": run.run_id,
        "dagster/job_name": "panel_stage_fetch",
        "project": "backfill_dagster",
        "backfill_dagster/study": "panel",
    }


def test_one_run_can_ask_for_more(daemon: Daemon, orders: list[Request]) -> None:
    daemon.launch("panel", {"ecs/memory": "30720", "ecs/ephemeral_storage": "100"})
    overrides = order(orders, "RunTask")["overrides"]
    assert overrides["memory"] == "30720"
    assert overrides["ephemeralStorage"] == {"sizeInGiB": 100}


def test_a_run_that_is_canceled_has_its_task_stopped(daemon: Daemon, orders: list[Request]) -> None:
    run = daemon.launch("panel")
    assert daemon.instance.run_launcher.terminate(run.run_id)
    assert order(orders, "StopTask")["task"] == run.tags["ecs/task_arn"]
    assert daemon.task(run)["lastStatus"] == "STOPPED"
    assert daemon.again(run).status is dg.DagsterRunStatus.CANCELING


def test_a_run_whose_task_was_killed_is_failed_and_will_be_tried_again(
    daemon: Daemon, orders: list[Request]
) -> None:
    from dagster._daemon.monitoring.run_monitoring import monitor_started_run

    run = daemon.launch("panel")
    assert daemon.instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    daemon.instance.handle_new_event(_started(run))
    daemon.lose(run, exit_code=137)
    health = daemon.instance.run_launcher.check_run_worker_health(daemon.again(run))
    assert health.status is WorkerStatus.FAILED
    assert "OutOfMemoryError" in (health.msg or "")
    record = daemon.instance.get_run_record_by_id(run.run_id)
    assert record is not None
    monitor_started_run(daemon.instance, daemon.workspace, record, logging.getLogger(__name__))
    failed = daemon.again(run)
    assert failed.status is dg.DagsterRunStatus.FAILURE
    assert failed.tags["dagster/will_retry"] == "true"


def _started(run: dg.DagsterRun) -> dg.EventLogEntry:
    event = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=run.job_name)
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=logging.INFO,
        user_message="",
        run_id=run.run_id,
        timestamp=0.0,
        job_name=run.job_name,
        dagster_event=event,
    )


def test_all_of_it_is_allowed_to_the_daemon_and_nothing_else_is(
    daemon: Daemon, orders: list[Request]
) -> None:
    cloud = daemon.cloud
    policies = cloud.role_policies("DaemonRole")
    orders.clear()
    run = daemon.launch("panel")
    daemon.lose(run, exit_code=1)
    daemon.instance.run_launcher.check_run_worker_health(daemon.again(run))
    daemon.instance.run_launcher.terminate(daemon.launch("panel").run_id)
    asked = {f"{request.service}:{request.operation}" for request in orders}
    cluster = cloud.physical("Cluster")
    task = f"arn:aws:ecs:{REGION}:123456789012:task/{cluster}/0123456789"
    group = f"arn:aws:logs:{REGION}:123456789012:log-group:{cloud.physical('TaskLogs')}"
    resources = {
        "ecs:RunTask": f"arn:aws:ecs:{REGION}:123456789012:task-definition/{STACK}-run:7",
        "ecs:DescribeTasks": task,
        "ecs:StopTask": task,
        "logs:GetLogEvents": f"{group}:log-stream:run/run/0123456789",
    }
    context = {
        "ecs:cluster": f"arn:aws:ecs:{REGION}:123456789012:cluster/{cluster}",
        "ecs:CreateAction": "RunTask",
        "iam:PassedToService": "ecs-tasks.amazonaws.com",
    }
    for action in asked:
        assert allows(policies, Need(action, resources.get(action, _AS_EVERYWHERE)), context), action
    # What AWS asks for besides where one task starts another, and what is captured of the daemon's own work.
    implied = {"ecs:TagResource", "iam:PassRole"}
    captured = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"}
    assert actions_of(policies) == asked | implied | captured
    for role in ("StudyRole", "ExecutionRole"):
        passed = Need("iam:PassRole", f"arn:aws:iam::123456789012:role/{cloud.physical(role)}")
        assert allows(policies, passed, context)
    for need in (
        Need("ecs:RunTask", f"arn:aws:ecs:{REGION}:123456789012:task-definition/other:1"),
        Need("iam:PassRole", f"arn:aws:iam::123456789012:role/{cloud.physical('DaemonRole')}"),
        Need("ecs:StopTask", f"arn:aws:ecs:{REGION}:123456789012:task/other/1"),
        Need("s3:GetObject", f"arn:aws:s3:::{cloud.physical('StudyBucket')}/studies/panel/accounts.parquet"),
    ):
        assert not allows(policies, need, context), need
