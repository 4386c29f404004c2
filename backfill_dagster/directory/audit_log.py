"""Reads a did:plc's audit log for the signing keys that its account has had.

A migrated repository keeps the signature of its old key until its first write on the new host, so that the
key of the document does not fit. Source: did:plc specification 0.1, `/:did/log/audit` and "Operation Types".
"""

from __future__ import annotations

from typing import Any

import orjson

from backfill_dagster.directory.documents import DirectoryState, LookupFailedError

MAX_AUDIT_LOG_BYTES = 4 * 1024 * 1024
# Far more than any account has had; each costs a signature check.
MAX_KEYS = 64
_MAX_KEY = 1024
_DID_KEY = "did:key:"


def parse_audit_keys(body: bytes) -> list[tuple[str, str]]:
    """Return the account's distinct signing keys, newest first, as (`Multikey`, text in multibase).

    The first is that of the latest operation, usually the current one. Nullified operations never took effect
    and give none. Raises LookupFailedError (BAD_DOCUMENT) for what is not an audit log.
    """
    try:
        entries = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise LookupFailedError(DirectoryState.BAD_DOCUMENT, f"the audit log is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise LookupFailedError(DirectoryState.BAD_DOCUMENT, "the audit log is not a JSON array")
    keys: dict[str, None] = {}
    for entry in reversed(entries):
        if isinstance(entry, dict) and not entry.get("nullified"):
            key = _signing_key(entry.get("operation"))
            if key is not None:
                keys.setdefault(key)
        if len(keys) == MAX_KEYS:
            break
    return [("Multikey", key) for key in keys]


def _signing_key(operation: Any) -> str | None:
    if not isinstance(operation, dict):
        return None
    methods = operation.get("verificationMethods")
    # The first form of a genesis operation, `create`, names its one key at the top.
    key = methods.get("atproto") if isinstance(methods, dict) else operation.get("signingKey")
    if isinstance(key, str) and key.startswith(_DID_KEY) and len(key) <= _MAX_KEY:
        return key.removeprefix(_DID_KEY)
    return None
