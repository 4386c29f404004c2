"""Runs a job of a folder of studies as the command line does: in this process, on a given instance."""

import functools
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.code_pointer import CustomPointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository

from backfill_dagster.definitions import build_defs


@functools.lru_cache(maxsize=1)
def repository_of(configs: str, _fresh: str) -> dg.RepositoryDefinition:
    """Return the code location of a folder of YAML files: called back by Dagster, several times for each run."""
    return build_defs(Path(configs)).get_repository_def()


def execute(
    configs: Path, job: str, instance: dg.DagsterInstance, run_config: dict[str, Any] | None = None
) -> bool:
    """Execute a job whose code location is a folder of YAML files as it is now; say whether it succeeded."""
    pointer = CustomPointer(
        ModuleCodePointer(__name__, "repository_of"), [str(configs), uuid.uuid4().hex], []
    )
    reconstructable = ReconstructableRepository(pointer).get_reconstructable_job(job)
    with dg.execute_job(reconstructable, instance=instance, run_config=run_config) as result:
        return result.success
