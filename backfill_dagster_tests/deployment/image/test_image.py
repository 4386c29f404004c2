"""The image for ECS and Kubernetes, as far as can be told without building it."""

import json
import re
import tomllib
from fnmatch import fnmatch
from typing import NamedTuple

import click
import pytest
import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.commands import parse_command

_FOLDER = ROOT / "configs" / "deploy" / "image"
_STUDIES = _FOLDER / "studies"


class Instruction(NamedTuple):
    name: str
    told: str


def instructions() -> list[Instruction]:
    """Return what the Dockerfile says, with its arguments filled in."""
    text = re.sub(r"^\s*#.*\n", "", (_FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    found = [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]
    arguments = dict(told.split("=", 1) for name, told in found if name == "ARG")
    return [
        Instruction(name, re.sub(r"\$\{(\w+)\}", lambda match: arguments[match.group(1)], told))
        for name, told in found
    ]


def told(name: str) -> list[str]:
    """Return what the instructions of a name say."""
    return [instruction.told for instruction in instructions() if instruction.name == name]


def copied() -> list[str]:
    """Return the paths that are copied into the image from the checkout."""
    return [
        source
        for line in told("COPY")
        if "--from=" not in line
        for source in [word for word in line.split() if not word.startswith("--")][:-1]
    ]


def test_all_that_it_copies_is_there_and_is_handed_to_the_build() -> None:
    ignored = (_FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert copied()
    for path in copied():
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path.partition("/")[0], pattern) for pattern in kept), path


def test_the_package_is_nothing_but_what_is_installed() -> None:
    """Files that are no modules would be left out of the image without a word."""
    others = {
        path.suffix
        for path in (ROOT / "backfill_dagster").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } - {".py"}
    assert not others


def test_it_installs_what_the_project_offers() -> None:
    [install] = [line for line in told("RUN") if "pip install" in line]
    extras = re.search(r'"\.\[([\w,-]+)\]"', install)
    assert extras is not None
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras.group(1).split(","):
        assert extra in offered


def test_its_python_is_named_to_the_last_digit_and_is_one_that_the_project_takes() -> None:
    assert {line.split()[0] for line in told("FROM")} == {"python:3.11.14-slim-bookworm"}
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == ">=3.11"


def test_nobody_in_it_is_root() -> None:
    names = [instruction.name for instruction in instructions()]
    assert told("USER") == ["10001:10001"]
    # Whatever comes after is done as that user.
    assert "RUN" not in names[names.index("USER") :]
    assert "ENTRYPOINT" not in names


@pytest.mark.parametrize("instruction", ["CMD", "HEALTHCHECK"])
def test_what_it_executes_is_there(instruction: str) -> None:
    [line] = told(instruction)
    parse_command(json.loads(line[line.index("[") :]))


def test_a_command_that_is_none_is_told_from_one() -> None:
    for words in (["dagster", "code-server", "stat"], ["dagster", "api", "grpc", "--no-such-option"]):
        with pytest.raises(click.UsageError):
            parse_command(words)


def test_its_studies_can_be_loaded_where_their_variables_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_STORAGE", "s3://bucket/studies")
    monkeypatch.setenv("BACKFILL_METADATA_TABLE", "table")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    paths = sorted(_STUDIES.glob("*.yaml"))
    assert paths
    for path in paths:
        study = load_study(path)
        assert str(study.location) == f"s3://bucket/studies/{study.name}"
        # What a container is told of its cores is not what it has.
        assert study.processing.workers is not None


def test_what_its_studies_want_to_be_told_is_told_to_runs() -> None:
    wanted = {
        name for path in _STUDIES.glob("*.yaml") for name in re.findall(r"\$\{(\w+)\}", path.read_text())
    }
    assert wanted
    before = yaml.safe_load_all((ROOT / "configs/deploy/kubernetes/before.yaml").read_text())
    [environment] = [document["data"] for document in before if document["kind"] == "ConfigMap"]
    assert wanted <= environment.keys()
    stack = (ROOT / "configs/deploy/aws/stack.yaml").read_text()
    for name in wanted:
        # Of the task of runs, and of that of the code location.
        assert stack.count(f"{{Name: {name},") >= 2
