import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.record_keys import is_collection, is_record_key, tid_times
from backfill_dagster.repos.tid import parse_tid

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXT = pl.col("text")


def select(expression: pl.Expr, texts: list[str | None]) -> list[bool]:
    return pl.DataFrame({"text": texts}, schema={"text": pl.String}).select(expression).to_series().to_list()


def vectors(shared_dir: Path, name: str) -> list[str | None]:
    lines = (shared_dir / f"vectors/interop/syntax/{name}.txt").read_text().split("\n")
    return [line for line in lines if line and not line.startswith("# ") and line != "#"]


def test_the_protocols_own_lists_are_judged_alike(shared_dir: Path) -> None:
    for name, expression in (("nsid", is_collection(TEXT)), ("recordkey", is_record_key(TEXT))):
        valid = vectors(shared_dir, f"{name}_syntax_valid")
        invalid = vectors(shared_dir, f"{name}_syntax_invalid")
        assert len(valid) > 10
        assert len(invalid) > 8
        assert all(select(expression, valid))
        assert not any(select(expression, invalid))


def test_the_protocols_own_tids_are_judged_alike(shared_dir: Path) -> None:
    valid, invalid = vectors(shared_dir, "tid_syntax_valid"), vectors(shared_dir, "tid_syntax_invalid")
    assert tid_times(pl.Series(valid)).null_count() == 0
    assert tid_times(pl.Series(invalid)).null_count() == len(invalid) > 5


def test_null_is_no_key() -> None:
    assert select(is_collection(TEXT), [None]) == [False]
    assert select(is_record_key(TEXT), [None, ".", "..", "..."]) == [False, False, False, True]
    assert tid_times(pl.Series([None], dtype=pl.String)).to_list() == [None]


def is_nsid(text: str) -> bool:
    """Follow the prose of the specification, label by label."""
    labels = text.split(".")
    letters = string.ascii_letters + string.digits
    return (
        len(labels) >= 3
        and len(text) <= 317
        and all(1 <= len(label) <= 63 and set(label) <= set(letters + "-") for label in labels)
        and not any(label.startswith("-") or label.endswith("-") for label in labels)
        and not text[0].isdigit()
        and not labels[-1][0].isdigit()
        and "-" not in labels[-1]
    )


def is_one_record_key(text: str) -> bool:
    allowed = set(string.ascii_letters + string.digits + "._:~-")
    return 1 <= len(text) <= 512 and set(text) <= allowed and text not in {".", ".."}


nsid_like = st.lists(st.text("aB3-", max_size=4), min_size=2, max_size=5).map(".".join)
keys = (
    nsid_like
    | st.text(max_size=14)
    | st.from_regex(r"[2-7a-z]{12,14}", fullmatch=True)
    | st.integers(310, 520).map(lambda length: "a." * (length // 2) + "b" * (1 + length % 2))
)


@given(st.lists(keys, max_size=20))
def test_columns_are_judged_as_single_keys_are(texts: list[str]) -> None:
    assert select(is_collection(TEXT), [*texts]) == [is_nsid(text) for text in texts]
    assert select(is_record_key(TEXT), [*texts]) == [is_one_record_key(text) for text in texts]
    tids = [parse_tid(text) for text in texts]
    expected = [None if tid is None else EPOCH + timedelta(microseconds=tid.microseconds) for tid in tids]
    assert tid_times(pl.Series(texts, dtype=pl.String)).to_list() == expected


def test_the_time_of_a_tid_is_that_of_its_making() -> None:
    # Written by an official PDS for a record of 2026-07-27T06:05:43.697Z.
    assert tid_times(pl.Series(["3mrma3nmbxcj3"])).item() == datetime(2026, 7, 27, 6, 5, 43, 697_320, UTC)
