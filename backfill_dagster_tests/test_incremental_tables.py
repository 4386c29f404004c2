"""Tables brought up to date after anything that changes a study equal those that are built from nothing."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline, purging, study_files
from backfill_dagster.accounting import build_accounts
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.tables import contents
from backfill_dagster_tests.studies import sandbox, sandbox_study, table_hashes

SETTINGS = SandboxSettings(seed=31, accounts=30, hosts=2, records=25)
TYPES = ["app.bsky.feed.post", "app.bsky.feed.like"]
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-11-30", "outside": "drop"}
DAYS = {**PERIOD, "end_date": "2024-10-08"}
LIKE = "app.bsky.feed.like"


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox(SETTINGS)
    network.edit.reset()
    network.faults.clear()
    yield network
    network.edit.reset()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a table have several parts."""
    monkeypatch.setattr(contents, "PART_BYTES", 6_000)


def study_of(folder: Path, **parts: Any) -> Study:
    return sandbox_study(
        folder,
        settings=SETTINGS,
        **{
            "time_range": PERIOD,
            "record_types": TYPES,
            "network": {"directory_max_age_hours": 0},
            "processing": {"requests_per_second": 500, "workers": 1, "batch_size": 5},
            **parts,
        },
    )


def collect(study: Study, mode: FetchMode = FetchMode.REFRESH) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


def assert_as_if_built_from_nothing(study: Study, folder: Path) -> None:
    """Hold a study's tables against a full build of the same storage, over them and without them."""
    assert not any(pipeline.stale_windows(study).values())
    assert not pipeline.is_undated_stale(study)
    for name, fresh in (("again", False), ("fresh", True)):
        copy = study.model_copy(update={"storage": study.storage.model_copy(update={"path": folder / name})})
        shutil.copytree(study.root, copy.root)
        for derived in ("tables", "undated", "built") if fresh else ():
            shutil.rmtree(copy.root / derived)
        pipeline.build_record_tables(copy, again=True)
        assert build_accounts(copy).unreconciled == 0
        assert table_hashes(copy) == table_hashes(study)
        shutil.rmtree(folder / name)


def normal_accounts(network: SandboxNetwork) -> Iterator[str]:
    return iter(
        [
            account.did
            for account in network.truth.accounts()
            if account.role is Role.NORMAL and not account.did.startswith("did:web:")
        ]
    )


def change_records(study: Study, network: SandboxNetwork) -> Study:
    dids = normal_accounts(network)
    author, editor, deleter = next(dids), next(dids), next(dids)
    network.edit.create(author, LIKE, {"subject": {"uri": f"at://{editor}/app.bsky.feed.post/x", "cid": "x"}})
    likes = [next(r for r in network.truth.records(did) if r.table == "likes") for did in (editor, deleter)]
    network.edit.update(
        editor, LIKE, likes[0].rkey, {"subject": (likes[0].value or {})["subject"], "extra": 1}
    )
    network.edit.delete(deleter, LIKE, likes[1].rkey)
    collect(study)
    return study


def move_and_deactivate(study: Study, network: SandboxNetwork) -> Study:
    dids = normal_accounts(network)
    mover, leaver = next(dids), next(dids)
    home = network.truth.account(mover).pds
    network.edit.migrate(mover, next(host for host in network.hosts if home is None or host not in home))
    network.edit.deactivate(leaver)
    collect(study)
    return study


def purge_some(study: Study, network: SandboxNetwork) -> Study:
    dids = normal_accounts(network)
    purging.purge(study, dids=[next(dids)], uris=[network.truth.records(next(dids))[0].uri])
    return study


def change_settings(**parts: Any) -> Callable[[Study, SandboxNetwork], Study]:
    def change(study: Study, network: SandboxNetwork) -> Study:
        changed = study_of(study.root.parent.parent, **parts)
        collect(changed, FetchMode.UNSETTLED)
        return changed

    return change


FEWER = {"source": {"type": "inline", "dids": list(sandbox(SETTINGS).dids)[::2]}}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "changes",
    [
        [change_records, move_and_deactivate, change_settings(inactive_accounts="keep")],
        [purge_some, change_settings(time_range={**DAYS, "partitions": "daily"})],
        [change_settings(time_range={**PERIOD, "partitions": "weekly"}), change_settings(**FEWER)],
        [change_settings(record_types=[LIKE])],
    ],
)
def test_after_each_of_several_changes(
    network: SandboxNetwork, tmp_path: Path, changes: list[Callable[[Study, SandboxNetwork], Study]]
) -> None:
    study = study_of(tmp_path)
    collect(study)
    assert len(list(study.root.glob("tables/likes/month=2024-10/*"))) > 1
    for change in changes:
        before = table_hashes(study)
        study = change(study, network)
        assert table_hashes(study) != before
        assert_as_if_built_from_nothing(study, tmp_path)


def test_only_the_windows_of_changed_records_are_built(network: SandboxNetwork, tmp_path: Path) -> None:
    study = study_of(tmp_path)
    collect(study)
    assert pipeline.stale_windows(study) == {table: [] for table in study_files.study_tables(study)}
    # An account whose only record will be a like of October.
    author = next(normal_accounts(network))
    for record in network.truth.records(author):
        network.edit.delete(author, record.collection, record.rkey)
    collect(study)
    subject = {"uri": f"at://{author}/app.bsky.feed.post/x", "cid": "x"}
    network.edit.create(author, LIKE, {"subject": subject}, created=datetime(2024, 10, 15, tzinfo=UTC))
    pipeline.fetch_repos(study, mode=FetchMode.REFRESH)
    assert pipeline.stale_windows(study) == {table: [] for table in study_files.study_tables(study)}
    pipeline.convert_records(study)
    stale = {table: windows for table, windows in pipeline.stale_windows(study).items() if windows}
    assert stale == {"likes": ["2024-10"]}
    assert not pipeline.is_undated_stale(study)
    before = table_hashes(study)
    reports = {table: pipeline.build_table(study, table) for table in study_files.study_tables(study)}
    rebuilt = [(t, report.partition) for t, told in reports.items() for report in told if report.rebuilt]
    assert rebuilt == [("likes", "2024-10")]
    changed = {file for file, digest in table_hashes(study).items() if before.get(file) != digest}
    assert len(changed) == 1
    for table, told in reports.items():
        for report in told:
            files = list((study.root / "tables" / table / f"month={report.partition}").glob("*"))
            assert (report.parts, report.bytes) == (len(files), sum(file.stat().st_size for file in files))
            assert report.rows == sum(pl.read_parquet(file, glob=False).height for file in files)


def test_the_index_tells_what_the_tables_hold_and_is_made_again_if_it_is_lost(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    study = study_of(tmp_path)
    collect(study)
    index = pl.read_parquet(study.root / "records/*/windows/*.parquet", hive_partitioning=False)
    shown = index.join(study_files.shown_snapshots(study), on=["did", "pack"], how="semi")
    for table in study_files.study_tables(study):
        for window, told in shown.filter(table=table).group_by("window"):
            folder = f"undated/{table}" if window == ("undated",) else f"tables/{table}/month={window[0]}"
            rows = pl.read_parquet(study.root / folder / "*.parquet", hive_partitioning=False)
            assert dict(told.group_by("did").agg(pl.col("rows").sum()).iter_rows()) == dict(
                rows.group_by("did").len().iter_rows()
            )
    before, paths = table_hashes(study), sorted(study.root.glob("records/*/windows/*.parquet"))
    contents = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    assert pipeline.convert_records(study) == 2
    assert [path.read_bytes() for path in paths] == contents
    pipeline.build_tables(study)
    assert table_hashes(study) == before
