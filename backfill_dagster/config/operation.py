"""What happens by itself, what people are told of, and when something counts as amiss."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field

from backfill_dagster.config.section import Section, http_origin, variable_name


def _cron(value: str) -> str:
    # What the fields say is for the scheduler to judge, when the study's definitions are made.
    if not re.fullmatch(r"\S+( \S+){4}", value):
        raise ValueError("must be a cron expression of five fields, such as `0 3 * * *`")
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone, such as Europe/Berlin") from None
    return value


def _ip_address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        raise ValueError("must be an IP address, such as 127.0.0.1 or 0.0.0.0") from None


def _prom_file(value: Path) -> Path:
    # The collector passes over all others.
    if value.suffix != ".prom":
        raise ValueError("must end in .prom")
    return value


class Monitoring(Section):
    """What the run tells, and whom."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least weighty messages that are shown and kept."
    )
    log_format: Literal["human", "json"] = Field(
        "human", description="How the terminal is written to: lines for people, or one JSON object a line."
    )
    log_file: Path | None = Field(
        None, description="A file that structured events are added to as well, one JSON object a line."
    )
    hash_dids: bool = Field(
        False, description="Name accounts in structured events by keyed hashes of their DIDs."
    )
    alert_on_failure: bool = Field(
        False,
        description="Send a message when a run of the study fails, to the address in the environment variable "
        "that `alert_webhook_variable` names.",
    )
    alert_failed_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Send a message when a larger share of the accounts that a fetch has tried has failed.",
    )
    alert_stalled_minutes: float | None = Field(
        None, gt=0, description="Send a message when a stage has got no further for so long."
    )
    alert_parked_minutes: float | None = Field(
        None, gt=0, description="Send a message when a host has asked to be left alone for so long."
    )
    alert_webhook_variable: Annotated[str, AfterValidator(variable_name)] = Field(
        "BACKFILL_ALERT_WEBHOOK",
        description="The environment variable with the webhook's address, which is a secret and so stands in no file.",
    )
    prometheus_port: int | None = Field(
        None, ge=1, le=65535, description="The port on which the process of a run serves its metrics."
    )
    prometheus_address: Annotated[str, AfterValidator(_ip_address)] = Field(
        "127.0.0.1",
        description="The IP address of this machine that they are served on; `0.0.0.0` is all of them. Whoever can "
        "reach it can read them.",
    )
    prometheus_pushgateway: Annotated[str, AfterValidator(http_origin)] | None = Field(
        None, description="A push gateway that the metrics of short runs are handed to."
    )
    prometheus_textfile: Annotated[Path, AfterValidator(_prom_file)] | None = Field(
        None, description="A file for the node exporter's textfile collector, ending in `.prom`."
    )
    prometheus_hosts: int = Field(
        20,
        ge=0,
        le=1000,
        description="How many hosts, those with the most accounts, have metrics of their own; the rest are `other`.",
    )
    ui_url: Annotated[str, AfterValidator(http_origin)] | None = Field(
        None, description="Where people open Dagster's UI, for links in messages."
    )


class Quality(Section):
    """What the servers and the data may do before a check warns; shares between 0 and 1."""

    max_failed_accounts: float = Field(
        0.01, ge=0, le=1, description="Share of the source's accounts whose latest fetch failed."
    )
    max_rejected_records: float = Field(
        0.001, ge=0, le=1, description="Share of the fetched records that could not be decoded."
    )
    max_undated_records: float = Field(
        0.02, ge=0, le=1, description="Share of the kept records without a date that can be believed."
    )
    max_records_with_issues: float = Field(
        0.05, ge=0, le=1, description="Share of the kept records with a field that breaks its lexicon."
    )
    max_uneven_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How much larger the share of lost accounts, or of rejected records, may be on one host, or among "
        "accounts of like activity, than it is over all.",
    )


class Automation(Section):
    """What happens by itself while Dagster's daemon runs; cron expressions have five fields.

    Whatever starts network traffic is off unless it is named here. A switch in the UI overrides it.
    """

    on_new_dids: bool = Field(False, description="Look accounts up when the source has changed.")
    on_new_hosts: bool = Field(False, description="Fetch the hosts that have accounts not fetched yet.")
    on_new_data: bool = Field(
        True, description="Turn new packs into records, and those into the tables that they change."
    )
    refresh_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None, description="When to run the refresh; `0 3 * * *`, but switched off, if left out."
    )
    newest_partition_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None,
        description="When to build the tables' newest time partition; `0 * * * *`, but switched off, if left out.",
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        "UTC", description="The time zone of the cron expressions."
    )
