"""Records in whose blocks the study has masked accounts that it has purged: which they are, and what they are now.

Such a block does not have the hash that its CID names any more. That it was masked, and not changed by somebody, is
told by its pack.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Masked(NamedTuple):
    """A record by its path, and the SHA-256 of its block as it is stored, in hex."""

    collection: str
    rkey: str
    sha256: str


def masked_among(
    collections: Sequence[str], rkeys: Sequence[str], before: Sequence[bytes], after: Sequence[bytes]
) -> list[tuple[int, Masked]]:
    """Return which of some blocks were masked, by their positions."""
    return [
        (number, Masked(collections[number], rkeys[number], hashlib.sha256(new).hexdigest()))
        for number, (old, new) in enumerate(zip(before, after, strict=True))
        if old is not new and old != new
    ]
