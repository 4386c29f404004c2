"""What the façade asks of a Dagster deployment: the jobs of this project's code location, runs, and their events."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from backfill_dagster.api.errors import (
    ConflictError,
    DagsterAnswerError,
    InvalidRequestError,
    NotFoundError,
)
from backfill_dagster.orchestration.tags import PARENT_TAG, STUDY_TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backfill_dagster.api.graphql_client import GraphQL

# What Dagster calls the one repository of a code location that is a `Definitions`.
_REPOSITORY = "__repository__"
UNFINISHED = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "SUSPENDED", "CANCELING")
# Children of one run: its stages. Events of one asset that are looked through for those of a certain run.
_MOST_RUNS = 100
_RECENT = 10
_EVENTS_AT_ONCE = 1_000
_MOST_EVENTS = 20_000
_MAX_SHOWN = 300

_RUN = """runId jobName status creationTime startTime endTime tags { key value }
    repositoryOrigin { repositoryLocationName }"""
_ERROR = "__typename ... on Error { message }"
_METADATA = """runId timestamp metadataEntries { label
    ... on IntMetadataEntry { intRepr } ... on FloatMetadataEntry { floatValue }
    ... on JsonMetadataEntry { jsonString } ... on TextMetadataEntry { text } }"""

_JOBS = f"""query Jobs($location: String!, $repository: String!) {{ repositoryOrError(repositorySelector: {{
    repositoryLocationName: $location, repositoryName: $repository }}) {{ {_ERROR}
    ... on Repository {{ jobs {{ name description tags {{ key value }} }} }} }} }}"""
_PRESETS = f"""query Presets($location: String!, $repository: String!, $job: String!) {{ pipelineOrError(params: {{
    repositoryLocationName: $location, repositoryName: $repository, pipelineName: $job }}) {{ {_ERROR}
    ... on Pipeline {{ presets {{ name runConfigYaml }} }} }} }}"""
_LAUNCH = f"""mutation Launch($location: String!, $repository: String!, $job: String!, $config: RunConfigData,
    $tags: [ExecutionTag!]) {{ launchRun(executionParams: {{ selector: {{ repositoryLocationName: $location,
    repositoryName: $repository, jobName: $job }}, runConfigData: $config, executionMetadata: {{ tags: $tags }} }})
    {{ {_ERROR} ... on LaunchRunSuccess {{ run {{ {_RUN} }} }}
    ... on RunConfigValidationInvalid {{ errors {{ message }} }} }} }}"""
_ONE_RUN = f"query Run($id: ID!) {{ runOrError(runId: $id) {{ {_ERROR} ... on Run {{ {_RUN} }} }} }}"
_RUNS = f"""query Runs($filter: RunsFilter!, $limit: Int!) {{ runsOrError(filter: $filter, limit: $limit) {{ {_ERROR}
    ... on Runs {{ results {{ {_RUN} }} }} }} }}"""
_TERMINATE = f"""mutation Terminate($id: String!) {{ terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) {{
    {_ERROR} ... on TerminateRunFailure {{ message }} ... on TerminateRunSuccess {{ run {{ {_RUN} }} }} }} }}"""
_RELOAD = f"""mutation Reload($location: String!) {{ reloadRepositoryLocation(repositoryLocationName: $location) {{
    {_ERROR} ... on WorkspaceLocationEntry {{ loadStatus locationOrLoadError {{ {_ERROR} }} }} }} }}"""
_OBSERVED = f"""query Observed($key: [String!]!, $before: String, $limit: Int!) {{ assetOrError(assetKey: {{
    path: $key }}) {{ __typename ... on Asset {{
    assetObservations(beforeTimestampMillis: $before, limit: $limit) {{ {_METADATA} }} }} }} }}"""
_MATERIALIZED = _OBSERVED.replace("Observed", "Materialized").replace(
    "assetObservations", "assetMaterializations"
)
_EVENTS = f"""query Events($id: ID!, $cursor: String, $limit: Int!) {{ logsForRun(runId: $id, afterCursor: $cursor,
    limit: $limit) {{ {_ERROR} ... on EventConnection {{ cursor hasMore events {{ __typename
    ... on ExecutionStepFailureEvent {{ stepKey error {{ message causes {{ message }} }}
        failureMetadata {{ description }} }}
    ... on RunFailureEvent {{ message error {{ message }} }} }} }} }} }}"""


_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the code location; `study` is None for that of a YAML which could not be made into a study."""

    name: str
    study: str | None
    description: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as Dagster tells of it; times are seconds since 1970."""

    id: str
    job: str
    status: str
    tags: dict[str, str]
    created_at: float
    started_at: float | None
    ended_at: float | None
    # None of runs that were not launched by a webserver or daemon.
    location: str | None

    @property
    def is_over(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status in ("SUCCESS", "FAILURE", "CANCELED")

    @property
    def study(self) -> str | None:
        """The study that it belongs to; None if it is none of this project's."""
        return self.tags.get(STUDY_TAG)

    @property
    def parent(self) -> str | None:
        """The whole run that it is a stage of."""
        return self.tags.get(PARENT_TAG)


@dataclass(frozen=True, slots=True)
class AssetEvent:
    """An observation or a materialization: of which run, when (seconds since 1970), and its numbers and texts."""

    run_id: str
    at: float
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a step of a run failed, or with no step the run itself."""

    step: str | None
    message: str


def _reading(
    method: Callable[Concatenate[Deployment, _Given], _Answer],
) -> Callable[Concatenate[Deployment, _Given], _Answer]:
    """Turn what reading an answer of another shape raises into a DagsterAnswerError."""

    @functools.wraps(method)
    def read(self: Deployment, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        try:
            return method(self, *args, **kwargs)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DagsterAnswerError(
                f"Dagster's webserver answers in a form that is not known ({type(error).__name__} in "
                f"{method.__name__}); is it of the version that this project is pinned to?"
            ) from error

    return read


class Deployment:
    """One code location of a running Dagster, as far as the façade needs it; every method raises DagsterError."""

    def __init__(self, graphql: GraphQL, location: str) -> None:
        self._graphql = graphql
        self._location = location

    @_reading
    def jobs(self) -> dict[str, Job]:
        """Return the jobs of the code location by name."""
        answer = self._ask(_JOBS, "repositoryOrError", **self._repository())
        if answer["__typename"] != "Repository":
            raise DagsterAnswerError(
                f"Dagster has no code location {self._location!r} loaded: {_cut(answer.get('message'))}"
            )
        return {
            job["name"]: Job(job["name"], _tags(job["tags"]).get(STUDY_TAG), job["description"] or "")
            for job in answer["jobs"]
        }

    @_reading
    def default_config(self, job: str) -> str | None:
        """Return the run configuration that a job has by itself, as YAML; None if it has none."""
        answer = self._ask(_PRESETS, "pipelineOrError", job=job, **self._repository())
        presets = answer.get("presets") or []
        return str(presets[0]["runConfigYaml"]) if presets else None

    @_reading
    def launch(self, job: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
        """Launch a run of a job; raises InvalidRequestError for a configuration that Dagster refuses."""
        answer = self._ask(
            _LAUNCH,
            "launchRun",
            job=job,
            config=json.dumps(config),
            tags=[{"key": key, "value": value} for key, value in tags.items()],
            **self._repository(),
        )
        match answer["__typename"]:
            case "LaunchRunSuccess":
                return _run(answer["run"])
            case "RunConfigValidationInvalid":
                messages = "; ".join(str(error["message"]) for error in answer["errors"])
                raise InvalidRequestError(f"settings: Dagster refuses them: {messages}")
            case "PipelineNotFoundError":
                raise NotFoundError(f"Dagster has no job {job!r} any more")
        raise _refusal(answer, f"to start {job}")

    @_reading
    def run(self, run_id: str) -> Run | None:
        """Return a run; None if there is none of this id."""
        answer = self._ask(_ONE_RUN, "runOrError", id=run_id)
        if answer["__typename"] == "RunNotFoundError":
            return None
        if answer["__typename"] != "Run":
            raise _refusal(answer, "to show a run")
        return _run(answer)

    @_reading
    def runs(self, tags: Mapping[str, str], statuses: Iterable[str] = ()) -> list[Run]:
        """Return the latest runs that have these tags, and one of these statuses if any are given."""
        wanted: dict[str, object] = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        if chosen := list(statuses):
            wanted["statuses"] = chosen
        answer = self._ask(_RUNS, "runsOrError", filter=wanted, limit=_MOST_RUNS)
        if answer["__typename"] != "Runs":
            raise _refusal(answer, "to list runs")
        return [_run(run) for run in answer["results"]]

    @_reading
    def terminate(self, run_id: str) -> None:
        """Have a run ended in order; raises ConflictError if Dagster cannot reach it."""
        answer = self._ask(_TERMINATE, "terminateRun", id=run_id)
        match answer["__typename"]:
            case "TerminateRunSuccess":
                return
            case "RunNotFoundError":
                raise NotFoundError(f"there is no job {run_id}")
            case "TerminateRunFailure":
                raise ConflictError(f"Dagster could not end the job: {_cut(answer['message'])}")
        raise _refusal(answer, "to end a run")

    @_reading
    def reload(self, seconds: float) -> None:
        """Have the code location loaded again, for which it is given so long; it may go on after this returns."""
        answer = self._read(_RELOAD, "reloadRepositoryLocation", {"location": self._location}, seconds)
        if answer["__typename"] != "WorkspaceLocationEntry":
            raise _refusal(answer, "to reload the code location")
        loaded = answer.get("locationOrLoadError")
        if loaded and loaded["__typename"] == "PythonError":
            raise DagsterAnswerError(f"the code location cannot be loaded: {_cut(loaded.get('message'))}")

    @_reading
    def observations(self, asset: list[str], before: float | None) -> list[AssetEvent]:
        """Return the latest observations of an asset, the latest first, all or until a time."""
        return self._asset_events(_OBSERVED, "assetObservations", asset, before)

    @_reading
    def materializations(self, asset: list[str], before: float | None) -> list[AssetEvent]:
        """Return the latest materializations of an asset, the latest first, all or until a time."""
        return self._asset_events(_MATERIALIZED, "assetMaterializations", asset, before)

    @_reading
    def failures(self, run_id: str) -> list[StepFailure]:
        """Return why a run's steps and the run failed, as far as its first events say."""
        found: list[StepFailure] = []
        cursor: str | None = None
        for _ in range(_MOST_EVENTS // _EVENTS_AT_ONCE):
            answer = self._ask(_EVENTS, "logsForRun", id=run_id, cursor=cursor, limit=_EVENTS_AT_ONCE)
            if answer["__typename"] != "EventConnection":
                break
            found += [failure for event in answer["events"] if (failure := _failure(event))]
            cursor = answer["cursor"]
            if not answer["hasMore"]:
                break
        return found

    def _asset_events(
        self, document: str, field: str, asset: list[str], before: float | None
    ) -> list[AssetEvent]:
        moment = None if before is None else str(round(before * 1000))
        answer = self._ask(document, "assetOrError", key=asset, before=moment, limit=_RECENT)
        return [
            AssetEvent(
                str(event["runId"]), float(event["timestamp"]) / 1000, _metadata(event["metadataEntries"])
            )
            for event in answer.get(field) or []
        ]

    def _repository(self) -> dict[str, str]:
        return {"location": self._location, "repository": _REPOSITORY}

    def _ask(self, document: str, field: str, **variables: object) -> dict[str, Any]:
        return self._read(document, field, variables)

    def _read(
        self, document: str, field: str, variables: Mapping[str, object], seconds: float | None = None
    ) -> dict[str, Any]:
        answer = self._graphql.ask(document, variables, seconds=seconds).get(field)
        if not isinstance(answer, dict) or not isinstance(answer.get("__typename"), str):
            raise DagsterAnswerError(f"Dagster's webserver answers without {field}")
        return answer


def _run(answer: Mapping[str, Any]) -> Run:
    origin = answer["repositoryOrigin"]
    return Run(
        id=str(answer["runId"]),
        job=str(answer["jobName"]),
        status=str(answer["status"]),
        tags=_tags(answer["tags"]),
        created_at=float(answer["creationTime"]),
        started_at=answer["startTime"],
        ended_at=answer["endTime"],
        location=origin["repositoryLocationName"] if origin else None,
    )


def _tags(answer: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in answer}


def _metadata(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return those entries that are numbers, texts or JSON, by label."""
    values: dict[str, Any] = {}
    for entry in entries:
        if "intRepr" in entry:
            values[entry["label"]] = int(entry["intRepr"])
        elif "floatValue" in entry:
            values[entry["label"]] = entry["floatValue"]
        elif "jsonString" in entry:
            values[entry["label"]] = json.loads(entry["jsonString"])
        elif "text" in entry:
            values[entry["label"]] = entry["text"]
    return values


def _failure(event: Mapping[str, Any]) -> StepFailure | None:
    if event["__typename"] == "ExecutionStepFailureEvent":
        error = event["error"] or {"message": ""}
        described = (event["failureMetadata"] or {}).get("description")
        causes = [cause["message"] for cause in error.get("causes") or ()]
        return StepFailure(event["stepKey"], str(described or (causes or [error["message"]])[-1]))
    if event["__typename"] == "RunFailureEvent":
        return StepFailure(None, str(event["message"]))
    return None


def _cut(message: object) -> str:
    """Return the first of what Dagster says: the rest is a trace, and as a rule of its own."""
    return str(message or "it does not say why").split("\n", 1)[0][:_MAX_SHOWN]


def _refusal(answer: Mapping[str, Any], what: str) -> DagsterAnswerError:
    if answer["__typename"] == "UnauthorizedError":
        return DagsterAnswerError(f"Dagster's webserver is not allowed {what}: is it read-only?")
    return DagsterAnswerError(
        f"Dagster's webserver failed {what}: {_cut(answer.get('message') or answer['__typename'])}"
    )
