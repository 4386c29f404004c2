"""The entry point of an AWS Lambda function: an event in, an answer as a dictionary out, and nothing is ever raised.

    {"mode": "backfill", "config": "demo", "dids": "all"}
    {"mode": "determine_dids_to_backfill", "config": "demo", "start_date": "2024-10-01", "end_date": "2024-10-31"}

The work is done by the Dagster deployment that `BACKFILL_DAGSTER_URL` names; a function only asks for it.
"""

from __future__ import annotations

import logging
import os
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from backfill_dagster.api.environment import FacadeSettings
from backfill_dagster.api.errors import InvalidRequestError
from backfill_dagster.api.facade import Backfills
from backfill_dagster.api.models import ConfigName, Did, Mode, RunSettings
from backfill_dagster.config.time_range import end_instant, start_instant
from backfill_dagster.errors import BackfillError

logger = logging.getLogger(__name__)

ALL = "all"
# Of which two lists fit into an answer of AWS Lambda, six megabytes, if every DID is a `did:plc`.
MOST_DIDS = 80_000
_MAX_SHOWN = 200


class EventMode(StrEnum):
    """What is asked for."""

    BACKFILL = "backfill"
    DETERMINE = "determine_dids_to_backfill"


def _split(value: Any) -> Any:
    """Read the ways to name accounts; None stands for all."""
    if isinstance(value, str):
        if value.strip().lower() == ALL:
            return None
        value = [part for part in value.split(",") if part.strip()]
    if value is None or value == []:
        # An empty list that meant everybody would be a costly mistake.
        raise ValueError("must be 'all', a DID, several parted by commas, or a list of them")
    return value


class Event(BaseModel):
    """What a function is called with; everything has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: EventMode = EventMode.BACKFILL
    config: ConfigName = "default"
    # None for all of the config's source.
    dids: Annotated[tuple[Did, ...] | None, Field(max_length=MOST_DIDS), BeforeValidator(_split)] = None
    start_date: Annotated[datetime | None, BeforeValidator(start_instant)] = None
    end_date: Annotated[datetime | None, BeforeValidator(end_instant)] = None
    skip_backfill: bool = False


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Start a backfill, or tell whom one would be for.

    Answers {"status": "success", ...} or {"status": "error", "message": ...}, whatever happens.
    """
    try:
        asked = _validated(event)
        with Backfills.connected(FacadeSettings.from_environment(os.environ)) as backfills:
            answer = (
                _start(backfills, asked, context)
                if asked.mode is EventMode.BACKFILL
                else _determine(backfills, asked)
            )
    except BackfillError as error:
        return {"status": "error", "message": str(error)}
    except Exception as error:
        logger.exception("an event could not be handled")
        return {"status": "error", "message": f"unexpected {type(error).__name__}: see the function's log"}
    return {"status": "success", "mode": asked.mode.value, "config": asked.config, **answer}


def _start(backfills: Backfills, asked: Event, context: Any) -> dict[str, Any]:
    _check_period(backfills, asked)
    function = re.sub(r"[^A-Za-z0-9_-]", "_", str(getattr(context, "function_name", None) or "function"))
    if asked.skip_backfill:
        # All of the tables, whoever is named: they are made of what is stored.
        mode, settings = Mode.REBUILD, RunSettings()
    else:
        mode, settings = Mode.BACKFILL, RunSettings.model_construct(only_dids=asked.dids or ())
    job = backfills.start(asked.config, mode, settings, f"lambda:{function}")
    return {"job_id": job.job_id, "state": job.state.value}


def _determine(backfills: Backfills, asked: Event) -> dict[str, Any]:
    if asked.skip_backfill:
        return {"dids": [], "count": 0, "asked": 0}
    waiting = backfills.waiting(asked.config, asked.dids or ())
    answer: dict[str, Any] = {**_listed("dids", waiting.dids), "asked": waiting.asked}
    if asked.start_date is not None or asked.end_date is not None:
        _ensure_order(asked)
        engaged = backfills.engaged(asked.config, asked.start_date, asked.end_date)
        answer |= _listed("engaged_dids", engaged)
    return answer


def _listed(name: str, dids: list[str]) -> dict[str, Any]:
    prefix = name.removesuffix("dids")
    cut = {f"{prefix}truncated": True} if len(dids) > MOST_DIDS else {}
    return {name: dids[:MOST_DIDS], f"{prefix}count": len(dids), **cut}


def _check_period(backfills: Backfills, asked: Event) -> None:
    """Raise InvalidRequestError for a period that is not the config's.

    The period decides what is in a study's tables. For another one there has to be another study, beside the first;
    that a call made one by itself would fetch everything once more.
    """
    if asked.start_date is None and asked.end_date is None:
        return
    period = backfills.study(asked.config).time_range
    for field in ("start_date", "end_date"):
        given, own = getattr(asked, field), getattr(period, field)
        if given is not None and given != own:
            raise InvalidRequestError(
                f"event.{field} = {given:%Y-%m-%d %H:%M:%S}: the period of {asked.config} has "
                f"{'no end' if own is None else format(own, '%Y-%m-%d %H:%M:%S')} here, and fetches the same whatever "
                "the period; leave the dates out, or give a config whose time_range is this one"
            )


def _ensure_order(asked: Event) -> None:
    if asked.start_date and asked.end_date and asked.start_date > asked.end_date:
        raise InvalidRequestError(
            f"event.start_date = {asked.start_date:%Y-%m-%d %H:%M:%S}: is after end_date "
            f"{asked.end_date:%Y-%m-%d %H:%M:%S}"
        )


def _validated(event: Any) -> Event:
    try:
        return Event.model_validate({} if event is None else event)
    except ValidationError as error:
        raise InvalidRequestError("; ".join(map(_described, error.errors(include_url=False)))) from None


def _described(item: Any) -> str:
    field = ".".join(["event", *map(str, item["loc"])])
    shown = repr(item["input"])
    message = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if item["type"] == "extra_forbidden":
        message = f"is not known; allowed are {', '.join(Event.model_fields)}"
    return f"{field} = {shown[:_MAX_SHOWN]}{'…' * (len(shown) > _MAX_SHOWN)}: {message}"
