"""The key by which a study's structured log names accounts: bytes of chance, made when they are first needed.

It lies in the study's own folder, which holds the DIDs anyway, and never in a configuration or in the log. Whoever has
the log alone cannot tell whom it is about, not even by trying all DIDs there are; whoever has the study's folder as
well can. When the key is deleted, nobody can join the lines written so far to accounts any more, and what follows has
other names. Unlike the salt of the tombstones it is a secret; so it is another one, and readable to its owner alone, or
in S3 to those who may read the bucket.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from backfill_dagster.storage import StudyStorage

FOLDER = "monitoring"
LOG_KEY = f"{FOLDER}/log_key"
_KEY_BYTES = 32
_OWNER_ALONE = 0o600


def log_key(storage: StudyStorage) -> bytes:
    """Return the study's key, made if there is none; raises StorageError."""
    known = stored_log_key(storage)
    if known is not None:
        return known
    # Of two processes that begin at once, the second finds the key of the first.
    with storage.alone(FOLDER):
        known = stored_log_key(storage)
        if known is not None:
            return known
        key = secrets.token_bytes(_KEY_BYTES)
        with storage.scratch() as scratch:
            local = scratch / "key"
            try:
                local.touch(_OWNER_ALONE)
                local.write_bytes(key.hex().encode())
            except OSError as error:
                raise StorageError.unwritable(storage.where(LOG_KEY), error) from error
            storage.publish(local, LOG_KEY, rows=0)
        return key


def stored_log_key(storage: StudyStorage) -> bytes | None:
    """Return the study's key; None if it has none. Raises StorageError."""
    if not storage.exists(LOG_KEY):
        return None
    try:
        key = bytes.fromhex(storage.read_bytes(LOG_KEY).decode("ascii"))
        if len(key) != _KEY_BYTES:
            raise ValueError("is no key")  # noqa: TRY301  an empty one would be known to everybody
    except ValueError as error:
        where = storage.where(LOG_KEY)
        raise StorageError(f"{where} cannot be read: {error}; if it is damaged, delete it") from error
    return key
