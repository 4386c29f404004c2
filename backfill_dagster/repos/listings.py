"""Collections of an account, by `com.atproto.repo.listRecords`: a hundred records a request, and no proof of anything.

The newest key comes first. But clients choose keys, so that no key tells that none of a wanted time follows: a listing
is always read to its end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from backfill_dagster.errors import StorageError
from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.repos.client import DownloadBounds, RepoAnswer
from backfill_dagster.repos.fetching import TOO_SLOW, AskedHost, Part, is_slow
from backfill_dagster.repos.listing_pages import MAX_PAGE_BYTES, PAGE, ListingPage, read_listing_page
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.repos.tid import parse_tid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backfill_dagster.repos.asked import AsksCollections

_LIST = "com.atproto.repo.listRecords"
_LATEST = "com.atproto.sync.getLatestCommit"
_MAX_SECONDS = 300.0
_MAX_COMMIT_BYTES = 64 * 2**10
# Of one account. A host that goes on for longer does not end.
_MAX_PAGES = 50_000
# In a row. A host that hides some records may give some.
_MAX_EMPTY_PAGES = 100


class _Position:
    """How far a listing is: the collections that are whole, and the cursors of the pages of the next one."""

    def __init__(self) -> None:
        self.whole = 0
        self.cursor: str | None = None
        # Of fifty thousand cursors the hashes alone; that two are equal by chance will not happen.
        self.seen: set[int] = set()
        self.empty = 0

    def turn(self, page: ListingPage) -> None:
        """Go on to the page after this one; raises BadAnswerError if that leads in a circle or nowhere."""
        if page.cursor is None:
            self.whole, self.cursor, self.seen, self.empty = self.whole + 1, None, set(), 0
            return
        if hash(page.cursor) in self.seen:
            raise BadAnswerError("the pages lead in a circle: a cursor came again")
        self.seen.add(hash(page.cursor))
        self.empty = 0 if page.records else self.empty + 1
        if self.empty == _MAX_EMPTY_PAGES:
            raise BadAnswerError(f"{self.empty} pages in a row listed nothing, and there was to be another")
        self.cursor = page.cursor


class Listing:
    """Some collections of one account, page by page."""

    def __init__(self, did: str, collections: Sequence[str], file: Path) -> None:
        self.file = file
        self.parts: list[Part] = []
        self.repo_rev: str | None = None
        self._did = did
        self._collections = collections
        self._begin()

    @property
    def answered(self) -> int:
        """How many pages have arrived."""
        return len(self.parts)

    def _begin(self) -> None:
        self.file.write_bytes(b"")
        self.parts = []
        self.repo_rev = None
        self._was_asked_rev = False
        self._position = _Position()
        self._size = 0
        self._seconds = 0.0

    async def go_on(self, host: AskedHost) -> RepoAnswer:
        """Ask for the revision, and then for the pages that have not arrived yet."""
        arrived = self.file.with_suffix(".part")
        if not self._was_asked_rev:
            answer = await self._ask_rev(host, arrived)
            if answer is not None:
                return self._summed(answer)
        bounds = DownloadBounds(MAX_PAGE_BYTES, min(host.bounds.seconds, _MAX_SECONDS))
        while self._position.whole < len(self._collections):
            if is_slow(self._seconds, self.answered, host):
                return self._summed(TOO_SLOW)
            collection = self._collections[self._position.whole]
            params = {"repo": self._did, "collection": collection, "limit": str(PAGE)}
            if self._position.cursor is not None:
                params["cursor"] = self._position.cursor
            answer = await host.download(_LIST, params, arrived, bounds)
            self._seconds += answer.seconds
            if answer.outcome is not Outcome.COMPLETE:
                return self._summed(answer)
            failure = self._keep(collection, arrived)
            if failure is None and (self._size > host.bounds.max_bytes or len(self.parts) > _MAX_PAGES):
                detail = f"the listing has more than {host.bounds.max_bytes} bytes or {_MAX_PAGES} pages"
                failure = RepoAnswer(Outcome.FAILED, FailureReason.TOO_LARGE, detail)
            if failure is not None:
                failure = self._summed(failure)
                # Whatever led here would lead here again.
                self._begin()
                return failure
        return self._summed(RepoAnswer(Outcome.COMPLETE, http_status=200))

    def discard(self) -> None:
        """Delete the pages."""
        self.file.unlink(missing_ok=True)

    async def _ask_rev(self, host: AskedHost, arrived: Path) -> RepoAnswer | None:
        """Ask for the revision before all else: a repository that is still at it has nothing new to list.

        Returns an answer that ends the try: what has become of the account, or why the host could not be asked.
        """
        bounds = DownloadBounds(_MAX_COMMIT_BYTES, min(host.bounds.seconds, _MAX_SECONDS))
        answer = await host.download(_LATEST, {"did": self._did}, arrived, bounds)
        self._seconds += answer.seconds
        if answer.outcome is Outcome.COMPLETE:
            self.repo_rev = _rev_in(_taken(arrived))
        # A server that does not know this method may know the other one.
        elif answer.reason not in (FailureReason.UNEXPECTED_ANSWER, FailureReason.SERVER_ERROR):
            return answer
        self._was_asked_rev = True
        return None

    def _keep(self, collection: str, arrived: Path) -> RepoAnswer | None:
        """Add a page to those that have arrived; returns the failure if it is none."""
        try:
            body = _taken(arrived)
            with self.file.open("ab") as pages:
                pages.write(body)
        except OSError as error:
            raise StorageError.unwritable(self.file, error) from error
        if not body:
            return RepoAnswer(Outcome.FAILED, FailureReason.EMPTY_BODY, "a page has no bytes", 200)
        try:
            page = read_listing_page(body)
            self._position.turn(page)
        except BadAnswerError as error:
            return RepoAnswer(Outcome.FAILED, FailureReason.UNEXPECTED_ANSWER, str(error), 200)
        self.parts.append(Part(collection, None, len(body)))
        self._size += len(body)
        return None

    def _summed(self, answer: RepoAnswer) -> RepoAnswer:
        return replace(answer, bytes_received=self._size, seconds=self._seconds)


class FetchesListings:
    """Fetches the collections that a study asks for."""

    def __init__(self, asks: AsksCollections) -> None:
        self.asks = asks

    def begin(self, did: str, file: Path) -> Listing:
        """Prepare to list an account's collections."""
        return Listing(did, self.asks.collections, file)


def _taken(arrived: Path) -> bytes:
    """Read a file and delete it."""
    body = arrived.read_bytes()
    arrived.unlink()
    return body


def _rev_in(body: bytes) -> str | None:
    """Return the revision that an answer of `getLatestCommit` names."""
    try:
        commit = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    rev = commit.get("rev") if isinstance(commit, dict) else None
    # Snapshots are ordered by it, so it must be what it should be.
    return rev if isinstance(rev, str) and parse_tid(rev) is not None else None
