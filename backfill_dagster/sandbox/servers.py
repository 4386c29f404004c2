"""What the sandbox's servers answer: the PLC directory, the did:web hosts, the PDSs and a relay.

Statuses, bodies and headers are those of the official software (PDS 0.5.35; the directory as it runs today),
without its entity tags. How answers are sent, and what goes wrong on the way, is no concern of this module.
"""

from __future__ import annotations

import json
import math
import re
import time
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from backfill_dagster.sandbox.account_state import AccountState, Status
from backfill_dagster.sandbox.answer import HTML, JSON, RATE_LIMIT_BODY, Answer
from backfill_dagster.sandbox.documents import audit_log, did_document, export_lines, is_in_plc
from backfill_dagster.sandbox.faults.pretences import View
from backfill_dagster.sandbox.population import PLC_HOST, Role
from backfill_dagster.sandbox.record_proof import prove_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from backfill_dagster.sandbox.accounts import Accounts
    from backfill_dagster.sandbox.exports import Exports
    from backfill_dagster.sandbox.faults.switches import Faults

_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
WEB_DOCUMENT = "/.well-known/did.json"
HANDLE_DID = "/.well-known/atproto-did"

_CAR = ("Content-Type", "application/vnd.ipld.car")
_DID_DOCUMENT = ("Content-Type", "application/did+ld+json; charset=utf-8")
_EXPRESS = (("X-Powered-By", "Express"), ("Access-Control-Allow-Origin", "*"))
_PRIVATE = (("Cache-Control", "private"), ("Vary", "Authorization, Accept-Encoding"))
_PUBLIC = (("Vary", "Accept-Encoding"),)

# What `getRepo` and `getLatestCommit` say of accounts that are not active. Their lexicons know no other errors,
# so that the rest is the nearest one.
_ERRORS = {
    Status.TAKENDOWN: ("RepoTakendown", "Repo has been takendown"),
    Status.SUSPENDED: ("RepoSuspended", "Repo has been suspended"),
    Status.DELETED: ("RepoNotFound", "Could not find repo for DID"),
}
_OTHER_ERROR = ("RepoDeactivated", "Repo has been deactivated")

_LIST_RECORDS = "com.atproto.repo.listRecords"
# Parameters that a method must have; `did`, if it is not said here.
_REQUIRED = {
    "com.atproto.sync.getRecord": ("did", "collection", "rkey"),
    "com.atproto.sync.listRepos": (),
    _LIST_RECORDS: ("repo", "collection"),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A request as far as servers care: its method, its decoded path, its parameters and the host it is for."""

    method: str
    path: str
    parameters: Mapping[str, str]
    host: str = ""


class Site(Protocol):
    """What stands behind one host name."""

    async def answer(self, query: Query) -> Answer:
        """Answer a request."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests to one PDS in each window of so many seconds; what comes on top gets 429."""

    requests: int = 3000
    seconds: int = 300


class PlcDirectory:
    """The directory of did:plc documents."""

    def __init__(self, accounts: Accounts, faults: Faults) -> None:
        self._accounts = accounts
        self._faults = faults
        self._exported: list[dict[str, Any]] = []
        self._exported_version = -1

    async def answer(self, query: Query) -> Answer:
        """Answer `/<did>`, `/<did>/log/audit`, `/export` and `/_health`."""
        path = query.path
        if query.method not in ("GET", "HEAD"):
            return _json(404, {"message": "Not Found"}, _EXPRESS)
        if path == "/_health":
            return _json(200, {"version": "sandbox"}, _EXPRESS)
        if path == "/export":
            return self._export(query.parameters)
        did, _, rest = path[1:].partition("/")
        state = self._accounts.get(did)
        if state is None or not is_in_plc(state.account):
            return _json(404, {"message": f"DID not registered: {did}"}, _EXPRESS)
        if rest == "log/audit":
            return _json(200, audit_log(self._faults.shown(state, View.AUDIT_LOG, PLC_HOST)), _EXPRESS)
        if rest:
            return _json(404, {"message": "Not Found"}, _EXPRESS)
        if state.tombstoned is not None:
            return _json(410, {"message": f"DID not available: {did}"}, _EXPRESS)
        shown = self._faults.shown(state, View.DOCUMENT, PLC_HOST)
        return Answer(200, (*_EXPRESS, _DID_DOCUMENT), _dump(did_document(shown)))

    def _export(self, parameters: Mapping[str, str]) -> Answer:
        """List operations as JSON lines; `after` is a time, or the `seq` of the last operation seen."""
        count, after = parameters.get("count", "1000"), parameters.get("after", "")
        if not count.isascii() or not count.isdigit() or int(count) < 1:
            return _json(400, {"message": "Invalid count parameter"}, _EXPRESS)
        most = min(int(count), 1000)
        version = self._accounts.directory_version
        if version != self._exported_version:
            listed = (state for state in self._accounts.all() if is_in_plc(state.account))
            self._exported, self._exported_version = export_lines(listed), version
        if after.isascii() and after.isdigit():
            first = int(after)
            # With numbers, it is not said what was nullified.
            lines: list[dict[str, Any]] = [
                {"seq": first + number, "type": "sequenced_op", **_without(entry, "nullified")}
                for number, entry in enumerate(self._exported[first : first + most], start=1)
            ]
        else:
            first = bisect_right(self._exported, after, key=lambda entry: entry["createdAt"])
            lines = self._exported[first : first + most]
        body = b"\n".join(_dump(line) for line in lines)
        return Answer(200, (*_EXPRESS, ("Content-Type", "application/jsonlines")), body)


class WebHost:
    """The host of one did:web account."""

    def __init__(self, did: str, accounts: Accounts, faults: Faults) -> None:
        self._did = did
        self._host = did.removeprefix("did:web:")
        self._accounts = accounts
        self._faults = faults

    async def answer(self, query: Query) -> Answer:
        """Answer `/.well-known/did.json`."""
        state = self._accounts[self._did]
        if query.path != WEB_DOCUMENT or state.account.role is Role.DID_WEB_GONE:
            return Answer(404, (HTML,), b"<h1>404 Not Found</h1>")
        return _json(200, did_document(self._faults.shown(state, View.DOCUMENT, self._host)))


class PersonalDataServer:
    """One PDS."""

    def __init__(
        self, host: str, accounts: Accounts, exports: Exports, faults: Faults, limit: RateLimit
    ) -> None:
        self._host = host
        self._accounts = accounts
        self._exports = exports
        self._faults = faults
        self._window = _Window(limit)
        self._methods: dict[str, Callable[[Mapping[str, str]], Awaitable[Answer]]] = {
            "com.atproto.sync.getRepo": self._get_repo,
            "com.atproto.sync.getRepoStatus": self._get_repo_status,
            "com.atproto.sync.getLatestCommit": self._get_latest_commit,
            "com.atproto.sync.getRecord": self._get_record,
            "com.atproto.sync.listRepos": self._list_repos,
            _LIST_RECORDS: self._list_records,
        }

    async def answer(self, query: Query) -> Answer:
        """Answer `/xrpc/<method>`, `/xrpc/_health` and, to those who ask a handle, `/.well-known/atproto-did`."""
        if query.path == "/xrpc/_health":
            return _json(200, {"version": "0.5.35"}, (*_EXPRESS, *_PUBLIC))
        if query.path == HANDLE_DID:
            return self._handle_did(query.host)
        method = query.path.removeprefix("/xrpc/")
        if method == query.path:
            return Answer(404, (*_EXPRESS, HTML), b"Cannot GET")
        if method not in self._methods:
            return _invalid(f"No service configured for {method}")
        if query.method not in ("GET", "HEAD"):
            return _invalid(f"Incorrect HTTP method ({query.method}) expected GET")
        spent, headers = self._window.take()
        if spent:
            return Answer(429, (*_EXPRESS, *_PUBLIC, *headers, JSON), RATE_LIMIT_BODY)
        answer = await self._checked(method, query.parameters)
        return replace(answer, headers=(*answer.headers, *headers))

    async def _checked(self, method: str, parameters: Mapping[str, str]) -> Answer:
        for name in _REQUIRED.get(method, ("did",)):
            if name not in parameters:
                return _invalid(f'Invalid {method} params: Missing required key "{name}"')
        if "did" in parameters:
            did = parameters["did"]
            if not _DID.fullmatch(did):
                return _invalid(f'Invalid {method} params: Invalid DID (got "{did}")')
        return await self._methods[method](parameters)

    async def _get_repo(self, parameters: Mapping[str, str]) -> Answer:
        state = self._available(parameters["did"])
        if isinstance(state, Answer):
            return state
        shown = self._faults.shown(state, View.REPO, self._host)
        repo = await self._exports.repo(shown, self._faults.distortions(self._host, state.did))
        # What came since an earlier revision is not told apart: all blocks are sent, as a server may.
        body = repo.car if parameters.get("since", "") < repo.rev else repo.header
        return Answer(200, (*_EXPRESS, *_PRIVATE, _CAR), body, streamed=True)

    async def _get_record(self, parameters: Mapping[str, str]) -> Answer:
        state = self._available(parameters["did"])
        if isinstance(state, Answer):
            return state
        shown = self._faults.shown(state, View.REPO, self._host)
        file = await self._exports.file(shown, self._faults.distortions(self._host, state.did))
        body = prove_record(file, parameters["collection"], parameters["rkey"])
        return Answer(200, (*_EXPRESS, *_PRIVATE, _CAR), body, streamed=True)

    async def _list_records(self, parameters: Mapping[str, str]) -> Answer:
        """List the records of a collection from the highest key down; the cursor is the last key listed."""
        did = parameters["repo"]
        state = self._accounts.get(did)
        if state is None or state.copies.get(self._host) is not Status.ACTIVE:
            return _json(
                400,
                {"error": "InvalidRequest", "message": f"Could not find repo: {did}"},
                (*_EXPRESS, *_PUBLIC),
            )
        limit = parameters.get("limit", "50")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 100:
            detail = f"integer too big (maximum 100, got {limit})"
            return _invalid(f"Invalid {_LIST_RECORDS} params: {detail}")
        listing = await self._exports.listing(state, self._faults.distortions(self._host, did))
        records = listing.page(parameters["collection"], int(limit), parameters.get("cursor"))
        body: dict[str, Any] = {"records": records}
        if records:
            body["cursor"] = records[-1]["uri"].rpartition("/")[2]
        return _json(200, body, (*_EXPRESS, *_PUBLIC))

    async def _get_latest_commit(self, parameters: Mapping[str, str]) -> Answer:
        state = self._available(parameters["did"])
        if isinstance(state, Answer):
            return state
        commit = await self._exports.commit(state)
        return _json(200, {"cid": commit, "rev": state.rev}, (*_EXPRESS, *_PRIVATE))

    async def _get_repo_status(self, parameters: Mapping[str, str]) -> Answer:
        did = parameters["did"]
        state = self._accounts.get(did)
        status = None if state is None else state.copies.get(self._host)
        if state is None or status is None:
            return _unknown_repo(did, _PUBLIC)
        body = {"did": did, **_activity(status)}
        if status is Status.ACTIVE:
            body["rev"] = state.rev
        return _json(200, body, (*_EXPRESS, *_PUBLIC))

    async def _list_repos(self, parameters: Mapping[str, str]) -> Answer:
        """List accounts in the order of the population; the cursor holds the index after the last one."""
        limit = parameters.get("limit", "500")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
            detail = f"integer too big (maximum 1000, got {limit})"
            return _invalid(f"Invalid com.atproto.sync.listRepos params: {detail}")
        cursor = re.fullmatch(r"(\d{1,12})::did:\S+", parameters.get("cursor", "0::did:none"))
        if cursor is None:
            return _invalid("Malformed cursor")
        listed = self._accounts.on_host(self._host, int(cursor[1]), int(limit))
        body: dict[str, Any] = {
            "repos": [
                {
                    "did": state.did,
                    "head": await self._exports.commit(state),
                    "rev": state.rev,
                    **_activity(status),
                }
                for state, status in listed
            ]
        }
        if listed:
            account = listed[-1][0].account
            body = {"cursor": f"{account.index + 1}::{account.did}", **body}
        return _json(200, body, (*_EXPRESS, *_PUBLIC))

    def _handle_did(self, handle: str) -> Answer:
        state = self._accounts.with_handle(handle)
        if state is None or state.copies.get(self._host) is not Status.ACTIVE:
            return Answer(404, (*_EXPRESS, HTML), b"User not found")
        return Answer(200, (*_EXPRESS, ("Content-Type", "text/plain; charset=utf-8")), state.did.encode())

    def _available(self, did: str) -> AccountState | Answer:
        """Find an active account, or say why there is none."""
        state = self._accounts.get(did)
        status = None if state is None else state.copies.get(self._host)
        if state is None or status is None:
            return _unknown_repo(did, _PRIVATE)
        if status is Status.ACTIVE:
            return state
        error, message = _ERRORS.get(status, _OTHER_ERROR)
        return _json(400, {"error": error, "message": f"{message}: {did}"}, (*_EXPRESS, *_PRIVATE))


class Relay:
    """A relay, as far as it lists who has records of a collection."""

    def __init__(self, accounts: Accounts, exports: Exports) -> None:
        self._accounts = accounts
        self._exports = exports

    async def answer(self, query: Query) -> Answer:
        """Answer `/xrpc/com.atproto.sync.listReposByCollection` and `/xrpc/_health`."""
        method = query.path.removeprefix("/xrpc/")
        if method == "_health":
            return _json(200, {"status": "ok"}, _EXPRESS)
        if method != "com.atproto.sync.listReposByCollection":
            return _json(404, {"error": "NotFound", "message": "Not Found"}, _EXPRESS)
        collection = query.parameters.get("collection", "")
        limit = query.parameters.get("limit", "500")
        cursor = query.parameters.get("cursor", "")
        if not collection or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 2000:
            return _invalid("collection and limit must be given, the latter from 1 to 2000")
        # It knows the accounts that it has records of, by their DIDs; the cursor is the last one listed.
        dids = sorted(state.did for state in self._accounts.all() if state.status is Status.ACTIVE)
        listed: list[str] = []
        for did in dids[bisect_right(dids, cursor) :]:
            if collection in await self._exports.collections(self._accounts[did]):
                listed.append(did)
            if len(listed) == int(limit):
                break
        body: dict[str, Any] = {"repos": [{"did": did} for did in listed]}
        if len(listed) == int(limit):
            body["cursor"] = listed[-1]
        return _json(200, body, _EXPRESS)


def _without(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


def _activity(status: Status) -> dict[str, Any]:
    """Say whether an account is active, and why not, as `getRepoStatus` and `listRepos` do."""
    if status in (Status.ACTIVE, Status.INACTIVE):
        return {"active": status is Status.ACTIVE}
    return {"active": False, "status": status.value}


class _Window:
    """The official server's limiter: a fixed window that begins with the first request in it."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._ends = 0.0
        self._left = limit.requests

    def take(self) -> tuple[bool, tuple[tuple[str, str], ...]]:
        """Count a request; returns whether the window is spent, and the headers that say so."""
        limit, now = self._limit, time.time()
        if now >= self._ends:
            self._ends, self._left = now + limit.seconds, limit.requests
        spent = self._left == 0
        self._left = max(self._left - 1, 0)
        headers = (
            ("RateLimit-Limit", str(limit.requests)),
            ("RateLimit-Reset", str(math.ceil(self._ends))),
            ("RateLimit-Remaining", str(self._left)),
            ("RateLimit-Policy", f"{limit.requests};w={limit.seconds}"),
        )
        return spent, (*headers, ("Retry-After", str(math.ceil(self._ends - now)))) if spent else headers


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _json(status: int, value: Any, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, (*headers, JSON), _dump(value))


def _invalid(message: str) -> Answer:
    return _json(400, {"error": "InvalidRequest", "message": message}, (*_EXPRESS, *_PUBLIC))


def _unknown_repo(did: str, headers: tuple[tuple[str, str], ...]) -> Answer:
    body = {"error": "RepoNotFound", "message": f"Could not find repo for DID: {did}"}
    return _json(400, body, (*_EXPRESS, *headers))
