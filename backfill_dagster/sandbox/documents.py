"""What the directory and the did:web hosts say about accounts: DID documents, and the PLC's operations."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import libipld

from backfill_dagster.sandbox.dag_cbor import cid_of, cid_text, encode
from backfill_dagster.sandbox.keys import SigningKey, derive_key, did_key
from backfill_dagster.sandbox.population import Account, Role
from backfill_dagster.sandbox.written import iso_milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOVED = frozenset({Role.MIGRATED, Role.PREVIOUS_KEY})
_BORN = 1_684_000_000_000_000
_DAY = 86_400_000_000


def endpoint(host: str) -> str:
    """Return the URL of a PDS as documents give it."""
    return f"http://{host}"


def did_document(account: Account) -> dict[str, Any]:
    """Write an account's DID document in the form of today's PLC directory."""
    did = account.did
    subject = f"did:plc:{'other':a<24}" if account.role is Role.DOCUMENT_OF_ANOTHER else did
    service = {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": endpoint(account.host),
    }
    # Not every service is a PDS: a reader must choose by id and type.
    labeler = {
        "id": "#atproto_labeler",
        "type": "AtprotoLabeler",
        "serviceEndpoint": "http://labels.sandbox.test",
    }
    without_pds = account.role is Role.DOCUMENT_WITHOUT_PDS
    key = account.current_key
    return {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
            "https://w3id.org/security/suites/secp256k1-2019/v1",
        ],
        "id": subject,
        "alsoKnownAs": [f"at://{account.handle}"],
        "verificationMethod": [
            {
                "id": f"{subject}#atproto",
                "type": "Multikey",
                "controller": subject,
                "publicKeyMultibase": key.multikey,
            }
        ],
        "service": [labeler] if without_pds else [service],
    }


def audit_log(account: Account) -> list[dict[str, Any]]:
    """List an account's operations as `/<did>/log/audit` does, oldest first.

    CIDs are those of the operations; signatures are of the right shape only, for nobody here checks them. An
    account that moved has an operation in between that was nullified: its key never counted.
    """
    born = _BORN + account.index * 7_919_000_000
    if account.role not in _MOVED:
        first = _operation(account, account.current_key, account.host, None)
        entries = [_entry(account, first, born)]
    else:
        first = _operation(account, account.previous_key, account.former_host or account.host, None)
        genesis = _entry(account, first, born)
        stolen = derive_key(account.curve, f"{account.seed} {account.did} nullified")
        theft = _operation(account, stolen, "stolen.sandbox.test", genesis["cid"])
        move = _operation(account, account.current_key, account.host, genesis["cid"])
        entries = [
            genesis,
            _entry(account, theft, born + 300 * _DAY, nullified=True),
            _entry(account, move, born + 301 * _DAY),
        ]
    if account.role is Role.TOMBSTONED:
        tombstone = {"type": "plc_tombstone", "prev": entries[-1]["cid"], "sig": _signature(account.did)}
        entries.append(_entry(account, tombstone, born + 400 * _DAY))
    return entries


def export_lines(accounts: Iterable[Account]) -> list[dict[str, Any]]:
    """List the operations of many accounts in the order of time, as the directory's `/export` does."""
    entries = [entry for account in accounts for entry in audit_log(account)]
    return sorted(entries, key=lambda entry: (entry["createdAt"], entry["did"]))


def is_in_plc(account: Account) -> bool:
    """Whether the directory has ever heard of an account."""
    return not account.is_web and account.role is not Role.UNKNOWN_TO_PLC


def _operation(account: Account, key: SigningKey, host: str, prev: str | None) -> dict[str, Any]:
    rotation = derive_key(account.curve, f"{account.seed} rotation")
    operation: dict[str, Any] = {
        "type": "plc_operation",
        "verificationMethods": {"atproto": did_key(key)},
        "rotationKeys": [did_key(rotation)],
        "alsoKnownAs": [f"at://{account.handle}"],
        "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": endpoint(host)}},
        "prev": prev,
    }
    if account.role is Role.DOCUMENT_WITHOUT_PDS:
        operation["services"] = {}
    return {**operation, "sig": _signature(f"{account.did} {host}")}


def _entry(
    account: Account, operation: dict[str, Any], created: int, *, nullified: bool = False
) -> dict[str, Any]:
    return {
        "did": account.did,
        "operation": operation,
        "cid": cid_text(cid_of(encode(operation))),
        "nullified": nullified,
        "createdAt": iso_milliseconds(created),
    }


def _signature(seed: str) -> str:
    digest = sha256(seed.encode()).digest()
    return str(libipld.encode_multibase("u", digest + digest))[1:]
