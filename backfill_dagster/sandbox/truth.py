"""What a crawler of the sandbox must find: every account's end and every record, as they were written.

All of it comes from the side that writes. Nothing here decodes a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from backfill_dagster.sandbox.account_state import Status, endpoint
from backfill_dagster.sandbox.dag_cbor import as_json, cid_text
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.repo import Repos, record_block
from backfill_dagster.sandbox.written import (
    BLOCK,
    FOLLOW,
    LIKE,
    POST,
    PROFILE,
    REPOST,
    Defect,
    Written,
    instant_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from backfill_dagster.sandbox.account_state import AccountState
    from backfill_dagster.sandbox.accounts import Accounts

# Roles of accounts that the directory or their own host cannot lead a crawler to.
_DIRECTORY_STATES = {
    Role.UNKNOWN_TO_PLC: "not_found",
    Role.DID_WEB_GONE: "not_found",
    Role.DOCUMENT_WITHOUT_PDS: "no_pds",
    Role.DOCUMENT_OF_ANOTHER: "bad_document",
}
_NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)
_TABLES = {LIKE: "likes", REPOST: "reposts", FOLLOW: "follows", BLOCK: "blocks"}


@dataclass(frozen=True, slots=True)
class AccountTruth:
    """How one account ends when nothing goes wrong on the way, as it stands at the moment.

    `directory_state` is `resolved`, `not_found`, `tombstoned`, `no_pds` or `bad_document`. `outcome` is that of
    a fetch: `complete`, or what the server says about the account; None for one that leads to no server.
    `pds`, `handle` and `signing_key` (did:key) are what a usable DID document says; `repo_rev` and `signed_by`
    (`current` or `previous`) are what a complete repository shows.
    """

    did: str
    role: Role
    directory_state: str
    outcome: str | None
    pds: str | None
    former_pds: str | None
    handle: str | None
    signing_key: str | None
    repo_rev: str | None
    signed_by: str | None

    @property
    def is_complete(self) -> bool:
        """Whether its repository can be had, whole and authentic."""
        return self.outcome == "complete"

    @property
    def state(self) -> str:
        """The outcome of its fetch or, where there was nothing to fetch, the directory's word."""
        return self.outcome or self.directory_state


@dataclass(frozen=True, slots=True)
class RecordTruth:
    """One record of a complete account.

    `value` is plain JSON data with `$link` and `$bytes`, None for a record with a defect. `created_at` is the
    instant of its `createdAt`, None if that names none.
    """

    did: str
    collection: str
    rkey: str
    cid: str
    value: dict[str, Any] | None
    created_at: datetime | None
    defect: Defect | None

    @property
    def uri(self) -> str:
        """Its `at://` URI; of no use for a record with a bad key."""
        return f"at://{self.did}/{self.collection}/{self.rkey}"

    @property
    def created_at_raw(self) -> Any:
        """What its client wrote, of whatever type; None if it wrote nothing or null."""
        return None if self.value is None else self.value.get("createdAt")

    @property
    def is_undecodable(self) -> bool:
        """Whether its block is not DAG-CBOR."""
        return self.defect is Defect.UNDECODABLE

    @property
    def table(self) -> str | None:
        """The usual table that it belongs into; None for other lexicons and for records with a defect."""
        if self.value is None:
            return None
        if self.collection == POST:
            return "replies" if "reply" in self.value else "posts"
        return _TABLES.get(self.collection)

    def table_on_request(self, other_types: Collection[str]) -> str | None:
        """Name the table that it belongs into where profiles are wanted, and these types besides."""
        if self.value is None:
            return None
        if self.collection == PROFILE:
            return "profiles"
        return "other_records" if self.collection in other_types else self.table


def first_for_subject(records: Iterable[RecordTruth], fetched_at: datetime) -> dict[str, bool]:
    """Say by URI of each of these likes, reposts, follows and blocks whether it is its account's first of its subject.

    Those without a usable subject are left out; so is what has no date, or one that cannot be, from the first place.
    """

    def order(record: RecordTruth) -> tuple[bool, datetime, str]:
        created = record.created_at
        believed = created is not None and _NETWORK_START <= created <= fetched_at
        return (not believed, created if believed and created else _NETWORK_START, record.rkey)

    found: set[tuple[str, str, str]] = set()
    firsts = {}
    for record in sorted(records, key=order):
        target = (record.value or {}).get("subject")
        if record.collection in (LIKE, REPOST):
            target = target.get("uri") if isinstance(target, dict) else None
        if isinstance(target, str) and target.startswith(("did:", "at://")):
            firsts[record.uri] = (record.did, record.collection, target) not in found
            found.add((record.did, record.collection, target))
    return firsts


@dataclass(frozen=True, slots=True)
class _Asked:
    """What records are kept under: an account in one of its states."""

    did: str
    edition: int
    state: AccountState = field(compare=False)


class Truth:
    """What is true of one population, and follows every edit.

    What was returned stays as it was, so that earlier and later can be compared. Records are generated when
    they are asked for, and a few kept.
    """

    def __init__(self, accounts: Accounts, repos: Repos) -> None:
        self._accounts = accounts
        self._repos = repos
        self._records = lru_cache(maxsize=256)(self._generate)

    def accounts(self) -> list[AccountTruth]:
        """List all accounts, in the order of the population."""
        return [_account_truth(state) for state in self._accounts.all()]

    def account(self, did: str) -> AccountTruth:
        """Say how one account ends. Raises KeyError for a DID of no account."""
        return _account_truth(self._accounts[did])

    def records(self, did: str) -> list[RecordTruth]:
        """List the records of an account in the order of their keys; none for one that is not complete."""
        state = self._accounts[did]
        return (
            list(self._records(_Asked(did, state.edition, state)))
            if _account_truth(state).is_complete
            else []
        )

    def commit_cid(self, did: str) -> str:
        """Name the commit of an account's repository. Writes the whole repository."""
        return cid_text(self._repos.build(self._accounts[did]).commit)

    def _generate(self, asked: _Asked) -> tuple[RecordTruth, ...]:
        records = [_record_truth(asked.did, written) for written in self._repos.records(asked.state)]
        return tuple(sorted(records, key=lambda record: f"{record.collection}/{record.rkey}".encode()))


def _account_truth(state: AccountState) -> AccountTruth:
    role, identity = state.account.role, state.identity
    directory_state = "tombstoned" if state.tombstoned else _DIRECTORY_STATES.get(role, "resolved")
    is_resolved = directory_state == "resolved"
    outcome = _outcome(state.status) if is_resolved else None
    is_complete = outcome == "complete"
    former = state.former_host
    signed_by = "current" if state.repo_key == identity.key else "previous"
    return AccountTruth(
        did=state.did,
        role=role,
        directory_state=directory_state,
        outcome=outcome,
        pds=identity.pds if is_resolved else None,
        former_pds=None if former is None else endpoint(former),
        handle=identity.handle if is_resolved else None,
        signing_key=f"did:key:{state.key(identity.key).multikey}" if is_resolved else None,
        repo_rev=state.rev if is_complete else None,
        signed_by=signed_by if is_complete else None,
    )


def _outcome(status: Status | None) -> str:
    if status is None:
        return "not_found"
    return "complete" if status is Status.ACTIVE else status.value


def _record_truth(did: str, written: Written) -> RecordTruth:
    return RecordTruth(
        did=did,
        collection=written.collection,
        rkey=written.rkey,
        cid=cid_text(record_block(written).cid),
        value=as_json(written.value) if written.defect is None else None,
        created_at=None if written.created is None else instant_of(written.created),
        defect=written.defect,
    )
