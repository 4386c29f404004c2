"""How every record ends: kept, filtered or rejected, and why."""

from enum import StrEnum


class Fate(StrEnum):
    """What became of a record; every record has exactly one."""

    KEPT = "kept"
    FILTERED = "filtered"
    REJECTED = "rejected"


class FilterReason(StrEnum):
    """Why the study does not want a record; of those that hold of it the first, in this order.

    The first three are told by its key alone, so that nobody asks whether such a record could be decoded; the fourth
    by its date, and the others by what it says.
    """

    PURGED = "purged"  # its bytes are not stored any more
    UNWANTED_TYPE = "unwanted_type"
    NOT_IN_URIS = "not_in_uris"
    OUT_OF_RANGE = "out_of_range"
    NOT_IN_SUBJECTS = "not_in_subjects"
    LANGUAGE = "language"
    TEXT = "text"


class RejectReason(StrEnum):
    """Why no row could be made of a record: it has no usable key, or cannot be decoded.

    Reasons of `repos.outcomes.LeftOut` stand beside these.
    """

    BAD_KEY = "bad_key"  # the collection is no NSID, or the rkey no record key
    BAD_CID = "bad_cid"  # not of the one form that repositories use
    RAW_CODEC = "raw_codec"  # raw bytes, where a record must be
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    UNDECODABLE = "undecodable"  # not DAG-CBOR
    NOT_A_MAP = "not_a_map"
