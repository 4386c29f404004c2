"""Every answer beside the one that the official software gave to the same question."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import libipld
import pytest

from backfill_dagster.sandbox.faults import GET_REPO
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.servers import RateLimit
from backfill_dagster.sandbox.truth import AccountTruth

from .conftest import SMALL, Ask, Reply, asker

if TYPE_CHECKING:
    from pathlib import Path

ByRole = Callable[[Role], AccountTruth]
SYNC = "/xrpc/com.atproto.sync"
UNKNOWN = "did:plc:unknownaaaaaaaaaaaaaaaaa"
DID = re.compile(r"did:plc:[a-z2-7]{24}|did:plc:[a-zA-Z]+")


@dataclass(frozen=True)
class Exchange:
    status: int
    headers: dict[str, str]
    body: str


@pytest.fixture(scope="module")
def exchanges(shared_dir: Path) -> dict[tuple[str, str, str], Exchange]:
    """The captured exchanges by chapter (`A`, `G` …), section and title."""
    found: dict[tuple[str, str, str], Exchange] = {}
    text = (shared_dir / "realpds/responses.md").read_text()
    for chapter in re.split(r"^# (?=[A-Z]\. )", text, flags=re.MULTILINE)[1:]:
        for section in re.split(r"^## ", chapter, flags=re.MULTILINE)[1:]:
            for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
                block = re.search(r"```http\n\$ .*\nHTTP/1\.1 (\d+).*\n([\s\S]*?)\n\n([\s\S]*?)\n```", part)
                if block is None:
                    continue
                lines = (line.partition(": ") for line in block[2].splitlines())
                headers = {name.lower(): value for name, _, value in lines}
                title = part.splitlines()[0]
                found[chapter[0], section.splitlines()[0].split()[0], title] = Exchange(
                    int(block[1]), headers, block[3]
                )
    assert len(found) > 150
    return found


def shape(value: Any) -> Any:
    """What is left of JSON data without its values: keys and types, of lists that of each distinct member."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item), sort_keys=True) for item in value})
    return type(value).__name__


def assert_alike(reply: Reply, official: Exchange) -> None:
    assert reply.status == official.status
    headers = {name.lower(): value for name, value in reply.headers.items()}
    assert headers["content-type"] == official.headers["content-type"]
    assert headers.get("transfer-encoding") == official.headers.get("transfer-encoding")
    for name in ("cache-control", "vary", "content-encoding"):
        assert headers.get(name) == official.headers.get(name), name
    if official.body.startswith(("{", "[")):
        theirs, ours = json.loads(official.body), reply.json
        assert shape(ours) == shape(theirs)
        if isinstance(theirs, dict) and "message" in theirs:
            assert {key: DID.sub("<did>", text) for key, text in ours.items()} == {
                key: DID.sub("<did>", text) for key, text in theirs.items()
            }


def host_of(account: AccountTruth) -> str:
    assert account.pds is not None
    return account.pds.removeprefix("http://")


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("normal account (all headers)", Role.NORMAL),
        ("account without records", Role.EMPTY),
        ("deactivated", Role.DEACTIVATED),
        ("taken down", Role.TAKENDOWN),
        ("deleted (PLC entry still there)", Role.NOT_FOUND),
    ],
)
def test_get_repo_of_a_role(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, title: str, role: Role
) -> None:
    account = by_role(role)
    assert_alike(
        ask(host_of(account), f"{GET_REPO}?did={account.did}"),
        exchanges["A", "com.atproto.sync.getRepo", title],
    )


def test_suspended_is_told_as_the_lexicon_names_it(ask: Ask, by_role: ByRole) -> None:
    account = by_role(Role.SUSPENDED)
    reply = ask(host_of(account), f"{GET_REPO}?did={account.did}")
    assert reply.status == 400
    assert reply.json == {"error": "RepoSuspended", "message": f"Repo has been suspended: {account.did}"}


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("unknown DID", f"?did={UNKNOWN}"),
        ("malformed DID", "?did=notadid"),
        ("handle instead of DID", "?did=user001.pds1.test"),
        ("no parameter", ""),
    ],
)
def test_get_repo_of_nobody(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, title: str, query: str
) -> None:
    official = exchanges["A", "com.atproto.sync.getRepo", title]
    assert_alike(ask("pds1.sandbox.test", GET_REPO + query), official)


def test_get_repo_in_other_ways(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    account = by_role(Role.NORMAL)
    host, path = host_of(account), f"{GET_REPO}?did={account.did}"
    official = {
        key[2]: value for key, value in exchanges.items() if key[:2] == ("A", "com.atproto.sync.getRepo")
    }
    whole = ask(host, path)
    root = libipld.decode_car(whole.body)[0]["roots"][0]

    compressed = ask(host, path, Accept_Encoding="gzip")
    assert_alike(compressed, official["normal account, client accepts gzip"])
    assert gzip.decompress(compressed.body) == whole.body
    assert ask(host, path, Accept_Encoding="identity").body == whole.body

    nothing_new = ask(host, f"{path}&since={account.repo_rev}")
    assert_alike(nothing_new, official["normal account, since=<current rev>"])
    assert len(nothing_new.body) == 59
    assert libipld.decode_car(nothing_new.body) == ({"version": 1, "roots": [root]}, {})
    assert ask(host, f"{path}&since=2222222222222").body == whole.body

    assert_alike(ask(host, path, Range="bytes=100-"), official["Range request"])
    head = ask(host, path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert_alike(ask(host, path, method="POST"), official["POST"])

    other = next(name for name in network.hosts if name not in (host, account.former_pds))
    assert_alike(ask(other, path), official["lives on another PDS of the network"])


@pytest.mark.parametrize("role", [Role.MIGRATED, Role.PREVIOUS_KEY])
def test_accounts_that_moved(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, role: Role
) -> None:
    account = by_role(role)
    assert account.former_pds is not None
    former = account.former_pds.removeprefix("http://")
    path = f"{GET_REPO}?did={account.did}"
    assert_alike(ask(former, path), exchanges["A", "com.atproto.sync.getRepo", "migrated away: the old PDS"])
    assert ask(host_of(account), path).status == 200
    section = "com.atproto.sync.getRepoStatus"
    status = f"{SYNC}.getRepoStatus?did={account.did}"
    assert_alike(ask(former, status), exchanges["A", section, "getRepoStatus migrated, old PDS"])
    assert_alike(ask(host_of(account), status), exchanges["A", section, "getRepoStatus migrated, new PDS"])


@pytest.mark.parametrize(
    ("method", "title", "role"),
    [
        ("getRepoStatus", "getRepoStatus normal", Role.NORMAL),
        ("getRepoStatus", "getRepoStatus deactivated", Role.DEACTIVATED),
        ("getRepoStatus", "getRepoStatus taken down", Role.TAKENDOWN),
        ("getRepoStatus", "getRepoStatus deleted", Role.NOT_FOUND),
        ("getLatestCommit", "getLatestCommit normal", Role.NORMAL),
        ("getLatestCommit", "getLatestCommit deactivated", Role.DEACTIVATED),
    ],
)
def test_status_and_latest_commit(
    exchanges: dict[tuple[str, str, str], Exchange],
    ask: Ask,
    by_role: ByRole,
    method: str,
    title: str,
    role: Role,
) -> None:
    account = by_role(role)
    reply = ask(host_of(account), f"{SYNC}.{method}?did={account.did}")
    assert_alike(reply, exchanges["A", "com.atproto.sync.getRepoStatus", title])
    if role is Role.NORMAL:
        assert reply.json["rev"] == account.repo_rev
    if role in (Role.DEACTIVATED, Role.TAKENDOWN) and method == "getRepoStatus":
        assert reply.json["status"] == account.state


def test_the_latest_commit_is_the_one_of_the_export(
    ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    account = by_role(Role.UNICODE)
    host = host_of(account)
    told = ask(host, f"{SYNC}.getLatestCommit?did={account.did}").json["cid"]
    root = libipld.decode_car(ask(host, f"{GET_REPO}?did={account.did}").body)[0]["roots"][0]
    assert told == libipld.encode_cid(root) == network.truth.commit_cid(account.did)


def test_list_repos(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    official = {key[2]: value for key, value in exchanges.items() if key[1] == "com.atproto.sync.listRepos"}
    host = host_of(by_role(Role.DEACTIVATED))
    everything = ask(host, f"{SYNC}.listRepos?limit=1000")
    assert_alike(everything, official["everything (statuses)"])
    assert_alike(ask(host, f"{SYNC}.listRepos?limit=2"), official["first page"])
    assert_alike(ask(host, f"{SYNC}.listRepos?limit=5000"), official["limit out of range"])

    listed: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = ask(host, f"{SYNC}.listRepos?limit=3{cursor}").json
        listed += page["repos"]
        if "cursor" not in page:
            break
        cursor = f"&cursor={quote(page['cursor'], safe='')}"
    assert listed == everything.json["repos"]
    here = {
        account.did: account
        for account in network.truth.accounts()
        if f"http://{host}" in (account.pds, account.former_pds) and account.role is not Role.NOT_FOUND
    }
    # Accounts without a usable document are no business of their host's.
    assert set(here) <= {entry["did"] for entry in listed}
    for entry in listed:
        account = here.get(entry["did"])
        if account is not None and account.is_complete and account.pds == f"http://{host}":
            assert entry == {
                "did": account.did,
                "head": network.truth.commit_cid(account.did),
                "rev": account.repo_rev,
                "active": True,
            }


def test_other_paths_of_a_pds(exchanges: dict[tuple[str, str, str], Exchange], ask: Ask) -> None:
    assert_alike(ask("pds1.sandbox.test", "/xrpc/_health"), exchanges["A", "server", "_health"])
    unknown = ask("pds1.sandbox.test", "/xrpc/com.example.nothing")
    assert_alike(unknown, exchanges["A", "server", "unknown XRPC method"])
    assert ask("pds1.sandbox.test", "/elsewhere").status == 404


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("DID document (all headers)", Role.NORMAL),
        ("migrated account", Role.MIGRATED),
        ("account deleted on its PDS only", Role.NOT_FOUND),
        ("tombstoned", Role.TOMBSTONED),
        ("unknown DID", Role.UNKNOWN_TO_PLC),
    ],
)
def test_plc_documents(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, title: str, role: Role
) -> None:
    account = by_role(role)
    for path in (f"/{account.did}", f"/{quote(account.did, safe='')}"):
        reply = ask("plc.sandbox.test", path)
        assert reply.status == exchanges["G", "PLC", title].status
        if reply.status != 200:
            assert_alike(reply, exchanges["G", "PLC", title])
            continue
        assert shape(reply.json) == shape(json.loads(exchanges["G", "PLC", title].body))
        assert reply.headers["Content-Type"] == exchanges["G", "PLC", title].headers["content-type"]
        document = reply.json
        assert document["id"] == account.did
        assert document["alsoKnownAs"] == [f"at://{account.handle}"]
        assert document["service"][0]["serviceEndpoint"] == account.pds
        assert f"did:key:{document['verificationMethod'][0]['publicKeyMultibase']}" == account.signing_key


@pytest.mark.parametrize(
    ("title", "did"), [("malformed DID", "did:plc:UPPER"), ("other method", "did:web:example.com")]
)
def test_plc_knows_no_others(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, title: str, did: str
) -> None:
    reply, official = ask("plc.sandbox.test", f"/{did}"), exchanges["G", "PLC", title]
    assert (reply.status, reply.body.decode()) == (official.status, official.body)


def test_bad_documents(ask: Ask, by_role: ByRole) -> None:
    without = ask("plc.sandbox.test", f"/{by_role(Role.DOCUMENT_WITHOUT_PDS).did}").json
    assert [service["id"] for service in without["service"]] == ["#atproto_labeler"]
    did = by_role(Role.DOCUMENT_OF_ANOTHER).did
    assert ask("plc.sandbox.test", f"/{did}").json["id"] != did


def test_the_audit_log_holds_earlier_keys(
    exchanges: dict[tuple[str, str, str], Exchange], ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    account = by_role(Role.PREVIOUS_KEY)
    log = ask("plc.sandbox.test", f"/{account.did}/log/audit").json
    official = json.loads(exchanges["A", "PLC", "migrated /log/audit"].body)
    # Of the official log the first operation has no predecessor, and so has ours: two shapes each.
    assert shape(log) == shape(official)
    assert [entry["nullified"] for entry in log] == [False, True, False]
    assert [entry["createdAt"] for entry in log] == sorted(entry["createdAt"] for entry in log)
    keys = [entry["operation"]["verificationMethods"]["atproto"] for entry in log]
    assert keys[2] == account.signing_key
    previous = network.population.by_did[account.did].previous_key
    assert keys[0] == f"did:key:{previous.multikey}"
    assert len(set(keys)) == 3
    endpoints = [entry["operation"]["services"]["atproto_pds"]["endpoint"] for entry in log]
    assert (endpoints[0], endpoints[2]) == (account.former_pds, account.pds)
    tombstone = ask("plc.sandbox.test", f"/{by_role(Role.TOMBSTONED).did}/log/audit").json[-1]
    assert shape(tombstone["operation"]) == shape(
        json.loads(exchanges["G", "PLC", "tombstoned /log/last"].body)
    )


def test_the_directorys_export(ask: Ask, network: SandboxNetwork) -> None:
    everything: list[dict[str, Any]] = []
    after = ""
    while True:
        reply = ask("plc.sandbox.test", f"/export?count=7&after={after}")
        assert reply.headers["Content-Type"] == "application/jsonlines"
        page = [json.loads(line) for line in reply.body.splitlines()]
        if not page:
            break
        everything += page
        after = page[-1]["createdAt"]
    assert {entry["did"] for entry in everything} == {
        account.did
        for account in network.population.accounts
        if account.did.startswith("did:plc:") and account.role is not Role.UNKNOWN_TO_PLC
    }
    by_number = ask("plc.sandbox.test", "/export?count=1000&after=0").body.splitlines()
    numbered = [json.loads(line) for line in by_number]
    assert [entry.pop("seq") for entry in numbered] == list(range(1, len(everything) + 1))
    assert [entry.pop("type") for entry in numbered] == ["sequenced_op"] * len(numbered)
    assert numbered == [
        {name: value for name, value in entry.items() if name != "nullified"} for entry in everything
    ]
    rest = ask("plc.sandbox.test", f"/export?count=1000&after={len(everything) - 2}")
    assert [json.loads(line)["seq"] for line in rest.body.splitlines()] == [
        len(everything) - 1,
        len(everything),
    ]
    assert len(ask("plc.sandbox.test", "/export?count=1001").body.splitlines()) == len(everything)
    assert ask("plc.sandbox.test", "/export?count=0").status == 400
    assert ask("plc.sandbox.test", "/_health").status == 200


def test_the_relay_lists_who_has_records_of_a_collection(ask: Ask, network: SandboxNetwork) -> None:
    method = "/xrpc/com.atproto.sync.listReposByCollection"
    blocks = "app.bsky.graph.block"
    listed: list[str] = []
    cursor = ""
    for _ in range(100):
        page = ask("relay.sandbox.test", f"{method}?collection={blocks}&limit=7&cursor={quote(cursor)}").json
        listed += [repo["did"] for repo in page["repos"]]
        cursor = page.get("cursor", "")
        if not cursor:
            break
    having = {
        account.did
        for account in network.truth.accounts()
        if any(record.collection == blocks for record in network.truth.records(account.did))
    }
    # It also has accounts that the directory leads nobody to.
    assert having <= set(listed)
    assert len(listed) == len(set(listed)) > 7
    assert ask("relay.sandbox.test", f"{method}?collection=org.example.none").json == {"repos": []}
    assert ask("relay.sandbox.test", f"{method}?collection={blocks}&limit=2001").status == 400
    assert ask("relay.sandbox.test", method).status == 400
    assert ask("relay.sandbox.test", "/xrpc/com.atproto.sync.listRepos").status == 404


def test_did_web_hosts(ask: Ask, by_role: ByRole) -> None:
    account = by_role(Role.DID_WEB)
    host = account.did.removeprefix("did:web:")
    document = ask(host, "/.well-known/did.json").json
    assert document["id"] == account.did
    assert document["service"][0]["serviceEndpoint"] == account.pds
    assert ask(host, f"/{account.did}").status == 404
    gone = by_role(Role.DID_WEB_GONE).did.removeprefix("did:web:")
    assert ask(gone, "/.well-known/did.json").status == 404


def test_a_window_is_spent_as_on_the_official_server(exchanges: dict[tuple[str, str, str], Exchange]) -> None:
    with SandboxNetwork(SMALL, rate_limit=RateLimit(requests=5, seconds=60)) as network:
        ask = asker(network)
        account = next(found for found in network.truth.accounts() if found.role is Role.EMPTY)
        path = f"{GET_REPO}?did={account.did}"
        for number in range(1, 7):
            reply, official = ask(host_of(account), path), exchanges["E", "Rate", f"getRepo #{number}"]
            assert reply.status == official.status
            names = {name for name in official.headers if name.startswith(("ratelimit", "retry"))}
            ours = {name.lower(): value for name, value in reply.headers.items()}
            assert {name for name in ours if name.startswith(("ratelimit", "retry"))} == names
            assert ours["ratelimit-remaining"] == official.headers["ratelimit-remaining"]
            assert ours["ratelimit-policy"] == "5;w=60"
        assert reply.body.decode() == official.body
        other = next(host for host in network.hosts if host != host_of(account))
        assert ask(other, f"{SYNC}.listRepos?limit=1").status == 200
        assert ask(host_of(account), "/xrpc/_health").status == 200


LISTINGS = "com.atproto.repo.listRecords"
LIST_RECORDS = "/xrpc/com.atproto.repo.listRecords"
GET_RECORD = "/xrpc/com.atproto.sync.getRecord"
POST = "app.bsky.feed.post"


@pytest.mark.parametrize(
    ("title", "role", "query"),
    [
        ("deactivated", Role.DEACTIVATED, f"collection={POST}&limit=1"),
        ("taken down", Role.TAKENDOWN, f"collection={POST}&limit=1"),
        ("deleted", Role.NOT_FOUND, f"collection={POST}&limit=1"),
        ("collection without records", Role.NORMAL, "collection=com.example.none&limit=1"),
        ("limit=500", Role.NORMAL, f"collection={POST}&limit=500"),
    ],
)
def test_list_records_of_a_role(
    exchanges: dict[tuple[str, str, str], Exchange],
    ask: Ask,
    by_role: ByRole,
    title: str,
    role: Role,
    query: str,
) -> None:
    account = by_role(role)
    reply = ask(host_of(account), f"{LIST_RECORDS}?repo={account.did}&{query}")
    assert_alike(reply, exchanges["A", LISTINGS, title])


def test_list_records_goes_through_a_collection_from_the_highest_key(
    ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    account = by_role(Role.NORMAL)
    likes = [record for record in network.truth.records(account.did) if record.table == "likes"]
    listed: list[dict[str, Any]] = []
    cursor = ""
    while True:
        path = f"{LIST_RECORDS}?repo={account.did}&collection=app.bsky.feed.like&limit=3{cursor}"
        body = ask(host_of(account), path).json
        listed += body["records"]
        assert len(body["records"]) <= 3
        if "cursor" not in body:
            break
        cursor = f"&cursor={body['cursor']}"
    assert listed == [
        {"uri": record.uri, "cid": record.cid, "value": record.value} for record in reversed(likes)
    ]
    assert len(listed) > 3


@pytest.mark.parametrize("role", [Role.DEACTIVATED, Role.TAKENDOWN, Role.NOT_FOUND])
def test_get_record_says_of_accounts_what_get_repo_says(ask: Ask, by_role: ByRole, role: Role) -> None:
    account = by_role(role)
    host = host_of(account)
    record = ask(host, f"{GET_RECORD}?did={account.did}&collection={POST}&rkey=a")
    assert record.body == ask(host, f"{GET_REPO}?did={account.did}").body
    assert record.status == 400


def test_get_record_gives_a_part_of_the_repository(
    ask: Ask, by_role: ByRole, network: SandboxNetwork
) -> None:
    account = by_role(Role.NORMAL)
    host = host_of(account)
    whole = ask(host, f"{GET_REPO}?did={account.did}")
    header, blocks = libipld.decode_car(whole.body)
    record = network.truth.records(account.did)[0]
    path = f"{GET_RECORD}?did={account.did}&collection={record.collection}&rkey={record.rkey}"
    part_header, part = libipld.decode_car(ask(host, path).body)
    assert part_header == header
    assert 3 <= len(part) < len(blocks)
    assert {cid: blocks[cid] for cid in part} == part
    assert libipld.decode_cid(record.cid)["hash"]["digest"] in {cid[4:] for cid in part}
    for missing in ("did", "collection", "rkey"):
        reply = ask(host, re.sub(rf"{missing}=[^&]*&?", "", path))
        message = f'Invalid com.atproto.sync.getRecord params: Missing required key "{missing}"'
        assert reply.json == {"error": "InvalidRequest", "message": message}
