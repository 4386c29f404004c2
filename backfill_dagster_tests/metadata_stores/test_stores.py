"""Every store gives the same answers: one suite for SQLite and for DynamoDB, and what only the latter does."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backfill_dagster.config.metadata_store import MetadataStore
from backfill_dagster.errors import StorageError
from backfill_dagster.metadata_stores import dynamodb_store
from backfill_dagster.metadata_stores.bodies import MAX_BODY_BYTES
from backfill_dagster.metadata_stores.dynamodb_store import MAX_ATTEMPTS, DynamoDbStore
from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.metadata_stores.opening import open_store
from backfill_dagster.metadata_stores.store import Store
from backfill_dagster_tests.metadata_stores.dynamodb_server import REGION, TABLE, DynamoDb


def user(number: int, **changed: object) -> UserItem:
    values = {
        "did": f"did:plc:{number:024d}",
        "bluesky_handle": f"user{number}.example.com",
        "types": "post,like",
        "total_records": 15,
        "total_records_by_type": '{"post": 5, "like": 10}',
        "pds_service_endpoint": "https://pds.example.com",
        "timestamp": "2024-03-26-12:00:00",
        **changed,
    }
    return UserItem(**values)  # type: ignore[arg-type]


def run(run_id: str, **changed: object) -> RunItem:
    values = {
        "run_id": run_id,
        "service": "backfill_dagster",
        "timestamp": "2024-03-26-12:00:00",
        "status_code": 200,
        "body": '{"accounts": 5}',
        "metadata": "{}",
        **changed,
    }
    return RunItem(**values)  # type: ignore[arg-type]


def dynamodb_of(server: DynamoDb, study: str, waits: list[float] | None = None) -> DynamoDbStore:
    told = [] if waits is None else waits
    return DynamoDbStore(
        table=TABLE,
        region=REGION,
        study=study,
        endpoint_url=server.url,
        sleep=told.append,
        chance=lambda: 1.0,
    )


@pytest.fixture(params=["sqlite", "dynamodb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return open_store(MetadataStore(), study="study", storage=tmp_path)
    return dynamodb_of(request.getfixturevalue("dynamodb"), "study")


def of_another_study(store: Store, tmp_path: Path, server: DynamoDb | None) -> Store:
    if server is None:
        config = MetadataStore(path=tmp_path / "study" / "metadata.sqlite")
        return open_store(config, study="other", storage=tmp_path)
    return dynamodb_of(server, "other")


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert list(store.users()) == []
    assert list(store.dids()) == []
    assert list(store.runs()) == []
    store.put_users([])
    store.remove_users([])
    store.erase()


def test_what_is_put_comes_back_and_what_is_put_again_replaces_it(store: Store) -> None:
    users = [user(number) for number in range(60)]
    store.put_users(reversed(users))
    assert list(store.users()) == users
    changed = user(7, total_records=16, bluesky_handle="", total_records_by_type='{"post": 16}', types="post")
    store.put_users([users[7], changed])
    assert list(store.users()) == [*users[:7], changed, *users[8:]]
    assert [did for some in store.dids() for did in some] == [one.did for one in users]
    store.remove_users([users[0].did, users[59].did, users[59].did, "did:plc:nobody"])
    assert list(store.users()) == [*users[1:7], changed, *users[8:59]]


def test_runs_have_an_item_each_also_those_of_the_same_second(store: Store) -> None:
    runs = [run("a"), run("b", status_code=207, body="“quoted”\u0000"), run("c", metadata="{}")]
    store.put_runs(runs)
    store.put_runs(runs[:1])
    assert list(store.runs()) == runs


def test_a_body_that_is_too_long_is_cut_and_says_so(store: Store) -> None:
    store.put_runs([run("a", body="€" * MAX_BODY_BYTES, metadata="m" * 50_000)])
    [stored] = store.runs()
    assert stored.body.startswith("€€€")
    assert stored.body.endswith(f"€ … [cut: {3 * MAX_BODY_BYTES} bytes]")
    assert stored.metadata.endswith(" … [cut: 50000 bytes]")
    assert MAX_BODY_BYTES - 4 <= len(stored.body.encode()) <= MAX_BODY_BYTES
    assert len(stored.metadata.encode()) == 20_000


def test_studies_that_share_a_store_do_not_see_each_other(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("dynamodb") if isinstance(store, DynamoDbStore) else None
    other = of_another_study(store, tmp_path, server)
    store.put_users([user(1)])
    other.put_users([user(1, total_records=3), user(2)])
    store.put_runs([run("a")])
    other.put_runs([run("a", status_code=500)])
    other.remove_users([user(2).did])
    assert list(store.users()) == [user(1)]
    assert list(store.runs()) == [run("a")]
    assert list(other.users()) == [user(1, total_records=3)]


def test_pages_of_many_items(dynamodb: DynamoDb) -> None:
    store = dynamodb_of(dynamodb, "study")
    # More than the megabyte of a page.
    users = [user(number, total_records_by_type="x" * 30_000) for number in range(50)]
    store.put_users(users)
    assert list(store.users()) == users
    assert dynamodb.troubles.asked["Query"] > 1
    assert dynamodb.troubles.batches == [25, 25]


def test_what_dynamodb_leaves_undone_is_asked_for_again(dynamodb: DynamoDb) -> None:
    waits: list[float] = []
    store = dynamodb_of(dynamodb, "study", waits)
    dynamodb.troubles.items_done = [10, 0, 0, 14, 1]
    users = [user(number) for number in range(30)]
    store.put_users(users)
    assert dynamodb.troubles.batches == [25, 15, 15, 15, 1, 5]
    assert waits == [0.05, 0.1, 0.2, 0.05]
    assert list(store.users()) == users


@pytest.mark.parametrize(
    "error",
    [
        "ThrottlingException",
        "ProvisionedThroughputExceededException",
        "InternalServerError",
        "SomethingElse 503",
    ],
)
def test_throttling_is_waited_out(dynamodb: DynamoDb, error: str) -> None:
    waits: list[float] = []
    store = dynamodb_of(dynamodb, "study", waits)
    dynamodb.troubles.errors = [error] * 3
    store.put_users([user(1)])
    assert waits == [0.05, 0.1, 0.2]
    dynamodb.troubles.errors = [error] * 2
    assert list(store.users()) == [user(1)]


def test_throttling_without_an_end_is_an_error_and_its_waits_are_bounded(dynamodb: DynamoDb) -> None:
    waits: list[float] = []
    store = dynamodb_of(dynamodb, "study", waits)
    dynamodb.troubles.errors = ["ThrottlingException"] * 1000
    with pytest.raises(StorageError, match=r"takes no more after \d+ attempts; raise its capacity"):
        store.put_users([user(1)])
    assert len(waits) == MAX_ATTEMPTS - 1
    assert max(waits) == 20.0
    dynamodb.troubles.errors = []
    dynamodb.troubles.items_done = [0] * 1000
    with pytest.raises(StorageError, match="takes no more"):
        store.put_users([user(1)])


def test_broken_connections_are_made_again(dynamodb: DynamoDb) -> None:
    store = dynamodb_of(dynamodb, "study")
    dynamodb.troubles.dropped = 2
    store.put_users([user(1)])
    dynamodb.troubles.dropped = 100
    with pytest.raises(StorageError, match="cannot be reached"):
        list(store.users())


def test_no_item_is_too_large(dynamodb: DynamoDb) -> None:
    store = dynamodb_of(dynamodb, "s" * 41)
    store.put_runs([run("r" * 36, body="b" * 1_000_000, metadata="m" * 1_000_000)])
    assert 300_000 < dynamodb.troubles.largest_item < 400_000


def test_a_table_that_is_missing_or_has_other_keys(dynamodb: DynamoDb) -> None:
    missing = DynamoDbStore(table="missing", region=REGION, study="study", endpoint_url=dynamodb.url)
    advice = (
        "there is no such table with the keys pk and sk; make it: aws dynamodb create-table --table-name "
    )
    with pytest.raises(StorageError, match=advice + "missing"):
        missing.put_users([user(1)])
    with pytest.raises(StorageError, match=advice + "missing"):
        list(missing.users())
    # What DynamoDB says where moto takes any item.
    dynamodb.troubles.errors = ["ValidationException: The provided key element does not match the schema"]
    with pytest.raises(StorageError, match=advice + TABLE):
        dynamodb_of(dynamodb, "study").put_users([user(1)])
    dynamodb.troubles.errors = ["AccessDeniedException: no"]
    with pytest.raises(StorageError, match="dynamodb:BatchWriteItem and dynamodb:Query are needed"):
        dynamodb_of(dynamodb, "study").put_users([user(1)])


def test_without_credentials(dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        dynamodb_of(dynamodb, "study").put_users([user(1)])


def test_the_file_of_sqlite_keeps_nothing_of_what_is_removed(tmp_path: Path) -> None:
    store = open_store(MetadataStore(), study="study", storage=tmp_path)
    store.put_users([user(number) for number in range(200)])
    path = tmp_path / "study" / "metadata.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        # Somebody else's tool, which leaves what it deletes in free pages.
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("DELETE FROM user_metadata WHERE did = ?", (user(3).did,))
    assert user(3).did.encode() in path.read_bytes()
    store.remove_users([user(5).did])
    store.erase()
    assert user(3).did.encode() not in path.read_bytes()
    assert user(5).did.encode() not in path.read_bytes()
    assert len(list(store.users())) == 198


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "study" / "metadata.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but longer than a header of one would be" * 10)
    store = open_store(MetadataStore(), study="study", storage=tmp_path)
    with pytest.raises(StorageError, match="not a database"):
        store.put_users([user(1)])


def test_what_a_store_cannot_be() -> None:
    for settings in (
        {"type": "dynamodb", "region": REGION},
        {"type": "dynamodb", "table_name": TABLE},
        {"type": "sqlite", "table_name": TABLE},
        {"type": "dynamodb", "table_name": TABLE, "region": REGION, "path": "x.sqlite"},
        {"type": "dynamodb", "table_name": "a/b", "region": REGION},
        {"type": "redis"},
    ):
        with pytest.raises(ValueError):
            MetadataStore.model_validate(settings)
    given = MetadataStore(type="dynamodb", table_name=TABLE, region=REGION)
    made = open_store(given, study="study", storage=Path("nowhere"))
    assert isinstance(made, dynamodb_store.DynamoDbStore)
    assert made.identity() == f"dynamodb aws {REGION} {TABLE}"
