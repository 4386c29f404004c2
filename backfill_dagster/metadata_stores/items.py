"""The two kinds of items of a metadata store, as the previous system has them."""

from __future__ import annotations

from dataclasses import dataclass

# How times are written in items; in UTC.
TIME_FORMAT = "%Y-%m-%d-%H:%M:%S"


@dataclass(frozen=True, slots=True)
class UserItem:
    """A collected account.

    `types` are the kinds of its records, with commas between; `total_records_by_type` is JSON, a number by kind.
    """

    did: str
    bluesky_handle: str
    types: str
    total_records: int
    total_records_by_type: str
    pds_service_endpoint: str
    timestamp: str


@dataclass(frozen=True, slots=True)
class RunItem:
    """A run: `body` and `metadata` are JSON; `status_code` is that of an HTTP answer."""

    run_id: str
    service: str
    timestamp: str
    status_code: int
    body: str
    metadata: str
