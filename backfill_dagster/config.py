"""What a backfill's YAML may say: the one place where the vocabulary and its defaults are defined.

`load_study` reads one `configs/<name>.yaml`, replaces `${NAME}` by environment variables and validates it;
every complaint names the file, the field, the value and what is allowed. Nothing here opens a source or the
network.
"""

from __future__ import annotations

import difflib
import keyword
import os
import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from backfill_dagster.errors import ConfigError

RecordType = Literal[
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
]
RECORD_TYPES: tuple[RecordType, ...] = (
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
)

# The first month with public records: what claims to be older was backdated by its client.
NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)

# A name becomes the name of jobs, assets and folders, so it may be none that Dagster or a sibling job uses.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,40}")
RESERVED_NAMES = frozenset(keyword.kwlist).union(
    ("context", "conf", "config", "meta", "arg_dict", "dict", "input_arg_dict", "output_arg_dict"),
    ("int", "str", "float", "bool", "input", "output", "type"),
)
RESERVED_SUFFIXES = ("_rebuild", "_retry_failed", "_refresh", "_purge", "_verify")


class Section(BaseModel):
    """A part of the YAML: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


# --- where the DIDs come from ---


class InlineSource(Section):
    """DIDs written into the YAML itself."""

    type: Literal["inline"]
    dids: tuple[str, ...] = Field(min_length=1)


class TextSource(Section):
    """A text file with one DID a line; empty lines and lines that begin with `#` are passed over."""

    type: Literal["text"]
    path: Path


class CsvSource(Section):
    """A CSV file with a header and a column of DIDs."""

    type: Literal["csv"]
    path: Path
    column: str = "did"


class ParquetSource(Section):
    """A Parquet file, or a glob of them, with a column of DIDs."""

    type: Literal["parquet"]
    path: Path
    column: str = "did"


class SqliteSource(Section):
    """A query against an SQLite file, opened read-only; its result has a column `did`."""

    type: Literal["sqlite"]
    path: Path
    query: str = "SELECT did FROM dids"


_SOURCES = (InlineSource, TextSource, CsvSource, ParquetSource, SqliteSource)
SOURCE_TYPES = ("inline", "text", "csv", "parquet", "sqlite")


def _source_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


Source = Annotated[
    Annotated[InlineSource, Tag("inline")]
    | Annotated[TextSource, Tag("text")]
    | Annotated[CsvSource, Tag("csv")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[SqliteSource, Tag("sqlite")],
    Discriminator(
        _source_type,
        custom_error_type="source_type",
        custom_error_message="`type` must be one of " + ", ".join(SOURCE_TYPES),
    ),
]


# --- the study period ---

_OLD_INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}-\d{2}:\d{2}:\d{2}")


def _parse_instant(value: object, *, day_end: bool) -> datetime:
    """Read a date, `YYYY-MM-DD-HH:MM:SS`, or an ISO 8601 instant; a bare end date includes its whole day."""
    allowed = "must be YYYY-MM-DD, YYYY-MM-DD-HH:MM:SS or an ISO 8601 instant"
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time.max if day_end else time.min, tzinfo=UTC)
    if not isinstance(value, str):
        raise ValueError(allowed)  # noqa: TRY004  pydantic turns only ValueError into a message
    text = value.strip()
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return _parse_instant(date.fromisoformat(text), day_end=day_end)
        if _OLD_INSTANT.fullmatch(text):
            return datetime.strptime(text, "%Y-%m-%d-%H:%M:%S").replace(tzinfo=UTC)
        return _parse_instant(datetime.fromisoformat(text), day_end=day_end)
    except ValueError:
        raise ValueError(allowed) from None


def _start_instant(value: object) -> datetime | None:
    return None if value is None else _parse_instant(value, day_end=False)


def _end_instant(value: object) -> datetime | None:
    return None if value is None else _parse_instant(value, day_end=True)


class TimeRange(Section):
    """The study period, both ends inside, and what becomes of records outside it.

    `normalize` keeps a record from outside under its true date and gives it a `sync_timestamp` by the rule of
    `records/period.py`; `drop` leaves it out. Without an `end_date` the period is open. `partitions` are the time
    windows that the tables are cut into.
    """

    start_date: Annotated[datetime | None, BeforeValidator(_start_instant)] = None
    end_date: Annotated[datetime | None, BeforeValidator(_end_instant)] = None
    outside: Literal["drop", "normalize"] = "normalize"
    partitions: Literal["monthly", "weekly", "daily"] = "monthly"

    @model_validator(mode="before")
    @classmethod
    def _default_period(cls, value: Any) -> Any:
        if isinstance(value, dict) and "start_date" not in value and "end_date" not in value:
            return {**value, "start_date": "2024-09-27-00:00:00", "end_date": "2024-12-02-00:00:00"}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> TimeRange:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            start, end = (f"{day:%Y-%m-%d %H:%M:%S}" for day in (self.start_date, self.end_date))
            raise ValueError(f"start_date {start} is after end_date {end}")
        if self.outside == "drop" and self.end_date and self.end_date < NETWORK_START:
            raise ValueError(f"the period ends before the network's first month, {NETWORK_START:%Y-%m}")
        if self.start_date and self.start_date > datetime.now(UTC):
            raise ValueError(
                f"start_date {self.start_date:%Y-%m-%d} is in the future: nothing can be collected yet"
            )
        return self

    @property
    def earliest(self) -> datetime:
        """The earliest instant at which a dated row can have been created."""
        if self.outside == "normalize" or self.start_date is None:
            return NETWORK_START
        return max(NETWORK_START, self.start_date)

    @property
    def latest(self) -> datetime | None:
        """The latest such instant; None if it is now, whenever that is."""
        if self.outside == "normalize" or self.end_date is None or self.end_date > datetime.now(UTC):
            return None
        return self.end_date


# --- how the work is done ---


def _http_origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("must be http(s)://host[:port]")
    return value.rstrip("/")


def _variable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be the name of an environment variable, not what it holds")
    return value


def _cron(value: str) -> str:
    # What the fields say is for the scheduler to judge, when the study's definitions are made.
    if not re.fullmatch(r"\S+( \S+){4}", value):
        raise ValueError("must be a cron expression of five fields, such as `0 3 * * *`")
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone, such as Europe/Berlin") from None
    return value


def _owner(value: str) -> str:
    # What Dagster takes for an owner.
    if not re.fullmatch(r"team:[A-Za-z0-9_]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", value):
        raise ValueError("must be team:<name>, or a plain e-mail address whose last part has 2 to 7 letters")
    return value


class Processing(Section):
    """How fast and how thoroughly."""

    batch_size: int = Field(
        100, ge=1, le=1000, description="Accounts per pack, the unit of commit of a fetch."
    )
    pack_megabytes: int = Field(64, ge=1, le=1024, description="Repository bytes per pack.")
    max_concurrent_pds: int = Field(32, ge=1, le=1000, description="Hosts worked at once.")
    requests_in_flight: int = Field(4, ge=1, le=50, description="Requests under way at once per host.")
    requests_per_second: float = Field(9, gt=0, le=1000, description="Requests per second per host.")
    max_retries: int = Field(3, ge=0, le=20, description="Tries after the first, for failures only.")
    max_run_minutes: float | None = Field(
        None,
        gt=0,
        description="Begin nothing more after so long; the next run goes on. No limit if left out.",
    )
    verify: Literal["full", "structure"] = Field(
        "full", description="`structure` leaves out the commit's signature and nothing else."
    )
    workers: int | None = Field(None, ge=1, le=256, description="Worker processes; one per core if left out.")
    skip_backfill: bool = Field(False, description="Fetch nothing: rebuild the tables from what is stored.")
    record_json: bool = Field(True, description="Keep each record's JSON beside its columns.")

    @property
    def worker_count(self) -> int:
        """How many worker processes there are."""
        return self.workers or os.cpu_count() or 1


class Storage(Section):
    """Where the files go."""

    type: Literal["parquet"] = "parquet"
    path: Path = Path("./data")

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if value == "dynamodb":
            raise ValueError(
                "records cannot be stored in DynamoDB: an item holds at most 400 kB, less than a record may "
                "have, and tables are read by scanning columns; use `type: parquet`"
            )
        return value

    @field_validator("path", mode="before")
    @classmethod
    def _local_path(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError("must be a local directory")
        return value


class Monitoring(Section):
    """What the run tells, and whom."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    alert_on_failure: bool = Field(
        False,
        description="Send a message when a run of the study fails, to the address in the environment variable "
        "that `alert_webhook_variable` names.",
    )
    alert_webhook_variable: Annotated[str, AfterValidator(_variable_name)] = Field(
        "BACKFILL_ALERT_WEBHOOK",
        description="The environment variable with the webhook's address, which is a secret and so stands in no file.",
    )
    ui_url: Annotated[str, AfterValidator(_http_origin)] | None = Field(
        None, description="Where people open Dagster's UI, for links in messages."
    )


class Quality(Section):
    """What the servers and the data may do before a check warns; shares between 0 and 1."""

    max_failed_accounts: float = Field(
        0.01, ge=0, le=1, description="Share of the source's accounts whose latest fetch failed."
    )
    max_rejected_records: float = Field(
        0.001, ge=0, le=1, description="Share of the fetched records that could not be decoded."
    )
    max_undated_records: float = Field(
        0.02, ge=0, le=1, description="Share of the kept records without a date that can be believed."
    )
    max_records_with_issues: float = Field(
        0.05, ge=0, le=1, description="Share of the kept records with a field that breaks its lexicon."
    )
    max_uneven_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How much larger the share of lost accounts, or of rejected records, may be on one host, or among "
        "accounts of like activity, than it is over all.",
    )


class Automation(Section):
    """What happens by itself while Dagster's daemon runs; cron expressions have five fields.

    Whatever starts network traffic is off unless it is named here. A switch in the UI overrides it.
    """

    on_new_dids: bool = Field(False, description="Look accounts up when the source has changed.")
    on_new_hosts: bool = Field(False, description="Fetch the hosts that have accounts not fetched yet.")
    on_new_data: bool = Field(
        True, description="Turn new packs into records, and those into the tables that they change."
    )
    refresh_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None, description="When to run the refresh; `0 3 * * *`, but switched off, if left out."
    )
    newest_partition_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None,
        description="When to build the tables' newest time partition; `0 * * * *`, but switched off, if left out.",
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"


class SandboxSettings(Section):
    """A made-up network on loopback instead of the real one: the same for the same numbers."""

    seed: int = Field(1, ge=0)
    accounts: int = Field(60, ge=30, le=100_000)
    hosts: int = Field(5, ge=1, le=5_000)
    records: int = Field(500, ge=1, description="Median number of records per account.")


class Network(Section):
    """Everything about the servers that are talked to."""

    plc_url: Annotated[str, AfterValidator(_http_origin)] = "https://plc.directory"
    plc_requests_per_second: float = Field(20, gt=0, le=1000)
    contact: str | None = Field(
        None,
        max_length=200,
        description="An e-mail or web address in the User-Agent, for the servers' operators.",
    )
    directory_max_age_hours: float = Field(
        24, ge=0, description="How long a resolved DID document is believed."
    )
    connect_timeout_seconds: float = Field(10, gt=0, le=300)
    read_timeout_seconds: float = Field(60, gt=0, le=600, description="The longest silence within an answer.")
    repo_timeout_seconds: float = Field(3600, gt=0, description="The longest time for one repository.")
    min_bytes_per_second: float = Field(
        1000,
        ge=0,
        description="A repository that comes more slowly, on average after 30 s, is given up; 0 never gives up.",
    )
    max_repo_megabytes: int = Field(2048, ge=1, description="The largest repository that is accepted.")
    retry_base_seconds: float = Field(
        1, gt=0, le=60, description="Backoff before the first retry, on average."
    )
    max_park_minutes: float = Field(
        30, ge=0, description="How long a host may ask for pauses before its accounts count as rate-limited."
    )
    allow_private_addresses: bool = Field(
        False, description="Also talk to hosts in private, loopback and link-local address ranges."
    )
    connect_to: dict[str, str] = Field(
        default_factory=dict,
        description="`host:port` of a URL to the `address:port` that is connected to instead.",
    )
    sandbox: SandboxSettings | None = None

    @field_validator("contact")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("must be printable ASCII: it is sent in a header of each request")
        return value

    @field_validator("connect_to")
    @classmethod
    def _endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        for endpoint in (*value, *value.values()):
            if not re.fullmatch(r"[A-Za-z0-9._-]+:\d{1,5}", endpoint):
                raise ValueError(f"{endpoint!r} must be host:port")
        return value


class Study(Section):
    """One validated backfill: everything that its YAML decides."""

    name: str
    version: str = "1.0"
    description: str | None = None
    owners: tuple[Annotated[str, AfterValidator(_owner)], ...] = Field(
        (), description="Who answers for the study: e-mail addresses or `team:<name>`."
    )
    source: Source
    record_types: tuple[RecordType, ...] = RECORD_TYPES
    time_range: TimeRange = Field(default_factory=lambda: TimeRange.model_validate({}))
    inactive_accounts: Literal["hide", "keep", "purge"] = "hide"
    purge_deleted_after_days: int | None = Field(
        None,
        ge=0,
        description="Purge accounts for good that have been deleted for so long; never if left out. With "
        "`inactive_accounts: purge` it is the time that accounts in any inactive state have to come back.",
    )
    processing: Processing = Processing()
    storage: Storage = Storage()
    monitoring: Monitoring = Monitoring()
    quality: Quality = Quality()
    automation: Automation = Automation()
    network: Network = Network()

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError("must begin with a letter and hold only a-z, 0-9 and _, at most 41 of them")
        if value in RESERVED_NAMES:
            raise ValueError("is a word that Dagster keeps for itself")
        if "__" in value:
            raise ValueError("must not contain `__`, which parts the names of a study's steps")
        if "_stage_" in value:
            raise ValueError("must not contain `_stage_`: it stands in the names of a study's jobs")
        if value.endswith(RESERVED_SUFFIXES):
            raise ValueError(
                f"must not end in {' or '.join(RESERVED_SUFFIXES)}: those are names of a study's jobs"
            )
        return value

    @field_validator("record_types")
    @classmethod
    def _distinct(cls, value: tuple[RecordType, ...]) -> tuple[RecordType, ...]:
        repeated = sorted({kind for kind in value if value.count(kind) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} twice")
        if not value:
            raise ValueError("must name at least one record type")
        return value

    @property
    def root(self) -> Path:
        """The folder that holds all of this study's files."""
        return self.storage.path / self.name


# --- reading the file ---


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_study(path: Path) -> Study:
    """Read and validate one backfill YAML; the study's name is the file's stem.

    Raises ConfigError naming the file, the field, the value and what is allowed.
    """
    document = _read_yaml(path)
    if not isinstance(document, dict) or "backfill" not in document:
        raise ConfigError(f"{path}: must hold one mapping named `backfill`")
    unknown = sorted(map(str, set(document) - {"backfill"}))
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}: unknown key; only `backfill` stands at the top")
    body = _fill_variables(document["backfill"], path, "backfill")
    try:
        study = Study.model_validate(body)
    except ValidationError as error:
        raise ConfigError(_describe(path, error)) from None
    if study.name != path.stem:
        raise ConfigError(
            f"{path}: backfill.name = {study.name!r}: must be {path.stem!r}, the name of the file"
        )
    return study


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None


def _fill_variables(value: Any, path: Path, field: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_variables(item, path, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_variables(item, path, f"{field}.{number}") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{path}: {field} = {value!r}: the environment variable {name} is not set")
        return os.environ[name]

    return _VARIABLE.sub(lookup, value)


def _describe(path: Path, error: ValidationError) -> str:
    lines = [_describe_one(path, dict(item)) for item in error.errors(include_url=False)]
    return "\n".join(lines)


def _describe_one(path: Path, item: dict[str, Any]) -> str:
    # The tag of the source's union is no key of the YAML.
    steps = [str(step) for step in item["loc"]]
    if steps[:1] == ["source"] and len(steps) > 1 and steps[1] in SOURCE_TYPES:
        del steps[1]
    field = ".".join(["backfill", *steps])
    if item["type"] == "extra_forbidden":
        return f"{path}: {field} = {item['input']!r}: unknown key{_suggest(steps)}"
    if item["type"] == "missing":
        return f"{path}: {field}: is missing"
    message = item["msg"].removeprefix("Value error, ")
    if steps[-1:] == ["alert_webhook_variable"]:
        # Somebody may have put the secret itself there, which no message is to repeat.
        return f"{path}: {field}: {message}"
    return f"{path}: {field} = {item['input']!r}: {message}"


def _suggest(steps: list[str]) -> str:
    model: Any = Study
    for step in steps[:-1]:
        if step == "source":
            names = sorted({name for kind in _SOURCES for name in kind.model_fields})
            break
        annotation = model.model_fields[step].annotation
        model = next((kind for kind in (annotation, *_members(annotation)) if _is_section(kind)), None)
        if model is None:
            return ""
    else:
        names = list(model.model_fields)
    close = difflib.get_close_matches(steps[-1], names, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{hint or ';'} allowed here: {', '.join(names)}"


def _members(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ()))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
