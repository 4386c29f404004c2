"""Commits that are another account's, not signed as they should be, or too large."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from backfill_dagster.sandbox.faults.distortion import Distortion

if TYPE_CHECKING:
    from backfill_dagster.sandbox.repo import Draft


@dataclass(frozen=True, slots=True)
class WrongDid(Distortion):
    """The commit names another account, and is signed with this one's key."""

    did: str = f"did:plc:{'somebodyelse':a<24}"

    def commit(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Name the other."""
        return {**fields, "did": self.did}


@dataclass(frozen=True, slots=True)
class BadSignature(Distortion):
    """The commit's signature is that of a key which was never the account's, all zeros, or cut short."""

    style: Literal["other_key", "zeros", "short"] = "other_key"

    def draft(self, draft: Draft) -> Draft:
        """Take the other key."""
        return replace(draft, key=draft.account.key("forger")) if self.style == "other_key" else draft

    def signature(self, signature: bytes, draft: Draft) -> bytes:
        """Spoil the signature."""
        del draft
        if self.style == "zeros":
            return bytes(64)
        return signature[:-1] if self.style == "short" else signature


@dataclass(frozen=True, slots=True)
class HighSignature(Distortion):
    """The signature is the right one's twin with the high S, which the protocol forbids."""

    def signature(self, signature: bytes, draft: Draft) -> bytes:
        """Take S from the order of the curve."""
        high = draft.account.curve.value - int.from_bytes(signature[32:])
        return signature[:32] + high.to_bytes(32)


@dataclass(frozen=True, slots=True)
class OversizeCommit(Distortion):
    """The commit has a field nobody knows, of so many bytes."""

    size: int = 1_000_000

    def commit(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Add the field."""
        return {**fields, "padding": "x" * self.size}
