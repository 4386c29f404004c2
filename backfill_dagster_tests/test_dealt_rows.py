from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.errors import StorageError

SCHEMA = pl.Schema({"did": pl.String(), "number": pl.Int64(), "names": pl.List(pl.String())})


def rows(*numbers: int) -> pl.DataFrame:
    told = {
        "did": [f"did:plc:{n}" for n in numbers],
        "number": numbers,
        "names": [["a"] * n for n in numbers],
    }
    return pl.DataFrame(told, schema=SCHEMA)


def test_each_lot_comes_back_whole_and_in_the_order_in_which_it_was_added(tmp_path: Path) -> None:
    with DealtRows(tmp_path / "dealt", SCHEMA) as dealt:
        for lot, *numbers in (("a", 1, 2), ("b", 3), ("a", 4), ("c",)):
            dealt.add(lot, rows(*numbers))
        assert dealt.rows_of == {"a": 3, "b": 1}
        assert dealt.of("b").equals(rows(3))
        assert dealt.of("a").equals(rows(1, 2, 4))
        assert [part["number"].to_list() for part in dealt.parts_of("a")] == [[1, 2], [4]]
        assert dealt.of("a").schema == SCHEMA


def test_a_lot_without_rows_is_empty(tmp_path: Path) -> None:
    with DealtRows(tmp_path / "dealt", SCHEMA) as dealt:
        assert dealt.of("nobody").equals(SCHEMA.to_frame())


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        DealtRows(tmp_path / "nowhere" / "dealt", SCHEMA)
