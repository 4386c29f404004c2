"""Records of `app.bsky.actor.profile`: what an account says about itself. All of its fields are optional."""

import polars as pl

from backfill_dagster.records.blobs import read_blob_cids
from backfill_dagster.records.fields import Map, read_maps, read_texts, text_series
from backfill_dagster.records.issues import Issues
from backfill_dagster.records.references import read_uris
from backfill_dagster.records.self_labels import read_self_labels

# The one key of a repository under which its profile is looked for.
PROFILE_RKEY = "self"

_TEXTS = {
    "display_name": "displayName",
    "description": "description",
    "pronouns": "pronouns",
    "website": "website",
}
_REFERENCES = {"pinned_post_uri": "pinnedPost", "joined_via_starter_pack": "joinedViaStarterPack"}


def read_profiles(records: list[Map], issues: Issues) -> dict[str, pl.Series]:
    """Read the columns that are profiles' own."""
    texts = {
        name: text_series(read_texts(records, key, key, issues, required=False))
        for name, key in _TEXTS.items()
    }
    blobs = {
        name: text_series(read_blob_cids(records, key, issues))
        for name, key in (("avatar_cid", "avatar"), ("banner_cid", "banner"))
    }
    references = {
        name: read_uris(read_maps(records, key, key, issues, required=False), key, issues)
        for name, key in _REFERENCES.items()
    }
    return {**texts, "labels": read_self_labels(records, issues), **blobs, **references}
