"""When somebody is told of a run, and in what words: decisions, made of what is seen at one moment.

A message leaves the deployment, and nobody can be taken out of it again: it names no account. Of a kind, a host and a
run there is one message, however long it lasts and whoever notices it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from backfill_dagster.monitoring.account_names import without_accounts

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from backfill_dagster.config.operation import Monitoring

# Of fewer accounts than these a share says nothing yet: while the fetch goes on, and when it is over.
FEWEST_TRIED = 50
FEWEST_TRIED_IN_ALL = 10
_MAX_REASON = 600
_NAMED_REASONS = 5


class AlertKind(StrEnum):
    """What somebody is told of."""

    FAILURE = "failure"
    FAILED_SHARE = "failed_share"
    STALLED = "stalled"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Alert:
    """One message: of what kind, about which run, and about which host if it is about one."""

    kind: AlertKind
    run_id: str
    text: str
    subject: str = ""

    @property
    def identity(self) -> str:
        """What is told once only."""
        return f"{self.kind}/{self.run_id}/{self.subject}"


@dataclass(frozen=True, slots=True)
class AlertedRun:
    """The run that messages are about, and where people can look at it."""

    study: str
    job: str
    run_id: str
    ui_url: str | None = None

    def text(self, said: str) -> str:
        """Return a message of this run."""
        link = f"\n{self.ui_url.rstrip('/')}/runs/{self.run_id}" if self.ui_url else ""
        return f"backfill_dagster: {without_accounts(said)}{link}"

    @property
    def named(self) -> str:
        """Name the run in a message."""
        return f"{self.job} (run {self.run_id[:8]})"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What of a running fetch or stage somebody is told of; seconds, and a share between 0 and 1. None is never."""

    failed_share: float | None = None
    stalled_seconds: float | None = None
    parked_seconds: float | None = None

    @classmethod
    def of(cls, monitoring: Monitoring) -> Thresholds:
        """Return those of a study's YAML."""
        stalled, parked = monitoring.alert_stalled_minutes, monitoring.alert_parked_minutes
        return cls(
            monitoring.alert_failed_share,
            None if stalled is None else stalled * 60,
            None if parked is None else parked * 60,
        )

    @property
    def any_set(self) -> bool:
        """Whether there is anything to look for."""
        return any(
            value is not None for value in (self.failed_share, self.stalled_seconds, self.parked_seconds)
        )


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a run at one moment.

    `advance` is another value whenever the stage has got further. `tried` and `failed` count accounts of a fetch,
    `reasons` says for what they failed. `parked` has the seconds for which each host that is parked now has answered
    with nothing but the wish to be left alone.
    """

    stage: str
    advance: Hashable = None
    tried: int = 0
    failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    parked: Mapping[str, float] = field(default_factory=dict)
    is_over: bool = False


class RunWatch:
    """Looks at a run again and again, and says what is to be told of it; each thing once."""

    def __init__(self, run: AlertedRun, thresholds: Thresholds) -> None:
        self._run = run
        self._thresholds = thresholds
        self._advance: Hashable = None
        self._advanced_at: float | None = None
        self._told: set[str] = set()

    def look(self, sight: Sight, now: float) -> list[Alert]:
        """Return the alerts that are due; `now` is in seconds, of a clock that does not step back."""
        due = [*self._failed_share(sight), *self._stalled(sight, now), *self._parked(sight)]
        new = [alert for alert in due if alert.identity not in self._told]
        self._told.update(alert.identity for alert in new)
        return new

    def _failed_share(self, sight: Sight) -> Iterable[Alert]:
        limit = self._thresholds.failed_share
        fewest = FEWEST_TRIED_IN_ALL if sight.is_over else FEWEST_TRIED
        if limit is None or sight.tried < fewest or sight.failed <= limit * sight.tried:
            return
        reasons = ", ".join(
            f"{reason} {number:,}" for reason, number in Counter(sight.reasons).most_common(_NAMED_REASONS)
        )
        yield self._alert(
            AlertKind.FAILED_SHARE,
            f"{self._run.named}: {sight.failed:,} of {sight.tried:,} accounts tried so far have failed "
            f"({sight.failed / sight.tried:.0%}, more than {limit:.0%}){f': {reasons}' if reasons else ''}",
        )

    def _stalled(self, sight: Sight, now: float) -> Iterable[Alert]:
        limit = self._thresholds.stalled_seconds
        mark = (sight.stage, sight.advance)
        if self._advanced_at is None or mark != self._advance:
            self._advance, self._advanced_at = mark, now
        if limit is None or now - self._advanced_at < limit:
            return
        waiting = f"; {len(sight.parked)} hosts ask to be left alone" if sight.parked else ""
        yield self._alert(
            AlertKind.STALLED,
            f"{self._run.named}: {sight.stage or 'it'} has got no further for "
            f"{_minutes(now - self._advanced_at)}{waiting}",
        )

    def _parked(self, sight: Sight) -> Iterable[Alert]:
        limit = self._thresholds.parked_seconds
        if limit is None:
            return
        for host, seconds in sorted(sight.parked.items()):
            if seconds >= limit:
                yield self._alert(
                    AlertKind.PARKED,
                    f"{self._run.named}: {host} has asked to be left alone for {_minutes(seconds)}",
                    host,
                )

    def _alert(self, kind: AlertKind, said: str, subject: str = "") -> Alert:
        return Alert(kind, self._run.run_id, self._run.text(said), subject)


def failure_alert_of(run: AlertedRun, reasons: Iterable[str]) -> Alert:
    """Return the alert of a run that has failed, for these reasons."""
    # First without names, then cut: half a name would no longer be known for one.
    reason = without_accounts(" ".join(" ".join(reasons).split()))[:_MAX_REASON]
    return Alert(
        AlertKind.FAILURE, run.run_id, run.text(f"{run.job} failed (run {run.run_id[:8]})\n{reason}")
    )


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{seconds:.0f} seconds"
