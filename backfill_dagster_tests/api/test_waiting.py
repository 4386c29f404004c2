"""Who is still to be backfilled, before, between and after the stages of a study of the sandbox."""

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.api.errors import InvalidRequestError
from backfill_dagster.api.waiting import engaged_accounts, waiting_accounts
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.studies import resolved_directory, sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=4, accounts=30, hosts=2, records=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of every other account of the sandbox, so that the rest are strangers to them."""
    own = sorted(sandbox(SETTINGS).dids)[::2]
    folder = tmp_path_factory.mktemp("waiting")
    return sandbox_study(folder, settings=SETTINGS, source={"type": "inline", "dids": own})


def test_who_is_still_to_be_backfilled_and_whom_they_engaged_with(study: Study) -> None:
    own = sorted(sandbox(SETTINGS).dids)[::2]
    assert waiting_accounts(study).dids == own
    with pytest.raises(StorageError, match="materialize"):
        engaged_accounts(study, None, None)

    pipeline.collect_source(study)
    directory = resolved_directory(study)
    resolved = set(directory.filter(pl.col("state") == "resolved")["did"])
    # Of whom the directory knows nothing to fetch, there is nothing to wait for.
    assert set(waiting_accounts(study).dids) == resolved < set(own)
    assert waiting_accounts(study).asked == len(own)

    one_host = directory["pds_host"].drop_nulls().sort()[0]
    pipeline.fetch_repos(study, [one_host])
    fetched = set(read_ledger(StudyStorage(study.root))["did"])
    waiting = waiting_accounts(study)
    assert fetched
    assert waiting.dids
    assert set(waiting.dids) == resolved - fetched
    some = [min(fetched), waiting.dids[0]]
    assert waiting_accounts(study, some).dids == [waiting.dids[0]]
    assert waiting_accounts(study, some).asked == 2
    with pytest.raises(InvalidRequestError, match="dids = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'"):
        waiting_accounts(study, ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"])

    pipeline.convert_records(study)
    pipeline.build_record_tables(study)
    paths = list(study.root.glob("tables/likes/*/*.parquet"))
    likes = pl.concat([pl.read_parquet(path, columns=["subject_did", "created_at"]) for path in paths])
    end = likes["created_at"].sort()[likes.height // 2]
    everybody, early = engaged_accounts(study, None, None), engaged_accounts(study, None, end)
    assert everybody == sorted(set(everybody))
    assert not set(everybody) & set(own)
    liked = {did for did in likes["subject_did"].drop_nulls() if did.startswith("did:plc:")} - set(own)
    assert liked
    assert liked <= set(everybody)
    assert set(early) < set(everybody)
