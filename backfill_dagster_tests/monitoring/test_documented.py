"""What the pages on logs and alerts name is what there is."""

import re

from backfill_dagster.config.operation import Monitoring
from backfill_dagster.monitoring.alerts import AlertKind
from backfill_dagster.monitoring.audit_log import AUDIT_SCHEMA, RunStatus
from backfill_dagster.monitoring.events import EVENTS
from backfill_dagster.monitoring.structured_log import COMMON_FIELDS
from backfill_dagster_tests.conftest import ROOT

LOGS = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
ALERTS = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")


def named_first(text: str) -> set[str]:
    """Return what stands in code in the first cells of the tables of a text."""
    cells = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}


def test_every_field_and_event_of_the_structured_log_stands_in_its_page_and_no_other() -> None:
    structured = LOGS[LOGS.index("## The structured log") : LOGS.index("## Accounts by hashes")]
    assert named_first(structured) == {*COMMON_FIELDS, *(event.name for event in EVENTS)}
    rows = {row.split("`")[1]: row for row in structured.splitlines() if row.startswith("| `")}
    for event in EVENTS:
        fields = event.fields if event.name != "account_failed" else ("reason",)
        assert all(f"`{field}`" in rows[event.name] for field in fields), event.name


def test_every_column_of_the_audit_log_and_every_status_stands_in_its_page() -> None:
    audit = LOGS[LOGS.index("## The audit log") :]
    assert named_first(audit) == set(AUDIT_SCHEMA)
    assert all(f"`{status}`" in audit for status in RunStatus)


def test_every_kind_of_alert_and_every_setting_stands_in_its_page() -> None:
    assert named_first(ALERTS) == set(AlertKind)
    settings = [name for name in Monitoring.model_fields if name.startswith("alert_")]
    assert all(name in ALERTS for name in settings)
    assert all(
        name in LOGS for name in Monitoring.model_fields if name.startswith("log_") or name == "hash_dids"
    )
