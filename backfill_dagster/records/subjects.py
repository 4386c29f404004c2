"""Records about one subject: a record (likes, reposts) or an account (follows, blocks)."""

import polars as pl

from backfill_dagster.records.fields import Map, read_maps
from backfill_dagster.records.issues import Issues
from backfill_dagster.records.references import read_dids, read_references, read_uris
from backfill_dagster.records.shapes import CID_FORM, DID_FORM, URI_FORM, Slot

# The strings that differ from one sound record to the next, and the columns that they are, or have in them.
SUBJECT_RECORD_SLOTS = (
    Slot(
        ("subject", "uri"),
        URI_FORM,
        {"subject_uri": 0, "subject_did": "did", "subject_collection": "collection"},
    ),
    Slot(("subject", "cid"), CID_FORM, {"subject_cid": 0}),
    Slot(("via", "uri"), URI_FORM, {"via_uri": 0}, is_optional=True),
    Slot(("via", "cid"), CID_FORM),
)
SUBJECT_ACCOUNT_SLOTS = (
    Slot(("subject",), DID_FORM, {"subject_did": 0}),
    Slot(("via", "uri"), URI_FORM),
    Slot(("via", "cid"), CID_FORM),
)


def read_subject_records(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the columns that are likes' and reposts' own."""
    subject = read_references(read_maps(records, "subject", "subject", issues), "subject", issues)
    via = read_maps(records, "via", "via", issues, required=False)
    return {
        "subject_uri": subject.uri,
        "subject_cid": subject.cid,
        "subject_did": subject.did,
        "subject_collection": subject.collection,
        "via_uri": read_uris(via, "via", issues),
    }


def read_subject_accounts(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the column that is follows' and blocks' own."""
    return {"subject_did": read_dids(records, "subject", issues)}
