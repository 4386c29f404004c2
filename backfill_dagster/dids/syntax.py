"""What is a DID that can name an account (AT Protocol DID specification; did:plc and did:web method specs).

Two forms of one rule: `check_did` for a single text, `rejection_of` for a column. The tests hold them
together.
"""

from __future__ import annotations

import re

import polars as pl

from backfill_dagster.closed_sets import ClosedSet

MAX_DID_LENGTH = 2048
# What lists copied from spreadsheets and web pages have around their entries: also the no-break space, the
# zero-width space and the byte order mark. Spelled out, because Python and Polars disagree on what is white.
WHITESPACE = " \t\n\r\f\v\u00a0\u200b\ufeff"

# Written for Python and for the regex engine of Polars alike; both match the whole text.
_DID = r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]"
_PLC = r"did:plc:[a-z2-7]{24}"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
# The last label of a host is no number, else the whole is an IPv4 address; it begins with a letter, as all
# top level domains do. A port (`%3A`) and a path (`:`) are allowed by did:web and by the AT Protocol not.
_WEB = rf"did:web:(?:{_LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?"
_MAX_WEB = len("did:web:") + 253


class DidRejection(ClosedSet):
    """Why an entry of a source names no account to collect."""

    EMPTY = "empty", "There is no value in that row."
    TOO_LONG = "too_long", "It is longer than a DID can be, 2,048 characters.", "Correct the source."
    NOT_A_DID = (
        "not_a_did",
        "It is something else, such as a handle or the address of a page.",
        "Correct the source; a list of handles is a source of type `handles`.",
    )
    BAD_PLC = (
        "bad_plc",
        "It begins with `did:plc:`, but not exactly 24 characters of a-z and 2-7 follow.",
        "Correct the source.",
    )
    BAD_WEB = "bad_web", "It begins with `did:web:`, but no host name alone follows.", "Correct the source."
    UNSUPPORTED_METHOD = (
        "unsupported_method",
        "It is a DID of another method than `did:plc` and `did:web`; no account of the network has one.",
    )
    DUPLICATE = "duplicate", "It stood further up already."
    EXCLUDED = "excluded", "It is in `exclude`, or in a `without`."
    PURGED = "purged", "It names an account that this study has purged; what stood there is not stored."

    @property
    def malformed(self) -> bool:
        """Whether the entry has not even the form of a DID."""
        return self not in _WELL_FORMED


_WELL_FORMED = frozenset(
    (DidRejection.UNSUPPORTED_METHOD, DidRejection.DUPLICATE, DidRejection.EXCLUDED, DidRejection.PURGED)
)


def check_did(text: str) -> DidRejection | None:
    """Return why this is not the DID of an account, or None if it is one; whitespace around it is no part.

    Never DUPLICATE, EXCLUDED or PURGED, which are matters of the whole list and of the study.
    """
    did = text.strip(WHITESPACE)
    if not did:
        return DidRejection.EMPTY
    if len(did) > MAX_DID_LENGTH:
        return DidRejection.TOO_LONG
    if not re.fullmatch(_DID, did):
        return DidRejection.NOT_A_DID
    if did.startswith("did:plc:"):
        return None if re.fullmatch(_PLC, did) else DidRejection.BAD_PLC
    if did.startswith("did:web:"):
        return None if len(did) <= _MAX_WEB and re.fullmatch(_WEB, did) else DidRejection.BAD_WEB
    return DidRejection.UNSUPPORTED_METHOD


def stripped(entries: pl.Expr) -> pl.Expr:
    """Return the entries without surrounding whitespace; null becomes the empty string."""
    return entries.fill_null("").str.strip_chars(WHITESPACE)


def comparable(entries: pl.Expr) -> pl.Expr:
    """Return entries, DIDs or AT-URIs, so that two spellings of one host in did:web are equal; null stays null."""
    text = entries.str.strip_chars(WHITESPACE)
    return pl.when(text.str.starts_with("did:web:")).then(text.str.to_lowercase()).otherwise(text)


def rejection_of(entries: pl.Expr) -> pl.Expr:
    """Return for a column of text what `check_did` returns for each: a reason as text, or null."""
    did = stripped(entries)
    return (
        pl.when(did == "")
        .then(_reason(DidRejection.EMPTY))
        .when(did.str.len_chars() > MAX_DID_LENGTH)
        .then(_reason(DidRejection.TOO_LONG))
        .when(~_matches(did, _DID))
        .then(_reason(DidRejection.NOT_A_DID))
        .when(did.str.starts_with("did:plc:"))
        .then(pl.when(~_matches(did, _PLC)).then(_reason(DidRejection.BAD_PLC)))
        .when(did.str.starts_with("did:web:"))
        .then(
            pl.when(~_matches(did, _WEB) | (did.str.len_chars() > _MAX_WEB)).then(
                _reason(DidRejection.BAD_WEB)
            )
        )
        .otherwise(_reason(DidRejection.UNSUPPORTED_METHOD))
    )


def _reason(rejection: DidRejection) -> pl.Expr:
    return pl.lit(rejection.value, dtype=pl.String)


def _matches(text: pl.Expr, pattern: str) -> pl.Expr:
    return text.str.contains(rf"^(?:{pattern})$")
