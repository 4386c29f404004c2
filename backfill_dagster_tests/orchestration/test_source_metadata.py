"""What the UI shows of a source: counts, and nothing that names anybody."""

from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster.dids.collect import DIDS_SCHEMA, REJECTS_SCHEMA, CollectedDids
from backfill_dagster.orchestration.metadata import source_metadata

ALICE, BOB = "did:plc:" + "a" * 24, "did:plc:" + "b" * 24


def collected() -> CollectedDids:
    rejects = [
        (1, BOB, "duplicate", None),
        (2, BOB, "excluded", None),
        (3, "carol.example.com", "handle_unreachable", BOB),
        (4, "dan.example.com", "not_a_did", None),
        (5, f"https://bsky.app/profile/{BOB}", "not_a_did", None),
        (6, f"{BOB}x", "bad_plc", None),
        (7, "N/A", "not_a_did", None),
        (8, "did:plc:short", "bad_plc", None),
        (9, None, "purged", None),
        (10, "did:key:z6Mk", "unsupported_method", None),
    ]
    return CollectedDids(
        dids=pl.DataFrame({"did": [ALICE]}, schema=DIDS_SCHEMA),
        rejects=pl.DataFrame(rejects, schema=REJECTS_SCHEMA, orient="row"),
        given=11,
        given_by_source={"backfill.source": 11, "backfill.source.sources.0": 8, "backfill.exclude": 3},
        useless_exclusions={"handle_not_found": 2},
    )


def test_counts_are_shown_by_source_and_by_reason() -> None:
    shown: dict[str, Any] = {
        name: getattr(value, "value", value)
        for name, value in source_metadata(collected(), Path("x")).items()
    }

    assert (shown["dagster/row_count"], shown["given"], shown["left_out"]) == (1, 11, 10)
    assert "| backfill.source.sources.0 | 8 |" in shown["given_by_source"]
    assert "| backfill.exclude | 3 |" in shown["given_by_source"]
    assert "| handle_unreachable | 1 |" in shown["left_out_by_reason"]
    assert "| excluded | 1 |" in shown["left_out_by_reason"]
    assert "| handle_not_found | 2 |" in shown["exclusions_of_nobody"]


def test_inputs_are_shown_only_if_they_name_nobody() -> None:
    shown = str(source_metadata(collected(), Path("x")))

    assert "N/A" in shown
    assert "did:plc:short" in shown
    for name in (ALICE, BOB, "carol", "dan", "z6Mk", "bsky.app"):
        assert name not in shown
