"""The previous system's YAML turned into ours, with a word on every one of its fields."""

from __future__ import annotations

import re
import reprlib
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.config.loading import load_study, read_yaml
from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.records.tables import COLLECTIONS, POST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.study import Study

REPORT_NAME = "legacy_conversion.json"
_MAX_BYTES = 1_000_000
_OUR_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
# The source of the previous system is the file of a queue, whose payloads are lists of {"dids": [...]}.
QUEUE_QUERY = (
    "SELECT listed.value AS did FROM queue, "
    "json_each(CASE json_type(queue.payload) WHEN 'object' THEN json_array(json(queue.payload)) "
    "ELSE queue.payload END) AS item, json_each(item.value, '$.dids') AS listed"
)
_NO_FILTER = "no filter could be made of it, and all records are kept: see docs/filters.md"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist, _SHORT.maxlevel = 10, 2


class FieldVerdict(ClosedSet):
    """What became of a field of the previous system's YAML."""

    CONVERTED = "converted", "The new YAML says the same."
    CHANGED_MEANING = (
        "changed_meaning",
        "The new YAML says something like it; the note says what is different.",
    )
    NO_COUNTERPART = (
        "no_counterpart",
        "Nothing corresponds to it; the note says what does its work, if anything does.",
    )


@dataclass(frozen=True, slots=True)
class FieldReport:
    """One field: where it stood, what it said, what became of it, where that stands, and what to know of it."""

    field: str
    value: str
    verdict: FieldVerdict
    into: str | None = None
    note: str = ""


@dataclass(slots=True)
class Conversion:
    """A YAML of the previous system: our `body` of it, under `backfill`, and a report on every field."""

    source: str
    body: dict[str, Any] = field(default_factory=dict)
    fields: list[FieldReport] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the study."""
        return str(self.body["name"])


def convert_yaml(path: Path) -> Conversion:
    """Convert one YAML; opens nothing that it names. Raises ConfigError for what is no YAML of the previous system."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if size > _MAX_BYTES:
        raise ConfigError(f"{path}: has {size:,} bytes, and a study's YAML at most {_MAX_BYTES:,}")
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("backfill"), dict):
        raise ConfigError(f"{path}: must hold a mapping named `backfill`")
    converter = _Converter(path)
    for name, value in document.items():
        if name != "backfill":
            converter.none(str(name), value, "nothing stands beside `backfill`")
    converter.convert(document["backfill"])
    return converter.done


def write_conversion(conversions: Sequence[Conversion], output: Path) -> list[Study]:
    """Write our YAMLs and one report of all their fields into a folder; return the studies, loaded from there.

    Raises ConfigError for a YAML that is there and says something else, and for what our YAML cannot say, which leaves
    nothing behind; StorageError.
    """
    texts = {conversion.name: _as_yaml(conversion) for conversion in conversions}
    if len(texts) < len(conversions):
        raise ConfigError("two of these YAMLs have the same name; convert them into two folders")
    for name, text in texts.items():
        target = output / f"{name}.yaml"
        if target.exists() and target.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{target}: is there already, and says something else; move it away, or name another folder"
            )
    report = [
        {"yaml": one.source, "study": one.name, "fields": [asdict(field) for field in one.fields]}
        for one in conversions
    ]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".unchecked-") as unchecked:
            for name, text in texts.items():
                _check(Path(unchecked) / f"{name}.yaml", text)
        for name, text in texts.items():
            _write(output / f"{name}.yaml", text.encode())
        _write(output / REPORT_NAME, orjson.dumps(report, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise StorageError.unwritable(output, error) from error
    return [load_study(output / f"{name}.yaml") for name in texts]


def _check(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    try:
        load_study(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), f"the converted {path.name}")) from None


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step: half a YAML would be in the way of the next attempt."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _as_yaml(conversion: Conversion) -> str:
    head = f"# Converted from {conversion.source!r}; {REPORT_NAME} says what became of each of its fields.\n"
    return head + yaml.safe_dump({"backfill": conversion.body}, sort_keys=False, allow_unicode=True)


class _Converter:
    """Takes the fields of a YAML one after the other; each is told of once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done = Conversion(path.name)

    def convert(self, old: dict[Any, Any]) -> None:
        takers = {
            "name": self._name,
            "version": self._version,
            "source": self._source,
            "plc_storage": self._plc_storage,
            "record_types": self._record_types,
            "time_range": self._time_range,
            "filters": self._filters,
            "sync_storage": self._sync_storage,
        }
        if "name" not in old:
            self._name(self._path.stem)
        for key, value in old.items():
            taker = takers.get(key)
            if taker is None:
                self.none(f"backfill.{key}", value, "is no field that the previous system is known to have")
            else:
                taker(value)
        if "source" not in self.done.body:
            told = [one for one in self.done.fields if one.field.startswith("backfill.source")]
            why = (
                f"{told[-1].field} = {told[-1].value}: {told[-1].note}"
                if told
                else "backfill.source: is missing"
            )
            raise ConfigError(f"{self._path}: {why}")

    def none(self, name: str, value: Any, note: str) -> None:
        self._tell(name, value, FieldVerdict.NO_COUNTERPART, None, note)

    def _tell(self, name: str, value: Any, verdict: FieldVerdict, into: str | None, note: str = "") -> None:
        if isinstance(value, str) and "${" in value and verdict is FieldVerdict.CONVERTED:
            verdict = FieldVerdict.CHANGED_MEANING
            note = f"{note}; `${{NAME}}` stands for an environment variable now".removeprefix("; ")
        self.done.fields.append(FieldReport(name, _SHORT.repr(value), verdict, into, note))

    def _mapping(self, name: str, value: Any) -> dict[Any, Any]:
        if isinstance(value, dict) and value:
            return value
        self.none(name, value, "is empty" if value == {} else "must be a mapping")
        return {}

    def _others(self, name: str, value: dict[Any, Any], known: Sequence[str]) -> None:
        for key in value:
            if key not in known:
                self.none(
                    f"{name}.{key}", value[key], "is no field that the previous system is known to have"
                )

    def _name(self, value: Any) -> None:
        old = str(value)
        name = re.sub(r"_+", "_", re.sub(r"[^a-z0-9]", "_", old.lower())).strip("_")[:41]
        if not _OUR_NAME.fullmatch(name):
            name = f"study_{name}"[:41]
        self.done.body["name"] = name
        same = name == old
        note = "" if same else "a name is made of a-z, 0-9 and _, and names folders, assets and jobs"
        self._tell(
            "backfill.name",
            value,
            FieldVerdict.CONVERTED if same else FieldVerdict.CHANGED_MEANING,
            "name",
            note,
        )

    def _version(self, value: Any) -> None:
        self.done.body["version"] = str(value)
        self._tell("backfill.version", value, FieldVerdict.CONVERTED, "version")

    def _source(self, value: Any) -> None:
        source = self._table("backfill.source", value, "did", "source")
        if source is not None:
            self.done.body["source"] = source

    def _table(self, name: str, value: Any, column: str, into: str | None) -> dict[str, Any] | None:
        """Convert a `{type, path, metadata}` that lists DIDs or URIs; None if there is no such source, or no place."""
        told = self._mapping(name, value)
        kind, path = told.get("type"), told.get("path")
        converted: dict[str, Any] | None = None
        if into is None or not isinstance(path, str) or not path:
            pass
        elif kind == "sqlite":
            query = QUEUE_QUERY if column == "did" else "SELECT uri FROM uris"
            converted = {"type": "sqlite", "path": path, "query": query, "column": column}
        elif kind in ("parquet", "csv"):
            converted = {"type": kind, "path": path, "column": column}
        if converted is None:
            why = "a list is of type sqlite, parquet or csv here, and needs a path; see docs/sources.md"
            for key in ("path", "type"):
                if key in told:
                    self.none(f"{name}.{key}", told[key], _NO_FILTER if into is None else why)
        else:
            note = f"the column {column!r} is read; say another by {into}.column"
            if kind == "sqlite":
                note = (
                    f"what is read is what {into}.query asks; correct it if the file is another than a queue"
                )
            verdict = (
                FieldVerdict.CONVERTED
                if kind == "sqlite" and column == "did"
                else FieldVerdict.CHANGED_MEANING
            )
            self._tell(f"{name}.type", kind, verdict, f"{into}.type", note)
            self._tell(f"{name}.path", path, FieldVerdict.CONVERTED, f"{into}.path")
        if "metadata" in told:
            self.none(f"{name}.metadata", told["metadata"], "the previous system did not use it")
        self._others(name, told, ("type", "path", "metadata"))
        return converted

    def _plc_storage(self, value: Any) -> None:
        told = self._mapping("backfill.plc_storage", value)
        for key in told:
            self.none(
                f"backfill.plc_storage.{key}",
                told[key],
                "what looking accounts up came to is kept in directory.parquet, and looked up again after "
                "network.directory_max_age_hours",
            )

    def _record_types(self, value: Any) -> None:
        listed = [kind for kind in value if isinstance(kind, str)] if isinstance(value, list) else []
        known = list(dict.fromkeys(kind for kind in listed if kind in COLLECTIONS))
        others = list(dict.fromkeys(kind for kind in listed if kind not in COLLECTIONS))
        if isinstance(value, list):
            for place, kind in enumerate(value):
                if not isinstance(kind, str):
                    self.none(f"backfill.record_types.{place}", kind, "must be the NSID of a collection")
                elif kind not in COLLECTIONS:
                    self._tell(
                        f"backfill.record_types.{place}",
                        kind,
                        FieldVerdict.CHANGED_MEANING,
                        "other_record_types",
                        "has no table of its own: its records are kept as JSON in other_records",
                    )
        if known:
            self.done.body["record_types"] = known
            note = "posts fill two tables, posts and replies" if "app.bsky.feed.post" in known else ""
            self._tell("backfill.record_types", known, FieldVerdict.CONVERTED, "record_types", note)
        else:
            self.none(
                "backfill.record_types",
                value,
                "names no type with a table; the five usual ones are collected",
            )
        if others:
            self.done.body["other_record_types"] = others

    def _time_range(self, value: Any) -> None:
        told = self._mapping("backfill.time_range", value)
        period = {key: told[key] for key in ("start_date", "end_date") if told.get(key) not in (None, "")}
        if period:
            self.done.body["time_range"] = {**period, "outside": "normalize"}
        for key in ("start_date", "end_date"):
            if key in period:
                self._tell(
                    f"backfill.time_range.{key}",
                    period[key],
                    FieldVerdict.CHANGED_MEANING,
                    f"time_range.{key}",
                    "in UTC, and inside the period. Records from outside are normalised as before (outside: normalize) "
                    "but marked by in_range = false, and stand under the month of their true date",
                )
            elif key in told:
                self.none(f"backfill.time_range.{key}", told[key], "is empty: the period is open at this end")
        self._others("backfill.time_range", told, ("start_date", "end_date"))

    def _filters(self, value: Any) -> None:
        name = "backfill.filters"
        if value in (None, {}, []):
            self._tell(name, value, FieldVerdict.CONVERTED, None, "no filter: all records are kept")
            return
        told = self._mapping(name, value)
        kind, subject = told.get("record_type"), told.get("subject")
        path = subject if isinstance(subject, list) else [subject]
        into = {("uri",): "uris", ("subject",): "subjects", ("subject", "uri"): "subjects"}.get(
            tuple(map(str, path))
        )
        if kind not in COLLECTIONS or (kind == POST and into == "subjects"):
            into = None
        listed = None
        if "source" in told:
            place = into and f"filters.{kind}.{into}"
            listed = self._table(f"{name}.source", told["source"], "uri", place)
        if into is not None and listed is not None:
            self.done.body["filters"] = {kind: {into: listed}}
            note = "an empty list is an error now, unless allow_empty: true says that it is meant"
            self._tell(f"{name}.record_type", kind, FieldVerdict.CONVERTED, f"filters.{kind}", note)
            self._tell(f"{name}.subject", subject, FieldVerdict.CONVERTED, f"filters.{kind}.{into}")
        else:
            for key in ("record_type", "subject"):
                if key in told:
                    self.none(f"{name}.{key}", told[key], _NO_FILTER)
        self._others(name, told, ("record_type", "subject", "source"))

    def _sync_storage(self, value: Any) -> None:
        name = "backfill.sync_storage"
        told = self._mapping(name, value)
        kind, path = told.get("type"), told.get("path")
        if "type" in told:
            if kind == "parquet":
                self._tell(
                    f"{name}.type",
                    kind,
                    FieldVerdict.CHANGED_MEANING,
                    "storage.type",
                    "tables by type and month, all typed",
                )
            else:
                self.none(f"{name}.type", kind, "records are stored as Parquet files")
        if isinstance(path, str) and path and "://" not in path:
            self.done.body["storage"] = {"path": path}
            note = "holds a folder for each study now, of another layout: <name>/tables/<table>/month=YYYY-MM/*.parquet"
            self._tell(f"{name}.path", path, FieldVerdict.CHANGED_MEANING, "storage.path", note)
        elif "path" in told:
            self.none(f"{name}.path", path, "is no local folder: ./data is used")
        if "metadata" in told:
            self.none(f"{name}.metadata", told["metadata"], "the previous system did not use it")
        if "min_timestamp" in told:
            self.none(
                f"{name}.min_timestamp",
                told["min_timestamp"],
                "what is stored is told from the packs, and never fetched again; to leave out whom another study has "
                "collected, use exclude: {type: collected, backfill: <name>}",
            )
        self._others(name, told, ("type", "path", "metadata", "min_timestamp"))
