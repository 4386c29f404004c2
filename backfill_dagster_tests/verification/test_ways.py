"""What is proven again of studies that were collected in other ways than the usual one."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.study import Study
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.population import Role
from backfill_dagster.verification.account_verdicts import _as_asked
from backfill_dagster.verification.verdicts import VERDICTS_SCHEMA, SnapshotVerdict
from backfill_dagster.verification.verify import verify
from backfill_dagster_tests.studies import sandbox
from backfill_dagster_tests.verification.studies import SETTINGS, collected_study

POST = "app.bsky.feed.post"
PLAIN: dict[str, Any] = {"record_types": [POST], "filters": {}, "derived": {}, "discovery": None}


def posts() -> list[str]:
    truth = sandbox(SETTINGS).truth
    return [
        record.uri
        for did in sandbox(SETTINGS).dids
        for record in truth.records(did)
        if record.table == "posts"
    ]


def refresh(study: Study) -> None:
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=FetchMode.REFRESH)
    pipeline.convert_records(study)
    pipeline.build_tables(study)


def test_a_listing_proves_nothing_and_does_not_pass_for_a_repository(tmp_path: Path) -> None:
    study = collected_study(tmp_path, **{**PLAIN, "fetch": "list_records"})
    done = verify(study)
    assert done.holds
    assert set(done.counts) == {"listed", "nothing_stored"}
    other = verify(study.model_copy(update={"fetch": "repos"}))
    assert not other.holds
    assert other.counts["unexplained"] == done.counts["listed"]


@pytest.mark.parametrize(
    ("obtained", "asked", "passes"),
    [
        ("repo", "repo", True),
        ("repo", "record_proof", True),
        ("repo", "list_records", True),
        ("record_proof", "repo", False),
        ("list_records", "repo", False),
        ("list_records", "record_proof", False),
    ],
)
def test_what_proves_more_than_is_asked_for_passes(obtained: str, asked: str, passes: bool) -> None:
    verdict = SnapshotVerdict.PROVEN.value
    row = {"is_snapshot": True, "verdict": verdict, "obtained": Obtained(obtained).value}
    told = _as_asked(
        pl.DataFrame([row], schema_overrides=VERDICTS_SCHEMA).with_columns(detail=None), Obtained(asked)
    )
    assert told["verdict"].to_list() == [verdict if passes else SnapshotVerdict.UNEXPLAINED.value]


def test_a_repository_of_before_the_study_asked_for_less_holds(tmp_path: Path) -> None:
    study = collected_study(tmp_path, **PLAIN)
    listing = verify(study.model_copy(update={"fetch": "list_records"}))
    assert "unexplained" not in listing.counts
    assert listing.counts["proven"] > 10


def test_of_single_records_it_is_known_what_they_are_and_who_signed(tmp_path: Path) -> None:
    absent = f"{posts()[0].rpartition('/')[0]}/3kaaaaaaaaa22"
    filters = {POST: {"uris": {"type": "inline", "uris": [*posts()[::2], absent]}}}
    study = collected_study(tmp_path, **{**PLAIN, "fetch": "records", "filters": filters})
    done = verify(study)
    assert done.holds
    assert set(done.counts) == {"proven_when_fetched", "nothing_stored"}
    stored = done.verdicts.filter(pl.col("pack").is_not_null())
    assert stored["records"].sum() == len(set(posts()[::2]))


def test_a_study_looked_up_in_the_export_that_is_refreshed_after_edits(tmp_path: Path) -> None:
    network = sandbox(SETTINGS)
    network.edit.reset()
    try:
        settings = {"plc_export": {"use": "always", "max_age_hours": 0}, "directory_max_age_hours": 0}
        study = collected_study(tmp_path, **{**PLAIN, "network": settings})
        truth = network.truth.accounts()
        normal = [one.did for one in truth if one.role is Role.NORMAL and one.is_complete][:3]
        rotated, edited, gone = (did for did in normal)
        network.edit.rotate_key(rotated)
        [uri, *_] = [uri for uri in posts() if edited in uri]
        network.edit.delete(edited, *uri.split("/")[-2:])
        network.edit.deactivate(gone)
        refresh(study)
        done = verify(study)
    finally:
        network.edit.reset()
    assert done.problems.rows() == []
    assert done.holds
    sources = done.certificate.content["verdicts"]["key_sources"]
    assert sources["plc_operation"] > 10
    # The key of before is known by what was kept when it was the account's.
    told = {did: done.verdicts.filter(pl.col("did") == did) for did in (rotated, edited, gone)}
    assert told[rotated]["verdict"].unique().to_list() == ["proven"]
    assert told[edited].sort("repo_rev").select("verdict", "is_snapshot").rows() == [
        ("proven", False),
        ("proven", True),
    ]
    assert told[gone]["verdict"].to_list() == ["proven"]


def test_a_study_that_checks_no_signatures_says_so(tmp_path: Path) -> None:
    processing = {"requests_per_second": 500, "workers": 1, "verify": "structure"}
    study = collected_study(tmp_path, **{**PLAIN, "processing": processing})
    done = verify(study)
    assert done.holds
    # By the stored documents all can be checked now, but for the one that an earlier key has signed.
    assert done.counts["signature_unchecked"] == 1
    assert done.counts["proven"] > 10
