"""What an account gave in parts, as proofs of records or pages of listings, on its way into a pack."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backfill_dagster.repos.cid import cid_text
from backfill_dagster.repos.listed_records import gather_listed
from backfill_dagster.repos.outcomes import NOT_THERE, Obtained
from backfill_dagster.repos.proven_records import gather_proven
from backfill_dagster.repos.spans import add_spans, withheld_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.repos.fetching import Part
    from backfill_dagster.repos.packs import Attempt, PackWriter
    from backfill_dagster.repos.spans import NotTaken
    from backfill_dagster.repos.verify import Claim


def add_parts(
    file: Path,
    parts: Iterable[Part],
    attempt: Attempt,
    claim: Claim,
    writer: PackWriter,
    tombstones: Tombstones,
    *,
    check_signature: bool,
    scratch: Path,
) -> Attempt:
    """Add the records of an account to the pack, if all parts hold; return the account's row.

    Raises RepoRejectedError, and OSError if what arrived cannot be read.
    """
    spool = scratch / "listed-blocks"
    if attempt.obtained is Obtained.RECORD_PROOF:
        gathered = gather_proven(file, parts, claim, check_signature=check_signature)
    else:
        gathered = gather_listed(file, parts, attempt.did, spool)
    purged, masked = add_spans(attempt.did, gathered, writer, tombstones)
    spool.unlink(missing_ok=True)
    told = _told(attempt.did, gathered.not_taken, tombstones)
    absent = sum(left.reason in NOT_THERE for left in told)
    attempt = replace(
        attempt,
        records=len(gathered.spans) + len(told) - absent,
        absent=absent,
        not_taken=tuple(told),
        purged=purged,
        masked=tuple(masked),
    )
    header = gathered.header
    if header is None:
        return attempt
    return replace(
        attempt,
        repo_rev=header.rev,
        commit_cid=cid_text(header.commit_cid),
        commit_block=header.commit_block,
        signed_by=header.signed_by,
        signing_key=header.signing_key,
    )


def _told(did: str, not_taken: Sequence[NotTaken], tombstones: Tombstones) -> list[NotTaken]:
    """Leave out what the study has purged: it is not even to be told of."""
    withheld = withheld_paths(did, [(left.collection, left.rkey or "") for left in not_taken], tombstones)
    return [left for number, left in enumerate(not_taken) if number not in withheld]
