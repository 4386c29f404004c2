"""Ends a run at a chosen step: before or after a rename, a deletion or a commit."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class KilledError(BaseException):
    """Stands for the end of the process."""


class Steps:
    """Counts the steps of a run, and ends it at one of them; a step is a moment before or after a change."""

    def __init__(self) -> None:
        self.passed = 0
        self.end_at: int | None = None

    def step(self) -> None:
        self.passed += 1
        if self.passed == self.end_at:
            raise KilledError

    def around(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            self.step()
            result = change(*arguments, **named)
            self.step()
            return result

        return changed


@contextmanager
def counted_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Count renames and deletions of files, and commits of SQLite, while the block lasts."""
    steps = Steps()

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            inner = super().execute
            if statement in ("COMMIT", "BEGIN IMMEDIATE"):
                steps.step()
                cursor = inner(statement, *parameters)
                steps.step()
                return cursor
            return inner(statement, *parameters)

    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, steps.around(getattr(Path, name)))
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
        yield steps
