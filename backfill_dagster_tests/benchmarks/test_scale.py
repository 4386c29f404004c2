"""The scale benchmark on the smallest of networks: that it serves what it says, and counts what was done."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.loading import load_study
from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster.sandbox.keys import did_key
from backfill_dagster_tests.benchmarks.measure import report_text
from backfill_dagster_tests.benchmarks.scale import reports, rung
from backfill_dagster_tests.benchmarks.scale.frame import (
    FRAME_ACCOUNTS,
    SIZES,
    Fate,
    did_of,
    fate_of,
    frame_of,
    key_of,
    number_of,
    whole_accounts,
)
from backfill_dagster_tests.benchmarks.scale.rung import JobRun, Rung, RungSettings, Stage
from backfill_dagster_tests.benchmarks.scale.server import Servers, served
from backfill_dagster_tests.benchmarks.scale.trees import (
    WrittenTree,
    real_sizes,
    repo_of,
    write_trees,
    written_sizes,
)
from backfill_dagster_tests.benchmarks.scale.watching import Look, Watched
from backfill_dagster_tests.studies import resolved_directory

SHRINK = 5_000.0


@pytest.fixture(scope="module")
def trees() -> list[WrittenTree]:
    return write_trees(SHRINK)


def test_accounts_are_dealt_out_as_those_of_the_real_frame() -> None:
    frame = frame_of(FRAME_ACCOUNTS)
    assert (frame.accounts, len(frame.hosts), sum(frame.hosts[:80])) == (383_598, 340, 382_073)
    assert {19_000 <= accounts <= 21_000 for accounts in frame.hosts[:10]} == {True}
    assert max(frame.hosts[80:]) < 10
    small = frame_of(4_000)
    assert (small.accounts, len(small.hosts), min(small.hosts)) == (4_000, 340, 1)
    assert [frame.host_of(number) for number in (0, 20_999, 21_000, 383_597)] == [
        *("pds0.scale.test", "pds0.scale.test", "pds1.scale.test", "pds339.scale.test")
    ]
    with pytest.raises(ValueError, match="too few for 3000 hosts"):
        frame_of(2_999, 3_000)


def test_sizes_are_of_one_distribution_whatever_the_accounts() -> None:
    sizes = real_sizes()
    assert len(sizes) == SIZES
    assert sizes == sorted(sizes)
    # The mean of a log-normal, of which nothing is lost to classes.
    assert sum(sizes) / SIZES == pytest.approx(130 * 2.718281828 ** (2.4**2 / 2))
    assert sum(written_sizes(10)) / SIZES == pytest.approx(sum(sizes) / SIZES / 10, rel=0.01)


def test_a_repository_is_its_own_account_s(trees: list[WrittenTree]) -> None:
    number = 3 * SIZES - 1
    keys = [SigningKey.from_did_key(did_key(key_of(number)))]
    content = repo_of(number, trees)
    assert len(verify_repo(content, did=did_of(number), keys=keys).rkeys) == trees[-1].records > 40
    with pytest.raises(RepoRejectedError):
        verify_repo(content, did=did_of(number - SIZES), keys=keys)


def test_a_did_holds_its_number() -> None:
    assert [number_of(did_of(number)) for number in (0, 383_597)] == [0, 383_597]
    assert [number_of(did) for did in ("did:plc:" + "a" * 24, "did:web:example.org", "")] == [None] * 3


def test_a_host_knows_its_own_accounts_alone(trees: list[WrittenTree]) -> None:
    servers = Servers(frame_of(100, 10), trees)
    here, elsewhere = "/xrpc/com.atproto.sync.getRepo?did=" + did_of(20), servers.frame.host_names[-1]
    assert servers.answer(servers.frame.host_of(20), here)[0] == 200
    assert servers.answer(elsewhere, here)[0] == 400
    assert servers.take_asked().repos == 2
    assert servers.take_asked().repos == 0


def test_the_product_collects_the_network(trees: list[WrittenTree], tmp_path: Path) -> None:
    with served(frame_of(40, 4), trees) as network:
        rung.write_study(tmp_path, network)
        rung.write_source(tmp_path, range(40))
        study = load_study(tmp_path / "configs" / f"{rung.STUDY}.yaml")
        pipeline.collect_source(study)
        directory = resolved_directory(study)
        hosts = pipeline.fetch_repos(study)
        asked = network.take_asked()
    fates = [fate_of(number) for number in range(40)]
    assert directory.filter(pl.col("state") == "resolved").height == 40 - fates.count(Fate.TOMBSTONED)
    outcomes = sum((host.outcomes for host in hosts), hosts[0].outcomes.__class__())
    assert outcomes["complete"] == whole_accounts(40) == fates.count(Fate.WHOLE) == 30
    assert (outcomes["not_found"], outcomes["deactivated"], outcomes["takendown"]) == (3, 3, 2)
    # Each of those that are gone is looked up once more.
    assert (asked.documents, asked.repos) == (40 + 8, 38)


def test_what_was_used_between_two_times_is_read_off_the_looks() -> None:
    looks = [Look(10.0, 0.0, 0.0, 5, 1), Look(20.0, 4.0, 2.0, 9, 3), Look(30.0, 4.0, 12.0, 7, 8)]
    watched = Watched(looks, cpu=16.0, wall=20.0, parent_peak=9, worker_peak=8)
    assert watched.cpu_at(15.0) == (2.0, 1.0)
    assert watched.cpu_at(25.0) == (4.0, 7.0)
    assert (watched.cpu_at(0.0), watched.cpu_at(99.0)) == ((0.0, 0.0), (4.0, 12.0))
    assert watched.peaks_within(15.0, 30.0) == (9, 8)


def made_up(accounts: int, *, hosts: int = 340, records: float = 10.0, per_account: float = 0.005) -> Rung:
    """Return a rung of which each stage takes so much for each account, and a tenth of it for each record."""
    cpu = accounts * per_account * (1 + records / 10)
    stages = {name: Stage(cpu / 10, cpu / 5, 1.0, 10**8, 10**8) for name in ("directory", "repos", "records")}
    first = JobRun(
        10 + cpu, 5.0, 3 * 10**8, 10**8, 5, 8 * hosts, {}, 10_000 * hosts, 2 * accounts, 10**6, 1.0, stages
    )
    return Rung(
        RungSettings(accounts, hosts, 2_500 / records),
        *(0.5, int(records * accounts), accounts, accounts // 100, 10**6, 100),
        first=first,
        again=replace(first, cpu=8.0),
        without=0.9 * first.cpu,
    )


def test_growth_is_told_and_held_against_its_goal() -> None:
    flat = reports.ladder_reports([made_up(4_000), made_up(40_000), made_up(400_000)])
    goals = {goal.what.partition(",")[0]: goal for report in flat for goal in report.goals}
    assert goals["CPU of one account more"].measured == pytest.approx(1.0)
    assert all(goal.met for goal in goals.values())
    steep = reports.ladder_reports([made_up(4_000), made_up(40_000), made_up(400_000, per_account=0.01)])
    assert {goal.what.partition(",")[0] for report in steep for goal in report.goals if not goal.met} == {
        *("CPU per account", "CPU of one account more")
    }


def test_a_rung_that_was_kept_is_the_rung_that_was_run() -> None:
    assert rung.rung_of(rung.rung_json(made_up(4_000))) == made_up(4_000)


def test_the_wall_time_of_more_workers_ends_at_what_they_cannot_share() -> None:
    small, large, heavy = made_up(4_000), made_up(400_000), made_up(4_000, records=100)
    [_, times] = reports.wall_time_report(small, large, heavy)
    told = {row[0]: row for row in times.rows}
    assert list(told) == [1, 4, 16]
    total = [float(told[workers][times.columns.index("in all h")] or 0) for workers in (1, 4, 16)]
    assert total[0] > total[1] > total[2]
    assert report_text(times).count("\n") > 4
    [hosts] = [reports.hosts_report(made_up(4_000), made_up(4_000, hosts=3_000))]
    assert [row[1] for row in hosts.rows if row[0] == "events"] == [8.0]
