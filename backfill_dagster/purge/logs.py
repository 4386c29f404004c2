"""Purging a structured log: lines stay where they are, and what names the purged in them becomes unreadable.

The file is changed in place and never grows shorter or longer, so that runs of other studies can go on adding to it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.account_names import SPELLED_DID, plain_did

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from backfill_dagster.monitoring.account_names import AccountHashes
    from backfill_dagster.purge.request import RecordKey
    from backfill_dagster.purge.tombstones import Tombstones

# A line of ours is far shorter; of a file that has none, no more than this is held.
_MAX_LINE = 16 * 2**20
_OTHERS = re.compile(rb'"backfill":"([a-z0-9_]*)"')


def purge_log(path: Path, backfill: str, mask: Callable[[str], str]) -> int:
    """Mask what names the purged in a study's lines of a log; return how many were changed. Raises StorageError.

    Lines that say that they are another study's stay as they are: it has purged nobody.
    """
    changed = 0
    try:
        with path.open("r+b") as file:
            offset = 0
            while line := file.readline(_MAX_LINE):
                masked = line if _is_of_another(line, backfill) else _masked(line, mask)
                if masked != line:
                    os.pwrite(file.fileno(), masked, offset)
                    changed += 1
                offset += len(line)
            if changed:
                os.fsync(file.fileno())
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError.unwritable(path, error) from error
    return changed


def log_mask(
    tombstones: Tombstones,
    *,
    handles: Iterable[str] = (),
    hashes: AccountHashes | None = None,
    dids: Collection[str] = (),
    records: Iterable[RecordKey] = (),
) -> Callable[[str], str]:
    """Return what masks the purged in a line: by the tombstones, and by what is known of them besides.

    Their handles; and what stands for them in a log that names accounts by hashes, of which tombstones know nothing.
    """
    names = [re.escape(handle) for handle in handles]
    if hashes is not None:
        names += [re.escape(hashes.did(did)) for did in dids]
        names += [
            re.escape(hashes.text(f"at://{did}/{collection}/{rkey}")) for did, collection, rkey in records
        ]
    known = re.compile(rf"(?<![\w.-])(?:{'|'.join(names)})(?![\w-])", re.IGNORECASE) if names else None

    def masked_spelling(match: re.Match[str]) -> str:
        return _crossed_out(match) if tombstones.holds_did(plain_did(match.group())) else match.group()

    def mask(text: str) -> str:
        text = tombstones.mask_record_uris(tombstones.mask(text) or "")
        if tombstones.dids:
            # In other spellings as well than records have: what servers say is in the log as they said it.
            text = SPELLED_DID.sub(masked_spelling, text)
        return text if known is None else known.sub(_crossed_out, text)

    return mask


def _is_of_another(line: bytes, backfill: str) -> bool:
    said = _OTHERS.search(line)
    return said is not None and said[1] != backfill.encode()


def _masked(line: bytes, mask: Callable[[str], str]) -> bytes:
    return mask(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _crossed_out(match: re.Match[str]) -> str:
    return re.sub("[A-Za-z0-9]", "x", match.group())
