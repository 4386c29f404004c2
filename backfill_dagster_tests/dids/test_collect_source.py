"""The first stage as a whole: what it reads with, what it stores, and what it leaves behind."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import pipeline, study_files
from backfill_dagster.config.processing import Processing
from backfill_dagster.connections import host_gates
from backfill_dagster.dids.collect import DIDS_SCHEMA, REJECTS_SCHEMA
from backfill_dagster.errors import SourceError
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.dids.sources.s3_server import BUCKET, point_to_s3, serve_s3
from backfill_dagster_tests.studies import sandbox, sandbox_study


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with serve_s3() as url:
        yield url


def test_files_are_read_without_opening_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no server is to be asked")

    monkeypatch.setattr("backfill_dagster.connections.open_connections", refuse)
    first, second, third = sandbox().dids[:3]
    table = tmp_path / "dids.parquet"
    pl.DataFrame({"did": [first, second, third, second]}).write_parquet(table)
    study = sandbox_study(
        tmp_path,
        source={"type": "parquet", "path": str(table)},
        exclude={"type": "inline", "dids": [third]},
    )

    collected = pipeline.collect_source(study)

    storage = StudyStorage(study.root)
    dids, rejects = storage.read(study_files.SOURCE_KEY), storage.read(study_files.SOURCE_REJECTS_KEY)
    assert (dids.schema, rejects.schema) == (DIDS_SCHEMA, REJECTS_SCHEMA)
    assert dids["did"].to_list() == [first, second]
    assert rejects["reason"].to_list() == ["excluded", "duplicate"]
    assert dids.equals(collected.dids)
    assert collected.given_by_source == {"backfill.exclude": 1, "backfill.source": 4}


@pytest.mark.parametrize("part", ["source", "exclude"])
def test_servers_are_asked_within_the_limits_of_the_process(tmp_path: Path, part: str) -> None:
    network = sandbox()
    account = next(account for account in network.truth.accounts() if account.is_complete)
    handle = network.population.by_did[account.did].handle
    parts: dict[str, object] = {part: {"type": "handles", "handles": [handle]}}
    study = sandbox_study(tmp_path, **parts)  # type: ignore[arg-type]
    gates = host_gates(Processing())

    collected = pipeline.collect_source(study, gates)

    assert (account.did in set(collected.dids["did"])) == (part == "source")
    shared = gates.known_gate("sandbox.test")
    assert shared is not None
    assert shared.requests == 1


def test_a_list_in_s3_is_collected_and_leaves_no_copy(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = point_to_s3(monkeypatch, s3_url)
    dids = sandbox().dids[:3]
    s3.put_object(Bucket=BUCKET, Key="panel/a.txt", Body=dids[0].encode())
    s3.put_object(Bucket=BUCKET, Key="panel/b.txt", Body="\n".join(dids[1:]).encode())
    study = sandbox_study(tmp_path, source={"type": "s3", "path": f"s3://{BUCKET}/panel/"})

    assert pipeline.collect_source(study).dids["did"].to_list() == dids
    stored = [path.name for path in study.root.rglob("*") if path.is_file()]
    assert sorted(stored) == [study_files.SOURCE_KEY, study_files.SOURCE_REJECTS_KEY]


def test_what_another_study_collected_is_a_source(tmp_path: Path) -> None:
    dids = sandbox().dids[:4]
    first = sandbox_study(tmp_path, "first", source={"type": "inline", "dids": dids})
    second = sandbox_study(
        tmp_path,
        "second",
        source={"type": "asset", "backfill": "first", "asset": "source_dids"},
        exclude={"type": "inline", "dids": dids[:1]},
    )

    with pytest.raises(SourceError, match="materialize first/source_dids first"):
        pipeline.collect_source(second)
    pipeline.collect_source(first)
    assert pipeline.collect_source(second).dids["did"].to_list() == dids[1:]


def test_a_failed_reading_keeps_what_was_stored(tmp_path: Path) -> None:
    listed = tmp_path / "dids.txt"
    listed.write_text(sandbox().dids[0])
    study = sandbox_study(tmp_path, source={"type": "text", "path": str(listed)})
    pipeline.collect_source(study)
    listed.unlink()

    with pytest.raises(SourceError, match="no such file"):
        pipeline.collect_source(study)
    assert StudyStorage(study.root).read(study_files.SOURCE_KEY)["did"].to_list() == sandbox().dids[:1]
