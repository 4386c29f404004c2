"""What the directory and the did:web hosts say about accounts: DID documents, and the PLC's operations."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import libipld

from backfill_dagster.sandbox.account_state import DAY, Identity, endpoint
from backfill_dagster.sandbox.dag_cbor import cid_of, cid_text, encode
from backfill_dagster.sandbox.keys import derive_key, did_key
from backfill_dagster.sandbox.population import Account, Role
from backfill_dagster.sandbox.written import iso_milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.sandbox.account_state import AccountState

# Of the ordinary accounts, those whose first operation is in the form that the directory took at first.
_LEGACY_EVERY = 4
_ROBBED = frozenset({Role.MIGRATED, Role.PREVIOUS_KEY})


def did_document(state: AccountState) -> dict[str, Any]:
    """Write an account's DID document in the form of today's PLC directory."""
    account, identity = state.account, state.identity
    did = state.did
    subject = f"did:plc:{'other':a<24}" if account.role is Role.DOCUMENT_OF_ANOTHER else did
    service = {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": identity.pds,
    }
    # Not every service is a PDS: a reader must choose by id and type.
    labeler = {
        "id": "#atproto_labeler",
        "type": "AtprotoLabeler",
        "serviceEndpoint": "http://labels.sandbox.test",
    }
    without_pds = account.role is Role.DOCUMENT_WITHOUT_PDS
    return {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
            "https://w3id.org/security/suites/secp256k1-2019/v1",
        ],
        "id": subject,
        "alsoKnownAs": [f"at://{identity.handle}"],
        "verificationMethod": [
            {
                "id": f"{subject}#atproto",
                "type": "Multikey",
                "controller": subject,
                "publicKeyMultibase": state.key(identity.key).multikey,
            }
        ],
        "service": [labeler] if without_pds else [service],
    }


def audit_log(state: AccountState) -> list[dict[str, Any]]:
    """List an account's operations as `/<did>/log/audit` does, oldest first.

    CIDs are those of the operations; signatures are of the right shape only, for nobody here checks them. An
    account that moved before the sandbox began has an operation in between that was nullified: its key never
    counted.
    """
    entries: list[dict[str, Any]] = []
    last: str | None = None
    for number, identity in enumerate(state.identities):
        operation = _operation(state, identity, last)
        entries.append(_entry(state, operation, identity.since))
        last = entries[-1]["cid"]
        if number == 0 and state.account.role in _ROBBED:
            theft = Identity(identity.handle, endpoint("stolen.sandbox.test"), "nullified", identity.since)
            operation = _operation(state, theft, last)
            entries.append(_entry(state, operation, identity.since + 300 * DAY, nullified=True))
    if state.tombstoned is not None:
        tombstone = {"type": "plc_tombstone", "prev": last, "sig": _signature(state.did)}
        entries.append(_entry(state, tombstone, state.tombstoned))
    return entries


def export_lines(states: Iterable[AccountState]) -> list[dict[str, Any]]:
    """List the operations of many accounts in the order of time, as the directory's `/export` does."""
    entries = [entry for state in states for entry in audit_log(state)]
    return sorted(entries, key=lambda entry: (entry["createdAt"], entry["cid"]))


def is_in_plc(account: Account) -> bool:
    """Whether the directory has ever heard of an account."""
    return not account.is_web and account.role is not Role.UNKNOWN_TO_PLC


def _operation(state: AccountState, identity: Identity, prev: str | None) -> dict[str, Any]:
    account = state.account
    rotation = derive_key(account.curve, f"{account.seed} rotation")
    signature = _signature(f"{state.did} {identity.pds}")
    if prev is None and account.role is Role.NORMAL and account.index % _LEGACY_EVERY == 0:
        return {
            "type": "create",
            "signingKey": did_key(state.key(identity.key)),
            "recoveryKey": did_key(rotation),
            "handle": identity.handle,
            "service": identity.pds,
            "prev": None,
            "sig": signature,
        }
    operation: dict[str, Any] = {
        "type": "plc_operation",
        "verificationMethods": {"atproto": did_key(state.key(identity.key))},
        "rotationKeys": [did_key(rotation)],
        "alsoKnownAs": [f"at://{identity.handle}"],
        "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": identity.pds}},
        "prev": prev,
    }
    if account.role is Role.DOCUMENT_WITHOUT_PDS:
        operation["services"] = {}
    return {**operation, "sig": signature}


def _entry(
    state: AccountState, operation: dict[str, Any], created: int, *, nullified: bool = False
) -> dict[str, Any]:
    return {
        "did": state.did,
        "operation": operation,
        "cid": cid_text(cid_of(encode(operation))),
        "nullified": nullified,
        "createdAt": iso_milliseconds(created),
    }


def _signature(seed: str) -> str:
    digest = sha256(seed.encode()).digest()
    return str(libipld.encode_multibase("u", digest + digest))[1:]
