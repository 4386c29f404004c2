"""Records about one subject: a record (likes, reposts) or an account (follows, blocks)."""

import polars as pl

from backfill_dagster.records.fields import Map, read_maps
from backfill_dagster.records.issues import Issues
from backfill_dagster.records.references import read_dids, read_references, read_uris


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
