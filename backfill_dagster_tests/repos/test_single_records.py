"""Single records of one account: asked for one after the other, gone on with after failures, taken all or none."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from backfill_dagster.repos.asked import RecordPath
from backfill_dagster.repos.client import DownloadBounds, RepoAnswer
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Outcome
from backfill_dagster.repos.proven_records import gather_proven
from backfill_dagster.repos.single_records import SingleRecords
from backfill_dagster.repos.spans import Gathered
from backfill_dagster.repos.verify import Claim
from backfill_dagster_tests.repos.forge import DID, ForgedRepo, K256Signer

if TYPE_CHECKING:
    from backfill_dagster.repos.fetching import AskedHost

POST = "app.bsky.feed.post"
OLD, NEW = "3l4qxwyzabc2k", "3l4qxwyzabd2k"
PATHS = [RecordPath(POST, rkey) for rkey in "abcd"]
DENIED = RepoAnswer(
    Outcome.FAILED, FailureReason.UNEXPECTED_ANSWER, http_status=400, server_error="RecordNotFound"
)
BOUNDS = DownloadBounds(10**6, 60)
CLAIM = Claim(DID, [SigningKey.from_did_key(K256Signer().did_key)])


def repo(rev: str = OLD, keys: str = "abc") -> ForgedRepo:
    return ForgedRepo({f"{POST}/{key}": {"key": key} for key in keys}, commit_fields={"rev": rev})


@dataclass
class Host:
    answers: list[bytes | RepoAnswer]
    bounds: DownloadBounds = BOUNDS
    asked: list[str] = field(default_factory=list)

    async def download(
        self, method: str, params: Mapping[str, str], to: Path, bounds: DownloadBounds
    ) -> RepoAnswer:
        assert (method, params["did"], params["collection"]) == ("com.atproto.sync.getRecord", DID, POST)
        self.asked.append(params["rkey"])
        answer = self.answers.pop(0)
        return answer if isinstance(answer, RepoAnswer) else arrive(to, answer)


def arrive(to: Path, body: bytes) -> RepoAnswer:
    to.write_bytes(body)
    return RepoAnswer(Outcome.COMPLETE, http_status=200, bytes_received=len(body), seconds=1)


def go_on(fetch: SingleRecords, host: Host) -> RepoAnswer:
    return asyncio.run(fetch.go_on(cast("AskedHost", host)))


def gather(fetch: SingleRecords) -> Gathered:
    return gather_proven(fetch.file, fetch.parts, CLAIM, check_signature=True)


def test_each_answer_is_a_record_or_tells_that_there_is_none(tmp_path: Path) -> None:
    whole = repo()
    fetch = SingleRecords(DID, [*PATHS, RecordPath(POST, "e")], tmp_path / "1.car")
    host = Host([whole.car(), whole.car(), whole.car(), whole.car(), DENIED])
    answer = go_on(fetch, host)
    assert (answer.outcome, answer.bytes_received, answer.seconds) == (
        Outcome.COMPLETE,
        4 * len(whole.car()),
        4,
    )
    assert host.asked == list("abcde")
    gathered = gather(fetch)
    content = gathered.file.read_bytes()
    found = {span.path.rkey: (span.cid, content[span.start : span.end]) for span in gathered.spans}
    cids = {key.decode()[-1]: cid for key, cid in whole.leaves.items()}
    assert found == {key: (cids[key], whole.blocks[cids[key]]) for key in "abc"}
    assert [(left.rkey, left.reason) for left in gathered.not_taken] == [
        ("d", LeftOut.ABSENT),
        ("e", LeftOut.NOT_FOUND),
    ]
    assert gathered.header is not None
    assert (gathered.header.rev, gathered.header.signed_by) == (OLD, "current")


def test_an_account_that_writes_meanwhile_is_known_as_of_the_oldest_commit(tmp_path: Path) -> None:
    answers: list[bytes | RepoAnswer] = [
        repo(NEW).car(),
        repo(OLD).car(),
        repo(NEW).car(),
        repo(NEW, "d").car(),
    ]
    fetch = SingleRecords(DID, PATHS, tmp_path / "1.car")
    go_on(fetch, Host(answers))
    gathered = gather(fetch)
    assert gathered.header is not None
    assert (gathered.header.rev, [span.path.rkey for span in gathered.spans]) == (OLD, list("abcd"))


def test_it_goes_on_where_it_failed(tmp_path: Path) -> None:
    fetch = SingleRecords(DID, PATHS, tmp_path / "1.car")
    failure = RepoAnswer(Outcome.FAILED, FailureReason.TIMED_OUT)
    host = Host([repo().car(), failure, repo().car(), DENIED, repo().car()])
    assert go_on(fetch, host).reason is FailureReason.TIMED_OUT
    assert fetch.answered == 1
    assert go_on(fetch, host).outcome is Outcome.COMPLETE
    assert host.asked == list("abbcd")
    # Denied, and proven absent.
    assert [span.path.rkey for span in gather(fetch).spans] == ["a", "b"]


def test_what_has_become_of_the_account_ends_it(tmp_path: Path) -> None:
    fetch = SingleRecords(DID, PATHS, tmp_path / "1.car")
    host = Host([repo().car(), RepoAnswer(Outcome.DEACTIVATED, http_status=400)])
    assert go_on(fetch, host).outcome is Outcome.DEACTIVATED
    assert host.asked == list("ab")


def test_all_of_an_account_is_bounded(tmp_path: Path) -> None:
    size = len(repo().car())
    host = Host([repo().car() for _ in PATHS], bounds=DownloadBounds(2 * size, 60))
    answer = go_on(SingleRecords(DID, PATHS, tmp_path / "1.car"), host)
    assert (answer.reason, host.asked) == (FailureReason.TOO_LARGE, list("abc"))


def test_one_proof_that_does_not_hold_spoils_all(tmp_path: Path) -> None:
    broken = repo().car()[:-1] + b"\x00"
    fetch = SingleRecords(DID, PATHS, tmp_path / "1.car")
    go_on(fetch, Host([repo().car(), repo().car(), broken, repo().car()]))
    with pytest.raises(RepoRejectedError) as raised:
        gather(fetch)
    assert raised.value.fault is RepoFault.CORRUPT_BLOCK


def test_nothing_that_only_denials_tell_is_said_to_be_proven(tmp_path: Path) -> None:
    fetch = SingleRecords(DID, PATHS, tmp_path / "1.car")
    go_on(fetch, Host([DENIED] * 4))
    gathered = gather(fetch)
    assert (gathered.header, gathered.spans, len(gathered.not_taken)) == (None, [], 4)
    # A server error that bears the same name denies nothing.
    fetch = SingleRecords(DID, PATHS, tmp_path / "2.car")
    failure = RepoAnswer(Outcome.FAILED, FailureReason.SERVER_ERROR, server_error="RecordNotFound")
    assert go_on(fetch, Host([failure])).reason is FailureReason.SERVER_ERROR
