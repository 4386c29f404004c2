"""The bar on the terminal: what a person sees of it, and where there is none."""

import fcntl
import json
import os
import re
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from backfill_dagster.orchestration.terminal import Terminal, is_watched
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.orchestration.screen import Screen, frames

LOG = [rf"\d\d:\d\d:\d\d  WARNING: line {number} of the log" for number in (5, 15, 25)]
LAST = r"\d\d:\d\d:\d\d  30 of 30 accounts, in \d+ s, .*, 0 failed"


def run_on(screen: Screen, home: Path, stderr: int, *options: str, **environment: str) -> None:
    """Run a command whose controlling terminal the screen is, with its stderr going elsewhere if asked."""

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "LINES")}
    subprocess.run(
        [sys.executable, "-m", "backfill_dagster_tests.orchestration.shown_run", str(home), *options],
        cwd=ROOT,
        env={**clean, "TERM": "xterm-256color", **environment},
        stdin=screen.descriptor,
        stdout=screen.descriptor,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=take_terminal,
        timeout=60,
        check=True,
    )


def test_the_log_stands_whole_above_the_bar_which_leaves_nothing_behind(tmp_path: Path) -> None:
    with Screen(columns=90) as screen:
        run_on(screen, tmp_path / "home", screen.descriptor)
    seen = frames(screen.written)

    for line, pattern in zip(seen[-1], [*LOG, LAST], strict=True):
        assert re.fullmatch(pattern, line)
    bars = [frame[-1] for frame in seen if frame and frame[-1].startswith("Fetching")]
    assert 4 < len(bars) < 25
    assert all(len(bar) < 90 for bar in bars)
    assert any(re.match(r"Fetching ━+[╸╺]?━* 2\d of 30 accounts, 0 s to go, 1\d\.\d/s", bar) for bar in bars)
    for frame in seen:
        for line, pattern in zip(frame[:-1], LOG, strict=False):
            assert re.fullmatch(pattern, line)


def test_a_redirected_log_has_lines_and_the_terminal_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Screen() as screen, log.open("wb") as file:
        run_on(screen, tmp_path / "home", file.fileno())
    assert screen.written == ""
    text = log.read_text()
    assert "\x1b" not in text
    assert "\r" not in text
    assert all(re.search(pattern, text) for pattern in [*LOG, LAST])


def test_as_json_every_line_is_an_object_and_no_weight_is_below_the_level(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Screen() as screen, log.open("wb") as file:
        run_on(screen, tmp_path / "home", file.fileno(), "json")
    assert screen.written == ""
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [line["message"] for line in lines] == [f"line {number} of the log" for number in (5, 15, 25)]
    assert {(line["level"], line["event"], line["backfill"]) for line in lines} == {
        ("WARNING", "message", "study")
    }
    captured = [path.read_text() for path in (tmp_path / "home").rglob("*.err")]
    assert captured
    assert not any("of the log" in text for text in captured)


def test_a_terminal_that_cannot_show_a_bar_gets_lines(tmp_path: Path) -> None:
    with Screen() as screen:
        run_on(screen, tmp_path / "home", screen.descriptor, TERM="dumb")
    assert "\x1b" not in screen.written
    assert "Fetching" not in screen.written
    assert re.search(LAST, screen.written)


@pytest.mark.parametrize(
    ("name", "value", "watched"),
    [("TERM", "xterm", True), ("TERM", "dumb", False), ("TERM", "", False), ("CI", "true", False)],
)
def test_who_is_watched(monkeypatch: pytest.MonkeyPatch, name: str, value: str, *, watched: bool) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    with Screen() as screen:
        assert is_watched(screen.descriptor) is watched
    with Path(os.devnull).open("w") as nothing:
        assert not is_watched(nothing.fileno())


def draw(screen: Screen, columns: list[int], told: str) -> None:
    with os.fdopen(os.dup(screen.descriptor), "w") as stream:
        terminal = Terminal(stream)
        with terminal.show_bar("Fetching") as bar:
            for width in columns:
                screen.resize(width)
                bar.draw(1, 2, told)
                terminal.print(f"at {width}")


def test_the_bar_takes_on_the_terminal_s_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    monkeypatch.setenv("TERM", "xterm")
    widths = [120, 60, 30, 15, 120]
    with Screen() as screen:
        draw(screen, widths, "1 of 2 accounts, 5 min 0 s to go, 0.1/s, 12.5 MB, 3 of 10 hosts done")
    seen = frames(screen.written)
    assert seen[-1] == [f"at {width}" for width in widths]
    for before, width in enumerate(widths):
        # The last one before the next line: those before it were drawn when the terminal had another width.
        bar = [frame[-1] for frame in seen[:-1] if len(frame) == before + 1][-1]
        assert bar.startswith("Fetching ━")
        assert len(bar) < width
        assert bar.endswith("hosts done" if width == 120 else "…")


def test_in_the_background_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    with Screen() as screen:
        draw(screen, [80], "1 of 2")
    assert screen.written == "at 80\r\n"


def test_a_terminal_that_goes_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    monkeypatch.setenv("TERM", "xterm")
    reading, writing = os.openpty()
    stream = os.fdopen(writing, "w")
    terminal = Terminal(stream)
    with terminal.show_bar("Fetching") as bar:
        bar.draw(1, 2, "1 of 2")
        os.close(reading)
        bar.draw(2, 2, "2 of 2")
    with suppress(OSError):
        stream.close()


def test_what_a_server_said_is_no_command_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Screen() as screen, os.fdopen(os.dup(screen.descriptor), "w") as stream:
        Terminal(stream).print("host \x1b[2J\x1b]0;title\x07 [bold]says\x9b5A\nmore")
    assert screen.written == "host �[2J�]0;title� [bold]says�5A\r\nmore\r\n"
