"""A Dagster webserver that is only what the façade asks of it, in memory: jobs come from a folder of YAML files."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from backfill_dagster.config.loading import load_study
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.tags import PARENT_TAG, STUDY_TAG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backfill_dagster.config.study import Study

LOCATION = "backfill_dagster"
_KINDS = ("", "_refresh", "_retry_failed", "_rebuild", "_purge")


@dataclass
class StubRun:
    """One run."""

    job: str
    tags: dict[str, str]
    status: str = "QUEUED"
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    config: str = "{}"
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    location: str | None = LOCATION
    events: list[dict[str, Any]] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        return {
            "runId": self.id,
            "jobName": self.job,
            "status": self.status,
            "creationTime": self.created,
            "startTime": self.started,
            "endTime": self.ended,
            "tags": [{"key": key, "value": value} for key, value in self.tags.items()],
            "repositoryOrigin": self.location and {"repositoryLocationName": self.location},
        }


class StubDagster:
    """Answers by operation; `instead` takes the place of all answers, if it is set."""

    def __init__(self, configs: Path) -> None:
        self.configs = configs
        self.runs: list[StubRun] = []
        self.assets: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[str] = []
        self.presets: dict[str, str] = {}
        self.loads = 0
        self.refuses: dict[str, str] = {}
        self.instead: Callable[[httpx.Request], httpx.Response] | None = None
        self._jobs: dict[str, dict[str, Any]] = {}
        self._load()

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def run(self, study: str = "demo", **fields: Any) -> StubRun:
        """Add a run of a study's job to the history."""
        run = StubRun(fields.pop("job", study), {STUDY_TAG: study, **fields.pop("tags", {})}, **fields)
        self.runs.append(run)
        return run

    def stage(self, parent: StubRun, stage: str, **fields: Any) -> StubRun:
        """Add the run of a stage of a job."""
        study = parent.tags[STUDY_TAG]
        tags = {PARENT_TAG: parent.id}
        return self.run(study, job=f"{study}_stage_{stage}", tags=tags, location=None, **fields)

    def tell(self, run: StubRun, asset: str, at: float = 1.0, **metadata: Any) -> None:
        """Have a run have written an observation, or a materialization, of an asset; the latest comes last."""
        event = {"runId": run.id, "timestamp": str(at * 1000), "metadataEntries": _entries(metadata)}
        self.assets.setdefault(f"{run.tags[STUDY_TAG]}/{asset}", []).insert(0, event)

    def _load(self) -> None:
        self.loads += 1
        self._jobs = {}
        for path in sorted(self.configs.glob("*.yaml")):
            try:
                study = self._study(path)
            except ConfigError as error:
                self._jobs[path.stem] = {"name": path.stem, "description": str(error), "tags": []}
                continue
            for kind in _KINDS:
                tags = [{"key": STUDY_TAG, "value": study.name}]
                self._jobs[f"{path.stem}{kind}"] = {
                    "name": f"{path.stem}{kind}",
                    "description": "",
                    "tags": tags,
                }

    def _study(self, path: Path) -> Study:
        if path.stem in self.refuses:
            raise ConfigError(f"{path}: {self.refuses[path.stem]}")
        return load_study(path)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if self.instead is not None:
            return self.instead(request)
        question = json.loads(request.content)
        named = re.match(r"(?:query|mutation) (\w+)", question["query"])
        assert named
        self.asked.append(named[1])
        answers = {
            "Jobs": self._list_jobs,
            "Presets": self._presets,
            "Launch": self._launch,
            "Run": self._one_run,
            "Runs": self._runs,
            "Terminate": self._terminate,
            "Reload": self._reload,
            "Observed": self._observed,
            "Materialized": self._materialized,
            "Events": self._events,
        }
        data = answers[named[1]](question["variables"])
        return httpx.Response(200, json={"data": data})

    def _list_jobs(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"repositoryOrError": {"__typename": "Repository", "jobs": list(self._jobs.values())}}

    def _presets(self, asked: dict[str, Any]) -> dict[str, Any]:
        preset = self.presets.get(asked["job"])
        presets = [{"name": "default", "runConfigYaml": preset}] if preset else []
        return {"pipelineOrError": {"__typename": "Pipeline", "presets": presets}}

    def _launch(self, asked: dict[str, Any]) -> dict[str, Any]:
        tags = {tag["key"]: tag["value"] for tag in asked["tags"]}
        job = self._jobs[asked["job"]]
        own = {tag["key"]: tag["value"] for tag in job["tags"]}
        run = StubRun(asked["job"], {**own, **tags}, config=asked["config"])
        self.runs.append(run)
        return {"launchRun": {"__typename": "LaunchRunSuccess", "run": run.answer()}}

    def _one_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        for run in self.runs:
            if run.id == asked["id"]:
                return {"runOrError": {"__typename": "Run", **run.answer()}}
        return {"runOrError": {"__typename": "RunNotFoundError", "message": "no"}}

    def _runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = {tag["key"]: tag["value"] for tag in asked["filter"]["tags"]}
        statuses = asked["filter"].get("statuses")
        found = [
            run.answer()
            for run in self.runs
            if wanted.items() <= run.tags.items() and (statuses is None or run.status in statuses)
        ]
        return {"runsOrError": {"__typename": "Runs", "results": found}}

    def _terminate(self, asked: dict[str, Any]) -> dict[str, Any]:
        for run in self.runs:
            if run.id == asked["id"]:
                run.status = "CANCELING"
        return {"terminateRun": {"__typename": "TerminateRunSuccess"}}

    def _reload(self, _: dict[str, Any]) -> dict[str, Any]:
        self._load()
        loaded = {"__typename": "RepositoryLocation"}
        return {
            "reloadRepositoryLocation": {
                "__typename": "WorkspaceLocationEntry",
                "loadStatus": "LOADED",
                "locationOrLoadError": loaded,
            }
        }

    def _observed(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"assetOrError": {"__typename": "Asset", "assetObservations": self._events_of(asked)}}

    def _materialized(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"assetOrError": {"__typename": "Asset", "assetMaterializations": self._events_of(asked)}}

    def _events_of(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        before = float(asked["before"] or "inf")
        events = self.assets.get("/".join(asked["key"]), [])
        return [event for event in events if float(event["timestamp"]) < before][: asked["limit"]]

    def _events(self, asked: dict[str, Any]) -> dict[str, Any]:
        [run] = [run for run in self.runs if run.id == asked["id"]]
        found = {
            "__typename": "EventConnection",
            "cursor": "",
            "hasMore": False,
            "events": run.events,
        }
        return {"logsForRun": found}


def step_failure(step: str, message: str) -> dict[str, Any]:
    """Return the event of a step that failed with a message of ours."""
    return {
        "__typename": "ExecutionStepFailureEvent",
        "stepKey": step,
        "error": {"message": "dagster.Failure", "causes": []},
        "failureMetadata": {"description": message},
    }


def _entries(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for label, value in metadata.items():
        name = label.replace("__", "/")
        match value:
            case int():
                entries.append({"label": name, "intRepr": str(value)})
            case float():
                entries.append({"label": name, "floatValue": value})
            case dict():
                entries.append({"label": name, "jsonString": json.dumps(value)})
            case None:
                entries.append({"label": name})
            case _:
                entries.append({"label": name, "text": str(value)})
    return entries
