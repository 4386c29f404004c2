"""The code location: every YAML of the configs folder becomes the lineage and the jobs of one study."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import RESERVED_NAMES, Study
from backfill_dagster.derived.feed_use import PostsUsedInFeeds
from backfill_dagster.dids.sources.lineage import (
    ACCOUNTS,
    FEEDS,
    RECORDS,
    Part,
    asset_sources,
    part_of,
    upstream_assets,
)
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.alerts import alert_sensors
from backfill_dagster.orchestration.assets import study_assets
from backfill_dagster.orchestration.audit import audit_log_asset
from backfill_dagster.orchestration.console import console_logger
from backfill_dagster.orchestration.jobs import broken_job, stage_jobs, study_jobs
from backfill_dagster.orchestration.legacy_job import legacy_job
from backfill_dagster.orchestration.ownership import owned
from backfill_dagster.orchestration.resources import LimitsResource, StudyLockResource
from backfill_dagster.orchestration.schedules import study_schedules
from backfill_dagster.orchestration.sensors import report_automation, study_sensors
from backfill_dagster.orchestration.terminal import kept_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONFIGS_VARIABLE = "BACKFILL_CONFIGS"
DEFAULT_CONFIGS = "configs"


def build_defs(configs: Path | None = None) -> dg.Definitions:
    """Return the definitions of every study in a folder; reads the YAML files and nothing else.

    A file that does not validate takes no other down: it becomes a job of its name that fails and says why.
    """
    folder = configs or Path(os.environ.get(CONFIGS_VARIABLE, DEFAULT_CONFIGS))
    loaded: dict[str, _Loaded] = {}
    broken: list[tuple[str, ConfigError]] = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            if path.suffix != ".yaml":
                raise ConfigError(f"{path}: must be named {path.stem}.yaml")  # noqa: TRY301
            study = load_study(path)
            loaded[study.name] = _Loaded(path, study, _definitions_of(path, study))
        except ConfigError as complaint:
            broken.append((re.sub(r"[^A-Za-z0-9_]", "_", path.stem), complaint))
    broken += [(name, complaint) for name, complaint in _without_upstream(loaded)]
    studies = {name: made.study for name, made in loaded.items()}
    if any(study.monitoring.log_format == "json" for study in studies.values()):
        kept_stderr()
    parts = [_shared(studies), *(made.definitions for made in loaded.values())]
    taken = {job.name for part in parts for job in part.jobs or ()} | RESERVED_NAMES
    for wanted, error in broken:
        name = next(name for name in _candidates(wanted) if name not in taken)
        taken.add(name)
        parts.append(dg.Definitions(jobs=[broken_job(name, error)]))
    return dg.Definitions.merge(*parts)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A study with the file that it stands in, and what it is to Dagster."""

    path: Path
    study: Study
    definitions: dg.Definitions

    @property
    def assets(self) -> set[str]:
        """The names of its assets."""
        made = self.definitions.assets or ()
        return {
            key.path[-1] for asset in made if isinstance(asset, dg.AssetsDefinition) for key in asset.keys
        }


def _without_upstream(loaded: dict[str, _Loaded]) -> list[tuple[str, ConfigError]]:
    """Take out those studies whose lists come from a backfill that is not there, and say so of each.

    What comes from one of those is not there either; so it is asked again until nothing is missing.
    """
    complaints: list[tuple[str, ConfigError]] = []
    while faulty := {
        name: fault for name, made in loaded.items() if (fault := _upstream_fault(made, loaded))
    }:
        for name, fault in faulty.items():
            complaints.append((name, ConfigError(f"{loaded[name].path}: {fault}")))
            del loaded[name]
    return complaints


def _upstream_fault(made: _Loaded, loaded: dict[str, _Loaded]) -> str | None:
    for field, source in asset_sources(made.study):
        upstream = loaded.get(source.backfill)
        if upstream is None:
            known = ", ".join(sorted(loaded))
            return (
                f"{field}.backfill = {source.backfill!r}: is none of the backfills here that can be run ({known}); "
                f"if it is run elsewhere, say by {field}.storage where it is stored"
            )
        if source.asset not in upstream.assets:
            return (
                f"{field}.asset = {source.asset!r}: backfill {source.backfill!r} has no such asset; it has "
                f"{', '.join(sorted(upstream.assets))}"
            )
        if _depends_on((upstream.study.name, _part(source.asset)), (made.study.name, part_of(field)), loaded):
            return f"{field}.backfill = {source.backfill!r}: depends on {made.study.name} in its turn"
    return None


def _part(asset: str) -> Part:
    return FEEDS if asset == PostsUsedInFeeds.name else ACCOUNTS + RECORDS


def _depends_on(first: tuple[str, Part], wanted: tuple[str, Part], loaded: dict[str, _Loaded]) -> bool:
    """Tell whether a part of a study is, or in any number of steps comes from, another study's part."""
    seen: set[tuple[str, Part]] = set()
    waiting = [first]
    while waiting:
        name, part = current = waiting.pop()
        if current == wanted:
            return True
        if current in seen or name not in loaded:
            continue
        seen.add(current)
        if part == FEEDS:
            # It is made of the study's tables as well.
            waiting.append((name, ACCOUNTS + RECORDS))
        waiting += [(upstream, _part(asset)) for upstream, asset in upstream_assets(loaded[name].study, part)]
    return False


def _definitions_of(path: Path, study: Study) -> dg.Definitions:
    """Return the definitions of one study; raises ConfigError for what is only now found wrong with its YAML."""
    for field, source in asset_sources(study):
        if source.backfill == study.name and part_of(field) != FEEDS:
            raise ConfigError(f"{path}: {field}.backfill = {source.backfill!r}: is the backfill itself")
    try:
        made = study_definitions(study)
        dg.Definitions.validate_loadable(dg.Definitions.merge(_shared({study.name: study}), made))
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
        assets = owned(study, [*study_assets(study), audit_log_asset(study)])
    stages = stage_jobs(study, assets)
    return dg.Definitions(
        assets=assets,
        jobs=[*stages.values(), *study_jobs(study)],
        schedules=study_schedules(study),
        sensors=[*study_sensors(study, stages), report_automation(study), *alert_sensors(study)],
    )


def _shared(studies: Mapping[str, Study]) -> dg.Definitions:
    return dg.Definitions(
        jobs=[legacy_job()],
        resources={"limits": LimitsResource(), "study_lock": StudyLockResource()},
        loggers={"console": console_logger(studies)},
        # A stage shares its work out among processes by itself; a process per step would only start slowly.
        executor=dg.in_process_executor,
    )
