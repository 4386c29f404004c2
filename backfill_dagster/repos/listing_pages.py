"""Pages of `com.atproto.repo.listRecords`, and what is on them.

Source: its lexicon (https://docs.bsky.app/docs/api/com-atproto-repo-list-records). Values are written in the JSON form
of the data model (https://atproto.com/specs/data-model), from which the record's bytes are made again.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from cbrrr import CID, encode_dag_cbor

from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.repos.cid import cid_text, dag_cbor_cid
from backfill_dagster.repos.outcomes import LeftOut
from backfill_dagster.repos.pages import read_list

PAGE = 100
MAX_PAGE_BYTES = 16 * 2**20
_MAX_CID = 256
_MAX_RKEY = 1024


class ListingPage(NamedTuple):
    """What a page lists, unchecked, and the cursor of the next one; None on the last."""

    records: list[Any]
    cursor: str | None


class Listed(NamedTuple):
    """One record as it was listed. `block` is None if it cannot be taken, and then there is a reason."""

    rkey: str | None
    cid: str | None
    block: bytes | None
    reason: LeftOut | None


def read_listing_page(body: bytes) -> ListingPage:
    """Read a page; raises BadAnswerError for what is none."""
    page = ListingPage(*read_list(body, "records"))
    if len(page.records) > PAGE:
        raise BadAnswerError(f"a page lists {len(page.records)} records where {PAGE} were asked for")
    return page


def read_listed(entry: object, did: str, collection: str) -> Listed:
    """Make the block again that an entry of a page stands for, and compare its CID with the one that is stated.

    JSON does not tell `1.0` from `1`, nor text from what a server made of bytes that are none: such a record, which is
    rare, comes out as another block, and cannot be told from a changed one.
    """
    if not isinstance(entry, dict):
        return Listed(None, None, None, LeftOut.MALFORMED)
    uri, cid, value = entry.get("uri"), entry.get("cid"), entry.get("value")
    if not isinstance(uri, str) or not isinstance(cid, str) or len(cid) > _MAX_CID:
        return Listed(None, None, None, LeftOut.MALFORMED)
    prefix = f"at://{did}/{collection}/"
    rkey = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or not 0 < len(rkey) <= _MAX_RKEY or "/" in rkey:
        return Listed(None, cid, None, LeftOut.OTHER_URI)
    try:
        block = _encode(value)
    except (AttributeError, ValueError, TypeError, OverflowError, RecursionError):
        return Listed(rkey, cid, None, LeftOut.MALFORMED)
    if cid_text(dag_cbor_cid(block)) != cid:
        return Listed(rkey, cid, None, LeftOut.CID_MISMATCH)
    return Listed(rkey, cid, block, None)


def _encode(value: Any) -> bytes:
    """Write a value of the data model's JSON as DAG-CBOR; raises whatever the encoder does for one that is none."""
    try:
        block: bytes = encode_dag_cbor(value, atjson_mode=True)
    except TypeError:
        # That mode refuses floats, which the data model does not have, and records do.
        block = encode_dag_cbor(_from_json(value))
    return block


def _from_json(value: Any) -> Any:
    """Put links and bytes in the place of what stands for them in JSON."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$link"}:
        return CID.decode(value["$link"])
    if value.keys() == {"$bytes"}:
        text = value["$bytes"]
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    return {name: _from_json(item) for name, item in value.items()}
