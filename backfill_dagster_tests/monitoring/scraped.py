"""Metrics as whoever scrapes them reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


class Scraped:
    """The samples of one exposition, by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    @classmethod
    def of(cls, registry: Collector) -> Scraped:
        """Scrape a registry."""
        return cls(generate_latest(registry).decode())

    def sum(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels; it must have any at all."""
        named = [sample for sample in self.samples if sample.name == name]
        assert named, f"{name} is not exposed"
        return sum(sample.value for sample in named if labels.items() <= sample.labels.items())

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return the sums of a name by the values of a label."""
        values = {sample.labels[label] for sample in self.samples if sample.name == name}
        return {value: self.sum(name, **labels, **{label: value}) for value in sorted(values)}

    def values(self, label: str) -> set[str]:
        """Return all values of a label, in whatever name."""
        return {sample.labels[label] for sample in self.samples if label in sample.labels}
