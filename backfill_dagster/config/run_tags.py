"""Tags of a study's runs: what launches them, on ECS, Kubernetes or Celery, goes by tags in what it gives a run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

# A stage by itself; the jobs that do all of them, one after the other; a purge, a verification, a
# copy for others; any of these.
RunKind = Literal[
    "all",
    "whole",
    "discover",
    "fetch",
    "convert",
    "tables",
    "derive",
    "engaged",
    "accounts",
    "handoff",
    "manifest",
    "freeze",
    "purge",
    "verify",
    "share",
]

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,63}(/[A-Za-z0-9_.-]{1,63})?")
_OURS = "backfill_dagster/"
_DAGSTERS = "dagster/"
# Those of Dagster's own tags that ask for something, rather than tell what a run is.
_ASKING = ("dagster/priority", "dagster/max_runtime", "dagster/max_retries")


def _key(value: str) -> str:
    if not _KEY.fullmatch(value):
        raise ValueError("must be a tag's name, such as ecs/memory")
    if value.startswith(_OURS):
        raise ValueError(f"must not begin with {_OURS}: those tell runs apart")
    if value.startswith(_DAGSTERS) and value not in _ASKING:
        raise ValueError(f"is Dagster's own; of those only {', '.join(_ASKING)} can be given")
    return value


RunTags = dict[RunKind, dict[Annotated[str, AfterValidator(_key)], str | dict[str, Any]]]
