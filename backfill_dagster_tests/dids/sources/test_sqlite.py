import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backfill_dagster.config.sources import SqliteSource
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import (
    DIDS,
    entries,
    opened,
    write_sqlite,
)


def sqlite(source: SqliteSource, query: str) -> SqliteSource:
    return source.model_copy(update={"query": query})


@pytest.mark.parametrize(
    "query",
    [
        "SELECT did FROM dids ORDER BY n",
        "SELECT n, did, 'x' AS other FROM dids ORDER BY n",
        "WITH chosen AS (SELECT * FROM dids) SELECT did FROM chosen ORDER BY n",
        "SELECT d.did AS did FROM dids d JOIN dids e USING (n) GROUP BY d.did ORDER BY min(d.n)",
        "SELECT did FROM dids ORDER BY n;",
    ],
)
def test_a_query_can_read_as_it_likes(query: str, tmp_path: Path) -> None:
    assert entries(sqlite(write_sqlite(tmp_path, DIDS), query)) == DIDS


def test_values_that_are_no_text_become_text(tmp_path: Path) -> None:
    query = "SELECT NULL AS did UNION ALL SELECT 7 UNION ALL SELECT 0.5 UNION ALL SELECT x'6469643a'"

    assert entries(sqlite(write_sqlite(tmp_path, []), query)) == [None, "7", "0.5", "did:"]


def test_a_result_without_a_did_column_is_answered_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        entries(sqlite(write_sqlite(tmp_path, DIDS), "SELECT n, did AS account FROM dids"))
    assert "backfill.source.query" in str(caught.value)
    assert "'n', 'account'" in str(caught.value)
    assert "AS did" in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM dids",
        "INSERT INTO dids (did) VALUES ('x') RETURNING did",
        "UPDATE dids SET did = 'x' RETURNING did",
        "DROP TABLE dids",
        "CREATE TABLE other (did TEXT)",
        "CREATE TEMP TABLE other (did TEXT)",
        "ATTACH DATABASE 'other.sqlite' AS other",
        "ATTACH DATABASE 'file:other.sqlite?mode=rwc' AS other",
        "VACUUM",
        "VACUUM INTO 'other.sqlite'",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_a_query_that_writes_fails_and_changes_nothing(
    query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_sqlite(tmp_path, DIDS)
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(SourceError, match="may only read"):
        entries(sqlite(source, query))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "query", ["SELECT", "SELECT did FROM nowhere", "SELECT 1; SELECT 2", "", "-- nothing"]
)
def test_a_query_that_cannot_run_is_told(query: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"backfill\.source\.query"):
        entries(sqlite(write_sqlite(tmp_path, DIDS), query))


def test_a_path_with_characters_of_a_url_is_one_file(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS)
    odd = source.path.rename(tmp_path / "a?mode=rwc&x#y%20 ü.sqlite")

    assert entries(source.model_copy(update={"path": odd})) == DIDS


def test_a_database_at_rest_in_write_ahead_mode_gets_no_files_beside_it(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS)
    with closing(sqlite3.connect(source.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    assert [path.name for path in tmp_path.iterdir()] == ["dids.sqlite"]

    assert entries(source) == DIDS
    assert [path.name for path in tmp_path.iterdir()] == ["dids.sqlite"]


def test_what_a_writer_has_committed_is_read_while_it_writes(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS[:3])
    with closing(sqlite3.connect(source.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executemany("INSERT INTO dids (did) VALUES (?)", [(did,) for did in DIDS[3:]])
        database.commit()
        database.execute("INSERT INTO dids (did) VALUES ('uncommitted')")

        assert entries(source) == DIDS
        database.rollback()


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("SELECT did FROM dids WHERE n > ? AND n < ?", (1, 4)),
        ("SELECT did FROM dids WHERE n > :low AND n < :high", {"low": 1, "high": 4}),
        ("SELECT did FROM dids WHERE n > 1 AND did IN (?, ?)", (DIDS[1], DIDS[2])),
        ("SELECT did FROM dids WHERE n BETWEEN 2 AND 3 AND ? IS NULL", (None,)),
        ("SELECT did FROM dids WHERE n > $share AND n < 4", {"share": 1.5}),
    ],
)
def test_a_query_takes_parameters_by_position_and_by_name(
    query: str, parameters: object, tmp_path: Path
) -> None:
    write_sqlite(tmp_path, DIDS)
    source = SqliteSource.model_validate(
        {"type": "sqlite", "path": tmp_path / "dids.sqlite", "query": query, "parameters": parameters}
    )

    assert entries(source) == DIDS[1:3]


def test_a_parameter_is_never_part_of_the_query(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS).model_copy(
        update={"query": "SELECT did FROM dids WHERE did = ?", "parameters": ("x' OR '1' = '1",)}
    )

    assert entries(source) == []


@pytest.mark.parametrize(
    ("query", "parameters", "said"),
    [
        ("SELECT did FROM dids WHERE n > ?", (), "do not fit"),
        ("SELECT did FROM dids WHERE n > ?", (1, 2), "do not fit"),
        ("SELECT did FROM dids WHERE n > :low", {"high": 1}, "do not fit"),
        ("SELECT did FROM dids WHERE n > ?", (2**70,), "cannot hold"),
        ("SELECT did FROM dids WHERE did > ?", ("\ud800",), "cannot hold"),
    ],
)
def test_parameters_that_do_not_fit_are_told(
    query: str, parameters: object, said: str, tmp_path: Path
) -> None:
    source = write_sqlite(tmp_path, DIDS).model_copy(update={"query": query, "parameters": parameters})

    with pytest.raises(SourceError, match=rf"backfill\.source\.parameters = .*{said}"):
        entries(source)


def test_another_column_of_a_result_can_be_named(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS).model_copy(
        update={"query": "SELECT n, did AS account FROM dids ORDER BY n", "column": "account"}
    )

    assert entries(source) == DIDS


def test_the_log_of_a_database_counts_for_its_stamp(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS)
    with closing(sqlite3.connect(source.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        before = opened(source).stamp()
        database.execute("INSERT INTO dids (did) VALUES ('x')")
        database.commit()

        assert opened(source).stamp() != before
    assert opened(source.model_copy(update={"parameters": (1,)})).stamp() != opened(source).stamp()
