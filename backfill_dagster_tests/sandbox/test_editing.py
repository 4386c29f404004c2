from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import libipld
import pytest

from backfill_dagster.directory.audit_log import parse_audit_keys
from backfill_dagster.directory.documents import LookupFailedError, parse_document
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster.sandbox.account_state import Status
from backfill_dagster.sandbox.editing import Removal
from backfill_dagster.sandbox.faults import GET_REPO
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.repo import Repo, Repos
from backfill_dagster.sandbox.truth import AccountTruth
from backfill_dagster.sandbox.written import LIKE, POST, Defect, Written
from backfill_dagster_tests.repos.plain import PlainRepo, plain_repo

from .conftest import SMALL, Ask, Reply, asker

PLC = "plc.sandbox.test"
SYNC = "/xrpc/com.atproto.sync"
ByRole = Callable[[Role], AccountTruth]


@pytest.fixture(autouse=True)
def _as_at_first(network: SandboxNetwork) -> Iterator[None]:
    first = network.truth.accounts()
    yield
    network.edit.reset()
    assert network.truth.accounts() == first


@pytest.fixture
def account(by_role: ByRole) -> AccountTruth:
    return by_role(Role.UNICODE)


def host_of(account: AccountTruth) -> str:
    assert account.pds is not None
    return account.pds.removeprefix("http://")


def other_host(network: SandboxNetwork, account: AccountTruth) -> str:
    return next(host for host in network.hosts if host != host_of(account))


def export(ask: Ask, account: AccountTruth, host: str | None = None) -> Reply:
    return ask(host or host_of(account), f"{GET_REPO}?did={account.did}")


def proven(ask: Ask, network: SandboxNetwork, did: str) -> PlainRepo:
    """Fetch an account's repository from where its document says and prove it as the document says."""
    web = did.startswith("did:web:")
    answer = ask(did[8:], "/.well-known/did.json") if web else ask(PLC, f"/{did}")
    identity = parse_document(did, answer.body)
    assert identity.pds_host is not None
    keys = [SigningKey.from_multikey(identity.key_multibase or "")]
    earlier: list[SigningKey] = []
    if not web:
        log = ask(PLC, f"/{did}/log/audit").body
        earlier = [SigningKey.from_multikey(key) for _, key in parse_audit_keys(log)]
    body = ask(identity.pds_host, f"{GET_REPO}?did={did}").body
    return plain_repo(verify_repo(body, did=did, keys=keys, previous_keys=earlier), body)


def assert_truth_is_served(ask: Ask, network: SandboxNetwork, did: str) -> None:
    """Whatever was edited: repository, latest commit, status, list, document and truth say the same."""
    truth = network.truth.account(did)
    repo = proven(ask, network, did)
    records = network.truth.records(did)
    assert [
        f"{collection}/{rkey}" for collection, rkey in zip(repo.collections, repo.rkeys, strict=True)
    ] == [f"{record.collection}/{record.rkey}" for record in records]
    assert [libipld.encode_cid(cid) for cid in repo.cids] == [record.cid for record in records]
    assert (repo.rev, repo.signed_by) == (truth.repo_rev, truth.signed_by)
    host = host_of(truth)
    head = {"cid": libipld.encode_cid(repo.commit_cid), "rev": truth.repo_rev}
    assert ask(host, f"{SYNC}.getLatestCommit?did={did}").json == head
    status = {"did": did, "active": True, "rev": truth.repo_rev}
    assert ask(host, f"{SYNC}.getRepoStatus?did={did}").json == status
    assert listed(ask, host)[did] == {
        "did": did,
        "head": head["cid"],
        "rev": truth.repo_rev,
        "active": True,
    }


def listed(ask: Ask, host: str, limit: int = 1000) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    cursor = ""
    while True:
        page = ask(host, f"{SYNC}.listRepos?limit={limit}{cursor}").json
        found |= {entry["did"]: entry for entry in page["repos"]}
        if "cursor" not in page:
            return found
        cursor = f"&cursor={quote(page['cursor'], safe='')}"


def test_create_update_delete(network: SandboxNetwork, ask: Ask, account: AccountTruth) -> None:
    did, edit = account.did, network.edit
    revs = [account.repo_rev]
    before = network.truth.records(did)
    when = datetime(2024, 10, 7, 8, 9, 10, 123_456, tzinfo=UTC)

    rkey = edit.create(did, POST, {"text": "new"}, created=when)
    assert_truth_is_served(ask, network, did)
    [record] = [found for found in network.truth.records(did) if found not in before]
    assert (record.rkey, record.table) == (rkey, "posts")
    assert record.created_at == when.replace(microsecond=123_000)
    assert record.value == {"$type": POST, "text": "new", "createdAt": "2024-10-07T08:09:10.123Z"}
    revs.append(network.truth.account(did).repo_rev)

    edit.update(did, POST, rkey, {"text": "newer"}, created=when)
    assert_truth_is_served(ask, network, did)
    [updated] = [found for found in network.truth.records(did) if found not in before]
    assert (updated.rkey, updated.value) == (rkey, {**record.value, "text": "newer"})
    assert updated.cid != record.cid
    revs.append(network.truth.account(did).repo_rev)

    edit.delete(did, POST, rkey)
    assert_truth_is_served(ask, network, did)
    assert network.truth.records(did) == before
    revs.append(network.truth.account(did).repo_rev)
    assert revs == sorted({str(rev) for rev in revs})


def test_records_of_the_beginning_can_be_changed_too(
    network: SandboxNetwork, ask: Ask, account: AccountTruth
) -> None:
    did, edit = account.did, network.edit
    first, second, *rest = network.truth.records(did)
    edit.delete(did, first.collection, first.rkey)
    edit.update(did, second.collection, second.rkey, {"text": "edited"})
    assert_truth_is_served(ask, network, did)
    assert network.truth.records(did)[1:] == rest
    # What was deleted can come again.
    assert edit.create(did, first.collection, {"text": "again"}, rkey=first.rkey) == first.rkey
    assert_truth_is_served(ask, network, did)
    assert len(network.truth.records(did)) == len(rest) + 2
    edit.delete(did, first.collection, first.rkey)
    with pytest.raises(ValueError, match="has no record"):
        edit.delete(did, first.collection, first.rkey)


def test_many_changes_are_one_commit(network: SandboxNetwork, ask: Ask, account: AccountTruth) -> None:
    did = account.did
    gone = network.truth.records(did)[0]
    odd = Written(POST, "odd", {"$type": POST, "createdAt": "never"}, None)
    bad = Written(LIKE, "bad", ["no map"], None, Defect.NOT_A_MAP)
    rev = network.edit.write(did, odd, bad, Removal(gone.collection, gone.rkey))
    assert rev == network.truth.account(did).repo_rev
    assert_truth_is_served(ask, network, did)
    found = {record.rkey: record for record in network.truth.records(did)}
    assert (found["odd"].created_at, found["odd"].created_at_raw) == (None, "never")
    assert (found["bad"].value, found["bad"].defect) == (None, Defect.NOT_A_MAP)
    assert gone.rkey not in found
    # A commit may change nothing but the revision.
    records = network.truth.records(did)
    assert network.edit.write(did) > rev
    assert network.truth.records(did) == records
    assert_truth_is_served(ask, network, did)


def test_an_empty_repository_fills_and_empties(network: SandboxNetwork, ask: Ask, by_role: ByRole) -> None:
    did = by_role(Role.EMPTY).did
    for number in range(20):
        network.edit.create(did, LIKE, {"number": number}, rkey=f"key{number}")
    assert_truth_is_served(ask, network, did)
    for number in range(20):
        network.edit.delete(did, LIKE, f"key{number}")
    assert_truth_is_served(ask, network, did)
    assert network.truth.records(did) == []


def test_what_cannot_be_done_changes_nothing(
    network: SandboxNetwork, account: AccountTruth, by_role: ByRole
) -> None:
    edit, did = network.edit, account.did
    record = network.truth.records(did)[0]
    before = network.truth.accounts()
    nobody = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
    gone, web = by_role(Role.NOT_FOUND).did, by_role(Role.DID_WEB).did
    attempts: list[Callable[[], object]] = [
        lambda: edit.create(did, record.collection, {}, rkey=record.rkey),
        lambda: edit.create(did, POST, {"createdAt": "2024"}),
        lambda: edit.update(did, POST, "nothing", {}),
        lambda: edit.delete(did, POST, "nothing"),
        lambda: edit.write(did, Written(POST, "new", {}, None), Removal(POST, "nothing")),
        lambda: edit.write(by_role(Role.DEACTIVATED).did),
        lambda: edit.write(gone),
        lambda: edit.deactivate(gone),
        lambda: edit.delete_account(gone),
        lambda: edit.migrate(gone, network.hosts[0]),
        lambda: edit.migrate(did, host_of(account)),
        lambda: edit.migrate(did, "elsewhere.test"),
        lambda: edit.tombstone(web),
        lambda: edit.tombstone(by_role(Role.TOMBSTONED).did),
        lambda: edit.tombstone(by_role(Role.UNKNOWN_TO_PLC).did),
        lambda: edit.change_handle(by_role(Role.TOMBSTONED).did, "x.test"),
        lambda: edit.change_handle(by_role(Role.UNKNOWN_TO_PLC).did, "x.test"),
        lambda: edit.change_handle(by_role(Role.DID_WEB_GONE).did, "x.test"),
        lambda: edit.rotate_key(web),
        lambda: edit.migrate(web, other_host(network, by_role(Role.DID_WEB))),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError):
            attempt()
    for unknown in (edit.write, edit.deactivate, edit.tombstone, edit.rotate_key, edit.delete_account):
        with pytest.raises(KeyError):
            unknown(nobody)
    assert network.truth.accounts() == before


@pytest.mark.parametrize(
    ("status", "error", "named"),
    [
        (Status.DEACTIVATED, "RepoDeactivated", "deactivated"),
        (Status.TAKENDOWN, "RepoTakendown", "takendown"),
        (Status.SUSPENDED, "RepoSuspended", "suspended"),
        (Status.DELETED, "RepoNotFound", "deleted"),
        (Status.DESYNCHRONIZED, "RepoDeactivated", "desynchronized"),
        (Status.THROTTLED, "RepoDeactivated", "throttled"),
        (Status.INACTIVE, "RepoDeactivated", None),
    ],
)
def test_states_of_an_account(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, status: Status, error: str, named: str | None
) -> None:
    did, host = account.did, host_of(account)
    records = network.truth.records(did)
    network.edit.set_status(did, status)
    told = network.truth.account(did)
    assert (told.directory_state, told.outcome, told.repo_rev) == ("resolved", status.value, None)
    assert network.truth.records(did) == []
    for method in ("getRepo", "getLatestCommit"):
        reply = ask(host, f"{SYNC}.{method}?did={did}")
        assert (reply.status, reply.json["error"]) == (400, error)
    said = {"active": False} if named is None else {"active": False, "status": named}
    assert ask(host, f"{SYNC}.getRepoStatus?did={did}").json == {"did": did, **said}
    entry = listed(ask, host)[did]
    assert {key: entry[key] for key in entry if key in ("active", "status")} == said

    network.edit.reactivate(did)
    assert network.truth.account(did) == account
    assert network.truth.records(did) == records
    assert_truth_is_served(ask, network, did)


def test_the_named_states(network: SandboxNetwork, account: AccountTruth, by_role: ByRole) -> None:
    edit = network.edit
    for change, outcome in (
        (edit.deactivate, "deactivated"),
        (edit.take_down, "takendown"),
        (edit.suspend, "suspended"),
        (edit.reactivate, "complete"),
        (edit.delete_account, "not_found"),
    ):
        change(account.did)
        assert network.truth.account(account.did).outcome == outcome
    dormant = by_role(Role.DEACTIVATED)
    edit.reactivate(dormant.did)
    assert network.truth.records(dormant.did)


def test_a_deleted_account_is_forgotten_by_its_host_only(
    network: SandboxNetwork, ask: Ask, account: AccountTruth
) -> None:
    did, host = account.did, host_of(account)
    network.edit.delete_account(did)
    for method in ("getRepo", "getLatestCommit", "getRepoStatus"):
        assert ask(host, f"{SYNC}.{method}?did={did}").json["error"] == "RepoNotFound"
    assert did not in listed(ask, host)
    assert listed(ask, host, limit=1) == listed(ask, host)
    assert parse_document(did, ask(PLC, f"/{did}").body).pds_host == host
    assert network.truth.account(did).state == "not_found"

    network.edit.tombstone(did)
    reply = ask(PLC, f"/{did}")
    assert (reply.status, reply.json) == (410, {"message": f"DID not available: {did}"})
    log = ask(PLC, f"/{did}/log/audit").json
    assert [entry["operation"]["type"] for entry in log] == ["plc_operation", "plc_tombstone"]
    assert log[-1]["operation"]["prev"] == log[-2]["cid"]
    told = network.truth.account(did)
    assert (told.state, told.outcome, told.pds, told.handle) == ("tombstoned", None, None, None)


def test_a_tombstone_alone_leaves_the_host_as_it_is(
    network: SandboxNetwork, ask: Ask, account: AccountTruth
) -> None:
    network.edit.tombstone(account.did)
    assert export(ask, account).status == 200
    assert network.truth.account(account.did).state == "tombstoned"
    with pytest.raises(LookupFailedError):
        parse_document(account.did, ask(PLC, f"/{account.did}").body)


@pytest.mark.parametrize("new_key", [False, True])
def test_migration(network: SandboxNetwork, ask: Ask, account: AccountTruth, new_key: bool) -> None:
    did, old, new = account.did, host_of(account), other_host(network, account)
    body = export(ask, account).body
    network.edit.migrate(did, new, new_key=new_key)

    told = network.truth.account(did)
    assert (told.pds, told.former_pds) == (f"http://{new}", account.pds)
    assert (told.signing_key != account.signing_key) is new_key
    assert told.signed_by == ("previous" if new_key else "current")
    assert told.repo_rev == account.repo_rev
    assert_truth_is_served(ask, network, did)
    # The repository went as it was, and the old host keeps it to itself.
    assert export(ask, account, new).body == body
    refused = export(ask, account, old)
    assert (refused.status, refused.json["error"]) == (400, "RepoDeactivated")
    assert listed(ask, old)[did]["status"] == "deactivated"
    log = ask(PLC, f"/{did}/log/audit").json
    assert [entry["operation"]["services"]["atproto_pds"]["endpoint"] for entry in log] == [
        f"http://{old}",
        f"http://{new}",
    ]
    assert log[1]["operation"]["prev"] == log[0]["cid"]

    network.edit.write(did)
    assert network.truth.account(did).signed_by == "current"
    assert_truth_is_served(ask, network, did)

    # And back again.
    network.edit.migrate(did, old)
    told = network.truth.account(did)
    assert (told.pds, told.former_pds) == (f"http://{old}", f"http://{new}")
    assert_truth_is_served(ask, network, did)
    assert export(ask, account, new).json["error"] == "RepoDeactivated"


def test_an_account_that_moved_before_may_move_on(network: SandboxNetwork, ask: Ask, by_role: ByRole) -> None:
    account = by_role(Role.PREVIOUS_KEY)
    third = next(host for host in network.hosts if f"http://{host}" not in (account.pds, account.former_pds))
    network.edit.migrate(account.did, third)
    assert_truth_is_served(ask, network, account.did)
    assert network.truth.account(account.did).former_pds == account.pds
    for former in (account.pds, account.former_pds):
        assert export(ask, account, str(former)[7:]).json["error"] == "RepoDeactivated"
    keys = [key for _, key in parse_audit_keys(ask(PLC, f"/{account.did}/log/audit").body)]
    assert len(keys) == 3


def test_a_did_web_moves_and_writes(network: SandboxNetwork, ask: Ask, by_role: ByRole) -> None:
    account = by_role(Role.DID_WEB)
    network.edit.migrate(account.did, other_host(network, account), new_key=False)
    network.edit.change_handle(account.did, "renamed.test")
    network.edit.create(account.did, POST, {"text": "from elsewhere"})
    assert_truth_is_served(ask, network, account.did)
    assert network.truth.account(account.did).handle == "renamed.test"


def test_keys_and_handles(network: SandboxNetwork, ask: Ask, account: AccountTruth) -> None:
    did = account.did
    seen = [account.signing_key]
    for _ in range(3):
        network.edit.rotate_key(did)
        told = network.truth.account(did)
        assert told.signed_by == "previous"
        assert_truth_is_served(ask, network, did)
        network.edit.create(did, POST, {"text": "signed anew"})
        assert_truth_is_served(ask, network, did)
        seen.append(told.signing_key)
    assert len(set(seen)) == 4
    network.edit.change_handle(did, "another.name.test")
    told = network.truth.account(did)
    assert (told.handle, told.signed_by, told.signing_key) == ("another.name.test", "current", seen[-1])
    document = parse_document(did, ask(PLC, f"/{did}").body)
    assert document.handle == "another.name.test"
    log = ask(PLC, f"/{did}/log/audit").json
    assert [entry["operation"]["prev"] for entry in log] == [None, *(entry["cid"] for entry in log[:-1])]
    assert [entry["createdAt"] for entry in log] == sorted({entry["createdAt"] for entry in log})


def test_who_follows_the_directorys_export_sees_each_edit_once(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, by_role: ByRole
) -> None:
    def page(after: str) -> list[dict[str, Any]]:
        lines = ask(PLC, f"/export?count=1000&after={after}").body.splitlines()
        return [libipld_json(line) for line in lines]

    before = page("")
    assert page(before[-1]["createdAt"]) == []
    network.edit.change_handle(account.did, "one.test")
    network.edit.rotate_key(by_role(Role.FLOATS).did)
    network.edit.tombstone(by_role(Role.EMPTY).did)
    news = page(before[-1]["createdAt"])
    assert [entry["did"] for entry in news] == [
        account.did,
        by_role(Role.FLOATS).did,
        by_role(Role.EMPTY).did,
    ]
    assert page("") == before + news
    numbered = page(str(len(before)))
    assert [entry["seq"] for entry in numbered] == [len(before) + number for number in (1, 2, 3)]


def libipld_json(line: bytes) -> dict[str, Any]:
    import orjson

    found: dict[str, Any] = orjson.loads(line)
    return found


def play(network: SandboxNetwork) -> None:
    first, second, third = [
        found.did
        for found in network.truth.accounts()
        if found.role in (Role.UNICODE, Role.FLOATS, Role.EMPTY)
    ]
    edit = network.edit
    edit.create(first, POST, {"text": "a"})
    edit.migrate(
        second, next(host for host in network.hosts if f"http://{host}" != network.truth.account(second).pds)
    )
    edit.create(second, POST, {"text": "b"})
    edit.rotate_key(third)
    edit.change_handle(first, "c.test")
    edit.delete_account(third)


def test_the_same_edits_give_the_same_network(network: SandboxNetwork, ask: Ask) -> None:
    with SandboxNetwork(SMALL) as twin:
        ask_twin = asker(twin)
        play(network)
        edited = network.truth.accounts()
        network.edit.reset()
        play(network)
        play(twin)
        assert network.truth.accounts() == twin.truth.accounts() == edited
        for account in edited:
            if account.is_complete:
                assert export(ask, account).body == export(ask_twin, account).body
            if account.did.startswith("did:plc:"):
                path = f"/{account.did}/log/audit"
                assert ask(PLC, path).body == ask_twin(PLC, path).body


def test_a_list_writes_only_what_has_changed(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(account)
    listed(ask, host)
    built: list[str] = []
    build = Repos.build

    def counting(self: Repos, state: Any, *rest: Any) -> Repo:
        built.append(state.did)
        return build(self, state, *rest)

    monkeypatch.setattr(Repos, "build", counting)
    before = listed(ask, host, limit=3)
    assert built == []
    network.edit.create(account.did, POST, {"text": "new"})
    after = listed(ask, host, limit=3)
    assert built == [account.did]
    assert {did for did in before if before[did] != after[did]} == {account.did}
    assert list(after) == list(before)


def test_edits_while_others_read(network: SandboxNetwork, ask: Ask, account: AccountTruth) -> None:
    """Every export is whole and is one of the states there were, whatever the threads do meanwhile."""
    did = account.did
    writers, each = 4, 15
    done = threading.Event()

    def read() -> list[tuple[str, int]]:
        seen = []
        while True:
            ends = done.is_set()
            repo = proven(ask, network, did)
            seen.append((str(repo.rev), len(repo.rkeys)))
            if ends:
                return seen

    def write(number: int) -> list[str]:
        return [network.edit.create(did, POST, {"text": f"{number} {turn}"}) for turn in range(each)]

    first = len(network.truth.records(did))
    with ThreadPoolExecutor(writers + 2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        keys = [key for written in threads.map(write, range(writers)) for key in written]
        done.set()
        seen = [found for reader in readers for found in reader.result()]
    assert len(set(keys)) == writers * each
    assert_truth_is_served(ask, network, did)
    # One write, one record, one revision: so all agree on how many records each revision had.
    assert len(dict(seen)) == len(set(seen))
    assert seen[-1] == (network.truth.account(did).repo_rev, first + writers * each)
    ordered = sorted(set(seen))
    assert ordered == sorted(ordered, key=lambda found: found[1])
