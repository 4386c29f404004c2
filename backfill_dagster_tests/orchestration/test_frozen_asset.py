"""The frozen build as an asset: there if it is asked for, made once, and told of in numbers."""

from pathlib import Path

import dagster as dg

from backfill_dagster.definitions import build_defs
from backfill_dagster.frozen.freeze import freeze
from backfill_dagster.orchestration.frozen_asset import frozen_metadata
from backfill_dagster_tests.frozen.builds import ALICE, BOB, leave_build, study_on
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox_study

KEY = dg.AssetKey(["study", "frozen"])


def test_it_is_the_last_asset_and_is_not_made_by_itself(tmp_path: Path) -> None:
    sandbox_study(tmp_path, snapshot="v1")
    defs = build_defs(tmp_path)
    node = defs.resolve_asset_graph().get(KEY)
    assert {key.path[-1] for key in node.parent_keys} == {"manifest"}
    assert node.automation_condition is None
    ops = {
        name: [op.name for op in defs.get_repository_def().get_job(name).graph.node_defs]
        for name in ("study", "study_rebuild", "study_refresh", "study_retry_failed", "study_purge")
    }
    assert [name for name, of_job in ops.items() if f"{name}__freeze" not in of_job] == ["study_purge"]


def test_it_is_made_and_says_what_is_frozen(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    study = sandbox_study(tmp_path, snapshot="v1")
    leave_build(study)
    assert execute(tmp_path, "study_stage_freeze", instance)
    event = instance.get_latest_materialization_event(KEY)
    assert event is not None
    assert event.asset_materialization is not None
    told = {name: entry.value for name, entry in event.asset_materialization.metadata.items()}
    assert (told["label"], told["frozen_now"], told["study_has_moved_on"]) == ("v1", True, False)
    assert (told["tables"], told["dagster/row_count"]) == (2, 6)
    assert told["told"] == f"Frozen as v1 on {told['frozen_at']}, 2 tables."
    logs = "\n".join(
        str(entry.to_json())  # type: ignore[no-untyped-call]
        for run in instance.get_runs()
        for entry in instance.all_logs(run.run_id)
    )
    assert told["told"] in logs
    assert not any(did in logs for did in (ALICE, BOB))


def test_what_was_frozen_before_is_told_of_and_all_that_is_frozen_is_listed(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    leave_build(study)
    freeze(study)
    same = frozen_metadata(study, freeze(study))
    assert (same["frozen_now"], same["study_has_moved_on"]) == (False, False)
    assert "the study is the same since" in same["told"]
    leave_build(study, text="second")
    later = frozen_metadata(study, freeze(study))
    assert (later["frozen_now"], later["study_has_moved_on"]) == (False, True)
    assert "the study has moved on since" in later["told"]
    other = study.model_copy(update={"snapshot": "v2"})
    listed = frozen_metadata(other, freeze(other))["all_frozen_builds"].value
    assert all(f"| {label} |" in listed for label in ("v1", "v2"))
