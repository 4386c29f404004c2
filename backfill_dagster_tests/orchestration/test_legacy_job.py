"""The job that takes over what the previous system left, as the command line runs it."""

from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster.orchestration.legacy_job import legacy_job
from backfill_dagster_tests.legacy.trees import BOB, imported, row, write
from backfill_dagster_tests.orchestration.running import execute

OLD = """
backfill:
  name: old_study
  source: {type: csv, path: dids.csv}
  time_range: {start_date: "2024-11-01-00:00:00"}
  sync_storage: {type: parquet, path: PATH, min_timestamp: "2025-05-04-05:01:50"}
"""


def test_a_yaml_and_a_tree_are_taken_over(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(OLD.replace("PATH", str(tmp_path / "data")))
    write(tmp_path / "tree", "follow", [row("follow", "f1", subject=BOB)])
    configs = tmp_path / "configs"
    configs.mkdir()
    given = {"yaml": [str(old)], "output": str(configs), "parquet_root": str(tmp_path / "tree")}
    assert execute(configs, "import_legacy", instance, given)
    follows = imported(tmp_path / "data" / "old_study", "follows")
    assert follows["subject_did"].to_list() == [BOB]
    # By the period of the YAML.
    assert follows["in_range"].to_list() == [False]
    [run] = instance.get_runs(limit=1)
    events = [
        entry.dagster_event
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_OUTPUT)
    ]
    metadata = next(dict(event.step_output_data.metadata) for event in events if event is not None)
    assert metadata["rows_follows"].value == 1
    assert metadata["fields_without_counterpart"].value == 1
    assert "f1" not in str(metadata)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"yaml": ["old.yaml"]},
        {"parquet_root": "tree"},
        {"parquet_root": "tree", "name": "../up"},
        {"parquet_root": "tree", "name": "fine", "start_date": "some day"},
    ],
)
def test_what_it_needs(instance: dg.DagsterInstance, given: dict[str, object]) -> None:
    with pytest.raises(dg.Failure, match="run config: "):
        legacy_job().execute_in_process(run_config=given, instance=instance)
