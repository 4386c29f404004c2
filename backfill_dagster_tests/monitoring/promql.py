"""What a PromQL expression asks for, as far as a test of its names needs: selectors, and labels that are grouped by."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Grafana puts in what these stand for.
_VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$study": ".*"}
_SELECTOR = re.compile(r"\b(?P<name>[a-z_]+_[a-z_]+)\b\s*(?:\{(?P<matchers>[^}]*)\})?")
_MATCHER = re.compile(r'\s*(?P<label>\w+)\s*(?P<operator>=~|!~|!=|=)\s*"(?P<value>[^"]*)"\s*(?:,|$)')
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^]]*\]")
_FUNCTIONS = re.compile(r"\b[a-z_]+\s*\(")


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric's name, and what its labels must be: (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """All selectors of an expression, and all labels that it groups or matches by."""

    selectors: tuple[Selector, ...]
    grouped: frozenset[str]


def filled(expression: str) -> str:
    """Put in what Grafana's variables stand for."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def asked(expression: str) -> Asked:
    """Read an expression; raises AssertionError for matchers that cannot be read."""
    expression = filled(expression)
    grouped = {
        label.strip()
        for labels in _GROUPED.findall(expression)
        for label in labels.split(",")
        if label.strip()
    }
    plain = _FUNCTIONS.sub("(", _RANGE.sub("", _GROUPED.sub("", expression)))
    selectors = []
    for found in _SELECTOR.finditer(re.sub(r'"[^"]*"', lambda text: text[0].replace("_", "\x00"), plain)):
        text = (found["matchers"] or "").replace("\x00", "_")
        matchers = tuple((m["label"], m["operator"], m["value"]) for m in _MATCHER.finditer(text))
        rest = _MATCHER.sub("", text).strip()
        assert not rest, f"cannot read {rest!r} of {expression}"
        selectors.append(Selector(found["name"], matchers))
    return Asked(tuple(selectors), frozenset(grouped))
