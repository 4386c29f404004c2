"""Each asset materialized by itself, by Dagster's own command line, against the one command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._cli import create_dagster_cli

import backfill_dagster
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.studies import SANDBOX, sandbox, sandbox_study, table_hashes

DAGSTER = str(Path(sys.executable).with_name("dagster"))
DROP = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}


def dagster(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BACKFILL_CONFIGS": str(folder)}
    environment.pop("DAGSTER_HOME", None)
    return subprocess.run(
        [DAGSTER, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def dagster_here(*arguments: str) -> None:
    """Do the same by the same entry point, in this process: it costs no loading of Dagster."""
    cli = create_dagster_cli()  # type: ignore[no-untyped-call]
    # The package keeps the definitions of the folder that it was asked for first.
    vars(backfill_dagster).pop("defs", None)
    try:
        done = CliRunner().invoke(cli, arguments)
    finally:
        vars(backfill_dagster).pop("defs", None)
    assert done.exit_code == 0, done.output


def prepare(folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


def test_stages_by_themselves_give_what_the_one_command_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = prepare(tmp_path / "whole"), prepare(tmp_path / "parts")
    one = sandbox_study(whole, time_range=DROP)
    other = sandbox_study(parts, time_range=DROP)

    done = dagster(whole, "job", "execute", "-m", "backfill_dagster", "-j", "study")
    assert done.returncode == 0, done.stderr
    assert f"Study study: {SANDBOX.accounts} accounts" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr

    hosts = sorted(sandbox().hosts)
    selections = [
        ("source_dids,study/directory", []),
        ("repos", ["--partition", hosts[0]]),
        ("repos", ["--partition-range", f"{hosts[1]}...{hosts[-1]}"]),
        ("records", ["--partition-range", f"{hosts[0]}...{hosts[-1]}"]),
        (
            "posts,study/replies,study/likes,study/reposts,study/follows,study/blocks",
            ["--partition-range", "2024-09...2024-12"],
        ),
        ("undated,study/accounts", []),
    ]
    monkeypatch.chdir(parts)
    monkeypatch.setenv("BACKFILL_CONFIGS", str(parts))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    for selection, partition in selections:
        command = [
            "asset",
            "materialize",
            "-m",
            "backfill_dagster",
            "--select",
            f"study/{selection}",
            *partition,
        ]
        # One that starts anew after others, with a range of partitions that only they can have told of.
        if selection == "records":
            done = dagster(parts, *command)
            assert done.returncode == 0, done.stderr
        else:
            dagster_here(*command)
    assert table_hashes(one) == table_hashes(other)

    # The history outlives the commands, in the folder that they were started in.
    with dg.DagsterInstance.from_config(str(parts)) as instance:
        assert len(instance.get_runs()) == len(selections)
        assert instance.get_dynamic_partitions("study__pds") == hosts
