"""What an attempt to fetch one account's repository can end in: closed sets, each with its meaning."""

from enum import StrEnum

from backfill_dagster.repos.faults import RepoFault


class Outcome(StrEnum):
    """How one attempt ended. All but `failed` are settled: a retry in the same run would change nothing."""

    COMPLETE = "complete"  # the whole repository arrived and was proven
    UNCHANGED = "unchanged"  # the repository is at the revision that is stored; the account is complete
    DEACTIVATED = "deactivated"  # by its owner, for a time
    TAKENDOWN = "takendown"  # by the operator of its PDS
    SUSPENDED = "suspended"  # by the operator of its PDS, for a time
    DESYNCHRONIZED = "desynchronized"  # the server has lost track of the repository
    THROTTLED = "throttled"  # the server serves it only at times
    INACTIVE = "inactive"  # not active, and the server does not say why
    NOT_FOUND = "not_found"  # the host that the DID document names does not know the account
    DELETED = "deleted"  # the server says that it is deleted
    FAILED = "failed"  # nothing can be said about the account; `FailureReason` says why


class FailureReason(StrEnum):
    """Why an attempt failed. The first group blames the way, the second what arrived."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REFUSED_ADDRESS = "refused_address"
    BAD_REDIRECT = "bad_redirect"
    UNEXPECTED_ANSWER = "unexpected_answer"
    DIRECTORY_FAILED = (
        "directory_failed"  # so that the account may live elsewhere than the host that was asked
    )

    TRUNCATED = "truncated"
    BAD_ENCODING = "bad_encoding"
    EMPTY_BODY = "empty_body"
    NOT_A_CAR = "not_a_car"
    UNSUPPORTED_CAR = "unsupported_car"
    TOO_LARGE = "too_large"
    CORRUPT_BLOCK = "corrupt_block"
    CHANGED_DURING_EXPORT = "changed_during_export"
    BAD_TREE = "bad_tree"
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    BAD_SIGNATURE = "bad_signature"
    NO_SIGNING_KEY = "no_signing_key"


# Failures of the way to a host rather than of one account: they make the host's partition fail.
HOST_FAILURES = frozenset(
    {
        FailureReason.UNREACHABLE,
        FailureReason.TIMED_OUT,
        FailureReason.RATE_LIMITED,
        FailureReason.SERVER_ERROR,
        FailureReason.REFUSED_ADDRESS,
    }
)


def failure_of(fault: RepoFault) -> FailureReason:
    """Name the failure that a fault of the file means for the attempt.

    A block that is missing from an otherwise sound file is what an export shows that ran beside a write: the
    reference server reads the root first and the blocks page by page after it.
    """
    if fault is RepoFault.MISSING_BLOCK:
        return FailureReason.CHANGED_DURING_EXPORT
    return FailureReason(fault.value)
