"""A study that is collected four times, between which its accounts change: what is told of it, against the truth."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline, purging
from backfill_dagster.attrition.build import build_attrition
from backfill_dagster.attrition.steps import Step, Unit, totals
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.survivorship.build import build_account_history, build_record_changes
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=21, accounts=37, hosts=3, records=16)
LIKE = "app.bsky.feed.like"
WRITTEN = datetime(2024, 10, 20, 12, tzinfo=UTC)
Version = tuple[str, str, str, str]
FILES = ["record_changes/*.parquet", "account_history.parquet"]


@dataclass
class Round:
    """One collection: between which times, and what was true of each account then."""

    begun: datetime
    ended: datetime
    records: dict[str, set[Version]]
    states: dict[str, tuple[str, str | None, str | None]]


@dataclass
class Followed:
    study: Study
    rounds: list[Round] = field(default_factory=list)
    people: dict[str, str] = field(default_factory=dict)
    bytes_before: dict[str, bytes] = field(default_factory=dict)
    bytes_after: dict[str, bytes] = field(default_factory=dict)


def made(study: Study) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for each in FILES for path in sorted(study.root.glob(each))}


def truth_of(network: SandboxNetwork) -> tuple[dict[str, set[Version]], dict[str, Any]]:
    records = {
        did: {(r.did, r.collection, r.rkey, r.cid) for r in network.truth.records(did)}
        for did in network.dids
    }
    states = {}
    for account in network.truth.accounts():
        if account.directory_state == "resolved":
            state = str(account.outcome)
        else:
            state = "tombstoned" if account.directory_state == "tombstoned" else "unresolved"
        host = None if account.pds is None else account.pds.removeprefix("http://")
        states[account.did] = (state, host, account.handle)
    return records, states


def collect(followed: Followed, network: SandboxNetwork, mode: FetchMode) -> None:
    begun, study = datetime.now(UTC), followed.study
    for stage in (pipeline.collect_source, pipeline.resolve_accounts):
        stage(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    followed.rounds.append(Round(begun, datetime.now(UTC), *truth_of(network)))


def first_edits(network: SandboxNetwork, people: dict[str, str]) -> None:
    edit = network.edit
    edit.create(
        people["author"], LIKE, {"subject": {"uri": "at://did:plc:x/app.bsky.feed.post/x", "cid": "x"}}
    )
    [changed, *_] = [r for r in network.truth.records(people["editor"]) if r.table == "likes"]
    edit.update(
        people["editor"], LIKE, changed.rkey, {"subject": (changed.value or {})["subject"], "extra": 1}
    )
    for record in network.truth.records(people["deleter"])[:3]:
        edit.delete(people["deleter"], record.collection, record.rkey)
    edit.delete(people["returner"], LIKE, "again")
    for record in network.truth.records(people["failing"])[:2]:
        edit.delete(people["failing"], record.collection, record.rkey)
    # It cannot be seen: its server does not answer.
    network.faults.set_account(people["failing"], ServerError(500))
    edit.deactivate(people["sleeper"])
    edit.change_handle(people["renamed"], "another.sandbox.test")
    home = network.truth.account(people["mover"]).pds or ""
    edit.migrate(people["mover"], next(host for host in network.hosts if host not in home))
    edit.delete(people["mover"], *key_of(network, people["mover"]))
    edit.tombstone(people["ended"])


def second_edits(network: SandboxNetwork, people: dict[str, str]) -> None:
    network.faults.clear()
    network.edit.reactivate(people["sleeper"])
    network.edit.delete(people["sleeper"], *key_of(network, people["sleeper"]))
    write_again(network, people["returner"])
    network.edit.delete(people["deleter"], *key_of(network, people["deleter"]))
    [created] = [r for r in network.truth.records(people["author"]) if r.rkey not in people["known"].split()]
    network.edit.delete(people["author"], created.collection, created.rkey)


def key_of(network: SandboxNetwork, did: str) -> tuple[str, str]:
    record = next(r for r in network.truth.records(did) if r.table == "likes")
    return record.collection, record.rkey


def write_again(network: SandboxNetwork, did: str) -> None:
    network.edit.create(did, LIKE, {"subject": {"uri": "at://x", "cid": "x"}}, rkey="again", created=WRITTEN)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    network = sandbox(SETTINGS)
    network.edit.reset()
    network.faults.clear()
    study = sandbox_study(
        tmp_path_factory.mktemp("followed"),
        settings=SETTINGS,
        record_types=["app.bsky.feed.post", LIKE],
        time_range={"start_date": "2024-10-01", "end_date": "2024-11-30", "outside": "drop"},
        network={"directory_max_age_hours": 0},
        processing={"requests_per_second": 500, "workers": 1, "batch_size": 5, "max_retries": 0},
    )
    normal = [
        a.did for a in network.truth.accounts() if a.role is Role.NORMAL and a.did.startswith("did:plc:")
    ]
    names = ["author", "editor", "deleter", "returner", "failing", "sleeper", "renamed", "mover", "ended"]
    people = dict(zip(names, normal, strict=False))
    assert len(people) == len(names)
    people["known"] = " ".join(record.rkey for record in network.truth.records(people["author"]))
    write_again(network, people["returner"])
    whole = Followed(study, people=people)
    collect(whole, network, FetchMode.UNSETTLED)
    first_edits(network, people)
    collect(whole, network, FetchMode.REFRESH)
    second_edits(network, people)
    collect(whole, network, FetchMode.REFRESH)
    whole.bytes_before = made(study)
    collect(whole, network, FetchMode.REFRESH)
    whole.bytes_after = made(study)
    yield whole
    network.edit.reset()
    network.faults.clear()


@pytest.fixture(scope="module")
def changes(followed: Followed) -> pl.DataFrame:
    return pl.read_parquet(followed.study.root / "record_changes/*.parquet")


@pytest.fixture(scope="module")
def history(followed: Followed) -> pl.DataFrame:
    return pl.read_parquet(followed.study.root / "account_history.parquet")


def looks(followed: Followed) -> dict[str, list[tuple[datetime, bool, set[Version]]]]:
    """When each account was found complete, by its packs' own rows: time, whether it was fetched, what it had then."""
    columns = ["did", "outcome", "fetched_at"]
    attempts = pl.concat(
        pl.read_parquet(path, columns=columns)
        for path in followed.study.root.glob("repos/*/????????????????????.parquet")
    )
    found: dict[str, list[tuple[datetime, bool, set[Version]]]] = {}
    for did, outcome, time in attempts.sort("fetched_at").iter_rows():
        if outcome in ("complete", "unchanged"):
            [then] = [each for each in followed.rounds if each.begun <= time <= each.ended]
            found.setdefault(did, []).append((time, outcome == "complete", then.records[did]))
    return found


def expected_changes(followed: Followed) -> set[tuple[Any, ...]]:
    """Every version that does not stand in all of an account's looks, by going through them one by one."""
    rows: set[tuple[Any, ...]] = set()
    for seen in looks(followed).values():
        for version in set().union(*(held for _, _, held in seen)):
            if all(version in held for _, _, held in seen):
                continue
            number = 0
            while number < len(seen):
                if version not in seen[number][2]:
                    number += 1
                    continue
                end = number
                while end < len(seen) and version in seen[end][2]:
                    end += 1
                fetched = [time for time, is_fetched, _ in seen[number:end] if is_fetched]
                before = [time for time, is_fetched, _ in seen[:number] if is_fetched]
                gone = None if end == len(seen) else (seen[end - 1][0], seen[end][0])
                kept = end < len(seen) and any(version[:3] == other[:3] for other in seen[end][2])
                ended = "stands" if gone is None else "changed" if kept else "deleted"
                rows.add((*version, before[-1] if before else None, fetched[0], fetched[-1], ended, gone))
                number = end
    return rows


def test_every_change_of_a_record_and_no_other_is_told(followed: Followed, changes: pl.DataFrame) -> None:
    found = {
        (*row[:-1], None if row[-1] is None else (row[-1]["from"], row[-1]["to"]))
        for row in changes.iter_rows()
    }
    assert found == expected_changes(followed)
    assert len(found) == changes.height
    people = {did: name for name, did in followed.people.items()}
    told = Counter((people[did], ended) for did, ended in changes.select("did", "ended").iter_rows())
    assert told == {
        ("author", "deleted"): 1,
        ("editor", "changed"): 1,
        ("editor", "stands"): 1,
        ("deleter", "deleted"): 4,
        ("returner", "deleted"): 1,
        ("returner", "stands"): 1,
        # After its server answers again, all that it had lost meanwhile.
        ("failing", "deleted"): 2,
        ("sleeper", "deleted"): 1,
        ("mover", "deleted"): 1,
    }


def test_what_was_deleted_and_written_again_has_two_lives(followed: Followed, changes: pl.DataFrame) -> None:
    first, second = changes.filter(did=followed.people["returner"]).sort("first_seen").iter_rows(named=True)
    assert first["cid"] == second["cid"]
    assert first["gone_between"]["to"] == second["not_seen_at"]
    assert first["not_seen_at"] is None
    assert second["gone_between"] is None


def test_a_failed_refresh_says_nothing(
    followed: Followed, changes: pl.DataFrame, history: pl.DataFrame
) -> None:
    did = followed.people["failing"]
    [between] = {(row["from"], row["to"]) for row in changes.filter(did=did)["gone_between"]}
    assert between[0] <= followed.rounds[0].ended < followed.rounds[2].begun <= between[1]
    assert history.filter(did=did, aspect="state")["value"].to_list() == ["complete"]


def test_states_hosts_and_handles_over_time_equal_the_truth(
    followed: Followed, history: pl.DataFrame
) -> None:
    hidden = followed.people["failing"]
    for number, aspect in enumerate(("state", "host", "handle")):
        for did in followed.rounds[0].states:
            truths = [each.states[did][number] for each in followed.rounds]
            if aspect != "state":
                # What does not resolve has neither a host nor a handle that anybody knows.
                truths = [
                    truth for truth, each in zip(truths, followed.rounds, strict=True) if each.states[did][1]
                ]
            values = [value for place, value in enumerate(truths) if place == 0 or truths[place - 1] != value]
            own = history.filter(did=did, aspect=aspect)
            assert own["value"].to_list() == values, (aspect, did == hidden)
            assert own["valid_to"].to_list() == [*own["valid_from"].to_list()[1:], None][: own.height]
            for time, value in own.select("valid_from", "value").iter_rows():
                [then] = [each for each in followed.rounds if each.begun <= time <= each.ended]
                assert then.states[did][number] == value
    asleep = history.filter(did=followed.people["sleeper"], aspect="state")
    assert asleep["value"].to_list() == ["complete", "deactivated", "complete"]
    assert asleep["last_confirmed"].null_count() == 1


def test_another_refresh_without_changes_leaves_the_same_bytes(followed: Followed) -> None:
    assert len(followed.bytes_before) == 2
    assert followed.bytes_after == followed.bytes_before


def test_however_few_accounts_are_held_at_once_all_is_the_same(
    followed: Followed, changes: pl.DataFrame, history: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, root = followed.study, followed.study.root
    rates = pl.read_parquet(root / "deletion_rates.parquet")
    told, told_of_history = build_record_changes(study), build_account_history(study)
    own = {path: path.read_bytes() for path in root.glob("survivorship/**/*.parquet")}
    monkeypatch.setattr("backfill_dagster.repos.ledger_lots.ACCOUNTS_AT_ONCE", 2)
    for name, number in (("build._PACKS", 1), ("build._COMPARISONS", 2), ("record_changes._EVENTS", 3)):
        monkeypatch.setattr(f"backfill_dagster.survivorship.{name}_AT_ONCE", number)
    for again in (False, True):
        if again:
            for path in (*own, *map(Path, made(study)), root / "deletion_rates.parquet"):
                path.unlink()
        result, result_of_history = build_record_changes(study), build_account_history(study)
        assert {path: path.read_bytes() for path in root.glob("survivorship/**/*.parquet")} == own
        assert result.by_ending.equals(told.by_ending)
        assert replace(result, by_ending=told.by_ending) == told
        assert result_of_history.ended.equals(told_of_history.ended)
        assert replace(result_of_history, ended=told_of_history.ended) == told_of_history
        # What has been made is up to date all the same.
        assert again or made(study) == followed.bytes_after
    assert pl.read_parquet(root / "record_changes/*.parquet").equals(changes)
    assert pl.read_parquet(root / "account_history.parquet").equals(history)
    assert pl.read_parquet(root / "deletion_rates.parquet").equals(rates)
    assert told_of_history.rows == history.height
    assert told_of_history.ended["ended"].sum() == history["valid_to"].count()


def test_rates_count_what_was_watched(followed: Followed, changes: pl.DataFrame) -> None:
    rates = pl.read_parquet(followed.study.root / "deletion_rates.parquet")
    whole = rates.filter(watched="records", age="all ages")
    gone = changes.filter(ended="deleted").group_by("collection").len().sort("collection")
    found = whole.filter(pl.col("deleted") > 0).select("collection", "deleted").sort("collection")
    assert found.rows() == gone.rows()
    assert whole.filter(collection=LIKE)["changed"].to_list() == [1]
    # Record-days: each look's records until the next one; what went counts half of the time in which it went.
    days = 0.0
    for seen in looks(followed).values():
        for (time, _, held), (after, _, then) in pairwise(seen):
            span = (after - time).total_seconds() / 86_400
            keys, still = ({version[1:3] for version in side if version[1] == LIKE} for side in (held, then))
            days += span * len(keys & still) + span / 2 * len(keys - still)
    assert whole.filter(collection=LIKE)["days"].to_list() == [pytest.approx(days, abs=2e-6)]
    [accounts] = rates.filter(watched="accounts").iter_rows(named=True)
    assert accounts["deleted"] == 2


def test_attrition_equals_the_truth(followed: Followed) -> None:
    network, study = sandbox(SETTINGS), followed.study
    found = build_attrition(study)
    assert found.problems == ()
    steps = totals(found.table, Unit.ACCOUNTS)
    truth = network.truth.accounts()
    resolved = [account for account in truth if account.directory_state == "resolved"]
    complete = {account.did for account in truth if account.is_complete}
    ended = followed.people["ended"]
    assert steps[Step.VALID][:3] == (37, 0, 37)
    # What ended in the directory had been collected before.
    assert steps[Step.RESOLVED][2] == len(resolved) + 1
    assert steps[Step.COMPLETE][2] == len(complete) + 1
    assert steps[Step.ACTIVE] == (len(complete) + 1, 1, len(complete), {"tombstoned": 1})
    others = Counter(str(account.outcome) for account in resolved if not account.is_complete)
    assert steps[Step.COMPLETE][3] == dict(others)
    records = totals(found.table, Unit.RECORDS)
    stored = sum(len(followed.rounds[-1].records[did]) for did in complete)
    lost = len(followed.rounds[0].records[ended])
    assert records[Step.FOUND][2] == stored + lost
    tables = pl.concat(
        pl.read_parquet(path, columns=["uri"]) for path in study.root.glob("[tu]*/*/**/*.parquet")
    )
    assert records[Step.SHOWN][2] == tables.height
    assert not any(did in found.methods for did in network.dids)
    assert (study.root / "methods.md").read_text() == found.methods
    assert (study.root / "attrition.svg").read_text().startswith("<svg")
    assert not any(str(account.handle) in found.methods for account in truth)


def test_a_purge_reaches_what_was_seen_and_leaves_the_rest(
    followed: Followed, changes: pl.DataFrame, history: pl.DataFrame, tmp_path: Path
) -> None:
    study, people = followed.study, followed.people
    uri_of = changes.filter(did=people["editor"]).row(0)
    did, renamed = people["deleter"], people["renamed"]
    assert len(files_with(study.root / "survivorship", did)) >= 2
    report = purging.purge(study, dids=[did, renamed], uris=[f"at://{'/'.join(uri_of[:3])}"])
    assert report.removed["record_changes"] == 4 + 2
    assert report.removed["account_history"] == history.filter(pl.col("did").is_in([did, renamed])).height
    assert report.removed["directory_history"] == 3
    assert [files_with(study.root, each) for each in (did, renamed, "another.sandbox.test")] == [[], [], []]
    after = pl.read_parquet(study.root / "record_changes/*.parquet")
    purged = pl.col("did").is_in([did, renamed]) | (
        (pl.col("did") == uri_of[0]) & (pl.col("rkey") == uri_of[2])
    )
    assert after.equals(changes.filter(~purged))
    left = pl.read_parquet(study.root / "account_history.parquet")
    assert left.equals(history.filter(~pl.col("did").is_in([did, renamed])))
    made_again = build_record_changes(study)
    assert (made_again.unaccounted, made_again.misfits, made_again.repeated) == (0, 0, 0)
    assert build_account_history(study).misfits == 0
    assert build_attrition(study).problems == ()
