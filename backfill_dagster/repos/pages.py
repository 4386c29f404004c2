"""A page of one of the protocol's listings: a JSON object with a list under the listing's own name, and a cursor.

Source: the lexicons of `com.atproto.sync.listRepos`, `listReposByCollection` and `com.atproto.repo.listRecords`.
"""

from __future__ import annotations

from typing import Any

import orjson

from backfill_dagster.network.answers import BadAnswerError

_MAX_CURSOR = 1000


def read_list(body: bytes, name: str) -> tuple[list[Any], str | None]:
    """Return the list of this name, unchecked, and the cursor of the next page; None on the last.

    Raises BadAnswerError for what is no page.
    """
    try:
        page = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswerError(f"a page is not JSON: {error}") from None
    if not isinstance(page, dict) or not isinstance(page.get(name), list):
        raise BadAnswerError(f"a page has no list of `{name}`")
    cursor = page.get("cursor")
    if cursor is not None and not (isinstance(cursor, str) and len(cursor) <= _MAX_CURSOR):
        raise BadAnswerError("a page has a cursor that is not text of a reasonable length")
    return page[name], cursor or None
