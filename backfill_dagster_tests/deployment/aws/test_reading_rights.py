"""How the tests of rights read requests and policies: each by what AWS's documentation says of it."""

import pytest

from backfill_dagster_tests.deployment.aws.rights import Need, allows, needs_of_s3_request

_BUCKET = "arn:aws:s3:::studies"


@pytest.mark.parametrize(
    ("method", "path", "query", "action"),
    [
        ("GET", "/studies", "list-type=2&prefix=panel%2F", "s3:ListBucket"),
        ("GET", "/studies", "uploads&prefix=panel", "s3:ListBucketMultipartUploads"),
        ("GET", "/studies", "versioning", "s3:GetBucketVersioning"),
        ("GET", "/studies", "versions&prefix=panel", "s3:ListBucketVersions"),
        ("HEAD", "/studies/a%20b", "", "s3:GetObject"),
        ("GET", "/studies/a%20b", "x-id=GetObject", "s3:GetObject"),
        ("PUT", "/studies/a%20b", "", "s3:PutObject"),
        ("PUT", "/studies/a%20b", "partNumber=1&uploadId=x", "s3:PutObject"),
        ("POST", "/studies/a%20b", "uploads", "s3:PutObject"),
        ("POST", "/studies/a%20b", "uploadId=x", "s3:PutObject"),
        ("DELETE", "/studies/a%20b", "", "s3:DeleteObject"),
        ("DELETE", "/studies/a%20b", "uploadId=x", "s3:AbortMultipartUpload"),
    ],
)
def test_a_request_takes_one_right(method: str, path: str, query: str, action: str) -> None:
    resource = f"{_BUCKET}/a b" if "a%20b" in path else _BUCKET
    assert needs_of_s3_request(method, path, query) == [Need(action, resource)]


def test_a_copy_takes_the_right_to_read_as_well() -> None:
    needs = needs_of_s3_request("PUT", "/studies/new", "", copied_from="/studies/a%20b")
    assert needs == [Need("s3:PutObject", f"{_BUCKET}/new"), Need("s3:GetObject", f"{_BUCKET}/a b")]


def test_deleting_many_takes_the_right_for_each() -> None:
    body = b"<Delete><Object><Key>a</Key></Object><Object><Key>b</Key></Object></Delete>"
    needs = needs_of_s3_request("POST", "/studies", "delete", body)
    assert needs == [Need("s3:DeleteObject", f"{_BUCKET}/a"), Need("s3:DeleteObject", f"{_BUCKET}/b")]


def test_what_is_not_known_is_allowed_by_no_policy() -> None:
    everything = {"Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]}
    for method, path, query in (("GET", "/studies/a", "acl"), ("PUT", "/studies", "policy")):
        [need] = needs_of_s3_request(method, path, query)
        assert not allows([everything], need)


def test_a_policy_allows_what_it_names_where_it_names_it() -> None:
    policy = {
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["ecs:RunTask"],
                "Resource": "arn:task/run:*",
                "Condition": {"ArnEquals": {"ecs:cluster": "arn:cluster"}},
            }
        ]
    }
    here = {"ecs:cluster": "arn:cluster"}
    assert allows([policy], Need("ecs:RunTask", "arn:task/run:3"), here)
    assert not allows([policy], Need("ecs:RunTask", "arn:task/other:3"), here)
    assert not allows([policy], Need("ecs:StopTask", "arn:task/run:3"), here)
    assert not allows([policy], Need("ecs:RunTask", "arn:task/run:3"), {"ecs:cluster": "arn:other"})
    assert not allows([policy], Need("ecs:RunTask", "arn:task/run:3"))
