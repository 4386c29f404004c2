"""The stack of `configs/deploy/aws`, made in an AWS on loopback (moto), which runs no containers."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from warnings import catch_warnings, simplefilter

import boto3

from backfill_dagster_tests.deployment.aws.rights import documents_of_role
from backfill_dagster_tests.deployment.aws.template import template

STACK = "backfill"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/backfill:0.1.0"
REGION = "us-east-1"
# What moto cannot make of a template, and what stands for it where others refer to it.
_STAND_INS = {
    "DatabaseSecret": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:database-AbCdEf",
    "Namespace": "ns-0123456789abcdef",
    "CodeName": f"arn:aws:servicediscovery:{REGION}:123456789012:service/srv-0123456789abcdef",
}
_LEFT_OUT = {"AWS::S3::BucketPolicy"}


class Request(NamedTuple):
    """A request that arrived. Which operation it asks for, only S3 tells by method, path and query alone."""

    service: str
    method: str
    path: str
    query: str
    body: bytes
    operation: str
    copied_from: str


@dataclass
class Cloud:
    """An AWS with the stack in it."""

    url: str
    template: dict[str, Any]
    requests: list[Request] = field(default_factory=list)
    _made: dict[str, str] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        """Return a client of the one who owns it all."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def physical(self, name: str) -> str:
        """Return what a resource of the template is called in the cloud."""
        if name not in self._made:
            told = self.client("cloudformation").describe_stack_resources(StackName=STACK)
            self._made.update(
                {
                    made["LogicalResourceId"]: made.get("PhysicalResourceId", "")
                    for made in told["StackResources"]
                    if "LogicalResourceId" in made  # one that a condition leaves out has none
                }
            )
        return self._made[name]

    def role_policies(self, name: str) -> list[dict[str, Any]]:
        """Return the policies of a role of the template."""
        return documents_of_role(self.client("iam"), self.physical(name))

    def environment(self, family: str) -> dict[str, str]:
        """Return the variables of the container of a task definition."""
        told = self.client("ecs").describe_task_definition(taskDefinition=f"{STACK}-{family}")
        [container] = told["taskDefinition"]["containerDefinitions"]
        return {item["name"]: item["value"] for item in container["environment"]}

    def task_role_credentials(self, name: str) -> dict[str, str]:
        """Return credentials as a task with a role has them, as variables."""
        found = self.client("sts").assume_role(
            RoleArn=f"arn:aws:iam::123456789012:role/{self.physical(name)}", RoleSessionName="task"
        )["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
            "AWS_SESSION_TOKEN": found["SessionToken"],
        }


@contextmanager
def deployed_stack() -> Iterator[Cloud]:
    """Serve an AWS with the stack in it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    cloud = Cloud(f"http://{host}:{port}", template())
    assert server._server is not None
    server._server.app = _noting(server._server.app, cloud.requests)
    try:
        _deploy(cloud)
        cloud.requests.clear()
        yield cloud
    finally:
        server.stop()


def _deploy(cloud: Cloud) -> None:
    resources = {
        name: _filled_in(resource)
        for name, resource in cloud.template["Resources"].items()
        if name not in _STAND_INS and resource["Type"] not in _LEFT_OUT
    }
    with catch_warnings():
        simplefilter("ignore")
        cloud.client("cloudformation").create_stack(
            StackName=STACK,
            TemplateBody=json.dumps({**cloud.template, "Resources": resources}),
            Parameters=[{"ParameterKey": "Image", "ParameterValue": IMAGE}],
            Capabilities=["CAPABILITY_IAM"],
        )
    iam, ecs = cloud.client("iam"), cloud.client("ecs")
    revisions: dict[str, str] = {}
    for name, resource in resources.items():
        # Moto leaves these out.
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::EC2::VPC":
            told = {"Value": properties["EnableDnsHostnames"]}
            cloud.client("ec2").modify_vpc_attribute(VpcId=cloud.physical(name), EnableDnsHostnames=told)
        if resource["Type"] == "AWS::IAM::Role":
            for policy in properties.get("ManagedPolicyArns", []):
                iam.attach_role_policy(RoleName=cloud.physical(name), PolicyArn=cloud.physical(policy["Ref"]))
        if resource["Type"] == "AWS::ECS::TaskDefinition":
            made = ecs.describe_task_definition(taskDefinition=cloud.physical(name))["taskDefinition"]
            memory = _value(cloud, properties["Memory"])
            [container] = made["containerDefinitions"]
            for variable in container["environment"]:
                variable["value"] = revisions.get(variable["value"], variable["value"])
            registered = ecs.register_task_definition(
                family=made["family"],
                # On Fargate a container may leave its memory to the task; moto wants a number.
                containerDefinitions=[{**container, "memory": int(memory)}],
                networkMode=properties["NetworkMode"],
                requiresCompatibilities=properties["RequiresCompatibilities"],
                cpu=_value(cloud, properties["Cpu"]),
                memory=memory,
            )
            revisions[made["taskDefinitionArn"]] = registered["taskDefinition"]["taskDefinitionArn"]


def _value(cloud: Cloud, told: Any) -> str:
    return str(cloud.template["Parameters"][told["Ref"]]["Default"] if isinstance(told, dict) else told)


def _filled_in(value: Any) -> Any:
    """Put the stand-ins where a template refers to what moto cannot make."""
    if isinstance(value, list):
        return [_filled_in(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(function, told)] = value.items()
        name = told[0] if function == "Fn::GetAtt" else told
        if function in ("Ref", "Fn::GetAtt") and name in _STAND_INS:
            return _STAND_INS[name]
        if function == "Fn::Sub":
            for stood_for, text in _STAND_INS.items():
                told = told.replace(f"${{{stood_for}}}", text)
            # A reference to a secret, which it does not have.
            return {function: told.replace("{{resolve:", "{{")}
    return {key: _filled_in(item) for key, item in value.items()}


def _noting(app: Any, requests: list[Request]) -> Any:
    """Note each request that arrives before it is answered."""

    def noted(environ: dict[str, Any], start_response: Any) -> Any:
        service, query = _service(environ), environ.get("QUERY_STRING", "")
        body = b""
        if service != "s3" or "delete" in query:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = BytesIO(body)
        target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        operation = target or parse_qs(body.decode("latin-1")).get("Action", [""])[0]
        requests.append(
            Request(
                service,
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                query,
                body,
                operation,
                environ.get("HTTP_X_AMZ_COPY_SOURCE", ""),
            )
        )
        return app(environ, start_response)

    return noted


def _service(environ: dict[str, Any]) -> str:
    """Return the service that a request was signed for."""
    parts = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
    return parts[3] if len(parts) > 3 else ""
