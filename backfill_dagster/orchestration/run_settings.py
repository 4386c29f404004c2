"""What may change from one run to the next: fields of the launchpad, with the study's YAML as defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, create_model

from backfill_dagster.config import Processing

if TYPE_CHECKING:
    from backfill_dagster.config import Study

_FETCH_FIELDS = ("max_concurrent_pds", "requests_in_flight", "requests_per_second", "max_retries")


class FetchSettings(dg.Config):
    """Base of every study's own fetch settings."""

    def over(self, processing: Processing) -> Processing:
        """Return the study's processing with this run's values in place."""
        chosen = {name: getattr(self, name) for name in _FETCH_FIELDS}
        return Processing.model_validate({**processing.model_dump(), **chosen})


def fetch_settings_class(study: Study) -> type[FetchSettings]:
    """Make the class of a study's fetch settings, its defaults from the YAML."""
    fields: dict[str, Any] = {}
    for name in _FETCH_FIELDS:
        info = Processing.model_fields[name]
        default = getattr(study.processing, name)
        fields[name] = (info.annotation, Field(default=default, description=info.description))
    made: type[FetchSettings] = create_model("FetchSettings", __base__=FetchSettings, **fields)
    return made
