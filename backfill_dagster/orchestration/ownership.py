"""What every asset of a study carries beside its own description: owners, tags, freshness, and where its code is."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import dagster as dg
from dagster._utils.schedules import cron_string_iterator

from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

# What a refresh brings up to date whatever has changed; time partitions of tables keep their date.
_TICKS = 100
_REFRESHED = frozenset({"source_dids", "directory", "accounts", "report"})


def owned(study: Study, assets: list[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Return the assets with owners, tags, freshness policies and code references; raises ConfigError."""
    freshness = freshness_policy(study)

    def complete(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.path[-1]
        described: dg.AssetSpec = spec.merge_attributes(owners=list(study.owners), tags={"study": study.name})
        if freshness is not None and name in _REFRESHED:
            described = dg.apply_freshness_policy(described, freshness)
        return described

    with warnings.catch_warnings():
        # Code references are beta in this release of Dagster, which says so at every use.
        warnings.simplefilter("ignore", dg.BetaWarning)
        referenced = dg.with_source_code_references([asset.map_asset_specs(complete) for asset in assets])
    return [asset for asset in referenced if isinstance(asset, dg.AssetsDefinition)]


def freshness_policy(study: Study) -> dg.FreshnessPolicy | None:
    """Return what is promised of a study that is refreshed on a schedule: that no refresh is missing.

    The longest time between two refreshes, and half of that for the refresh itself. None if there is no schedule.
    Raises ConfigError for a cron expression that means no time.
    """
    cron = study.automation.refresh_cron
    if cron is None:
        return None
    try:
        ticks = cron_string_iterator(time.time(), cron, study.automation.timezone)
        times = [tick.timestamp() for tick in islice(ticks, _TICKS)]
        longest = max(after - before for before, after in pairwise(times))
        return dg.FreshnessPolicy.time_window(fail_window=timedelta(seconds=1.5 * longest))
    except Exception as error:
        # Dagster's own check of the expression raises an error that it does not make public.
        raise ConfigError(
            f"configs/{study.name}.yaml: backfill.automation.refresh_cron = {cron!r}: means no time; write five "
            "fields, such as `0 3 * * *`"
        ) from error
