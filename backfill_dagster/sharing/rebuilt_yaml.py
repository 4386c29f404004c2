"""The YAML with which somebody else finds again what is shared: it goes with the ids, ready to be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from backfill_dagster.manifest.told_config import told_config
from backfill_dagster.records.tables import OTHER_RECORDS, TABLES_OF_COLLECTION

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

# With more records of an account on average than so many, its repository comes sooner.
RECORDS_ONE_BY_ONE = 20
_COMMENT = """\
# Rebuilds what study `{study}` has shared from the network: of each record that is there still, and unchanged,
# the same row. Put this file among the configs as rebuilt.yaml, and say below where the shared folder lies
# (or s3://bucket/prefix). `rehydration.parquet` then says what became of every record that was shared.
"""


def rebuilt_yaml(study: Study, records_per_account: float) -> str:
    """Return it: what decides which rows come of a record, and nothing of where or by whom they were collected."""
    time_range = study.time_range
    told = told_config(study)
    period: dict[str, Any] = {
        "start_date": time_range.start_date and time_range.start_date.isoformat(),
        "end_date": time_range.end_date and time_range.end_date.isoformat(),
        "outside": time_range.outside,
        "partitions": time_range.partitions,
    }
    body: dict[str, Any] = {
        "name": "rebuilt",
        # What the environment filled in there is not the reader's.
        **({} if "version" in study.filled_in else {"version": told["version"]}),
        "description": f"Rebuilt from what study {study.name} has shared.",
        "source": {"type": "shared", "path": f"./{study.sharing.folder}", "edited": "leave_out"},
        "fetch": "records" if records_per_account <= RECORDS_ONE_BY_ONE else "repos",
        **_types(study),
        "time_range": period,
        "processing": {"record_json": study.processing.record_json},
    }
    text: str = yaml.safe_dump({"backfill": body}, sort_keys=False, width=110)
    return _COMMENT.format(study=study.name) + text


def told_rules(study: Study) -> dict[str, Any]:
    """Return by which rules the shared records were chosen, as anybody may know them: without lists and secrets."""
    time_range = study.time_range.model_dump(mode="json")
    filters = told_config(study)["filters"]
    return {
        **_types(study),
        "time_range": time_range,
        "filters": {
            kind: {name: said for name in ("languages", "text") if (said := wanted.get(name)) is not None}
            | {name: "a list" for name in ("uris", "subjects") if wanted.get(name) is not None}
            for kind, wanted in filters.items()
        },
        "record_json": study.processing.record_json,
    }


def _types(study: Study) -> dict[str, Any]:
    """Return the types of the records that are shared."""
    tables = study.sharing.tables
    if tables is None:
        return {
            "record_types": list(study.record_types),
            "other_record_types": list(study.other_record_types),
        }
    return {
        "record_types": [
            kind for kind in study.record_types if set(TABLES_OF_COLLECTION[kind]) & set(tables)
        ],
        "other_record_types": list(study.other_record_types) if OTHER_RECORDS in tables else [],
    }
