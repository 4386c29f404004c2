"""Reads DID documents, which their accounts' owners write: nothing in them is taken on trust.

Sources: AT Protocol DID specification, "DID Documents"; W3C DID Core 1.0, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.errors import BackfillError
from backfill_dagster.network.addresses import BadEndpointError, Endpoint, parse_endpoint

MAX_DOCUMENT_BYTES = 256 * 1024
_MAX_HANDLE = 253
_MAX_KEY = 1024
_MAX_SHOWN = 100
_MAX_REASON = 300
# Why a resolved account's records cannot be proven.
NO_SIGNING_KEY = "the document names no signing key"


_ASKED_AGAIN = "Run it again: what failed is looked up again."


class DirectoryState(ClosedSet):
    """What looking a DID up came to; of an account that is `unresolved` its `reason`."""

    RESOLVED = "resolved", "Its document names the account's PDS."
    NOT_FOUND = "not_found", "The directory, or the host of a `did:web`, knows no such DID."
    TOMBSTONED = "tombstoned", "The DID has been given up for good."
    NO_PDS = "no_pds", "Its document names no PDS: the account is not hosted anywhere."
    BAD_DOCUMENT = (
        "bad_document",
        "Its document cannot be used: no JSON, of another DID, too large, or with an endpoint that is none.",
    )
    UNREACHABLE = "unreachable", "The directory or the host could not be reached in time.", _ASKED_AGAIN
    REFUSED_ADDRESS = (
        "refused_address",
        "The host of the `did:web` is in a private, loopback, link-local or metadata address range.",
        "Leave it; of a network of your own, set `network.allow_private_addresses`.",
    )
    RATE_LIMITED = (
        "rate_limited",
        "The directory or the host has asked for nothing but pauses for `network.max_park_minutes`.",
        "Run it again later, with a lower `network.plc_requests_per_second`.",
    )
    SERVER_ERROR = "server_error", "The directory or the host answered with an error.", _ASKED_AGAIN
    NOT_ASKED = (
        "not_asked",
        "Its lookup is still to come: the run's time was over, or the source was read again since.",
        "Run it again: the next run goes on.",
    )

    @property
    def settled(self) -> bool:
        """Whether the directory has answered, so that only a change there could give another state."""
        return self in _SETTLED


_SETTLED = frozenset(
    {
        DirectoryState.RESOLVED,
        DirectoryState.NOT_FOUND,
        DirectoryState.TOMBSTONED,
        DirectoryState.NO_PDS,
        DirectoryState.BAD_DOCUMENT,
    }
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a document says of an account.

    `pds_host` (`name[:port]`) and `pds_origin` are in the normal form of `parse_endpoint`. The signing key is
    the verification method's type and its text in multibase, neither of them checked; both are None if there
    is none.
    """

    did: str
    handle: str | None
    pds_origin: str
    pds_host: str
    key_type: str | None
    key_multibase: str | None


class LookupFailedError(BackfillError):
    """A lookup that gave no identity: `state` is any but RESOLVED, `reason` says what was seen."""

    def __init__(self, state: DirectoryState, reason: str) -> None:
        reason = reason[:_MAX_REASON]
        super().__init__(f"{state}: {reason}")
        self.state = state
        self.reason = reason


class Claims(NamedTuple):
    """What a document says of an account, none of it checked but that it is text; None for what it does not say."""

    handle: str | None
    pds: str | None
    key_type: str | None
    key_multibase: str | None


def parse_document(did: str, body: bytes) -> Identity:
    """Read the document of `did` from its JSON; raises LookupFailedError (BAD_DOCUMENT or NO_PDS).

    A document without a signing key is an identity all the same: whether that matters is not known here.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad(f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _bad("is not a JSON object")
    if document.get("id") != did:
        raise _bad(f"is of another DID: {_shown(document.get('id'))}")
    claims = claims_of(document)
    endpoint = pds_endpoint(claims.pds)
    return Identity(did, claims.handle, endpoint.origin, endpoint.host, claims.key_type, claims.key_multibase)


def claims_of(document: dict[str, Any]) -> Claims:
    """Choose what counts among all that a document says; raises LookupFailedError (BAD_DOCUMENT)."""
    return Claims(_handle(document), _pds(document), *_signing_key(document))


def pds_endpoint(claimed: str | None) -> Endpoint:
    """Read the PDS that a document claims; raises LookupFailedError (BAD_DOCUMENT or NO_PDS)."""
    if claimed is None:
        raise LookupFailedError(DirectoryState.NO_PDS, "the document names no personal data server")
    try:
        return parse_endpoint(claimed)
    except BadEndpointError as error:
        raise _bad(f"has a PDS endpoint that is none: {error}") from None


def _pds(document: dict[str, Any]) -> str | None:
    for service in _objects(document, "service"):
        if _names(service, "#atproto_pds") and service.get("type") == "AtprotoPersonalDataServer":
            endpoint = service.get("serviceEndpoint")
            if not isinstance(endpoint, str):
                raise _bad(f"has a PDS endpoint that is not text: {_shown(endpoint)}")
            return endpoint
    return None


def _handle(document: dict[str, Any]) -> str | None:
    names = document.get("alsoKnownAs")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.startswith("at://"):
            handle = name.removeprefix("at://")
            return handle if 0 < len(handle) <= _MAX_HANDLE else None
    return None


def _signing_key(document: dict[str, Any]) -> tuple[str | None, str | None]:
    for method in _objects(document, "verificationMethod"):
        if _names(method, "#atproto"):
            kind, key = method.get("type"), method.get("publicKeyMultibase")
            if isinstance(kind, str) and isinstance(key, str) and max(len(kind), len(key)) <= _MAX_KEY:
                return kind, key
            return None, None
    return None, None


def _objects(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = document.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _names(entry: dict[str, Any], fragment: str) -> bool:
    # Ids are absolute (`did:...#atproto`) or relative (`#atproto`), depending on the server's age.
    name = entry.get("id")
    return isinstance(name, str) and name.endswith(fragment)


def _bad(why: str) -> LookupFailedError:
    return LookupFailedError(DirectoryState.BAD_DOCUMENT, f"the document {why}")


def _shown(value: object) -> str:
    return repr(value)[:_MAX_SHOWN]
