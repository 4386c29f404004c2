"""Converted packs for tests, written by hand: records of the table `blocks` and their index."""

from datetime import datetime

import polars as pl

from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.records.window_index import INDEX_SCHEMA, index_files, index_key
from backfill_dagster.records.windows import GRANULARITIES, Granularity
from backfill_dagster.storage import StudyStorage

TABLE = "blocks"
SCHEMA = TABLE_BY_NAME[TABLE].schema
MONTHLY = GRANULARITIES["monthly"]

# DID, record key, creation, date quality.
Record = tuple[str, str, datetime | None, str]


def rows(*records: Record) -> pl.DataFrame:
    frame = pl.DataFrame(
        [
            {
                "did": did,
                "uri": f"at://{did}/c/{rkey}",
                "rkey": rkey,
                "created_at": at,
                "date_quality": quality,
            }
            for did, rkey, at, quality in records
        ],
        schema={name: SCHEMA[name] for name in ("did", "uri", "rkey", "created_at", "date_quality")},
    )
    return pl.concat([SCHEMA.to_frame(), frame], how="diagonal").select(SCHEMA.names())


def write_pack(
    storage: StudyStorage,
    host: str,
    pack: str,
    *files: list[Record],
    granularity: Granularity = MONTHLY,
    fingerprint: str = "settings",
) -> None:
    """Store a pack's converted records, one list for each of its files, and then its index.

    The settings show in the rows.
    """
    index = [pl.DataFrame(schema=INDEX_SCHEMA)]
    for number, records in enumerate(files):
        frame = rows(*records).with_columns(record=pl.lit(fingerprint))
        index.append(
            index_files(
                {TABLE: (frame, storage.write(records_key(host, TABLE, pack, number), frame).bytes)},
                pack=pack,
                number=number,
                fingerprint=fingerprint,
                granularity=granularity,
            )
        )
    storage.write(index_key(host, pack), pl.concat(index))
