"""Profiles, and records of any other collection: tables that a study has if it asks for them."""

from collections.abc import Iterator
from typing import Any

import orjson
import polars as pl
import pytest

from backfill_dagster import pipeline, study_files
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import RECORD_TYPES, Study
from backfill_dagster.report.page import build_report
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.truth import RecordTruth
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA, unreconciled
from backfill_dagster_tests.studies import sandbox, sandbox_study
from backfill_dagster_tests.test_pipeline import read_table, run_all

SETTINGS = SandboxSettings(seed=5, accounts=54, hosts=2, records=12)
PROFILE = "app.bsky.actor.profile"
OTHERS = ("com.example.recipe.entry", "app.bsky.feed.threadgate", "chat.bsky.actor.declaration")


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    network = sandbox(SETTINGS)
    network.faults.clear()
    yield network
    network.faults.clear()


@pytest.fixture(scope="module")
def usual(network: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Collect a study of the usual types; what else it has fetched is stored with it."""
    study = sandbox_study(tmp_path_factory.mktemp("requested"), settings=SETTINGS)
    run_all(study)
    return study


@pytest.fixture(scope="module")
def requested(usual: Study, network: SandboxNetwork) -> Study:
    """Ask for more of the same study, and for no JSON."""
    network.requests.clear()
    study = sandbox_study(
        usual.root.parent.parent,
        settings=SETTINGS,
        record_types=[*RECORD_TYPES, PROFILE],
        other_record_types=list(OTHERS),
        processing={"requests_per_second": 500, "workers": 2, "record_json": False},
    )
    run_all(study)
    assert network.requests.count(path="com.atproto.sync.getRepo") == 0
    return study


def truth_of(network: SandboxNetwork, table: str) -> dict[str, RecordTruth]:
    return {
        record.uri: record
        for did in network.dids
        for record in network.truth.records(did)
        if record.table_on_request(OTHERS) == table
    }


def rows_of(study: Study, table: str) -> dict[str, dict[str, Any]]:
    return {row["uri"]: row for row in read_table(study, table).iter_rows(named=True)}


def test_profiles_equal_the_truth_row_by_row(requested: Study, network: SandboxNetwork) -> None:
    truth, rows = truth_of(network, "profiles"), rows_of(requested, "profiles")
    assert rows.keys() == truth.keys()
    seen: set[str] = set()
    for uri, record in truth.items():
        row, value = rows[uri], record.value or {}
        expected = expected_profile(value)
        seen |= {name for name, said in expected.items() if said is not None}
        assert {name: row[name] for name in expected} == expected, uri
        assert (row["cid"], row["created_at"]) == (record.cid, record.created_at)
        assert (row["record_type"], row["obtained"]) == ("profile", "repo")
        assert ("rkey:not_self" in row["issues"]) == (record.rkey != "self")
        assert row["record"] is None
    assert seen == set(expected)


def expected_profile(value: dict[str, Any]) -> dict[str, Any]:
    def text(key: str) -> str | None:
        return value[key] if isinstance(value.get(key), str) else None

    def blob(key: str) -> str | None:
        held = value.get(key)
        return held["ref"]["$link"] if isinstance(held, dict) and "ref" in held else None

    def uri(key: str) -> str | None:
        held = value.get(key)
        return held["uri"] if isinstance(held, dict) and isinstance(held["uri"], str) else None

    labels = value.get("labels")
    return {
        "display_name": text("displayName"),
        "description": text("description"),
        "pronouns": text("pronouns"),
        "website": text("website"),
        "labels": [label["val"] for label in labels["values"]] if isinstance(labels, dict) else None,
        "avatar_cid": blob("avatar"),
        "banner_cid": blob("banner"),
        "pinned_post_uri": uri("pinnedPost"),
        "joined_via_starter_pack": uri("joinedViaStarterPack"),
    }


def test_a_profile_without_a_date_is_undated_and_nothing_is_wrong_with_it(requested: Study) -> None:
    undated = pl.read_parquet(requested.root / "undated/profiles/*.parquet")
    assert undated.height > 0
    assert undated["date_quality"].unique().to_list() == ["missing"]
    assert undated["issues"].list.len().sum() == 0


def test_wrong_fields_of_profiles_are_null_and_named(requested: Study) -> None:
    rows = read_table(requested, "profiles").filter(pl.col("rkey").is_in(["second", "third"]))
    issues = {row["rkey"]: set(row["issues"]) for row in rows.iter_rows(named=True)}
    assert issues == {
        "second": {
            "rkey:not_self",
            "displayName:not_a_string",
            "description:null",
            "labels:not_a_map",
            "avatar:not_a_blob",
        },
        "third": {
            "rkey:not_self",
            "banner:not_a_blob",
            "pinnedPost:not_a_map",
            "joinedViaStarterPack.uri:not_a_string",
        },
    }


def test_other_records_are_kept_as_json_whatever_the_study_says_of_it(
    requested: Study, network: SandboxNetwork
) -> None:
    truth, rows = truth_of(network, "other_records"), rows_of(requested, "other_records")
    assert rows.keys() == truth.keys()
    assert {row["collection"] for row in rows.values()} == set(OTHERS)
    for uri, record in truth.items():
        row = rows[uri]
        assert orjson.loads(row["record"]) == record.value
        assert (row["cid"], row["created_at"], row["record_type"]) == (record.cid, record.created_at, "other")
        assert (row["did"], row["collection"], row["rkey"]) == (record.did, record.collection, record.rkey)
        assert row["issues"] == []
    assert read_table(requested, "likes")["record"].null_count() == read_table(requested, "likes").height


def test_every_record_is_counted_in_its_table(requested: Study, network: SandboxNetwork) -> None:
    accounts = pl.read_parquet(requested.root / study_files.ACCOUNTS_KEY)
    assert unreconciled(accounts).is_empty()
    assert {"profiles", "other_records"} <= set(accounts.columns)
    for row in accounts.iter_rows(named=True):
        records = network.truth.records(row["did"])
        tables = [record.table_on_request(OTHERS) for record in records]
        assert (row["profiles"], row["other_records"]) == (
            tables.count("profiles"),
            tables.count("other_records"),
        )
        assert row["records_kept"] == len(tables) - tables.count(None)
    inspected = pipeline.inspect_table(requested, "other_records", ["2024-10"])
    assert (inspected.other_schema, inspected.rows_elsewhere) == (0, 0)


def test_the_report_shows_them_by_day_and_names_the_types(requested: Study) -> None:
    build_report(requested)
    page = (requested.root / "report.html").read_text()
    for name in ("profiles", "other_records", *OTHERS):
        assert name in page


def test_a_study_that_asks_for_none_of_them_has_none(usual: Study, network: SandboxNetwork) -> None:
    study = sandbox_study(usual.root.parent.parent, settings=SETTINGS)
    accounts = run_all(study)
    assert accounts.schema == ACCOUNTS_SCHEMA
    for table in ("profiles", "other_records"):
        assert not (study.root / "tables" / table).exists()
        assert not (study.root / "undated" / table).exists()
        assert not list(study.root.glob(f"records/*/{table}/*.parquet"))
