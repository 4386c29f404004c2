"""What other backfills have found or collected, as a source."""

from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config.sources import AssetSource
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import DIDS, columns_of, entries, opened


def asset(**options: object) -> AssetSource:
    return AssetSource.model_validate({"type": "asset", "backfill": "users", **options})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Storage in which the backfill `users` has found whom its accounts engaged with."""
    folder = tmp_path / "data" / "users"
    folder.mkdir(parents=True)
    pl.DataFrame(
        {"did": DIDS, "interactions": [5, 4, 3, 2, None], "accounts": [1, 2, 3, 1, 1], "uri": list("abcde")}
    ).write_parquet(folder / "engaged_accounts.parquet")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        ({}, DIDS),
        ({"min_interactions": 3}, DIDS[:3]),
        ({"min_accounts": 2}, DIDS[1:3]),
        ({"min_accounts": 2, "min_interactions": 4}, DIDS[1:2]),
        ({"min_interactions": 100}, []),
    ],
)
def test_rows_with_enough_interactions_and_accounts_are_taken(
    storage: Path, least: dict[str, int], expected: list[str]
) -> None:
    assert entries(asset(**least), storage=storage) == expected


def test_the_column_depends_on_what_is_listed_unless_it_is_named(storage: Path) -> None:
    assert entries(asset(min_interactions=4), storage=storage, column="uri") == ["a", "b"]
    assert entries(asset(min_interactions=4, column="did"), storage=storage, column="uri") == DIDS[:2]
    assert columns_of(asset(min_interactions=4), "uri", "accounts", storage=storage) == [
        ("a", "1"),
        ("b", "2"),
    ]


@pytest.mark.parametrize("folder", ["tables", "derived"])
def test_a_table_is_all_its_files_in_their_order(storage: Path, folder: str) -> None:
    for part, dids in (
        ("month=2024-10/part-0", DIDS[2:]),
        ("month=2024-09/part-1", DIDS[1:2]),
        ("month=2024-09/part-0", DIDS[:1]),
    ):
        path = storage / "users" / folder / "posts" / f"{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"did": dids}).write_parquet(path)

    assert entries(asset(asset="posts"), storage=storage) == DIDS


def test_another_storage_can_be_named(storage: Path, tmp_path: Path) -> None:
    assert entries(asset(storage=str(storage)), storage=tmp_path / "elsewhere") == DIDS


def test_an_asset_that_is_not_there_yet_says_what_to_do(storage: Path) -> None:
    with pytest.raises(SourceError) as caught:
        entries(asset(asset="engaged_posts"), storage=storage)
    message = str(caught.value)
    assert message.startswith(
        "backfill.source.asset = 'engaged_posts': backfill 'users' has no such asset yet"
    )
    assert "materialize users/engaged_posts first" in message
    with pytest.raises(SourceError, match="materialize users/engaged_posts"):
        opened(asset(asset="engaged_posts"), storage=storage).stamp()


def test_a_threshold_without_its_column_is_told(storage: Path) -> None:
    pl.DataFrame({"did": DIDS}).write_parquet(storage / "users" / "accounts.parquet")

    with pytest.raises(
        SourceError, match=r"backfill\.source\.min_accounts = 2: .* has no column 'accounts'.*'did'"
    ):
        entries(asset(asset="accounts", min_accounts=2), storage=storage)
    assert entries(asset(asset="accounts"), storage=storage) == DIDS


def test_a_damaged_file_is_told(storage: Path) -> None:
    (storage / "users" / "engaged_accounts.parquet").write_bytes(b"no")

    with pytest.raises(SourceError, match=r"backfill\.source\.asset = 'engaged_accounts': cannot be read"):
        entries(asset(), storage=storage)


def test_the_stamp_follows_the_files_and_the_thresholds(storage: Path) -> None:
    before = opened(asset(), storage=storage).stamp()
    assert opened(asset(min_interactions=2), storage=storage).stamp() != before
    assert opened(asset(), storage=storage).stamp() == before

    pl.DataFrame({"did": DIDS[:1]}).write_parquet(storage / "users" / "engaged_accounts.parquet")
    assert opened(asset(), storage=storage).stamp() != before
