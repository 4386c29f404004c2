"""A few of the kills that `python -m backfill_dagster_tests.crash` does all of, in the order of a run.

A run that is killed leaves its study to the next one, which is killed somewhat later: so each begins with what the
one before it left.
"""

import random
import re

import pytest

from backfill_dagster_tests.crash.call_sites import changing_calls
from backfill_dagster_tests.crash.launcher import Launcher
from backfill_dagster_tests.crash.runs import CrashLab, Failpoint

# By parts of a failpoint's name, which has lines of the source in it besides.
ON_THE_WAY = [
    (" parent replace ", "monitoring/audit_log.py:_write", "before"),
    (" parent replace ", "directory/export_copy.py:write", "after"),
    (" parent replace ", "resolving.py:checkpoint", "after"),
    (" parent unlink ", "resolving.py:resolve_accounts", "before"),
    (" parent file.close ", "network/http.py", "before"),
    (" worker replace ", "repos/packs.py:<listcomp>", "after"),
    (" worker replace ", "repos/packs.py:commit", "after"),
    (" worker replace ", "records/conversion.py:convert_pack", "before"),
    (" parent replace ", "tables/parts.py:_write", "after"),
    (" parent replace ", "tables/ledger.py:note_built", "before"),
    (" parent unlink ", "tables/build.py:remove_other_tables", "after"),
    (" parent replace ", "accounting.py:build_accounts", "before"),
    (" parent replace ", "derivation.py:discover_engaged", "after"),
    (" parent replace ", "derived/feed_use.py:store_shown", "after"),
    (" parent replace ", "derived/build.py:_rebuild", "before"),
    (" parent replace ", "handoff/ledger.py:enter", "after"),
    (" parent replace ", "handoff/outbox.py:_put", "after"),
    (" parent unlink ", "handoff/ledger.py:merge", "before"),
    (" parent replace ", "legacy/tree.py:_write", "after"),
    (" parent replace ", "sharing/share.py:<dictcomp>", "after"),
]
PARTS_ON_THE_WAY = [
    ("parent", "repos/listings.py:_keep", "before"),
    ("worker", "repos/listed_records.py:gather_listed", "before"),
    ("parent", "repos/single_records.py:_keep", "after"),
    ("parent", "sharing/rehydration.py:build_rehydration", "before"),
]
PURGE_ON_THE_WAY = [
    (" parent pwrite ", "purge/logs.py:purge_log", "after"),
    (" parent unlink ", "purge/rewrite.py:_purge_pack", "after"),
    (" parent replace ", "sharing/purge.py:_purge_ids", "before"),
]


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture(scope="module")
def collecting(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> CrashLab:
    return CrashLab.collecting(tmp_path_factory.mktemp("crash"), launcher)


@pytest.fixture(scope="module")
def purging(collecting: CrashLab, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> CrashLab:
    return CrashLab.purging(tmp_path_factory.mktemp("purge"), collecting, launcher)


@pytest.fixture(scope="module")
def in_parts(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> CrashLab:
    return CrashLab.in_parts(tmp_path_factory.mktemp("parts"), launcher)


def chosen(lab: CrashLab, parts: list[tuple[str, str, str]]) -> list[Failpoint]:
    points = [lab.failpoints(*of_one)[:1] for of_one in parts]
    assert all(points), "a failpoint of the list is none any more"
    return [point for [point] in points]


def test_every_place_that_writes_is_a_failpoint(
    collecting: CrashLab, purging: CrashLab, in_parts: CrashLab
) -> None:
    names = list({**collecting.passed, **purging.passed, **in_parts.passed})
    places = [
        (file, int(line)) for name in names for file, line in re.findall(r"(\S+\.py):[^: ]+:(\d+)", name)
    ]
    sites = changing_calls()
    assert len(sites) > 40
    missed = [str(site) for site in sites if not site.is_among(places)]
    assert not missed, "\n".join(missed)
    for name in names:
        assert name.endswith((" before", " after"))
        assert name.rpartition(" ")[0] + " before" in names
        assert name.rpartition(" ")[0] + " after" in names


def test_killed_at_failpoints_and_at_any_moment(collecting: CrashLab) -> None:
    run = collecting.new_run("killed")
    settled: set[str] = run.settled()
    for point in chosen(collecting, ON_THE_WAY):
        assert run.run(point), f"{point} was not reached"
        run.check_after_kill()
        assert settled <= run.settled()
        settled = run.settled()
    for whole_group in (True, False):
        run.kill_after(random.uniform(0.5, 1) * collecting.seconds / 2, whole_group=whole_group)
    run.run()
    run.check_after_next_run(settled, collecting.reference)


def test_a_purge_killed_half_way(purging: CrashLab) -> None:
    run = purging.new_run("killed")
    for point in chosen(purging, PURGE_ON_THE_WAY):
        assert run.run(point), f"{point} was not reached"
        run.check_after_kill()
    run.run()
    run.check_after_next_run(run.settled(), purging.reference)


def test_a_collection_in_parts_killed_half_way(in_parts: CrashLab) -> None:
    run = in_parts.new_run("killed")
    for point in chosen(in_parts, PARTS_ON_THE_WAY):
        assert run.run(point), f"{point} was not reached"
        run.check_after_kill()
    run.run()
    run.check_after_next_run(run.settled(), in_parts.reference)


def test_a_worker_that_is_killed_ends_the_run_with_a_clear_message(collecting: CrashLab) -> None:
    run = collecting.new_run("without a worker")
    [point] = chosen(collecting, [(" worker replace ", "repos/packs.py:<listcomp>", "after")])
    assert run.run_without_worker(point) == 1
    assert "WorkerLostError: a worker process was ended from outside" in run.output()
    settled = run.settled()
    run.run()
    run.check_after_next_run(settled, collecting.reference)
