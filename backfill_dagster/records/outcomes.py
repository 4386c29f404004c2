"""How every record ends: kept, filtered or rejected, and why."""

from enum import StrEnum


class Fate(StrEnum):
    """What became of a record; every record has exactly one."""

    KEPT = "kept"
    FILTERED = "filtered"
    REJECTED = "rejected"


class FilterReason(StrEnum):
    """Why the study does not want a record."""

    UNWANTED_TYPE = "unwanted_type"
    OUT_OF_RANGE = "out_of_range"
    PURGED = "purged"  # its bytes are not stored any more


class RejectReason(StrEnum):
    """Why no row could be made of a record: it has no usable key, or cannot be decoded."""

    BAD_KEY = "bad_key"  # the collection is no NSID, or the rkey no record key
    BAD_CID = "bad_cid"  # not of the one form that repositories use
    RAW_CODEC = "raw_codec"  # raw bytes, where a record must be
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    UNDECODABLE = "undecodable"  # not DAG-CBOR
    NOT_A_MAP = "not_a_map"
