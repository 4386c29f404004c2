import gc
import hashlib
import json
import subprocess
import sys
import time
from functools import partial

import pytest

from backfill_dagster_tests.benchmarks.measure import (
    Cost,
    Goal,
    Measured,
    Report,
    Subject,
    cpu_seconds,
    goals_text,
    interleave,
    markdown_table,
    ratio,
    report_json,
    report_text,
    run_fresh,
    wall_ratio,
    with_collector,
    without_collector,
)

MEBIBYTE = 2**20
# 128 bytes times r times n, which it fills.
FILL_128_MEBIBYTES = partial(hashlib.scrypt, b"", salt=b"salt", n=2**17, r=8, p=1, maxmem=2**28)


def test_every_round_runs_each_subject_once_and_begins_with_another() -> None:
    ran: list[str] = []
    names = ("a", "b", "c")
    measured = interleave([Subject(name, partial(ran.append, name)) for name in names], 3)
    warm_up, rounds = ran[:3], ran[3:]
    assert warm_up == list(names)
    assert rounds == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [(one.name, len(one.cpu), len(one.wall)) for one in measured] == [(name, 3, 3) for name in names]


def test_cpu_is_that_of_this_process_and_of_its_children_and_not_of_waiting() -> None:
    spin = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    subjects = [
        Subject("child", partial(subprocess.run, spin, check=True)),
        Subject("wait", partial(time.sleep, 0.3)),
    ]
    child, wait = interleave(subjects, 1, warm_up=False)
    assert child.median >= 0.3
    assert wait.median < 0.1
    assert wait.median_wall >= 0.3


def test_what_runs_elsewhere_tells_its_own_cost() -> None:
    [told] = interleave([Subject("told", lambda: Cost(cpu=7.0, wall=9.0))], 2)
    assert told == Measured("told", [7.0, 7.0], [9.0, 9.0])


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_what_each_subject_wants_and_afterwards_what_it_was(before: bool) -> None:
    seen: list[bool] = []

    def look() -> None:
        seen.append(gc.isenabled())

    was_enabled = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        interleave(
            [Subject("off", without_collector(look)), Subject("on", with_collector(look))], 1, warm_up=False
        )
        assert seen == [False, True]
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was ten times slower in the second round, which no ratio of sums or of medians would bear.
    first, second = (
        Measured("first", [2.0, 20.0, 2.0], [1.0] * 3),
        Measured("second", [1.0, 10.0, 1.0], [4.0] * 3),
    )
    assert ratio(first, second) == 2.0
    assert wall_ratio(first, second) == 0.25


@pytest.mark.parametrize(
    ("at_least", "measured", "met"),
    [(True, 3.5, True), (True, 3.4, False), (False, 3.5, True), (False, 3.6, False)],
)
def test_a_goal_is_met_on_its_side_of_the_limit(at_least: bool, measured: float, met: bool) -> None:
    assert Goal("what", 3.5, at_least, measured).met is met
    assert ("NOT met" in goals_text([Goal("what", 3.5, at_least, measured)])) is not met


def test_a_table_is_aligned_markdown() -> None:
    table = markdown_table(("name", "ms"), [("a", 1234.5), ("long name", 0.25), ("none", None)])
    assert table.splitlines() == [
        "| name      |    ms |",
        "| --------- | ----: |",
        "| a         | 1,234 |",
        "| long name | 0.250 |",
        "| none      |       |",
    ]


def test_a_report_is_text_and_json() -> None:
    report = Report("Title", ("a", "b"), [("x", 1.5)], [Goal("speed", 2.0, True, 1.5)], ("A note.",))
    assert report_text(report).startswith("### Title\n\n| a   |    b |\n")
    assert report_text(report).endswith("A note.\n")
    told = json.loads(json.dumps(report_json(report)))
    assert told["rows"] == [["x", 1.5]]
    assert told["goals"] == [{"what": "speed", "limit": 2.0, "at_least": True, "measured": 1.5, "met": False}]


def test_a_fresh_process_tells_its_result_its_cost_and_its_own_memory() -> None:
    done = run_fresh(FILL_128_MEBIBYTES)
    assert done.result == FILL_128_MEBIBYTES()
    assert 0 < done.cpu <= cpu_seconds()
    # With what the interpreter takes, and not with what this process held when it forked, which is more.
    assert 128 * MEBIBYTE < done.own.resident < 180 * MEBIBYTE
    assert done.own.anonymous > 64 * MEBIBYTE
    assert done.children == ()


def test_a_fresh_process_tells_the_memory_of_its_children() -> None:
    child = "import time; held = bytearray(b'x') * (100 * 2**20); time.sleep(0.5)"
    done = run_fresh(partial(subprocess.check_call, [sys.executable, "-c", child]))
    assert done.own.resident < 60 * MEBIBYTE
    [peaks] = done.children
    assert peaks.anonymous > 100 * MEBIBYTE


def test_what_fails_in_a_fresh_process_fails_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_fresh(int, "no number")
    assert "invalid literal" in capfd.readouterr().err
