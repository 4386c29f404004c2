from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config.sources import ParquetSource
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import (
    DIDS,
    columns_of,
    entries,
)


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, dids in (("b", DIDS[2:]), ("a", DIDS[:2])):
        pl.DataFrame({"did": dids}).write_parquet(tmp_path / f"{name}.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "c.other")

    assert entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet")) == DIDS


def test_a_glob_without_match_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file matches"):
        entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet"))


def test_a_damaged_file_of_a_glob_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"did": DIDS}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no")

    with pytest.raises(SourceError, match=r"b\.parquet"):
        entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet"))


@pytest.mark.parametrize("name", ["did", "^did$", "*", "a b"])
@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_a_parquet_column_may_be_called_and_encoded_as_it_likes(
    name: str, kind: type[pl.DataType], tmp_path: Path
) -> None:
    path = tmp_path / "panel.parquet"
    pl.DataFrame({"n": [1, 2], name: pl.Series([DIDS[0], None], dtype=kind)}).write_parquet(path)

    assert entries(ParquetSource(type="parquet", path=path, column=name)) == [DIDS[0], None]


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "panel.parquet"
    pl.DataFrame({"did": [1, 2]}).write_parquet(path)

    with pytest.raises(SourceError, match="column of text"):
        entries(ParquetSource(type="parquet", path=path))


def test_numbers_dates_and_times_become_text_if_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "feeds.parquet"
    noon = datetime.fromisoformat("2024-09-28T12:30:00")
    pl.DataFrame(
        {
            "day": [date(2024, 9, 28), None],
            "local": pl.Series([noon, None], dtype=pl.Datetime("ms")),
            "utc": pl.Series([noon, None], dtype=pl.Datetime("us", "UTC")),
            "berlin": pl.Series([noon.replace(tzinfo=UTC), None], dtype=pl.Datetime("us", "Europe/Berlin")),
            "number": [7, None],
            "share": [0.5, None],
            "flag": [True, None],
        }
    ).write_parquet(path)
    source = ParquetSource(type="parquet", path=path)
    names = ("day", "local", "utc", "berlin", "number", "share", "flag")

    told, empty = columns_of(source, *names)
    assert told == (
        "2024-09-28",
        "2024-09-28T12:30:00.000",
        "2024-09-28T12:30:00.000000+00:00",
        "2024-09-28T12:30:00.000000+00:00",
        "7",
        "0.5",
        "true",
    )
    assert [datetime.fromisoformat(text).hour for text in told[1:4] if text] == [12, 12, 12]
    assert empty == (None,) * 7


@pytest.mark.parametrize("value", [b"x", ["x"], {"a": "x"}])
def test_a_column_that_cannot_be_text_is_refused(value: object, tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    pl.DataFrame({"uri": [value]}).write_parquet(path)

    with pytest.raises(SourceError, match="must be a column of text"):
        columns_of(ParquetSource(type="parquet", path=path), "uri")
