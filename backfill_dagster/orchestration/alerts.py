"""Alerts: a message to a chat when a run of the study has failed."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

import dagster as dg
import httpx

from backfill_dagster.errors import BackfillError
from backfill_dagster.orchestration.console import failure_reason
from backfill_dagster.orchestration.history import belongs_to
from backfill_dagster.orchestration.tags import PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.config.study import Study

_TRIES = 3
_TIMEOUT_SECONDS = 10
_PAUSE_SECONDS = 1.0
_MAX_REASON = 600
# A message leaves the deployment, and nobody can be taken out of it again.
_NAMES = re.compile(
    r"at://[^\s'\"]+|did(?::|%3a)(?:plc|web)(?::|%3a)[a-z0-9._:%-]+", re.IGNORECASE | re.ASCII
)
# It would write the address, which is a secret, into every log that listens.
logging.getLogger("httpx").setLevel(logging.WARNING)


class AlertError(BackfillError):
    """The message could not be delivered."""


def failure_alert(study: Study) -> dg.SensorDefinition:
    """Return the sensor that tells of each failed run of the study, its own and those of a command line."""
    monitoring = study.monitoring
    on = monitoring.alert_on_failure

    @dg.run_failure_sensor(
        name=f"{study.name}_failure_alert",
        # Runs of a command line belong to no code location.
        monitor_all_code_locations=True,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        tags={"study": study.name},
        description="Sends a message when a run of the study fails, to the webhook in the environment variable "
        f"{monitoring.alert_webhook_variable}. Off unless monitoring.alert_on_failure is true, or it is switched on "
        "here.",
    )
    def sensor(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        run = context.dagster_run
        # A stage of a whole run fails that too, which tells of it.
        if not belongs_to(run, study) or (PARENT_TAG in run.tags and run.parent_run_id is None):
            return dg.SkipReason(f"run {run.run_id} is none of {study.name}")
        address = os.environ.get(monitoring.alert_webhook_variable)
        if not address:
            raise AlertError(
                f"{monitoring.alert_webhook_variable} is not set: nobody is told of failed runs of {study.name}"
            )
        reasons = [failure_reason(event) for event in context.get_step_failure_events()]
        send(address, alert_body(study, run, reasons or [str(context.failure_event.message)]))
        return None

    return sensor


def alert_body(study: Study, run: dg.DagsterRun, reasons: list[str]) -> dict[str, Any]:
    """Return the JSON of a message, as Slack, Mattermost, Rocket.Chat and Discord (at its /slack address) read it."""
    reason = _NAMES.sub("(an account)", " ".join(" ".join(reasons).split()))[:_MAX_REASON]
    link = f"\n{study.monitoring.ui_url}/runs/{run.run_id}" if study.monitoring.ui_url else ""
    return {"text": f"backfill_dagster: {run.job_name} failed (run {run.run_id[:8]})\n{reason}{link}"}


def send(address: str, body: Mapping[str, Any]) -> None:
    """Post the message, trying again when the address fails; raises AlertError, which does not name the address."""
    said = ""
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE_SECONDS * 2**number)
        try:
            answer = httpx.post(address, json=body, timeout=_TIMEOUT_SECONDS, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = type(error).__name__
            continue
        if answer.is_success:
            return
        said = f"HTTP {answer.status_code}"
        if answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            break
    raise AlertError(f"the alert's webhook did not take the message: {said}")
