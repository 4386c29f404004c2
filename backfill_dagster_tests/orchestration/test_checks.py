"""Asset checks: each against data that violates it, and against a sound study."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster import pipeline, study_files
from backfill_dagster.accounting import AccountsBuild, BuiltLot, Told, build_accounts
from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.checks import (
    accounts_check_results,
    accounts_checks,
    table_check_results,
    table_checks,
)
from backfill_dagster.records.windows import study_windows
from backfill_dagster_tests.studies import sandbox_study

KEY = dg.AssetKey(["study", "accounts"])
BLOCKING = {spec.name for spec in accounts_checks(KEY) if spec.blocking}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("collected")
    study = sandbox_study(folder)
    for stage in (
        pipeline.collect_source,
        pipeline.resolve_accounts,
        pipeline.fetch_repos,
        pipeline.convert_records,
        pipeline.build_tables,
    ):
        stage(study)
    return folder, study


@pytest.fixture
def study(collected: tuple[Path, Study], tmp_path: Path) -> Study:
    """A copy of the study that a test may spoil."""
    folder, study = collected
    shutil.copytree(folder, tmp_path / "copy")
    copied = study.storage.model_copy(update={"path": tmp_path / "copy" / "data"})
    return study.model_copy(update={"storage": copied})


def stored_accounts(study: Study) -> pl.DataFrame:
    return pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)


def build_spoiled(study: Study, spoil: Callable[[pl.DataFrame], pl.DataFrame]) -> AccountsBuild:
    """What would be told if the table had been made like this, in lots of which some have nothing to tell."""
    source = pl.read_parquet(study.root / study_files.SOURCE_KEY)
    nothing = pl.DataFrame(schema={"table": pl.String})
    accounts, told = spoil(stored_accounts(study)), Told()
    half = accounts.height // 2
    border = accounts["did"][half]
    is_first = pl.col("did") < border
    lots = [
        BuiltLot(accounts.filter(chosen), source.filter(chosen), nothing) for chosen in (is_first, ~is_first)
    ]
    assert sum(rows.height for rows in told.through(lots)) == accounts.height
    return told.build(repeated_uris=0)


def results(study: Study, spoil: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> dict[str, Any]:
    built = build_accounts(study) if spoil is None else build_spoiled(study, spoil)
    told = list(accounts_check_results(study, built))
    assert [result.check_name for result in told] == [spec.name for spec in accounts_checks(KEY)]
    for result in told:
        assert result.metadata["what_to_do"].value
        assert result.check_name in BLOCKING or result.severity is dg.AssetCheckSeverity.WARN
    return {str(result.check_name): result for result in told}


def failing(study: Study, spoil: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> set[str]:
    return {name for name, result in results(study, spoil).items() if not result.passed}


def rewrite(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path)


def a_table_file(study: Study) -> Path:
    files = sorted(study.root.glob("tables/likes/*/*.parquet"), key=lambda path: path.stat().st_size)
    return files[-1]


def test_a_sound_study_violates_no_blocking_check(study: Study) -> None:
    assert failing(study) & BLOCKING == set()


def test_a_row_that_is_gone_from_a_table(study: Study) -> None:
    rewrite(a_table_file(study), lambda rows: rows.slice(1))
    assert failing(study) & BLOCKING == {"records_reconcile", "rows_stand_in_their_tables"}


def test_a_row_that_stands_in_a_table_twice(study: Study) -> None:
    rewrite(a_table_file(study), lambda rows: pl.concat([rows, rows.head(1)]))
    assert "uris_are_unique" in failing(study)


def test_rows_of_two_tables_that_make_up_for_each_other(study: Study) -> None:
    """A like too few and a repost too many of one account leave its sum as it was."""
    likes = a_table_file(study)
    did = pl.read_parquet(likes, hive_partitioning=False)["did"][0]
    rewrite(likes, lambda rows: rows.slice(1))
    reposts = next(
        path
        for path in study.root.glob("tables/reposts/*/*.parquet")
        if did in pl.read_parquet(path, hive_partitioning=False)["did"]
    )
    rewrite(
        reposts,
        lambda rows: pl.concat(
            [rows, rows.filter(pl.col("did") == did).head(1).with_columns(uri=pl.col("uri") + "x")]
        ),
    )
    assert failing(study) & BLOCKING == {"rows_stand_in_their_tables"}


def spoiled(**columns: pl.Expr) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda accounts: accounts.with_columns(**columns)


FIRST_COMPLETE = (pl.col("state") == "complete") & (pl.col("state") == "complete").cum_sum().eq(1)


@pytest.mark.parametrize("state", [None, "unchanged", "nearly_complete"])
def test_a_state_that_is_none(study: Study, state: str | None) -> None:
    spoil = spoiled(state=pl.when(FIRST_COMPLETE).then(pl.lit(state, pl.String)).otherwise("state"))
    assert failing(study, spoil) & BLOCKING == {"every_account_has_a_state"}


def test_an_account_that_is_missing_or_stands_twice(study: Study) -> None:
    assert "every_account_has_a_state" not in failing(study, lambda accounts: accounts)
    assert "every_account_has_a_state" in failing(study, lambda accounts: accounts.slice(1))
    assert "every_account_has_a_state" in failing(
        study, lambda accounts: pl.concat([accounts, accounts.head(1)])
    )


def signed(by: str | None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return spoiled(signed_by=pl.when(FIRST_COMPLETE).then(pl.lit(by, pl.String)).otherwise("signed_by"))


def test_a_signature_that_was_not_checked_warns(study: Study) -> None:
    result = results(study, signed(None))["signatures_accounted_for"]
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    structure_only = study.processing.model_copy(update={"verify": "structure"})
    relaxed = study.model_copy(update={"processing": structure_only})
    assert results(relaxed, signed(None))["signatures_accounted_for"].passed


def test_a_signature_by_nobody_s_key_blocks(study: Study) -> None:
    result = results(study, signed("somebody"))["signatures_accounted_for"]
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.ERROR


def test_a_uri_that_stands_in_two_months_and_among_the_undated(study: Study) -> None:
    source = a_table_file(study)
    for folder in (study.root / "undated" / "likes", *study.root.glob("tables/likes/month=2023-*")):
        target = folder / source.name
        sound = target.read_bytes()
        copied = pl.read_parquet(source, hive_partitioning=False).head(1)
        pl.concat([pl.read_parquet(target, hive_partitioning=False), copied]).write_parquet(target)
        assert "uris_are_unique" in failing(study)
        target.write_bytes(sound)


def test_an_account_that_is_still_to_be_looked_up_has_a_state(study: Study) -> None:
    did = "did:plc:" + 24 * "z"
    source = study.root / "source_dids.parquet"
    rewrite(source, lambda rows: pl.concat([rows, pl.DataFrame({"did": [did]})]))
    assert failing(study) & BLOCKING == set()
    [account] = stored_accounts(study).filter(pl.col("did") == did).to_dicts()
    assert (account["state"], account["reason"]) == ("pending", "not_asked")


def test_an_account_that_was_not_attempted_warns(study: Study) -> None:
    for path in study.root.glob("repos/*/*.parquet"):
        path.unlink()
    assert "every_account_attempted" in failing(study)


def test_the_check_of_quality_says_share_limit_and_where(study: Study) -> None:
    strict = study.quality.model_copy(update={"max_failed_accounts": 0.0})
    spoil = spoiled(
        state=pl.when(FIRST_COMPLETE).then(pl.lit("failed")).otherwise("state"),
        reason=pl.when(FIRST_COMPLETE).then(pl.lit("timed_out")).otherwise("reason"),
    )
    result = results(study.model_copy(update={"quality": strict}), spoil)["failed_accounts"]
    assert not result.passed
    assert result.metadata["limit"].value == 0.0
    assert result.metadata["share"].value > 0
    assert "timed_out" in result.metadata["where"].value


def inspected(study: Study, table: str) -> dict[str, bool]:
    windows = study_windows(study.time_range)
    key = dg.AssetKey(["study", table])
    told = list(table_check_results(key, pipeline.inspect_table(study, table, windows)))
    assert {str(result.check_name) for result in told} == {spec.name for spec in table_checks(key)}
    assert all(spec.blocking for spec in table_checks(key))
    return {str(result.check_name): bool(result.passed) for result in told}


def window_of(path: Path) -> str:
    return path.parent.name.removeprefix("month=")


def test_sound_tables_pass_and_stay_up_to_date(study: Study) -> None:
    assert all(all(inspected(study, table).values()) for table in study_files.study_tables(study))
    assert not any(pipeline.stale_windows(study).values())


def test_a_row_in_another_month_is_found_and_its_window_built_again(study: Study) -> None:
    path = a_table_file(study)
    sound = path.read_bytes()
    rewrite(path, lambda rows: rows.with_columns(created_at=pl.col("created_at").dt.offset_by("1y")))
    assert inspected(study, "likes") == {"schema_as_declared": True, "rows_in_their_partition": False}
    assert pipeline.stale_windows(study)["likes"] == [window_of(path)]
    pipeline.build_table(study, "likes")
    assert path.read_bytes() == sound


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows.drop("subject_uri"),
        lambda rows: rows.with_columns(rkey=pl.col("rkey").cast(pl.Categorical)),
        lambda rows: rows.with_columns(extra=1),
        lambda rows: rows.select(reversed(rows.columns)),
    ],
)
def test_a_file_of_another_schema_is_found(
    study: Study, spoil: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    path = a_table_file(study)
    rewrite(path, spoil)
    assert not inspected(study, "likes")["schema_as_declared"]
    assert pipeline.stale_windows(study)["likes"] == [window_of(path)]


def test_no_event_of_a_check_names_an_account(study: Study) -> None:
    rewrite(a_table_file(study), lambda rows: rows.slice(1))
    for result in results(study).values():
        assert "did:" not in str(result.metadata)
