"""Which of a host's accounts have moved on since they were fetched, asked with as few requests as it takes.

`listRepos` tells the revision of up to 1,000 accounts a page, but of everyone on the host;
`getLatestCommit` tells one. Pages are read for as long as they pay for themselves, that is, tell of at least as
many of our accounts as there were pages; the accounts left over are asked for one by one.
"""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.network.http import RequestFailedError
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.network.patience import RunOverError
from backfill_dagster.repos.repo_list import MAX_PAGE_BYTES, RepoPage, read_page, repo_pages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Patience
    from backfill_dagster.network.turns import Turns

_MAX_COMMIT_BYTES = 64 * 2**10
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
    # One account is asked for by one request either way.
    if len(wanted) <= 1:
        return

    async def ask(params: Mapping[str, str]) -> RepoPage:
        return read_page(await _ask(source, "com.atproto.sync.listRepos", params, MAX_PAGE_BYTES))

    pages = 0
    # A list that goes wrong somewhere has told what it told.
    with suppress(BadAnswerError):
        async with aclosing(repo_pages(ask)) as listed:
            async for repos in listed:
                pages += 1
                for repo in repos:
                    did = repo.get("did") if isinstance(repo, dict) else None
                    if isinstance(did, str) and did in wanted:
                        # `active` may be left out, and then means that it is.
                        told[did] = repo.get("rev") if repo.get("active") is not False else None
                if len(wanted) - len(told) <= 1 or pages > len(told):
                    return


async def _latest_rev(source: RevisionSource, did: str) -> str | None:
    body = await _ask(source, "com.atproto.sync.getLatestCommit", {"did": did}, _MAX_COMMIT_BYTES)
    try:
        commit = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    rev = commit.get("rev") if isinstance(commit, dict) else None
    return rev if isinstance(rev, str) else None


async def _ask(source: RevisionSource, method: str, params: Mapping[str, str], max_bytes: int) -> bytes:
    """Return the body of what a method answers with status 200; an empty one for any other answer."""
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
    return answer.body if answer.status == 200 else b""
