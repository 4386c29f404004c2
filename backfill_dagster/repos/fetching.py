"""How one account is fetched: what is asked of its host, and what has arrived of it so far.

The crawl knows hosts, their turns and pauses, accounts that move, and tries; what a try asks is told here. An account
that takes many requests goes on after a failure where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from backfill_dagster.repos.asked import WHOLE_REPOS
from backfill_dagster.repos.client import RepoAnswer, download, get_repo
from backfill_dagster.repos.outcomes import FailureReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Patience
    from backfill_dagster.network.turns import Turns
    from backfill_dagster.repos.asked import Asks
    from backfill_dagster.repos.client import DownloadBounds


class Part(NamedTuple):
    """So many bytes of a file, which follow those of the part before: the answer about a record, or a page of records.

    A page has no `rkey`. Of a record that the host said it has not (`is_denied`) there are no bytes.
    """

    collection: str
    rkey: str | None
    size: int
    is_denied: bool = False


@dataclass(frozen=True, slots=True)
class AskedHost:
    """The host of an account, and how it is asked; `bounds` are for all of an account."""

    turns: Turns
    gate: HostGate
    origin: str
    bounds: DownloadBounds
    patience: Patience
    on_bytes: Callable[[int], None] = lambda _: None

    async def get_repo(self, did: str, to: Path) -> RepoAnswer:
        """Download an account's repository; see `client.get_repo`."""
        answer = await get_repo(self.turns, self.gate, self.origin, did, to, self.bounds, self.patience)
        self.on_bytes(answer.bytes_received)
        return answer

    async def download(
        self, method: str, params: Mapping[str, str], to: Path, bounds: DownloadBounds
    ) -> RepoAnswer:
        """Download what a method answers; see `client.download`."""
        url = f"{self.origin}/xrpc/{method}"
        answer = await download(self.turns, self.gate, url, params, to, bounds, self.patience)
        self.on_bytes(answer.bytes_received)
        return answer


def is_slow(seconds: float, answered: int, host: AskedHost) -> bool:
    """Tell whether answers took longer than a repository may, and than so many answers may besides."""
    return seconds > host.bounds.seconds + answered * _SECONDS_EACH


# Of answers beyond the time for a repository, on average; a host that keeps to its pace takes a small part of it.
_SECONDS_EACH = 2
TOO_SLOW = RepoAnswer(Outcome.FAILED, FailureReason.TIMED_OUT, "the answers take too long, all in all")


class AccountFetch(Protocol):
    """One account on its way."""

    @property
    def file(self) -> Path:
        """What has arrived."""

    @property
    def parts(self) -> Sequence[Part]:
        """What the file consists of; nothing is said of a whole repository."""

    @property
    def answered(self) -> int:
        """How many answers have arrived that need not be asked for again."""

    @property
    def repo_rev(self) -> str | None:
        """What the host named as the revision, without proof, if it was asked."""

    async def go_on(self, host: AskedHost) -> RepoAnswer:
        """Ask for what is missing until all has arrived, or something fails. Raises RunOverError.

        Returns the last answer; bytes and seconds are those of all answers together.
        """

    def discard(self) -> None:
        """Delete what has arrived."""


class Fetching(Protocol):
    """A way to fetch accounts."""

    @property
    def asks(self) -> Asks:
        """What is asked of them."""

    def begin(self, did: str, file: Path) -> AccountFetch:
        """Prepare to fetch an account into a file."""


class WholeRepo:
    """An account's whole repository, by one request."""

    def __init__(self, did: str, file: Path) -> None:
        self.file = file
        self.answered = 0
        self.parts: tuple[Part, ...] = ()
        self.repo_rev: str | None = None
        self._did = did

    async def go_on(self, host: AskedHost) -> RepoAnswer:
        """Ask for it."""
        return await host.get_repo(self._did, self.file)

    def discard(self) -> None:
        """Delete the file."""
        self.file.unlink(missing_ok=True)


class FetchesRepos:
    """Fetches whole repositories."""

    asks: Asks = WHOLE_REPOS

    def begin(self, did: str, file: Path) -> WholeRepo:
        """Prepare to fetch an account's repository."""
        return WholeRepo(did, file)
