"""What S3 and its client say when something does not work, and what to do about it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A HEAD is answered by a number alone.
NOT_THERE = frozenset({"NoSuchKey", "404", "NotFound"})
_NO_RIGHT = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "UnauthorizedAccess"})
_REFUSED = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "TokenRefreshRequired",
        "UnauthorizedSSOTokenError",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
    }
)
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
_RIGHTS = (
    "give those whose credentials these are s3:ListBucket on the bucket, without which what is not there looks as if "
    "it were refused, and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload below the path"
)
_ADVICE = {
    "NoSuchBucket": "make the bucket, or name another by storage.path",
    "RequestTimeTooSkewed": "set this machine's clock",
    "PermanentRedirect": "set storage.region to the bucket's",
    "AuthorizationHeaderMalformed": "set storage.region to the bucket's",
    "PreconditionFailed": "another process has written it meanwhile",
    "EndpointConnectionError": "look whether the network and storage.endpoint_url are right",
    "ConnectTimeoutError": "look whether the network and storage.endpoint_url are right",
    "SSLError": "look whether storage.endpoint_url is right, and the certificate that it shows",
}


def error_code(error: BaseException) -> str:
    """Return what S3 calls an error, or else what its client does; also of one that another wraps."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ClientError):
            return str(inner.response.get("Error", {}).get("Code", ""))
        if isinstance(inner, BotoCoreError):
            return type(inner).__name__
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__


def is_no_right(error: BaseException) -> bool:
    """Tell whether the credentials are known and do not allow what was asked for."""
    return error_code(error) in _NO_RIGHT


def s3_error(what: str, error: Exception) -> StorageError:
    """Return the error for what was tried (`<address> cannot be <done>`), with what to do next."""
    code, told = error_code(error), " ".join(str(error).split())
    if code in _NO_RIGHT:
        advice = _RIGHTS
    elif code in _REFUSED:
        advice = _CREDENTIALS
    else:
        advice = _ADVICE.get(code, "mend that")
    return StorageError(f"{what}: {told}; {advice}, then run the same again: what is stored is whole")


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Raise StorageError for what the client of S3 raises."""
    from boto3.exceptions import Boto3Error

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, ValueError) as error:
        raise s3_error(what, error) from error
