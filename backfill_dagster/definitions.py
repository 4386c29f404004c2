"""The code location: every YAML of the configs folder becomes the lineage and the jobs of one study."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.config import RESERVED_NAMES, Study, load_study
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.alerts import failure_alert
from backfill_dagster.orchestration.assets import study_assets
from backfill_dagster.orchestration.console import human_console
from backfill_dagster.orchestration.jobs import broken_job, stage_jobs, study_jobs
from backfill_dagster.orchestration.ownership import owned
from backfill_dagster.orchestration.resources import LimitsResource, StudyLockResource
from backfill_dagster.orchestration.schedules import study_schedules
from backfill_dagster.orchestration.sensors import report_automation, study_sensors

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGS_VARIABLE = "BACKFILL_CONFIGS"
DEFAULT_CONFIGS = "configs"


def build_defs(configs: Path | None = None) -> dg.Definitions:
    """Return the definitions of every study in a folder; reads the YAML files and nothing else.

    A file that does not validate takes no other down: it becomes a job of its name that fails and says why.
    """
    folder = configs or Path(os.environ.get(CONFIGS_VARIABLE, DEFAULT_CONFIGS))
    parts = [_shared()]
    broken: list[tuple[str, ConfigError]] = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            if path.suffix != ".yaml":
                raise ConfigError(f"{path}: must be named {path.stem}.yaml")  # noqa: TRY301
            parts.append(_definitions_of(path))
        except ConfigError as complaint:
            broken.append((re.sub(r"[^A-Za-z0-9_]", "_", path.stem), complaint))
    taken = {job.name for part in parts for job in part.jobs or ()} | RESERVED_NAMES
    for wanted, error in broken:
        name = next(name for name in _candidates(wanted) if name not in taken)
        taken.add(name)
        parts.append(dg.Definitions(jobs=[broken_job(name, error)]))
    return dg.Definitions.merge(*parts)


def _definitions_of(path: Path) -> dg.Definitions:
    """Return the definitions of one YAML; raises ConfigError also for what only Dagster finds wrong with it."""
    study = load_study(path)
    try:
        made = study_definitions(study)
        dg.Definitions.validate_loadable(dg.Definitions.merge(_shared(), made))
    except dg.DagsterError as error:
        raise ConfigError(f"{path}: Dagster does not accept it: {' '.join(str(error).split())}") from error
    return made


def _candidates(name: str) -> Iterator[str]:
    """Yield names for the job of a YAML that does not validate: its own, or one beside it that is free."""
    yield name
    for number in itertools.count(1):
        yield f"{name}__invalid_{number}"


def study_definitions(study: Study) -> dg.Definitions:
    """Return the lineage and the jobs of one study."""
    with warnings.catch_warnings():
        # Backfill policies are beta in this release of Dagster, which says so at every use.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = owned(study, study_assets(study))
    stages = stage_jobs(study, assets)
    return dg.Definitions(
        assets=assets,
        jobs=[*stages.values(), *study_jobs(study)],
        schedules=study_schedules(study),
        sensors=[*study_sensors(study, stages), report_automation(study), failure_alert(study)],
    )


def _shared() -> dg.Definitions:
    return dg.Definitions(
        resources={"limits": LimitsResource(), "study_lock": StudyLockResource()},
        loggers={"console": human_console},
        # A stage shares its work out among processes by itself; a process per step would only start slowly.
        executor=dg.in_process_executor,
    )
