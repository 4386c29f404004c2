"""The store in DynamoDB: one table, of one study or of several.

The partition key `pk` is `<study>#user` or `<study>#run`, the sort key `sk` the DID or the run id: one item for each
account and for each run, and no two that collide. Credentials come from the environment, as for all of AWS's tools.
Limits are those of the Developer Guide: 25 items in a request that writes, 400 kB in an item.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

from backfill_dagster.metadata_stores.bodies import bounded
from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.metadata_stores.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

USER, RUN = "user", "run"
BATCH_ITEMS = 25
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60
_CONNECTION_ATTEMPTS = 4
# Waits of a twentieth of a second, doubled each time up to twenty seconds: some three minutes in all.
MAX_ATTEMPTS = 16
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 20.0
_THROTTLED = (
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "Throttling",
    "InternalServerError",
    "ServiceUnavailable",
    "TransactionInProgressException",
)
_SERVER_ERROR = 500
_FORBIDDEN = ("AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException")
_Item = dict[str, dict[str, str]]


class DynamoDbStore:
    """The items of one study in a table of DynamoDB.

    `sleep` and `chance` (a number from 0 to 1) are for tests.
    """

    def __init__(
        self,
        *,
        table: str,
        region: str,
        study: str,
        endpoint_url: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._table = table
        self._region = region
        self._study = study
        self._endpoint_url = endpoint_url
        self._sleep = sleep
        self._chance = chance
        self._made_client: Any = None

    def identity(self) -> str:
        """Name the table, and where it is."""
        return f"dynamodb {self._endpoint_url or 'aws'} {self._region} {self._table}"

    def put_users(self, users: Iterable[UserItem]) -> None:
        """Write accounts' items, 25 at a time; what was written stays if one of these cannot be."""
        self._write(
            (user.did, {"PutRequest": {"Item": self._item(USER, user.did, asdict(user))}}) for user in users
        )

    def remove_users(self, dids: Iterable[str]) -> None:
        """Delete accounts' items."""
        self._write((did, {"DeleteRequest": {"Key": self._key(USER, did)}}) for did in dids)

    def users(self) -> Iterator[UserItem]:
        """Yield all accounts' items, by DID."""
        names = [field.name for field in fields(UserItem)]
        for page in self._pages(USER, names):
            for item in page:
                yield UserItem(**_values(item, names))

    def dids(self) -> Iterator[list[str]]:
        """Yield the DIDs of all accounts, a page at a time."""
        for page in self._pages(USER, ["did"]):
            if page:
                yield [item["did"]["S"] for item in page if "did" in item]

    def put_runs(self, runs: Iterable[RunItem]) -> None:
        """Write runs' items."""
        self._write(
            (run.run_id, {"PutRequest": {"Item": self._item(RUN, run.run_id, asdict(bounded(run)))}})
            for run in runs
        )

    def runs(self) -> Iterator[RunItem]:
        """Yield all runs' items, by run id."""
        names = [field.name for field in fields(RunItem)]
        for page in self._pages(RUN, names):
            for item in page:
                yield RunItem(**_values(item, names))

    def has_lost_users(self) -> bool:
        """Return false: a table does not get lost as a file does."""
        return False

    def has_lost_runs(self) -> bool:
        """Return false as well."""
        return False

    def erase(self) -> None:
        """Leave that to DynamoDB."""

    def _write(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        left = iter(requests)
        # DynamoDB refuses a batch that names an item twice; the last is what would remain.
        while batch := dict(islice(left, BATCH_ITEMS)):
            self._write_batch(list(batch.values()))

    def _write_batch(self, batch: list[dict[str, Any]]) -> None:
        """Write up to 25 items; what DynamoDB leaves undone is asked for again, later each time that none was done."""
        attempt = 0
        while attempt < MAX_ATTEMPTS:
            if attempt:
                self._wait(attempt)
            attempt += 1
            answer = self._ask("batch_write_item", RequestItems={self._table: batch})
            if answer is None:
                continue
            left = answer.get("UnprocessedItems", {}).get(self._table, [])
            if not left:
                return
            attempt = attempt if len(left) == len(batch) else 1
            batch = left
        raise self._overloaded()

    def _pages(self, kind: str, names: list[str]) -> Iterator[list[_Item]]:
        aliases = {f"#f{number}": name for number, name in enumerate(names)}
        asked: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": self._partition(kind)}},
            # Some of these names are words of DynamoDB's own.
            "ExpressionAttributeNames": aliases,
            "ProjectionExpression": ", ".join(aliases),
            "ConsistentRead": True,
        }
        while True:
            answer = self._page(asked)
            yield answer.get("Items", [])
            if "LastEvaluatedKey" not in answer:
                return
            asked["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _page(self, asked: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                self._wait(attempt)
            answer = self._ask("query", **asked)
            if answer is not None:
                return answer
        raise self._overloaded()

    def _wait(self, attempt: int) -> None:
        # Full jitter: many writers that were turned away together do not come back together.
        self._sleep(self._chance() * min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)))

    def _ask(self, operation: str, **asked: Any) -> dict[str, Any] | None:
        """Return DynamoDB's answer; None if it has too much to do. Raises StoreError for all else."""
        # Both are imported where they are needed: they take longer than all of the rest.
        from botocore.exceptions import ClientError, HTTPClientError

        with self._errors():
            ask = getattr(self._client(), operation)
            for attempt in range(1, _CONNECTION_ATTEMPTS + 1):
                try:
                    answer: dict[str, Any] = ask(**asked)
                except ClientError as error:
                    if _is_throttled(error.response):
                        return None
                    raise
                except HTTPClientError:
                    if attempt == _CONNECTION_ATTEMPTS:
                        raise
                    self._wait(attempt)
                else:
                    return answer
        return None

    def _client(self) -> Any:
        if self._made_client is None:
            import boto3
            from botocore.config import Config

            settings = Config(
                connect_timeout=_CONNECT_TIMEOUT,
                read_timeout=_READ_TIMEOUT,
                # What is turned away is asked for again here, where the waits are bounded as a whole.
                retries={"total_max_attempts": 1},
            )
            self._made_client = boto3.session.Session().client(
                "dynamodb", region_name=self._region, endpoint_url=self._endpoint_url, config=settings
            )
        return self._made_client

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        where = f"metadata_store.table_name = {self._table!r} in {self._region}"
        try:
            yield
        except NoCredentialsError as error:
            raise StoreError(
                f"{where}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except ClientError as error:
            told = error.response.get("Error", {})
            code, message = told.get("Code", ""), " ".join(str(told.get("Message", "")).split())[:300]
            raise StoreError(f"{where}: {self._advice(code, message)} ({code}: {message})") from error
        except BotoCoreError as error:
            raise StoreError(
                f"{where}: cannot be reached: {' '.join(str(error).split())[:300]}; run the same again later"
            ) from error

    def _advice(self, code: str, message: str) -> str:
        if code == "ResourceNotFoundException" or (
            code == "ValidationException" and "key" in message.lower()
        ):
            return (
                "there is no such table with the keys pk and sk; make it: aws dynamodb create-table --table-name "
                f"{self._table} --region {self._region} --billing-mode PAY_PER_REQUEST --attribute-definitions "
                "AttributeName=pk,AttributeType=S AttributeName=sk,AttributeType=S --key-schema "
                "AttributeName=pk,KeyType=HASH AttributeName=sk,KeyType=RANGE"
            )
        if code in _FORBIDDEN:
            return "these credentials may not do that: dynamodb:BatchWriteItem and dynamodb:Query are needed"
        return "DynamoDB refuses"

    def _overloaded(self) -> StoreError:
        return StoreError(
            f"metadata_store.table_name = {self._table!r} in {self._region}: takes no more after {MAX_ATTEMPTS} "
            "attempts; raise its capacity, then run the same again: what was written stays"
        )

    def _partition(self, kind: str) -> str:
        return f"{self._study}#{kind}"

    def _key(self, kind: str, name: str) -> _Item:
        return {"pk": {"S": self._partition(kind)}, "sk": {"S": name}}

    def _item(self, kind: str, name: str, values: dict[str, Any]) -> _Item:
        return {
            **self._key(kind, name),
            **{
                field: {"N": str(value)} if isinstance(value, int) else {"S": value}
                for field, value in values.items()
            },
        }


def _is_throttled(answer: dict[str, Any]) -> bool:
    # Of an answer that is none of DynamoDB's own, such as a proxy's, the code is its status.
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= _SERVER_ERROR or answer.get("Error", {}).get("Code") in _THROTTLED


def _values(item: _Item, names: Iterable[str]) -> dict[str, Any]:
    """Return the fields of an item, of which some may be another writer's."""
    values: dict[str, Any] = {}
    for name in names:
        told = item.get(name, {})
        values[name] = int(told["N"]) if "N" in told else told.get("S", "")
    return values
