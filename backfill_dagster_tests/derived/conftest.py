"""One study for all tests of what is derived: a sandbox's, collected whole."""

import pytest

from backfill_dagster import derivation, pipeline
from backfill_dagster.config.study import Study
from backfill_dagster_tests.derived.plain import FEEDS_CSV, write_feeds
from backfill_dagster_tests.studies import sandbox_study


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("derived")
    feeds = {"type": "csv", "path": str(folder / FEEDS_CSV)}
    study = sandbox_study(
        folder,
        discovery={},
        derived={
            "posts_used_in_feeds": {"feeds": feeds, "time_column": "shown_at", "look_back_days": 3},
            "study_user_activity": True,
            "threads": True,
            "engagement": True,
        },
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_record_tables(study)
    write_feeds(study, folder / FEEDS_CSV)
    derivation.read_feeds(study)
    return study
