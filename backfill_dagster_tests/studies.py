"""Studies for tests: a YAML in a temporary folder, against the sandbox of this process."""

import hashlib
from pathlib import Path

import polars as pl
import yaml

from backfill_dagster import pipeline
from backfill_dagster.config.loading import load_study
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.sandbox.network import SandboxNetwork, process_sandbox
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import DIRECTORY_KEY

SANDBOX = SandboxSettings(seed=3, accounts=60, hosts=4, records=60)


def sandbox_study(
    folder: Path, name: str = "study", settings: SandboxSettings = SANDBOX, **parts: object
) -> Study:
    """Write a study of all accounts of a sandbox into a folder and load it."""
    body: dict[str, object] = {
        "name": name,
        "source": {"type": "inline", "dids": list(sandbox(settings).dids)},
        "storage": {"path": str(folder / "data")},
        "processing": {"requests_per_second": 500, "workers": 2},
        **parts,
    }
    network = body.get("network", {})
    assert isinstance(network, dict)
    body["network"] = {
        "sandbox": settings.model_dump(),
        "plc_requests_per_second": 1000,
        "retry_base_seconds": 0.01,
        **network,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"backfill": body}))
    return load_study(path)


def sandbox(settings: SandboxSettings = SANDBOX) -> SandboxNetwork:
    """Return this process's sandbox."""
    return process_sandbox(settings)


def resolved_directory(study: Study) -> pl.DataFrame:
    """Look up the accounts of a study whose source is collected, and return its directory."""
    pipeline.resolve_accounts(study)
    return StudyStorage(study.location).read(DIRECTORY_KEY)


def table_hashes(study: Study) -> dict[str, str]:
    """Return the SHA-256 of every file that a user of the study reads."""
    files = [*study.root.glob("tables/**/*.parquet"), *study.root.glob("undated/**/*.parquet")]
    return {
        str(path.relative_to(study.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }
