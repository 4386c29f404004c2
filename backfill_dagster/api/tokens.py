"""Who may do what: bearer tokens with scopes, from the environment, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS_VARIABLE = "BACKFILL_API_TOKENS"
MIN_LENGTH = 32
# A token of few different characters was typed, not drawn.
_MIN_DISTINCT = 10
# RFC 6750, section 2.1, `b68token`: it has nothing that parts the entries of the variable.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ADVICE = "make one by python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Scope(StrEnum):
    """What a token may do; none includes another."""

    READ = "read"  # see the configs and the jobs
    RUN = "run"  # start and cancel jobs of configs that are stored
    ADMIN = "admin"  # store configs


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of a token, and what it may do."""

    name: str
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    digest: bytes


class Tokens:
    """The tokens that are let in."""

    def __init__(self, known: Sequence[_Known]) -> None:
        self._known = tuple(known)

    @classmethod
    def parse(cls, text: str) -> Tokens:
        """Read `name:scope+scope:token`, several parted by commas or white space.

        Raises ConfigError for anything malformed, which no message repeats: it may be a secret.
        """
        known: list[_Known] = []
        for number, entry in enumerate(re.split(r"[,\s]+", text.strip(", \t\r\n")), start=1):
            if entry:
                known.append(_parse_entry(entry, f"{TOKENS_VARIABLE}: entry {number}"))
        if not known:
            raise ConfigError(
                f"{TOKENS_VARIABLE}: holds no token; write name:scopes:token, such as ana:read+run:<token>, and "
                f"{_ADVICE}"
            )
        for what, values in (
            ("name", [item.caller.name for item in known]),
            ("token", [item.digest for item in known]),
        ):
            if len(set(values)) < len(values):
                raise ConfigError(f"{TOKENS_VARIABLE}: two entries have the same {what}")
        return cls(known)

    def caller_of(self, token: bytes) -> Caller | None:
        """Return whose token this is, in a time that does not depend on which it is or how near it comes to one."""
        digest = hashlib.sha256(token).digest()
        found: Caller | None = None
        for known in self._known:
            if hmac.compare_digest(known.digest, digest):
                found = known.caller
        return found


def _parse_entry(entry: str, where: str) -> _Known:
    parts = entry.split(":")
    if len(parts) != 3:
        raise ConfigError(f"{where}: must be name:scopes:token, such as ana:read+run:<token>")
    name, scopes, token = parts
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: its name must be of a-z, 0-9, _ and -, begin with a letter, at most 32")
    chosen = scopes.split("+")
    if not set(chosen) <= set(Scope) or len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"{where} ({name}): its scopes must be of {', '.join(Scope)}, parted by +, each once"
        )
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where} ({name}): its token must be of A-Z a-z 0-9 - . _ ~ + /; {_ADVICE}")
    if len(token) < MIN_LENGTH or len(set(token)) < _MIN_DISTINCT:
        raise ConfigError(
            f"{where} ({name}): its token must have at least {MIN_LENGTH} characters, drawn at random; {_ADVICE}"
        )
    return _Known(Caller(name, frozenset(map(Scope, chosen))), hashlib.sha256(token.encode()).digest())
