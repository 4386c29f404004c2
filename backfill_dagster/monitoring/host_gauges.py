"""What the gates of a study's hosts say at the moment that somebody asks: nothing is counted in between."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backfill_dagster.monitoring.families import Description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True, slots=True)
class HostStanding:
    """How a host stands: seconds of pause that are left, and for how long it has wanted nothing but pauses.

    And what its limit leaves: tokens at hand, and the rate in requests per second. `under_way` and `waiting` are
    requests.
    """

    pause: float
    parked: float
    tokens: float
    rate: float
    under_way: int
    waiting: int


class Standings(Protocol):
    """What knows how the hosts of one study stand."""

    def standings(self) -> Iterable[tuple[str, HostStanding]]:
        """Return the standing of each host that was asked, with its label."""


_LABELS = ("study", "host")
# Of the hosts that are `other` together, that one is told of which one would want to know.
_BY_HOST: Mapping[str, tuple[str, Callable[[HostStanding], float], Callable[[Iterable[float]], float]]] = {
    "backfill_requests_in_flight": (
        "Requests that are under way.",
        lambda standing: standing.under_way,
        sum,
    ),
    "backfill_host_pause_seconds": (
        "How long the host still wants to be left alone; 0 if it does not. Of `other`, the longest.",
        lambda standing: standing.pause,
        max,
    ),
    "backfill_host_parked_seconds": (
        "For how long the host has wanted nothing but pauses; 0 while it wants none. Of `other`, the longest.",
        lambda standing: standing.parked,
        max,
    ),
    "backfill_host_tokens": (
        "Requests that the host's limit allows at once. Of `other`, the fewest.",
        lambda standing: standing.tokens,
        min,
    ),
    "backfill_host_requests_per_second": (
        "The pace that the host's limit allows: as configured, or lower if the host said so. Of `other`, the slowest.",
        lambda standing: standing.rate,
        min,
    ),
}
_PARKED = ("backfill_hosts_parked", "Hosts that want to be left alone now, of all that were asked.")


class HostGauges(Collector):
    """The collector of what is true of hosts now, of all studies of a registry."""

    def __init__(self) -> None:
        self._studies: dict[str, Standings] = {}

    @property
    def descriptions(self) -> list[Description]:
        """What these families are."""
        by_host = [Description(name, "gauge", _LABELS, meaning) for name, (meaning, *_) in _BY_HOST.items()]
        name, meaning = _PARKED
        return [*by_host, Description(name, "gauge", _LABELS[:1], meaning)]

    def watch(self, study: str, standings: Standings) -> None:
        """Tell of a study's hosts from now on."""
        self._studies = {**self._studies, study: standings}

    def describe(self) -> Iterable[Metric]:
        """Return the families, without a value."""
        return self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Return how each host stands."""
        families = self._families()
        for study, watched in self._studies.items():
            by_label: dict[str, list[HostStanding]] = defaultdict(list)
            for label, standing in watched.standings():
                by_label[label].append(standing)
            for name, (_, value, together) in _BY_HOST.items():
                for label, standings in by_label.items():
                    families[name].add_metric([study, label], together(map(value, standings)))
            parked = sum(standing.pause > 0 for standings in by_label.values() for standing in standings)
            families[_PARKED[0]].add_metric([study], parked)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        by_host = {
            name: GaugeMetricFamily(name, meaning, labels=_LABELS) for name, (meaning, *_) in _BY_HOST.items()
        }
        return {**by_host, _PARKED[0]: GaugeMetricFamily(*_PARKED, labels=_LABELS[:1])}
