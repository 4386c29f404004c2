"""A lease as one object in S3: who stands in it holds it, alone or with others, until it runs out or is let go.

The object is only ever replaced by a conditional put, so that of two who change it at once one has to look again.
Time is the server's: machines' clocks differ. A holder renews its place from a thread of its own for as long as its
process lives; one that could not do so in time loses it, and knows.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# How long a place lasts after its last renewal, and how often it is renewed.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_NOT_THERE = frozenset({"NoSuchKey", "404"})
# Others who change the same object at the same moment.
_TRIES = 20
_TRY_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Holder:
    """One who holds a lease until `expires`, by the server's clock; `name` is for messages."""

    id: str
    name: str
    is_alone: bool
    expires: float


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What a lease's object says.

    Those who hold it, whoever held it last, and what the last one that had it alone noted; `was_handed_on` if that one
    let go of it by itself.
    """

    holders: tuple[Holder, ...] = ()
    last: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    was_handed_on: bool = True

    def without_expired(self, now: float) -> LeaseState:
        """Leave out who did not renew its place in time; nobody of those has handed anything on."""
        held = tuple(holder for holder in self.holders if holder.expires > now)
        lost = any(holder.is_alone for holder in self.holders if holder.expires <= now)
        return replace(self, holders=held, was_handed_on=self.was_handed_on and not lost)

    def without(self, holder_id: str) -> LeaseState:
        """Leave one holder out."""
        return replace(self, holders=tuple(holder for holder in self.holders if holder.id != holder_id))

    def to_json(self) -> bytes:
        """Write it as text, never twice the same: an object's entity tag is made of its bytes."""
        told = {
            "holders": [[one.id, one.name, one.is_alone, one.expires] for one in self.holders],
            "last": self.last,
            "note": dict(self.note),
            "was_handed_on": self.was_handed_on,
            "write": uuid.uuid4().hex,
        }
        return json.dumps(told).encode()

    @classmethod
    def from_json(cls, body: bytes) -> LeaseState:
        """Read what `to_json` wrote; what is none says nothing."""
        try:
            told = json.loads(body)
            return cls(
                tuple(
                    Holder(str(one), str(name), alone is True, float(expires))
                    for one, name, alone, expires in told["holders"]
                ),
                str(told["last"]),
                dict(told["note"]),
                told["was_handed_on"] is True,
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls(was_handed_on=False)


@dataclass(frozen=True, slots=True)
class _Read:
    state: LeaseState
    etag: str | None
    now: float


class S3Lease:
    """A lease by the name of its object. All methods raise what boto3 does."""

    def __init__(self, client: Any, bucket: str, name: str) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name

    def take(self, name: str, *, alone: bool = True) -> HeldLease | None:
        """Take it, alone or with others; None if somebody's having it is in the way."""
        holder_id = uuid.uuid4().hex
        found: list[LeaseState] = []

        def enter(state: LeaseState, now: float) -> LeaseState | None:
            state = state.without_expired(now)
            if any(alone or holder.is_alone for holder in state.holders):
                return None
            found.append(state)
            holder = Holder(holder_id, name, alone, now + LEASE_SECONDS)
            # What was handed on is taken: whoever dies now has not handed anything on.
            handed_on = state.was_handed_on and not alone
            return replace(
                state, holders=(*state.holders, holder), last=name if alone else "", was_handed_on=handed_on
            )

        if self.change(enter) is None:
            return None
        return HeldLease(self, holder_id, found[-1])

    def read(self) -> LeaseState:
        """Return what it says now."""
        read = self._get()
        return read.state.without_expired(read.now)

    def change(self, how: Callable[[LeaseState, float], LeaseState | None]) -> LeaseState | None:
        """Replace its state, given with the server's time, by another; leave it, and return None, if that is None.

        Who has not renewed its place in time is still in it, until another takes it over.
        """
        for _ in range(_TRIES):
            read = self._get()
            new = how(read.state, read.now)
            if new is None:
                return None
            condition = {"IfNoneMatch": "*"} if read.etag is None else {"IfMatch": read.etag}
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._name, Body=new.to_json(), **condition)
            except ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            return new
        return None

    def __str__(self) -> str:
        """Return the object's address."""
        return f"s3://{self._bucket}/{self._name}"

    def _get(self) -> _Read:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._name)
        except ClientError as error:
            if _code(error) in _NOT_THERE:
                return _Read(LeaseState(), None, _server_time(error.response))
            raise
        return _Read(LeaseState.from_json(answer["Body"].read()), answer["ETag"], _server_time(answer))


class HeldLease:
    """A place in a lease; `found` is what it said before."""

    def __init__(self, lease: S3Lease, holder_id: str, found: LeaseState) -> None:
        self.found = found
        self._lease = lease
        self._id = holder_id
        self._is_lost = False
        self._ended = threading.Event()
        threading.Thread(target=self._keep, name=f"lease {lease}", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else may have it by now."""
        return self._is_lost

    def note(self, note: Mapping[str, Any]) -> None:
        """Write down what is to outlive this process, whatever becomes of it."""
        self._change(lambda state, _: replace(state, note=note) if self._is_in(state) else None)

    def release(self, note: Mapping[str, Any] | None = None) -> None:
        """Let go of it, handing on what the next holder is to know, if it was held alone."""
        self._ended.set()

        def leave(state: LeaseState, _: float) -> LeaseState | None:
            if not self._is_in(state):
                return None
            left = state.without(self._id)
            return left if note is None else replace(left, note=note, was_handed_on=True)

        self._change(leave)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS) and not self._is_lost:
            self._change(self._renewed)

    def _renewed(self, state: LeaseState, now: float) -> LeaseState | None:
        if self._ended.is_set() or not self._is_in(state):
            return None
        return replace(
            state,
            holders=tuple(
                replace(holder, expires=now + LEASE_SECONDS) if holder.id == self._id else holder
                for holder in state.holders
            ),
        )

    def _is_in(self, state: LeaseState) -> bool:
        if any(holder.id == self._id for holder in state.holders):
            return True
        if not self._is_lost:
            self._is_lost = True
            logger.warning("%s was lost: this process was held up for longer than it lasts", self._lease)
        return False

    def _change(self, how: Callable[[LeaseState, float], LeaseState | None]) -> None:
        try:
            self._lease.change(how)
        except (BotoCoreError, ClientError) as error:
            # Others see a place that runs out by itself, and wait for that.
            logger.warning("%s cannot be written: %s", self._lease, error)


def _server_time(answer: Mapping[str, Any]) -> float:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
