"""The data dictionary, held against all files of a study that has everything that a study can have."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.columns import Column, schema_of, type_name
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.derivation import DERIVED
from backfill_dagster.dictionary.resources import Resource, study_resources
from backfill_dagster.dictionary.written import DESCRIPTOR_KEY, READABLE_KEY, write_dictionary
from backfill_dagster.records.tables import TABLES
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=7, accounts=40, hosts=2, records=12)
TYPES = [
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
    "app.bsky.actor.profile",
]
OF_ALL_STUDIES = (
    *("accounts", "source_dids", "source_rejects", "directory", "packs", "pack_blocks", "rejects"),
    *("filter_lists", "counts", "windows", "built"),
)
OTHERS = ["app.bsky.feed.generator", "app.bsky.graph.list"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("dictionary")
    dids = list(sandbox(SETTINGS).dids)
    feeds = folder / "feeds.csv"
    shown = [
        f"{record.created_at:%Y-%m-%d},{record.uri}"
        for did in dids
        for record in sandbox(SETTINGS).truth.records(did)
        if record.table == "posts" and record.created_at is not None
    ]
    feeds.write_text("\n".join(["date,uri", *shown]) + "\n")
    study = sandbox_study(
        folder,
        settings=SETTINGS,
        source={"type": "inline", "dids": [*dids, dids[0], "not a DID"]},
        record_types=TYPES,
        other_record_types=OTHERS,
        filters={"app.bsky.graph.follow": {"subjects": {"type": "inline", "dids": dids}}},
        discovery={},
        derived={
            "study_user_activity": True,
            "engagement": True,
            "threads": True,
            "posts_used_in_feeds": {"feeds": {"type": "csv", "path": str(feeds)}},
        },
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    return study


def files_of(study: Study, resource: Resource) -> list[Path]:
    return sorted({path for glob in resource.files for path in study.root.glob(glob)})


def test_every_stored_table_is_described_once_and_as_it_is(study: Study) -> None:
    resources = study_resources(study)
    for path in study.root.rglob("*.parquet"):
        key = path.relative_to(study.root).as_posix()
        described = [found for found in resources if any(fnmatch(key, glob) for glob in found.files)]
        # `*` of fnmatch also stands for `/`, that of the files' readers does not.
        described = [found for found in described if path in files_of(study, found)]
        assert len(described) == 1, (key, [found.name for found in described])
        stored = pl.read_parquet_schema(path)
        assert dict(stored) == dict(schema_of(described[0].columns)), key


def test_what_is_said_of_the_values_holds(study: Study) -> None:
    seen = set()
    for resource in study_resources(study):
        files = files_of(study, resource)
        if not files:
            continue
        seen.add(resource.name)
        frames = [pl.read_parquet(path, hive_partitioning=False) for path in files]
        rows = pl.concat(frames)
        for column in resource.columns:
            if column.required:
                assert rows[column.name].null_count() == 0, (resource.name, column.name)
            if column.words:
                known = {word.value for words in column.words for word in words}
                assert set(words_in(rows, column)) <= known, (resource.name, column.name)
        for frame in frames if resource.apart else [rows]:
            keys = frame.select(resource.key) if resource.key else pl.DataFrame()
            assert keys.is_duplicated().sum() == 0, resource.name
    # What was not there was not looked at.
    assert seen >= {*TABLES, *DERIVED, *OF_ALL_STUDIES, "engaged_accounts", "engaged_posts", "feeds"}


def words_in(rows: pl.DataFrame, column: Column) -> list[str]:
    """Return the words of a column: its values, or those in its lists or structs."""
    values = rows[column.name].drop_nulls()
    while isinstance(values.dtype, pl.List):
        values = values.explode().drop_nulls()
    if isinstance(values.dtype, pl.Struct):
        values = values.struct.field("reason")
    if column.name == "issues":
        values = values.str.split(":").list.last()
    return values.unique().to_list()


def test_programs_can_read_it(study: Study) -> None:
    told = json.loads((study.root / DESCRIPTOR_KEY).read_bytes())
    assert told["name"] == study.name
    by_name: dict[str, Any] = {resource["name"]: resource for resource in told["resources"]}
    assert set(by_name) == {resource.name for resource in study_resources(study)}
    posts = by_name["posts"]
    assert posts["files"] == ["tables/posts/month=*/*.parquet", "undated/posts/*.parquet"]
    assert posts["schema"]["primaryKey"] == ["uri"]
    fields = {field["name"]: field for field in posts["schema"]["fields"]}
    assert fields["did"]["constraints"] == {"required": True}
    assert (fields["langs"]["type"], fields["langs"]["arrowType"]) == ("array", "list<string>")
    assert fields["created_at"]["type"] == "datetime"
    future = next(word for word in fields["date_quality"]["categories"] if word["value"] == "future")
    assert future["label"].startswith("It is later")
    for resource, described in zip(study_resources(study), told["resources"], strict=True):
        assert [field["arrowType"] for field in described["schema"]["fields"]] == [
            type_name(column.dtype) for column in resource.columns
        ]


def test_people_can_read_it(study: Study) -> None:
    text = (study.root / READABLE_KEY).read_text()
    for resource in study_resources(study):
        assert f"`{resource.name}`" in text if resource.inner else f"\n## {resource.name}\n" in text
        if not resource.inner:
            assert all(f"\n| `{column.name}` |" in text for column in resource.columns)


def test_it_names_no_account(study: Study) -> None:
    for key in (DESCRIPTOR_KEY, READABLE_KEY):
        text = (study.root / key).read_text()
        assert not any(did in text for did in sandbox(SETTINGS).dids)


def test_it_follows_the_study_and_is_else_left_alone(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path, settings=SETTINGS, record_types=["app.bsky.feed.like"])
    write_dictionary(study)
    path = study.root / DESCRIPTOR_KEY
    before = path.stat().st_mtime_ns, path.read_bytes()
    write_dictionary(study)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    names = {resource["name"] for resource in json.loads(path.read_bytes())["resources"]}
    assert "likes" in names
    assert "posts" not in names
    assert "threads" not in names
    write_dictionary(
        study.model_copy(update={"time_range": study.time_range.model_copy(update={"partitions": "daily"})})
    )
    assert "tables/likes/day=*/*.parquet" in path.read_text()
