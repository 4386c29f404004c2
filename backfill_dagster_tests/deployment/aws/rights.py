"""What requests to AWS need by way of rights, and whether a policy gives it.

Of S3 every request is looked at as it arrives: boto3, Polars and PyArrow ask it each in its own way. Which right a
request takes is told by AWS's Service Authorization Reference.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote


@dataclass(frozen=True)
class Need:
    """A right to do something to something."""

    action: str
    resource: str


# What is asked of a bucket, by the word in the query that tells it from a listing.
_OF_BUCKETS = {
    "versioning": "s3:GetBucketVersioning",
    "uploads": "s3:ListBucketMultipartUploads",
    "versions": "s3:ListBucketVersions",
}
_OF_LISTINGS = {
    "list-type",
    "prefix",
    "delimiter",
    "max-keys",
    "encoding-type",
    "continuation-token",
    "start-after",
}


def needs_of_s3_request(
    method: str, path: str, query: str, body: bytes = b"", copied_from: str = ""
) -> list[Need]:
    """Return the rights that a path-style request to S3 takes; `copied_from` is the bucket and key of a copy."""
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    asked = set(parse_qs(query, keep_blank_values=True)) - {"x-id"}
    if key:
        return _needs_of_object(method, f"arn:aws:s3:::{bucket}/{key}", asked, copied_from)
    of_bucket = f"arn:aws:s3:::{bucket}"
    if method == "POST" and asked == {"delete"}:
        keys = [part.split("</Key>")[0] for part in body.decode().split("<Key>")[1:]]
        return [Need("s3:DeleteObject", f"{of_bucket}/{name}") for name in keys]
    for word, action in _OF_BUCKETS.items():
        if method == "GET" and word in asked:
            return [Need(action, of_bucket)]
    if method == "HEAD" or (method == "GET" and asked <= _OF_LISTINGS):
        return [Need("s3:ListBucket", of_bucket)]
    return [Need(f"unknown: {method} {sorted(asked)}", of_bucket)]


def _needs_of_object(method: str, of_object: str, asked: set[str], copied_from: str) -> list[Need]:
    if method in ("GET", "HEAD") and asked <= {"partNumber"}:
        return [Need("s3:GetObject", of_object)]
    if method == "PUT" and asked <= {"partNumber", "uploadId"}:
        source = [Need("s3:GetObject", f"arn:aws:s3:::{unquote(copied_from).lstrip('/')}")]
        return [Need("s3:PutObject", of_object), *(source if copied_from else ())]
    if method == "POST" and asked in ({"uploads"}, {"uploadId"}):
        return [Need("s3:PutObject", of_object)]
    if method == "DELETE" and asked <= {"uploadId"}:
        return [Need("s3:AbortMultipartUpload" if asked else "s3:DeleteObject", of_object)]
    return [Need(f"unknown: {method} {sorted(asked)}", of_object)]


def allows(policies: list[dict[str, Any]], need: Need, context: dict[str, str] | None = None) -> bool:
    """Tell whether policies without denials give a right, under conditions that compare texts."""
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatchcase(need.action, action) for action in listed(statement["Action"]))
        and any(fnmatchcase(need.resource, resource) for resource in listed(statement["Resource"]))
        and all(
            (context or {}).get(name) in listed(wanted)
            for compared in statement.get("Condition", {}).values()
            for name, wanted in compared.items()
        )
        for policy in policies
        for statement in policy["Statement"]
    )


def listed(value: Any) -> list[Any]:
    """Return a list of what IAM lets stand as one or several."""
    return value if isinstance(value, list) else [value]


def actions_of(policies: list[dict[str, Any]]) -> set[str]:
    """Return all actions that policies name."""
    return {
        action
        for policy in policies
        for statement in policy["Statement"]
        for action in listed(statement["Action"])
    }


def documents_of_role(iam: Any, role: str) -> list[dict[str, Any]]:
    """Return the policies of a role, attached and its own."""
    documents = []
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=attached["PolicyArn"])["Policy"]["DefaultVersionId"]
        documents.append(
            iam.get_policy_version(PolicyArn=attached["PolicyArn"], VersionId=version)["PolicyVersion"][
                "Document"
            ]
        )
    documents += [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    return [json.loads(document) if isinstance(document, str) else document for document in documents]
