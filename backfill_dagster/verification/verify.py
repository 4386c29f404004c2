"""Verifies a study: each account's snapshot against what was signed, and every file against what it was made of.

    verification = verify(study)

Reads stored files and nothing else. What it finds is stored in `proof/`, and changes nothing outside of it.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, PROBLEMS_KEY, VERDICTS_KEY
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.purge.tombstones import TOMBSTONES_KEY, Tombstones
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.study_files import DIRECTORY_KEY, SOURCE_KEY
from backfill_dagster.verification.account_verdicts import AccountVerdicts, VerdictTotals
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster.verification.guard import CANNOT_BE_READ, checked_conversion, checked_part, proven_pack
from backfill_dagster.verification.lists import check_lists
from backfill_dagster.verification.manifest_check import (
    check_certificate,
    check_content,
    check_files,
    read_manifest,
)
from backfill_dagster.verification.rebuilt import (
    check_derived,
    check_table_files,
    conversions,
    table_parts,
)
from backfill_dagster.verification.strays import stray_files
from backfill_dagster.verification.verdicts import (
    PROBLEMS_SCHEMA,
    VERDICTS_SCHEMA,
    FileProblem,
    Found,
)
from backfill_dagster.workers import SMALL_BYTES, work_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.verification.manifest_check import StoredManifest

_VERSION = 1
# Without these nothing can be said of accounts.
_CORE = frozenset({SOURCE_KEY, DIRECTORY_KEY, TOMBSTONES_KEY})
_DAMAGE = frozenset({FileProblem.MISSING, FileProblem.CHANGED, FileProblem.UNREADABLE})


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification came to: the certificate, and what is wrong with files (PROBLEMS_SCHEMA)."""

    certificate: Told
    problems: pl.DataFrame
    storage: StudyStorage

    @property
    def verdicts(self) -> pl.DataFrame:
        """The verdicts (VERDICTS_SCHEMA) as they are stored, of all accounts."""
        return self.storage.read(VERDICTS_KEY)

    @property
    def holds(self) -> bool:
        """Whether nothing was found wrong, and everything was looked at."""
        return bool(self.certificate.content["holds"])

    @property
    def counts(self) -> dict[str, int]:
        """How many accounts each verdict was given to."""
        return dict(self.certificate.content["verdicts"]["counts"])


def verify(
    study: Study,
    *,
    run_ids: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Verify a study, and store verdicts, problems and certificate; only while nothing else works on it.

    `on_step` is told what is looked at next.
    """
    return _Verifying(study, on_step).run(run_ids)


@dataclass(slots=True)
class _Verifying:
    study: Study
    on_step: Callable[[str], None]
    found: list[Found] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    not_looked_at: list[str] = field(default_factory=list)
    records: int = 0
    frozen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, run_ids: Sequence[str]) -> Verification:
        storage = self._storage
        self.found += check_certificate(storage)
        manifest = self._step("files", self._check_files)
        self._step("frozen", self._check_frozen)
        damaged = {one.file for one in self.found if one.problem in _DAMAGE and one.file is not None}
        if damaged & _CORE:
            self.not_looked_at += ["accounts", "records", "tables", "derived"]
            return self._store(None, manifest, run_ids)
        with ExitStack() as opened:
            verdicts = self._step("accounts", lambda: self._prove(opened, manifest, damaged))
            self._rebuild(verdicts, damaged)
            return self._store(verdicts, manifest, run_ids)

    @property
    def _storage(self) -> StudyStorage:
        return StudyStorage(self.study.location)

    @property
    def _workers(self) -> int:
        storage = self._storage
        small = sum(storage.sizes("repos").values()) < SMALL_BYTES
        return 0 if small else self.study.processing.worker_count

    def _step(self, name: str, work: Callable[[], Any]) -> Any:
        self.on_step(_STEPS[name])
        started = time.monotonic()
        try:
            return work()
        except CANNOT_BE_READ as error:
            self.found.append(Found(FileProblem.UNREADABLE, None, f"{name}: {error!s:.200}"))
            self.not_looked_at.append(name)
            return None
        finally:
            self.seconds[name] = round(time.monotonic() - started, 3)

    def _check_files(self) -> StoredManifest | None:
        manifest, found = read_manifest(self._storage)
        self.found += found
        if manifest is not None:
            self.found += check_files(self._storage, manifest, self.study.processing.worker_count)
        return manifest

    def _check_frozen(self) -> None:
        self.frozen, found = check_frozen(self._storage, self.study.processing.worker_count)
        self.found += found

    def _prove(
        self, opened: ExitStack, manifest: StoredManifest | None, damaged: set[str]
    ) -> AccountVerdicts:
        """Return the verdicts on all accounts and all that is stored of them; they are in scratch that is `opened`."""
        storage = self._storage
        known = {one.file for one in self.found}
        self.found += [one for one in stray_files(storage) if one.file not in known]
        tombstones = Tombstones.load(storage)
        if tombstones.unfinished or tombstones.left_in_frozen:
            self.found.append(Found(FileProblem.NOT_UP_TO_DATE, TOMBSTONES_KEY, "a purge is not finished"))
        scratch = opened.enter_context(storage.scratch())
        verdicts = opened.enter_context(AccountVerdicts(self.study, scratch))
        verdicts.deal(damaged)
        self.found += [*verdicts.found, *check_lists(self.study)]
        for proof in work_on(self.study.location, proven_pack, verdicts.packs_to_prove(), self._workers):
            verdicts.add(proof.verdicts)
            # Once is enough: of what the manifest has told of already.
            self.found += [one for one in proof.found if one.file not in damaged]
            self.records += proof.records
        unreadable = [one for one in verdicts.found if one.problem is FileProblem.UNREADABLE]
        lost = damaged | {one.file for one in unreadable if one.file is not None}
        if manifest is not None and not lost:
            self.found += check_content(self.study, manifest, verdicts.current())
        verdicts.settle(lost if manifest is not None else ())
        return verdicts

    def _rebuild(self, verdicts: AccountVerdicts | None, damaged: set[str]) -> None:
        """Make everything that is made of packs again, as far as they are what they were."""
        if verdicts is None:
            self.not_looked_at.append("records")
        else:
            sound = self._sound_packs(verdicts.totals)
            self._step("records", lambda: self._collect(checked_conversion, conversions(self.study, sound)))
        any_damaged = verdicts is not None and verdicts.totals.damaged
        if any_damaged or any(key.startswith("repos/") for key in damaged):
            self.not_looked_at += ["tables", "derived"]
            return
        self._step("tables", self._check_tables)
        self._step("derived", lambda: self.found.extend(check_derived(self.study)))

    def _sound_packs(self, verdicts: VerdictTotals) -> set[tuple[str, str]]:
        """Return the packs (PDS host, pack) with snapshots of which nothing is known to be wrong but for a missing key.

        Of others it is known already, and what a conversion makes of what no fetch stores says nothing.
        """
        strays = {one.file for one in self.found if one.problem is FileProblem.STRAY_RECORDS}
        return {
            (host, pack)
            for host, pack in verdicts.snapshot_packs - verdicts.wrong_packs
            if f"repos/{partition_folder(host)}/{pack}.parquet" not in strays
        }

    def _check_tables(self) -> None:
        self.found += check_table_files(self.study)
        with StudyStorage(self.study.location).scratch() as scratch:
            self._collect(checked_part, table_parts(self.study, scratch / "shown.parquet"))

    def _collect(self, work: Callable[..., list[Found]], pieces: Iterator[Any]) -> None:
        for found in work_on(self.study.location, work, pieces, self._workers):
            self.found += found

    def _store(
        self, verdicts: AccountVerdicts | None, manifest: StoredManifest | None, run_ids: Sequence[str]
    ) -> Verification:
        storage = self._storage
        found = {one.printable() for one in self.found}
        problems = pl.DataFrame(sorted(found, key=repr), schema=PROBLEMS_SCHEMA, orient="row")
        totals, lots = (VerdictTotals(), iter(())) if verdicts is None else (verdicts.totals, verdicts.lots())
        files = {
            "verdicts": storage.write_parts(VERDICTS_KEY, lots, VERDICTS_SCHEMA),
            "problems": storage.write(PROBLEMS_KEY, problems),
        }
        content = {
            "certificate_version": _VERSION,
            "study": self.study.name,
            "holds": not (totals.failed or problems.height or self.not_looked_at),
            "accounts": totals.accounts,
            "records": self.records,
            "verdicts": {
                "file": VERDICTS_KEY,
                "sha256": files["verdicts"].sha256,
                "digest": totals.digest,
                "counts": _sorted(totals.counts),
                "counts_of_earlier_snapshots": _sorted(totals.earlier),
                "key_sources": _sorted(totals.key_sources),
            },
            "problems": {
                "file": PROBLEMS_KEY,
                "sha256": files["problems"].sha256,
                "counts": _sorted(Counter(problems["problem"])),
            },
            "not_looked_at": self.not_looked_at,
            "manifest_sha256": None if manifest is None else manifest.told.digest,
            "frozen": self.frozen,
            "verified_with": code_version(),
        }
        made = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "dagster_runs": sorted(set(run_ids)),
            "seconds": self.seconds,
        }
        certificate = Told(content, made)
        write_told(storage, CERTIFICATE_KEY, certificate)
        return Verification(certificate, problems, storage)


_STEPS = {
    "files": "Every file is read again and compared with the manifest.",
    "frozen": "Every file of the frozen builds is read again and compared with their own manifests.",
    "accounts": "Each account's blocks, tree, commit and signature are proven again.",
    "records": "Records are converted again.",
    "tables": "Tables are built again.",
    "derived": "The table of accounts, and what is derived, are made again.",
}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
