"""Reads the operations of the PLC's log as its export lists them, and says what document each of them makes.

Source: did:plc specification 0.1, "Operation Serialization, Signing, and Validation", "Bulk Export" and "DID
Resolution"; for the first form of a genesis operation, `create`, what the directory's own software makes of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from backfill_dagster.directory.documents import Claims, LookupFailedError, claims_of
from backfill_dagster.network.answers import BadAnswerError

# Before the first DID of this method.
_BEGIN = datetime(2022, 1, 1, tzinfo=UTC)
_DID_KEY = "did:key:"
_NOTHING = Claims(None, None, None, None)


class Effect(StrEnum):
    """What an operation leaves its DID with."""

    DOCUMENT = "document"
    TOMBSTONE = "tombstone"
    UNKNOWN = "unknown"  # it is in none of the forms that are known


class Operation(NamedTuple):
    """One operation of the log; `claims` are those of the document that it makes, if it makes one.

    `created_at` is when the directory accepted it. One that is `nullified` never counted, in the end.
    """

    did: str
    cid: str
    created_at: datetime
    nullified: bool
    is_genesis: bool
    effect: Effect
    claims: Claims


def read_operations(body: bytes) -> list[Operation]:
    """Read a page of the export, an operation a line; raises BadAnswerError if any line is none."""
    operations = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line:
            try:
                operations.append(_read(line))
            except (KeyError, TypeError, ValueError, OverflowError):
                # What it says instead may name somebody, and errors are kept for longer than accounts.
                raise BadAnswerError(f"line {number} of a page of the export is no operation") from None
    return operations


def _read(line: bytes) -> Operation:
    """Read a line; raises KeyError, TypeError, ValueError or OverflowError for one that does not say who and when."""
    entry = orjson.loads(line)
    created_at = datetime.fromisoformat(entry["createdAt"]).astimezone(UTC)
    did, cid, operation = entry["did"], entry["cid"], entry["operation"]
    if not (isinstance(did, str) and isinstance(cid, str)):
        raise TypeError
    if created_at < _BEGIN or not entry["createdAt"].endswith(("Z", "+00:00")):
        raise ValueError
    effect, claims = _effect(operation)
    is_genesis = (
        effect is not Effect.TOMBSTONE and isinstance(operation, dict) and operation.get("prev") is None
    )
    return Operation(
        did,
        cid,
        created_at,
        # The form with sequence numbers does not say; what it lists was valid when it was listed.
        entry.get("nullified") is True,
        is_genesis,
        effect,
        claims,
    )


def _effect(operation: Any) -> tuple[Effect, Claims]:
    try:
        document = document_of(operation)
        if document is None:
            return Effect.TOMBSTONE, _NOTHING
        return Effect.DOCUMENT, claims_of(document)
    except (LookupFailedError, KeyError, TypeError, AttributeError):
        return Effect.UNKNOWN, _NOTHING


def document_of(operation: Any) -> dict[str, Any] | None:
    """Write what the directory shows of a DID after an operation, but for its id; None after a tombstone.

    Raises KeyError, TypeError or AttributeError for an operation in none of the known forms.
    """
    match operation["type"]:
        case "plc_tombstone":
            return None
        case "create":
            keys = {"atproto": operation["signingKey"]}
            names = [_with_at(operation["handle"])]
            pds = {"type": "AtprotoPersonalDataServer", "endpoint": _with_http(operation["service"])}
            services = {"atproto_pds": pds}
        case "plc_operation":
            keys, services = operation["verificationMethods"], operation["services"]
            names = operation["alsoKnownAs"]
        case other:
            raise KeyError(other)
    return {
        "alsoKnownAs": names,
        "verificationMethod": [
            {"id": f"#{name}", "type": "Multikey", "publicKeyMultibase": key.removeprefix(_DID_KEY)}
            for name, key in keys.items()
        ],
        "service": [
            {"id": f"#{name}", "type": service["type"], "serviceEndpoint": service["endpoint"]}
            for name, service in services.items()
        ],
    }


def _with_at(handle: str) -> str:
    if handle.startswith("at://"):
        return handle
    return "at://" + handle.replace("http://", "", 1).replace("https://", "", 1)


def _with_http(service: str) -> str:
    return service if service.startswith(("http://", "https://")) else f"https://{service}"
