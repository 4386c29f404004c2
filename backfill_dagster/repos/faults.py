"""Why a downloaded file was not accepted as an account's repository."""

from enum import StrEnum

from backfill_dagster.errors import BackfillError


class RepoFault(StrEnum):
    """What was wrong with the file, the same for every server: a `FailureReason`, which says what it means.

    But a missing block is one only if it stays so.
    """

    EMPTY_BODY = "empty_body"
    NOT_A_CAR = "not_a_car"
    UNSUPPORTED_CAR = "unsupported_car"
    TRUNCATED = "truncated"
    CORRUPT_BLOCK = "corrupt_block"
    MISSING_BLOCK = "missing_block"  # the commit or the tree leads to a block that is not in the file
    BAD_TREE = "bad_tree"
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    BAD_SIGNATURE = "bad_signature"
    TOO_LARGE = "too_large"


_MAX_DETAIL = 300


class RepoRejectedError(BackfillError):
    """A repository that was not accepted; it costs this account's attempt and nothing else.

    `detail` is for people and may quote the server's data, shortened.
    """

    def __init__(self, fault: RepoFault, detail: str) -> None:
        self.fault = fault
        self.detail = detail[:_MAX_DETAIL]
        # Both go to `args`, so that the error survives the way back from a worker process.
        super().__init__(self.fault, self.detail)

    def __str__(self) -> str:
        return f"{self.fault}: {self.detail}"
