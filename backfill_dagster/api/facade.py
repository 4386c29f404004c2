"""Start, look at and cancel backfills, list and store their configs: the one place that HTTP and AWS Lambda call."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Self

import yaml

from backfill_dagster.api.configs import ConfigStore
from backfill_dagster.api.deployment import UNFINISHED, Deployment, Job, Run
from backfill_dagster.api.errors import (
    ApiError,
    ConflictError,
    DagsterAnswerError,
    DagsterError,
    DagsterTimeoutError,
    InvalidRequestError,
    NotFoundError,
)
from backfill_dagster.api.graphql_client import GraphQL
from backfill_dagster.api.models import (
    CanceledJob,
    ConfigState,
    ConfigSummary,
    JobStatus,
    Mode,
    RunSettings,
    StartedJob,
    StoredConfig,
)
from backfill_dagster.api.status import ASSET_OF_STAGE, end_of, job_status, stage_name, state_of
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.tags import PARENT_TAG, STARTED_BY_TAG, STUDY_TAG

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from backfill_dagster.api.environment import FacadeSettings
    from backfill_dagster.api.waiting import Waiting
    from backfill_dagster.config.study import Study

_POLL_SECONDS = 0.5


class Backfills:
    """The façade; its methods may be called by many threads at once, and raise ApiError and nothing else."""

    def __init__(self, deployment: Deployment, store: ConfigStore, *, reload_seconds: float) -> None:
        self._deployment = deployment
        self._store = store
        self._reload_seconds = reload_seconds
        # Two at once could each find that nothing is at work on the study.
        self._starting = threading.Lock()
        self._storing = threading.Lock()

    @classmethod
    @contextmanager
    def connected(cls, settings: FacadeSettings) -> Iterator[Self]:
        """Give a façade of the deployment that the settings name; asks it nothing yet."""
        graphql = GraphQL(settings.dagster_url, timeout_seconds=settings.timeout_seconds)
        try:
            yield cls(
                Deployment(graphql, settings.location),
                ConfigStore(settings.configs, settings.reach),
                reload_seconds=settings.reload_seconds,
            )
        finally:
            graphql.close()

    def start(self, config: str, mode: Mode, settings: RunSettings, started_by: str) -> StartedJob:
        """Start a job of a stored config; raises ConflictError while another one is at work on it."""
        self._ready_job(config)
        job = config if mode is Mode.BACKFILL else f"{config}_{mode}"
        tags = {STARTED_BY_TAG: started_by}
        with self._starting:
            self._ensure_idle(config)
            run = self._deployment.launch(job, self._run_config(job, settings), tags)
        return StartedJob(job_id=run.id, config=config, mode=mode, state=state_of(run))

    def start_yaml(self, text: str, mode: Mode, settings: RunSettings, started_by: str) -> StartedJob:
        """Store a YAML, unless it is stored word for word, and start its job."""
        return self.start(self.store(text).name, mode, settings, started_by)

    def status(self, job_id: str) -> JobStatus:
        """Return where a job of this project stands; raises NotFoundError."""
        run = self._own_run(job_id)
        children = self._deployment.runs({PARENT_TAG: run.id})
        parts = children or ([run] if stage_name(run) else [])
        observed = {
            name: self._deployment.observations([run.study or "", ASSET_OF_STAGE[name]], end_of(part))
            for part in parts
            if (name := stage_name(part)) in ASSET_OF_STAGE
        }
        built = [part for part in parts if stage_name(part) == "accounts"]
        accounts = (
            self._deployment.materializations([run.study or "", "accounts"], end_of(built[-1]))
            if built
            else []
        )
        failures = self._deployment.failures(run.id) if run.status == "FAILURE" else []
        try:
            return job_status(run, parts, observed, accounts, failures)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise DagsterAnswerError(
                f"what the job {run.id} tells of itself is in a form that is not known ({type(error).__name__})"
            ) from error

    def cancel(self, job_id: str) -> CanceledJob:
        """Have a job ended in order, with the stages in it; what it has fetched is kept."""
        run = self._own_run(job_id)
        if run.is_over:
            raise ConflictError(f"the job is over: it {state_of(run)}")
        if run.parent is not None:
            raise ConflictError(f"it is a stage of the job {run.parent}: cancel that one")
        if run.status != "CANCELING":
            self._deployment.terminate(run.id)
        return CanceledJob(job_id=run.id, state=state_of(self._own_run(job_id)))

    def configs(self) -> list[ConfigSummary]:
        """Return the stored configs, each with whether it can be started."""
        jobs = self._deployment.jobs()
        return [self._summary(name, jobs.get(name)) for name in self._store.names()]

    def store(self, text: str) -> StoredConfig:
        """Validate a YAML, store it, and have Dagster load it; leaves nothing behind if any of that fails."""
        study = self._store.check(text)
        with self._storing:
            jobs = self._deployment.jobs()
            created = self._store.add(study.name, text)
            if created or not _is_ready(jobs.get(study.name), study.name):
                with self._removing(study.name) if created else nullcontext():
                    self._load(study.name)
        return StoredConfig(name=study.name, created=created)

    def waiting(self, config: str, dids: Sequence[str] = ()) -> Waiting:
        """Return who of a config's source, or of those named, is not collected or settled yet; fetches nothing."""
        # Whoever only starts jobs is spared what reads the tables: seconds of a cold start, and its memory.
        from backfill_dagster.api.waiting import waiting_accounts

        return waiting_accounts(self.study(config), dids)

    def engaged(self, config: str, start: datetime | None, end: datetime | None) -> list[str]:
        """Return whom a config's accounts engaged with in a period, the config's where it is open."""
        from backfill_dagster.api.waiting import engaged_accounts

        study = self.study(config)
        return engaged_accounts(study, start or study.time_range.start_date, end or study.time_range.end_date)

    def study(self, config: str) -> Study:
        """Return a stored config as the study that it is; raises NotFoundError or ConflictError."""
        if config not in self._store.names():
            raise NotFoundError(f"config = {config!r}: there is no such config")
        try:
            return self._store.load(config)
        except ConfigError as error:
            raise ConflictError(f"config = {config!r}: is not valid: {_placeless(str(error))}") from None

    def _ready_job(self, config: str) -> None:
        """Make sure that Dagster has the job of a config; raises NotFoundError or ConflictError."""
        job = self._deployment.jobs().get(config)
        if _is_ready(job, config):
            return
        if config not in self._store.names():
            raise NotFoundError(f"config = {config!r}: there is no such config")
        try:
            self._load(config)
        except InvalidRequestError as error:
            # Not the request's fault.
            raise ConflictError(str(error)) from None

    def _load(self, name: str) -> None:
        """Reload the code location until it has a study's job; raises InvalidRequestError if it refuses the study."""
        deadline = time.monotonic() + self._reload_seconds
        self._deployment.reload(self._reload_seconds)
        while True:
            try:
                job = self._deployment.jobs().get(name)
            except DagsterError:
                # While it is loaded it is not there.
                if time.monotonic() > deadline:
                    raise
                job = None
            if _is_ready(job, name):
                return
            if job is not None:
                raise InvalidRequestError(f"config {name!r} cannot be run: {_placeless(job.description)}")
            if time.monotonic() > deadline:
                raise DagsterTimeoutError(
                    f"Dagster does not show the job {name!r} within {self._reload_seconds:g} s after a reload; does "
                    "its code location read the same configs folder (BACKFILL_CONFIGS)?"
                )
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _removing(self, name: str) -> Iterator[None]:
        """Take a config away again that Dagster does not load."""
        try:
            yield
        except ApiError:
            self._store.remove(name)
            with suppress(ApiError):
                self._deployment.reload(self._reload_seconds)
            raise

    def _ensure_idle(self, config: str) -> None:
        for run in self._deployment.runs({STUDY_TAG: config}, UNFINISHED):
            # A run of a command line may be one that died long ago; it holds the study's lock if it lives, and the new
            # run says so.
            if run.parent is None and run.location is not None:
                raise ConflictError(
                    f"the job {run.id} is at work on {config}: wait for it, or cancel it first"
                )

    def _run_config(self, job: str, settings: RunSettings) -> dict[str, Any]:
        """Return the run configuration of a job with these settings: Dagster takes one whole, or the job's own."""
        chosen = settings.chosen()
        if not chosen:
            return {}
        config: Any = yaml.safe_load(self._deployment.default_config(job) or "{}") or {}
        op = config.setdefault("ops", {}).setdefault(f"{job}__fetch_hosts", {})
        op.setdefault("config", {}).update(chosen)
        return dict(config)

    def _own_run(self, job_id: str) -> Run:
        run = self._deployment.run(job_id)
        if run is None or run.study is None:
            raise NotFoundError(f"there is no job {job_id}")
        return run

    def _summary(self, name: str, job: Job | None) -> ConfigSummary:
        try:
            study = self._store.load(name)
        except ConfigError as error:
            return ConfigSummary(name=name, state=ConfigState.INVALID, error=_placeless(str(error)))
        described = {"name": name, "description": study.description, "version": study.version}
        if _is_ready(job, name):
            return ConfigSummary(**described, state=ConfigState.READY)
        if job is not None:
            return ConfigSummary(**described, state=ConfigState.INVALID, error=_placeless(job.description))
        return ConfigSummary(**described, state=ConfigState.NOT_LOADED)


def _placeless(text: str) -> str:
    """Return a complaint about a config without the folder that it is in."""
    # From the beginning of a word and never back: a long one without a name in it is walked through once.
    return re.sub(r"(?<![^\s'\"])(?:[^/\s'\"]*+/)++([^/\s'\"]+\.ya?ml)\b", r"\1", text)


def _is_ready(job: Job | None, config: str) -> bool:
    return job is not None and job.study == config
