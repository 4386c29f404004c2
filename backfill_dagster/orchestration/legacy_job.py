"""The job that takes over what the previous system left: its YAMLs and its Parquet tree. It belongs to no study."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import ValidationError

from backfill_dagster.config.study import NAME_PATTERN
from backfill_dagster.config.time_range import TimeRange
from backfill_dagster.errors import ConfigError
from backfill_dagster.legacy.study_yaml import Conversion, FieldVerdict, convert_yaml, write_conversion
from backfill_dagster.legacy.tree import REPORT_KEY, ImportReport, import_tree
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import file_path
from backfill_dagster.records.settings import StudyPeriod
from backfill_dagster.storage import StudyStorage

JOB_NAME = "import_legacy"
_FIELDS = {
    "yaml": dg.Field([str], default_value=[], description="YAML files of the previous system to convert."),
    "output": dg.Field(
        dg.Noneable(str), default_value=None, description="The folder that our YAMLs and the report go to."
    ),
    "parquet_root": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="The folder with `raw_sync/create/<type>/{active,cache}/partition_date=YYYY-MM-DD/*.parquet`.",
    ),
    "name": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="The study whose folder `legacy` the tree is read into; that of the one YAML if left out.",
    ),
    "storage": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="The folder that holds a folder per study; that of the YAML, or `./data`, if left out.",
    ),
    "start_date": dg.Field(
        dg.Noneable(str),
        default_value=None,
        description="Begin of the period that `in_range` is about; that of the YAML, or the default, if left out.",
    ),
    "end_date": dg.Field(dg.Noneable(str), default_value=None, description="End of that period."),
}


class LegacySettings(dg.Config):
    """What to take over; see `_FIELDS`."""

    yaml: list[str]
    output: str | None
    parquet_root: str | None
    name: str | None
    storage: str | None
    start_date: str | None
    end_date: str | None


def legacy_job() -> dg.JobDefinition:
    """Return the job."""

    @dg.op(name=f"{JOB_NAME}__take_over", out=dg.Out(dg.Nothing), description="Converts and imports.")
    def take_over(context: dg.OpExecutionContext, config: LegacySettings) -> None:
        with clear_failures():
            context.add_output_metadata(_take_over(context, config))

    @dg.config_mapping(config_schema=_FIELDS)
    def settings(given: dict[str, Any]) -> dict[str, Any]:
        return {**console_config(None), "ops": {take_over.name: {"config": given}}}

    @dg.job(
        name=JOB_NAME,
        config=settings,
        description="Converts YAMLs of the previous system, and reads its Parquet tree into tables of our columns, "
        "which say that nothing of them is proven. Belongs to no study.",
    )
    def job() -> None:
        take_over()

    return job


def _take_over(context: dg.OpExecutionContext, config: LegacySettings) -> dict[str, Any]:
    if not (config.yaml or config.parquet_root):
        raise ConfigError("run config: nothing to take over is named; give yaml, parquet_root or both")
    if config.yaml and not config.output:
        raise ConfigError("run config: output is missing: the folder that the converted YAMLs go to")
    conversions = [convert_yaml(Path(path)) for path in config.yaml]
    if conversions:
        write_conversion(conversions, Path(config.output or ""))
    for conversion in conversions:
        _tell_conversion(context, conversion)
    told: dict[str, Any] = {
        "converted": [conversion.name for conversion in conversions],
        "fields_without_counterpart": sum(
            field.verdict is FieldVerdict.NO_COUNTERPART for one in conversions for field in one.fields
        ),
    }
    if config.parquet_root is None:
        return told
    name, storage, period = _target(config, conversions)
    report = import_tree(
        Path(config.parquet_root),
        StudyStorage(storage / name),
        StudyPeriod(period.start_date, period.end_date),
        lambda done, every: context.log.info(f"{done:,} of {every:,} files read"),
    )
    _tell_import(context, report)
    return {**told, **_import_metadata(report, storage / name / REPORT_KEY)}


def _target(config: LegacySettings, conversions: list[Conversion]) -> tuple[str, Path, TimeRange]:
    """Return the name of the study that a tree is read into, where it is stored, and its period."""
    only = conversions[0].body if len(conversions) == 1 else {}
    name = config.name or only.get("name")
    if name is None:
        raise ConfigError("run config: name is missing: the study whose folder the tree is read into")
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"run config: name = {name!r}: must be the name of a study: a-z, 0-9 and _")
    of_name = next((one.body for one in conversions if one.name == name), only)
    dates = {"start_date": config.start_date, "end_date": config.end_date}
    given = {key: value for key, value in dates.items() if value is not None}
    try:
        period = TimeRange.model_validate(given or of_name.get("time_range", {}))
    except ValidationError as error:
        told = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise ConfigError(f"run config: start_date, end_date: {told}") from None
    return name, Path(config.storage or of_name.get("storage", {}).get("path", "./data")), period


def _tell_conversion(context: dg.OpExecutionContext, conversion: Conversion) -> None:
    context.log.info(f"{conversion.source} is now {conversion.name}.yaml")
    for field in conversion.fields:
        if field.verdict is not FieldVerdict.CONVERTED:
            into = f" -> {field.into}" if field.into else ""
            context.log.info(f"  {field.verdict}: {field.field}{into}: {field.note}")


def _tell_import(context: dg.OpExecutionContext, report: ImportReport) -> None:
    tables = ", ".join(f"{rows:,} {table}" for table, rows in report.rows_by_table.items() if rows)
    context.log.info(
        f"{report.rows_read:,} rows of {report.files:,} files: {tables or 'none'} taken over; "
        f"{report.repeated:,} repeated, {sum(report.rejected.values()):,} rejected, {report.purged:,} purged."
    )
    for reason, rows in report.rejected.items():
        context.log.warning(f"  rejected ({reason}): {rows:,}; listed in legacy/rejects")
    for column, rows in report.unknown_columns.items():
        context.log.warning(f"  the column {column!r} is not known: {rows:,} values are in legacy_rest")
    for stranger in report.passed_over[:20]:
        context.log.warning(f"  not read: {stranger['name']} ({stranger['reason']})")


def _import_metadata(report: ImportReport, path: Path) -> dict[str, Any]:
    return {
        "files": report.files,
        "rows_read": report.rows_read,
        **{f"rows_{table}": rows for table, rows in report.rows_by_table.items()},
        "undated": report.undated,
        "repeated": report.repeated,
        "rejected": sum(report.rejected.values()),
        "purged": report.purged,
        "passed_over": len(report.passed_over),
        "report": file_path(path),
    }
