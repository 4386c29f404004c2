"""The benchmarks on the smallest of data, so that they run when they are wanted; no time is asserted."""

import json
import math
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config.study import RECORD_TYPES
from backfill_dagster.records.tables import USUAL_TABLES
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import VerifiedRepo, verify_repo
from backfill_dagster_tests.benchmarks import __main__ as command
from backfill_dagster_tests.benchmarks import memory, one_process, pruning, real_cars, real_repos, workers
from backfill_dagster_tests.benchmarks.generated_repos import WINDOW, SignedRepo, large_repo, small_repos
from backfill_dagster_tests.benchmarks.huge_repo import huge_repo
from backfill_dagster_tests.benchmarks.real_repos import UnusableCarError, repeated
from backfill_dagster_tests.benchmarks.references import bare_loop, naive
from backfill_dagster_tests.benchmarks.stages import Stages

RECORDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def repo(folder: Path) -> SignedRepo:
    return large_repo(folder, RECORDS)


def verified(repo: SignedRepo) -> VerifiedRepo:
    return verify_repo(repo.car.read_bytes(), did=repo.did, keys=[SigningKey.from_did_key(repo.key)])


def cids(repo: SignedRepo) -> list[bytes]:
    """List the records' CIDs, each of which stands right before its block."""
    content, starts = repo.car.read_bytes(), verified(repo).starts.tolist()
    return [content[start - CID_BYTES : start] for start in starts]


def uris(root: Path) -> set[str]:
    files = [*root.glob("tables/**/*.parquet"), *root.glob("undated/**/*.parquet")]
    return {uri for file in files for uri in pl.read_parquet(file)["uri"]}


def test_generated_repositories_are_signed_and_always_the_same(repo: SignedRepo, tmp_path: Path) -> None:
    assert len(verified(repo).rkeys) == repo.records == RECORDS
    assert large_repo(tmp_path, RECORDS).car.read_bytes() == repo.car.read_bytes()


def test_small_repositories_are_of_many_sizes(tmp_path: Path) -> None:
    repos = small_repos(tmp_path, 20, median=10)
    assert [len(verified(repo).rkeys) for repo in repos] == [repo.records for repo in repos]
    assert len({repo.did for repo in repos}) == 20
    assert len({repo.records for repo in repos}) > 5


def test_the_huge_repository_is_signed_and_no_block_stands_in_it_twice(tmp_path: Path) -> None:
    repo = huge_repo(tmp_path, 2_000)
    assert len(cids(repo)) == len(set(cids(repo))) == 2_000
    assert list(tmp_path.iterdir()) == [repo.car]


def test_the_stages_make_the_tables_that_the_naive_way_makes(
    repo: SignedRepo, folder: Path, tmp_path: Path
) -> None:
    stages = Stages.of(folder / "stages", [repo])
    stages.verify()
    stages.frames()
    stages.all()
    stages.accounts()
    naive.write_rows([repo.car], tmp_path)
    rows = {collection: pl.read_parquet(tmp_path / f"{collection}.parquet") for collection in RECORD_TYPES}
    assert uris(stages.study.root) == {uri for frame in rows.values() for uri in frame["uri"]}
    assert all(WINDOW[0] <= time <= WINDOW[1] for frame in rows.values() for time in frame["created_at"])
    assert bare_loop.read_records([repo.car]) == RECORDS


def test_all_subjects_of_one_process_run(repo: SignedRepo, folder: Path) -> None:
    months = large_repo(folder, RECORDS, in_window=False)
    measured = one_process.compare(folder, repo, months, 1, None, warm_up=False)
    assert all(one.median > 0 for one in measured)
    goals = one_process.goals({one.name: one for one in measured}, "here")
    assert len(goals) == 4
    assert all(math.isfinite(goal.measured) for goal in goals)
    # A quarter of the records, of which the profile is none that is wanted, lies outside the study's window.
    months_of_posts = list((folder / "months" / "benchmark" / "tables" / "posts").iterdir())
    assert len(months_of_posts) > 4


def test_real_files_are_repeated_under_other_accounts(repo: SignedRepo, tmp_path: Path) -> None:
    copies = repeated(tmp_path / "copies", repo.car, 2 * RECORDS + 1)
    assert len({copy.did for copy in copies}) == 3
    assert cids(copies[2]) == cids(repo)
    assert len(real_cars.compare(tmp_path, copies, 1)) == 5


def test_a_real_file_grows_to_one_repository_of_distinct_records(repo: SignedRepo, tmp_path: Path) -> None:
    one = real_repos.grown(tmp_path / "grown", repo.car, 2 * RECORDS + 1)
    assert one.records == len(verified(one).rkeys) == len(set(cids(one))) == 2 * RECORDS + 1


def test_a_file_that_is_no_whole_repository_is_passed_over(shared_dir: Path, tmp_path: Path) -> None:
    for name, reason in (("empty", "holds no records"), ("partial-since", "no whole repository")):
        with pytest.raises(UnusableCarError, match=reason):
            repeated(tmp_path / name, shared_dir / "cars" / f"{name}.car")


def test_two_workers_and_many_accounts_run(tmp_path: Path) -> None:
    repos = small_repos(tmp_path / "repos", 30, median=5)
    assert len(workers.measure(tmp_path, repos, 2)) == 5
    memory.pack_crowd(tmp_path / "crowd", repos)
    crowd = memory.run_crowd(tmp_path / "crowd", repos[0])
    # The kernel counts pages core by core and its high-water mark may fall by some of them, so no order is asked.
    assert len(crowd.parent) == 4
    assert min(crowd.parent) > 10_000_000
    files = crowd.files
    assert files["packs"] == 2
    assert 0 < files["tables"] <= 4 * len(USUAL_TABLES)


def test_a_stage_goes_on_from_the_one_before_in_another_process(repo: SignedRepo, tmp_path: Path) -> None:
    for stage in ("pack", "records", "tables"):
        assert memory.run_stage(tmp_path, repo, stage) > 10_000_000
    assert uris(tmp_path / "benchmark")


def test_the_command_prints_and_writes_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pruning, "RECORDS", RECORDS)
    told = tmp_path / "told.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "pruning", "--rounds", "1", "--json", str(told)])
    command.main()
    printed = capsys.readouterr().out
    assert "| all six tables " in printed
    assert "## Goals" in printed
    [report] = json.loads(told.read_text())["reports"]
    assert [row[0] for row in report["rows"]][:2] == ["all six tables", "posts and replies"]
