"""Verifies a study: each account's snapshot against what was signed, and every file against what it was made of.

    verification = verify(study)

Reads stored files and nothing else. What it finds is stored in `proof/`, and changes nothing outside of it.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster import fetch_modes
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, PROBLEMS_KEY, VERDICTS_KEY
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.purge.tombstones import TOMBSTONES_KEY, Tombstones
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.study_files import DIRECTORY_KEY, SOURCE_KEY, asked_directory
from backfill_dagster.verification.attempts import all_attempts
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster.verification.guard import CANNOT_BE_READ, checked_conversion, checked_part, proven_pack
from backfill_dagster.verification.keys import KEYS_SCHEMA, stored_keys
from backfill_dagster.verification.lists import check_lists
from backfill_dagster.verification.manifest_check import (
    check_certificate,
    check_content,
    check_files,
    read_manifest,
)
from backfill_dagster.verification.packs import PackToProve, ToldKey
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
    SnapshotVerdict,
)
from backfill_dagster.verification.work import work_on
from backfill_dagster.workers import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.manifest.written import Manifest

_VERSION = 1
# Without these nothing can be said of accounts.
_CORE = frozenset({SOURCE_KEY, DIRECTORY_KEY, TOMBSTONES_KEY})
# Ways to obtain records, each of which proves less than the one before.
_PROVING_LESS = (Obtained.REPO, Obtained.RECORD_PROOF, Obtained.LIST_RECORDS)
# Verdicts that fail, and say nothing against the records.
_CONVERTED_YET = frozenset({SnapshotVerdict.KEY_UNKNOWN})
_DAMAGE = frozenset({FileProblem.MISSING, FileProblem.CHANGED, FileProblem.UNREADABLE})


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification came to: the certificate, the verdicts (VERDICTS_SCHEMA) and what is wrong with files."""

    certificate: Told
    verdicts: pl.DataFrame
    problems: pl.DataFrame

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
        verdicts = VERDICTS_SCHEMA.to_frame()
        if damaged & _CORE:
            self.not_looked_at += ["accounts", "records", "tables", "derived"]
        else:
            verdicts = self._step("accounts", lambda: self._prove(manifest, damaged))
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
            return VERDICTS_SCHEMA.to_frame() if name == "accounts" else None
        finally:
            self.seconds[name] = round(time.monotonic() - started, 3)

    def _check_files(self) -> Manifest | None:
        manifest, found = read_manifest(self._storage)
        self.found += found
        if manifest is not None:
            self.found += check_files(self._storage, manifest, self.study.processing.worker_count)
        return manifest

    def _check_frozen(self) -> None:
        self.frozen, found = check_frozen(self._storage, self.study.processing.worker_count)
        self.found += found

    def _prove(self, manifest: Manifest | None, damaged: set[str]) -> pl.DataFrame:
        """Return the verdicts on all accounts and all that is stored of them."""
        storage = self._storage
        known = {one.file for one in self.found}
        self.found += [one for one in stray_files(storage) if one.file not in known]
        tombstones = Tombstones.load(storage)
        if tombstones.unfinished or tombstones.left_in_frozen:
            self.found.append(Found(FileProblem.NOT_UP_TO_DATE, TOMBSTONES_KEY, "a purge is not finished"))
        attempts, unreadable = all_attempts(storage, damaged)
        keys, changed = stored_keys(storage)
        self.found += [*unreadable, *changed, *check_lists(self.study)]
        complete = attempts.filter(pl.col("outcome") == Outcome.COMPLETE.value)
        directory = asked_directory(self.study)
        current = snapshots(directory, attempts).select("did", "pds_host", "pack")
        # Of earlier ones nothing has to be checked that was not when they were fetched.
        signed = current if self.study.processing.verify == "full" else current.clear()
        packs = _packs(complete, keys, signed)
        proofs = work_on(self.study.location, proven_pack, packs, self._workers)
        parts = [VERDICTS_SCHEMA.to_frame()]
        for proof in proofs:
            parts.append(proof.verdicts)
            # Once is enough: of what the manifest has told of already.
            self.found += [one for one in proof.found if one.file not in damaged]
            self.records += proof.records
        lost = damaged | {one.file for one in unreadable if one.file is not None}
        if manifest is not None:
            if not lost:
                self.found += check_content(self.study, manifest, current)
            parts.append(_lost(manifest, lost, current))
        everybody = pl.concat([directory["did"], storage.read(SOURCE_KEY)["did"]])
        whole = _whole(pl.concat(parts), current, everybody)
        return _as_asked(whole, fetch_modes.OBTAINED[self.study.fetch])

    def _rebuild(self, verdicts: pl.DataFrame, damaged: set[str]) -> None:
        """Make everything that is made of packs again, as far as they are what they were."""
        if "accounts" in self.not_looked_at:
            self.not_looked_at.append("records")
        else:
            sound = self._sound_packs(verdicts)
            self._step("records", lambda: self._collect(checked_conversion, conversions(self.study, sound)))
        if (
            any(key.startswith("repos/") for key in damaged)
            or (verdicts["verdict"] == SnapshotVerdict.DAMAGED_FILE.value).any()
        ):
            self.not_looked_at += ["tables", "derived"]
            return
        self._step("tables", self._check_tables)
        self._step("derived", lambda: self.found.extend(check_derived(self.study)))

    def _sound_packs(self, verdicts: pl.DataFrame) -> set[tuple[str, str]]:
        """Return the packs (PDS host, pack) with snapshots of which nothing is known to be wrong but for a missing key.

        Of others it is known already, and what a conversion makes of what no fetch stores says nothing.
        """
        packs = ("pds_host", "pack")
        failed = [word.value for word in SnapshotVerdict if not (word.holds or word in _CONVERTED_YET)]
        wrong = verdicts.filter(pl.col("verdict").is_in(failed)).select(packs)
        own = verdicts.filter("is_snapshot").select(packs).unique().join(wrong, on=packs, how="anti")
        strays = {one.file for one in self.found if one.problem is FileProblem.STRAY_RECORDS}
        return {
            (host, pack)
            for host, pack in own.drop_nulls().iter_rows()
            if f"repos/{partition_folder(host)}/{pack}.parquet" not in strays
        }

    def _check_tables(self) -> None:
        self.found += check_table_files(self.study)
        self._collect(checked_part, table_parts(self.study))

    def _collect(self, work: Callable[..., list[Found]], pieces: Iterator[Any]) -> None:
        for found in work_on(self.study.location, work, pieces, self._workers):
            self.found += found

    def _store(
        self, verdicts: pl.DataFrame, manifest: Manifest | None, run_ids: Sequence[str]
    ) -> Verification:
        storage = self._storage
        found = {one.printable() for one in self.found}
        problems = pl.DataFrame(sorted(found, key=repr), schema=PROBLEMS_SCHEMA, orient="row")
        stored = {"verdicts": (VERDICTS_KEY, verdicts), "problems": (PROBLEMS_KEY, problems)}
        files = {name: storage.write(key, rows) for name, (key, rows) in stored.items()}
        earlier = verdicts.filter(~pl.col("is_snapshot"), pl.col("pack").is_not_null())
        of_accounts = verdicts.filter(pl.col("is_snapshot") | pl.col("pack").is_null())
        failed = sum(not SnapshotVerdict(word).holds for word in verdicts["verdict"])
        content = {
            "certificate_version": _VERSION,
            "study": self.study.name,
            "holds": not (failed or problems.height or self.not_looked_at),
            "accounts": of_accounts.height,
            "records": self.records,
            "verdicts": {
                "file": VERDICTS_KEY,
                "sha256": files["verdicts"].sha256,
                "digest": _digest(verdicts),
                "counts": _by(of_accounts, "verdict"),
                "counts_of_earlier_snapshots": _by(earlier, "verdict"),
                "key_sources": _by(of_accounts.drop_nulls("key_source"), "key_source"),
            },
            "problems": {
                "file": PROBLEMS_KEY,
                "sha256": files["problems"].sha256,
                "counts": _by(problems, "problem"),
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
        return Verification(certificate, verdicts, problems)


_STEPS = {
    "files": "Every file is read again and compared with the manifest.",
    "frozen": "Every file of the frozen builds is read again and compared with their own manifests.",
    "accounts": "Each account's blocks, tree, commit and signature are proven again.",
    "records": "Records are converted again.",
    "tables": "Tables are built again.",
    "derived": "The table of accounts, and what is derived, are made again.",
}


def _packs(complete: pl.DataFrame, keys: pl.DataFrame, signed: pl.DataFrame) -> Iterator[PackToProve]:
    """Yield the packs with complete accounts, each with what is known of its accounts' keys.

    `signed` are those (`did, pds_host, pack`) whose signatures must be checked.
    """
    packs = complete.select("pds_host", "pack").unique().sort(pl.all())
    own = complete.select("did", "pds_host", "pack").join(keys, on="did", how="inner", maintain_order="right")
    keys_of, signed_of = (
        rows.partition_by("pds_host", "pack", as_dict=True, include_key=False) for rows in (own, signed)
    )
    for host, pack in packs.iter_rows():
        rows = keys_of.get((host, pack), KEYS_SCHEMA.to_frame()).select(KEYS_SCHEMA.names())
        must_be = signed_of.get((host, pack))
        yield PackToProve(
            host,
            pack,
            f"repos/{partition_folder(host)}/{pack}.parquet",
            tuple(map(ToldKey._make, rows.iter_rows())),
            frozenset() if must_be is None else frozenset(must_be["did"]),
        )


def _lost(manifest: Manifest, lost: set[str], current: pl.DataFrame) -> pl.DataFrame:
    """Return verdicts on the snapshots that the manifest has and that are in packs which cannot be read."""
    rows = manifest.snapshots.join(current, on="did", how="anti")
    packs = [
        (host, pack)
        for host, pack in rows.select("pds_host", "pack").unique().iter_rows()
        if f"repos/{partition_folder(host)}/{pack}.parquet" in lost
    ]
    gone = pl.DataFrame(packs, schema={"pds_host": pl.String, "pack": pl.String}, orient="row")
    told = rows.join(gone, on=["pds_host", "pack"], how="semi").with_columns(
        is_snapshot=pl.lit(value=True),
        verdict=pl.lit(SnapshotVerdict.DAMAGED_FILE.value),
        records=pl.lit(0, pl.Int64),
        detail=pl.lit("its pack was not read"),
    )
    present = [name for name in VERDICTS_SCHEMA if name in told.columns]
    return pl.concat([VERDICTS_SCHEMA.to_frame(), told.select(present)], how="diagonal")


def _whole(verdicts: pl.DataFrame, current: pl.DataFrame, dids: pl.Series) -> pl.DataFrame:
    """Mark the verdicts on snapshots, and add those on accounts that have none."""
    is_current = current.with_columns(is_current=pl.lit(value=True))
    marked = verdicts.join(is_current, on=["did", "pds_host", "pack"], how="left").with_columns(
        is_snapshot=pl.col("is_snapshot") | pl.col("is_current").fill_null(value=False)
    )
    with_snapshot = marked.filter("is_snapshot").select("did")
    others = dids.unique().to_frame("did").join(with_snapshot, on="did", how="anti")
    # Whose pack was begun with, and could not be read to its end.
    unread = pl.col("pack").is_not_null()
    without = others.join(current, on="did", how="left").with_columns(
        is_snapshot=unread,
        verdict=pl.when(unread)
        .then(pl.lit(SnapshotVerdict.DAMAGED_FILE.value))
        .otherwise(pl.lit(SnapshotVerdict.NOTHING_STORED.value)),
        **dict.fromkeys(("records", "purged", "masked"), pl.lit(0, pl.Int64)),
    )
    both = pl.concat([marked.select(VERDICTS_SCHEMA.names()), without], how="diagonal")
    return both.sort("did", "pds_host", "pack", nulls_last=True)


def _as_asked(verdicts: pl.DataFrame, asked: Obtained) -> pl.DataFrame:
    """Let no snapshot pass that was obtained in a way that proves less than the one that the study asks for.

    One that proves more may be of before the study asked for less, or all that is left of an account.
    """
    enough = [way.value for way in _PROVING_LESS[: _PROVING_LESS.index(asked) + 1]]
    holding = [word.value for word in SnapshotVerdict if word.holds]
    other = (
        pl.col("is_snapshot")
        & (~pl.col("obtained").is_in(enough)).fill_null(value=False)
        & pl.col("verdict").is_in(holding)
    )
    detail = pl.format("obtained as {}, and not as " + asked.value, pl.col("obtained"))
    return verdicts.with_columns(
        verdict=pl.when(other).then(pl.lit(SnapshotVerdict.UNEXPLAINED.value)).otherwise("verdict"),
        detail=pl.when(other).then(detail).otherwise("detail"),
    )


def _by(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(sorted(Counter(rows[column]).items()))


def _digest(rows: pl.DataFrame) -> str:
    """Return the identity of rows, whatever library has written them."""
    told = hashlib.sha256()
    for row in rows.iter_rows():
        told.update(repr(row).encode())
    return told.hexdigest()
