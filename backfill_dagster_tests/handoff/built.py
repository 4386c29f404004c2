"""Built tables written by hand, a study that has them, and consumers who take away what they are handed."""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.ledger import LEDGER_SCHEMA, note_built

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
COLLECTIONS = {"posts": POST, "likes": LIKE}
ALICE, BOB, CAROL = (f"did:plc:{letter * 24}" for letter in "abc")


def study_with(folder: Path, consumers: dict[str, Any], **integrations: Any) -> Study:
    """Write a study's YAML with these consumers, and load it."""
    body = {
        "name": "study",
        "source": {"type": "inline", "dids": [ALICE, BOB]},
        "storage": {"path": str(folder / "data")},
        "integrations": {"consumers": consumers, **integrations},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"backfill": body}))
    return load_study(path)


def uri(did: str, rkey: str, table: str = "posts") -> str:
    return f"at://{did}/{COLLECTIONS[table]}/{rkey}"


def uris(number: int, table: str = "posts", did: str = ALICE) -> list[str]:
    return [uri(did, f"r{place:05d}", table) for place in range(number)]


def write_window(
    study: Study, window: str, of_records: Sequence[str], table: str = "posts", **columns: object
) -> None:
    """Store a window of a table as if it had been built of these records (URIs); of all columns not named, nulls."""
    schema = TABLE_BY_NAME[table].schema
    storage = StudyStorage(study.root)
    values: dict[str, object] = {
        "did": [one.split("/")[2] for one in of_records],
        "uri": list(of_records),
        "cid": [f"cid of {one}" for one in of_records],
        "created_at": [datetime(2024, 10, 1, tzinfo=UTC)] * len(of_records),
        **columns,
    }
    rows = pl.DataFrame(
        {
            name: values[name] if isinstance(values.get(name), list) else [values.get(name)] * len(of_records)
            for name in schema
        },
        schema=schema,
    ).sort("uri")
    folder = "undated/" + table if window == "undated" else f"tables/{table}/month={window}"
    stored = storage.write(f"{folder}/part-00000.parquet", rows)
    digest = int.from_bytes(hashlib.blake2b(repr(rows.rows()).encode(), digest_size=8).digest())
    entry = [(folder, "part-00000.parquet", digest, rows.height, stored.bytes)]
    note_built(storage, table, [folder], pl.DataFrame(entry, schema=LEDGER_SCHEMA, orient="row"))


class OutboxConsumer:
    """Reads all batches of a folder and deletes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: Counter[str] = Counter()

    def consume(self) -> None:
        for path in sorted(self.folder.glob("*/*.parquet")):
            self.taken.update(pl.read_parquet(path, hive_partitioning=False)["uri"])
            path.unlink()


class QueueConsumer:
    """Reads all rows of a queue and deletes them."""

    def __init__(self, path: Path, table: str = "queue") -> None:
        self.path = path
        self.table = table
        self.taken: Counter[str] = Counter()

    def consume(self) -> None:
        if not self.path.exists():
            return
        with closing(sqlite3.connect(self.path)) as database, database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self.table,)).fetchall():
                return
            for (payload,) in database.execute(f"SELECT payload FROM {self.table}"):
                told = json.loads(payload)
                self.taken.update(record["uri"] for record in (told if isinstance(told, list) else [told]))
            database.execute(f"DELETE FROM {self.table}")


def queue_rows(path: Path, table: str = "queue") -> list[dict[str, Any]]:
    """Return the rows of a queue, with what their JSON says."""
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(f"SELECT id, payload, metadata, created_at, status FROM {table} ORDER BY id")
        return [
            {
                "id": number,
                "payload": json.loads(payload),
                "metadata": json.loads(metadata),
                "created_at": created_at,
                "status": status,
            }
            for number, payload, metadata, created_at, status in found
        ]
