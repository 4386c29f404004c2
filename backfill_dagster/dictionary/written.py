"""Puts the data dictionary beside a study's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dictionary.descriptor import descriptor
from backfill_dagster.dictionary.markdown import readable
from backfill_dagster.dictionary.resources import study_resources
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

DESCRIPTOR_KEY = "data_dictionary.json"
READABLE_KEY = "data_dictionary.md"


def write_dictionary(study: Study) -> None:
    """Write what the study's tables mean, for programs and for people; what is up to date stays as it is."""
    storage, resources = StudyStorage(study.location), study_resources(study)
    for key, content in (
        (DESCRIPTOR_KEY, descriptor(study.name, resources)),
        (READABLE_KEY, readable(study.name, resources)),
    ):
        if not storage.exists(key) or storage.read_bytes(key) != content:
            storage.write_bytes(key, content)
