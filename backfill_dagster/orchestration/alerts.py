"""Alerts: messages to a chat about runs of the study, from their own processes and from sensors."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import dagster as dg

from backfill_dagster.errors import BackfillError
from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.alerts import (
    Alert,
    AlertedRun,
    RunWatch,
    Sight,
    Thresholds,
    failure_alert_of,
)
from backfill_dagster.monitoring.audit_log import GONE, AuditEntry, RunStatus
from backfill_dagster.monitoring.outbox import Outbox, tell
from backfill_dagster.monitoring.processor_use import ProcessorUse
from backfill_dagster.monitoring.webhook import AlertError, Webhook
from backfill_dagster.orchestration.console import failure_reason, is_interruption
from backfill_dagster.orchestration.history import belongs_to
from backfill_dagster.orchestration.resources import LimitsResource
from backfill_dagster.orchestration.tags import PARENT_TAG
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from backfill_dagster.config.operation import Monitoring
    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.structured_log import StructuredLog
    from backfill_dagster.orchestration.progress import Standing

logger = logging.getLogger(__name__)

# Seconds: between two looks at a run, and between two tries to deliver what waits.
_LONGEST_LOOK = 10.0
_LOOKS_PER_THRESHOLD = 10
_SHORTEST_LOOK = 0.05
_RETRY_SECONDS = 60.0
# How long a run stays for its last messages. An interrupted one may be killed if it does not end soon.
_LAST_SECONDS = 40.0
_LAST_SECONDS_INTERRUPTED = 5.0
_SENSOR_SECONDS = 60
# Stages whose counts alone say whether they get further; others may work long on one thing.
_COUNTED_STAGES = frozenset({"repos", "records"})


class RunAlerts:
    """Looks at a run from a thread of its own, which goes on when the run's own hangs, and tells of what is amiss."""

    def __init__(
        self,
        study: Study,
        run: dg.DagsterRun,
        log: StructuredLog,
        clock: Callable[[], float] = time.monotonic,
        busy_looks: Callable[[], int] | None = None,
    ) -> None:
        self._study = study
        self._log = log
        self._run = alerted_run(study, run)
        self._watch = RunWatch(self._run, Thresholds.of(study.monitoring))
        self._outbox = Outbox(StudyStorage(study.location))
        self._looking = threading.Lock()
        self._is_over = threading.Event()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._clock = clock
        self._busy_looks = busy_looks or ProcessorUse().look
        self._stage = ""
        self._standing: Callable[[], Standing | None] | None = None
        self._life = 0
        self._has_complained = False

    def begin(self, monitoring: Monitoring, died: Sequence[AuditEntry]) -> None:
        """Begin to look, if the study's YAML wants any alert; tell of runs that are found to have died before."""
        if not is_alerting(monitoring):
            return
        if not os.environ.get(monitoring.alert_webhook_variable):
            self._complain(f"{monitoring.alert_webhook_variable} is not set")
        if monitoring.alert_on_failure:
            for entry in died:
                run = AlertedRun(self._study.name, entry.job, entry.run_id, self._run.ui_url)
                self._post(failure_alert_of(run, [GONE]))
        self._wanted.set()
        self._thread = threading.Thread(target=self._go_on, name="backfill_dagster alerts", daemon=True)
        self._thread.start()

    def begin_stage(self, name: str) -> None:
        """Take note of the stage that the run is at."""
        self._stage, self._standing = name, None

    def follow(self, standing: Callable[[], Standing | None]) -> None:
        """Take note of what tells how far the stage is."""
        self._standing = standing

    def end_stage(self) -> None:
        """Have a last look at the stage, whose counts are all there now."""
        if self._thread is not None:
            self.look(is_over=True)
        self._stage, self._standing = "", None

    def note_life(self) -> None:
        """Take note that something was said."""
        self._life += 1

    def end(self, status: RunStatus, reason: str | None) -> None:
        """Tell of the run's failure, and give what waits some seconds to be delivered."""
        if self._thread is None:
            return
        if status is RunStatus.FAILED and self._study.monitoring.alert_on_failure:
            self._post(failure_alert_of(self._run, [reason or ""]))
        self._is_over.set()
        self._wanted.set()
        self._thread.join(_LAST_SECONDS_INTERRUPTED if status is RunStatus.CANCELED else _LAST_SECONDS)

    def _go_on(self) -> None:
        next_try = 0.0
        while True:
            over = self._is_over.is_set()
            if self._wanted.is_set() or time.monotonic() >= next_try:
                self._wanted.clear()
                self._deliver()
                next_try = time.monotonic() + _RETRY_SECONDS
            if over:
                return
            self._wanted.wait(_look_seconds(Thresholds.of(self._study.monitoring)))
            if not self._is_over.is_set():
                self.look()

    def look(self, *, is_over: bool = False) -> None:
        """Look at the run now, and store what is to be told of it."""
        try:
            with self._looking:
                found = self._watch.look(self._sight(is_over=is_over), self._clock())
        except RuntimeError:  # what is looked at is being changed; the next look will do
            return
        except Exception as error:  # noqa: BLE001  neither the run nor the thread is to end over it
            self._complain(f"the run cannot be looked at: {error}")
            return
        for alert in found:
            self._post(alert)

    def _sight(self, *, is_over: bool) -> Sight:
        standing = self._standing() if self._standing is not None else None
        busy = self._busy_looks()
        advance: Hashable = None
        if standing is not None:
            advance = (standing.done, standing.total, standing.megabytes)
        if self._stage not in _COUNTED_STAGES:
            advance = (advance, self._life, busy)
        parked = LimitsResource().gates().parked_hosts()
        if standing is None or standing.unit != "accounts":
            return Sight(self._stage, advance, parked=parked, is_over=is_over)
        reasons: Any = standing.metadata.get("failures_by_reason", {})
        failed: Any = standing.metadata.get("failed", 0)
        tried = standing.done
        return Sight(self._stage, advance, tried, failed, reasons, parked, is_over)

    def _post(self, alert: Alert) -> None:
        try:
            is_new = self._outbox.post(alert)
        except (BackfillError, OSError) as error:
            # A full disk must not keep to itself that it is full.
            self._complain(str(error))
            is_new = self._send_unstored(alert)
        if is_new:
            self._log.emit(
                events.ALERT, kind=alert.kind.value, subject=alert.subject or None, text=alert.text
            )
        self._wanted.set()

    def _send_unstored(self, alert: Alert) -> bool:
        webhook = webhook_of(self._study)
        if webhook is None:
            return False
        try:
            webhook.send(alert.text)
        except AlertError:
            return False
        return True

    def _deliver(self) -> None:
        webhook = webhook_of(self._study)
        if webhook is None:
            return
        try:
            self._outbox.deliver(webhook.send)
        except (BackfillError, OSError) as error:
            self._complain(str(error))

    def _complain(self, said: str) -> None:
        """Say once in the run's log why somebody may not be told."""
        if not self._has_complained:
            self._has_complained = True
            logger.warning("alerts may come late, or not at all: %s", said)


def is_alerting(monitoring: Monitoring) -> bool:
    """Tell whether a study wants anybody told of anything."""
    return monitoring.alert_on_failure or Thresholds.of(monitoring).any_set


def alerted_run(study: Study, run: dg.DagsterRun) -> AlertedRun:
    """Return a run as messages name it."""
    return AlertedRun(study.name, run.job_name, run.run_id, study.monitoring.ui_url)


def webhook_of(study: Study) -> Webhook | None:
    """Return where messages go; None if this process is not told."""
    address = os.environ.get(study.monitoring.alert_webhook_variable)
    return Webhook(address) if address else None


def alert_sensors(study: Study) -> list[dg.SensorDefinition]:
    """Return the sensor that tells of failed runs, and the one that delivers what could not be delivered."""
    return [failure_alert(study), _pending_alerts(study)]


def failure_alert(study: Study) -> dg.SensorDefinition:
    """Return the sensor that tells of each failed run of the study, unless the run has told of that itself."""
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
        failures = list(context.get_step_failure_events())
        if failures and all(map(is_interruption, failures)):
            # Dagster takes Ctrl-C for a failure.
            return dg.SkipReason(f"run {run.run_id} was interrupted")
        reasons = [failure_reason(event) for event in failures]
        alert = failure_alert_of(alerted_run(study, run), reasons or [str(context.failure_event.message)])
        webhook = webhook_of(study)
        try:
            is_new = tell(
                Outbox(StudyStorage(study.location)),
                alert,
                webhook.send if webhook else None,
                patience=_SENSOR_SECONDS,
            )
        except AlertError as error:
            said = _unset(study) if webhook is None else error
            raise AlertError(f"{said}; the message waits, and is sent later") from None
        return None if is_new else dg.SkipReason(f"run {run.run_id} has told of its failure itself")

    return sensor


def _pending_alerts(study: Study) -> dg.SensorDefinition:
    on = is_alerting(study.monitoring)

    @dg.sensor(
        name=f"{study.name}_pending_alerts",
        minimum_interval_seconds=_SENSOR_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        tags={"study": study.name},
        description="Delivers messages that the webhook did not take when they were due. Starts nothing.",
    )
    def sensor() -> dg.SkipReason:
        outbox = Outbox(StudyStorage(study.location))
        if not outbox.pending():
            return dg.SkipReason("no message waits")
        webhook = webhook_of(study)
        if webhook is None:
            raise AlertError(_unset(study))
        return dg.SkipReason(f"{outbox.deliver(webhook.send)} messages were delivered")

    return sensor


def _unset(study: Study) -> str:
    return (
        f"{study.monitoring.alert_webhook_variable} is not set: nobody is told of failed runs of {study.name}"
    )


def _look_seconds(thresholds: Thresholds) -> float:
    """Return the pause between two looks: a share of the shortest span of time that somebody is to be told after."""
    spans = [span for span in (thresholds.stalled_seconds, thresholds.parked_seconds) if span is not None]
    return max(_SHORTEST_LOOK, min([_LONGEST_LOOK, *(span / _LOOKS_PER_THRESHOLD for span in spans)]))
