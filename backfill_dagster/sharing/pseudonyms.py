"""Pseudonyms: HMAC-SHA256 of what names an account or a record, with a secret that stands in no file.

Without the secret nobody can make the pseudonym of a DID that they have in mind, which they could of a plain hash; and
the same DID or URI has the same pseudonym in all tables, so that what belongs together stays together.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.config.sharing import Sharing

# 128 bits: of a billion names no two come out the same, by any chance that matters.
PSEUDONYM_DIGITS = 32
MIN_SALT = 32
# A repeated word is long, and no secret.
_MIN_CHARACTERS = 10
_ACCOUNT, _RECORD, _SAMPLE = b"did\0", b"uri\0", b"sample\0"
_URI_START = "at://"


def read_salt(sharing: Sharing) -> bytes:
    """Return the secret out of the environment; raises ConfigError for one that is absent, short or simple."""
    name = sharing.salt_variable
    salt = os.environ.get(name, "")
    advice = f"set {name} to a secret that you keep, such as what `openssl rand -hex 32` prints"
    if not salt:
        raise ConfigError(
            f"sharing.what = 'pseudonyms': the environment variable {name} is not set; {advice}"
        )
    if len(salt) < MIN_SALT or len(set(salt)) < _MIN_CHARACTERS:
        raise ConfigError(
            f"sharing.what = 'pseudonyms': the environment variable {name} holds no good secret: it must have "
            f"{MIN_SALT} characters or more, {_MIN_CHARACTERS} of them different; {advice}"
        )
    return salt.encode()


class Pseudonyms:
    """Makes the pseudonyms of one secret."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __repr__(self) -> str:
        """Do not show the secret."""
        return "Pseudonyms()"

    def of(self, text: str) -> str:
        """Return the pseudonym of a DID or of an AT-URI."""
        kind = _RECORD if text.startswith(_URI_START) else _ACCOUNT
        return self._digest(kind, text).hex()[:PSEUDONYM_DIGITS]

    def of_column(self, texts: pl.Series) -> pl.Series:
        """Return those of a column of DIDs and AT-URIs, or of lists of them; null stays null."""
        if isinstance(texts.dtype, pl.List):
            told = [None if row is None else self._of_each(row) for row in texts.to_list()]
            return pl.Series(texts.name, told, texts.dtype)
        distinct = texts.drop_nulls().unique()
        if len(distinct) * 2 > len(texts):
            return pl.Series(texts.name, self._of_each(texts), pl.String)
        return texts.replace_strict(distinct, self._of_each(distinct), default=None, return_dtype=pl.String)

    def place_of(self, seed: str, did: str) -> float:
        """Return an account's place in the order in which samples take accounts, from 0 to 1."""
        return place(self._digest(_SAMPLE, f"{seed}\0{did}"))

    def _of_each(self, texts: Iterable[str | None]) -> list[str | None]:
        return [None if text is None else self.of(text) for text in texts]

    def _digest(self, kind: bytes, text: str) -> bytes:
        return hmac.digest(self._salt, kind + text.encode(), "sha256")


def place(digest: bytes) -> float:
    """Return where between 0 and 1 a digest lies; 1 is never reached."""
    return (int.from_bytes(digest[:8]) >> 11) / 2**53
