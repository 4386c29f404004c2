from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster import derivation, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.derived.threads import Threads, climbed, grown
from backfill_dagster.records.tables import INSTANT, TEXT
from backfill_dagster.records.windows import study_windows
from backfill_dagster_tests.derived import plain

Row = dict[str, Any]
NODES = {"uri": TEXT, "did": TEXT, "created_at": INSTANT, "parent_uri": TEXT, "root_uri": TEXT}


def uri(number: int) -> str:
    return f"at://did:plc:{number % 3:024}/app.bsky.feed.post/{number}"


def test_a_chain_of_a_hundred_thousand_replies_is_climbed() -> None:
    steps, top = climbed(np.arange(-1, 99_999))
    assert steps.tolist() == list(range(100_000))
    assert set(top.tolist()) == {0}


def test_circles_have_no_top_and_no_depth() -> None:
    steps, top = climbed(np.array([1, 2, 0, -1, 3, 5, 1]))
    assert steps.tolist() == [-1, -1, -1, 0, 1, -1, -1]
    assert top.tolist() == [-1, -1, -1, 3, 3, -1, -1]


@given(st.data())
def test_trees_are_those_that_plain_python_grows(data: st.DataObject) -> None:
    """Whatever replies claim: missing parents, roots that are replies, other threads' records, circles."""
    numbers = st.integers(0, 12)
    maybe = st.none() | numbers.map(uri)
    ids = data.draw(st.lists(numbers, unique=True))
    replies = [
        {"uri": uri(number), "reply_parent_uri": data.draw(maybe), "reply_root_uri": data.draw(maybe)}
        for number in ids
    ]
    others = data.draw(st.lists(numbers.filter(lambda number: number not in ids), unique=True))
    posts: list[Row] = [{"uri": uri(number)} for number in others]
    every = [{**row, "created_at": None, "did": row["uri"].split("/")[2]} for row in (*replies, *posts)]
    collected = pl.DataFrame({"uri": [row["uri"] for row in every]}, schema={"uri": TEXT})

    def elsewhere(uris: pl.DataFrame) -> pl.DataFrame:
        found = uris.join(collected, on="uri", how="semi")
        return found.with_columns(created_at=pl.lit(None, INSTANT), found=pl.lit(value=True))

    nodes = [
        (
            row["uri"],
            row["uri"].split("/")[2],
            None,
            row.get("reply_parent_uri"),
            row.get("reply_root_uri") or row.get("reply_parent_uri") or row["uri"],
        )
        for row in every
    ]
    made = grown(
        pl.DataFrame(nodes[: len(replies)], schema=NODES, orient="row"),
        pl.DataFrame(nodes[len(replies) :], schema=NODES, orient="row"),
        elsewhere,
    )
    expected = plain.threads(every[: len(replies)], every[len(replies) :])
    columns = [column.name for column in Threads.columns]
    assert made.sort("root_uri", "uri").select(columns).to_dicts() == expected


def test_threads_of_a_study(collected: Study) -> None:
    windows = study_windows(collected.time_range)
    derivation.build_derived(collected, study_files.study_tables(collected), "threads", windows)
    found = plain.derived(collected, "threads")
    expected = plain.threads(list(plain.rows(collected, "replies")), list(plain.rows(collected, "posts")))
    first: dict[str, Any] = {}
    for row in expected:
        if row["created_at"]:
            first[row["root_uri"]] = min(row["created_at"], first.get(row["root_uri"], row["created_at"]))
    by_window: dict[str, list[Row]] = {}
    for row in expected:
        if row["root_uri"] in first:
            by_window.setdefault(f"{first[row['root_uri']]:%Y-%m}", []).append(row)
    assert found == by_window
    rows = [row for window in found.values() for row in window]
    assert any(not row["collected"] for row in rows)
    assert {row["depth"] for row in rows} == {0, 1, None}
