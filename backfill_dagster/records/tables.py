"""The record tables: which there are, which collection feeds them, and every column's type and meaning.

The one description of the columns: schemas, documentation and the column schemas shown in Dagster follow it.
"""

from dataclasses import dataclass

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.records.date_quality import DateQuality
from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.outcomes import Fate, FilterReason, RejectReason
from backfill_dagster.repos.outcomes import LeftOut, Obtained

# Raised whenever a column is added, removed or changes its type or meaning.
SCHEMA_VERSION = 2

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
PROFILE = "app.bsky.actor.profile"

# The table of whatever other collections a study asks for.
OTHER_RECORDS = "other_records"

TEXT = pl.String()
TEXTS = pl.List(pl.String())
INSTANT = pl.Datetime("us", "UTC")


@dataclass(frozen=True, slots=True)
class Table:
    """One record table, fed by one collection; its rows' `record_type` is the table's name in the singular.

    But `other_records` has no collection of its own: it takes those that a study names as its other types. A table that
    is `on_request` is none that studies have unless they name its type.
    """

    name: str
    record_type: str
    collection: str | None
    description: str
    columns: tuple[Column, ...]
    on_request: bool = False

    @property
    def schema(self) -> pl.Schema:
        """The table's columns in order, with their Polars types."""
        return schema_of(self.columns)


_IDENTITY = (
    Column("did", TEXT, "DID of the account whose repository holds the record.", required=True),
    Column(
        "collection",
        TEXT,
        "NSID of the collection, from the record's key in the repository's tree.",
        required=True,
    ),
    Column("rkey", TEXT, "Record key within the collection, from the repository's tree.", required=True),
    Column(
        "uri", TEXT, "AT-URI of the record, at://did/collection/rkey: unique in the table.", required=True
    ),
    Column(
        "cid",
        TEXT,
        "CID (base32 text) of the record's exact bytes, checked against their hash.",
        required=True,
    ),
    Column("repo_rev", TEXT, "Revision (TID) of the repository snapshot that the record was read from."),
    Column("pds", TEXT, "Host that served the snapshot.", required=True),
    Column(
        "obtained",
        TEXT,
        "How the record was obtained: with the whole repository, by itself with its proof, or from a listing.",
        words=(Obtained,),
    ),
    Column(
        "record_type",
        TEXT,
        "Kind of record: post, reply, like, repost, follow, block, profile or other.",
        required=True,
    ),
)

_TIME = (
    Column(
        "created_at_raw",
        TEXT,
        "The record's createdAt exactly as its client wrote it; null if it is no string.",
    ),
    Column("created_at", INSTANT, "Instant that created_at_raw names, in UTC; null if it names none."),
    Column(
        "sync_timestamp",
        INSTANT,
        "created_at inside the study period, the study's normalised date outside it, null for an undated record.",
    ),
    Column(
        "in_range",
        pl.Boolean(),
        "Whether created_at is believed and lies inside the study period.",
        required=True,
    ),
    Column(
        "rkey_time", INSTANT, "Time in the record key if it is a TID, chosen by the client: a hint, no proof."
    ),
    Column(
        "date_quality",
        TEXT,
        "How far created_at is believed; of an undated record, why it has no date.",
        required=True,
        words=(DateQuality,),
    ),
    Column(
        "issues",
        TEXTS,
        "Fields that do not hold what their lexicon promises, as field:problem; empty if none.",
        required=True,
        words=(FieldProblem,),
    ),
)

_RECORD = (
    Column(
        "record",
        TEXT,
        'The whole record as JSON, CID links as {"$link"} and byte strings as {"$bytes"}; null if not kept.',
    ),
)

_POST = (
    Column("text", TEXT, "The post's text."),
    Column("langs", TEXTS, "Language tags that the client set, as written."),
    Column("tags", TEXTS, "Hashtags beside the text, as written; those in the text are in facet_tags."),
    Column(
        "labels", TEXTS, "Values of the labels that the author put on the post, such as content warnings."
    ),
    Column("embed_type", TEXT, "NSID of the embed's type."),
    Column("embed", TEXT, "The whole embed as JSON."),
    Column("external_uri", TEXT, "Address of the external link card, also of one beside a quote."),
    Column(
        "media_types",
        TEXTS,
        "MIME type of each image or video of the embed, in order; null without an embed.",
    ),
    Column("alt_texts", TEXTS, "Alternative text of each image or video, parallel to media_types."),
    Column("blob_cids", TEXTS, "CID of each image's or video's blob, parallel to media_types."),
    Column("facets", TEXT, "All facets as JSON; their indexes count UTF-8 bytes of the text."),
    Column("facet_links", TEXTS, "Addresses that facets link to, in order; null without facets."),
    Column("facet_mentions", TEXTS, "DIDs that facets mention, in order; null without facets."),
    Column("facet_tags", TEXTS, "Hashtags of facets, without the sign, in order; null without facets."),
    Column("reply_parent_uri", TEXT, "AT-URI of the record replied to; null for a post that is no reply."),
    Column("reply_parent_cid", TEXT, "CID of the record replied to."),
    Column("reply_parent_did", TEXT, "DID in reply_parent_uri."),
    Column("reply_root_uri", TEXT, "AT-URI of the record that the thread began with."),
    Column("reply_root_cid", TEXT, "CID of the record that the thread began with."),
    Column("reply_root_did", TEXT, "DID in reply_root_uri."),
    Column(
        "quoted_uri", TEXT, "AT-URI of the embedded record: a quoted post, or a list, feed or other record."
    ),
    Column("quoted_cid", TEXT, "CID of the embedded record."),
    Column("quoted_did", TEXT, "DID in quoted_uri."),
)

_FIRST = Column(
    "first_for_subject",
    pl.Boolean(),
    "Whether it is the account's first record of the table about its subject, by created_at (undated ones last), then "
    "by rkey; null without a subject, and for several about subjects that were purged and cannot be told apart.",
)

_SUBJECT_RECORD = (
    Column("subject_uri", TEXT, "AT-URI of the record that is liked or reposted."),
    Column("subject_cid", TEXT, "CID of that record, as the client saw it."),
    Column("subject_did", TEXT, "DID in subject_uri."),
    Column("subject_collection", TEXT, "Collection in subject_uri: a post's, a feed's, a list's ..."),
    Column(
        "via_uri", TEXT, "AT-URI of the repost through which the subject was seen, if the client said so."
    ),
    _FIRST,
)

_SUBJECT_ACCOUNT = (Column("subject_did", TEXT, "DID of the account that is followed or blocked."), _FIRST)

_PROFILE = (
    Column("display_name", TEXT, "Name that the account shows beside its handle."),
    Column("description", TEXT, "What the account says about itself."),
    Column("pronouns", TEXT, "Pronouns, as written."),
    Column("website", TEXT, "Address of the account's web page, as written."),
    Column(
        "labels",
        TEXTS,
        "Values of the labels that the account put on itself, such as !no-unauthenticated, which asks not to be shown "
        "to those who are not signed in.",
    ),
    Column("avatar_cid", TEXT, "CID of the avatar's blob."),
    Column("banner_cid", TEXT, "CID of the banner's blob."),
    Column("pinned_post_uri", TEXT, "AT-URI of the post that is pinned to the profile."),
    Column("joined_via_starter_pack", TEXT, "AT-URI of the starter pack through which the account was made."),
)


def _table(
    name: str,
    record_type: str,
    collection: str | None,
    description: str,
    columns: tuple[Column, ...],
    *,
    on_request: bool = False,
) -> Table:
    whole = (*_IDENTITY, *_TIME, *columns, *_RECORD)
    return Table(name, record_type, collection, description, whole, on_request)


RECORD_TABLES: tuple[Table, ...] = (
    _table("posts", "post", POST, "Posts that are no replies, one row per record.", _POST),
    _table("replies", "reply", POST, "Posts with a reply field, one row per record.", _POST),
    _table("likes", "like", LIKE, "Likes of posts, feeds and other records.", _SUBJECT_RECORD),
    _table("reposts", "repost", REPOST, "Reposts of posts.", _SUBJECT_RECORD),
    _table("follows", "follow", FOLLOW, "Follows of accounts.", _SUBJECT_ACCOUNT),
    _table("blocks", "block", BLOCK, "Blocks of accounts.", _SUBJECT_ACCOUNT),
    _table("profiles", "profile", PROFILE, "What accounts say about themselves.", _PROFILE, on_request=True),
    _table(
        OTHER_RECORDS,
        "other",
        None,
        "Records of other collections that the study asks for, as JSON.",
        (),
        on_request=True,
    ),
)
TABLES: tuple[str, ...] = tuple(table.name for table in RECORD_TABLES)
# Those of a study that names no types.
USUAL_TABLES: tuple[str, ...] = tuple(table.name for table in RECORD_TABLES if not table.on_request)
TABLE_BY_NAME: dict[str, Table] = {table.name: table for table in RECORD_TABLES}

COLLECTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(table.collection for table in RECORD_TABLES if table.collection is not None)
)
TABLES_OF_COLLECTION: dict[str, tuple[str, ...]] = {
    collection: tuple(table.name for table in RECORD_TABLES if table.collection == collection)
    for collection in COLLECTIONS
}

REJECTS = (
    Column("did", TEXT, "DID of the account whose repository holds the record.", required=True),
    Column("collection", TEXT, "First part of the record's key in the repository's tree."),
    Column("rkey", TEXT, "Second part of the record's key in the repository's tree."),
    Column("uri", TEXT, "AT-URI of the record, as far as its key makes one."),
    Column("cid", TEXT, "CID (base32 text) of the record's bytes; null if it is none."),
    Column(
        "reason",
        TEXT,
        "Why no row could be made of the record, or why what was asked for or listed is none.",
        required=True,
        words=(RejectReason, LeftOut),
    ),
    Column("detail", TEXT, "What exactly was found."),
)
REJECTS_SCHEMA = schema_of(REJECTS)

COUNTS = (
    Column("did", TEXT, "DID of the account whose repository holds the records.", required=True),
    Column("collection", TEXT, "NSID of their collection; null for purged records."),
    Column("table", TEXT, "Table that they stand in or would stand in; null if that is not known."),
    Column("fate", TEXT, "What became of them.", required=True, words=(Fate,)),
    Column(
        "reason",
        TEXT,
        "Why they were filtered or rejected; null for kept records.",
        words=(FilterReason, RejectReason, LeftOut),
    ),
    Column(
        "records",
        pl.Int64(),
        "How many there are; the sum over an account is all records of its tree.",
        required=True,
    ),
)
COUNTS_SCHEMA = schema_of(COUNTS)
