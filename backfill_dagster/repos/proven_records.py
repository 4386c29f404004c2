"""What the proofs of an account's records come to: all of them hold, or none is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.repos.asked import RecordPath
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.outcomes import LeftOut
from backfill_dagster.repos.record_proof import RecordProver
from backfill_dagster.repos.spans import Gathered, NotTaken, Span

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backfill_dagster.repos.fetching import Part
    from backfill_dagster.repos.verify import Claim, Header


def gather_proven(file: Path, parts: Iterable[Part], claim: Claim, *, check_signature: bool) -> Gathered:
    """Check the proofs that lie in a file one behind the other, in the order of the records' keys.

    Raises RepoRejectedError with the fault of the first that does not hold, and OSError.
    """
    prover = RecordProver(claim, check_signature=check_signature)
    spans: list[Span] = []
    not_taken: list[NotTaken] = []
    oldest: Header | None = None
    start = 0
    with file.open("rb") as content:
        for part in parts:
            path = RecordPath(part.collection, part.rkey or "")
            if part.is_denied:
                not_taken.append(NotTaken(*path, cid=None, reason=LeftOut.NOT_FOUND))
                continue
            header, found = prover.prove(content.read(part.size), path)
            if header.rev is None:
                # It could not be told from others, which of them is the older one.
                raise RepoRejectedError(RepoFault.BAD_COMMIT, "a commit of version 2, which has no revision")
            # An account that writes meanwhile gives several. All that was asked is as of the oldest one, or later.
            if oldest is None or header.rev < (oldest.rev or ""):
                oldest = header
            if found is None:
                not_taken.append(NotTaken(*path, cid=None, reason=LeftOut.ABSENT))
            else:
                spans.append(Span(path, found.cid, start + found.start, start + found.end))
            start += part.size
    return Gathered(file, spans, not_taken, oldest)
