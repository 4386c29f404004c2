from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime

import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.accounts import Accounts
from backfill_dagster.sandbox.population import Population, Role
from backfill_dagster.sandbox.repo import Repos
from backfill_dagster.sandbox.truth import RecordTruth, Truth

POPULATION = Population(SandboxSettings())
TRUTH = Truth(Accounts(POPULATION), Repos(POPULATION))
START, END = datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 12, 2, tzinfo=UTC)


def records_of(*roles: Role) -> list[RecordTruth]:
    dids = [account.did for account in TRUTH.accounts() if account.role in roles]
    return [record for did in dids for record in TRUTH.records(did)]


@pytest.fixture(scope="module")
def ordinary() -> list[RecordTruth]:
    return records_of(Role.NORMAL, Role.DID_WEB, Role.MIGRATED, Role.PREVIOUS_KEY)


def test_the_demo_has_tens_of_thousands_of_records() -> None:
    assert 20_000 < sum(len(TRUTH.records(account.did)) for account in TRUTH.accounts()) < 60_000


def test_the_mix_is_that_of_the_network(ordinary: list[RecordTruth]) -> None:
    shares = Counter(record.table for record in ordinary)
    total = len(ordinary)
    assert shares["likes"] / total == pytest.approx(0.58, abs=0.02)
    assert (shares["posts"] + shares["replies"]) / total == pytest.approx(0.17, abs=0.02)
    assert shares["replies"] / (shares["posts"] + shares["replies"]) == pytest.approx(1 / 3, abs=0.04)
    assert shares["follows"] / total == pytest.approx(0.14, abs=0.02)
    assert shares["reposts"] / total == pytest.approx(0.08, abs=0.01)
    assert shares["blocks"] / total == pytest.approx(0.02, abs=0.01)
    assert {record.collection for record in ordinary if record.table is None} == {
        "app.bsky.actor.profile",
        "app.bsky.feed.threadgate",
        "app.bsky.graph.listitem",
    }


def test_three_quarters_of_the_dates_are_in_the_study_window(ordinary: list[RecordTruth]) -> None:
    dates = [record.created_at for record in ordinary if record.created_at is not None]
    assert len(dates) == len(ordinary)
    assert sum(START <= date <= END for date in dates) / len(dates) == pytest.approx(0.75, abs=0.02)
    assert min(dates) < datetime(2023, 6, 1, tzinfo=UTC)
    assert max(dates) > datetime(2025, 4, 1, tzinfo=UTC)


def test_dates_mean_what_is_written(ordinary: list[RecordTruth]) -> None:
    styles = Counter[str]()
    for record in ordinary:
        written = record.created_at_raw
        assert datetime.fromisoformat(written) == record.created_at
        styles[re.sub(r"\d", "9", written)] += 1
    assert len(styles) == 5


def test_keys_are_the_times_of_creation(ordinary: list[RecordTruth]) -> None:
    alphabet = "234567abcdefghijklmnopqrstuvwxyz"
    for record in ordinary:
        if record.rkey == "self":
            continue
        number = 0
        for character in record.rkey:
            number = number * 32 + alphabet.index(character)
        moment = (number >> 10) / 1e6
        assert record.created_at is not None
        assert 0 <= moment - record.created_at.timestamp() < 1.001


def test_most_references_lead_to_posts_that_exist(ordinary: list[RecordTruth]) -> None:
    posts = {
        record.uri: record.cid
        for account in TRUTH.accounts()
        for record in TRUTH.records(account.did)
        if record.table in ("posts", "replies")
    }
    likes = [record.value for record in ordinary if record.table == "likes"]
    subjects = [value["subject"] for value in likes if value is not None]
    known = [subject for subject in subjects if subject["uri"] in posts]
    assert len(known) / len(subjects) > 0.4
    assert all(posts[subject["uri"]] == subject["cid"] for subject in known)


def test_facets_point_at_what_they_name(ordinary: list[RecordTruth]) -> None:
    kinds = Counter[str]()
    for record in ordinary:
        for facet in (record.value or {}).get("facets", ()):
            assert record.value is not None
            index, feature = facet["index"], facet["features"][0]
            shown = record.value["text"].encode()[index["byteStart"] : index["byteEnd"]].decode()
            kind = feature["$type"].split("#")[1]
            kinds[kind] += 1
            assert shown[0] == {"mention": "@", "tag": "#"}.get(kind, shown[0])
            if kind == "tag":
                assert shown == "#" + feature["tag"]
            if kind == "link":
                assert feature["uri"].startswith("https://" + shown)
    assert min(kinds[kind] for kind in ("mention", "tag", "link")) > 50


def test_posts_have_all_that_posts_have(ordinary: list[RecordTruth]) -> None:
    posts = [record.value for record in ordinary if record.collection == "app.bsky.feed.post"]
    embeds = Counter(value["embed"]["$type"] for value in posts if value and "embed" in value)
    assert {name.removeprefix("app.bsky.embed.") for name in embeds} == {
        "images",
        "external",
        "record",
        "recordWithMedia",
        "video",
    }
    for field in ("langs", "tags", "labels", "reply", "facets"):
        assert sum(field in value for value in posts if value) > 50, field
    assert any("langs" not in value for value in posts if value)


def test_every_account_has_its_end() -> None:
    states = {account.role: account.state for account in TRUTH.accounts()}
    expected = {
        Role.DEACTIVATED: "deactivated",
        Role.TAKENDOWN: "takendown",
        Role.SUSPENDED: "suspended",
        Role.NOT_FOUND: "not_found",
        Role.TOMBSTONED: "tombstoned",
        Role.UNKNOWN_TO_PLC: "not_found",
        Role.DID_WEB_GONE: "not_found",
        Role.DOCUMENT_WITHOUT_PDS: "no_pds",
        Role.DOCUMENT_OF_ANOTHER: "bad_document",
    }
    assert states == {role: expected.get(role, "complete") for role in Role}
    signers = {account.role: account.signed_by for account in TRUTH.accounts() if account.is_complete}
    assert {role for role, signer in signers.items() if signer == "previous"} == {Role.PREVIOUS_KEY}


def test_defects_are_where_they_were_put() -> None:
    found = {
        role: Counter(record.defect.value for record in records_of(role) if record.defect is not None)
        for role in Role
    }
    assert {role: dict(defects) for role, defects in found.items() if defects} == {
        Role.INVALID_UTF8: {"undecodable": 1},
        Role.NOT_RECORDS: {"not_a_map": 4, "raw_codec": 1},
        Role.BAD_KEYS: {"bad_key": 5},
    }


def test_odd_dates_are_odd() -> None:
    odd = [
        record
        for record in records_of(Role.ODD_DATES)
        if (record.value or {}).get("text", "").startswith("dated")
    ]
    assert len(odd) == 28
    undated = [record.created_at_raw for record in odd if record.created_at is None]
    assert undated.count(None) == 1
    assert {type(raw).__name__ for raw in undated} == {"NoneType", "str", "int", "dict", "list"}
    nanoseconds = next(record for record in odd if str(record.created_at_raw).endswith("123456789Z"))
    assert nanoseconds.created_at == datetime(2024, 10, 5, 12, 0, 0, 123_456, tzinfo=UTC)
    # Python reads most of them as well; where it does, it agrees.
    agreed = 0
    for record in odd:
        try:
            read = datetime.fromisoformat(record.created_at_raw)
        except (TypeError, ValueError):
            continue
        assert record.created_at == (read if read.tzinfo else read.replace(tzinfo=UTC))
        agreed += 1
    assert agreed >= 18


def test_unknown_accounts_are_refused() -> None:
    with pytest.raises(KeyError):
        TRUTH.account("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
