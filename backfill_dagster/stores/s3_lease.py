"""A lease as one object in S3: who stands in it holds it, alone or with others, until it runs out or is let go.

The object is only ever replaced by a conditional put, so that of two who change it at once one has to look again.
Time is the server's: machines' clocks differ. A holder renews its place from a thread of its own for as long as its
process lives; one that could not do so in time doubts by its own clock that it has it, and asks before it goes on.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ClientError

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# How long a place lasts after its last renewal, and how often it is renewed.
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
# Before the next try of a renewal that has failed.
_RENEW_AGAIN_SECONDS = 2.0
# The share of its time after which a place that was not renewed is in doubt: the server tells time in whole seconds.
_SURE_SHARE = 0.9
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_NOT_THERE = frozenset({"NoSuchKey", "404"})
# Clocks that differ by no more are taken for the same.
_SAME_TIME_SECONDS = 2.0
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


class LeaseWatcher(Protocol):
    """Who is told, from a thread of the lease, how sure it is that a lease is held."""

    def doubted(self, held: HeldLease) -> None:
        """Stop for a while: it could not be renewed for so long that another may take it."""

    def confirmed(self, held: HeldLease) -> None:
        """Go on: nobody else has had it."""

    def lost(self, held: HeldLease) -> None:
        """Stop: somebody else has had it."""


class Unwatched:
    """A watcher that nobody is told by."""

    def doubted(self, held: HeldLease) -> None:
        """Do nothing."""

    def confirmed(self, held: HeldLease) -> None:
        """Do nothing."""

    def lost(self, held: HeldLease) -> None:
        """Do nothing."""


_UNWATCHED = Unwatched()


class S3Lease:
    """A lease by the name of its object. All methods raise what boto3 does."""

    def __init__(self, client: Any, bucket: str, name: str) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name

    def take(self, name: str, *, alone: bool = True, watcher: LeaseWatcher = _UNWATCHED) -> HeldLease | None:
        """Take it, alone or with others; None if somebody's having it is in the way.

        Raises StorageError if the server does not heed the conditions of a put: all would have it at once.
        """
        holder_id = uuid.uuid4().hex
        found: list[LeaseState] = []
        asked_at, ahead = _clock(), 0.0

        def enter(state: LeaseState, now: float) -> LeaseState | None:
            nonlocal ahead
            if any(holder.id == holder_id for holder in state.holders):
                # The put was done, and only its answer was lost.
                return state
            state = state.without_expired(now)
            if any(alone or holder.is_alone for holder in state.holders):
                return None
            found.append(state)
            ahead = now - time.time()
            holder = Holder(holder_id, name, alone, now + LEASE_SECONDS)
            # What was handed on is taken: whoever dies now has not handed anything on.
            handed_on = state.was_handed_on and not alone
            return replace(
                state, holders=(*state.holders, holder), last=name if alone else "", was_handed_on=handed_on
            )

        if self.change(enter) is None:
            return None
        ahead = ahead if abs(ahead) > _SAME_TIME_SECONDS else 0.0
        held = HeldLease(self, holder_id, found[-1], confirmed_at=asked_at, ahead=ahead, watcher=watcher)
        try:
            self._require_conditions()
        except BaseException:
            held.release()
            raise
        return held

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
                # One that was deleted meanwhile does not match either.
                if _code(error) not in _TAKEN | _NOT_THERE:
                    raise
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            return new
        return None

    def _require_conditions(self) -> None:
        """Raise StorageError if the server puts an object in spite of a condition that does not hold."""
        place = (self._client.meta.endpoint_url, self._bucket)
        if place in _heeding:
            return
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{"0" * 32}"'}):
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._name, Body=LeaseState().to_json(), **condition
                )
            except ClientError as error:
                if _code(error) in _TAKEN:
                    continue
                if _code(error) not in _UNKNOWN:
                    raise
            raise StorageError(
                f"the S3 server {place[0]} does not heed conditional puts (If-Match, If-None-Match), so that nothing "
                f"there would keep two runs from being in each other's way ({self}); use a server that does, or "
                "storage.type: parquet"
            )
        _heeding.add(place)

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
    """A place in a lease.

    `found` is what it said before; the server's clock is `ahead` of this machine's by so many seconds.
    """

    def __init__(
        self,
        lease: S3Lease,
        holder_id: str,
        found: LeaseState,
        *,
        confirmed_at: float,
        ahead: float = 0.0,
        watcher: LeaseWatcher = _UNWATCHED,
    ) -> None:
        self.found = found
        self.ahead = ahead
        self._lease = lease
        self._id = holder_id
        self._confirmed_at = confirmed_at
        self._watcher = watcher
        self._is_lost = False
        self._ended = threading.Event()
        threading.Thread(target=self._keep, name=f"lease {lease}", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has had it."""
        return self._is_lost

    def holds(self) -> bool:
        """Tell whether nobody else can have it; asks the server if this process was held up."""
        if self._is_in_doubt():
            self._renew()
        return not self._is_lost and not self._is_in_doubt()

    def __str__(self) -> str:
        """Return the lease's address."""
        return str(self._lease)

    def note(self, note: Mapping[str, Any]) -> None:
        """Write down what is to outlive this process, whatever becomes of it."""
        self._change(lambda state, _: replace(state, note=note) if self._is_in(state) else None)

    def release(self, note: Mapping[str, Any] | None = None) -> None:
        """Let go of it, handing on what the next holder is to know, if it was held alone."""
        self._ended.set()
        _guarding.discard(self)

        def leave(state: LeaseState, _: float) -> LeaseState | None:
            if not self._is_in(state):
                return None
            left = state.without(self._id)
            return left if note is None else replace(left, note=note, was_handed_on=True)

        self._change(leave)

    def guard(self) -> None:
        """Have this process write nothing to a store, until this is released, when it is held no longer."""
        _guarding.add(self)

    def _keep(self) -> None:
        is_told = False
        pause = RENEW_SECONDS
        while not self._ended.wait(pause) and not self._is_lost:
            # Who was held up knows it before it has asked.
            if self._is_in_doubt() and not is_told:
                is_told = True
                self._watcher.doubted(self)
            is_renewed = self._renew()
            if is_renewed and is_told:
                is_told = False
                self._watcher.confirmed(self)
            pause = RENEW_SECONDS if is_renewed else min(_RENEW_AGAIN_SECONDS, RENEW_SECONDS)
        if self._is_lost and not self._ended.is_set():
            self._watcher.lost(self)

    def _is_in_doubt(self) -> bool:
        return _clock() - self._confirmed_at > _SURE_SHARE * LEASE_SECONDS

    def _renew(self) -> bool:
        asked_at = _clock()
        if self._change(self._renewed) is None:
            return False
        self._confirmed_at = asked_at
        return True

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
        # A note is deleted by its owner before it is let go of, and an answer to letting go may get lost.
        if not self._is_lost and not self._ended.is_set():
            logger.warning("%s was lost: this process was held up for longer than it lasts", self._lease)
        self._is_lost = True
        return False

    def _change(self, how: Callable[[LeaseState, float], LeaseState | None]) -> LeaseState | None:
        try:
            return self._lease.change(how)
        except Exception as error:  # noqa: BLE001  a thread that ended here would lose what it is to keep
            # Others see a place that runs out by itself, and wait for that.
            logger.warning("%s cannot be written: %s", self._lease, error)
            return None


# Servers and their buckets of which it is known that they heed conditions.
_heeding: set[tuple[str, str]] = set()
# What a server answers that has not heard of them.
_UNKNOWN = frozenset({"NotImplemented", "501", "InvalidArgument", "InvalidRequest"})
_guarding: set[HeldLease] = set()


def require_guards() -> None:
    """Raise StorageError if this process has lost a lease that its writing depends on."""
    for held in tuple(_guarding):
        if not held.holds():
            raise StorageError(
                f"{held} was lost, since this process was held up, or cut off from S3, for longer than it lasts: "
                "another may be at work; run the same again, what is stored is whole"
            )


def _clock() -> float:
    """Return seconds that also pass while the machine sleeps."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _server_time(answer: Mapping[str, Any]) -> float:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
