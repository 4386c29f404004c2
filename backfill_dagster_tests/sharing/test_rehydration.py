"""A study that is rebuilt from shared ids: the tables of the first one, less what was deleted or edited since."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from backfill_dagster import purging
from backfill_dagster.config.study import Study
from backfill_dagster.filtering import stored_lists
from backfill_dagster.report.numbers import read_numbers
from backfill_dagster.report.overview import overview_tables
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sharing import rehydration
from backfill_dagster.sharing.rehydration import (
    REHYDRATION_KEY,
    REHYDRATION_SCHEMA,
    Rehydration,
    stored_rehydration,
)
from backfill_dagster.tables.accounts import unaccounted, unreconciled
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.sharing.studies import (
    LIKE,
    POST,
    TABLES,
    collect,
    of_the_records,
    read_tables,
    study_of,
)

EDITED_AT = datetime(2024, 10, 20, tzinfo=UTC)
GET_REPO = "/xrpc/com.atproto.sync.getRepo"
GET_RECORD = "/xrpc/com.atproto.sync.getRecord"


@dataclass(frozen=True)
class Changes:
    """What has happened on the network since the ids were shared: records by their URI, accounts by their DID."""

    deleted: tuple[str, ...]
    edited: tuple[str, ...]
    gone: dict[str, str]
    unreachable: str


@pytest.fixture(scope="module")
def before(shared: Study) -> dict[str, pl.DataFrame]:
    return read_tables(shared)


@pytest.fixture(scope="module")
def changes(servers: SandboxNetwork, shared: Study, before: dict[str, pl.DataFrame]) -> Iterator[Changes]:
    """Delete records of several types, edit two, end three accounts in three ways, and silence the host of none."""
    rows = pl.concat([frame.select("did", "collection", "rkey", "uri") for frame in before.values()])
    busy = rows.group_by("did").len().sort("len", "did", descending=True)["did"].to_list()
    of_plc = [did for did in busy if did.startswith("did:plc:")]
    gone = {of_plc[0]: "not_found", of_plc[1]: "deactivated", of_plc[2]: "tombstoned"}
    unreachable = of_plc[3]
    left = rows.filter(~pl.col("did").is_in([*gone, unreachable]))
    deleted = [left.filter(collection=kind).row(1, named=True) for kind in (POST, LIKE)]
    edited = [left.filter(collection=kind).row(3, named=True) for kind in (POST, LIKE)]
    for row in deleted:
        servers.edit.delete(row["did"], row["collection"], row["rkey"])
    for row in edited:
        fields = {"text": "Not what it was."} if row["collection"] == POST else {"subject": "at://nonsense"}
        servers.edit.update(row["did"], row["collection"], row["rkey"], fields, created=EDITED_AT)
    ends = {
        "not_found": servers.edit.delete_account,
        "deactivated": servers.edit.deactivate,
        "tombstoned": servers.edit.tombstone,
    }
    for did, state in gone.items():
        ends[state](did)
    servers.faults.set_account(unreachable, ServerError(), paths=[GET_REPO, GET_RECORD])
    yield Changes(
        tuple(row["uri"] for row in deleted), tuple(row["uri"] for row in edited), gone, unreachable
    )
    servers.faults.clear()


def rebuilt_study(servers: SandboxNetwork, shared: Study, folder: Path, fetch: str, **parts: Any) -> Study:
    source = {"type": "shared", "path": str(shared.root / "shared/ids"), **parts.pop("source", {})}
    return study_of(servers, folder, "rebuilt", source=source, fetch=fetch, **parts)


def outcomes(study: Study) -> pl.DataFrame:
    return pl.read_parquet(study.root / REHYDRATION_KEY)


def told(study: Study) -> Rehydration:
    found = stored_rehydration(study)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(
    servers: SandboxNetwork, shared: Study, changes: Changes, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Rebuilt from whole repositories."""
    study = rebuilt_study(servers, shared, tmp_path_factory.mktemp("whole"), "repos")
    assert unreconciled(collect(study)).is_empty()
    return study


@pytest.fixture(scope="module")
def one_by_one(
    servers: SandboxNetwork, shared: Study, changes: Changes, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Rebuilt from single records with their proofs."""
    study = rebuilt_study(servers, shared, tmp_path_factory.mktemp("one_by_one"), "records")
    assert unreconciled(collect(study)).is_empty()
    return study


@pytest.fixture(params=["whole", "one_by_one"])
def rebuilt(request: pytest.FixtureRequest) -> Study:
    study = request.getfixturevalue(request.param)
    assert isinstance(study, Study)
    return study


def test_the_tables_are_those_that_were_shared_less_what_is_gone(
    rebuilt: Study, before: dict[str, pl.DataFrame], changes: Changes
) -> None:
    gone = [*changes.deleted, *changes.edited, *changes.gone, changes.unreachable]
    expected = of_the_records(before, without=gone)
    assert all(expected.values())
    assert of_the_records(read_tables(rebuilt)) == expected


def test_every_shared_record_has_its_outcome(
    rebuilt: Study, before: dict[str, pl.DataFrame], changes: Changes
) -> None:
    rows, found = outcomes(rebuilt), told(rebuilt)
    assert rows.schema == REHYDRATION_SCHEMA
    shared = pl.concat(
        [frame.select("did", "uri", "cid", table=pl.lit(name)) for name, frame in before.items()]
    )
    assert rows.select(shared.columns).sort("uri").equals(shared.sort("uri"))
    of = {row["uri"]: row for row in rows.iter_rows(named=True)}
    for uri in changes.deleted:
        assert (of[uri]["outcome"], of[uri]["reason"]) == ("deleted", "absent")
    for uri in changes.edited:
        assert of[uri]["outcome"] == "edited"
        assert of[uri]["cid_now"] not in (None, of[uri]["cid"])
        assert not of[uri]["kept"]
    for row in rows.filter(~pl.col("uri").is_in([*changes.deleted, *changes.edited])).iter_rows(named=True):
        if row["did"] in changes.gone:
            assert (row["outcome"], row["reason"]) == ("account_gone", changes.gone[row["did"]])
        elif row["did"] == changes.unreachable:
            assert (row["outcome"], row["reason"]) == ("unreachable", "server_error")
        else:
            assert (row["outcome"], row["reason"], row["kept"]) == ("found", None, True)
    assert found.problems == ()
    assert found.shared == shared.height == sum(found.by_outcome.values())
    assert found.by_outcome == dict(Counter(rows["outcome"]))
    said = {table.name: table.rows for table in overview_tables(read_numbers(rebuilt))}[
        "overview-rehydration"
    ]
    assert said[-1][:2] == ("shared", shared.height)
    assert [number for _, number, _ in said[:-1]] == list(found.by_outcome.values())


def test_small_lots_give_the_same_outcomes(whole: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = outcomes(whole).sort("uri")
    monkeypatch.setattr(rehydration, "_ACCOUNTS_AT_ONCE", 2)
    monkeypatch.setattr(rehydration, "_ENTRIES_AT_ONCE", 5)
    found = rehydration.build_rehydration(whole)
    assert found is not None
    assert found.problems == ()
    assert outcomes(whole).sort("uri").equals(before)
    assert pq.read_metadata(whole.root / REHYDRATION_KEY).num_row_groups > 2


def test_what_comes_back_is_found_and_what_is_kept_edited_is_marked(
    servers: SandboxNetwork, shared: Study, changes: Changes, before: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    excluded = next(
        did for did in before["follows"]["did"] if did not in (*changes.gone, changes.unreachable)
    )
    study = rebuilt_study(
        servers,
        shared,
        tmp_path,
        "repos",
        source={"edited": "keep"},
        exclude={"type": "inline", "dids": [excluded]},
    )
    collect(study)
    rows = outcomes(study)
    edited = rows.filter(outcome="edited")
    assert set(edited["uri"]) == {uri for uri in changes.edited if uri.split("/")[2] != excluded}
    assert edited["kept"].all()
    kept = pl.concat([frame.select("uri", "cid") for frame in read_tables(study).values()])
    assert edited.join(kept, left_on=["uri", "cid_now"], right_on=["uri", "cid"]).height == edited.height
    left_out = rows.filter(outcome="left_out")
    assert set(left_out["did"]) == {excluded}
    assert set(left_out["reason"]) == {"account_left_source"}
    assert told(study).problems == ()

    [deactivated] = [did for did, state in changes.gone.items() if state == "deactivated"]
    servers.edit.reactivate(deactivated)
    servers.faults.clear()
    try:
        collect(study, FetchMode.REFRESH)
    finally:
        servers.edit.deactivate(deactivated)
        servers.faults.set_account(changes.unreachable, ServerError(), paths=[GET_REPO, GET_RECORD])
    again = outcomes(study)
    back = again.filter(pl.col("did").is_in([deactivated, changes.unreachable]))
    assert set(back["outcome"]) == {"found"}


def test_a_purge_reaches_what_was_rebuilt(whole: Study) -> None:
    rows = outcomes(whole)
    kept = rows.filter("kept")
    did, uri = kept["did"][0], kept.filter(pl.col("did") != kept["did"][0])["uri"][0]
    of_them = rows.filter((pl.col("did") == did) | (pl.col("uri") == uri)).height
    before = told(whole)
    report = purging.purge(whole, dids=[did], uris=[uri])
    assert report.removed["rehydration"] == of_them
    assert files_with(whole.root, did) == files_with(whole.root, uri.rpartition("/")[2]) == []
    after = told(whole)
    assert (after.shared, after.purged, after.problems) == (before.shared, of_them, ())
    assert sum(after.by_outcome.values()) + after.purged == after.shared
    assert unaccounted(
        pl.read_parquet(whole.root / "accounts.parquet"),
        pl.DataFrame({"did": []}, schema={"did": pl.String}),
    ).is_empty()
    assert sum(listed.kept for listed in stored_lists(whole)) == outcomes(whole).height
    assert {*TABLES} >= set(outcomes(whole)["table"])
