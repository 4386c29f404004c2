from backfill_dagster.orchestration.progress import ProgressLog, progress_line
from backfill_dagster.repos.crawl import Progress


def test_a_line_says_how_far_it_is_and_how_long_the_rest_takes() -> None:
    progress = Progress(
        total=4000, done=1000, bytes_received=2_500_000_000, failed=3, hosts_active=7, started=100.0
    )
    line = progress_line(progress, now=200.0)
    assert line == "1,000 of 4,000 accounts, 10.0/s, 2,500.0 MB, 7 hosts at work, 3 failed, 5 min 0 s to go"


def test_before_anything_is_done_no_time_is_promised() -> None:
    assert "to go" not in progress_line(Progress(total=10, started=0.0), now=5.0)


def test_lines_come_at_a_human_pace() -> None:
    lines: list[str] = []
    now = 0.0
    log = ProgressLog(lines.append, every=10, clock=lambda: now)
    for _ in range(1000):
        now += 0.1
        log(Progress(total=10, started=0.0))
    assert 9 <= len(lines) <= 10
