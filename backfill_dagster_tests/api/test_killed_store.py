"""A server that is killed while it stores a config leaves the whole of it, or nothing that anybody loads."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.api.configs import ConfigStore
from backfill_dagster.api.untrusted import Reach
from backfill_dagster_tests.api.serving_stub import study_yaml

KILLED = 9
TEXT = study_yaml("pilot")
STEPS = ("mkstemp", "fdopen", "fsync", "chmod", "link", "unlink")


def dying(step: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    """Return a step at which the process is gone, before it has done anything or right after."""

    def die(*args: Any, **named: Any) -> None:
        if not before:
            step(*args, **named)
        os._exit(KILLED)

    return die


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step(tmp_path: Path, step: str, before: bool) -> None:
    store = ConfigStore(tmp_path, Reach())
    owner: Any = {"mkstemp": __import__("tempfile"), "chmod": Path, "unlink": Path}.get(step, os)
    child = os.fork()
    if child == 0:
        setattr(owner, step, dying(getattr(owner, step), before=before))
        store.add("pilot", TEXT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    whole = (step, before) in {("link", False), ("unlink", True), ("unlink", False)}
    assert store.names() == (["pilot"] if whole else [])
    # The next one is not held up by what is left, and finds it whole if it is there.
    assert store.add("pilot", TEXT) is not whole
    assert (tmp_path / "pilot.yaml").read_text() == TEXT
    assert store.load("pilot").name == "pilot"
    for left in tmp_path.glob(".incoming-*"):
        os.utime(left, (time.time() - 4000,) * 2)
    store.add("other", study_yaml("other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.yaml", "pilot.yaml"]
