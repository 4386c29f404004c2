"""Checks of what was lost on the way, and of what was seen over time: all of them can only fail by a defect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.attrition.build import Attrition
    from backfill_dagster.survivorship.build import AccountHistory, RecordChanges

_BUILD_AGAIN = (
    "Run the study's rebuild job; if it still fails, a stored file was changed, or this is a defect."
)
_ATTRITION = {
    "losses_add_up": "What enters a step less what it loses enters the next one, over all and in every class, and the "
    "steps agree with the source, the accounts and the tables.",
}
_RECORD_CHANGES = {
    "changes_reconcile": "The records of a snapshot, less those that went, with those that came, are as many as were "
    "counted in the tree of the next one.",
    "times_in_order": "No record is seen before it appeared, or goes before it was last seen.",
    "keys_are_unique": "No version of a record stands in the table twice for the same time.",
}
_ACCOUNT_HISTORY = {
    "times_in_order": "Each value holds until the next one, and the next one is another.",
}


def attrition_checks(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on the table of attrition."""
    return _specs(asset, _ATTRITION)


def record_changes_checks(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on the table of record changes."""
    return _specs(asset, _RECORD_CHANGES)


def account_history_checks(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that stand on the history of accounts."""
    return _specs(asset, _ACCOUNT_HISTORY)


def attrition_check_results(made: Attrition) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the table of attrition, as it is stored."""
    yield _blocking("losses_add_up", len(made.problems), problems=list(made.problems))


def record_changes_check_results(made: RecordChanges) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the table of record changes, as it is stored."""
    yield _blocking("changes_reconcile", made.unaccounted, snapshots_compared=made.compared)
    yield _blocking("times_in_order", made.misfits)
    yield _blocking("keys_are_unique", made.repeated)


def account_history_check_results(made: AccountHistory) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the checks on the history of accounts."""
    yield _blocking("times_in_order", made.misfits)


def _specs(asset: dg.AssetKey, checks: dict[str, str]) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=True, description=description)
        for name, description in checks.items()
    ]


def _blocking(name: str, offences: int, **metadata: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        passed=offences == 0,
        metadata={"offences": offences, **metadata, "what_to_do": _BUILD_AGAIN},
    )
