"""What must hold for every file, whatever was done to it: each breach is a finding.

Of verification: nothing but RepoRejectedError escapes; it is refused exactly if the independent reader finds it
unlawful, unless it is refused for a size that it really has; what is accepted says what the reader reads; a file
that was changed blindly says what it said before, since no hash was mended. Of the tables: nothing escapes; every
leaf is kept, filtered or rejected as its key and its bytes deserve, and the counts sum up to the leaves; a record's
JSON is the record. Of both: no call takes longer than a bound.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from base64 import b32encode, b64encode
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import libipld
from cbrrr import decode_dag_cbor

from backfill_dagster.records.outcomes import Fate
from backfill_dagster.records.settings import RecordSettings, StudyPeriod
from backfill_dagster.records.tables import COLLECTIONS
from backfill_dagster.records.transform import TransformedRecords, transform_records
from backfill_dagster.repos.car_bytes import CarFile
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.nesting import nests_deeper
from backfill_dagster.repos.verify import VerifiedRepo, verify_repo
from backfill_dagster_tests.fuzz.reader import DAG_CBOR, Repo, Sizes, UnlawfulError, read_repo
from backfill_dagster_tests.records.batches import SCHEMA, accounts, blocks
from backfill_dagster_tests.repos.forge import Link
from backfill_dagster_tests.repos.plain import plain_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl

    from backfill_dagster_tests.fuzz.cases import Case

ACCEPTED = "accepted"
# Wall time of one call, in seconds. A call beyond it is made again, since the machine may have been busy.
MAX_SECONDS = 2.0
ATTEMPTS = 3

LIMITS = RepoLimits()
LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9]{0,62}")
RECORD_KEY = re.compile(r"[a-zA-Z0-9._:~-]{1,512}")
MAX_RECORD_BYTES = 4 * 2**20
MAX_NESTING = 250
# Decoders reserve up to eight bytes for each of the first at each of the second.
MAX_DECODED = 2**27
_NOT_OPENING = bytes(byte for byte in range(256) if not 0x80 <= byte <= 0xBB)

NORMALIZE = RecordSettings(frozenset(COLLECTIONS), StudyPeriod(), "normalize")
DROP = RecordSettings(
    frozenset(COLLECTIONS[1:]),
    StudyPeriod(datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 12, 2, tzinfo=UTC)),
    "drop",
    keep_record_json=False,
)


@dataclass(frozen=True)
class Verdict:
    """What became of one file: `accepted` or the fault's name, how long that took, and what should not have been."""

    case: Case
    outcome: str
    seconds: float
    findings: tuple[str, ...] = ()
    repo: Repo | None = None


@dataclass
class TableVerdict:
    """What became of accepted files in the tables."""

    seconds: float = 0.0
    records: int = 0
    findings: list[str] = field(default_factory=list)


def judge_file(case: Case, verify: Callable[..., VerifiedRepo] = verify_repo) -> Verdict:
    """Verify a file, and hold the answer against the independent reader's."""
    findings: list[str] = []
    verified, outcome, seconds = _verify(case, verify, findings)
    expected: Repo | None = None
    unlawful = ""
    try:
        expected = read_repo(case.car, case.did, case.did_key)
    except UnlawfulError as error:
        unlawful = str(error)
    if verified is not None and expected is None:
        findings.append(f"{case}: accepted, though {unlawful}")
    elif verified is not None and expected is not None:
        findings += _differences(case, verified, expected)
    elif expected is not None and not findings and not _is_too_large(outcome, expected.sizes):
        findings.append(f"{case}: refused as {outcome}, though it is lawful")
    if seconds > MAX_SECONDS:
        findings.append(f"{case}: took {seconds:.1f} s to verify")
    return Verdict(case, outcome, seconds, tuple(findings), expected if verified is not None else None)


def _verify(
    case: Case, verify: Callable[..., VerifiedRepo], findings: list[str]
) -> tuple[VerifiedRepo | None, str, float]:
    seconds = float("inf")
    verified: VerifiedRepo | None = None
    outcome = ""
    for _ in range(ATTEMPTS):
        key = SigningKey.from_did_key(case.did_key)
        car = _in_file(case.car) if case.number % 4 < 2 else case.car
        start = time.perf_counter()
        try:
            verified, outcome = verify(car, did=case.did, keys=[key], limits=LIMITS), ACCEPTED
        except RepoRejectedError as error:
            outcome = error.fault.value
        except Exception as error:  # noqa: BLE001
            # Also MemoryError and RecursionError: whatever it is, it would have ended a worker's whole batch.
            outcome = f"raised {type(error).__name__}"
            findings.append(f"{case}: verification raised {_where(error)}")
        seconds = min(seconds, time.perf_counter() - start)
        if seconds <= MAX_SECONDS:
            break
    return verified, outcome, seconds


def _where(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r:.200} at {place.filename}:{place.lineno}"


def _in_file(car: bytes) -> CarFile:
    """Return a file's content as production has that of a large one."""
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, car, 0)
    return CarFile(_FILE)


_FILE = os.memfd_create("car")


def _differences(case: Case, found_repo: VerifiedRepo, expected: Repo) -> list[str]:
    verified = plain_repo(found_repo, case.car)
    paths = [
        f"{collection}/{rkey}" for collection, rkey in zip(verified.collections, verified.rkeys, strict=True)
    ]
    # A key without a slash is a collection alone.
    keys = [key.decode() if b"/" in key else key.decode() + "/" for key in expected.leaves]
    found = list(
        zip(paths, verified.cids, [case.car[start:end] for start, end in verified.spans], strict=True)
    )
    differences = []
    if found != [(key, cid, block) for key, (cid, block) in zip(keys, expected.leaves.values(), strict=True)]:
        differences.append(f"{case}: other records than the independent reader's")
    commit = (verified.did, verified.rev, verified.commit_cid, verified.commit_block)
    if commit != (case.did, expected.rev, expected.commit_cid, expected.commit_block):
        differences.append(f"{case}: another commit than the independent reader's")
    if (verified.signed_by, verified.signing_key) != ("current", case.did_key):
        differences.append(f"{case}: signed by {verified.signed_by} {verified.signing_key}")
    if case.original is not None:
        # Nobody mended a hash or signed again, so that nothing else can have been said.
        records = {key: block for key, (_, block) in expected.leaves.items()}
        if records != case.original.records or expected.commit_block not in case.original.car:
            differences.append(f"{case}: accepted, though it says something else than before")
    return differences


def _is_too_large(outcome: str, sizes: Sizes) -> bool:
    return outcome == RepoFault.TOO_LARGE and (
        sizes.car_bytes > LIMITS.max_car_bytes
        or sizes.sections > LIMITS.max_blocks
        or sizes.commit_bytes > LIMITS.max_commit_bytes
        or sizes.largest_node_bytes > LIMITS.max_node_bytes
        or sizes.most_entries > LIMITS.max_node_entries
    )


def judge_tables(
    verdicts: Sequence[Verdict], transform: Callable[..., TransformedRecords] = transform_records
) -> TableVerdict:
    """Make tables of accepted files, all at once, and hold them against what each record deserves.

    Each file counts as another account's. If the batch goes wrong, each file is looked at alone.
    """
    verdict = TableVerdict(records=sum(len(_leaves(item)) for item in verdicts))
    settings = DROP if verdicts[0].case.number % 3 == 0 else NORMALIZE
    dids = [_did(item.case.number) for item in verdicts]
    rows = blocks([row for item in verdicts for row in _rows(item)]).cast(SCHEMA)
    verdict.seconds = float("inf")
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        try:
            result = transform(rows, accounts(*dids), settings)
        except Exception as error:  # noqa: BLE001
            if len(verdicts) == 1:
                verdict.findings.append(f"{verdicts[0].case}: its records raised {_where(error)}")
            else:
                singly = [judge_tables([item], transform) for item in verdicts]
                verdict.findings = [finding for item in singly for finding in item.findings]
                names = ", ".join(str(item.case) for item in verdicts)
                verdict.findings = verdict.findings or [f"only together raise {_where(error)}: {names}"]
            return verdict
        verdict.seconds = min(verdict.seconds, time.perf_counter() - start)
        if verdict.seconds <= MAX_SECONDS:
            break
    if verdict.seconds > MAX_SECONDS:
        names = ", ".join(str(item.case) for item in verdicts)
        verdict.findings.append(f"took {verdict.seconds:.1f} s to lay out: {names}")
    verdict.findings += _table_findings(verdicts, result, settings)
    return verdict


def _leaves(verdict: Verdict) -> dict[bytes, tuple[bytes, bytes]]:
    assert verdict.repo is not None
    return verdict.repo.leaves


def _did(number: int) -> str:
    return "did:plc:" + "".join("abcdefghij"[int(digit)] for digit in f"{number:024d}")


def _rows(verdict: Verdict) -> list[dict[str, Any]]:
    did = _did(verdict.case.number)
    rows = []
    for key, (cid, block) in _leaves(verdict).items():
        collection, _, rkey = key.decode().partition("/")
        rows.append({"did": did, "collection": collection, "rkey": rkey, "cid": cid, "block": block})
    return rows


def _table_findings(
    verdicts: Sequence[Verdict], result: TransformedRecords, settings: RecordSettings
) -> list[str]:
    key = ("did", "collection", "rkey")
    kept = {
        tuple(path): text
        for frame in result.tables.values()
        for *path, text in _columns(frame, *key, "record")
    }
    rejected = set(_columns(result.rejects, *key))
    counted: Counter[tuple[str, str]] = Counter()
    for did, fate, records in _columns(result.counts, "did", "fate", "records"):
        counted[did, fate] += records
    found = Counter((did, Fate.KEPT.value) for did, _, _ in kept)
    found.update((did, Fate.REJECTED.value) for did, _, _ in rejected)
    findings = []
    for verdict in verdicts:
        did, rows, case = _did(verdict.case.number), _rows(verdict), verdict.case
        if sum(counted[did, fate.value] for fate in Fate) != len(rows):
            findings.append(f"{case}: the counts do not sum up to the leaves")
        findings += [
            f"{case}: the counts of {fate} records are not what is there"
            for fate in (Fate.KEPT.value, Fate.REJECTED.value)
            if counted[did, fate] != found[did, fate]
        ]
        for row in rows:
            path = (did, row["collection"], row["rkey"])
            fate = Fate.KEPT if path in kept else Fate.REJECTED if path in rejected else Fate.FILTERED
            finding = _record_finding(row, fate, kept.get(path), settings)
            findings += [f"{case}: {finding}"] if finding else []
    return findings


def _columns(frame: pl.DataFrame, *names: str) -> Iterator[tuple[Any, ...]]:
    return frame.select(names).iter_rows()


def _record_finding(
    row: dict[str, Any], fate: Fate, text: str | None, settings: RecordSettings
) -> str | None:
    key, block = (row["collection"], row["rkey"]), row["block"]
    fates = _lawful_fates(*key, row["cid"], block, settings.record_types)
    if settings.outside == "drop" and Fate.KEPT in fates:
        # Whether its date is in the period is not asked here.
        fates |= {Fate.FILTERED}
    if fate not in fates:
        return f"{key} is {fate}, not {' or '.join(sorted(fates))}"
    if text is not None and not _is_same_json(text, block):
        return f"the JSON of {key} is not its record"
    return None


@lru_cache(maxsize=4096)
def _lawful_fates(
    collection: str, rkey: str, cid: bytes, block: bytes, record_types: frozenset[str]
) -> frozenset[Fate]:
    """Say what may become of a record: two answers only for what one decoder reads, and the other does not."""
    if not _is_nsid(collection):
        return frozenset({Fate.REJECTED})
    if collection not in record_types:
        return frozenset({Fate.FILTERED})
    if not RECORD_KEY.fullmatch(rkey) or rkey in (".", "..") or not cid.startswith(DAG_CBOR):
        return frozenset({Fate.REJECTED})
    if len(block) > MAX_RECORD_BYTES or _is_a_bomb(block):
        return frozenset({Fate.REJECTED})
    fates = set()
    for decode in (decode_dag_cbor, libipld.decode_dag_cbor):
        try:
            record = decode(block)
        except (ValueError, RecursionError, MemoryError):
            fates.add(Fate.REJECTED)
        else:
            lawful = isinstance(record, dict) and _levels(record) <= MAX_NESTING
            fates.add(Fate.KEPT if lawful else Fate.REJECTED)
    return frozenset(fates)


def _is_a_bomb(block: bytes) -> bool:
    """Tell what no decoder here may touch; `test_nesting.py` shows that nothing lawful is among it."""
    if len(block) * len(block.translate(None, _NOT_OPENING)) <= MAX_DECODED:
        return False
    try:
        return nests_deeper(block, MAX_NESTING)
    except ValueError:
        return True


def _is_nsid(text: str) -> bool:
    *labels, name = text.split(".")
    return (
        len(text) <= 317
        and len(labels) > 1
        and all(LABEL.fullmatch(label) for label in labels)
        and not labels[0][0].isdigit()
        and NAME.fullmatch(name) is not None
    )


def _levels(value: object) -> int:
    levels = 0
    level: list[Any] = [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        levels += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return levels


@lru_cache(maxsize=4096)
def _is_same_json(text: str, block: bytes) -> bool:
    try:
        record = decode_dag_cbor(block, cid_ctor=Link)
    except ValueError:
        # One decoder only reads it; it has no link, or this would be the one.
        record = libipld.decode_dag_cbor(block)
    return bool(_of_json(json.loads(text)) == _of_json(_as_json(record)))


def _as_json(value: Any) -> Any:
    match value:
        case Link():
            return {"$link": "b" + b32encode(value).decode().lower().rstrip("=")}
        case bytes():
            return {"$bytes": b64encode(value).decode().rstrip("=")}
        case dict():
            return {name: _as_json(item) for name, item in value.items()}
        case list():
            return [_as_json(item) for item in value]
    return value


def _of_json(value: Any) -> Any:
    """Make values comparable: numbers by their digits, and links of version 0, which have a form of their own."""
    match value:
        case {"$link": str(text)} if len(value) == 1:
            return "a link of version 0" if text.startswith(("Qm", "bciq")) else value
        case dict():
            return {name: _of_json(item) for name, item in value.items()}
        case list():
            return [_of_json(item) for item in value]
        case bool() | None:
            return value
        case int() | float():
            return repr(value)
    return value
