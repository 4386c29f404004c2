"""The assets of the tables: which partitions a run builds, and which it reports."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.definitions import build_defs
from backfill_dagster.orchestration.partitions import time_partitions
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.studies import sandbox_study, table_hashes

SETTINGS = SandboxSettings(seed=31, accounts=30, hosts=2, records=25)
WEEKS = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop", "partitions": "weekly"}
KEYS = ["2024-09-30", "2024-10-07", "2024-10-14", "2024-10-21", "2024-10-28"]
LIKE = "app.bsky.feed.like"
ROWS = ("dagster/partition_row_count", "dagster/row_count", "files")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = sandbox_study(
        tmp_path_factory.mktemp("weekly"), settings=SETTINGS, time_range=WEEKS, record_types=[LIKE]
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    return study


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with local_instance(tmp_path) as instance:
        yield instance


def build(study: Study, instance: dg.DagsterInstance, **settings: bool) -> dict[str, dict[str, int]]:
    """Build all windows of the likes by the asset; return what the events say of each."""
    result = (
        build_defs(study.root.parent.parent)
        .get_repository_def()
        .get_job("study_stage_tables")
        .execute_in_process(
            instance=instance,
            run_config={"ops": {"study__likes": {"config": settings}}},
            tags={
                "dagster/asset_partition_range_start": KEYS[0],
                "dagster/asset_partition_range_end": KEYS[-1],
            },
        )
    )
    told = [
        event.step_materialization_data.materialization for event in result.get_asset_materialization_events()
    ]
    return {
        str(event.partition): {name: event.metadata[name].value for name in ROWS}  # type: ignore[misc]
        for event in told
    }


def test_a_run_reports_all_windows_and_with_only_stale_those_that_it_built(
    study: Study, instance: dg.DagsterInstance
) -> None:
    assert time_partitions(study.time_range).get_partition_keys() == KEYS
    assert pipeline.stale_windows(study) == {"likes": KEYS}
    first = build(study, instance, only_stale=True)
    assert list(first) == KEYS
    rows = sum(told["dagster/partition_row_count"] for told in first.values())
    assert rows > 20
    assert {told["dagster/row_count"] for told in first.values()} == {rows}
    before = table_hashes(study)

    assert build(study, instance, only_stale=True) == {}
    assert build(study, instance) == first
    changed = next(study.root.glob(f"tables/likes/week={KEYS[2]}/*.parquet"))
    changed.write_bytes(b"")
    assert pipeline.stale_windows(study) == {"likes": [KEYS[2]]}
    assert build(study, instance, only_stale=True) == {KEYS[2]: first[KEYS[2]]}
    assert table_hashes(study) == before


def test_again_builds_what_is_up_to_date_too(study: Study, instance: dg.DagsterInstance) -> None:
    told = build(study, instance)
    files = sorted(study.root.glob("tables/likes/*/*.parquet"))
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    assert build(study, instance) == told
    assert [file.stat().st_mtime_ns for file in files] == [time for time, _ in before]
    assert build(study, instance, again=True) == told
    assert sorted(study.root.glob("tables/likes/*/*.parquet")) == files
    assert [file.read_bytes() for file in files] == [content for _, content in before]
    assert all(file.stat().st_mtime_ns > time for file, (time, _) in zip(files, before, strict=True))
