"""What the pages of a listing come to: the blocks of the records on them, made again and put in order.

Nobody signs a listing: a record's bytes are those that its CID names, and that is all that is known of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.repos.asked import RecordPath
from backfill_dagster.repos.cid import dag_cbor_cid
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.listing_pages import read_listed, read_listing_page
from backfill_dagster.repos.outcomes import LeftOut
from backfill_dagster.repos.spans import Gathered, NotTaken, Span

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backfill_dagster.repos.fetching import Part

# Of one account. Each of those not taken stands in the account's row of the pack.
MAX_LISTED = 2_000_000
MAX_NOT_TAKEN = 10_000


def gather_listed(file: Path, parts: Iterable[Part], did: str, spool: Path) -> Gathered:
    """Read the pages that lie in a file one behind the other, and write the blocks of their records to `spool`.

    Raises RepoRejectedError (too_large) for more records than are accepted, and OSError.
    """
    spans: list[Span] = []
    not_taken: list[NotTaken] = []
    end = 0
    with file.open("rb") as pages, spool.open("wb") as blocks:
        for part in parts:
            for entry in _records(pages.read(part.size)):
                listed = read_listed(entry, did, part.collection)
                if listed.block is None or listed.rkey is None:
                    reason = listed.reason or LeftOut.MALFORMED
                    not_taken.append(NotTaken(part.collection, listed.rkey, listed.cid, reason))
                else:
                    blocks.write(listed.block)
                    start, end = end, end + len(listed.block)
                    path = RecordPath(part.collection, listed.rkey)
                    spans.append(Span(path, dag_cbor_cid(listed.block), start, end))
                if len(spans) > MAX_LISTED:
                    raise _too_large(f"more than {MAX_LISTED} records are listed")
                _check_not_taken(not_taken)
    taken = _in_order(spans, not_taken)
    _check_not_taken(not_taken)
    return Gathered(spool, taken, not_taken)


def _check_not_taken(not_taken: list[NotTaken]) -> None:
    if len(not_taken) > MAX_NOT_TAKEN:
        raise _too_large(f"more than {MAX_NOT_TAKEN} of the records that are listed cannot be taken")


def _records(page: bytes) -> list[object]:
    try:
        return read_listing_page(page).records
    except BadAnswerError as error:
        # It was read when it arrived.
        raise RepoRejectedError(RepoFault.TRUNCATED, str(error)) from None


def _in_order(spans: list[Span], not_taken: list[NotTaken]) -> list[Span]:
    """Sort by path. Of a path that was listed several times the first is taken, which was not changed meanwhile."""
    # Sorting keeps the order of those that are equal.
    spans.sort(key=lambda span: span.path)
    taken: list[Span] = []
    for span in spans:
        if taken and taken[-1].path == span.path:
            if taken[-1].cid != span.cid:
                not_taken.append(NotTaken(*span.path, cid=None, reason=LeftOut.REPEATED))
            continue
        taken.append(span)
    return taken


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
