"""What the crash study hands over, and takes over from the system before it."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster.config.study import Study
from backfill_dagster.legacy.study_yaml import convert_yaml, write_conversion
from backfill_dagster.legacy.tree import import_tree
from backfill_dagster.records.settings import StudyPeriod
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.legacy.trees import row, write

# Small batches for the first, so many that its ledger is merged.
CONSUMERS: dict[str, dict[str, Any]] = {
    "files": {"type": "parquet", "tables": ["posts", "likes"], "batch_size": 3},
    "queue": {"type": "sqlite", "tables": ["posts"], "batch_size": 20},
}


def take_over(folder: Path, study: Study, did: str, kind: str) -> None:
    """Take over a YAML, and a tree with records of one type: of an account, of another, and what is no record."""
    tree = folder / f"tree_of_{kind}"
    other = f"did:plc:{'z' * 24}"
    rows = [row(kind, "f1", did, subject=did), row(kind, "f2", did), row(kind, "f3", did, uri="")]
    write(tree, kind, [*rows, row(kind, "f4", other, subject=did)])
    old = folder / "old.yaml"
    old.write_text("backfill: {name: old, source: {type: csv, path: dids.csv}}")
    write_conversion([convert_yaml(old)], study.root.parent / "converted")
    import_tree(tree, StudyStorage(study.root), StudyPeriod())


def leave_staged(storage: StudyStorage) -> None:
    """Leave a batch that a run which was killed had put aside, and did not enter in its ledger."""
    storage.write("handoff/files/staged/posts/of_a_dead_run.parquet", storage.read("source_dids.parquet"))


def handed_over(study: Study) -> Counter[tuple[str, str]]:
    """Return how often each record was handed to each consumer (consumer, URI)."""
    found: Counter[tuple[str, str]] = Counter()
    for path in (study.root / "handoff/files/outbox").rglob("*.parquet"):
        uris = pl.read_parquet(path, columns=["uri"], hive_partitioning=False)["uri"]
        found.update(("files", uri) for uri in uris)
    queue = study.root / "handoff/queue/queue.sqlite"
    if queue.is_file():
        with closing(sqlite3.connect(queue)) as database:
            for (payload,) in database.execute("SELECT payload FROM queue"):
                found["queue", json.loads(payload)["uri"]] += 1
    return found
