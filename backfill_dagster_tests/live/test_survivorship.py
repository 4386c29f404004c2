"""What happens to accounts of the official network between two collections, and what is told of it.

Opt in with `pytest --live`. The accounts are made, changed and moved by the servers' own methods; the operation that
moves one is signed with a recovery key that the test gave it.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import libipld
import polars as pl
import pytest
import yaml

from backfill_dagster import pipeline
from backfill_dagster.attrition.build import build_attrition
from backfill_dagster.attrition.steps import Step, Unit, totals
from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster.repos.cid import cid_text, dag_cbor_cid
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.survivorship.build import build_account_history, build_record_changes
from backfill_dagster_tests.live.official import official_network
from backfill_dagster_tests.live.people import PASSWORD, Person, call, join

pytestmark = pytest.mark.live

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
PLC_PORT = 2592


def migrate(person: Person, to: dict[str, Any], plc: str) -> None:
    """Move an account to another PDS, as the guide to account migration has it."""
    token = call(
        person.pds,
        "com.atproto.server.getServiceAuth",
        token=person.token,
        params={"aud": to["serviceDid"], "lxm": "com.atproto.server.createAccount"},
    )["token"]
    handle = f"{person.handle.split('.')[0]}{to['handleDomain']}"
    body = {"did": person.did, "handle": handle, "email": "moved@example.com", "password": PASSWORD}
    moved = call(to["url"], "com.atproto.server.createAccount", body, token)["accessJwt"]
    repo = httpx.get(f"{person.pds}/xrpc/com.atproto.sync.getRepo", params={"did": person.did}).content
    call(to["url"], "com.atproto.repo.importRepo", repo, moved)
    wanted = call(to["url"], "com.atproto.identity.getRecommendedDidCredentials", token=moved)
    last = httpx.get(f"{plc}/{person.did}/log/last").raise_for_status().json()
    operation = {
        **{name: value for name, value in last.items() if name != "sig"},
        **{name: wanted[name] for name in ("verificationMethods", "alsoKnownAs", "services")},
        "rotationKeys": [last["rotationKeys"][0], *wanted["rotationKeys"]],
        "prev": cid_text(dag_cbor_cid(libipld.encode_dag_cbor(last))),
    }
    signature = person.key.sign_recoverable(libipld.encode_dag_cbor(operation))[:64]
    operation["sig"] = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    answer = httpx.post(f"{plc}/{person.did}", json=operation)
    assert answer.status_code == 200, answer.text
    call(to["url"], "com.atproto.server.activateAccount", token=moved, verb="POST")
    call(person.pds, "com.atproto.server.deactivateAccount", {}, person.token)
    person.pds, person.token, person.handle = to["url"], moved, handle


@dataclass
class Watched:
    study: Study
    people: dict[str, Person]
    expected: set[tuple[str | None, ...]]
    before: pl.DataFrame
    after: pl.DataFrame
    manifest: dict[str, Any]
    handles: dict[str, list[str]]
    hosts: dict[str, list[str]]


def collect(study: Study, mode: FetchMode) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


@pytest.fixture(scope="module")
def watched(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with official_network(shared_dir, PLC_PORT, "--posts", "8", "--likes", "8", "--replies", "4") as manifest:
        one, two = manifest["pds"]
        people = {
            name: join(one, name) for name in ("author", "editor", "deleter", "sleeper", "renamed", "mover")
        }
        for person in people.values():
            for number in range(6):
                person.create(POST, text=f"post {number}")
            person.create(
                LIKE, subject={"uri": f"at://{person.did}/{POST}/x", "cid": next(iter(person.cids.values()))}
            )
        yield _watch(manifest, people, two, tmp_path_factory.mktemp("watched"))


def _watch(manifest: dict[str, Any], people: dict[str, Person], two: dict[str, Any], folder: Path) -> Watched:
    dids = [
        *(account["did"] for account in manifest["accounts"]),
        *(person.did for person in people.values()),
    ]
    body = {
        "name": "watched",
        "source": {"type": "inline", "dids": dids},
        "time_range": {"start_date": "2026-06-01", "end_date": "2026-09-30"},
        "storage": {"path": str(folder / "data")},
        "processing": {"requests_per_second": 200},
        "network": {
            "plc_url": f"http://localhost:{PLC_PORT}",
            "allow_private_addresses": True,
            "directory_max_age_hours": 0,
        },
    }
    (folder / "watched.yaml").write_text(yaml.safe_dump({"backfill": body}))
    study = load_study(folder / "watched.yaml")
    before = collect(study, FetchMode.UNSETTLED)
    homes = {name: [person.pds.partition("//")[2]] for name, person in people.items()}
    names = {name: [person.handle] for name, person in people.items()}
    expected = _change(people, two, manifest["plc"])
    for name, person in people.items():
        home = person.pds.partition("//")[2]
        homes[name] += [home] if home not in homes[name] else []
        names[name] += [person.handle] if person.handle not in names[name] else []
    after = collect(study, FetchMode.REFRESH)
    return Watched(study, people, expected, before, after, manifest, names, homes)


def _change(people: dict[str, Person], two: dict[str, Any], plc: str) -> set[tuple[str | None, ...]]:
    """Change the accounts, and return what must be told: DID, path, CID and what became of it."""
    expected: set[tuple[str | None, ...]] = set()
    author, editor, deleter = people["author"], people["editor"], people["deleter"]
    path = author.create(POST, text="a new one")
    expected.add((author.did, path, author.cids[path], "stands"))
    [path, *_] = editor.cids
    expected.add((editor.did, path, editor.cids[path], "changed"))
    expected.add((editor.did, path, editor.change(path, text="other words"), "stands"))
    gone = [path for path in deleter.cids if path.startswith(POST)][:3] + [
        path for path in deleter.cids if path.startswith(LIKE)
    ]
    for path in gone:
        deleter.delete(path)
        expected.add((deleter.did, path, deleter.cids[path], "deleted"))
    people["sleeper"].call("com.atproto.server.deactivateAccount", {})
    renamed = people["renamed"]
    handle = renamed.handle.replace("renamed", "another")
    renamed.call("com.atproto.identity.updateHandle", {"handle": handle})
    renamed.handle = handle
    mover = people["mover"]
    [lost, *_] = mover.cids
    mover.delete(lost)
    expected.add((mover.did, lost, mover.cids[lost], "deleted"))
    migrate(mover, two, plc)
    path = mover.create(POST, text="hello from elsewhere")
    expected.add((mover.did, path, mover.cids[path], "stands"))
    return expected


def test_every_change_of_a_record_and_no_other_is_told(watched: Watched) -> None:
    changes = pl.read_parquet(watched.study.root / "record_changes/*.parquet")
    path = pl.concat_str("collection", pl.lit("/"), "rkey")
    assert set(changes.select("did", path, "cid", "ended").iter_rows()) == watched.expected
    made = build_record_changes(watched.study)
    assert (made.rows, made.unaccounted, made.misfits, made.repeated) == (len(watched.expected), 0, 0, 0)


def test_states_hosts_and_handles_are_told_over_time(watched: Watched) -> None:
    assert build_account_history(watched.study).misfits == 0
    history = pl.read_parquet(watched.study.root / "account_history.parquet")
    for name, person in watched.people.items():
        own = history.filter(did=person.did)

        def values(aspect: str, own: pl.DataFrame = own) -> list[str]:
            return own.filter(aspect=aspect).sort("valid_from")["value"].to_list()

        assert values("state") == (["complete", "deactivated"] if name == "sleeper" else ["complete"])
        assert values("host") == watched.hosts[name]
        assert values("handle") == watched.handles[name]
    assert (
        len(watched.hosts["mover"]) == len(watched.handles["mover"]) == len(watched.handles["renamed"]) == 2
    )
    strangers = [account["did"] for account in watched.manifest["accounts"]]
    assert history.filter(pl.col("did").is_in(strangers), pl.col("valid_to").is_not_null()).is_empty()


def test_tables_hold_what_is_there_now(watched: Watched) -> None:
    gone = {(did, path) for did, path, _, ended in watched.expected if ended == "deleted"}
    tables = pl.concat(
        pl.read_parquet(path, columns=["did", "collection", "rkey", "cid"])
        for path in watched.study.root.glob("tables/*/*/*.parquet")
    )
    found = {(did, f"{kind}/{rkey}"): cid for did, kind, rkey, cid in tables.iter_rows()}
    assert not gone & found.keys()
    for did, path, cid, ended in watched.expected:
        if ended == "stands":
            assert found[str(did), str(path)] == cid
    asleep = watched.people["sleeper"].did
    assert asleep not in {did for did, _ in found}


def test_attrition_equals_the_truth(watched: Watched) -> None:
    made = build_attrition(watched.study)
    assert made.problems == ()
    accounts, records = (totals(made.table, unit) for unit in (Unit.ACCOUNTS, Unit.RECORDS))
    roles = [account["role"] for account in watched.manifest["accounts"]]
    absent = [role for role in roles if role in ("deactivated", "takendown", "deleted", "tombstoned")]
    assert accounts[Step.VALID][0] == len(roles) + len(watched.people)
    assert accounts[Step.RESOLVED][1] == roles.count("tombstoned")
    assert accounts[Step.COMPLETE][1] == len(absent) - roles.count("tombstoned")
    assert accounts[Step.ACTIVE][1:] == (1, accounts[Step.COMPLETE][2] - 1, {"deactivated": 1})
    fetchable = sum(record["fetchable"] for record in watched.manifest["records"])
    # Seven each, and what was written and deleted since.
    news = sum(1 for *_, ended in watched.expected if ended == "stands")
    ended = sum(1 for *_, ended in watched.expected if ended != "stands")
    assert records[Step.FOUND][2] == fetchable + 7 * len(watched.people) + news - ended
    assert records[Step.SHOWN][2] == watched.after["records_kept"].sum()
    names = [account["handle"] for account in watched.manifest["accounts"]]
    assert not any(
        name in made.methods for name in [*names, *(person.did for person in watched.people.values())]
    )
    rates = pl.read_parquet(watched.study.root / "deletion_rates.parquet").filter(
        watched="records", age="all ages"
    )
    deleted = sum(1 for *_, ended in watched.expected if ended == "deleted")
    assert rates["deleted"].sum() == deleted
