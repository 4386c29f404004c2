"""What is seen of hosts that ask to be left alone: each pause by whoever listens, and all of them by whoever looks."""

from typing import Any

from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.events import Event
from backfill_dagster.network.limits import HostGates


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: Event, **fields: Any) -> None:
        self.heard.append((event.name, fields))


def test_each_pause_is_told_of_once_and_parked_hosts_are_known_for_as_long_as_they_are() -> None:
    now = 1000.0
    gates = HostGates(rate=10, burst=10, in_flight=2, clock=lambda: now)
    gate, quiet, listener = gates.gate("pds.example"), gates.gate("quiet.example"), Listener()
    with events.heard_by(listener):
        quiet.observe(200, {})
        gate.observe(429, {"retry-after": "60"})
        gate.observe(429, {"retry-after": "60"})
    gate.observe(429, {"retry-after": "60"})
    assert listener.heard == [("host_parked", {"host": "pds.example", "seconds": 60.0, "number": 1})]
    now += 30
    assert gates.parked_hosts() == {"pds.example": 30.0}
    now += 31
    assert gates.parked_hosts() == {}
    gate.observe(429, {"retry-after": "60"})
    now += 9
    assert gates.parked_hosts() == {"pds.example": 70.0}, "it has answered nothing else since"
    now += 60
    gate.observe(200, {})
    gate.observe(429, {"retry-after": "60"})
    now += 5
    assert gates.parked_hosts() == {"pds.example": 5.0}
