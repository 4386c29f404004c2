"""The signing keys of accounts as the stored documents tell of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.directory.evidence import DOCUMENTS_FOLDER, EVIDENCE_SCHEMA, keys_told
from backfill_dagster.errors import StorageError
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.storage import StudyStorage

KEYS_SCHEMA = pl.Schema(dict.fromkeys(("did", "key_type", "key_multibase", "source"), pl.String()))


def stored_keys(storage: StudyStorage) -> Iterator[pl.DataFrame | Found]:
    """Yield the keys (KEYS_SCHEMA) that documents tell of, each as often, and which documents are not what they were.

    One file of documents is in memory at a time.
    """
    for key in storage.keys(DOCUMENTS_FOLDER):
        try:
            [rows] = storage.collect([storage.scan([key], EVIDENCE_SCHEMA)], [key])
        except (StorageError, pl.exceptions.PanicException) as error:
            yield Found(FileProblem.UNREADABLE, key, f"{error!s:.200}")
            continue
        told: list[tuple[str, str, str, str]] = []
        changed = 0
        for did, kind, body, sha256 in rows.select("did", "kind", "body", "sha256").iter_rows():
            if hashlib.sha256(body).hexdigest() != sha256:
                changed += 1
                continue
            told += [
                (did, one.key_type, one.key_multibase, one.kind.value) for one in keys_told(did, kind, body)
            ]
        if changed:
            yield Found(FileProblem.EVIDENCE, key, f"{changed:,} documents")
        yield pl.DataFrame(told, schema=KEYS_SCHEMA, orient="row")
