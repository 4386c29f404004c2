from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from backfill_dagster.orchestration.dead_runs import report_dead_runs
from backfill_dagster.orchestration.tags import PARENT_TAG

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> str:
    named = {{"server": GRPC_INFO_TAG, "parent": PARENT_TAG}[name]: value for name, value in tags.items()}
    return str(create_run_for_test(instance, job_name="study", status=status, tags=named).run_id)


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found.status


def test_what_the_code_server_was_doing_is_reported_with_its_stages(instance: dg.DagsterInstance) -> None:
    begun = run(instance, STARTED, server="{}")
    stage = run(instance, STARTED, parent=begun)
    starting = run(instance, dg.DagsterRunStatus.STARTING, server="{}")
    canceling = run(instance, dg.DagsterRunStatus.CANCELING, server="{}")
    assert set(report_dead_runs(instance)) == {begun, stage, starting, canceling}
    assert [status(instance, one) for one in (begun, stage, starting)] == [FAILURE] * 3
    assert status(instance, canceling) is dg.DagsterRunStatus.CANCELED
    assert report_dead_runs(instance) == []


def test_what_others_do_or_what_is_over_or_waits_is_left_alone(instance: dg.DagsterInstance) -> None:
    of_command_line = run(instance, STARTED)
    others = {
        of_command_line: STARTED,
        run(instance, STARTED, parent=of_command_line): STARTED,
        run(instance, dg.DagsterRunStatus.NOT_STARTED): dg.DagsterRunStatus.NOT_STARTED,
        run(instance, dg.DagsterRunStatus.SUCCESS, server="{}"): dg.DagsterRunStatus.SUCCESS,
    }
    assert report_dead_runs(instance) == []
    assert {one: status(instance, one) for one in others} == others
