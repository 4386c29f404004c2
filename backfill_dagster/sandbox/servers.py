"""What the sandbox's servers answer: the PLC directory, the did:web hosts and the PDSs.

Statuses, bodies and headers are those of the official software (PDS 0.5.35; the directory as it runs today),
without its entity tags. How answers are sent, and what goes wrong on the way, is no concern of this module.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from backfill_dagster.sandbox.dag_cbor import cid_text
from backfill_dagster.sandbox.documents import audit_log, did_document, export_lines, is_in_plc
from backfill_dagster.sandbox.faults import JSON, RATE_LIMIT_BODY, Answer
from backfill_dagster.sandbox.population import Account, Population, Role
from backfill_dagster.sandbox.repo import Repo, Repos, repo_rev

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_DID = re.compile(r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]")
_CAR = ("Content-Type", "application/vnd.ipld.car")
_DID_DOCUMENT = ("Content-Type", "application/did+ld+json; charset=utf-8")
_EXPRESS = (("X-Powered-By", "Express"), ("Access-Control-Allow-Origin", "*"))
_PRIVATE = (("Cache-Control", "private"), ("Vary", "Authorization, Accept-Encoding"))
_PUBLIC = (("Vary", "Accept-Encoding"),)

# What an account's host says about it, by role; all others are active.
_STATUS = {
    Role.DEACTIVATED: "deactivated",
    Role.TAKENDOWN: "takendown",
    Role.SUSPENDED: "suspended",
}
_ERRORS = {
    "deactivated": ("RepoDeactivated", "Repo has been deactivated"),
    "takendown": ("RepoTakendown", "Repo has been takendown"),
    "suspended": ("RepoSuspended", "Repo has been suspended"),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A request as far as servers care: its method, its decoded path and its parameters."""

    method: str
    path: str
    parameters: Mapping[str, str]


class Site(Protocol):
    """What stands behind one host name."""

    async def answer(self, query: Query) -> Answer:
        """Answer a request."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests to one PDS in each window of so many seconds; what comes on top gets 429."""

    requests: int = 3000
    seconds: int = 300


class Exports:
    """Repositories, written when first asked for, in a thread of their own, so that servers go on answering.

    Keeps up to `capacity` bytes of them; the CIDs of commits are kept for good.
    """

    def __init__(self, repos: Repos, capacity: int = 256 * 2**20) -> None:
        self._repos = repos
        self._capacity = capacity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox-repos")
        self._kept: OrderedDict[str, Repo] = OrderedDict()
        self._size = 0
        self._commits: dict[str, str] = {}

    async def repo(self, account: Account) -> Repo:
        """Return an account's repository."""
        kept = self._kept.get(account.did)
        if kept is not None:
            return kept
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._build, account)

    async def commit(self, account: Account) -> str:
        """Return the CID of an account's commit, as text."""
        if account.did not in self._commits:
            await self.repo(account)
        return self._commits[account.did]

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _build(self, account: Account) -> Repo:
        kept = self._kept.get(account.did)
        if kept is not None:  # written while this request waited
            return kept
        repo = self._repos.build(account)
        self._commits[account.did] = cid_text(repo.commit)
        self._kept[account.did] = repo
        self._size += len(repo.car)
        while self._size > self._capacity and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1].car)
        return repo


class PlcDirectory:
    """The directory of did:plc documents."""

    def __init__(self, population: Population) -> None:
        self._accounts = population.by_did
        self._exported: list[dict[str, Any]] | None = None

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
        account = self._accounts.get(did)
        if account is None or not is_in_plc(account):
            return _json(404, {"message": f"DID not registered: {did}"}, _EXPRESS)
        if rest == "log/audit":
            return _json(200, audit_log(account), _EXPRESS)
        if rest:
            return _json(404, {"message": "Not Found"}, _EXPRESS)
        if account.role is Role.TOMBSTONED:
            return _json(410, {"message": f"DID not available: {did}"}, _EXPRESS)
        return Answer(200, (*_EXPRESS, _DID_DOCUMENT), _dump(did_document(account)))

    def _export(self, parameters: Mapping[str, str]) -> Answer:
        """List operations as JSON lines; `after` is a time, or the `seq` of the last operation seen."""
        count, after = parameters.get("count", "10"), parameters.get("after", "")
        if not count.isascii() or not count.isdigit() or not 1 <= int(count) <= 1000:
            return _json(400, {"message": "Invalid count parameter"}, _EXPRESS)
        if self._exported is None:
            self._exported = export_lines(
                account for account in self._accounts.values() if is_in_plc(account)
            )
        if after.isascii() and after.isdigit():
            first = int(after)
            lines: list[dict[str, Any]] = [
                {"seq": first + number, "type": "sequenced_op", **entry}
                for number, entry in enumerate(self._exported[first : first + int(count)], start=1)
            ]
        else:
            lines = [entry for entry in self._exported if entry["createdAt"] > after][: int(count)]
        body = b"\n".join(_dump(line) for line in lines)
        return Answer(200, (*_EXPRESS, ("Content-Type", "application/jsonlines")), body)


class WebHost:
    """The host of one did:web account."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def answer(self, query: Query) -> Answer:
        """Answer `/.well-known/did.json`."""
        if query.path != "/.well-known/did.json" or self._account.role is Role.DID_WEB_GONE:
            return Answer(404, (("Content-Type", "text/html; charset=utf-8"),), b"<h1>404 Not Found</h1>")
        return _json(200, did_document(self._account))


class PersonalDataServer:
    """One PDS."""

    def __init__(self, host: str, population: Population, exports: Exports, limit: RateLimit) -> None:
        self._exports = exports
        self._host = host
        self._accounts = {account.did: account for account in population.on_host(host)}
        self._window = _Window(limit)
        self._methods: dict[str, Callable[[Mapping[str, str]], Awaitable[Answer]]] = {
            "com.atproto.sync.getRepo": self._get_repo,
            "com.atproto.sync.getRepoStatus": self._get_repo_status,
            "com.atproto.sync.getLatestCommit": self._get_latest_commit,
            "com.atproto.sync.listRepos": self._list_repos,
        }

    async def answer(self, query: Query) -> Answer:
        """Answer `/xrpc/<method>` and `/xrpc/_health`."""
        if query.path == "/xrpc/_health":
            return _json(200, {"version": "0.5.35"}, (*_EXPRESS, *_PUBLIC))
        method = query.path.removeprefix("/xrpc/")
        if method == query.path:
            return Answer(404, (*_EXPRESS, ("Content-Type", "text/html; charset=utf-8")), b"Cannot GET")
        if method not in self._methods:
            return _invalid(f"No service configured for {method}")
        if query.method not in ("GET", "HEAD"):
            return _invalid(f"Incorrect HTTP method ({query.method}) expected GET")
        spent, headers = self._window.take()
        if spent:
            return Answer(429, (*_EXPRESS, *_PUBLIC, *headers, JSON), RATE_LIMIT_BODY)
        answer = await self._checked(method, query.parameters)
        return Answer(answer.status, (*answer.headers, *headers), answer.body, answer.streamed)

    async def _checked(self, method: str, parameters: Mapping[str, str]) -> Answer:
        if method != "com.atproto.sync.listRepos":
            did = parameters.get("did")
            if did is None:
                return _invalid(f'Invalid {method} params: Missing required key "did"')
            if not _DID.fullmatch(did):
                return _invalid(f'Invalid {method} params: Invalid DID (got "{did}")')
        return await self._methods[method](parameters)

    async def _get_repo(self, parameters: Mapping[str, str]) -> Answer:
        account = self._available(parameters["did"])
        if isinstance(account, Answer):
            return account
        # A repository here was written in one revision: what came since an earlier one is all of it.
        repo = await self._exports.repo(account)
        body = repo.car if parameters.get("since", "") < repo.rev else repo.header
        return Answer(200, (*_EXPRESS, *_PRIVATE, _CAR), body, streamed=True)

    async def _get_latest_commit(self, parameters: Mapping[str, str]) -> Answer:
        account = self._available(parameters["did"])
        if isinstance(account, Answer):
            return account
        commit = await self._exports.commit(account)
        return _json(200, {"cid": commit, "rev": repo_rev(account)}, (*_EXPRESS, *_PRIVATE))

    async def _get_repo_status(self, parameters: Mapping[str, str]) -> Answer:
        did = parameters["did"]
        account = self._accounts.get(did)
        if account is None:
            return _unknown_repo(did, _PUBLIC)
        status = self._status(account)
        if status is not None:
            return _json(200, {"did": did, "active": False, "status": status}, (*_EXPRESS, *_PUBLIC))
        body = {"did": did, "active": True, "rev": repo_rev(account)}
        return _json(200, body, (*_EXPRESS, *_PUBLIC))

    async def _list_repos(self, parameters: Mapping[str, str]) -> Answer:
        """List accounts in the order of the population; the cursor holds the index of the last one."""
        limit = parameters.get("limit", "500")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
            detail = f"integer too big (maximum 1000, got {limit})"
            return _invalid(f"Invalid com.atproto.sync.listRepos params: {detail}")
        cursor = re.fullmatch(r"(\d{1,12})::did:\S+", parameters.get("cursor", "0::did:none"))
        if cursor is None:
            return _invalid("Malformed cursor")
        listed = [account for account in self._accounts.values() if account.index >= int(cursor[1])][
            : int(limit)
        ]
        repos: list[dict[str, Any]] = []
        for account in listed:
            status = self._status(account)
            entry = {
                "did": account.did,
                "head": await self._exports.commit(account),
                "rev": repo_rev(account),
                "active": status is None,
            }
            repos.append(entry if status is None else {**entry, "status": status})
        body: dict[str, Any] = {"repos": repos}
        if listed:
            body = {"cursor": f"{listed[-1].index + 1}::{listed[-1].did}", **body}
        return _json(200, body, (*_EXPRESS, *_PUBLIC))

    def _status(self, account: Account) -> str | None:
        """Say why an account is not active here; None if it is."""
        return "deactivated" if account.host != self._host else _STATUS.get(account.role)

    def _available(self, did: str) -> Account | Answer:
        """Find an active account, or say why there is none."""
        account = self._accounts.get(did)
        if account is None:
            return _unknown_repo(did, _PRIVATE)
        status = self._status(account)
        if status is None:
            return account
        error, message = _ERRORS[status]
        return _json(400, {"error": error, "message": f"{message}: {did}"}, (*_EXPRESS, *_PRIVATE))


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
