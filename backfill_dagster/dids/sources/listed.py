"""Everyone that a server lists, page by page, as entries of a source."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from backfill_dagster.dids.entries import as_entries
from backfill_dagster.errors import SourceError
from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.network.asking import NoAnswerError
from backfill_dagster.network.patience import RunOverError
from backfill_dagster.repos.repo_list import MAX_PAGE_BYTES, RepoPage, read_page, repo_pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from backfill_dagster.connections import Connections
    from backfill_dagster.dids.entries import SourceAccess

logger = logging.getLogger(__name__)

_PAGES_BETWEEN_LOGS = 100


def connections_of(access: SourceAccess) -> Connections:
    """Return the connections, which a source that needs the network is always given."""
    if access.connections is None:
        raise RuntimeError("a source that needs the network was opened without connections")
    return access.connections


async def listed_entries(
    connections: Connections, origin: str, method: str, params: Mapping[str, str], described: str
) -> AsyncGenerator[pl.DataFrame, None]:
    """Yield everyone that a method such as `listRepos` lists, as entries in the server's order.

    Raises SourceError, of the source described so, if the list cannot be had whole.
    """
    host = connections.host(origin)

    async def ask(of_page: dict[str, str]) -> RepoPage:
        return await host.ask(
            f"{origin}/xrpc/{method}", {**params, **of_page}, max_bytes=MAX_PAGE_BYTES, read=read_page
        )

    listed = pages = 0
    try:
        async with aclosing(repo_pages(ask)) as lists:
            async for repos in lists:
                listed, pages = listed + len(repos), pages + 1
                if pages % _PAGES_BETWEEN_LOGS == 0:
                    logger.info("%s: %s accounts listed", host.gate.host, f"{listed:,}")
                if repos:
                    yield as_entries(pl.Series("entry", [_did(repo) for repo in repos], dtype=pl.String))
    except (NoAnswerError, BadAnswerError, RunOverError) as error:
        raise SourceError(
            f"{described}: {host.gate.host} does not give its whole list, of which {listed:,} accounts came: {error}"
        ) from error


def _did(repo: Any) -> str | None:
    """Return who is listed; what is no text is no DID, and told as it was given."""
    did = repo.get("did") if isinstance(repo, dict) else repo
    return did if did is None or isinstance(did, str) else orjson.dumps(did).decode()
