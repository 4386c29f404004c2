"""What a study has collected, as the source and as the exclusion of another one."""

from pathlib import Path

import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.metadata_store import MetadataStore
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError, SourceError
from backfill_dagster.metadata_stores.dynamodb_store import DynamoDbStore
from backfill_dagster.metadata_stores.items import UserItem
from backfill_dagster.metadata_stores.opening import open_store
from backfill_dagster_tests.metadata_stores.dynamodb_server import (
    REGION,
    TABLE,
    serve_dynamodb,
    set_credentials,
)
from backfill_dagster_tests.studies import sandbox_study

DIDS = [f"did:plc:{letter * 24}" for letter in "abcd"]
EARLIER = {"type": "collected", "backfill": "earlier"}


def items(dids: list[str]) -> list[UserItem]:
    return [UserItem(did, "", "post", 1, '{"post": 1}', "https://pds.example.com", "") for did in dids]


def note(study: Study, dids: list[str]) -> None:
    open_store(MetadataStore(), study="earlier", storage=study.root.parent).put_users(items(dids))


def collected(study: Study) -> list[str]:
    return pipeline.collect_source(study).dids["did"].to_list()


def test_as_source_and_as_exclusion(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path, source=EARLIER)
    note(study, DIDS[:3])
    assert collected(study) == DIDS[:3]
    rest = sandbox_study(tmp_path, source={"type": "inline", "dids": DIDS}, exclude=EARLIER)
    assert collected(rest) == DIDS[3:]


def test_within_other_sources_and_from_a_file_that_is_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared.sqlite"
    store = {"type": "sqlite", "path": str(shared)}
    open_store(MetadataStore(path=shared), study="earlier", storage=tmp_path).put_users(items(DIDS[1:2]))
    open_store(MetadataStore(path=shared), study="other", storage=tmp_path).put_users(items(DIDS[2:3]))
    named = {**EARLIER, "metadata_store": store}
    source = {"type": "except", "source": {"type": "inline", "dids": DIDS}, "without": named}
    assert collected(sandbox_study(tmp_path, source=source)) == [DIDS[0], *DIDS[2:]]


def test_from_dynamodb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    with serve_dynamodb() as server:
        told = {"type": "dynamodb", "table_name": TABLE, "region": REGION, "endpoint_url": server.url}
        study = sandbox_study(tmp_path, source={**EARLIER, "metadata_store": told})
        store = DynamoDbStore(table=TABLE, region=REGION, study="earlier", endpoint_url=server.url)
        store.put_users(items(DIDS))
        assert collected(study) == DIDS
        assert pipeline.source_stamp(study) is None
        server.troubles.errors = ["AccessDeniedException: no"]
        with pytest.raises(SourceError, match=r"backfill.source.backfill = 'earlier': .*credentials may not"):
            collected(study)


def test_the_stamp_changes_with_the_store(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path, source=EARLIER)
    with pytest.raises(SourceError, match="it has noted no account yet"):
        pipeline.source_stamp(study)
    with pytest.raises(SourceError, match="it has noted no account yet"):
        collected(study)
    note(study, DIDS[:1])
    first = pipeline.source_stamp(study)
    note(study, DIDS)
    assert first != pipeline.source_stamp(study)


def test_what_is_wrong_with_its_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backfill.source.metadata_store"):
        sandbox_study(tmp_path, source={**EARLIER, "metadata_store": {"type": "dynamodb"}})
    with pytest.raises(ConfigError, match=r"backfill.source.backfil .*did you mean `backfill`"):
        sandbox_study(tmp_path, source={"type": "collected", "backfil": "earlier"})
