"""Pages of `com.atproto.sync.listRepos`, and of `listReposByCollection`, which has the same form.

Source: their lexicons, of which `cursor` and `repos` are read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.repos.pages import read_list

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

PAGE = 1000
MAX_PAGE_BYTES = 4 * 2**20
# A host that goes on for longer than this does not end: a hundred million accounts.
_MAX_PAGES = 100_000
# Pages in a row without an account. One who filters what it lists may give some.
_MAX_EMPTY_PAGES = 100


class RepoPage(NamedTuple):
    """What a page lists, unchecked, and the cursor of the next one; None on the last."""

    repos: list[Any]
    cursor: str | None


def read_page(body: bytes) -> RepoPage:
    """Read a page; raises BadAnswerError for what is none."""
    return RepoPage(*read_list(body, "repos"))


async def repo_pages(
    ask: Callable[[dict[str, str]], Awaitable[RepoPage]],
) -> AsyncGenerator[list[Any], None]:
    """Yield what the pages list, one after the other; `ask` gets the parameters of each.

    Raises BadAnswerError for a list that leads in a circle or nowhere, and whatever `ask` raises.
    """
    seen: set[int] = set()
    empty = 0
    params = {"limit": str(PAGE)}
    for _ in range(_MAX_PAGES):
        page = await ask(params)
        yield page.repos
        if page.cursor is None:
            return
        # Of a hundred thousand cursors the hashes alone; that two are equal by chance will not happen.
        if hash(page.cursor) in seen:
            raise BadAnswerError("the pages lead in a circle: a cursor came again")
        seen.add(hash(page.cursor))
        empty = 0 if page.repos else empty + 1
        if empty == _MAX_EMPTY_PAGES:
            raise BadAnswerError(f"{empty} pages in a row listed nobody, and there was to be another")
        params = {"limit": str(PAGE), "cursor": page.cursor}
    raise BadAnswerError(f"there are more than {_MAX_PAGES:,} pages")
