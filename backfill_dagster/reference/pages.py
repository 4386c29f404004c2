"""The pages of the reference, each made of what the code itself uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dictionary.markdown import TYPES, rows, tables_text, words_text
from backfill_dagster.dictionary.resources import every_resource
from backfill_dagster.dids.handle_syntax import HandleRejection
from backfill_dagster.dids.syntax import DidRejection
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.directory.evidence import EvidenceKind
from backfill_dagster.legacy.layout import PassedOver
from backfill_dagster.legacy.study_yaml import FieldVerdict
from backfill_dagster.legacy.tables import LegacyProblem, LegacyReject
from backfill_dagster.monitoring.audit_log import RunStatus
from backfill_dagster.records.date_quality import DateQuality
from backfill_dagster.records.issues import FieldProblem
from backfill_dagster.records.list_entries import ListRejection
from backfill_dagster.records.outcomes import Fate, FilterReason, RejectReason
from backfill_dagster.reference.config_fields import ConfigSection, source_sections, study_sections
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Obtained, Outcome
from backfill_dagster.repos.snapshots import StateWithoutAttempt
from backfill_dagster.sharing.rehydration import Rehydrated
from backfill_dagster.sharing.treatments import Treatment
from backfill_dagster.tables.accounts import HiddenReason
from backfill_dagster.verification.verdicts import FileProblem, KeySource, SnapshotVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.closed_sets import ClosedSet

CONFIG_PAGE, TABLES_PAGE, OUTCOMES_PAGE = "config.md", "tables.md", "outcomes.md"
_MADE = "<!-- Made of the code by `python -m backfill_dagster.reference`: change the code, not this page. -->"

# Closed sets by what they are about; beside these, those that columns of tables are out of.
_BY_SUBJECT: dict[str, tuple[type[ClosedSet], ...]] = {
    "Of accounts": (Outcome, StateWithoutAttempt, FailureReason, DirectoryState, Obtained),
    "Of records": (Fate, FilterReason, HiddenReason, RejectReason, LeftOut, DateQuality, FieldProblem),
    "Of lists": (DidRejection, HandleRejection, ListRejection),
    "Of what is shared": (Rehydrated, Treatment),
    "Of runs": (RunStatus,),
    "Of a verification": (SnapshotVerdict, FileProblem, KeySource, EvidenceKind),
    "Of what another system collected": (FieldVerdict, PassedOver, LegacyProblem, LegacyReject),
}
_OF_TABLES = "Of other tables"


def closed_sets() -> dict[str, list[type[ClosedSet]]]:
    """Return every closed set of the product, by what it is about."""
    named = {words for sets in _BY_SUBJECT.values() for words in sets}
    columns = (column for resource in every_resource() for column in resource.columns)
    others = dict.fromkeys(words for column in columns for words in column.words if words not in named)
    grouped = {about: list(sets) for about, sets in _BY_SUBJECT.items()}
    return {**grouped, _OF_TABLES: list(others)} if others else grouped


def pages() -> dict[str, str]:
    """Return the pages' text by the name of their file."""
    made = {CONFIG_PAGE: _config(), TABLES_PAGE: _tables(), OUTCOMES_PAGE: _outcomes()}
    return {name: "\n".join((_MADE, "", *lines)).rstrip() + "\n" for name, lines in made.items()}


def _config() -> Iterator[str]:
    yield from (
        "# What a study's YAML may say",
        "",
        "A file `configs/<name>.yaml` holds one mapping, `backfill`. A key that is not listed here is an error, which",
        "names the field and what is allowed. `${NAME}` in a value stands for an environment variable. A *date or",
        "instant* is `YYYY-MM-DD`, `YYYY-MM-DD-HH:MM:SS` or ISO 8601, in UTC if it has no zone; relative paths are",
        "relative to the folder that Dagster is started in.",
        "",
    )
    for section in study_sections():
        yield from _section(f"## `{section.path}`", section)
    yield from (
        "## Sources",
        "",
        "A source is a mapping with a `type`. [Which types can stand where](../sources.md#what-can-stand-where).",
        "",
    )
    for section in source_sections():
        yield from _section(f"### `type: {section.path}`", section)


def _section(heading: str, section: ConfigSection) -> Iterator[str]:
    yield from (heading, "", section.description, "")
    if section.fields:
        cells = (
            (f"`{field.name}`", field.type, field.default or "must be given", field.description)
            for field in section.fields
        )
        yield from rows(("field", "type", "default", "what it says"), cells)
        yield ""


def _tables() -> Iterator[str]:
    yield from (
        "# Every table and its columns",
        "",
        "A study's files stand in `<storage.path>/<name>/`, and beside them the same as here for the tables that the",
        "study has: `data_dictionary.md`, and `data_dictionary.json` for programs. Time windows are months here; with",
        "`time_range.partitions: weekly` or `daily` the folders are `week=YYYY-MM-DD` and `day=YYYY-MM-DD`. Whoever",
        "reads a glob of them with DuckDB or Polars has that part of the folder's name as a column.",
        "",
        TYPES,
        "",
        *tables_text(every_resource(), OUTCOMES_PAGE),
    )


def _outcomes() -> Iterator[str]:
    yield from (
        "# Every outcome, state and reason",
        "",
        "The words that stand in the tables: all that there are. `<name>` is the study's.",
        "",
    )
    by_subject = closed_sets()
    for about, sets in by_subject.items():
        links = ", ".join(f"[{words.__name__}](#{words.__name__.lower()})" for words in sets)
        yield f"- {about}: {links}"
    yield ""
    for sets in by_subject.values():
        for words in sets:
            yield from words_text(words)
