"""What is written for others: the same each time, whole or not at all, and nothing in it that should not be."""

import json
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError, SourceError, StorageError
from backfill_dagster.manifest.canonical import read_told
from backfill_dagster.pipeline import collect_source
from backfill_dagster.purge.request import read_request
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sharing import share as sharing
from backfill_dagster.sharing.purge import purge_shared
from backfill_dagster.sharing.rebuilt_yaml import rebuilt_yaml
from backfill_dagster.sharing.sample import accounts_to_share
from backfill_dagster.sharing.share import share
from backfill_dagster.sharing.shared_folder import SharedIds
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.purge.stored_bytes import contents, files_with
from backfill_dagster_tests.sharing.studies import LIKE, POST, TABLES, TYPES, read_tables, study_of

SALT = "correct horse battery staple 0123456789"
IDS, PSEUDONYMS = "shared/ids", "shared/pseudonyms"


@pytest.fixture
def study(shared: Study, tmp_path: Path) -> Study:
    """A copy of the study that has shared its ids."""
    shutil.copytree(shared.root.parent, tmp_path / "data")
    return shared.model_copy(
        update={"storage": shared.storage.model_copy(update={"path": tmp_path / "data"})}
    )


def sharing_as(study: Study, **settings: Any) -> Study:
    return study.model_copy(update={"sharing": study.sharing.model_copy(update=settings)})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reader(network: SandboxNetwork, folder: Path, shared: Path, **parts: Any) -> Study:
    return study_of(network, folder, "reader", source={"type": "shared", "path": str(shared)}, **parts)


# --- ids ---


def test_ids_are_those_of_the_tables_and_nothing_else(shared: Study) -> None:
    folder, tables = shared.root / IDS, read_tables(shared)
    for table in TABLES:
        rows = pl.read_parquet(folder / f"{table}.parquet")
        assert rows.equals(tables[table].sort("did", "uri").select("uri", "cid"))
    accounts = pl.read_parquet(shared.root / "accounts.parquet").filter(
        "shown", pl.col("obtained").is_not_null()
    )
    manifest = pl.read_parquet(shared.root / "manifest/accounts.parquet")
    expected = (
        manifest.join(accounts, on="did", how="semi").select("did", "repo_rev", "commit_cid").sort("did")
    )
    assert pl.read_parquet(folder / "accounts.parquet").equals(expected)
    said = read_told(StudyStorage(shared.root), f"{IDS}/manifest.json").content
    assert set(said["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert said["accounts"] == expected.height > 0
    for name, told in said["files"].items():
        key = f"{IDS}/{name}"
        assert told["sha256"] == StudyStorage(shared.root).sha256(key)
        assert told["rows"] == (0 if name == "rebuilt.yaml" else pl.read_parquet(folder / name).height)


def test_the_yaml_that_goes_with_the_ids_needs_a_place_and_nothing_more(
    shared: Study, tmp_path: Path
) -> None:
    text = (shared.root / IDS / "rebuilt.yaml").read_text()
    (tmp_path / "rebuilt.yaml").write_text(text)
    rebuilt = load_study(tmp_path / "rebuilt.yaml")
    assert rebuilt.record_types == shared.record_types
    assert rebuilt.other_record_types == shared.other_record_types
    assert rebuilt.time_range == shared.time_range
    assert not re.search(r"127\.0\.0\.1|sandbox|plc_url|data", text)
    assert str(shared.root) not in text


def test_what_the_environment_filled_in_is_not_asked_of_a_reader(shared: Study, tmp_path: Path) -> None:
    study = shared.model_copy(update={"version": "of my own"}).with_filled_in({"version": "${MY_OWN}"})
    text = rebuilt_yaml(study, 1.0)
    assert "of my own" not in text
    assert "$" not in text
    (tmp_path / "rebuilt.yaml").write_text(text)
    assert load_study(tmp_path / "rebuilt.yaml").record_types == shared.record_types


def test_sharing_again_gives_the_same_bytes(study: Study, shared: Study) -> None:
    before = files_of(study.root / IDS)
    (study.root / IDS / "left_over.parquet").write_bytes(b"of another version")
    share(study)
    assert files_of(study.root / IDS) == before


def test_small_lots_give_the_same_rows(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: pl.read_parquet(study.root / IDS / f"{name}.parquet") for name in TABLES}
    monkeypatch.setattr(sharing, "_AT_ONCE", 7)
    share(study)
    for name, rows in before.items():
        assert pl.read_parquet(study.root / IDS / f"{name}.parquet").equals(rows), name


def test_what_a_broken_run_leaves_is_not_taken_for_whole(
    servers: SandboxNetwork, study: Study, tmp_path: Path
) -> None:
    folder = study.root / IDS
    whole = files_of(folder)
    collect_source(reader(servers, tmp_path / "whole", folder))

    (folder / "manifest.json").unlink()
    with pytest.raises(SourceError, match=r"manifest\.json is missing"):
        collect_source(reader(servers, tmp_path / "unfinished", folder))
    (folder / "manifest.json").write_bytes(whole["manifest.json"])

    (folder / "accounts.parquet").write_bytes(whole["posts.parquet"])
    with pytest.raises(SourceError, match=r"accounts\.parquet is not the file that manifest\.json names"):
        collect_source(reader(servers, tmp_path / "changed", folder))
    (folder / "accounts.parquet").write_bytes(whole["accounts.parquet"])

    told = json.loads(whole["manifest.json"])
    told["content"]["accounts"] += 1
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(SourceError, match="cannot be believed"):
        collect_source(reader(servers, tmp_path / "forged", folder))


def test_a_reader_must_ask_for_what_is_shared(servers: SandboxNetwork, shared: Study, tmp_path: Path) -> None:
    folder = shared.root / IDS
    with pytest.raises(SourceError, match=f"has records of {LIKE}, which this study does not ask for"):
        collect_source(
            reader(servers, tmp_path, folder, record_types=[kind for kind in TYPES if kind != LIKE])
        )
    with pytest.raises(SourceError, match=r"has no records of app\.bsky\.graph\.block"):
        collect_source(reader(servers, tmp_path, folder, record_types=[*TYPES, "app.bsky.graph.block"]))
    filters = {POST: {"uris": {"type": "inline", "uris": ["at://did:web:a.test/app.bsky.feed.post/1"]}}}
    with pytest.raises(ConfigError, match="the source is what is shared"):
        reader(servers, tmp_path, folder, filters=filters)
    source = {"type": "union", "sources": [{"type": "shared", "path": str(folder)}]}
    with pytest.raises(ConfigError, match="stands by itself"):
        study_of(servers, tmp_path, source=source)


def test_tables_that_are_behind_are_not_shared(study: Study) -> None:
    before = files_of(study.root / IDS)
    next(study.root.glob("tables/posts/*/*.parquet")).unlink()
    with pytest.raises(StorageError, match="run study_rebuild first"):
        share(study)
    assert files_of(study.root / IDS) == before


def test_nothing_is_shared_while_a_purge_is_unfinished(study: Study) -> None:
    did = pl.read_parquet(study.root / IDS / "accounts.parquet")["did"][0]
    bury(StudyStorage(study.root), [did], [], datetime.now(UTC))
    with pytest.raises(StorageError, match="run study_purge first"):
        share(study)


def test_a_sample_holds_whole_accounts_and_grows(study: Study) -> None:
    everybody = pl.read_parquet(study.root / IDS / "accounts.parquet")["did"]
    taken: set[str] = set()
    for number in (0.3, 0.6, 1.0):
        done = share(sharing_as(study, sample=number, label="some", tables=("posts", "likes")))
        more = pl.read_parquet(study.root / "shared/some/accounts.parquet")["did"]
        assert taken <= set(more) <= set(everybody)
        assert done.accounts == len(more)
        assert not (study.root / "shared/some/follows.parquet").exists()
        posts = read_tables(study)["posts"]
        own = pl.read_parquet(study.root / "shared/some/posts.parquet")
        assert set(own["uri"]) == set(posts.filter(pl.col("did").is_in(more.implode()))["uri"])
        taken = set(more)
    assert taken == set(everybody)


def test_accounts_that_were_withdrawn_are_not_shared_even_if_they_are_kept(study: Study) -> None:
    accounts = pl.read_parquet(study.root / "accounts.parquet")
    did = pl.read_parquet(study.root / IDS / "posts.parquet")["uri"].str.split("/").list.get(2)[0]
    state = pl.when(pl.col("did") == did).then(pl.lit("deactivated")).otherwise("state")
    chosen = accounts_to_share(accounts, study.sharing)
    assert did in set(chosen["did"])
    fewer = accounts_to_share(accounts.with_columns(state=state), study.sharing)
    assert set(chosen["did"]) - set(fewer["did"]) == {did}
    for reason, gone in (("not_found", {did}), ("no_pds", {did}), ("unreachable", set())):
        own = pl.col("did") == did
        lost = accounts.with_columns(
            state=pl.when(own).then(pl.lit("unresolved")).otherwise("state"),
            reason=pl.when(own).then(pl.lit(reason)).otherwise("reason"),
        )
        assert set(chosen["did"]) - set(accounts_to_share(lost, study.sharing)["did"]) == gone


# --- pseudonyms ---


@pytest.fixture
def pseudonymised(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("BACKFILL_SHARING_SALT", SALT)
    shown = sharing_as(study, what="pseudonyms")
    share(shown)
    return shown


def test_accounts_in_many_ranges_are_shared_as_in_one(
    pseudonymised: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill_dagster.repos.ledger_lots.ACCOUNTS_AT_ONCE", 2)
    for what, folder in (("ids", IDS), ("pseudonyms", PSEUDONYMS)):
        path = pseudonymised.root / folder
        names = [f"{table}.parquet" for table in ("accounts", *TABLES)]
        before = [pl.read_parquet(path / name) for name in names]
        told = read_told(StudyStorage(pseudonymised.root), f"{folder}/manifest.json").content
        assert pq.read_metadata(path / "accounts.parquet").num_row_groups == 1
        share(sharing_as(pseudonymised, what=what))
        assert pq.read_metadata(path / "accounts.parquet").num_row_groups > 3
        for name, rows in zip(names, before, strict=True):
            assert_frame_equal(pl.read_parquet(path / name), rows)
        again = read_told(StudyStorage(pseudonymised.root), f"{folder}/manifest.json").content
        assert {**again, "files": None} == {**told, "files": None}


def test_pseudonyms_hold_no_name_key_or_text(pseudonymised: Study, servers: SandboxNetwork) -> None:
    folder = pseudonymised.root / PSEUDONYMS
    tables = read_tables(pseudonymised)
    written = b"\n".join(content for path in folder.iterdir() for content in contents(path)).decode(
        "utf-8", "replace"
    )
    assert "did:" not in written
    assert "at://" not in written
    secrets: set[str] = {SALT, *servers.dids, *servers.hosts}
    for account in servers.truth.accounts():
        secrets.update(part for part in (account.handle, account.pds) if part)
    for rows in tables.values():
        for name in (
            "rkey",
            "cid",
            "text",
            "record",
            "created_at_raw",
            "repo_rev",
            "display_name",
            "description",
        ):
            if name in rows.columns:
                secrets.update(value for value in rows[name].drop_nulls() if len(value) > 3)
    assert len(secrets) > 300
    assert [secret for secret in secrets if secret in written] == []
    # The same, of what is inside words that a client made up.
    assert set(pl.read_parquet(folder / "posts.parquet").columns).isdisjoint(
        {"text", "rkey", "cid", "record", "facets", "embed", "tags", "alt_texts", "external_uri"}
    )


def test_what_belongs_together_stays_together(pseudonymised: Study) -> None:
    folder, tables = pseudonymised.root / PSEUDONYMS, read_tables(pseudonymised)
    hidden = {table: pl.read_parquet(folder / f"{table}.parquet") for table in TABLES}
    for table in TABLES:
        assert hidden[table].height == tables[table].height
        assert hidden[table]["uri"].n_unique() == tables[table].height
    for left, column, right, key in (
        ("likes", "subject_uri", "posts", "uri"),
        ("likes", "subject_did", "posts", "did"),
        ("replies", "reply_root_uri", "posts", "uri"),
        ("follows", "subject_did", "profiles", "did"),
        ("follows", "did", "posts", "did"),
    ):
        joined = [
            found[left].join(found[right], left_on=column, right_on=key).height for found in (tables, hidden)
        ]
        assert joined[0] == joined[1]
    assert tables["likes"].join(tables["posts"], left_on="subject_uri", right_on="uri").height > 0
    accounts = pl.read_parquet(folder / "accounts.parquet")
    counted = hidden["posts"].group_by("did").agg(n=pl.len()).join(accounts, on="did")
    assert counted.filter(pl.col("n") == pl.col("posts")).height == hidden["posts"]["did"].n_unique()


def test_times_are_told_to_the_day(pseudonymised: Study) -> None:
    tables = read_tables(pseudonymised)
    rows = pl.read_parquet(pseudonymised.root / PSEUDONYMS / "likes.parquet")
    days = rows["created_at"].drop_nulls()
    assert (days == days.dt.truncate("1d")).all()
    assert len(days) > 20
    believed = tables["likes"].filter(pl.col("date_quality").is_in(["consistent", "no_rkey_time", "differs"]))
    assert sorted(believed["created_at"].dt.truncate("1d")) == sorted(
        rows.filter(pl.col("date_quality").is_in(["consistent", "no_rkey_time", "differs"]))["created_at"]
    )


@pytest.mark.parametrize(
    ("salt", "said"),
    [(None, "is not set"), ("too short", "holds no good secret"), ("ab" * 40, "holds no good secret")],
)
def test_nothing_is_written_without_a_good_secret(
    study: Study, monkeypatch: pytest.MonkeyPatch, salt: str | None, said: str
) -> None:
    monkeypatch.delenv("BACKFILL_SHARING_SALT", raising=False)
    if salt is not None:
        monkeypatch.setenv("BACKFILL_SHARING_SALT", salt)
    with pytest.raises(ConfigError, match=said) as complaint:
        share(sharing_as(study, what="pseudonyms"))
    assert salt is None or salt not in str(complaint.value)
    assert not (study.root / PSEUDONYMS).exists()


def test_of_tables_that_are_not_shared_the_accounts_tell_nothing(pseudonymised: Study) -> None:
    share(sharing_as(pseudonymised, label="some", tables=("posts",)))
    folder = pseudonymised.root / "shared/some"
    told = set(pl.read_parquet(folder / "accounts.parquet").columns)
    whole = set(pl.read_parquet(pseudonymised.root / PSEUDONYMS / "accounts.parquet").columns)
    # The times of an account's first and last record are those of any table.
    assert whole - told == {*TABLES, "undated", "first_created_at", "last_created_at"} - {"posts"}
    said = read_told(StudyStorage(folder), "manifest.json").content["columns"]["accounts"]
    assert told == {name for name, treatment in said.items() if treatment != "dropped"} & whole


def test_another_secret_gives_other_pseudonyms(pseudonymised: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pl.read_parquet(pseudonymised.root / PSEUDONYMS / "posts.parquet")
    monkeypatch.setenv("BACKFILL_SHARING_SALT", SALT[::-1])
    share(pseudonymised)
    after = pl.read_parquet(pseudonymised.root / PSEUDONYMS / "posts.parquet")
    assert before.height == after.height
    assert set(before["uri"]).isdisjoint(after["uri"])
    assert set(before["did"]).isdisjoint(after["did"])


def test_pseudonyms_are_no_source(servers: SandboxNetwork, pseudonymised: Study, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nobody can find the records again"):
        collect_source(reader(servers, tmp_path / "reader", pseudonymised.root / PSEUDONYMS))


# --- purge ---


def purged(study: Study, dids: Sequence[str] = (), uris: Sequence[str] = ()) -> dict[str, int]:
    """Purge what is shared of a study alone."""
    storage, request = StudyStorage(study.root), read_request(dids, uris)
    return purge_shared(storage, bury(storage, request.dids, request.records, datetime.now(UTC)))


def test_a_purge_takes_rows_out_of_ids_and_removes_pseudonyms(pseudonymised: Study) -> None:
    study, root = pseudonymised, pseudonymised.root
    posts = pl.read_parquet(root / IDS / "posts.parquet")["uri"]
    did = posts[0].split("/")[2]
    uri = posts.filter(~posts.str.contains(did, literal=True))[0]
    tables = read_tables(study)
    of_them = sum(
        rows.filter((pl.col("did") == did) | (pl.col("uri") == uri)).height for rows in tables.values()
    )
    before = read_told(StudyStorage(root), f"{IDS}/manifest.json").content

    removed = purged(study, dids=[did], uris=[uri])
    assert removed["shared"] == of_them + 1  # and the account
    assert removed["shared_whole"] == 1
    assert not (root / PSEUDONYMS).exists()
    assert files_with(root / "shared", did) == files_with(root / "shared", uri) == []
    shared = SharedIds.open(root / IDS)
    shared.check(["accounts", *shared.tables])
    assert shared.content["accounts"] == before["accounts"] - 1
    assert {**shared.content, "files": 0, "accounts": 0} == {**before, "files": 0, "accounts": 0}
    left = pl.read_parquet(root / IDS / "posts.parquet")["uri"]
    assert set(left) == {one for one in posts if did not in one} - {uri}


def test_a_purge_that_was_interrupted_does_not_leave_half_a_folder(study: Study) -> None:
    did = pl.read_parquet(study.root / IDS / "accounts.parquet")["did"][0]
    (study.root / IDS / "manifest.json").unlink()
    removed = purged(study, dids=[did])
    assert (removed["shared"], removed["shared_whole"]) == (0, 1)
    assert not (study.root / "shared").exists() or not list((study.root / "shared").rglob("*.parquet"))
