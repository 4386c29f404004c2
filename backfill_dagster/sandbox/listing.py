"""An account's records as `listRecords` gives them: JSON, as software in JavaScript writes it.

What that software cannot tell apart is lost: whole numbers and floats without a fraction, numbers beyond 2^53, and
text that is none, in whose place it puts the replacement character.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from backfill_dagster.sandbox.dag_cbor import Raw, as_json, cid_text
from backfill_dagster.sandbox.repo import record_block
from backfill_dagster.sandbox.written import Defect, Written

if TYPE_CHECKING:
    from collections.abc import Iterable

_CBOR_TEXT = 3
# From here on JavaScript writes whole numbers with an exponent.
_WITH_EXPONENT = 1e21


class Listing:
    """The records of one account, by collection and in the order of their keys."""

    def __init__(self, did: str, records: Iterable[Written]) -> None:
        self._did = did
        self._records: dict[str, list[Written]] = {}
        for record in records:
            # What is no DAG-CBOR by its codec, official software would not have taken in.
            if record.defect is not Defect.RAW_CODEC:
                self._records.setdefault(record.collection, []).append(record)
        for listed in self._records.values():
            listed.sort(key=lambda record: record.rkey)

    def page(self, collection: str, limit: int, before: str | None) -> list[dict[str, Any]]:
        """Return up to so many records, the highest key first, of those whose keys come before a key."""
        listed = self._records.get(collection, [])
        end = len(listed) if before is None else bisect_left(listed, before, key=lambda record: record.rkey)
        return [self._entry(record) for record in reversed(listed[max(0, end - limit) : end])]

    def _entry(self, record: Written) -> dict[str, Any]:
        return {
            "uri": f"at://{self._did}/{record.collection}/{record.rkey}",
            "cid": cid_text(record_block(record).cid),
            "value": _as_javascript(as_json(record.value)),
        }


def _as_javascript(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_javascript(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_javascript(item) for item in value]
    if isinstance(value, Raw):
        is_text = value[0] >> 5 == _CBOR_TEXT
        return value[1:].decode("utf-8", "replace") if is_text else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < _WITH_EXPONENT else number
    return value
