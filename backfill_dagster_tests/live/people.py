"""Accounts that a test makes on the official network, and what they do there by the servers' own methods."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import coincurve
import httpx
import libipld

PASSWORD = "a password of a test"
# The multicodec of a K-256 public key.
_K256 = b"\xe7\x01"


@dataclass
class Person:
    """An account that the test has made: where it lives, and what it may write with."""

    did: str
    handle: str
    pds: str
    token: str
    key: coincurve.PrivateKey
    cids: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return call(self.pds, method, body, self.token)

    def create(self, collection: str, **fields: Any) -> str:
        """Write a record, and return its path."""
        body = {"repo": self.did, "collection": collection, "record": _record(collection, fields)}
        made = self.call("com.atproto.repo.createRecord", body)
        path = "/".join(made["uri"].split("/")[3:])
        self.cids[path] = made["cid"]
        return path

    def change(self, path: str, **fields: Any) -> str:
        """Put another record in the place of one, and return its CID."""
        collection, rkey = path.split("/")
        body = {
            "repo": self.did,
            "collection": collection,
            "rkey": rkey,
            "record": _record(collection, fields),
        }
        return str(self.call("com.atproto.repo.putRecord", body)["cid"])

    def delete(self, path: str) -> None:
        collection, rkey = path.split("/")
        self.call("com.atproto.repo.deleteRecord", {"repo": self.did, "collection": collection, "rkey": rkey})


def call(pds: str, method: str, body: Any = None, token: str | None = None, **options: Any) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if isinstance(body, bytes):
        headers["Content-Type"] = "application/vnd.ipld.car"
        options["content"] = body
    elif body is not None:
        options["json"] = body
    verb = options.pop("verb", "GET" if body is None else "POST")
    answer = httpx.request(verb, f"{pds}/xrpc/{method}", headers=headers, timeout=30, **options)
    assert answer.status_code == 200, f"{method}: {answer.text}"
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


def _record(collection: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"$type": collection, "createdAt": "2026-07-01T00:00:00.000Z", **fields}


def join(pds: dict[str, Any], name: str) -> Person:
    """Make an account on a PDS, with a recovery key."""
    key = coincurve.PrivateKey(hashlib.sha256(name.encode()).digest())
    public = libipld.encode_multibase("z", _K256 + key.public_key.format(compressed=True))
    # Some words are kept from being handles.
    handle = f"the-{name}{pds['handleDomain']}"
    body = {
        "handle": handle,
        "email": f"{name}@example.com",
        "password": PASSWORD,
        "recoveryKey": f"did:key:{public}",
    }
    made = call(pds["url"], "com.atproto.server.createAccount", body)
    return Person(made["did"], handle, pds["url"], made["accessJwt"], key)
