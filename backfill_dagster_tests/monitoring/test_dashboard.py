"""The dashboard, the alert rules and the page of documentation ask for nothing but what there is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from backfill_dagster.definitions import build_defs
from backfill_dagster.derivation import DERIVED
from backfill_dagster.monitoring.study_metrics import ALL_TYPES, RUN, WORKER, Metrics
from backfill_dagster.network.turns import OUTCOMES
from backfill_dagster.records.outcomes import Fate
from backfill_dagster.records.tables import TABLES
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.tables.accounts import ACCOUNT_STATES
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.monitoring.promql import Selector, asked

CONFIGS = ROOT / "configs" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((CONFIGS / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PAGE = (ROOT / "docs" / "monitoring.md").read_text()

# What Prometheus adds to every series, and what it has of its own.
OF_PROMETHEUS = frozenset({"job", "instance"})
UP = "up"
STAGES = frozenset(
    {"source_dids", "directory", "repos", "records", "undated", "accounts", "report", "engaged"}
)
# The closed sets that labels are out of, by the metric; or by any metric that has no set of its own.
VALUES: dict[tuple[str, str], frozenset[str]] = {
    ("", "stage"): frozenset({*STAGES, *TABLES, *DERIVED}),
    ("backfill_requests_total", "outcome"): OUTCOMES,
    ("backfill_account_attempts_total", "outcome"): frozenset(Outcome),
    ("", "reason"): frozenset(FailureReason),
    ("", "fate"): frozenset(Fate),
    ("", "type"): frozenset({*TABLES, ALL_TYPES}),
    ("backfill_accounts", "state"): ACCOUNT_STATES,
    ("", "process"): frozenset({RUN, WORKER}),
}


def labels_by_name() -> dict[str, frozenset[str]]:
    names: dict[str, frozenset[str]] = {}
    for family in Metrics().descriptions:
        labels = frozenset(family.labels)
        if family.kind == "histogram":
            names |= {f"{family.name}_bucket": labels | {"le"}}
            names |= {f"{family.name}_sum": labels, f"{family.name}_count": labels}
        else:
            names[family.name] = labels
    return names


LABELS = labels_by_name()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str, str]]:
    """Return the dashboard's queries: where each stands, the expression, and the legend that it has."""
    of_panels = [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]
    of_annotations = [
        (annotation["name"], annotation["expr"], annotation["titleFormat"])
        for annotation in DASHBOARD["annotations"]["list"]
        if "expr" in annotation
    ]
    return [*of_panels, *of_annotations]


def complaints(expression: str) -> list[str]:
    """Say what an expression asks for that there is not."""
    found = []
    read = asked(expression)
    known = [selector for selector in read.selectors if selector.name != UP]
    for selector in known:
        if selector.name not in LABELS:
            found.append(f"there is no metric {selector.name}")
            continue
        of_metric = LABELS[selector.name] | OF_PROMETHEUS
        found += [f"{selector.name} has no label {label}" for label in read.grouped - of_metric]
        for label, operator, value in selector.matchers:
            if label not in of_metric:
                found.append(f"{selector.name} has no label {label}")
            elif operator in ("=", "!="):
                found += _unknown_values(selector, label, [value])
            elif re.fullmatch(r"[\w|]+", value):
                found += _unknown_values(selector, label, value.split("|"))
    return found


def _unknown_values(selector: Selector, label: str, values: list[str]) -> list[str]:
    known = VALUES.get((selector.name, label)) or VALUES.get(("", label))
    assert known is not None, f"the test does not know the values of {label}"
    return [f"{selector.name} never has {label}={value}" for value in values if value not in known]


@pytest.mark.parametrize(("title", "expression", "legend"), queries())
def test_a_query_of_the_dashboard_asks_for_what_there_is(title: str, expression: str, legend: str) -> None:
    assert complaints(expression) == []
    read = asked(expression)
    assert read.selectors
    # A legend can only name labels that are left.
    grouped = re.match(r"(?:60 \* )?(?:sum|min|max|histogram_quantile)\b", expression)
    left = read.grouped if grouped else frozenset().union(*(LABELS[one.name] for one in read.selectors))
    assert set(re.findall(r"{{(\w+)}}", legend)) <= left


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert complaints(rule["expr"]) == []
    shown = json.dumps(rule["annotations"])
    names = set(re.findall(r"\$labels\.(\w+)", shown))
    selectors = asked(rule["expr"]).selectors
    assert names <= set().union(*(LABELS[one.name] for one in selectors if one.name != UP)) | OF_PROMETHEUS
    assert "study" in names


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("backfill_requests", "there is no metric backfill_requests"),
        ("rate(backfill_request_total[5m])", "there is no metric backfill_request_total"),
        ('backfill_accounts{host="pds.test"}', "backfill_accounts has no label host"),
        ("sum by (host) (backfill_accounts)", "backfill_accounts has no label host"),
        ('backfill_requests_total{outcome="refused"}', "backfill_requests_total never has outcome=refused"),
        ('backfill_stage_active{stage=~"repos|fetch"}', "backfill_stage_active never has stage=fetch"),
    ],
)
def test_what_there_is_not_would_be_found(expression: str, complaint: str) -> None:
    assert complaints(expression) == [complaint]


def test_every_metric_is_shown() -> None:
    names = {
        re.sub(r"_(bucket|sum|count)$", "", selector.name)
        for expression in [*(query for _, query, _ in queries()), *(rule["expr"] for rule in RULES)]
        for selector in asked(expression).selectors
    }
    assert {family.name for family in Metrics().descriptions} <= names


def test_the_dashboard_can_be_imported() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert asked(variables["study"]["definition"].split("(")[1].split(",")[0]).selectors
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert taken.isdisjoint(cells)
        taken |= cells


def test_no_file_of_the_folder_is_taken_for_a_study() -> None:
    assert sorted(path.suffix for path in CONFIGS.iterdir()) == [".json", ".yml", ".yml"]
    jobs = {job.name for job in build_defs(ROOT / "configs").get_repository_def().get_all_jobs()}
    assert "demo" in jobs
    assert not {name for name in jobs if re.search("monitoring|alerts|prometheus|dashboard", name)}


def test_the_page_tells_of_every_metric_and_alert() -> None:
    rows = [
        f"| `{family.name}` | {family.kind} | {', '.join(family.labels)} | {family.meaning} |"
        for family in Metrics().descriptions
    ]
    table = "\n".join(["| name | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])
    assert table in PAGE, f"docs/monitoring.md should have this table:\n{table}"
    assert [rule["alert"] for rule in RULES] == re.findall(r"^\| `(Backfill\w+)` \|", PAGE, re.MULTILINE)
