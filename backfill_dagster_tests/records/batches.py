"""Batches of record blocks for tests, as the stage before hands them on."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import cbrrr
import polars as pl
import pyarrow as pa

from backfill_dagster.records.filters import RecordFilter
from backfill_dagster.records.settings import OutsidePeriod, RecordSettings, StudyPeriod
from backfill_dagster.records.tables import COLLECTIONS, POST
from backfill_dagster.records.transform import TransformedRecords, transform_records

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
OTHER_DID = "did:plc:z72i7hdynmk6r22z27h6tvur"
URI = f"at://{OTHER_DID}/app.bsky.feed.post/3l5uvwqz2fk2k"
CID = "bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"
PDS = "https://pds.example.com"
REV = "3n2uamxgnwc2e"
FETCHED_AT = datetime(2025, 6, 1, tzinfo=UTC)

# TID is made of CREATED.
CREATED = "2024-10-05T12:00:00.000Z"
CREATED_AT = datetime(2024, 10, 5, 12, tzinfo=UTC)
TID = "3l5ra5iy62222"

SCHEMA = pa.schema(
    [
        ("did", pa.string()),
        ("collection", pa.string()),
        ("rkey", pa.string()),
        ("cid", pa.binary()),
        ("block", pa.large_binary()),
    ]
)


def cbor(value: Any) -> bytes:
    """Encode a record; links are `cbrrr.CID`, byte strings bytes."""
    return bytes(cbrrr.encode_dag_cbor(value))


def cid_of(block: bytes) -> bytes:
    return b"\x01\x71\x12\x20" + hashlib.sha256(block).digest()


def block_row(
    block: bytes,
    collection: str | None = POST,
    rkey: str | None = TID,
    did: str = DID,
    cid: bytes | None = None,
) -> dict[str, Any]:
    return {
        "did": did,
        "collection": collection,
        "rkey": rkey,
        "cid": cid_of(block) if cid is None else cid,
        "block": block,
    }


def blocks(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def accounts(*dids: str, fetched_at: datetime = FETCHED_AT) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"did": did, "pds": PDS, "repo_rev": REV, "obtained": "repo", "fetched_at": fetched_at}
            for did in dids
        ],
        schema={
            "did": pl.String,
            "pds": pl.String,
            "repo_rev": pl.String,
            "obtained": pl.String,
            "fetched_at": pl.Datetime("us", "UTC"),
        },
    )


def settings(
    *,
    record_types: Sequence[str] = COLLECTIONS,
    start: datetime | None = None,
    end: datetime | None = None,
    outside: OutsidePeriod = "normalize",
    keep_record_json: bool = True,
    other_types: Sequence[str] = (),
    filters: Mapping[str, RecordFilter] | None = None,
) -> RecordSettings:
    return RecordSettings(
        frozenset(record_types),
        StudyPeriod(start, end),
        outside,
        keep_record_json,
        frozenset(other_types),
        filters or {},
    )


def transform(rows: Sequence[dict[str, Any]], wanted: RecordSettings | None = None) -> TransformedRecords:
    dids = {record["did"] for record in rows} or {DID}
    return transform_records(blocks(rows), accounts(*sorted(dids)), wanted or settings())


def only_row(result: TransformedRecords) -> dict[str, Any]:
    """Give the one row that a result has in all its tables."""
    rows = [found for frame in result.tables.values() for found in frame.iter_rows(named=True)]
    assert len(rows) == 1, result.rejects
    return rows[0]


def row_of(value: dict[str, Any], collection: str = POST, rkey: str = TID) -> dict[str, Any]:
    """Give the row that one record becomes; unless it says otherwise, it is sound and dated."""
    record = {"$type": collection, "createdAt": CREATED, **value}
    return only_row(transform([block_row(cbor(record), collection, rkey)]))


def row_of_post(**fields: Any) -> dict[str, Any]:
    return row_of({"text": "", **fields})
