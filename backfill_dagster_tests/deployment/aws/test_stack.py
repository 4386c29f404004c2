"""What `configs/deploy/aws` says, held against what AWS and Dagster accept."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config
from dagster._core.instance.ref import InstanceRef
from dagster._core.workspace.config_schema import process_workspace_config

from backfill_dagster_tests.deployment.aws.rights import listed
from backfill_dagster_tests.deployment.aws.template import FOLDER, TEMPLATE, of_type, properties, template
from backfill_dagster_tests.deployment.commands import parse_command

_FAMILIES = ("RunTask", "CodeTask", "DaemonTask", "WebserverTask")
# Rights that AWS gives for all resources or for none.
_FOR_ALL = {
    "ecr:GetAuthorizationToken",
    "ecs:DescribeTaskDefinition",
    "ec2:DescribeNetworkInterfaces",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}


def container(family: str) -> dict[str, Any]:
    """Return the container of a task definition."""
    [container] = properties(family)["ContainerDefinitions"]
    return dict(container)


def statements() -> list[dict[str, Any]]:
    """Return what all policies of roles allow."""
    documents = [
        policy["PolicyDocument"]
        for role in of_type("AWS::IAM::Role").values()
        for policy in role["Properties"].get("Policies", [])
    ]
    for kind in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"):
        documents += [policy["Properties"]["PolicyDocument"] for policy in of_type(kind).values()]
    return [statement for document in documents for statement in document["Statement"]]


@pytest.mark.aws
def test_the_template_is_one_that_cloudformation_takes() -> None:
    # It takes seconds, and so does what it looks up.
    from cfnlint.api import lint_file

    assert not [str(match) for match in lint_file(TEMPLATE)]
    # Of which CloudFormation's documentation says that it does not take them, though YAML has them.
    assert not re.search(r"(?m)^[^#]*: [&*]\w+", TEMPLATE.read_text())


def test_what_is_purged_is_gone_from_the_bucket_and_the_table() -> None:
    bucket = properties("StudyBucket")
    for keeps in ("VersioningConfiguration", "ReplicationConfiguration", "ObjectLockEnabled"):
        assert keeps not in bucket
    assert "PointInTimeRecoverySpecification" not in properties("MetadataTable")
    assert "StreamSpecification" not in properties("MetadataTable")


def test_what_was_collected_outlives_the_stack_and_never_expires() -> None:
    for name in ("StudyBucket", "MetadataTable"):
        resource = template()["Resources"][name]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain")
    [rule] = properties("StudyBucket")["LifecycleConfiguration"]["Rules"]
    assert not [name for name in rule if "Expiration" in name or "Transition" in name]
    assert rule["AbortIncompleteMultipartUpload"]


@pytest.mark.parametrize("name", ["StudyBucket", "LogBucket"])
def test_nobody_outside_reads_a_bucket(name: str) -> None:
    bucket = properties(name)
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["BucketEncryption"]
    [statement] = properties(f"{name}Policy")["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_nobody_outside_can_connect() -> None:
    ingress = [
        rule
        for group in of_type("AWS::EC2::SecurityGroup").values()
        for rule in group["Properties"].get("SecurityGroupIngress", [])
    ]
    ingress += [rule["Properties"] for rule in of_type("AWS::EC2::SecurityGroupIngress").values()]
    assert ingress
    assert not [rule for rule in ingress if "SourceSecurityGroupId" not in rule]
    database = properties("Database")
    assert (database["PubliclyAccessible"], database["StorageEncrypted"]) == (False, True)
    assert "127.0.0.1" in container("WebserverTask")["Command"]


def test_there_is_no_gateway_that_is_paid_for_by_the_byte() -> None:
    assert not of_type("AWS::EC2::NatGateway")
    endpoints = of_type("AWS::EC2::VPCEndpoint").values()
    assert {endpoint["Properties"]["VpcEndpointType"] for endpoint in endpoints} == {"Gateway"}


def test_no_right_is_given_for_more_than_it_takes() -> None:
    for statement in statements():
        for action in listed(statement["Action"]):
            assert "*" not in action
            if listed(statement["Resource"]) == ["*"]:
                assert action in _FOR_ALL
            else:
                assert action not in _FOR_ALL


def test_the_roles_of_the_ui_and_of_the_daemon_do_not_read_studies() -> None:
    for role in ("WebserverRole", "DaemonRole"):
        assert {"Ref": "StudyPolicy"} not in properties(role)["ManagedPolicyArns"]
    assert properties("RunTask")["TaskRoleArn"] == properties("CodeTask")["TaskRoleArn"]


@pytest.mark.parametrize("family", _FAMILIES)
def test_what_a_task_executes_is_there(family: str) -> None:
    told = container(family)
    if family != "RunTask":  # which the launcher tells what to execute
        parse_command(told["Command"])
        kind, *words = told["HealthCheck"]["Command"]
        assert kind == "CMD"
        parse_command(words)


@pytest.mark.parametrize("family", _FAMILIES)
def test_every_variable_that_the_instance_names_is_set(family: str) -> None:
    told = container(family)
    given = {variable["Name"] for variable in [*told["Environment"], *told["Secrets"]]}
    settings = yaml.safe_load((FOLDER / "dagster.yaml").read_text())
    if family in ("RunTask", "CodeTask"):
        # Nothing is launched from there.
        del settings["run_launcher"]
    else:
        settings["workspace"] = yaml.safe_load((FOLDER / "workspace.yaml").read_text())
    named = set(re.findall(r"\{'env': '(\w+)'\}", str(settings)))
    assert named
    assert named <= given
    assert not [variable for variable in told["Environment"] if "PASSWORD" in variable["Name"]]


def test_the_instance_is_one_that_dagster_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = dagster_instance_config(str(FOLDER))
    for name in set(re.findall(r"\{'env': '(\w+)'\}", str(settings))):
        monkeypatch.setenv(name, "told")
    ref = InstanceRef.from_dir(str(tmp_path), config_dir=str(FOLDER))
    parts = {
        "EcsRunLauncher": ref.run_launcher_data,
        "S3ComputeLogManager": ref.compute_logs_data,
        "QueuedRunCoordinator": ref.run_coordinator_data,
        "DagsterPostgresStorage": ref.storage_data,
    }
    for name, part in parts.items():
        assert part is not None
        assert part.class_name == name
        accepted = getattr(import_module(part.module_name), name).config_type()
        checked = process_config(resolve_to_config_type(accepted), part.config_dict)
        assert checked.success, checked.errors
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False
    assert settings["run_monitoring"]["enabled"] is True


def test_the_workspace_is_the_code_location_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_CODE_HOST", "code.internal")
    workspace = yaml.safe_load((FOLDER / "workspace.yaml").read_text())
    checked = process_workspace_config(workspace)
    assert checked.success, checked.errors
    [origin] = workspace["load_from"]
    assert str(origin["grpc_server"]["port"]) in container("CodeTask")["Command"]
    assert properties("CodeIngress")["FromPort"] == origin["grpc_server"]["port"]
    told = {variable["Name"]: variable["Value"] for variable in container("DaemonTask")["Environment"]}
    name = properties("CodeName")["Name"]
    assert told["BACKFILL_CODE_HOST"] == {"Fn::Sub": f"{name}.${{AWS::StackName}}.internal"}


@pytest.mark.parametrize("family", ["DaemonTask", "WebserverTask"])
def test_who_launches_and_stops_runs_is_started_anew_with_their_task(family: str) -> None:
    told = {variable["Name"]: variable["Value"] for variable in container(family)["Environment"]}
    assert told["BACKFILL_RUN_TASK"] == {"Ref": "RunTask"}


def test_the_readme_says_what_the_template_costs() -> None:
    """By the hours of a month and what AWS asks for a core, a gigabyte and an address in us-east-1."""
    hours, core, gigabyte, address = 730, 0.04048, 0.004445, 0.005
    services = [properties(family) for family in ("CodeTask", "DaemonTask", "WebserverTask")]
    cores = sum(int(told["Cpu"]) for told in services) / 1024
    memory = sum(int(told["Memory"]) for told in services) / 1024
    parameters = template()["Parameters"]
    run_cores, run_memory = (int(parameters[name]["Default"]) / 1024 for name in ("RunCpu", "RunMemory"))
    disk = (parameters["RunStorage"]["Default"] - 20) * 0.000111
    database = hours * 0.016 + int(properties("Database")["AllocatedStorage"]) * 0.115
    assert parameters["DatabaseClass"]["Default"] == "db.t4g.micro"
    readme = (FOLDER / "README.md").read_text()
    for told in (
        f"{cores:.0f} core and {memory:.0f} GB in all | ${hours * (cores * core + memory * gigabyte):.2f}",
        f"addresses | ${hours * len(services) * address:.2f}",
        f"20 GB | ${database:.2f}",
        f"is ${run_cores * core + run_memory * gigabyte + disk + address:.3f} an hour",
    ):
        assert told in readme, told


def test_daemons_take_turns() -> None:
    told = properties("DaemonService")
    assert told["DesiredCount"] == 1
    assert told["DeploymentConfiguration"]["MaximumPercent"] == 100
