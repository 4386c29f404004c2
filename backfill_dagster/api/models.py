"""What is asked and answered: the shapes of requests and answers, with the descriptions and examples of the docs."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from backfill_dagster.dids.syntax import WHITESPACE, check_did

RUN_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_EXAMPLE_ID = "7f2b1b52-8d4e-4f0c-9a43-2f3c1d0a5b11"
_EXAMPLE_YAML = """backfill:
  name: pilot
  source: {type: inline, dids: ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]}
  time_range: {start_date: "2024-09-27", end_date: "2024-12-02"}
"""

ConfigName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]{0,40}$", description="Name of a stored config.", examples=["demo"]),
]


def account(did: str) -> str:
    """Validate the DID of an account; raises ValueError."""
    stripped = did.strip(WHITESPACE)
    if (rejection := check_did(stripped)) is not None:
        raise ValueError(f"is no DID of an account ({rejection})")
    return stripped


Did = Annotated[str, AfterValidator(account)]


class Mode(StrEnum):
    """What a job does."""

    BACKFILL = "backfill"
    REFRESH = "refresh"
    RETRY_FAILED = "retry_failed"
    REBUILD = "rebuild"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELING = "canceling"
    CANCELED = "canceled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Closed(BaseModel):
    """A request's part: closed to fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSettings(Closed):
    """What may change from one run to the next; what is left out is as the config says."""

    only_dids: tuple[Did, ...] = Field((), max_length=10_000, description="Fetch these accounts alone.")
    only_hosts: tuple[Annotated[str, Field(max_length=300)], ...] = Field(
        (), max_length=1_000, description="Fetch from these PDS hosts alone."
    )
    max_concurrent_pds: int | None = Field(None, ge=1, le=1000, description="Hosts worked at once.")
    requests_in_flight: int | None = Field(None, ge=1, le=50, description="Requests under way per host.")
    requests_per_second: float | None = Field(
        None, gt=0, le=1000, allow_inf_nan=False, description="Requests per second per host."
    )
    max_retries: int | None = Field(None, ge=0, le=20, description="Tries after the first.")
    max_run_minutes: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Begin nothing more after so long."
    )

    def chosen(self) -> dict[str, Any]:
        """Return what is set."""
        values = self.model_dump(exclude_defaults=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class StartRequest(Closed):
    """A config's name, or a whole YAML; and how to run it."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["config"]}, {"required": ["yaml"]}]},
    )

    config: ConfigName | None = None
    yaml: str | None = Field(
        None,
        description="A whole YAML, which is validated and stored like one posted to `/api/backfill/configs`: "
        "the token needs the scope `admin` as well as `run`.",
    )
    mode: Mode = Field(
        Mode.BACKFILL,
        description="`backfill` fetches what is not fetched yet, `refresh` what has moved on since, `retry_failed` "
        "what failed; `rebuild` fetches nothing and makes the tables anew from what is stored.",
    )
    settings: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _one_study(self) -> StartRequest:
        if (self.config is None) == (self.yaml is None):
            raise ValueError("needs either `config` or `yaml`, and not both")
        if self.mode is Mode.REBUILD and self.settings.chosen():
            raise ValueError("settings: a rebuild fetches nothing, so that they would change nothing")
        return self


class StoreRequest(Closed):
    """A whole YAML to validate and store; its `backfill.name` becomes the name of the file."""

    yaml: str = Field(examples=[_EXAMPLE_YAML])


class StartedJob(BaseModel):
    """A job that was handed to Dagster."""

    job_id: str = Field(description="The id of Dagster's run.", examples=[_EXAMPLE_ID])
    config: str
    mode: Mode
    state: JobState


class Progress(BaseModel):
    """How far a stage is, as it said last; `details` are its other numbers."""

    unit: str = Field(description="What is counted.", examples=["accounts"])
    done: int
    total: int
    percent: float
    per_second: float | None = None
    seconds_to_go: float | None = None
    at: datetime = Field(description="When it was said: every ten seconds at first, every minute later.")
    details: dict[str, Any] = Field(default_factory=dict)


class Stage(BaseModel):
    """One stage of a job: a run of its own, a child of the job's."""

    stage: str = Field(description="discover, fetch, convert, tables, derive, engaged or accounts")
    run_id: str
    state: JobState
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress | None = None


class Counts(BaseModel):
    """What became of the accounts and their records, from the table of accounts that the job has written."""

    accounts: int
    accounts_by_state: dict[str, int]
    records_fetched: int
    records_kept: int
    records_filtered: int
    records_rejected: int
    undated: int


class JobError(BaseModel):
    """Why a step failed; accounts are not named."""

    step: str | None
    message: str


class JobStatus(BaseModel):
    """Everything about one job; `progress` is that of the stage under way, or of the last that told of any."""

    job_id: str
    config: str
    job: str = Field(description="The name of Dagster's job.")
    state: JobState
    started_by: str | None = Field(description="`api:<name of the token>`; none if not started by the API.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    stage: str | None = Field(description="The stage under way.")
    progress: Progress | None
    stages: list[Stage]
    counts: Counts | None = Field(description="Once the job has written its table of accounts.")
    errors: list[JobError]


class CanceledJob(BaseModel):
    """A job that was told to end: it keeps what it has fetched, and the next one goes on from there."""

    job_id: str
    state: JobState


class ConfigState(StrEnum):
    """Whether a stored config can be run."""

    READY = "ready"
    INVALID = "invalid"
    NOT_LOADED = "not_loaded"


class ConfigSummary(BaseModel):
    """A stored config."""

    name: str
    state: ConfigState = Field(
        description="`ready` to be started; `invalid`, for the reason given; or `not_loaded` by Dagster yet."
    )
    description: str | None = None
    version: str | None = None
    error: str | None = None


class ConfigList(BaseModel):
    """All stored configs."""

    configs: list[ConfigSummary]


class StoredConfig(BaseModel):
    """A config that is stored and can be run."""

    name: str
    created: bool = Field(description="False if the same stood there already, word for word.")


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class ErrorBody(BaseModel):
    """What went wrong: a word for programs, a sentence for people."""

    code: str
    message: str
    fields: list[FieldError] | None = None


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody


class Health(BaseModel):
    """That the API is there; it asks nobody."""

    status: Literal["ok"] = "ok"
