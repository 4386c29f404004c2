"""Where a study's lists come from: the DIDs to collect, those to leave out, and the records to allow."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from backfill_dagster.config.metadata_store import MetadataStore
from backfill_dagster.config.section import Section, http_origin
from backfill_dagster.config.time_range import end_instant, start_instant

if TYPE_CHECKING:
    from collections.abc import Iterator

FileFormat = Literal["text", "csv", "parquet", "sqlite"]
_FORMAT_OF_SUFFIX: dict[str, FileFormat] = {
    ".txt": "text",
    ".csv": "csv",
    ".parquet": "parquet",
    ".sqlite": "sqlite",
    ".db": "sqlite",
}
_SCALARS = (str, int, float, type(None))


def format_of(name: str) -> FileFormat | None:
    """Tell the format of a file from the end of its name; None if that says nothing."""
    return _FORMAT_OF_SUFFIX.get(Path(name).suffix.lower())


def _s3_address(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/\S.*", value):
        raise ValueError("must be s3://bucket/key or s3://bucket/prefix/")
    return value


def _nsid(value: str) -> str:
    label = r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    if len(value) > 317 or not re.fullmatch(rf"{label}(?:\.{label})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}", value):
        raise ValueError("must be the NSID of a collection, such as app.bsky.feed.post")
    return value


def _path_or_address(value: Any) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a path, or s3://bucket/key")  # noqa: TRY004  pydantic turns only ValueError into a message
    return _s3_address(value) if value.startswith("s3://") else Path(value)


def _parameters(value: Any) -> Any:
    """Check by hand what pydantic would complain of once for each type that a value might have."""
    named = isinstance(value, dict)
    if not named and not isinstance(value, list | tuple):
        raise ValueError("must be a list, or a mapping of names to values")
    for name, item in value.items() if named else enumerate(value):
        if named and not isinstance(name, str):
            raise ValueError(f"{name!r} must be text: it is the name that stands for `:name` in the query")
        if not isinstance(item, _SCALARS):
            raise ValueError(f"{name} = {item!r} must be text, a number or null")  # noqa: TRY004  as above
    return value


S3Address = Annotated[str, AfterValidator(_s3_address)]
Parameters = Annotated[
    dict[str, str | int | float | None] | tuple[str | int | float | None, ...],
    BeforeValidator(_parameters),
    Field(description="What stands for `:name`, or for each `?`, in the query."),
]
Nsid = Annotated[str, AfterValidator(_nsid)]
_TYPE = "Which kind of source this is."
_Query = Annotated[str, Field(description="The query whose result has the column.")]
Column = Annotated[
    str | None, Field(description="The column to read; `did`, or `uri` for a list of records, if left out.")
]


# --- lists that are somewhere ---


class InlineSource(Section):
    """DIDs, or AT-URIs for a list of records, written into the YAML itself."""

    type: Literal["inline"] = Field(description=_TYPE)
    dids: tuple[str, ...] | None = Field(None, min_length=1, description="The DIDs of a list of accounts.")
    uris: tuple[str, ...] | None = Field(None, min_length=1, description="The AT-URIs of a list of records.")

    @model_validator(mode="after")
    def _one_list(self) -> InlineSource:
        if (self.dids is None) == (self.uris is None):
            raise ValueError("needs either `dids` or `uris`, and not both")
        return self


class TextSource(Section):
    """A text file with one entry a line; empty lines and lines that begin with `#` are passed over."""

    type: Literal["text"] = Field(description=_TYPE)
    path: Path = Field(description="The file.")


class CsvSource(Section):
    """A CSV file with a header and a column of entries."""

    type: Literal["csv"] = Field(description=_TYPE)
    path: Path = Field(description="The file.")
    column: Column = None


class ParquetSource(Section):
    """A Parquet file, or a glob of them, with a column of entries; local, or an object of S3."""

    type: Literal["parquet"] = Field(description=_TYPE)
    path: Annotated[str | Path, BeforeValidator(_path_or_address)] = Field(
        description="A path, a glob, or `s3://bucket/key`."
    )
    column: Column = None


class SqliteSource(Section):
    """A query against an SQLite file, opened read-only; its result has the column."""

    type: Literal["sqlite"] = Field(description=_TYPE)
    path: Path = Field(description="The file.")
    query: _Query = "SELECT did FROM dids"
    parameters: Parameters = ()
    column: Column = None


class S3Source(Section):
    """An object of S3, or all objects below a prefix that ends in `/`, in one of the formats of the local files.

    Credentials, region and endpoint come from the environment (`AWS_...`), as for all of AWS's tools.
    """

    type: Literal["s3"] = Field(description=_TYPE)
    path: S3Address = Field(
        description="`s3://bucket/key`, or `s3://bucket/prefix/` for all objects below it."
    )
    format: FileFormat | None = Field(
        None, description="Told from the objects' names (.txt, .csv, .parquet, .sqlite, .db) if left out."
    )
    column: Column = None
    query: _Query = "SELECT did FROM dids"
    parameters: Parameters = ()

    @model_validator(mode="after")
    def _tells_its_format(self) -> S3Source:
        if self.format is None and not self.path.endswith("/") and format_of(self.path) is None:
            raise ValueError(
                f"the name of the object tells no format, as {', '.join(_FORMAT_OF_SUFFIX)} do: give `format`"
            )
        return self


class AssetSource(Section):
    """What another backfill has found or collected: a column of one of its assets."""

    type: Literal["asset"] = Field(description=_TYPE)
    backfill: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$", description="The other study's name.")
    asset: str = Field(
        "engaged_accounts", pattern=r"^[a-z][a-z0-9_]{0,60}$", description="Its asset: a file or a table."
    )
    column: Column = None
    min_interactions: int = Field(1, ge=1, description="Interactions that an account or post must have had.")
    min_accounts: int = Field(1, ge=1, description="Accounts that must have interacted with it.")
    storage: Path | None = Field(
        None, description="Storage path of that backfill, if it is not this study's own."
    )


class CollectedSource(Section):
    """The accounts that a study has collected, as its metadata store has noted them: this system's, or a shared one."""

    type: Literal["collected"] = Field(description=_TYPE)
    backfill: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,40}$", description="The study whose collected accounts are meant."
    )
    metadata_store: MetadataStore = Field(
        MetadataStore(),
        description="That study's metadata store; the file in its folder, beside this study's own, if left out.",
    )


class SharedSource(Section):
    """The ids that another study has shared (`<name>_share`): its accounts and, with them, which of their records.

    It stands by itself, as `source`: no record is kept that is not shared.
    """

    type: Literal["shared"] = Field(description=_TYPE)
    path: Annotated[str | Path, BeforeValidator(_path_or_address)] = Field(
        description="The shared folder, which holds a `manifest.json`: a path, or `s3://bucket/prefix`."
    )
    edited: Literal["leave_out", "keep"] = Field(
        "leave_out",
        description="What becomes of a record that was changed since it was shared: what stands under its URI now is "
        "left out of the tables, or kept. `rehydration` tells of it in either case.",
    )


# --- lists that a server gives ---


class HandlesSource(Section):
    """Handles, resolved by DNS and `/.well-known/atproto-did`, and checked in both directions."""

    type: Literal["handles"] = Field(description=_TYPE)
    handles: tuple[str, ...] | None = Field(None, min_length=1, description="The handles, with or without @.")
    path: Path | None = Field(None, description="A text file with one handle a line, instead of `handles`.")

    @model_validator(mode="after")
    def _one_list(self) -> HandlesSource:
        if (self.handles is None) == (self.path is None):
            raise ValueError("needs either `handles` or `path`, and not both")
        return self


class PdsSource(Section):
    """Everyone on these hosts, by `com.atproto.sync.listRepos`."""

    type: Literal["pds"] = Field(description=_TYPE)
    hosts: tuple[Annotated[str, AfterValidator(http_origin)], ...] = Field(
        min_length=1, description="The addresses of the servers."
    )


class CollectionSource(Section):
    """Everyone who has records of a collection, by a relay's `com.atproto.sync.listReposByCollection`."""

    type: Literal["collection"] = Field(description=_TYPE)
    collection: Nsid = Field(description="The NSID of the collection.")
    relay: Annotated[str, AfterValidator(http_origin)] = Field(
        "https://relay1.us-east.bsky.network", description="The relay that is asked."
    )


def _list_uri(value: str) -> str:
    kinds = r"app\.bsky\.graph\.(?:list|starterpack)"
    if not re.fullmatch(rf"at://did:[a-z]+:[a-zA-Z0-9._:%-]+/{kinds}/[a-zA-Z0-9._~:-]{{1,512}}", value):
        raise ValueError(
            "must be at://<did>/app.bsky.graph.list/<rkey>, or that of an app.bsky.graph.starterpack"
        )
    return value


class ListSource(Section):
    """The members of a Bluesky list or starter pack, read from the verified repository of its owner."""

    type: Literal["list"] = Field(description=_TYPE)
    uri: Annotated[str, AfterValidator(_list_uri)] = Field(
        description="The AT-URI of the list or starter pack, with its owner's DID."
    )


class PlcExportSource(Section):
    """Accounts by the date of their creation, from the export of the study's PLC directory; both ends inside."""

    type: Literal["plc_export"] = Field(description=_TYPE)
    created_from: Annotated[datetime | None, BeforeValidator(start_instant)] = Field(
        None, description="First instant or day; from the beginning if left out."
    )
    created_to: Annotated[datetime | None, BeforeValidator(end_instant)] = Field(
        None, description="Last instant or day; up to now if left out."
    )

    @model_validator(mode="after")
    def _ordered(self) -> PlcExportSource:
        if self.created_from and self.created_to and self.created_from > self.created_to:
            raise ValueError("created_from is after created_to")
        return self


# --- lists made of lists ---


class UnionSource(Section):
    """What is in any of these."""

    type: Literal["union"] = Field(description=_TYPE)
    sources: tuple[Source, ...] = Field(min_length=1, description="The sources, of any type.")


class ExceptSource(Section):
    """What is in one source and not in another."""

    type: Literal["except"] = Field(description=_TYPE)
    source: Source = Field(description="The source that is taken.")
    without: Source = Field(description="The source whose entries are left out.")


SOURCES: dict[str, type[Section]] = {
    "inline": InlineSource,
    "text": TextSource,
    "csv": CsvSource,
    "parquet": ParquetSource,
    "sqlite": SqliteSource,
    "s3": S3Source,
    "asset": AssetSource,
    "collected": CollectedSource,
    "shared": SharedSource,
    "handles": HandlesSource,
    "pds": PdsSource,
    "collection": CollectionSource,
    "list": ListSource,
    "plc_export": PlcExportSource,
    "union": UnionSource,
    "except": ExceptSource,
}


def _source_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


Source = Annotated[
    Annotated[InlineSource, Tag("inline")]
    | Annotated[TextSource, Tag("text")]
    | Annotated[CsvSource, Tag("csv")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[SqliteSource, Tag("sqlite")]
    | Annotated[S3Source, Tag("s3")]
    | Annotated[AssetSource, Tag("asset")]
    | Annotated[CollectedSource, Tag("collected")]
    | Annotated[SharedSource, Tag("shared")]
    | Annotated[HandlesSource, Tag("handles")]
    | Annotated[PdsSource, Tag("pds")]
    | Annotated[CollectionSource, Tag("collection")]
    | Annotated[ListSource, Tag("list")]
    | Annotated[PlcExportSource, Tag("plc_export")]
    | Annotated[UnionSource, Tag("union")]
    | Annotated[ExceptSource, Tag("except")],
    Discriminator(
        _source_type,
        custom_error_type="source_type",
        custom_error_message="`type` must be one of " + ", ".join(SOURCES),
    ),
]

UnionSource.model_rebuild()
ExceptSource.model_rebuild()


# --- which source can stand where ---

# Types that give whatever stands in a file, and with it the records' AT-URIs; the others can only give DIDs.
_OF_ANYTHING = ("inline", "text", "csv", "parquet", "sqlite", "s3", "asset", "union", "except")
_TABLES = ("csv", "parquet", "sqlite", "s3", "asset")


def nested_sources(source: Source, field: str) -> Iterator[tuple[str, Source]]:
    """Yield a source and, depth first, all that it is made of, each with its field in the YAML."""
    yield field, source
    if isinstance(source, UnionSource):
        for number, member in enumerate(source.sources):
            yield from nested_sources(member, f"{field}.sources.{number}")
    elif isinstance(source, ExceptSource):
        yield from nested_sources(source.source, f"{field}.source")
        yield from nested_sources(source.without, f"{field}.without")


def _of_dids(source: Source) -> Source:
    for place, part in nested_sources(source, ""):
        if isinstance(part, InlineSource) and part.dids is None:
            raise ValueError(f"{_at(place)}a list of accounts has `dids`, not `uris`")
        if isinstance(part, SharedSource) and place:
            raise ValueError(
                f"{_at(place)}type shared also says which records are kept, and so stands by itself"
            )
    return source


def _of_uris(source: Source) -> Source:
    for place, part in nested_sources(source, ""):
        if isinstance(part, InlineSource) and part.uris is None:
            raise ValueError(f"{_at(place)}a list of records has `uris`, not `dids`")
        if part.type not in _OF_ANYTHING:
            raise ValueError(
                f"{_at(place)}type {part.type} gives accounts; a list of records can come from "
                f"{', '.join(_OF_ANYTHING)}"
            )
    return source


def _with_columns(source: Source) -> Source:
    if source.type not in _TABLES:
        raise ValueError(f"type {source.type} has no columns; a table can come from {', '.join(_TABLES)}")
    if isinstance(source, S3Source) and (source.format or format_of(source.path)) == "text":
        raise ValueError("format text has no columns; a table is csv, parquet or sqlite")
    return source


def _at(place: str) -> str:
    return f"{place.removeprefix('.')}: " if place else ""


DidSource = Annotated[Source, AfterValidator(_of_dids)]
"""A list of accounts."""
UriSource = Annotated[Source, AfterValidator(_of_uris)]
"""A list of records by their AT-URIs."""
TableSource = Annotated[Source, AfterValidator(_with_columns)]
"""A file, or several, with columns beside the one that is listed."""
