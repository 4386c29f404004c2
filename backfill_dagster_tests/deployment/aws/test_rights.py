"""What a study asks of AWS, and what the role of its runs may: the one is as much as the other."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from botocore.exceptions import ClientError, HTTPClientError

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.s3 import S3Store, s3_client
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.aws.cloud import REGION, Cloud, Request
from backfill_dagster_tests.deployment.aws.rights import Need, allows, listed, needs_of_s3_request
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox_study

pytestmark = pytest.mark.aws

_SETTINGS = SandboxSettings(seed=31, accounts=30, hosts=2, records=8)
_PERIOD = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}
_MEGABYTE = 2**20


@dataclass
class Studied:
    """A study that ran with the rights of its role alone, and what it asked for."""

    study: Study
    succeeded: dict[str, bool]
    needs: set[Need]
    policies: list[dict[str, Any]]


@contextmanager
def rights_enforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the cloud refuse what a caller's role does not allow."""
    from moto import settings as moto_settings
    from moto.iam.access_control import IAMRequestBase

    # What the native clients sign, moto does not put together as they do; who asks, it knows by the key.
    monkeypatch.setattr(IAMRequestBase, "check_signature", lambda self: None)
    before = moto_settings.INITIAL_NO_AUTH_ACTION_COUNT
    moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    try:
        yield
    finally:
        moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = before


@pytest.fixture(scope="module")
def policies(cloud: Cloud) -> list[dict[str, Any]]:
    """The policies of a run's role, as the stack has them."""
    return cloud.role_policies("StudyRole")


@pytest.fixture(scope="module")
def as_run(cloud: Cloud, policies: list[dict[str, Any]]) -> Iterator[pytest.MonkeyPatch]:
    """Have the variables that a run's task has."""
    _widen_what_moto_cannot_tell_apart(cloud, policies)
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        variables = {
            **cloud.environment("run"),
            **cloud.task_role_credentials("StudyRole"),
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in variables.items():
            environment.setenv(name, value)
        yield environment


def _widen_what_moto_cannot_tell_apart(cloud: Cloud, policies: list[dict[str, Any]]) -> None:
    """Of other services than S3, moto does not know which resource a request is about."""
    statements = [
        {**statement, "Resource": "*"}
        for document in policies
        for statement in document["Statement"]
        if not all(action.startswith("s3:") for action in listed(statement["Action"]))
    ]
    cloud.client("iam").put_role_policy(
        RoleName=cloud.physical("StudyRole"),
        PolicyName="widened",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statements}),
    )


@pytest.fixture(scope="module")
def studied(
    cloud: Cloud,
    as_run: pytest.MonkeyPatch,
    policies: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Studied:
    """A study that was collected and purged, with what its jobs print captured."""
    folder = tmp_path_factory.mktemp("studied")
    study = sandbox_study(
        folder,
        settings=_SETTINGS,
        record_types=["app.bsky.feed.like"],
        time_range=_PERIOD,
        storage={"type": "s3", "path": os.environ["BACKFILL_STORAGE"]},
        metadata_store={
            "type": "dynamodb",
            "table_name": os.environ["BACKFILL_METADATA_TABLE"],
            "region": REGION,
        },
    )
    settings = yaml.safe_load((ROOT / "configs" / "deploy" / "aws" / "dagster.yaml").read_text())
    logs = settings["compute_logs"]
    logs["config"]["local_dir"] = str(folder / "logs")
    (folder / "home").mkdir()
    cloud.requests.clear()
    succeeded = {}
    # The launcher as well, though a run is told nothing of how others are launched: it must not ask.
    overrides = {
        "telemetry": {"enabled": False},
        "compute_logs": logs,
        "run_launcher": settings["run_launcher"],
    }
    with (
        rights_enforced(as_run),
        dg.DagsterInstance.local_temp(str(folder / "home"), overrides=overrides) as instance,
    ):
        succeeded["study"] = execute(folder, "study", instance)
        accounts = StudyStorage(study.location).read("accounts.parquet")
        first, second = accounts.filter(state="complete")["did"][:2]
        succeeded["purge"] = execute(folder, "study_purge", instance, run_config={"dids": [first]})
        # A run that was given a DID is forgotten by the next purge.
        succeeded["second purge"] = execute(folder, "study_purge", instance, run_config={"dids": [second]})
        _put_a_large_object(folder, succeeds=True)
        _put_a_large_object(folder, succeeds=False)
    needs = {need for request in cloud.requests for need in _needs(request)}
    return Studied(study, succeeded, needs, policies)


def _put_a_large_object(folder: Path, *, succeeds: bool) -> None:
    place = S3Folder(*os.environ["BACKFILL_STORAGE"].removeprefix("s3://").split("/")) / uuid.uuid4().hex
    client = s3_client(place)
    file = folder / "large"
    file.write_bytes(os.urandom(_MEGABYTE) * 70)
    if succeeds:
        S3Store(place).put(file, "large")
        S3Store(place).duplicate("large", "copy", folder)
        return

    def break_off(**_: object) -> None:
        raise HTTPClientError(error="the line is down")

    client.meta.events.register("before-send.s3.UploadPart", break_off)
    try:
        with pytest.raises(StorageError):
            S3Store(place).put(file, "large")
    finally:
        client.meta.events.unregister("before-send.s3.UploadPart", break_off)


def _needs(request: Request) -> list[Need]:
    if request.service == "s3":
        return needs_of_s3_request(
            request.method, request.path, request.query, request.body, request.copied_from
        )
    if request.service == "dynamodb":
        told = json.loads(request.body)
        tables = told["RequestItems"] if "RequestItems" in told else [told["TableName"]]
        place = f"arn:aws:dynamodb:{REGION}:123456789012:table"
        return [Need(f"dynamodb:{request.operation}", f"{place}/{table}") for table in tables]
    return [Need(f"{request.service}:{request.operation}", "*")]


def test_a_study_runs_with_the_rights_of_its_role(studied: Studied) -> None:
    assert studied.succeeded == {"study": True, "purge": True, "second purge": True}


def test_every_request_is_allowed_for_what_it_is_about(studied: Studied) -> None:
    assert len(studied.needs) > 50
    refused = [need for need in studied.needs if not allows(studied.policies, need)]
    assert not refused


def test_no_right_is_given_that_is_not_used(studied: Studied, cloud: Cloud) -> None:
    unused = {
        (action, resource)
        for document in studied.policies
        for statement in document["Statement"]
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
        if not any(need.action == action and fnmatchcase(need.resource, resource) for need in studied.needs)
    }
    # What is captured is sent in parts as well, if it is long.
    logs = f"arn:aws:s3:::{cloud.physical('LogBucket')}"
    assert unused <= {("s3:AbortMultipartUpload", f"{logs}/compute_logs/*")}


def test_nothing_beside_the_studies_is_within_reach(
    studied: Studied, cloud: Cloud, as_run: pytest.MonkeyPatch
) -> None:
    bucket = cloud.physical("StudyBucket")
    cloud.client("s3").put_object(Bucket=bucket, Key="other/file", Body=b"")
    cloud.client("s3").create_bucket(Bucket=f"other-{uuid.uuid4().hex}")
    client = boto3.session.Session().client("s3")
    with rights_enforced(as_run):
        client.list_objects_v2(Bucket=bucket)
        for ask in (
            lambda: client.get_object(Bucket=bucket, Key="other/file"),
            lambda: client.put_object(Bucket=bucket, Key="other/file", Body=b""),
            lambda: client.delete_object(Bucket=cloud.physical("LogBucket"), Key="other/file"),
            lambda: client.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
            ),
            lambda: client.delete_bucket(Bucket=bucket),
            client.list_buckets,
        ):
            with pytest.raises(ClientError) as refused:
                ask()
            assert refused.value.response["Error"]["Code"] == "AccessDenied"
