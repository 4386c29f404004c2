"""The examples of deployments are whole: what they are made of is what Dagster and systemd take."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance import InstanceRef
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._serdes import ConfigurableClassData, class_from_code_pointer

from backfill_dagster.orchestration.celery_launcher import WatchedCeleryRunLauncher
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.units import CODE_PORT, EXAMPLES, PROGRAMS, WEB_PORT, settings
from backfill_dagster_tests.docs.pages import links

CONFIGURED = {"local": ROOT, "single-host": EXAMPLES / "single-host", "celery": EXAMPLES / "celery"}
UNITS = sorted(EXAMPLES.glob("*/systemd/*"))


def environment(example: Path) -> dict[str, str]:
    file = example / "environment.example"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def variables(value: Any) -> set[str]:
    """Return the names of what a configuration takes from the environment."""
    if isinstance(value, dict):
        named = {value["env"]} if set(value) == {"env"} else set()
        return named.union(*map(variables, value.values()))
    return set().union(*map(variables, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("name", CONFIGURED)
def test_dagster_takes_its_configuration(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = CONFIGURED[name]
    for variable, value in environment(example).items():
        monkeypatch.setenv(variable, value)
    shutil.copy(example / "dagster.yaml", tmp_path)
    configured = InstanceRef.from_dir(str(tmp_path))
    parts = [part for part in configured._asdict().values() if isinstance(part, ConfigurableClassData)]
    assert len(parts) > 5
    for part in parts:
        kind: Any = class_from_code_pointer(part.module_name, part.class_name)
        checked = process_config(kind.config_type(), part.config_dict)
        assert checked.success, checked.errors
    written = yaml.safe_load((example / "dagster.yaml").read_text(encoding="utf-8"))
    assert variables(written) <= environment(example).keys()


@pytest.mark.parametrize("name", ["single-host", "celery"])
def test_its_workspace_is_the_code_server_of_its_unit(name: str) -> None:
    [origin] = location_origins_from_yaml_paths([str(EXAMPLES / name / "workspace.yaml")])
    [command] = settings(EXAMPLES / "single-host/systemd/backfill-code.service", "ExecStart")
    assert f" -h {origin.host} -p {origin.port}" in command  # type: ignore[attr-defined]
    assert str(origin.port) == CODE_PORT  # type: ignore[attr-defined]
    [command] = settings(EXAMPLES / "single-host/systemd/backfill-webserver.service", "ExecStart")
    assert f" -h 127.0.0.1 -p {WEB_PORT} " in command


def test_workers_are_configured_by_the_launcher() -> None:
    config = yaml.safe_load((EXAMPLES / "celery/dagster.yaml").read_text(encoding="utf-8"))["run_launcher"][
        "config"
    ]
    config |= {"broker": "redis://127.0.0.1:1/0", "backend": "redis://127.0.0.1:1/0"}
    checked = process_config(WatchedCeleryRunLauncher.config_type(), config)
    launcher = WatchedCeleryRunLauncher(**checked.value)  # type: ignore[arg-type]
    conf = launcher.celery.conf
    assert (conf.worker_prefetch_multiplier, conf.worker_disable_prefetch) == (1, True)
    assert (conf.worker_max_tasks_per_child, conf.result_expires) == (1, 7_776_000)
    assert conf.broker_url == "redis://127.0.0.1:1/0"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = shutil.which("true")
    for path in UNITS:
        for file in path.glob("*.conf") if path.is_dir() else [path]:
            text = re.sub(
                rf"{PROGRAMS}\w[\w-]*|/usr/bin/psql", str(program), file.read_text(encoding="utf-8")
            )
            place = tmp_path / file.relative_to(file.parents[1] if path.is_dir() else file.parent)
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)
    units = [str(path) for path in tmp_path.iterdir() if path.is_file()]
    assert len(units) >= 7
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    about = [line for line in done.stderr.splitlines() if "backfill" in line]
    assert about == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", ["local", "single-host", "celery"])
def test_its_page_names_its_files_and_leads_somewhere(example: str) -> None:
    folder = EXAMPLES / example
    page = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        assert path.name == "README.md" or path.name in page
    for link in links(page):
        if "://" not in link:
            assert (folder / link.partition("#")[0]).exists(), link
    assert f"configs/deploy/{example}/README.md" in (ROOT / "docs/deployments.md").read_text(encoding="utf-8")
