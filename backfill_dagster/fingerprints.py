"""The identity of all that decides what becomes of a record: what was made under another one is stale."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from backfill_dagster import filtering
from backfill_dagster.config.sources import SharedSource
from backfill_dagster.records.conversion import CONVERSION_VERSION
from backfill_dagster.records.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.config.study import Study


def settings_fingerprint(study: Study) -> str:
    """Return the identity of all that the YAML and this version's code say of what becomes of a record.

    Opens no file: what stands in the lists that filters name is not in it.
    """
    return _fingerprint(study, {})


def records_fingerprint(study: Study) -> str:
    """Return the identity of all that decides what becomes of a record; another one makes tables stale.

    The lists that filters name are in it as they are stored, and no source is asked.
    """
    return _fingerprint(study, {stored.key: stored.digest for stored in filtering.stored_lists(study)})


def _fingerprint(study: Study, lists: Mapping[str, str]) -> str:
    period = study.time_range.model_dump(mode="json")
    types = [sorted(study.record_types), sorted(study.other_record_types)]
    filters = {
        kind: [
            wanted.uris is not None,
            wanted.subjects is not None,
            sorted({language.lower() for language in wanted.languages or ()}),
            wanted.text,
            *([wanted.uris.edited] if isinstance(wanted.uris, SharedSource) else []),
        ]
        for kind, wanted in study.record_filters.items()
    }
    settings = [types, period, study.processing.record_json, filters, lists]
    told = json.dumps([CONVERSION_VERSION, SCHEMA_VERSION, settings], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
