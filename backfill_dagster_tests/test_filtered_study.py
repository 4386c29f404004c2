"""Filters in a whole study: what is kept, and why the rest is not, against the truth; and lists that change."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import fingerprints, pending, pipeline, purging, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.definitions import build_defs
from backfill_dagster.errors import ConfigError, SourceError
from backfill_dagster.filtering import lists_stamp, read_filter_lists
from backfill_dagster.report.page import build_report
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.truth import RecordTruth, first_for_subject
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox, sandbox_study, table_hashes
from backfill_dagster_tests.test_pipeline import read_table, run_all

POST, LIKE, REPOST = "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.feed.repost"
FOLLOW, BLOCK = "app.bsky.graph.follow", "app.bsky.graph.block"
TABLES = ["posts", "replies", "likes", "reposts", "follows", "blocks"]
START, END = datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 12, 2, tzinfo=UTC)
NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)
TEXT = r"(?i)\b(the|rain|open)\b"


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    yield network
    network.faults.clear()


@pytest.fixture(scope="module")
def lists(network: SandboxNetwork) -> dict[str, list[str]]:
    """Choose what is on the lists: every third repost, some records and accounts that are liked, and some followed."""
    records = [record for did in network.dids for record in network.truth.records(did)]
    reposts = [record.uri for record in records if record.table == "reposts"]
    liked, followed = (
        sorted({subject for record in records if record.table == table and (subject := subject_of(record))})
        for table in ("likes", "follows")
    )
    return {
        "reposts": reposts[::3],
        "liked": [*liked[::5], *(uri.split("/")[2] for uri in liked[3::9])],
        "followed": followed[::2],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("filtered")
    write_lists(folder, lists)
    return folder


def write_lists(folder: Path, lists: dict[str, list[str]]) -> None:
    """Write the lists in three formats, with entries that can keep nothing."""
    junk = [
        "at://alice.sandbox.test/app.bsky.feed.repost/a",
        "nonsense",
        f"at://{'did:plc:' + 24 * 'a'}/{LIKE}/a",
    ]
    (folder / "reposts.txt").write_text("\n".join(["# what was shown", *lists["reposts"], *junk]))
    pl.DataFrame({"n": range(len(lists["liked"])), "target": lists["liked"]}).write_csv(folder / "liked.csv")
    pl.DataFrame({"did": lists["followed"]}).write_parquet(folder / "followed.parquet")


def filtered_study(folder: Path, **parts: Any) -> Study:
    filters: dict[str, Any] = {
        REPOST: {"uris": {"type": "text", "path": str(folder / "reposts.txt")}},
        LIKE: {"subjects": {"type": "csv", "path": str(folder / "liked.csv"), "column": "target"}},
        FOLLOW: {"subjects": {"type": "parquet", "path": str(folder / "followed.parquet")}},
        POST: {"languages": ["en", "pt-BR", "DE"], "text": TEXT},
    }
    return sandbox_study(folder, **{"filters": filters, "time_range": {"outside": "drop"}, **parts})


@pytest.fixture(scope="module")
def filtered(folder: Path) -> Study:
    study = filtered_study(folder)
    run_all(study)
    return study


def subject_of(record: RecordTruth) -> str | None:
    subject = (record.value or {}).get("subject")
    if record.collection in (LIKE, REPOST):
        subject = subject.get("uri") if isinstance(subject, dict) else None
    known = isinstance(subject, str) and subject.startswith(("did:", "at://did:"))
    return subject if known else None


def expected_reason(record: RecordTruth, lists: dict[str, list[str]]) -> str | None:
    """Say why a record is left out, as slowly and plainly as can be; None for one that is kept."""
    if record.collection not in (POST, LIKE, REPOST, FOLLOW, BLOCK):
        return "unwanted_type"
    if record.collection == REPOST and record.uri not in lists["reposts"]:
        return "not_in_uris"
    if record.defect is not None:
        return "rejected"
    created = record.created_at
    is_dated = created is not None and NETWORK_START <= created <= datetime.now(UTC)
    if is_dated and created is not None and not START <= created <= END:
        return "out_of_range"
    value: dict[str, Any] = record.value or {}
    subject = subject_of(record)
    if record.collection == LIKE:
        about = subject is not None and (subject in lists["liked"] or subject.split("/")[2] in lists["liked"])
        return None if about else "not_in_subjects"
    if record.collection == FOLLOW:
        return None if subject in lists["followed"] else "not_in_subjects"
    if record.collection == POST:
        langs = value.get("langs")
        tags = [tag.lower() for tag in langs if isinstance(tag, str)] if isinstance(langs, list) else []
        if not any(tag.split("-")[0] in ("en", "de") or (tag + "-").startswith("pt-br-") for tag in tags):
            return "language"
        text = value.get("text")
        return None if isinstance(text, str) and re.search(TEXT, text) else "text"
    return None


def test_the_tables_hold_what_the_filters_ask_for(
    filtered: Study, network: SandboxNetwork, lists: dict[str, list[str]]
) -> None:
    for table in TABLES:
        kept = {
            record.uri: record
            for did in network.dids
            for record in network.truth.records(did)
            if record.table == table and expected_reason(record, lists) is None
        }
        rows = read_table(filtered, table)
        assert set(rows["uri"]) == set(kept), table
        assert kept
        if "first_for_subject" in rows.columns:
            # Of those that are kept: an earlier one that is filtered out does not count.
            found = dict(rows.select("uri", "first_for_subject").drop_nulls().iter_rows())
            assert found == first_for_subject(kept.values(), datetime.now(UTC))


def test_every_record_left_out_is_counted_by_its_first_reason(
    filtered: Study, network: SandboxNetwork, lists: dict[str, list[str]]
) -> None:
    accounts = pl.read_parquet(filtered.root / study_files.ACCOUNTS_KEY)
    assert unreconciled(accounts).is_empty()
    whole: Counter[str] = Counter()
    for row in accounts.iter_rows(named=True):
        reasons = Counter(expected_reason(record, lists) for record in network.truth.records(row["did"]))
        assert (row["records_kept"], row["records_rejected"]) == (
            reasons.pop(None, 0),
            reasons.pop("rejected", 0),
        )
        told = {each["reason"]: each["records"] for each in row["filtered"] or []}
        assert told == dict(reasons)
        whole.update(told)
    assert set(whole) == {
        "unwanted_type",
        "not_in_uris",
        "out_of_range",
        "not_in_subjects",
        "language",
        "text",
    }
    host = accounts["snapshot_host"].drop_nulls()[0]
    by_table = pipeline.count_converted(filtered, [host])[host].filter(fate="filtered")
    assert {("likes", "not_in_subjects"), ("reposts", "not_in_uris"), ("posts", "language")} <= set(
        by_table.select("table", "reason").iter_rows()
    )
    build_report(filtered)
    page = (filtered.root / "report.html").read_text()
    assert all(shown in page for shown in ("not in subjects", "on a list of URIs", "pt-BR"))


def test_what_a_list_has_is_told_with_what_it_cannot_keep(
    filtered: Study, lists: dict[str, list[str]]
) -> None:
    stored = {each.key: each for each in read_filter_lists(filtered)}
    reposts = stored[f"filters/{REPOST}.uris.parquet"]
    assert (reposts.given, reposts.kept) == (len(lists["reposts"]) + 3, len(lists["reposts"]))
    assert reposts.rejected == {"handle": 1, "not_an_at_uri": 1, "other_collection": 1}
    assert {key.split("/")[1] for key in stored} == {
        f"{REPOST}.uris.parquet",
        f"{LIKE}.subjects.parquet",
        f"{FOLLOW}.subjects.parquet",
    }


def test_the_same_lists_in_another_order_change_nothing(
    filtered: Study, folder: Path, lists: dict[str, list[str]]
) -> None:
    before = table_hashes(filtered)
    told = fingerprints.records_fingerprint(filtered)
    write_lists(folder, {name: list(reversed(entries)) for name, entries in lists.items()})
    assert pipeline.convert_records(filtered) == 0
    pipeline.build_tables(filtered)
    assert table_hashes(filtered) == before
    assert fingerprints.records_fingerprint(filtered) == told


def test_another_list_makes_records_and_tables_stale_and_then_those_of_a_fresh_run(
    filtered: Study, lists: dict[str, list[str]], network: SandboxNetwork, tmp_path: Path
) -> None:
    fewer = {**lists, "reposts": lists["reposts"][::2]}
    first, fresh = tmp_path / "first", tmp_path / "fresh"
    for each in (first, fresh):
        shutil.copytree(filtered.root.parent, each / "data")
    for made in ("records", "tables", "undated", "built", "filters"):
        shutil.rmtree(fresh / f"data/study/{made}")
    write_lists(fresh, fewer)
    pipeline.rebuild(filtered_study(fresh))
    write_lists(first, lists)
    study = filtered_study(first)
    # The lists are the same, though they lie elsewhere.
    read_filter_lists(study)
    assert pipeline.hosts_to_convert(study) == []
    assert pending.unconverted_packs(study) == []
    code, told, stamp = (
        fingerprints.settings_fingerprint(study),
        fingerprints.records_fingerprint(study),
        lists_stamp(study),
    )

    write_lists(first, fewer)
    # Nobody has read it yet, but a sensor sees that there is something to read.
    assert fingerprints.records_fingerprint(study) == told
    assert lists_stamp(study) != stamp
    assert len({host for host, _ in pending.unconverted_packs(study)}) == len(network.hosts)
    read_filter_lists(study)
    assert fingerprints.records_fingerprint(study) != told
    assert fingerprints.settings_fingerprint(study) == code
    assert len(pipeline.hosts_to_convert(study)) == len(network.hosts)
    pipeline.rebuild(study)
    assert unreconciled(pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)).is_empty()
    for table in TABLES:
        same = [
            read_table(each, table).drop("repo_rev").sort("uri") for each in (study, filtered_study(fresh))
        ]
        assert same[0].equals(same[1])

    # Without the filter the list goes, and every repost is kept.
    unfiltered = filtered_study(first, filters={POST: {"text": "rain"}})
    pipeline.convert_records(unfiltered)
    assert list((first / "data").rglob("filters/*.parquet")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n\n", r"empty\.txt.*is empty, and would keep no record at all; set allow_empty: true"),
        ("nonsense\nalice.test", r"of its 2 entries none is one that can \(2 not_an_at_uri\)"),
    ],
)
def test_a_list_that_keeps_nothing_is_an_error(
    tmp_path: Path, filtered: Study, content: str, message: str
) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    uris = {"type": "text", "path": str(path)}
    study = filtered_study(tmp_path, filters={LIKE: {"uris": uris}})
    with pytest.raises(SourceError, match=rf"(?s)backfill\.filters\.{re.escape(LIKE)}\.uris.*{message}"):
        read_filter_lists(study)
    with pytest.raises(SourceError, match="would keep no record at all"):
        read_filter_lists(study)
    allowed = filtered_study(tmp_path, filters={LIKE: {"uris": uris, "allow_empty": True}})
    if content.startswith("#"):
        assert [stored.kept for stored in read_filter_lists(allowed)] == [0]
    else:
        # That is no empty list, but another file.
        with pytest.raises(SourceError, match="would keep no record"):
            read_filter_lists(allowed)


def test_an_empty_list_that_may_be_empty_keeps_nothing_of_its_type(tmp_path: Path, filtered: Study) -> None:
    (tmp_path / "none.txt").write_text("")
    uris = {"type": "text", "path": str(tmp_path / "none.txt")}
    shutil.copytree(filtered.root.parent, tmp_path / "data")
    study = filtered_study(tmp_path, filters={LIKE: {"uris": uris, "allow_empty": True}})
    pipeline.rebuild(study)
    accounts = pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)
    assert accounts["likes"].sum() == 0
    assert accounts["posts"].sum() > 0
    assert unreconciled(accounts).is_empty()


def test_a_list_that_is_not_there_fails_the_stage_that_reads_it_and_nothing_else(tmp_path: Path) -> None:
    study = filtered_study(tmp_path, filters={LIKE: {"uris": {"type": "text", "path": "nowhere.txt"}}})
    build_defs(tmp_path)
    assert fingerprints.records_fingerprint(study) != fingerprints.records_fingerprint(
        sandbox_study(tmp_path)
    )
    with pytest.raises(SourceError, match=r"nowhere\.txt.*there is no such file"):
        pipeline.convert_records(study)


def test_filters_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    subjects = {"type": "inline", "dids": ["did:plc:" + 24 * "a"]}
    for kind, wanted, message in (
        (POST, {"subjects": subjects}, "are about a subject"),
        (LIKE, {"languages": ["en"]}, "only app.bsky.feed.post has any"),
        (FOLLOW, {"text": "a"}, "only app.bsky.feed.post has any"),
        (POST, {"allow_empty": True}, "says nothing"),
        (POST, {"text": "("}, "no regular expression"),
        ("app.bsky.actor.profile", {"uris": {"type": "text", "path": "a"}}, "record_types has no such type"),
    ):
        with pytest.raises(ConfigError, match=message):
            filtered_study(tmp_path, filters={kind: wanted})


def test_a_purge_reaches_the_lists_and_waits_for_no_source(
    filtered: Study, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    write_lists(tmp_path, lists)
    shutil.copytree(filtered.root.parent, tmp_path / "data")
    study = filtered_study(tmp_path)
    did = lists["reposts"][0].split("/")[2]
    uri = next(each for each in lists["reposts"] if did not in each)
    told = fingerprints.records_fingerprint(study)
    assert any(file.startswith("filters/") for file in files_with(study.root, did))
    (tmp_path / "reposts.txt").rename(tmp_path / "moved.txt")
    report = purging.purge(study, dids=[did], uris=[uri])
    assert report.removed["filters"] >= 2
    assert files_with(study.root, did) == files_with(study.root, uri) == []
    # What is purged could keep no record, so that nothing else is to be converted again.
    assert fingerprints.records_fingerprint(study) == told
    (tmp_path / "moved.txt").rename(tmp_path / "reposts.txt")
    before = table_hashes(study)
    # The source has another time, is read again, and names them still.
    (tmp_path / "reposts.txt").write_text((tmp_path / "reposts.txt").read_text() + "\n")
    pipeline.rebuild(study)
    assert table_hashes(study) == before
    assert unreconciled(pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)).is_empty()
    assert files_with(study.root, did) == files_with(study.root, uri) == []
