from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from backfill_dagster.definitions import build_defs
from backfill_dagster_tests.studies import sandbox_study

ASSETS = {"source_dids", "directory", "repos", "records", "undated", "accounts", "report", "audit_log"}
ASSETS |= {"user_metadata", "run_metadata", "record_changes", "account_history", "attrition", "manifest"}
TABLES = {"posts", "replies", "likes", "reposts", "follows", "blocks"}


def asset_names(defs: dg.Definitions, study: str) -> set[str]:
    keys = defs.resolve_asset_graph().get_all_asset_keys()
    return {key.path[1] for key in keys if key.path[0] == study}


def job_names(defs: dg.Definitions) -> set[str]:
    return {job.name for job in defs.get_repository_def().get_all_jobs()}


def test_every_yaml_becomes_a_lineage_of_its_own(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "one")
    sandbox_study(tmp_path, "two", record_types=["app.bsky.feed.post"])
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)
    assert asset_names(defs, "one") == ASSETS | TABLES
    assert asset_names(defs, "two") == ASSETS | {"posts", "replies"}
    assert {"one", "one_rebuild", "one_verify", "two", "two_rebuild", "two_verify"} <= job_names(defs)


def test_a_broken_yaml_takes_no_other_down(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "good")
    (tmp_path / "bad.yaml").write_text("backfill: {name: bad}")
    (tmp_path / "not-a-name.yaml").write_text("backfill: [")
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)
    assert {"good", "bad", "not_a_name"} <= job_names(defs)
    assert asset_names(defs, "bad") == set()


def test_loading_opens_no_source(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "missing", source={"type": "sqlite", "path": str(tmp_path / "no.sqlite")})
    assert asset_names(build_defs(tmp_path), "missing")
    assert not (tmp_path / "no.sqlite").exists()


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    dg.Definitions.validate_loadable(build_defs(tmp_path))


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_study(tmp_path, "elsewhere")
    monkeypatch.setenv("BACKFILL_CONFIGS", str(tmp_path))
    assert asset_names(build_defs(), "elsewhere")


def test_the_package_offers_its_definitions_without_importing_dagster_before() -> None:
    import subprocess
    import sys

    script = (
        "import sys, backfill_dagster, backfill_dagster.pipeline, backfill_dagster.repos.proof\n"
        "assert 'dagster' not in sys.modules\n"
        "assert 'defs' in dir(backfill_dagster)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_launchpad_shows_the_yaml_s_values_as_defaults(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "study", processing={"max_retries": 7})
    job = build_defs(tmp_path).get_repository_def().get_job("study_stage_fetch")
    fields = job.run_config_schema.run_config_schema_type.fields["ops"].config_type.fields  # type: ignore[attr-defined]
    config = fields["study__repos"].config_type.fields["config"].config_type.fields
    assert config["max_retries"].default_value == 7
    assert config["max_retries"].description


def test_every_asset_says_what_its_columns_are_and_what_they_are_made_of(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "one")
    graph = build_defs(tmp_path).resolve_asset_graph()
    columns: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        schema = graph.get(key).metadata.get("dagster/column_schema")
        if schema is not None:
            columns[key.path[1]] = {column.name for column in schema.columns}
            assert all(column.description for column in schema.columns)
    assert set(columns) == (ASSETS | TABLES) - {"report", "manifest"}
    for key in graph.get_all_asset_keys():
        lineage = graph.get(key).metadata.get("dagster/column_lineage")
        for column, origins in ({} if lineage is None else lineage.deps_by_column).items():
            assert column in columns[key.path[1]]
            for origin in origins:
                assert origin.asset_key.path[0] == "one"
                assert origin.column_name in columns[origin.asset_key.path[1]]


def test_every_asset_has_its_owners_and_freshness_comes_with_a_schedule(tmp_path: Path) -> None:
    owners = ["team:lab", "a.person@example.org"]
    sandbox_study(tmp_path, "one", owners=owners, automation={"refresh_cron": "0 3 * * *"})
    sandbox_study(tmp_path, "two")
    graph = build_defs(tmp_path).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert list(node.owners) == (owners if key.path[0] == "one" else [])
        assert node.tags["study"] == key.path[0]
        assert node.metadata["dagster/code_references"]
    promised = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert promised == {"one/source_dids", "one/directory", "one/accounts", "one/report"}


def upstream_keys(defs: dg.Definitions, study: str, asset: str = "source_dids") -> set[str]:
    node = defs.resolve_asset_graph().get(dg.AssetKey([study, asset]))
    return {key.to_user_string() for key in node.parent_keys}


def complaint(defs: dg.Definitions, job: str) -> str:
    """Return what a job that stands for a broken YAML fails with."""
    with dg.instance_for_test() as instance:
        result = (
            defs.get_repository_def().get_job(job).execute_in_process(instance=instance, raise_on_error=False)
        )
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    return str(failure.step_failure_data.error)


def asset_source(backfill: str, **options: object) -> dict[str, object]:
    return {"type": "asset", "backfill": backfill, **options}


def test_what_another_backfill_found_is_upstream_of_the_source(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "users")
    sandbox_study(
        tmp_path,
        "others",
        source={
            "type": "except",
            "source": asset_source("users", asset="accounts"),
            "without": asset_source("users", asset="source_dids"),
        },
        exclude=asset_source("users", asset="posts"),
        filters={"app.bsky.feed.post": {"uris": asset_source("users", asset="replies")}},
    )
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)

    names = ("accounts", "source_dids", "posts")
    assert upstream_keys(defs, "others") == {f"users/{name}" for name in names}
    assert upstream_keys(defs, "others", "records") == {"others/repos", "users/replies"}
    assert upstream_keys(defs, "users") == set()


UNKNOWN = asset_source("nobody", asset="accounts")


@pytest.mark.parametrize(
    ("part", "body", "where"),
    [
        ("source", UNKNOWN, "source"),
        ("exclude", UNKNOWN, "exclude"),
        ("source", {"type": "union", "sources": [UNKNOWN]}, "source.sources.0"),
        ("filters", {"app.bsky.feed.post": {"uris": UNKNOWN}}, "filters.app.bsky.feed.post.uris"),
        (
            "derived",
            {"posts_used_in_feeds": {"feeds": UNKNOWN}},
            "derived.posts_used_in_feeds.feeds",
        ),
    ],
)
def test_an_unknown_backfill_breaks_its_own_yaml_alone(
    tmp_path: Path, part: str, body: object, where: str
) -> None:
    sandbox_study(tmp_path, "good")
    parts: dict[str, Any] = {part: body}
    sandbox_study(tmp_path, "lost", **parts)
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)

    assert asset_names(defs, "lost") == set()
    assert asset_names(defs, "good")
    message = complaint(defs, "lost")
    assert f"lost.yaml: backfill.{where}.backfill = 'nobody': is none of the backfills here" in message
    assert "storage" in message


def test_a_backfill_that_is_stored_elsewhere_need_not_be_here(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "lost", source=asset_source("nobody", storage=str(tmp_path)))
    defs = build_defs(tmp_path)

    assert asset_names(defs, "lost")
    assert upstream_keys(defs, "lost") == set()


def test_an_unknown_asset_is_answered_with_those_there_are(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "users")
    sandbox_study(tmp_path, "lost", source=asset_source("users", asset="acounts"))

    message = complaint(build_defs(tmp_path), "lost")
    assert (
        "backfill.source.asset = 'acounts': backfill 'users' has no such asset; it has account_history, "
        in message
    )


def test_what_comes_from_a_broken_yaml_is_broken_too(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "first", source=asset_source("nobody"))
    sandbox_study(tmp_path, "second", source=asset_source("first", asset="accounts"))
    sandbox_study(tmp_path, "third", source=asset_source("second", asset="accounts"))
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)

    assert {"first", "second", "third"} <= job_names(defs)
    assert "backfill.source.backfill = 'second'" in complaint(defs, "third")


def test_backfills_that_come_from_each_other_break_and_others_do_not(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "good")
    sandbox_study(tmp_path, "one", source=asset_source("two", asset="accounts"))
    sandbox_study(tmp_path, "two", exclude=asset_source("one", asset="accounts"))
    sandbox_study(tmp_path, "own", source=asset_source("own", asset="accounts"))
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)

    assert asset_names(defs, "good")
    assert [asset_names(defs, name) for name in ("one", "two", "own")] == [set()] * 3
    assert "two.yaml: backfill.exclude.backfill = 'one': depends on two in its turn" in complaint(defs, "two")
    assert "backfill.source.backfill = 'own': is the backfill itself" in complaint(defs, "own")


def test_feeds_that_show_each_other_s_posts_break_these_two_and_no_others(tmp_path: Path) -> None:
    def feeds(backfill: str, asset: str) -> dict[str, Any]:
        columns = {"uri_column": "uri", "time_column": "created_at"}
        return {"posts_used_in_feeds": {"feeds": asset_source(backfill, asset=asset), **columns}}

    sandbox_study(tmp_path, "one", derived=feeds("two", "posts_used_in_feeds"))
    sandbox_study(tmp_path, "two", derived=feeds("one", "posts_used_in_feeds"))
    # Of each other's records they may well be made.
    sandbox_study(tmp_path, "three", derived=feeds("four", "posts"))
    sandbox_study(tmp_path, "four", derived=feeds("three", "posts"))
    # What decides on the accounts of one comes from the other's feeds, which show what the one has.
    sandbox_study(tmp_path, "five", derived=feeds("six", "posts"))
    sandbox_study(tmp_path, "six", source=asset_source("five", asset="posts_used_in_feeds", column="did"))
    defs = build_defs(tmp_path)
    dg.Definitions.validate_loadable(defs)

    assert all(asset_names(defs, name) for name in ("three", "four"))
    assert [asset_names(defs, name) for name in ("one", "two", "five", "six")] == [set()] * 4
    assert "feeds.backfill = 'two': depends on one in its turn" in complaint(defs, "one")
