"""References to blobs: pictures, videos and other files, which are stored apart from records."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from backfill_dagster.records.blocks import Link
from backfill_dagster.records.fields import read_present, spread
from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.record_json import link_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.records.fields import Map, Note
    from backfill_dagster.records.issues import Issues


def blob_cid(blob: Map, path: str, note: Note) -> str | None:
    """Return the CID of a reference to a blob, as text; null, and named, for what is none."""
    ref, legacy_cid = blob.get("ref"), blob.get("cid")
    if type(ref) is Link:
        return link_text(ref)
    # The form of the network's first months: {cid, mimeType}.
    if "ref" not in blob and type(legacy_cid) is str:
        return legacy_cid
    note(path, FieldProblem.NOT_A_BLOB)
    return None


def read_blob_cids(records: Sequence[Map], key: str, issues: Issues) -> list[str | None]:
    """Read the CIDs of an optional blob of each record."""
    rows, blobs = read_present(records, key, dict, FieldProblem.NOT_A_BLOB, issues)
    cids = [blob_cid(blob, key, partial(issues.add, row)) for row, blob in zip(rows, blobs, strict=True)]
    return spread(cids, rows, len(records))
