"""What an attempt to fetch one account's repository can end in: closed sets, each with its meaning."""

from enum import StrEnum

from backfill_dagster.repos.faults import RepoFault


class Obtained(StrEnum):
    """How an account's records were obtained."""

    REPO = "repo"  # with the whole repository, which proves them all, and that there are no others
    RECORD_PROOF = "record_proof"  # some of them, each with its own proof
    LIST_RECORDS = "list_records"  # from a listing, which proves nothing


class LeftOut(StrEnum):
    """Why something that was asked for, or that a host listed, is not among an account's records."""

    ABSENT = "absent"  # the account's tree proves that it has no such record
    NOT_FOUND = "not_found"  # the host says so, and proves nothing
    CID_MISMATCH = "cid_mismatch"  # what was listed does not have the CID that it was listed with
    OTHER_URI = "other_uri"  # what was listed is another account's or another collection's
    REPEATED = "repeated"  # the same URI was listed before, with another CID
    MALFORMED = "malformed"  # what was listed has no URI, CID and value, or a value that is no DAG-CBOR


# Of these the host has told that there is no record; of the others, that there is one.
NOT_THERE = frozenset({LeftOut.ABSENT, LeftOut.NOT_FOUND})


class Outcome(StrEnum):
    """How one attempt ended. All but `failed` are settled: a retry in the same run would change nothing."""

    COMPLETE = "complete"  # all that was asked for arrived; and was proven, unless it was a listing
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
