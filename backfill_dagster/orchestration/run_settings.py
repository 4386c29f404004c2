"""What may change from one run to the next: fields of the launchpad, with the study's YAML as defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, create_model

from backfill_dagster.config import Processing
from backfill_dagster.errors import ConfigError
from backfill_dagster.repos.snapshots import FetchMode

if TYPE_CHECKING:
    from backfill_dagster.config import Study

_FETCH_FIELDS = (
    "max_concurrent_pds",
    "requests_in_flight",
    "requests_per_second",
    "max_retries",
    "max_run_minutes",
)


class FetchSettings(dg.Config):
    """Base of every study's own fetch settings."""

    mode: str = Field(
        default=FetchMode.UNSETTLED.value,
        description="`unsettled` fetches accounts that were not fetched yet or failed, `failed` only the latter, "
        "`refresh` all that have moved on since.",
    )

    @property
    def fetch_mode(self) -> FetchMode:
        """Return the mode; raises ConfigError for a word that is none."""
        try:
            return FetchMode(self.mode)
        except ValueError:
            raise ConfigError(
                f"run config: mode = {self.mode!r}: must be one of {', '.join(FetchMode)}"
            ) from None

    def over(self, processing: Processing) -> Processing:
        """Return the study's processing with this run's values in place."""
        chosen = {name: getattr(self, name) for name in _FETCH_FIELDS}
        return Processing.model_validate({**processing.model_dump(), **chosen})


class ConversionSettings(dg.Config):
    """What may change from one conversion to the next."""

    again: bool = Field(
        default=False, description="Also convert what is converted with these settings already."
    )


def fetch_settings_class(study: Study) -> type[FetchSettings]:
    """Make the class of a study's fetch settings, its defaults from the YAML."""
    fields: dict[str, Any] = {}
    for name in _FETCH_FIELDS:
        info = Processing.model_fields[name]
        default = getattr(study.processing, name)
        fields[name] = (info.annotation, Field(default=default, description=info.description))
    made: type[FetchSettings] = create_model("FetchSettings", __base__=FetchSettings, **fields)
    return made
