"""Studies that ask for less than repositories: single records with their proofs, and listings without any."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline, purging
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import RECORD_TYPES, Study
from backfill_dagster.repos.packs import PACK_SCHEMA, pack_keys
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox import faults
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.servers import RateLimit
from backfill_dagster.sandbox.truth import RecordTruth
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import unaccounted, unreconciled
from backfill_dagster_tests.studies import sandbox_study

SETTINGS = SandboxSettings(seed=31, accounts=40, hosts=2, records=12)
GET_REPO = "/xrpc/com.atproto.sync.getRepo"
GET_RECORD = "/xrpc/com.atproto.sync.getRecord"
LIST_RECORDS = "/xrpc/com.atproto.repo.listRecords"
POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"


@pytest.fixture(scope="module")
def servers() -> Iterator[SandboxNetwork]:
    # Whose limits do not slow down one who asks for each record by itself.
    with SandboxNetwork(SETTINGS, rate_limit=RateLimit(requests=1_000_000)) as network:
        yield network


@pytest.fixture
def network(servers: SandboxNetwork) -> SandboxNetwork:
    servers.edit.reset()
    servers.faults.clear()
    servers.requests.clear()
    return servers


def study_of(
    servers: SandboxNetwork, folder: Path, fetch: str, uris: Sequence[str] = (), **parts: Any
) -> Study:
    if fetch == "records":
        by_type = {kind: [uri for uri in uris if f"/{kind}/" in uri] for kind in RECORD_TYPES}
        parts["filters"] = {
            kind: {"uris": {"type": "inline", "uris": listed}} for kind, listed in by_type.items() if listed
        }
        parts.setdefault("record_types", [kind for kind, listed in by_type.items() if listed])
    reached = {
        "sandbox": None,
        "plc_url": servers.plc_url,
        "connect_to": servers.connect_to,
        "allow_private_addresses": True,
        "directory_max_age_hours": 0,
    }
    return sandbox_study(
        folder,
        settings=SETTINGS,
        fetch=fetch,
        **{
            "source": {"type": "inline", "dids": servers.dids},
            "time_range": {"start_date": "2024-09-27", "end_date": "2024-12-02"},
            "processing": {"requests_per_second": 1000, "workers": 2, "max_retries": 1},
            **parts,
            "network": {**reached, **parts.get("network", {})},
        },
    )


def collect(study: Study, mode: FetchMode = FetchMode.UNSETTLED) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


def rows(study: Study) -> pl.DataFrame:
    paths = [*study.root.glob("tables/*/*/*.parquet"), *study.root.glob("undated/*/*.parquet")]
    names = ("uri", "cid", "record", "created_at_raw", "obtained")
    return pl.concat([pl.read_parquet(path).select(names) for path in paths]).sort("uri")


def packs(study: Study) -> pl.DataFrame:
    storage = StudyStorage(study.root)
    return pl.concat([storage.scan([key], PACK_SCHEMA).collect() for *_, key in pack_keys(storage)])


def rejects(study: Study) -> pl.DataFrame:
    paths = sorted(study.root.glob("records/*/rejects/*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in paths])


def usable(network: SandboxNetwork) -> list[RecordTruth]:
    """Every record that has a table."""
    return [
        record
        for truth in network.truth.accounts()
        for record in network.truth.records(truth.did)
        if record.table is not None
    ]


def is_changed_by_javascript(value: Any) -> bool:
    """Tell whether a value holds a number that JSON, as JavaScript writes it, does not give back."""
    if isinstance(value, dict):
        return any(map(is_changed_by_javascript, value.values()))
    if isinstance(value, list):
        return any(map(is_changed_by_javascript, value))
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and abs(value) > 2**53 and int(float(value)) != value


def asked(network: SandboxNetwork) -> Counter[str]:
    return Counter(request.path for request in network.requests.all() if "/xrpc/" in request.path)


@pytest.fixture(scope="module")
def whole(servers: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, pl.DataFrame]:
    servers.edit.reset()
    servers.faults.clear()
    study = study_of(servers, tmp_path_factory.mktemp("whole"), "repos")
    return study, collect(study)


def test_every_record_by_itself_is_the_same_as_in_its_repository(
    network: SandboxNetwork, tmp_path: Path, whole: tuple[Study, pl.DataFrame]
) -> None:
    records = usable(network)
    study = study_of(network, tmp_path, "records", [record.uri for record in records])
    accounts = collect(study)

    one_by_one, together = rows(study), rows(whole[0])
    assert one_by_one.drop("obtained").equals(together.drop("obtained"))
    assert one_by_one.height == len(records) > 300
    assert set(one_by_one["obtained"]) == {"record_proof"}
    assert asked(network)[GET_REPO] == 0
    assert unreconciled(accounts).is_empty()
    signed = accounts.filter(pl.col("repo_rev").is_not_null()).select("did", "repo_rev", "signed_by")
    of_repos = whole[1].filter(pl.col("did").is_in(signed["did"].implode()))
    assert signed.sort("did").equals(of_repos.select("did", "repo_rev", "signed_by").sort("did"))

    network.requests.clear()
    again = collect(study)
    assert again.equals(accounts)
    assert asked(network)[GET_RECORD] == 0


def test_a_listing_gives_what_a_repository_does_and_says_that_nothing_is_proven(
    network: SandboxNetwork, tmp_path: Path, whole: tuple[Study, pl.DataFrame]
) -> None:
    study = study_of(network, tmp_path, "list_records")
    accounts = collect(study)
    listed, together = rows(study), rows(whole[0])
    changed = {record.uri for record in usable(network) if is_changed_by_javascript(record.value)}
    rejected = rejects(study)
    assert set(rejected.filter(reason="cid_mismatch")["uri"]) >= changed != set()
    sound = together.filter(~pl.col("uri").is_in(changed))
    assert listed.drop("obtained").equals(sound.drop("obtained"))
    assert set(listed["obtained"]) == {"list_records"}
    assert asked(network)[GET_REPO] == 0
    assert unreconciled(accounts).is_empty()
    assert accounts["records_rejected"].sum() == rejected.height
    assert accounts["signed_by"].null_count() == accounts.height
    of_repos = whole[1].select("did", "repo_rev", "state")
    assert accounts.select("did", "repo_rev", "state").equals(of_repos)

    network.requests.clear()
    again = collect(study)
    assert again.equals(accounts)
    assert asked(network)[LIST_RECORDS] == 0


def row(accounts: pl.DataFrame, did: str) -> dict[str, Any]:
    return accounts.filter(pl.col("did") == did).row(0, named=True)


def posts_of(network: SandboxNetwork, most: int, role: Role = Role.NORMAL) -> dict[str, list[str]]:
    """So many posts of each account of a role that has as many, by account."""
    found = {}
    for truth in network.truth.accounts():
        if truth.role is role and truth.is_complete and not truth.did.startswith("did:web:"):
            uris = [record.uri for record in network.truth.records(truth.did) if record.collection == POST]
            found[truth.did] = uris[:most]
    return {did: uris for did, uris in found.items() if len(uris) == most}


def ghost(did: str, number: int = 0) -> str:
    """A record that nobody has written."""
    return f"at://{did}/{POST}/3kaaaaaaaaa{number:02d}"


def test_what_is_not_there_is_counted_and_told_by_its_uri(network: SandboxNetwork, tmp_path: Path) -> None:
    posts = posts_of(network, 2)
    author, loner, *_ = posts
    uris = [*(uri for listed in posts.values() for uri in listed), ghost(author, 1), ghost(author, 2)]
    uris = [uri for uri in uris if loner not in uri] + [ghost(loner)]
    study = study_of(network, tmp_path, "records", uris)
    accounts = collect(study)

    assert row(accounts, author)["records_absent"] == 2
    assert row(accounts, author)["records_fetched"] == row(accounts, author)["records_kept"] == 2
    only_ghosts = row(accounts, loner)
    assert (only_ghosts["state"], only_ghosts["records_fetched"]) == ("complete", 0)
    assert only_ghosts["repo_rev"] == network.truth.account(loner).repo_rev
    assert only_ghosts["signed_by"] is not None
    missing = rejects(study).select("uri", "reason").rows()
    assert sorted(missing) == sorted((ghost(*of), "absent") for of in ((author, 1), (author, 2), (loner, 0)))
    found = set(rows(study)["uri"])
    assert found | {uri for uri, _ in missing} == set(uris)
    assert unreconciled(accounts).is_empty()
    assert accounts["records_rejected"].sum() == 0
    # Of everyone else nothing is asked, and nobody was.
    source = accounts.filter(~pl.col("did").is_in(list(posts)) & (pl.col("state") != "unresolved"))
    assert set(source["state"]) <= {"nothing_asked", "tombstoned"}
    assert {request.did for request in network.requests.all(path=GET_RECORD)} == set(posts)
    assert unaccounted(accounts, accounts.select("did")).is_empty()


def test_another_list_fetches_what_it_concerns_and_nothing_else(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    posts = posts_of(network, 3)
    kept, longer, left, new, *_ = posts
    first = [*posts[kept], *posts[longer][:1], *posts[left]]
    before = collect(study_of(network, tmp_path, "records", first))
    assert {did for did in posts if row(before, did)["state"] == "complete"} == {kept, longer, left}

    second = [*posts[kept], *posts[longer], *posts[new]]
    study = study_of(network, tmp_path, "records", second)
    pipeline.fetch_repos(study, only_dids=[kept])
    assert {did for did in posts if row(pipeline.build_tables(study), did)["state"] == "pending"} == {
        longer,
        new,
    }
    network.requests.clear()
    accounts = collect(study)
    assert {request.did for request in network.requests.all(path=GET_RECORD)} == {longer, new}
    assert set(rows(study)["uri"]) == set(second)
    assert row(accounts, left)["state"] == "nothing_asked"
    assert unreconciled(accounts).is_empty()

    # The first list again: it is asked for again, but of those that it is another list for.
    network.requests.clear()
    back = study_of(network, tmp_path, "records", first)
    collect(back)
    assert {request.did for request in network.requests.all(path=GET_RECORD)} == {longer}
    assert set(rows(back)["uri"]) == set(first)


def test_another_way_of_fetching_fetches_again(network: SandboxNetwork, tmp_path: Path) -> None:
    posts = posts_of(network, 2)
    uris = [uri for listed in posts.values() for uri in listed]
    record_types = [POST]
    collect(study_of(network, tmp_path, "records", uris))
    whole = study_of(network, tmp_path, "repos", record_types=record_types)
    assert set(pipeline.fetch_repos(whole)[0].outcomes) >= {"complete"}
    accounts = collect(whole)
    assert set(accounts.filter(pl.col("obtained").is_not_null())["obtained"]) == {"repo"}
    assert set(rows(whole)["uri"]) == {record.uri for record in usable(network) if record.collection == POST}

    listed = study_of(network, tmp_path, "list_records", record_types=record_types)
    accounts = collect(listed)
    assert set(accounts.filter(pl.col("obtained").is_not_null())["obtained"]) == {"list_records"}
    assert unreconciled(accounts).is_empty()
    network.requests.clear()
    back = collect(study_of(network, tmp_path, "repos", record_types=record_types))
    assert row(back, next(iter(posts)))["obtained"] == "repo"


@pytest.mark.parametrize("fetch", ["records", "list_records"])
def test_states_of_accounts_are_those_of_their_servers(
    fetch: str, network: SandboxNetwork, tmp_path: Path
) -> None:
    posts = posts_of(network, 1)
    dids = iter(posts)
    deactivated, taken_down, deleted, mover = (next(dids) for _ in range(4))
    uris = [uri for listed in posts.values() for uri in listed]
    study = study_of(network, tmp_path, fetch, uris, network={"directory_max_age_hours": 24})
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    network.edit.deactivate(deactivated)
    network.edit.take_down(taken_down)
    network.edit.delete_account(deleted)
    home = network.truth.account(mover).pds
    target = next(host for host in network.hosts if home is None or host not in home)
    network.edit.migrate(mover, target)

    accounts = collect(study)
    states = {did: row(accounts, did)["state"] for did in (deactivated, taken_down, deleted, mover)}
    assert states == {
        deactivated: "deactivated",
        taken_down: "takendown",
        deleted: "not_found",
        mover: "complete",
    }
    moved = row(accounts, mover)
    assert (moved["pds_host"], moved["snapshot_host"]) == (target, target)
    assert moved["signed_by"] == ("previous" if fetch == "records" else None)
    assert set(posts[mover]) <= set(rows(study)["uri"])

    network.requests.clear()
    collect(study)
    assert not asked(network)[GET_RECORD] + asked(network)[LIST_RECORDS]


def test_a_forged_signature_is_told(network: SandboxNetwork, tmp_path: Path) -> None:
    posts = posts_of(network, 1)
    forged = next(iter(posts))
    network.faults.set_account(forged, faults.BadSignature())
    accounts = collect(
        study_of(network, tmp_path, "records", [uri for listed in posts.values() for uri in listed])
    )
    assert (row(accounts, forged)["state"], row(accounts, forged)["reason"]) == ("failed", "bad_signature")
    assert accounts.filter(pl.col("state") == "failed").height == 1


@pytest.mark.parametrize("fetch", ["records", "list_records"])
def test_a_refresh_asks_again_only_those_who_have_written(
    fetch: str, network: SandboxNetwork, tmp_path: Path
) -> None:
    posts = posts_of(network, 2)
    deleter, editor, *_ = posts
    uris = [uri for listed in posts.values() for uri in listed]
    study = study_of(network, tmp_path, fetch, uris, record_types=[POST])
    before = collect(study)
    gone, changed = posts[deleter][0], posts[editor][0]
    network.edit.delete(deleter, POST, gone.rpartition("/")[2])
    network.edit.update(
        editor,
        POST,
        changed.rpartition("/")[2],
        {"text": "edited"},
        created=datetime(2024, 10, 1, tzinfo=UTC),
    )

    network.requests.clear()
    accounts = collect(study, FetchMode.REFRESH)
    path = GET_RECORD if fetch == "records" else LIST_RECORDS
    complete = set(before.filter(state="complete")["did"])
    assert {request.did for request in network.requests.all(path=path)} & complete == {deleter, editor}
    found = dict(rows(study).select("uri", "record").iter_rows())
    assert gone not in found
    assert '"edited"' in found[changed]
    assert row(accounts, deleter)["records_absent"] == (1 if fetch == "records" else 0)
    assert unreconciled(accounts).is_empty()


# What meets getRecord and listRecords, and how the account ends by the one and by the other.
FAULTS: list[tuple[faults.AccountFault, str, str]] = [
    (faults.ServerError(503), "server_error", "server_error"),
    (faults.ResetMidBody(50), "truncated", "truncated"),
    (faults.Stall(10), "timed_out", "timed_out"),
    (faults.EmptyBody(), "empty_body", "empty_body"),
    (faults.HtmlPage(), "not_a_car", "unexpected_answer"),
    (faults.Truncate(100), "truncated", "unexpected_answer"),
    (faults.WrongEncoding("br"), "bad_encoding", "bad_encoding"),
    (faults.GzipBomb(32), "too_large", "too_large"),
    (faults.RedirectLoop(), "bad_redirect", "bad_redirect"),
]


@pytest.mark.parametrize("fetch", ["records", "list_records"])
def test_faults_of_the_way_cost_their_accounts_and_no_others(
    fetch: str, network: SandboxNetwork, tmp_path: Path
) -> None:
    posts = posts_of(network, 1)
    struck = dict(zip(posts, FAULTS, strict=False))
    assert len(struck) == len(FAULTS) < len(posts)
    for did, (fault, _, _) in struck.items():
        network.faults.set_account(did, fault, paths=[GET_RECORD, LIST_RECORDS])
    uris = [uri for listed in posts.values() for uri in listed]
    study = study_of(network, tmp_path, fetch, uris, record_types=[POST], network={"read_timeout_seconds": 1})
    accounts = collect(study)
    found = {did: (row(accounts, did)["state"], row(accounts, did)["reason"]) for did in posts}
    column = 1 if fetch == "records" else 2
    assert found == dict.fromkeys(posts, ("complete", None)) | {
        did: ("failed", fault[column]) for did, fault in struck.items()
    }
    # Nothing of a part is kept.
    assert set(rows(study)["uri"].str.split("/").list.get(2)) & set(struck) == set()
    assert unreconciled(accounts).is_empty()

    network.faults.clear()
    network.requests.clear()
    again = collect(study)
    assert again.filter(state="failed").is_empty()
    path = GET_RECORD if fetch == "records" else LIST_RECORDS
    assert {request.did for request in network.requests.all(path=path)} == set(struck)


def test_what_has_an_answer_is_not_asked_for_again(network: SandboxNetwork, tmp_path: Path) -> None:
    """A host that fails over each third request still gives a long list within few tries of each record."""
    author = max(
        (truth.did for truth in network.truth.accounts() if truth.role is Role.NORMAL),
        key=lambda did: len(network.truth.records(did)),
    )
    uris = [record.uri for record in network.truth.records(author) if record.table is not None]
    assert len(uris) > 15
    network.faults.set_account(author, faults.ServerError(), every=3, paths=[GET_RECORD])
    study = study_of(network, tmp_path, "records", uris)
    accounts = collect(study)
    assert row(accounts, author)["state"] == "complete"
    assert row(accounts, author)["attempts"] > study.processing.max_retries + 1
    # As many as there are, and one for each that failed.
    requests = network.requests.count(path=GET_RECORD, did=author)
    assert requests == len(uris) + (requests // 3)
    assert set(rows(study)["uri"]) == set(uris)


def test_a_run_that_was_ended_goes_on_with_the_next_account(network: SandboxNetwork, tmp_path: Path) -> None:
    posts = posts_of(network, 1)
    study = study_of(network, tmp_path, "records", [uri for listed in posts.values() for uri in listed])
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    done = list(posts)[:4]
    pipeline.fetch_repos(study, only_dids=done)
    first = Counter(request.did for request in network.requests.all(path=GET_RECORD))
    assert set(first) == set(done)
    network.requests.clear()
    accounts = collect(study)
    assert {request.did for request in network.requests.all(path=GET_RECORD)} == set(posts) - set(done)
    assert accounts.filter(state="complete").height == len(posts)


def test_a_purge_reaches_what_is_told_of_records_that_are_not_there(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    posts = posts_of(network, 1)
    author = next(iter(posts))
    gone, stays = ghost(author, 1), ghost(author, 2)
    study = study_of(network, tmp_path, "records", [*posts[author], gone, stays])
    assert row(collect(study), author)["records_absent"] == 2
    purging.purge(study, uris=[gone])
    key = gone.rpartition("/")[2]
    holding = [
        path
        for path in study.root.rglob("*.parquet")
        if key in str(pl.read_parquet(path, hive_partitioning=False).to_dicts())
    ]
    assert holding == []
    assert row(pipeline.build_tables(study), author)["records_absent"] == 1
    assert rejects(study)["uri"].to_list() == [stays]
    # It is on the list yet, and is not asked for.
    network.requests.clear()
    accounts = collect(study)
    assert network.requests.count(path=GET_RECORD) in (0, 2)
    assert row(accounts, author)["records_absent"] == 1
    assert unreconciled(accounts).is_empty()


def test_packs_of_older_versions_are_whole_repositories(
    network: SandboxNetwork, tmp_path: Path, whole: tuple[Study, pl.DataFrame]
) -> None:
    study = study_of(network, tmp_path, "repos")
    shutil.copytree(whole[0].root, study.root)
    storage = StudyStorage(study.root)
    for *_, key in pack_keys(storage):
        later = ("obtained", "asked", "absent", "not_taken")
        pl.read_parquet(storage.path(key)).drop(later).write_parquet(storage.path(key))
    assert pipeline.waiting_accounts(study, FetchMode.UNSETTLED).is_empty()
    shutil.rmtree(study.root / "records")
    pipeline.convert_records(study)
    accounts = pipeline.build_tables(study)
    assert rows(study).equals(rows(whole[0]))
    assert accounts.drop("resolved_at", strict=False).equals(whole[1].drop("resolved_at", strict=False))
