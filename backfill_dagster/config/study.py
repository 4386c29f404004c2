"""One validated backfill: everything that its YAML decides."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from backfill_dagster.config.derived import Derived, Discovery
from backfill_dagster.config.filters import RecordFilter
from backfill_dagster.config.integrations import Integrations
from backfill_dagster.config.metadata_store import MetadataStore
from backfill_dagster.config.network import Network
from backfill_dagster.config.operation import Automation, Monitoring, Quality
from backfill_dagster.config.processing import Processing, Storage
from backfill_dagster.config.run_tags import RunTags
from backfill_dagster.config.section import Section
from backfill_dagster.config.sharing import Sharing
from backfill_dagster.config.sources import DidSource, Nsid, SharedSource
from backfill_dagster.config.time_range import TimeRange
from backfill_dagster.errors import ConfigError
from backfill_dagster.frozen.places import LABEL_PATTERN
from backfill_dagster.records.tables import OTHER_RECORDS, TABLE_BY_NAME, TABLES_OF_COLLECTION

if TYPE_CHECKING:
    from backfill_dagster.stores.location import Location

RecordType = Literal[
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
    "app.bsky.actor.profile",
]
RECORD_TYPES: tuple[RecordType, ...] = (
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
)

_POST = "app.bsky.feed.post"
_ABOUT_SUBJECTS = (
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
)

# A name becomes the name of jobs, assets and folders, so it may be none that Dagster or a sibling job uses.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,40}")
RESERVED_NAMES = frozenset(keyword.kwlist).union(
    ("context", "conf", "config", "meta", "arg_dict", "dict", "input_arg_dict", "output_arg_dict"),
    ("int", "str", "float", "bool", "input", "output", "type"),
)
RESERVED_SUFFIXES = ("_rebuild", "_retry_failed", "_refresh", "_purge", "_verify", "_share")


def _label(value: str) -> str:
    if not LABEL_PATTERN.fullmatch(value):
        raise ValueError("must be a label of up to 64 of a-z, 0-9, _ and -, the first a letter or digit")
    return value


def _owner(value: str) -> str:
    # What Dagster takes for an owner.
    if not re.fullmatch(r"team:[A-Za-z0-9_]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", value):
        raise ValueError("must be team:<name>, or a plain e-mail address whose last part has 2 to 7 letters")
    return value


class Study(Section):
    """One validated backfill: everything that its YAML decides."""

    name: str = Field(
        description="Name of the study and of its file: up to 41 of a-z, 0-9 and _, the first a letter."
    )
    version: str = Field("1.0", description="The owners' own count of versions, shown in the report.")
    description: str | None = Field(None, description="What the study is, shown in the UI and the report.")
    owners: tuple[Annotated[str, AfterValidator(_owner)], ...] = Field(
        (), description="Who answers for the study: e-mail addresses or `team:<name>`."
    )
    source: DidSource = Field(description="Where the DIDs of the accounts come from.")
    exclude: DidSource | None = Field(None, description="DIDs to leave out, whatever the source says.")
    fetch: Literal["repos", "records", "list_records"] = Field(
        "repos",
        description="`repos` takes each account's whole repository; `records` only the records that the filters' "
        "`uris` allow, each with its proof; `list_records` the slow way of `listRecords`, which proves nothing.",
    )
    record_types: tuple[RecordType, ...] = Field(
        RECORD_TYPES,
        description="The collections whose records become tables; posts give two, posts and replies.",
    )
    other_record_types: tuple[Nsid, ...] = Field(
        (), description="Further collections, whose records go to the table `other_records` as JSON."
    )
    filters: dict[RecordType, RecordFilter] = Field(
        default_factory=dict, description="By record type, which records to keep."
    )
    discovery: Discovery | None = None
    derived: Derived = Derived()
    time_range: TimeRange = Field(default_factory=lambda: TimeRange.model_validate({}))
    inactive_accounts: Literal["hide", "keep", "purge"] = Field(
        "hide",
        description="What becomes of the rows of accounts that were deactivated, deleted, suspended or taken down: "
        "`hide` leaves them out of the tables, `keep` shows them, `purge` removes them from all files for good.",
    )
    purge_deleted_after_days: int | None = Field(
        None,
        ge=0,
        description="Purge accounts for good that have been deleted for so long; never if left out. With "
        "`inactive_accounts: purge` it is the time that accounts in any inactive state have to come back.",
    )
    snapshot: Annotated[str, AfterValidator(_label)] | None = Field(
        None,
        description="A label, such as `paper-1`: the tables that are built next are frozen under it, and stay as they "
        "are while the collection goes on. Up to 64 of a-z, 0-9, _ and -.",
    )
    processing: Processing = Processing()
    storage: Storage = Storage()
    metadata_store: MetadataStore = MetadataStore()
    integrations: Integrations = Integrations()
    sharing: Sharing = Sharing()
    monitoring: Monitoring = Monitoring()
    quality: Quality = Quality()
    automation: Automation = Automation()
    run_tags: RunTags = Field(
        default_factory=dict,
        description="By kind of run, tags for what launches it: memory and processors, a queue, a priority. `all` is "
        "for every run, `whole` for those that do all stages.",
    )
    network: Network = Network()

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError("must begin with a letter and hold only a-z, 0-9 and _, at most 41 of them")
        if value in RESERVED_NAMES:
            raise ValueError("is a word that Dagster keeps for itself")
        if value == "import_legacy":
            raise ValueError("is the name of a job that belongs to no study")
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

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        known = ", ".join(self.record_types)
        is_rebuilt = isinstance(self.source, SharedSource)
        for kind, wanted in self.filters.items():
            if is_rebuilt and wanted.uris is not None:
                raise ValueError(
                    f"filters.{kind}.uris: the source is what is shared, which lists the records itself"
                )
            if kind not in self.record_types:
                raise ValueError(f"filters.{kind}: record_types has no such type; it has {known}")
            if wanted.subjects is not None and kind not in _ABOUT_SUBJECTS:
                raise ValueError(
                    f"filters.{kind}.subjects: only {', '.join(_ABOUT_SUBJECTS)} are about a subject"
                )
            for field in ("languages", "text"):
                if getattr(wanted, field) is not None and kind != _POST:
                    raise ValueError(f"filters.{kind}.{field}: only {_POST} has any")
        if self.fetch == "records" and not is_rebuilt:
            unnamed = [
                kind for kind in self.record_types if getattr(self.filters.get(kind), "uris", None) is None
            ]
            if unnamed or self.other_record_types:
                lacking = (*unnamed, *self.other_record_types)[0]
                raise ValueError(
                    f"fetch = 'records' needs filters.{lacking}.uris, the list of records to fetch; or leave that type "
                    "out"
                )
        repeated = set(self.other_record_types) & set(get_args(RecordType))
        if repeated:
            raise ValueError(f"other_record_types names {min(repeated)}, which belongs in record_types")
        return self

    @model_validator(mode="after")
    def _has_what_consumers_take(self) -> Study:
        own = [table for kind in self.record_types for table in TABLES_OF_COLLECTION[kind]]
        own += [OTHER_RECORDS] if self.other_record_types else []
        for table in self.sharing.tables or ():
            if table not in own:
                raise ValueError(f"sharing.tables names {table}; the study's tables are {', '.join(own)}")
        for name, consumer in self.integrations.consumers.items():
            if consumer.path is None and self.storage.type == "s3":
                raise ValueError(
                    f"integrations.consumers.{name}.path: a study in S3 has no folder for it; name one on a disk"
                )
            for table in consumer.tables:
                if table not in own:
                    raise ValueError(
                        f"integrations.consumers.{name}.tables names {table}; the study's tables are {', '.join(own)}"
                    )
                lacking = set(consumer.columns or ()) - set(TABLE_BY_NAME[table].schema)
                if lacking:
                    raise ValueError(
                        f"integrations.consumers.{name}.columns names {min(lacking)}, which {table} does not have"
                    )
        return self

    @property
    def record_filters(self) -> dict[str, RecordFilter]:
        """By collection, which records to keep: the filters, and of a study that is rebuilt what was shared."""
        given = cast("dict[str, RecordFilter]", self.filters)
        if not isinstance(self.source, SharedSource):
            return given
        # There may have been none of a type.
        listed = {"uris": self.source, "allow_empty": True}
        return {
            kind: given.get(kind, RecordFilter.model_construct()).model_copy(update=listed)
            for kind in (*self.record_types, *self.other_record_types)
        }

    # By the place of a text in the YAML, what stands there: the environment filled it in, and it can be a secret.
    _filled_in: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def filled_in(self) -> dict[str, str]:
        """The texts of the YAML, by place (`source.path`), in which the environment filled something in."""
        return dict(self._filled_in)

    def with_filled_in(self, texts: dict[str, str]) -> Study:
        """Return the study with a note of these texts."""
        noted = self.model_copy()
        noted._filled_in = dict(texts)
        return noted

    @property
    def location(self) -> Location:
        """The place that holds all of this study's files."""
        return self.storage.location / self.name

    @property
    def root(self) -> Path:
        """The folder with all of this study's files, of one that is stored on a disk; raises ConfigError else."""
        if not isinstance(self.location, Path):
            raise ConfigError(f"{self.name} is stored at {self.location}, not on a disk")
        return self.location
