from pathlib import Path

import pytest

from backfill_dagster.config.sources import CsvSource
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import DIDS, Writer, entries, write_csv, write_parquet


def test_a_csv_column_can_be_chosen_and_others_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "panel.csv"
    path.write_text(f'weight,account,note\n1,{DIDS[0]},"a, b"\nx,,\n,"{DIDS[1]}",üñ\n3\n')

    assert entries(CsvSource(type="csv", path=path, column="account")) == [DIDS[0], None, DIDS[1], None]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_missing_column_is_answered_with_those_there_are(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS).model_copy(update={"column": "DID"})

    with pytest.raises(SourceError) as caught:
        entries(source)
    assert "backfill.source.column = 'DID'" in str(caught.value)
    assert "'n', 'did'" in str(caught.value)


def test_an_empty_csv_is_told(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(b"")

    with pytest.raises(SourceError, match=r"backfill\.source"):
        entries(CsvSource(type="csv", path=path))


def test_a_csv_whose_rows_disagree_with_its_header_is_told_or_read(tmp_path: Path) -> None:
    path = tmp_path / "ragged.csv"
    path.write_text(f"did\n{DIDS[0]},extra,more\n{DIDS[1]}\n")

    assert entries(CsvSource(type="csv", path=path)) == DIDS[:2]


def test_a_path_with_magic_characters_is_one_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "list[1]*.csv"
    path.write_text(f"did\n{DIDS[0]}\n")

    assert entries(CsvSource(type="csv", path=path)) == DIDS[:1]
