"""How every record ends: kept, filtered or rejected, and why."""

from backfill_dagster.closed_sets import ClosedSet


class Fate(ClosedSet):
    """What became of a record; every record has exactly one."""

    KEPT = "kept", "It is a row of a table."
    FILTERED = "filtered", "It is left out by the study's own choice."
    REJECTED = "rejected", "No row can be made of it."


class FilterReason(ClosedSet):
    """Why the study does not want a record; of those that hold of it the first, in this order.

    The first three are told by its key alone, and the fourth by its CID too, so that nobody asks whether such a record
    could be decoded; the fifth by its date, and the others by what it says.
    """

    PURGED = "purged", "The study has purged it: its bytes are not stored any more."
    UNWANTED_TYPE = (
        "unwanted_type",
        "Its collection is none of `record_types` and `other_record_types`.",
        "If it is wanted, name its collection and run `<name>_rebuild`: its bytes are stored.",
    )
    NOT_IN_URIS = "not_in_uris", "The filter's `uris` do not list it."
    EDITED = (
        "edited",
        "It was shared with another CID: it was changed since.",
        "`source.edited: keep` takes it as it is now.",
    )
    OUT_OF_RANGE = (
        "out_of_range",
        "It was created outside the study period, under `time_range.outside: drop`.",
    )
    NOT_IN_SUBJECTS = "not_in_subjects", "The filter's `subjects` do not list what it is about."
    LANGUAGE = "language", "It has none of the filter's `languages`."
    TEXT = "text", "The filter's `text` does not occur in it."


class RejectReason(ClosedSet):
    """Why no row could be made of a record: it has no usable key, or cannot be decoded.

    Reasons of `repos.outcomes.LeftOut` stand beside these.
    """

    BAD_KEY = "bad_key", "Its collection is no NSID, or its rkey no record key."
    BAD_CID = "bad_cid", "Its CID is not of the one form that repositories use."
    RAW_CODEC = "raw_codec", "It is raw bytes, where a record must be."
    TOO_LARGE = "too_large", "It is larger than records are decoded."
    TOO_DEEP = "too_deep", "It nests deeper than records are decoded."
    UNDECODABLE = "undecodable", "It is no DAG-CBOR."
    NOT_A_MAP = "not_a_map", "It is a value other than a map."
