"""Why a downloaded file was not accepted as an account's repository."""

from enum import StrEnum

from backfill_dagster.errors import BackfillError


class RepoFault(StrEnum):
    """What was wrong with the file: a closed set, the same for every server."""

    EMPTY_BODY = "empty_body"  # no byte at all
    NOT_A_CAR = "not_a_car"  # it does not begin with a CAR header: an error page, another format
    UNSUPPORTED_CAR = "unsupported_car"  # CARv2, or not exactly one root that can be a commit
    TRUNCATED = "truncated"  # it ends inside the header or inside a block's frame
    CORRUPT_BLOCK = "corrupt_block"  # a frame without a CID, or a block that is not what its CID says
    MISSING_BLOCK = "missing_block"  # the commit or the tree leads to a block that is not in the file
    BAD_TREE = "bad_tree"  # the tree breaks a rule of its format
    BAD_COMMIT = "bad_commit"  # the root block is no commit of a known version in canonical encoding
    WRONG_DID = "wrong_did"  # the commit is another account's
    BAD_SIGNATURE = "bad_signature"  # none of the account's keys made the commit's signature
    TOO_LARGE = "too_large"  # larger, in some dimension, than the limits allow


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
