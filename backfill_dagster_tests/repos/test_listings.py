"""Listings of records, by a host that says whatever a test has it say."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from cbrrr import CID, encode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.repos import listed_records, listings
from backfill_dagster.repos.cid import cid_text
from backfill_dagster.repos.client import DownloadBounds, RepoAnswer
from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster.repos.listed_records import gather_listed
from backfill_dagster.repos.listing_pages import read_listed
from backfill_dagster.repos.listings import Listing
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Outcome
from backfill_dagster.repos.spans import Gathered
from backfill_dagster_tests.repos.forge import Link, cbor, cid_of

if TYPE_CHECKING:
    from backfill_dagster.repos.fetching import AskedHost

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
LIKE, POST = "app.bsky.feed.like", "app.bsky.feed.post"
BOUNDS = DownloadBounds(10**6, 60)
COMPLETE = RepoAnswer(Outcome.COMPLETE, http_status=200)


def entry(rkey: str, value: object, collection: str = LIKE, **fields: Any) -> dict[str, Any]:
    uri = f"at://{DID}/{collection}/{rkey}"
    return {"uri": uri, "cid": cid_text(cid_of(cbor(value))), "value": value, **fields}


def page(*entries: object, cursor: object = None) -> bytes:
    body: dict[str, Any] = {"records": list(entries)}
    return json.dumps(body if cursor is None else {**body, "cursor": cursor}).encode()


def arrive(to: Path, body: bytes) -> RepoAnswer:
    to.write_bytes(body)
    return COMPLETE


@dataclass
class Host:
    """Gives its answers one after the other; asked for the revision it has another one."""

    answers: list[bytes | RepoAnswer]
    latest: bytes | RepoAnswer = b'{"cid": "b", "rev": "3l4qxwyzabc2k"}'
    bounds: DownloadBounds = BOUNDS
    asked: list[dict[str, str]] = field(default_factory=list)

    async def download(
        self, method: str, params: Mapping[str, str], to: Path, bounds: DownloadBounds
    ) -> RepoAnswer:
        if method == "com.atproto.sync.getLatestCommit":
            answer = self.latest
        else:
            self.asked.append(dict(params))
            answer = self.answers.pop(0)
        if isinstance(answer, RepoAnswer):
            return answer
        return arrive(to, answer)


def go_on(listing: Listing, host: Host) -> RepoAnswer:
    return asyncio.run(listing.go_on(cast("AskedHost", host)))


def gather(listing: Listing) -> Gathered:
    return gather_listed(listing.file, listing.parts, DID, listing.file.with_suffix(".spool"))


def found(gathered: Gathered) -> dict[str, bytes]:
    content = gathered.file.read_bytes()
    return {
        f"{span.path.collection}/{span.path.rkey}": content[span.start : span.end] for span in gathered.spans
    }


def test_all_pages_of_all_collections_come_in_the_order_of_their_keys(tmp_path: Path) -> None:
    values: dict[str, object] = {"c": {"n": 3}, "b": {"n": 2}, "a": {"n": 1}}
    host = Host(
        [
            page(entry("c", values["c"]), entry("b", values["b"]), cursor="b"),
            page(entry("a", values["a"])),
            page(entry("z", {"p": 1}, POST), cursor="z"),
            page(),
        ]
    )
    listing = Listing(DID, [LIKE, POST], tmp_path / "1.car")
    assert go_on(listing, host).outcome is Outcome.COMPLETE
    usual = {"repo": DID, "limit": "100"}
    assert host.asked == [
        {**usual, "collection": LIKE},
        {**usual, "collection": LIKE, "cursor": "b"},
        {**usual, "collection": POST},
        {**usual, "collection": POST, "cursor": "z"},
    ]
    gathered = gather(listing)
    assert list(found(gathered).items()) == [
        *((f"{LIKE}/{key}", cbor(values[key])) for key in "abc"),
        (f"{POST}/z", cbor({"p": 1})),
    ]
    assert (gathered.not_taken, listing.repo_rev) == ([], "3l4qxwyzabc2k")


def test_a_failure_is_gone_on_from_where_it_was(tmp_path: Path) -> None:
    failure = RepoAnswer(Outcome.FAILED, FailureReason.SERVER_ERROR)
    host = Host([page(entry("b", {}), cursor="b"), failure, page(entry("a", {}))])
    listing = Listing(DID, [LIKE], tmp_path / "1.car")
    assert go_on(listing, host).reason is FailureReason.SERVER_ERROR
    assert listing.answered == 1
    assert go_on(listing, host).outcome is Outcome.COMPLETE
    assert list(found(gather(listing))) == [f"{LIKE}/a", f"{LIKE}/b"]
    assert [params.get("cursor") for params in host.asked] == [None, "b", "b"]


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (
            [page(entry("b", {}), cursor="b"), page(entry("b", {}), cursor="b")],
            FailureReason.UNEXPECTED_ANSWER,
        ),
        ([b"<html>"], FailureReason.UNEXPECTED_ANSWER),
        ([b"[]"], FailureReason.UNEXPECTED_ANSWER),
        ([b'{"records": {}}'], FailureReason.UNEXPECTED_ANSWER),
        ([page(cursor=7)], FailureReason.UNEXPECTED_ANSWER),
        ([page(cursor="c" * 5000)], FailureReason.UNEXPECTED_ANSWER),
        ([page(cursor=str(number)) for number in range(200)], FailureReason.UNEXPECTED_ANSWER),
        ([b""], FailureReason.EMPTY_BODY),
        ([page(entry("a", {"text": "x" * 2_000_000}))], FailureReason.TOO_LARGE),
    ],
)
def test_what_is_no_listing_fails_and_nothing_of_it_is_kept(
    pages: list[bytes | RepoAnswer], reason: FailureReason, tmp_path: Path
) -> None:
    listing = Listing(DID, [LIKE], tmp_path / "1.car")
    answer = go_on(listing, Host(pages))
    assert (answer.outcome, answer.reason) == (Outcome.FAILED, reason)
    assert (listing.answered, listing.file.read_bytes()) == (0, b"")
    # The next try begins anew.
    assert go_on(listing, Host([page(entry("a", {}))])).outcome is Outcome.COMPLETE
    assert list(found(gather(listing))) == [f"{LIKE}/a"]


def test_pages_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listings, "_MAX_PAGES", 5)
    pages: list[bytes | RepoAnswer] = [page(entry(f"{n}", {}), cursor=f"{n}") for n in range(20)]
    host = Host(pages)
    assert go_on(Listing(DID, [LIKE], tmp_path / "1.car"), host).reason is FailureReason.TOO_LARGE
    assert len(host.asked) == 6


def test_the_revision_is_asked_first_and_tells_what_has_become_of_the_account(tmp_path: Path) -> None:
    gone = RepoAnswer(Outcome.DEACTIVATED, http_status=400)
    host = Host([], latest=gone)
    assert go_on(Listing(DID, [LIKE], tmp_path / "1.car"), host).outcome is Outcome.DEACTIVATED
    assert host.asked == []
    for unknown in (
        b"<html>",
        b'{"rev": "yesterday"}',
        b'{"rev": 5}',
        RepoAnswer(Outcome.FAILED, FailureReason.UNEXPECTED_ANSWER),
    ):
        listing = Listing(DID, [LIKE], tmp_path / "2.car")
        assert go_on(listing, Host([page()], latest=unknown)).outcome is Outcome.COMPLETE
        assert listing.repo_rev is None


def test_what_cannot_be_taken_is_told_with_its_reason(tmp_path: Path) -> None:
    other = f"at://did:plc:{'a' * 24}/{LIKE}/x"
    entries: list[tuple[object, LeftOut, str | None]] = [
        (entry("a", {"n": 1}) | {"value": {"n": 2}}, LeftOut.CID_MISMATCH, "a"),
        (entry("b", {"n": 1}) | {"uri": other}, LeftOut.OTHER_URI, None),
        (entry("c", {"n": 1}, POST), LeftOut.OTHER_URI, None),
        (entry("d/e", {"n": 1}), LeftOut.OTHER_URI, None),
        (entry("", {"n": 1}), LeftOut.OTHER_URI, None),
        (entry("k" * 2000, {"n": 1}), LeftOut.OTHER_URI, None),
        (entry("f", {"n": 1}) | {"cid": 5}, LeftOut.MALFORMED, None),
        (entry("g", {"n": 1}) | {"uri": None}, LeftOut.MALFORMED, None),
        (entry("h", {"n": 1}) | {"cid": "b" * 1000}, LeftOut.MALFORMED, None),
        ("text", LeftOut.MALFORMED, None),
        (entry("i", {"n": 1}) | {"value": {"x": {"$link": 5}}}, LeftOut.MALFORMED, "i"),
        (entry("j", {"n": 1}) | {"value": {"x": {"$bytes": "!"}}}, LeftOut.MALFORMED, "j"),
        (entry("same", {"n": 3}), LeftOut.REPEATED, "same"),
    ]
    sound = entry("same", {"n": 1})
    listing = Listing(DID, [LIKE], tmp_path / "1.car")
    go_on(listing, Host([page(sound, sound, *(each for each, _, _ in entries))]))
    gathered = gather(listing)
    assert found(gathered) == {f"{LIKE}/same": cbor({"n": 1})}
    assert [(left.reason, left.rkey) for left in gathered.not_taken] == [
        (reason, rkey) for _, reason, rkey in entries
    ]


def test_more_than_is_accepted_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = Listing(DID, [LIKE], tmp_path / "1.car")
    go_on(listing, Host([page(*(entry(f"{n}", {}) for n in range(5)), "a", "b", "c")]))
    for limit in ("MAX_LISTED", "MAX_NOT_TAKEN"):
        with monkeypatch.context() as patch:
            patch.setattr(listed_records, limit, 2)
            with pytest.raises(RepoRejectedError, match="too_large"):
                gather(listing)


# Values as a repository holds them, with the JSON that stands for them.
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=40),
    st.binary(min_size=32, max_size=32).map(lambda digest: CID(b"\x01\x71\x12\x20" + digest)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    if isinstance(value, CID):
        return {"$link": value.encode()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return value


@given(
    value=st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in ("$link", "$bytes")), VALUES, max_size=4
    )
)
def test_the_bytes_of_a_record_are_made_again_from_its_json(value: dict[str, Any]) -> None:
    block = encode_dag_cbor(value)
    listed = read_listed(
        {"uri": f"at://{DID}/{LIKE}/a", "cid": cid_text(cid_of(block)), "value": as_json(value)}, DID, LIKE
    )
    assert (listed.block, listed.reason) == (block, None)


def test_links_and_bytes_are_told_from_text() -> None:
    value = {"a": Link(cid_of(b"x")), "b": b"\x01\x02", "c": 0.5}
    stated = {"a": {"$link": cid_text(cid_of(b"x"))}, "b": {"$bytes": "AQI="}, "c": 0.5}
    block = cbor({name: item for name, item in value.items() if name != "c"})
    without = {name: item for name, item in stated.items() if name != "c"}
    assert (
        read_listed(
            {"uri": f"at://{DID}/{LIKE}/a", "cid": cid_text(cid_of(block)), "value": without}, DID, LIKE
        ).block
        == block
    )
    listed = read_listed({"uri": f"at://{DID}/{LIKE}/a", "cid": "b", "value": stated}, DID, LIKE)
    assert listed.reason is LeftOut.CID_MISMATCH
