"""What changes on the network between two runs reaches the tables, and nothing good is lost on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import PLC_HOST, Role
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=21, accounts=60, hosts=3, records=40)
GET_REPO = "com.atproto.sync.getRepo"
LIKE = "app.bsky.feed.like"


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox(SETTINGS)
    network.edit.reset()
    network.faults.clear()
    yield network
    network.edit.reset()
    network.faults.clear()


def study_of(folder: Path, **parts: Any) -> Study:
    return sandbox_study(
        folder,
        settings=SETTINGS,
        **{
            "time_range": {"start_date": "2024-09-27", "end_date": "2024-12-02"},
            "network": {"directory_max_age_hours": 0},
            **parts,
        },
    )


def collect(study: Study, mode: FetchMode = FetchMode.UNSETTLED) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


def normal_accounts(network: SandboxNetwork) -> Iterator[str]:
    return iter(
        [
            a.did
            for a in network.truth.accounts()
            if a.role is Role.NORMAL and not a.did.startswith("did:web:")
        ]
    )


def versions(study: Study) -> set[tuple[str, str]]:
    """Every record of the tables, by its URI and the CID of its content."""
    paths = [*study.root.glob("tables/*/*/*.parquet"), *study.root.glob("undated/*/*.parquet")]
    return {pair for path in paths for pair in pl.read_parquet(path).select("uri", "cid").iter_rows()}


def true_versions(network: SandboxNetwork, accounts: pl.DataFrame) -> set[tuple[str, str]]:
    shown = set(accounts.filter("shown")["did"])
    return {
        (record.uri, record.cid)
        for did in shown
        for record in network.truth.records(did)
        if record.table is not None
    }


def row(accounts: pl.DataFrame, did: str) -> dict[str, Any]:
    return accounts.filter(pl.col("did") == did).row(0, named=True)


def test_new_changed_and_deleted_records_reach_the_tables(network: SandboxNetwork, tmp_path: Path) -> None:
    study = study_of(tmp_path)
    collect(study)
    dids = normal_accounts(network)
    author, editor, deleter = next(dids), next(dids), next(dids)
    network.edit.create(author, LIKE, {"subject": {"uri": f"at://{editor}/app.bsky.feed.post/x", "cid": "x"}})
    changed = next(record for record in network.truth.records(editor) if record.table == "likes")
    network.edit.update(
        editor, changed.collection, changed.rkey, {"subject": (changed.value or {})["subject"], "extra": 1}
    )
    gone = next(record for record in network.truth.records(deleter) if record.table == "likes")
    network.edit.delete(deleter, gone.collection, gone.rkey)

    network.requests.clear()
    accounts = collect(study, FetchMode.REFRESH)
    complete = {truth.did for truth in network.truth.accounts() if truth.is_complete}
    fetched = {request.did for request in network.requests.all(path=GET_REPO)}
    assert fetched & complete == {author, editor, deleter}
    assert versions(study) == true_versions(network, accounts)
    assert gone.uri not in {uri for uri, _ in versions(study)}
    assert unreconciled(accounts).is_empty()


def test_accounts_that_change_state_are_noticed_and_hidden_but_not_lost(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    study = study_of(tmp_path)
    before = collect(study)
    dids = normal_accounts(network)
    deactivated, taken_down, deleted, tombstoned = (next(dids) for _ in range(4))
    network.edit.deactivate(deactivated)
    network.edit.take_down(taken_down)
    network.edit.delete_account(deleted)
    network.edit.delete_account(tombstoned)
    network.edit.tombstone(tombstoned)

    accounts = collect(study, FetchMode.REFRESH)
    states = {did: row(accounts, did)["state"] for did in (deactivated, taken_down, deleted, tombstoned)}
    assert states == {
        deactivated: "deactivated",
        taken_down: "takendown",
        deleted: "not_found",
        tombstoned: "tombstoned",
    }
    assert versions(study) == true_versions(network, accounts)
    assert unreconciled(accounts).is_empty()
    # What was collected stays in storage: a study that wants it, sees it.
    kept = collect(study_of(tmp_path, inactive_accounts="keep"))
    for did in states:
        assert row(kept, did)["records_kept"] == row(before, did)["records_kept"] > 0

    network.edit.reactivate(deactivated)
    again = collect(study_of(tmp_path), FetchMode.REFRESH)
    assert row(again, deactivated)["state"] == "complete"
    assert row(again, deactivated)["records_kept"] == row(before, deactivated)["records_kept"]


def test_an_account_that_moved_is_followed_and_stands_once(network: SandboxNetwork, tmp_path: Path) -> None:
    study = study_of(tmp_path)
    before = collect(study)
    mover = next(normal_accounts(network))
    home = row(before, mover)["pds_host"]
    target = next(host for host in network.hosts if host != home)
    network.edit.migrate(mover, target)

    accounts = collect(study, FetchMode.REFRESH)
    moved = row(accounts, mover)
    assert (moved["pds_host"], moved["snapshot_host"], moved["state"]) == (target, target, "complete")
    # Not written since: signed by the key that it had before.
    assert moved["signed_by"] == "previous"
    assert versions(study) == true_versions(network, accounts)
    assert unreconciled(accounts).is_empty()


def test_a_move_after_the_directory_was_resolved_is_found_by_the_old_host_s_answer(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    study = study_of(tmp_path, network={"directory_max_age_hours": 24})
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    mover = next(normal_accounts(network))
    home = network.truth.account(mover).pds
    target = next(host for host in network.hosts if home is None or host not in home)
    network.edit.migrate(mover, target)

    accounts = collect(study)
    assert (row(accounts, mover)["state"], row(accounts, mover)["pds_host"]) == ("complete", target)
    assert versions(study) == true_versions(network, accounts)


def test_no_server_is_believed_about_an_account_while_the_directory_cannot_say_where_it_lives(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    """The old host of one account calls it deactivated, since it has moved; the other one really is."""
    study = study_of(
        tmp_path,
        processing={"requests_per_second": 500, "max_retries": 1, "workers": 2},
        network={"directory_max_age_hours": 24},
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    dids = normal_accounts(network)
    mover, deactivated, gone = next(dids), next(dids), next(dids)
    home = network.truth.account(mover).pds
    target = next(host for host in network.hosts if home is None or host not in home)
    network.edit.migrate(mover, target)
    network.edit.deactivate(deactivated)
    network.edit.delete_account(gone)
    network.edit.tombstone(gone)
    network.faults.set_host(PLC_HOST, ServerError(500))

    network.requests.clear()
    accounts = collect(study)
    for did in (mover, deactivated, gone):
        assert (row(accounts, did)["state"], row(accounts, did)["reason"]) == ("failed", "directory_failed")
        assert "server_error" in row(accounts, did)["detail"]
        assert network.requests.count(path=GET_REPO, did=did) == 2

    network.faults.clear()
    accounts = collect(study, FetchMode.FAILED)
    assert [row(accounts, did)["state"] for did in (mover, deactivated)] == ["complete", "deactivated"]
    assert row(accounts, mover)["pds_host"] == target
    # What the directory says for good is an answer.
    assert row(accounts, gone)["state"] == "deleted"


def test_a_failed_refresh_replaces_no_good_data(network: SandboxNetwork, tmp_path: Path) -> None:
    study = study_of(tmp_path, processing={"requests_per_second": 500, "max_retries": 0, "workers": 2})
    collect(study)
    before = versions(study)
    author = next(normal_accounts(network))
    network.edit.create(author, LIKE, {"subject": {"uri": "at://did:plc:x/app.bsky.feed.post/x", "cid": "x"}})
    network.faults.set_account(author, ServerError(500))
    accounts = collect(study, FetchMode.REFRESH)
    assert (row(accounts, author)["state"], row(accounts, author)["reason"]) == ("failed", "server_error")
    assert row(accounts, author)["shown"]
    assert versions(study) == before

    network.faults.clear()
    pipeline.fetch_repos(study, mode=FetchMode.FAILED)
    pipeline.convert_records(study)
    accounts = pipeline.build_tables(study)
    assert row(accounts, author)["state"] == "complete"
    assert versions(study) == true_versions(network, accounts)
