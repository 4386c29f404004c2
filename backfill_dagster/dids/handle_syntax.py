"""What is a handle that can name an account (AT Protocol handle specification)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.dids.syntax import WHITESPACE

if TYPE_CHECKING:
    import polars as pl

MAX_HANDLE_LENGTH = 253

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HANDLE = re.compile(rf"(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?")
# Handle specification, "Additional Non-Syntax Restrictions"; `.test` is for development, so for the sandbox alone.
_RESERVED = frozenset(("alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion"))
_DEVELOPMENT = "test"
# Something with a dot between letters, which a handle always has, or with a DID in it.
_MAY_NAME = r"[A-Za-z0-9-]\.[A-Za-z]|did:[a-z]+:[A-Za-z0-9._-]{20}"


class HandleRejection(ClosedSet):
    """Why a handle stands for no account."""

    BAD_HANDLE = (
        "bad_handle",
        "It has not the syntax of a handle, or is below a domain that none can be below (`.local`, `.example`, "
        "`.onion` …; `.test` outside a sandbox).",
        "Correct the source.",
    )
    NOT_FOUND = (
        "handle_not_found",
        "Neither DNS nor the handle's own host names a DID.",
        "Ask the account's owner; better, list DIDs.",
    )
    CONFLICT = "handle_conflict", "DNS names several DIDs."
    MISMATCH = (
        "handle_mismatch",
        "The document of the DID that it names does not name this handle first, or there is none.",
    )
    REFUSED_ADDRESS = (
        "handle_refused_address",
        "Its host is in a private address range.",
        "Leave it; of a network of your own, set `network.allow_private_addresses`.",
    )
    UNREACHABLE = (
        "handle_unreachable",
        "Somebody did not answer: nothing is known yet.",
        "Run it again: the next run asks again.",
    )

    @property
    def passing(self) -> bool:
        """Whether the next lookup may well tell another thing."""
        return self is HandleRejection.UNREACHABLE


def is_handle(text: str) -> bool:
    """Tell whether this has the syntax of a handle, of whatever top-level domain."""
    return len(text) <= MAX_HANDLE_LENGTH and _HANDLE.fullmatch(text) is not None


def normal_handle(text: str) -> str:
    """Return a handle as people write it, with an @ before it, in the one form in which handles are compared."""
    return text.strip(WHITESPACE).removeprefix("@").lower()


def check_handle(handle: str, *, in_sandbox: bool) -> HandleRejection | None:
    """Return why a handle in its normal form is none that can be looked up, or None if it is one."""
    if not is_handle(handle):
        return HandleRejection.BAD_HANDLE
    domain = handle.rpartition(".")[2].lower()
    if domain in _RESERVED or (domain == _DEVELOPMENT and not in_sandbox):
        return HandleRejection.BAD_HANDLE
    return None


def may_name_somebody(texts: pl.Expr) -> pl.Expr:
    """Tell of texts that are no DIDs whether they may name an account all the same; null stays null."""
    return texts.str.contains(_MAY_NAME)
