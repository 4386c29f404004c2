"""How far a stage is: what is said, how often, and what it is computed from."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from backfill_dagster.directory.resolve import DirectoryProgress
from backfill_dagster.orchestration.progress import (
    MovingRate,
    ProgressReporter,
    Standing,
    conversion_standing,
    directory_standing,
    duration,
    fetch_standing,
)
from backfill_dagster.pipeline import ConversionProgress
from backfill_dagster.repos.crawl import Progress
from backfill_dagster.repos.outcomes import FailureReason


class Stage:
    """A stage that is reported on in a time of our own."""

    def __init__(self, progress: Any, view: Any = fetch_standing) -> None:
        self.now = 0.0
        self.progress = progress
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.reporter = ProgressReporter(
            view, lambda line, told: self.events.append((self.now, line, told)), clock=lambda: self.now
        )

    def work(self, seconds: float, per_second: float = 0.0) -> None:
        """Let the time pass in ticks, as a crawl does, and so many accounts be done meanwhile."""
        self.reporter(self.progress)
        done = float(self.progress.done)
        for _ in range(round(seconds * 5)):
            self.now += 0.2
            done += per_second * 0.2
            self.progress.done = round(done)
            self.reporter(self.progress)


def test_events_come_at_a_human_pace_and_also_while_nothing_is_done() -> None:
    stage = Stage(Progress(total=10**6, hosts=2, hosts_parked=2))
    stage.work(4 * 3600)
    times = [time for time, _, _ in stage.events]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert times[0] == pytest.approx(10, abs=0.3)
    assert min(gaps) > 9.5
    assert max(gaps) < 60.5
    assert 20 <= sum(time <= 600 for time in times) <= 40
    assert len(times) < 300
    assert all("2 waiting" in line and "to go" not in line for _, line, _ in stage.events)


def test_rate_and_time_to_go_are_those_of_late() -> None:
    stage = Stage(Progress(total=100_000))
    stage.work(1200, per_second=50)
    stage.work(120, per_second=2)
    _, line, told = stage.events[-1]
    assert told["progress/accounts_per_second"] == pytest.approx(2, rel=0.1)
    assert told["progress/seconds_to_go"] == pytest.approx((100_000 - 60_240) / 2, rel=0.1)
    assert "5 h 3" in line
    stage.work(120)
    _, line, told = stage.events[-1]
    assert told["progress/accounts_per_second"] == 0
    assert told["progress/seconds_to_go"] is None
    assert "to go" not in line


def test_a_moving_rate_needs_no_more_than_a_sample_a_second() -> None:
    rate = MovingRate(seconds=60)
    assert rate.note(0, 0) == 0
    assert [rate.note(tick / 5, tick) for tick in range(1, 6000)][-1] == pytest.approx(5)
    assert len(rate._samples) <= 62


def test_the_last_event_is_about_the_whole() -> None:
    progress = Progress(total=60, hosts=5)
    stage = Stage(progress)
    stage.work(4, per_second=15)
    progress.hosts_done = 5
    progress.bytes_received = 12_000_000
    progress.failures.update({FailureReason.UNREACHABLE: 2, FailureReason.BAD_TREE: 1})
    stage.reporter.finish()
    [(_, line, told)] = stage.events
    assert line == (
        "60 of 60 accounts, in 4 s, 15.0/s, 12.0 MB, 5 of 5 hosts done, 3 failed (bad_tree 1, unreachable 2)"
    )
    assert told == {
        "progress/accounts_done": 60,
        "progress/accounts_total": 60,
        "progress/accounts_per_second": pytest.approx(15, rel=0.02),
        "progress/seconds_passed": 4.0,
        "progress/seconds_to_go": 0.0,
        "progress/hosts": 5,
        "progress/hosts_done": 5,
        "progress/hosts_active": 0,
        "progress/hosts_parked": 0,
        "progress/failed": 3,
        "progress/failures_by_reason": {"bad_tree": 1, "unreachable": 2},
        "progress/megabytes": 12.0,
        "progress/megabytes_per_second": pytest.approx(3, rel=0.02),
    }


def test_every_event_of_a_stage_has_the_same_names() -> None:
    stage = Stage(Progress(total=1000))
    stage.work(30)
    stage.work(30, per_second=3)
    stage.reporter.finish()
    assert len(stage.events) > 4
    assert len({tuple(told) for _, _, told in stage.events}) == 1


def test_a_stage_with_nothing_to_do_says_nothing() -> None:
    stage = Stage(Progress(total=0))
    stage.reporter.finish()
    assert stage.events == []


def test_what_was_done_before_does_not_count_as_fast() -> None:
    progress = DirectoryProgress(total=1000, done=900)
    stage = Stage(progress, directory_standing)
    stage.work(20, per_second=5)
    progress.states = Counter({"resolved": 99, "tombstoned": 1})
    stage.reporter.finish()
    _, line, told = stage.events[-1]
    assert line == "1,000 of 1,000 DIDs, in 20 s, 5.0/s, 99 resolved, 1 tombstoned"
    assert told["progress/looked_up"] == 100
    assert told["progress/looked_up_by_state"] == {"resolved": 99, "tombstoned": 1}


def test_a_conversion_counts_packs_and_records() -> None:
    standing = conversion_standing(ConversionProgress(total=8, done=2, records=12_345))
    assert isinstance(standing, Standing)
    assert (standing.done, standing.total, standing.said) == (2, 8, ("12,345 records",))


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (65, "1 min 5 s"), (3599.7, "1 h 0 min"), (90_000, "25 h 0 min")]
)
def test_spans_of_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
