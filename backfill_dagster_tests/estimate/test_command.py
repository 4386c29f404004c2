import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from backfill_dagster.estimate.__main__ import main
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.studies import sandbox_study


def of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    assert main([*arguments, "--json"]) == 0
    told: dict[str, float] = json.loads(capsys.readouterr().out)
    return told


def test_a_study_is_estimated_from_its_source_and_asks_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = sandbox_study(tmp_path)
    source = study.source
    assert source.type == "inline"
    told = of(capsys, str(tmp_path / "study.yaml"))
    assert told["accounts"] == len(source.dids or ()) > 0
    assert not study.root.exists() or not list(study.root.glob("*.parquet"))


def test_what_is_stored_is_believed_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = sandbox_study(tmp_path)
    hosts = ["a.test"] * 5 + ["b.test"] * 2 + [None]
    StudyStorage(study.location).write("directory.parquet", pl.DataFrame({"pds_host": hosts}))
    told = of(capsys, str(tmp_path / "study.yaml"))
    assert (told["accounts"], told["hosts"]) == (7, 2)
    assert of(capsys, str(tmp_path / "study.yaml"), "--accounts", "1000")["accounts"] == 1000


def test_words_say_what_is_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox_study(tmp_path)
    assert main([str(tmp_path / "study.yaml"), "--accounts", "400000"]) == 0
    text = capsys.readouterr().out
    for part in ("400,000  as given", "340  assumed, as 340 hosts shared 383,598 accounts", "sizes assumed"):
        assert part in text
    dearer = of(capsys, str(tmp_path / "study.yaml"), "--machine-hour", "8.16")
    assert dearer["machine_dollars"] > 10 * of(capsys, str(tmp_path / "study.yaml"))["machine_dollars"] / 1.1


def test_what_only_servers_know_is_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox_study(tmp_path, source={"type": "pds", "hosts": ["http://pds.test"]})
    assert main([str(tmp_path / "study.yaml")]) == 1
    assert "say how many by --accounts" in capsys.readouterr().err
    assert of(capsys, str(tmp_path / "study.yaml"), "--accounts", "10")["accounts"] == 10


def test_a_wrong_yaml_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"backfill": {"name": "wrong"}}))
    assert main([str(tmp_path / "wrong.yaml")]) == 1
    assert "backfill.source: is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "wrong.yaml"), "--accounts", "0"])
