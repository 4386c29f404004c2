"""What an attempt to fetch one account's repository can end in: closed sets, each with its meaning."""

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.repos.faults import RepoFault


class Obtained(ClosedSet):
    """How an account's records were obtained."""

    REPO = "repo", "With the whole repository, which proves them all, and that there are no others."
    RECORD_PROOF = "record_proof", "Some of them, each with its own proof."
    LIST_RECORDS = "list_records", "From a listing, which proves nothing."


class LeftOut(ClosedSet):
    """Why something that was asked for, or that a host listed, is not among an account's records."""

    ABSENT = "absent", "The account's tree proves that it has no such record."
    NOT_FOUND = "not_found", "The host says that there is no such record, and proves nothing."
    CID_MISMATCH = "cid_mismatch", "What was listed does not have the CID that it was listed with."
    OTHER_URI = "other_uri", "What was listed is another account's or another collection's."
    REPEATED = "repeated", "The same URI was listed before, with another CID."
    MALFORMED = "malformed", "What was listed has no URI, CID and value, or a value that is no DAG-CBOR."


# Of these the host has told that there is no record; of the others, that there is one.
NOT_THERE = frozenset({LeftOut.ABSENT, LeftOut.NOT_FOUND})


_LOOKED_AT_AGAIN = "Nothing: `<name>_refresh` asks again."


class Outcome(ClosedSet):
    """How one attempt ended. All but `failed` are settled: a retry in the same run would change nothing."""

    COMPLETE = "complete", "All that was asked for arrived; and was proven, unless it was a listing."
    UNCHANGED = "unchanged", "The repository is at the revision that is stored: the account is complete."
    DEACTIVATED = "deactivated", "Its owner has deactivated the account, for a time.", _LOOKED_AT_AGAIN
    TAKENDOWN = "takendown", "The operator of its PDS has taken the account down.", _LOOKED_AT_AGAIN
    SUSPENDED = "suspended", "The operator of its PDS has suspended it, for a time.", _LOOKED_AT_AGAIN
    DESYNCHRONIZED = "desynchronized", "The server has lost track of the repository.", _LOOKED_AT_AGAIN
    THROTTLED = "throttled", "The server serves the repository only at times.", _LOOKED_AT_AGAIN
    INACTIVE = "inactive", "The account is not active, and the server does not say why.", _LOOKED_AT_AGAIN
    NOT_FOUND = (
        "not_found",
        "The host that the DID document names does not know the account.",
        _LOOKED_AT_AGAIN,
    )
    DELETED = "deleted", "The server calls the account deleted, or its DID was tombstoned by then."
    FAILED = (
        "failed",
        "Nothing can be said about the account; `reason` says why.",
        "Run `<name>` or `<name>_retry_failed` again.",
    )


_OF_THE_SERVER = "Try again later; if it stays so, tell the server's operator."


class FailureReason(ClosedSet):
    """Why an attempt failed. The first group blames the way, the second what arrived."""

    UNREACHABLE = (
        "unreachable",
        "The host's name is unknown, its connection is refused, or its TLS is broken.",
        "Try again later.",
    )
    TIMED_OUT = (
        "timed_out",
        "The answer did not begin, fell silent, came too slowly, or took too long.",
        "Try again later; `network.read_timeout_seconds`, `network.min_bytes_per_second` and "
        "`network.repo_timeout_seconds` say what is too long.",
    )
    RATE_LIMITED = (
        "rate_limited",
        "The host has asked for nothing but pauses for `network.max_park_minutes`.",
        "Try again later, with a lower `processing.requests_per_second`.",
    )
    SERVER_ERROR = "server_error", "The server answered with a status from 500 on.", _OF_THE_SERVER
    REFUSED_ADDRESS = (
        "refused_address",
        "The host, or one that it redirects to, is in a private, loopback, link-local or metadata address range.",
        "Leave it; of a network of your own, set `network.allow_private_addresses`.",
    )
    BAD_REDIRECT = (
        "bad_redirect",
        "There were too many redirects, one to no address or from https to http, or to a host that another run asks.",
        _OF_THE_SERVER,
    )
    UNEXPECTED_ANSWER = (
        "unexpected_answer",
        "The answer is none that the method has: an error of another name, a page of a listing that is none.",
        "See `detail` and `http_status`.",
    )
    DIRECTORY_FAILED = (
        "directory_failed",
        "The server calls the account inactive or unknown, but it may have moved: its DID could not be resolved "
        "afresh.",
        "Try again later.",
    )

    TRUNCATED = "truncated", "The answer, or the file, ended before its end.", "Try again later."
    BAD_ENCODING = (
        "bad_encoding",
        "The body is compressed in a way that was not asked for and cannot be read.",
        _OF_THE_SERVER,
    )
    EMPTY_BODY = "empty_body", "The file has no byte at all.", _OF_THE_SERVER
    NOT_A_CAR = (
        "not_a_car",
        "The file does not begin with a CAR header: an error page, another format.",
        _OF_THE_SERVER,
    )
    UNSUPPORTED_CAR = (
        "unsupported_car",
        "The file is a CARv2, or has not exactly one root that can be a commit.",
        _OF_THE_SERVER,
    )
    TOO_LARGE = (
        "too_large",
        "The body is larger than `network.max_repo_megabytes`, or the repository larger, in some dimension, than "
        "the limits of `repos/limits.py` allow.",
        "If `detail` names the body, raise `network.max_repo_megabytes`.",
    )
    CORRUPT_BLOCK = (
        "corrupt_block",
        "A block has no CID, or its bytes do not have the hash that its CID names.",
        _OF_THE_SERVER,
    )
    CHANGED_DURING_EXPORT = (
        "changed_during_export",
        "The commit or the tree leads to a block that is not in the file, as when a repository changes while it is "
        "exported, or a file is cut at a block's end.",
        "Try again when the account is quiet.",
    )
    BAD_TREE = (
        "bad_tree",
        "The tree breaks a rule of its format: keys out of order, in a wrong layer, too long.",
        _OF_THE_SERVER,
    )
    BAD_COMMIT = (
        "bad_commit",
        "The root block is no commit of a known version in canonical encoding.",
        _OF_THE_SERVER,
    )
    WRONG_DID = "wrong_did", "The commit is another account's.", _OF_THE_SERVER
    BAD_SIGNATURE = (
        "bad_signature",
        "None of the account's keys, present or earlier, made the commit's signature.",
        "Try again later; what stays so is not the account's, and no study should have it.",
    )
    NO_SIGNING_KEY = (
        "no_signing_key",
        "The DID document names no signing key, so that nothing can be proven.",
        "`processing.verify: structure` takes such accounts, unproven.",
    )


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
