"""Packs made by hand: repositories under keys that the tests hold, stored as a fetch stores them.

And what somebody could make of them who can write to every file, and mend every digest, but has no account's key.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from backfill_dagster.directory.evidence import EvidenceKind, EvidenceLog
from backfill_dagster.repos.blocks_file import BLOCKS_SCHEMA
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import Attempt, pack_keys
from backfill_dagster.repos.proof import Delivery, ProofSettings, prove_and_pack
from backfill_dagster.storage import RowGroupWriter, StudyStorage
from backfill_dagster.verification.keys import KEYS_SCHEMA, stored_keys
from backfill_dagster.verification.packs import PackProof, PackToProve, ToldKey, prove_pack
from backfill_dagster.verification.verdicts import Found
from backfill_dagster_tests.repos import forge

HOST = "pds.test"
FETCHED = datetime(2024, 12, 1, tzinfo=UTC)
DIDS = ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb")
SIGNERS: tuple[forge.Signer, ...] = (forge.K256Signer(b"\x31" * 32), forge.P256Signer(b"\x32" * 32))
REVS = ("3l4qxwyzabc2k", "3l4qxwyzabd2k")


def records_of(number: int, name: str = "") -> dict[str, object]:
    """Return a few records of two collections; `name` stands in the text of the first post."""
    posts: dict[str, object] = {
        f"app.bsky.feed.post/3kaaaaaaaaa{number}{rkey}": {
            "$type": "app.bsky.feed.post",
            "text": f"{rkey} {name if rkey == 2 else ''}",
            "createdAt": "2024-10-05T00:00:00Z",
        }
        for rkey in range(2, 8)
    }
    return {"app.bsky.actor.profile/self": {"$type": "app.bsky.actor.profile"}, **posts}


def repo_of(number: int, name: str = "", rev: str | None = None, records: int = 7) -> forge.ForgedRepo:
    """Return the repository of an account, at its second revision unless another is given."""
    some = dict(list(records_of(number, name).items())[:records])
    return forge.ForgedRepo(some, SIGNERS[number], {"did": DIDS[number], "rev": rev or REVS[1]})


def document(did: str, did_key: str, also: str = "at://somebody.test") -> bytes:
    """Write the DID document of an account."""
    return json.dumps(
        {
            "id": did,
            "alsoKnownAs": [also],
            "verificationMethod": [
                {
                    "id": f"{did}#atproto",
                    "type": "Multikey",
                    "publicKeyMultibase": did_key.removeprefix("did:key:"),
                }
            ],
            "service": [
                {
                    "id": "#atproto_pds",
                    "type": "AtprotoPersonalDataServer",
                    "serviceEndpoint": f"https://{HOST}",
                }
            ],
        }
    ).encode()


def store(root: Path, repos: Mapping[str, tuple[bytes, str]], *, with_documents: bool = True) -> StudyStorage:
    """Store repositories (CAR and the key that signed it, by DID) as one pack, and the documents with their keys."""
    storage = StudyStorage(root)
    root.mkdir(parents=True, exist_ok=True)
    log = EvidenceLog(storage)
    deliveries = []
    for did, (car, did_key) in repos.items():
        path = root / f"{did[-4:]}.car"
        path.write_bytes(car)
        attempt = Attempt(did, f"https://{HOST}", Outcome.COMPLETE, FETCHED)
        deliveries.append(Delivery(attempt, path, keys=(did_key,)))
        if with_documents:
            log.add(did, EvidenceKind.DID_DOCUMENT, document(did, did_key))
    log.flush()
    report = prove_and_pack(root, HOST, tuple(deliveries), ProofSettings(True, RepoLimits()))
    assert not report.rejected
    return storage


def two_accounts(root: Path, *, with_documents: bool = True) -> StudyStorage:
    """Store the repositories of two accounts."""
    cars = {DIDS[number]: (repo_of(number).car(), SIGNERS[number].did_key) for number in range(2)}
    return store(root, cars, with_documents=with_documents)


def prove(storage: StudyStorage, *, checks_signatures: bool = True) -> PackProof:
    """Prove the one pack again, with the keys of the stored documents."""
    [(host, pack, key)] = pack_keys(storage)
    stored = list(stored_keys(storage))
    found = [one for one in stored if isinstance(one, Found)]
    rows = [one for one in stored if isinstance(one, pl.DataFrame)]
    told = tuple(map(ToldKey._make, pl.concat([KEYS_SCHEMA.to_frame(), *rows]).iter_rows()))
    must_be_signed = frozenset(DIDS if checks_signatures else ())
    proof = prove_pack(storage.folder, PackToProve(host, pack, key, told, must_be_signed))
    return PackProof(proof.verdicts, [*found, *proof.found], proof.records)


def verdicts(storage: StudyStorage, *, checks_signatures: bool = True) -> list[str]:
    """Return the verdicts on the accounts of the one pack, by DID."""
    proof = prove(storage, checks_signatures=checks_signatures)
    return proof.verdicts.sort("did")["verdict"].to_list()


@dataclass
class Forgery:
    """A pack as rows that somebody changes at will: all digests are mended when it is written back."""

    storage: StudyStorage
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            [(_, _, self.key)] = pack_keys(self.storage)
        self.rows: list[dict[str, Any]] = pl.read_parquet(self.storage.path(self.key)).to_dicts()
        [self.file] = self.rows[0]["blocks_files"]
        self.blocks_key = f"{self.key.rpartition('/')[0]}/{self.file['name']}"
        table = pq.read_table(self.storage.path(self.blocks_key), partitioning=None)
        self.blocks: list[dict[str, Any]] = table.to_pylist()
        self.schema = pl.read_parquet_schema(self.storage.path(self.key))

    def of(self, did: str) -> dict[str, Any]:
        """Return the row of an account."""
        return next(row for row in self.rows if row["did"] == did)

    def blocks_of(self, did: str) -> list[dict[str, Any]]:
        """Return the records of an account."""
        return [block for block in self.blocks if block["did"] == did]

    def write(self) -> None:
        """Write all back, with sizes, rows and digests as they must be now."""
        path = self.storage.path(self.blocks_key)
        with RowGroupWriter(path, BLOCKS_SCHEMA, dictionary=("did", "collection")) as writer:
            writer.write(pa.Table.from_pylist(self.blocks, schema=BLOCKS_SCHEMA))
        told = {
            **self.file,
            "rows": len(self.blocks),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        rows = [{**row, "blocks_files": [told]} for row in self.rows]
        self.storage.write(self.key, pl.DataFrame(rows, schema=self.schema))


Change = Callable[[Forgery], None]
