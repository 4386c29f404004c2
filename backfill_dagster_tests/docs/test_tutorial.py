"""The tutorial, walked through: its commands are run as they stand, and say what it says they do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backfill_dagster_tests.docs.pages import ROOT, Block, blocks

TUTORIAL = ROOT / "docs" / "tutorial.md"
# Stands for any lines in what the page shows.
ANYTHING = "…"
_MARK = "-- end of a block --"


@pytest.mark.walkthrough
def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path: Path) -> None:
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    parts = commands_and_outputs(blocks(TUTORIAL.read_text(encoding="utf-8")))
    assert len(parts) > 5
    printed = run([command for command, _ in parts], tmp_path)
    for (command, shown), output in zip(parts, printed, strict=True):
        assert is_shown(shown, output), f"$ {command}\n--- printed\n{output}\n--- shown\n{shown}"


def commands_and_outputs(found: list[Block]) -> list[tuple[str, str]]:
    """Return each `sh` block with the text of the `text` block after it, if there is one."""
    parts: list[tuple[str, str]] = []
    for block in found:
        if block.kind == "sh":
            parts.append((block.text, ""))
        elif block.kind == "text":
            parts[-1] = (parts[-1][0], block.text)
    return parts


def run(commands: list[str], folder: Path) -> list[str]:
    """Run commands in one shell, as somebody would who types them; return what each printed."""
    script = "".join(f"{command}\necho '{_MARK}'\n" for command in commands)
    names = ("DAGSTER_HOME", "BACKFILL_CONFIGS", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.split(f"{_MARK}\n")[:-1]


def is_shown(shown: str, output: str) -> bool:
    """Tell whether lines stand in an output one after the other; those before and after do not matter.

    A log's line begins with the time, which no page knows.
    """
    lines = [line[10:] if line[2:3] == ":" and line[5:6] == ":" else line for line in output.splitlines()]
    place = 0
    for part in "\n".join(line.rstrip() for line in shown.splitlines()).split(f"\n{ANYTHING}\n"):
        wanted = part.splitlines()
        starts = range(place, len(lines) - len(wanted) + 1)
        found = [
            start
            for start in starts
            if [line.rstrip() for line in lines[start : start + len(wanted)]] == wanted
        ]
        if not found:
            return False
        place = found[0] + len(wanted)
    return True


def test_what_is_shown_is_looked_for_line_by_line() -> None:
    output = "14:07:05  Begins.\na  1\nb  2\nc  3\n"
    assert is_shown("", output)
    assert is_shown("Begins.\na  1\n", output)
    assert is_shown("a  1\n…\nc  3\n", output)
    assert not is_shown("a  1\nc  3\n", output)
    assert not is_shown("c  3\n…\na  1\n", output)
    assert not is_shown("a  2\n", output)


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    assert run(["echo one", "cd /; pwd", "pwd"], tmp_path) == ["one\n", "/\n", "/\n"]
    with pytest.raises(AssertionError):
        run(["false", "echo two"], tmp_path)
