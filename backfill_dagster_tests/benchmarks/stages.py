"""The pipeline's stages behind the download, for repositories that lie on disk already."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from unittest import mock

import polars as pl
import pyarrow as pa

from backfill_dagster import accounting, pipeline, study_files
from backfill_dagster.config.processing import Storage
from backfill_dagster.config.sources import InlineSource
from backfill_dagster.config.study import Study
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.records.transform import transform_records
from backfill_dagster.repos.car_bytes import open_car, slices_of
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.packs import Attempt
from backfill_dagster.repos.proof import Delivery, PackReport, ProofSettings, prove_and_pack
from backfill_dagster.repos.verify import RepoLimits, VerifiedRepo, verify_repo
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.repos.car_bytes import CarBytes
    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

HOST = "pds.test"
_FETCHED = datetime(2025, 1, 1, tzinfo=UTC)
# As many as a blocks file of a pack has, or so.
_FRAME_RECORDS = 150_000
# More would only wait, and take memory meanwhile.
_PACKS_AT_ONCE = 4
_PROOF = ProofSettings(check_signature=True, limits=RepoLimits())


class ThisProcess(Executor):
    """Does at once, and here, what a pool of workers would do elsewhere."""

    def submit(
        self,
        fn: Callable[_Parameters, _Result],
        /,
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> Future[_Result]:
        """Call a function and return what it returned, as a future that is done."""
        future: Future[_Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True, slots=True)
class Stages:
    """One study of some repositories, and its stages from the downloaded files to the tables.

    `executor` takes the place of the workers. Each stage can be run again, and does the same again.
    """

    study: Study
    repos: Sequence[SignedRepo]
    executor: Executor = field(default_factory=ThisProcess)

    @classmethod
    def of(
        cls,
        folder: Path,
        repos: Sequence[SignedRepo],
        executor: Executor | None = None,
        *,
        keep: bool = False,
        **parts: Any,
    ) -> Stages:
        """Begin a study of these repositories below a folder of its own, or `keep` what is there and go on with it.

        `parts` are those of its YAML; without a `time_range` the study's period is the default one, and what is
        outside of it is left out.
        """
        study = Study.model_validate(
            {
                "name": "benchmark",
                "source": InlineSource(type="inline", dids=tuple(repo.did for repo in repos)),
                "storage": Storage(path=folder),
                "time_range": {"outside": "drop"},
                **parts,
            }
        )
        stages = cls(study, repos, executor or ThisProcess())
        if not keep:
            stages._begin()
        return stages

    def verify(self) -> None:
        """Prove every repository, and keep nothing."""
        for repo in self.repos:
            with open_car(repo.car) as content:
                verify_repo(content, did=repo.did, keys=[SigningKey.from_did_key(repo.key)])

    def frames(self) -> None:
        """Prove every repository and make typed frames of its records; write nothing."""
        settings = pipeline.record_settings(self.study)
        for repo in self.repos:
            with open_car(repo.car) as content:
                proven = verify_repo(content, did=repo.did, keys=[SigningKey.from_did_key(repo.key)])
                account = {
                    "did": [repo.did],
                    "pds": [HOST],
                    "repo_rev": [proven.rev],
                    "obtained": [Obtained.REPO.value],
                    "fetched_at": [_FETCHED],
                }
                for first in range(0, len(proven.rkeys), _FRAME_RECORDS):
                    some = slice(first, first + _FRAME_RECORDS)
                    transform_records(_blocks(proven, content, some), pl.DataFrame(account), settings)

    def pack(self) -> None:
        """Prove every repository and store its records, in packs of as many accounts as a crawl would make."""
        with StudyStorage(self.study.root).scratch() as scratch:
            packing: set[Future[PackReport]] = set()
            for batch in self._batches():
                deliveries = tuple(_delivery(repo, scratch) for repo in batch)
                packing.add(self.executor.submit(prove_and_pack, self.study.root, HOST, deliveries, _PROOF))
                if len(packing) > _PACKS_AT_ONCE:
                    done, packing = wait(packing, return_when=FIRST_COMPLETED)
                    _check(done)
            _check(packing)

    def records(self) -> None:
        """Convert every pack."""
        with self._workers():
            pipeline.convert_records(self.study, again=True)

    def tables(self) -> None:
        """Build every table, undated rows included."""
        with self._workers():
            pipeline.build_record_tables(self.study, again=True)

    def accounts(self) -> None:
        """Build the table of accounts, for which all final files are read again."""
        with self._workers():
            accounting.build_accounts(self.study)

    def all(self) -> None:
        """Go from the downloaded files to the tables, of a study that has nothing yet."""
        for folder in ("repos", "records", "tables", "undated", "built"):
            shutil.rmtree(self.study.root / folder, ignore_errors=True)
        self.pack()
        self.records_and_tables()

    def records_and_tables(self) -> None:
        """Go from the packs to the tables."""
        self.records()
        self.tables()

    def _begin(self) -> None:
        """Delete all that the study has stored, and store what stands before the download."""
        shutil.rmtree(self.study.root, ignore_errors=True)
        pipeline.collect_source(self.study)
        rows = [
            {"did": repo.did, "pds": f"https://{HOST}", "pds_host": HOST, "state": "resolved"}
            for repo in self.repos
        ]
        directory = pl.DataFrame(rows, schema=DIRECTORY_SCHEMA).with_columns(resolved_at=_FETCHED)
        StudyStorage(self.study.root).write(study_files.DIRECTORY_KEY, directory)

    def _batches(self) -> Iterator[list[SignedRepo]]:
        processing = self.study.processing
        batch: list[SignedRepo] = []
        size = 0
        for repo in self.repos:
            batch.append(repo)
            size += repo.car.stat().st_size
            if len(batch) >= processing.batch_size or size >= processing.pack_megabytes * 2**20:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    @contextmanager
    def _workers(self) -> Iterator[None]:
        """Have the stages take this executor for a pool of their own."""

        @contextmanager
        def lend(_: int) -> Iterator[Executor]:
            yield self.executor

        with (
            mock.patch.object(pipeline, "worker_pool", lend),
            mock.patch.object(accounting, "worker_pool", lend),
        ):
            yield


def _check(packed: set[Future[PackReport]]) -> None:
    rejected = [future.result().rejected for future in packed if future.result().rejected]
    if rejected:
        raise ValueError(f"repositories do not hold: {rejected}")


def _blocks(proven: VerifiedRepo, content: CarBytes, some: slice) -> pa.Table:
    """Make the columns of a pack's blocks file, of some of a repository's records."""
    # A block's CID stands right before it.
    sections = slices_of(content, proven.starts[some] - CID_BYTES, proven.ends[some])
    return pa.table(
        {
            "did": pa.array([proven.did] * len(sections)),
            "collection": proven.collections[some],
            "rkey": proven.rkeys[some],
            "cid": pa.array([section[:CID_BYTES] for section in sections]),
            "block": pa.array([section[CID_BYTES:] for section in sections]),
        }
    )


def _delivery(repo: SignedRepo, scratch: Path) -> Delivery:
    """Give a repository away as a downloaded file; a second name of it, for the file is deleted when it is packed."""
    car = scratch / f"{repo.did.replace(':', '_')}.car"
    os.link(repo.car, car)
    attempt = Attempt(
        did=repo.did,
        pds=f"https://{HOST}",
        outcome=Outcome.COMPLETE,
        fetched_at=_FETCHED,
        bytes_received=repo.car.stat().st_size,
    )
    return Delivery(attempt, car, (repo.key,))
