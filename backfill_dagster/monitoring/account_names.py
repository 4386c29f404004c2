"""Names of accounts in text that leaves the study: found however they are written, and made unreadable.

An alert leaves them out. A structured log may replace each by a keyed hash, so that lines about one account can be
joined and the account cannot be told from them without the key.
"""

from __future__ import annotations

import hmac
import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from backfill_dagster.purge.mentions import canonical_did

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANONYMOUS = "(an account)"
# Percent-encoded once or more often, as in the query of an address within the query of an address.
_COLON = r"(?::|%(?:25)*3a)"
# What a PLC identifier is made of ends it; a host name goes on through dots and an encoded port.
# The alternatives exclude each other: no text takes long to be found to hold no name.
_ENCODED = r"%(?!(?:25)*3a)[0-9a-f]{2}"
_DID = rf"did{_COLON}(?:plc{_COLON}[a-z0-9]+|[a-z0-9]+{_COLON}(?:[a-z0-9._-]|{_COLON}|{_ENCODED})*[a-z0-9])"
_SLASH = r"(?:/|%(?:25)*2f)"
# An AT-URI with whatever follows its authority, which names a single record of the account.
_AUTHORITY = rf"(?P<authority>{_DID}|[a-z0-9.-]*[a-z0-9])"
_URI = rf"at{_COLON}{_SLASH}{_SLASH}{_AUTHORITY}(?P<path>(?:{_SLASH}[a-z0-9._:~-]*[a-z0-9_~-])*)"
# Handles that can be told from the names of servers: written with an at sign, or below the domain of the network's
# largest server that are no servers.
_LABELS = r"(?:[a-z0-9-]{1,63}\.){1,10}"
_HANDLE = (
    rf"(?<![a-z0-9@])@(?P<handle>{_LABELS}[a-z]{{2,63}})|(?<![a-z0-9.-])(?P<bsky>{_LABELS}bsky\.social)\b"
)
SPELLED_DID = re.compile(_DID, re.IGNORECASE | re.ASCII)
_COLONS = re.compile(_COLON, re.IGNORECASE)
_NAMES = re.compile(rf"(?P<uri>{_URI})|(?P<did>{_DID})|{_HANDLE}", re.IGNORECASE | re.ASCII)
# What a text without any of these has no name in; most texts have none.
_HINTS = re.compile(r"did[:%]|at[:%]|@|\.bsky\.social", re.IGNORECASE | re.ASCII)
_HASH_CHARACTERS = 24
# Fields of ours that hold words of closed sets, and names of hosts, packs and revisions: the most of what is written.
_NAMELESS = frozenset({"host", "pack", "state", "stage", "repo_rev"})


def plain_did(spelled: str) -> str:
    """Return the canonical form of a DID, in whatever case and however often percent-encoded it is written."""
    return canonical_did(_COLONS.sub(":", spelled).lower())


def without_accounts(text: str) -> str:
    """Return a text with every account's name, DID, AT-URI or handle, replaced by `(an account)`."""
    return _NAMES.sub(_ANONYMOUS, text) if _HINTS.search(text) else text


class AccountHashes:
    """Replaces accounts' names by `account:<hash>`: HMAC-SHA256 of the name in its canonical form, cut to 96 bits.

    With the same key the same account has the same hash, also between a DID's spellings. A handle's hash is its own:
    a text does not tell whose handle it is.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        # The same accounts come again: settled, packed, converted.
        self._of_did = lru_cache(maxsize=100_000)(self._hash_did)

    def did(self, did: str) -> str:
        """Return what stands for a DID."""
        return self._of_did(did)

    def handle(self, handle: str) -> str:
        """Return what stands for a handle."""
        return f"account:{self._digest(handle.lower().removeprefix('@'))}"

    def text(self, text: str) -> str:
        """Return a text with what stands for the names in it; the path of an AT-URI is replaced as well."""
        return _NAMES.sub(self._replacement, text) if _HINTS.search(text) else text

    def value(self, value: Any) -> Any:
        """Return a value of a log line, texts in lists and mappings included, with names replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def _replacement(self, match: re.Match[str]) -> str:
        if match["uri"]:
            authority = match["authority"]
            account = self.did(authority) if authority[:3].lower() == "did" else self.handle(authority)
            # A record's key is as good as a name: records are public, and their keys are times to the microsecond.
            return (
                f"at://{account}/record:{self._digest(match['path'])}" if match["path"] else f"at://{account}"
            )
        if match["did"]:
            return self.did(match["did"])
        return self.handle(match["handle"] or match["bsky"])

    def _hash_did(self, did: str) -> str:
        return f"account:{self._digest(plain_did(did))}"

    def _digest(self, name: str) -> str:
        return hmac.digest(self._key, name.encode("utf-8", "surrogatepass"), sha256).hex()[:_HASH_CHARACTERS]


def hashed_fields(fields: Mapping[str, Any], hashes: AccountHashes) -> dict[str, Any]:
    """Return a log line's fields with names replaced; those called `did` and `handle` are names whatever they hold."""
    replaced: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _NAMELESS or isinstance(value, int | float):
            replaced[name] = value
        elif name == "did" and isinstance(value, str):
            replaced[name] = hashes.did(value)
        elif name == "handle" and isinstance(value, str):
            replaced[name] = hashes.handle(value)
        else:
            replaced[name] = hashes.value(value)
    return replaced
