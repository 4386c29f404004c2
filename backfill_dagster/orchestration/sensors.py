"""Sensors: each looks at what is stored, and requests the one stage that has something to do.

What there is to do is told from the files, not from events, so that packs of a run that was killed, or fetched without
Dagster, count as well. While anything works on the study, all of them wait: stages follow one another, and nothing is
done twice. A sensor remembers what it requested last and does not request the same again; what failed is for a person.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from backfill_dagster import (
    accounting,
    derivation,
    fingerprints,
    handing_over,
    pending,
    pipeline,
    study_files,
)
from backfill_dagster.errors import BackfillError, SourceError
from backfill_dagster.filtering import lists_stamp
from backfill_dagster.orchestration.activity import activity
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.partitions import (
    covering_range,
    pds_partitions_name,
    register_hosts,
    time_partitions,
)
from backfill_dagster.orchestration.tags import RANGE_END, RANGE_START, STUDY_TAG, run_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from backfill_dagster.config.study import Study

_EVERY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage has to do: `identity` is equal for the same work, `stage` and the rest say which run does it."""

    stage: str
    identity: object
    partitions: tuple[str, str] | None = None
    config: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A sensor's cursor: the stamp of what it looked at last, the work that it requested last, and the how-manieth."""

    stamp: str = ""
    requested: str = ""
    number: int = 0

    @classmethod
    def load(cls, cursor: str | None) -> _Seen:
        return cls(**json.loads(cursor)) if cursor else cls()

    def cursor(self) -> str:
        return json.dumps({"stamp": self.stamp, "requested": self.requested, "number": self.number})


def study_sensors(
    study: Study, jobs: Mapping[str, UnresolvedAssetJobDefinition]
) -> list[dg.SensorDefinition]:
    """Return the sensors that start a study's stages, whose asset jobs are given by stage."""
    automation = study.automation
    discover, fetch = {"discover": jobs["discover"]}, {"fetch": jobs["fetch"]}
    stages = ("convert", "tables", "accounts", "engaged", "derive", "handoff")
    build = {stage: jobs[stage] for stage in stages if stage in jobs}
    return [
        _sensor(
            study,
            "new_dids",
            discover,
            lambda _: _stamp(_source_stamp(study), pending.storage_stamp(study)),
            lambda _: _discover_work(study),
            on=automation.on_new_dids,
            description="Looks accounts up when the source of DIDs has changed. Asks the PLC directory, so it is off "
            "unless automation.on_new_dids is true, or it is switched on here.",
        ),
        _sensor(
            study,
            "new_hosts",
            fetch,
            lambda _: pending.storage_stamp(study),
            lambda instance: _fetch_work(study, instance),
            on=automation.on_new_hosts,
            description="Fetches the hosts that have accounts which were never tried, and no others. Asks those "
            "servers, so it is off unless automation.on_new_hosts is true, or it is switched on here.",
        ),
        _sensor(
            study,
            "new_data",
            build,
            lambda _: _stamp(
                pending.storage_stamp(study),
                fingerprints.records_fingerprint(study),
                lists_stamp(study),
                derivation.settings_stamp(study),
                _windows(study)[-1:],
            ),
            lambda instance: _build_work(study, instance),
            on=automation.on_new_data,
            description="Turns new packs into records, then builds the partitions of the tables that changed, then "
            "the accounts and what is derived, and hands over what is new. Starts no network traffic; off if "
            "automation.on_new_data is false.",
        ),
    ]


def report_automation(study: Study) -> dg.AutomationConditionSensorDefinition:
    """Return what keeps the report and the manifest up to date: plain dependencies, which Dagster sees best."""
    return dg.AutomationConditionSensorDefinition(
        name=f"{study.name}_report",
        target=dg.AssetSelection.assets(
            *(dg.AssetKey([study.name, name]) for name in ("report", "manifest"))
        ),
        default_status=_status(study.automation.on_new_data),
        minimum_interval_seconds=2 * _EVERY_SECONDS,
        run_tags=run_tags(study, "accounts"),
        description="Builds the report and the manifest when what they are made of is newer. Off if "
        "automation.on_new_data is false.",
    )


def _sensor(
    study: Study,
    name: str,
    jobs: Mapping[str, UnresolvedAssetJobDefinition],
    stamp: Callable[[dg.DagsterInstance], str],
    find: Callable[[dg.DagsterInstance], Work | None],
    *,
    on: bool,
    description: str,
) -> dg.SensorDefinition:
    """Return a sensor that requests what `find` finds, unless nothing has changed since it last found nothing."""

    @dg.sensor(
        name=f"{study.name}_{name}",
        jobs=list(jobs.values()),
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=_status(on),
        tags={"study": study.name},
        description=description,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen = _Seen.load(context.cursor)
        try:
            busy = activity(context.instance, study)
            if busy:
                return _skip(seen, f"{busy}; it is looked at again afterwards")
            now = stamp(context.instance)
            if now == seen.stamp:
                return _skip(seen, "nothing has changed since the last look")
            work = find(context.instance)
        except BackfillError as error:
            return _skip(seen, str(error))
        if work is None:
            return _skip(_Seen(now, "", seen.number), "nothing to do")
        digest = _stamp(work.identity)
        if digest == seen.requested:
            said = (
                f"{jobs[work.stage].name} was requested for this already and has not done it; run it by hand"
            )
            return _skip(_Seen(now, digest, seen.number), said)
        # The stamp stays the old one: when the run is over, the next look is a thorough one.
        number = seen.number + 1
        request = dg.RunRequest(
            run_key=f"{digest}-{number}",
            job_name=jobs[work.stage].name,
            run_config={**console_config(study), "ops": _op_config(study, work.config)},
            tags={STUDY_TAG: study.name, **_range_tags(work.partitions)},
        )
        return dg.SensorResult(run_requests=[request], cursor=_Seen(seen.stamp, digest, number).cursor())

    return sensor


def _skip(seen: _Seen, reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=seen.cursor())


def _discover_work(study: Study) -> Work | None:
    if not pending.source_has_changed(study):
        return None
    return Work("discover", _source_stamp(study))


def _source_stamp(study: Study) -> str:
    stamp = pipeline.source_stamp(study)
    if stamp is None:
        raise SourceError(
            "the source, or what is excluded, is a list that servers give, and nothing tells whether it has changed; "
            f"run {study.name}_stage_discover by hand, or the refresh by its schedule"
        )
    return stamp


def _fetch_work(study: Study, instance: dg.DagsterInstance) -> Work | None:
    waiting = pending.accounts_never_attempted(study)
    if not waiting:
        return None
    config = {"repos": {"only_hosts": list(waiting)}}
    return Work("fetch", waiting, _host_range(study, instance, waiting), config)


def _build_work(study: Study, instance: dg.DagsterInstance) -> Work | None:
    packs = pending.unconverted_packs(study)
    if packs:
        return Work("convert", packs, _host_range(study, instance, {host for host, _ in packs}))
    if pending.nothing_is_fetched_yet(study):
        return None
    windows = pending.stale_windows(study)
    if windows:
        changed = covering_range(_windows(study), {key for table in windows.values() for key in table})
        config = {table: {"only_stale": True} for table in study_files.study_tables(study)}
        # The same windows may change again.
        return Work("tables", [windows, accounting.accounts_inputs(study)], changed, config)
    if pending.accounts_are_stale(study):
        return Work("accounts", accounting.accounts_inputs(study))
    if pending.engaged_is_stale(study):
        return Work("engaged", [accounting.accounts_inputs(study), derivation.settings_stamp(study)])
    derived = {name: keys for name, keys in pending.stale_derived(study).items() if keys}
    if derived:
        changed = covering_range(_windows(study), {key for keys in derived.values() for key in keys})
        config = {name: {"only_stale": True} for name in derivation.derived_names(study)}
        identity = [derived, accounting.accounts_inputs(study), derivation.settings_stamp(study)]
        return Work("derive", identity, changed, config)
    consumers = handing_over.pending_consumers(study)
    if consumers:
        return Work("handoff", [consumers, accounting.accounts_inputs(study)])
    return None


def _windows(study: Study) -> list[str]:
    return list(time_partitions(study.time_range).get_partition_keys())


def _host_range(study: Study, instance: dg.DagsterInstance, hosts: Iterable[str]) -> tuple[str, str] | None:
    wanted = set(hosts)
    register_hosts(instance, study, wanted)
    return covering_range(list(instance.get_dynamic_partitions(pds_partitions_name(study))), wanted)


def _op_config(study: Study, config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{study.name}__{asset}": {"config": values} for asset, values in config.items()}


def _range_tags(partitions: tuple[str, str] | None) -> dict[str, str]:
    return {RANGE_START: partitions[0], RANGE_END: partitions[1]} if partitions else {}


def _status(on: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED


def _stamp(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
