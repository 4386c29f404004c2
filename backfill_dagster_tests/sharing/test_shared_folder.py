"""A shared folder comes from a stranger: what is not what this program writes is refused, and never passed over."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import filtering
from backfill_dagster.config.sources import SharedSource
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.dids.sources.shared import SharedAccounts, SharedRecords
from backfill_dagster.errors import SourceError
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.sharing.studies import GATE, LIKE, POST
from backfill_dagster_tests.studies import sandbox_study

DID = f"did:plc:{24 * 'a'}"
CID = f"bafyrei{52 * 'a'}"
POSTS = pl.DataFrame({"uri": [f"at://{DID}/{POST}/{key}" for key in "abc"], "cid": 3 * [CID]})
GATES = pl.DataFrame({"uri": [f"at://{DID}/{GATE}/a"], "cid": [CID]})
ACCOUNTS = pl.DataFrame({"did": [DID]}).with_columns(
    repo_rev=pl.lit(None, pl.String), commit_cid=pl.lit(None, pl.String)
)
WHOLE = {"accounts": ACCOUNTS, "posts": POSTS, "other_records": GATES}


def share_by_hand(
    folder: Path,
    tables: Mapping[str, pl.DataFrame],
    content: Callable[[dict[str, Any]], Any] = lambda said: said,
) -> SharedSource:
    """Write a shared folder whose digests are right, whatever else is wrong."""
    storage = StudyStorage(folder)
    files = {}
    for table, rows in tables.items():
        stored = storage.write(f"{table}.parquet", rows)
        files[f"{table}.parquet"] = {"rows": stored.rows, "bytes": stored.bytes, "sha256": stored.sha256}
    said = {
        "format": 1,
        "what": "ids",
        "record_types": [POST],
        "other_record_types": [GATE],
        "files": files,
    }
    write_told(storage, "manifest.json", Told(content(said), {}))
    return SharedSource(type="shared", path=folder)


def read(source: SharedSource, collection: str = POST) -> pl.DataFrame:
    async def every() -> pl.DataFrame:
        records = SharedRecords(source, "backfill.source", collection)
        return pl.concat([batch async for batch in records.entries(SourceAccess(Path()))])

    return asyncio.run(every())


def test_what_is_right_is_read(tmp_path: Path) -> None:
    source = share_by_hand(tmp_path, WHOLE)
    assert read(source).select("entry", "cid", "table").rows() == [
        (uri, CID, "posts") for uri in POSTS["uri"]
    ]
    assert read(source, GATE)["entry"].to_list() == GATES["uri"].to_list()
    SharedAccounts(source, "backfill.source").check_asked({POST, GATE})


@pytest.mark.parametrize(
    "posts",
    [
        POSTS.drop("cid"),
        POSTS.with_columns(cid=pl.lit(None, pl.String)),
        POSTS.with_columns(cid=pl.lit("zdpuAyv")),
        POSTS.with_columns(cid=pl.lit(1)),
        POSTS.with_columns(uri=pl.lit(None, pl.String)),
        POSTS.with_columns(uri=pl.col("uri") + 8192 * "a"),
    ],
)
def test_a_record_without_the_cid_that_it_had_is_none_that_was_shared(
    tmp_path: Path, posts: pl.DataFrame
) -> None:
    # Whatever stands there now would be taken for it.
    source = share_by_hand(tmp_path, {**WHOLE, "posts": posts})
    with pytest.raises(SourceError, match=r"backfill\.source\.path"):
        read(source)


@pytest.mark.parametrize(
    "content",
    [
        lambda _: [],
        lambda _: "ids",
        lambda said: {**said, "files": []},
        lambda said: {**said, "files": {**said["files"], "posts.parquet": []}},
        lambda said: {**said, "files": {**said["files"], "posts.parquet": {"sha256": None}}},
        lambda said: {**said, "files": {**said["files"], "../posts.parquet": said["files"]["posts.parquet"]}},
        lambda said: {**said, "record_types": 5},
        lambda said: {**said, "record_types": [[]]},
        lambda said: {**said, "other_record_types": [f"of {DID}"]},
        # Tables whose records nobody would ask for.
        lambda said: {**said, "record_types": []},
        lambda said: {**said, "other_record_types": []},
        lambda said: {**said, "padding": 5 * 2**20 * "a"},
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, content: Callable[[Any], Any]) -> None:
    source = share_by_hand(tmp_path, WHOLE, content)
    accounts = SharedAccounts(source, "backfill.source")
    for ask in (
        accounts.open,
        accounts.stamp,
        lambda: accounts.check_asked({POST, GATE}),
        lambda: read(source),
    ):
        with pytest.raises(SourceError) as complaint:
            ask()
        assert DID not in str(complaint.value)


def test_a_manifest_that_tells_of_other_rows_is_refused(tmp_path: Path) -> None:
    def more(said: dict[str, Any]) -> dict[str, Any]:
        said["files"]["posts.parquet"]["rows"] += 1
        return said

    with pytest.raises(SourceError, match="has 3 rows, and the manifest tells of 4"):
        read(share_by_hand(tmp_path, WHOLE, more))


def test_a_small_file_of_too_many_rows_is_not_opened(tmp_path: Path) -> None:
    many = POSTS.head(1).select(pl.all().repeat_by(1_200_000).explode())
    source = share_by_hand(tmp_path, {**WHOLE, "posts": many})
    assert (tmp_path / "posts.parquet").stat().st_size < 100_000
    with pytest.raises(SourceError, match="1,200,000 rows in so few bytes"):
        read(source)


def test_records_of_a_type_that_the_manifest_does_not_tell_of_are_not_passed_over(tmp_path: Path) -> None:
    strays = pl.concat([GATES, POSTS.with_columns(uri=pl.col("uri").str.replace(POST, LIKE))])
    with pytest.raises(SourceError, match="3 records of types that"):
        read(share_by_hand(tmp_path, {**WHOLE, "other_records": strays}), GATE)


@pytest.mark.parametrize(
    ("posts", "said"),
    [
        (pl.concat([POSTS, POSTS.head(1)]), "1 stand there more than once"),
        (
            pl.concat([POSTS, POSTS.head(1).with_columns(cid=pl.lit(CID[:-1] + "b"))]),
            "1 stand there more than",
        ),
        (POSTS.with_columns(uri=pl.col("uri").str.replace(POST, LIKE)), "3 other_collection"),
        (POSTS.with_columns(uri=pl.col("uri") + "/../x"), "3 not_an_at_uri"),
    ],
)
def test_every_record_that_is_shared_is_on_the_list(tmp_path: Path, posts: pl.DataFrame, said: str) -> None:
    share_by_hand(tmp_path / "shared", {**WHOLE, "posts": posts})
    study = sandbox_study(
        tmp_path,
        source={"type": "shared", "path": str(tmp_path / "shared")},
        record_types=[POST],
        other_record_types=[GATE],
    )
    for _ in range(2):  # the second time the list is stored already
        with pytest.raises(SourceError, match=said):
            filtering.read_filter_lists(study)
