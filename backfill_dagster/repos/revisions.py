"""Which of a host's accounts have moved on since they were fetched, asked with as few requests as it takes.

`listRepos` tells the revision of up to 1,000 accounts a page, but of everyone on the host;
`getLatestCommit` tells one. Pages are read for as long as they pay for themselves, that is, tell of at least as
many of our accounts as there were pages; the accounts left over are asked for one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from backfill_dagster.network.http import RequestFailedError
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.network.patience import RunOverError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Patience
    from backfill_dagster.network.turns import Turns

_PAGE = 1000
_MAX_PAGE_BYTES = 4 * 2**20
_MAX_COMMIT_BYTES = 64 * 2**10
_MAX_CURSOR = 1000
# Requests in a row that bring no answer, after which the host is not asked for any more.
_SILENT_AFTER = 4


@dataclass(frozen=True, slots=True)
class RevisionSource:
    """Where to ask, and how long for: the host's gate and its origin."""

    turns: Turns
    gate: HostGate
    origin: str
    patience: Patience


class _NoAnswerError(Exception):
    """The host was not heard."""


async def unchanged_accounts(source: RevisionSource, known_revs: Mapping[str, str]) -> set[str]:
    """Return the DIDs that are active and still at the revision given for them.

    Whatever a host does not say, or says of another revision or state, leaves the account to be fetched.
    """
    told: dict[str, str | None] = {}
    silent = 0
    try:
        await _read_list(source, known_revs, told)
    except _NoAnswerError:
        silent += 1
    for did in known_revs.keys() - told.keys():
        if silent == _SILENT_AFTER:
            break
        try:
            told[did] = await _latest_rev(source, did)
            silent = 0
        except _NoAnswerError:
            silent += 1
    return {did for did, rev in known_revs.items() if told.get(did) == rev}


async def _read_list(source: RevisionSource, wanted: Mapping[str, str], told: dict[str, str | None]) -> None:
    """Put into `told` what pages of `listRepos` tell of wanted accounts' revisions; None for one not active."""
    cursor: str | None = None
    pages = 0
    # One account is asked for by one request either way.
    while len(wanted) - len(told) > 1 and pages <= len(told):
        params = {"limit": str(_PAGE), **({} if cursor is None else {"cursor": cursor})}
        page = await _ask(source, "com.atproto.sync.listRepos", params, _MAX_PAGE_BYTES)
        pages += 1
        repos = page.get("repos")
        for repo in repos if isinstance(repos, list) else ():
            if isinstance(repo, dict) and repo.get("did") in wanted:
                # `active` may be left out, and then means that it is.
                told[repo["did"]] = repo.get("rev") if repo.get("active") is not False else None
        following = page.get("cursor")
        if (
            not isinstance(following, str)
            or not following
            or following == cursor
            or len(following) > _MAX_CURSOR
        ):
            break
        cursor = following


async def _latest_rev(source: RevisionSource, did: str) -> str | None:
    commit = await _ask(source, "com.atproto.sync.getLatestCommit", {"did": did}, _MAX_COMMIT_BYTES)
    rev = commit.get("rev")
    return rev if isinstance(rev, str) else None


async def _ask(
    source: RevisionSource, method: str, params: Mapping[str, str], max_bytes: int
) -> dict[str, Any]:
    """Return what a method answers with status 200 and a JSON object; an empty one for any other answer."""
    try:
        answer = await source.turns.get(
            source.gate,
            f"{source.origin}/xrpc/{method}",
            params=params,
            max_bytes=max_bytes,
            patience=source.patience,
        )
    except (RequestFailedError, HostParkedError, RunOverError) as error:
        raise _NoAnswerError from error
    try:
        value = orjson.loads(answer.body) if answer.status == 200 else {}
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
