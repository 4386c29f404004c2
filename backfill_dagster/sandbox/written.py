"""A record as the sandbox writes it, together with what a reader must make of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
REPOST = "app.bsky.feed.repost"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
PROFILE = "app.bsky.actor.profile"


class Defect(StrEnum):
    """Why a record cannot be kept as a row."""

    UNDECODABLE = "undecodable"  # its block is not DAG-CBOR
    BAD_KEY = "bad_key"  # its key in the tree is not a record's path
    NOT_A_MAP = "not_a_map"  # its block holds some other DAG-CBOR
    RAW_CODEC = "raw_codec"  # the tree points at a block of raw bytes


class Written(NamedTuple):
    """One record. `created`: the instant of its `createdAt` in microseconds since 1970, None without one."""

    collection: str
    rkey: str
    value: Any
    created: int | None
    defect: Defect | None = None


def microseconds(instant: datetime) -> int:
    """Count the microseconds from 1970 to an instant."""
    return (instant - EPOCH) // timedelta(microseconds=1)


def instant_of(created: int) -> datetime:
    """Return the instant that many microseconds after 1970."""
    return EPOCH + timedelta(microseconds=created)


def iso_milliseconds(created: int) -> str:
    """Write an instant as nearly all clients do: UTC, milliseconds, `Z`."""
    return instant_of(created).isoformat(timespec="milliseconds")[:-6] + "Z"
