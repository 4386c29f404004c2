"""The commit: the signed object at the root of a repository.

https://atproto.com/specs/repository#commit-objects
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from cbrrr import CID, decode_dag_cbor, encode_dag_cbor

from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.tid import parse_tid


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit: whose it is, the tree's root, and what was signed.

    `rev` is None only in version 2, of which old files are. `unsigned` is the block less its `sig` field: what
    the signature covers, with any field that this version of the protocol does not know.
    """

    did: str
    version: int
    rev: str | None
    data: bytes
    unsigned: bytes
    signature: bytes


def parse_commit(block: bytes) -> Commit:
    """Read a commit of version 3 or 2. Its signature is not checked here.

    Raises RepoRejectedError (bad_commit).
    """
    try:
        # Unlike libipld, this decoder tells links from byte strings.
        fields = decode_dag_cbor(block)
    except ValueError as error:
        raise _bad_commit(f"it is not DAG-CBOR ({error!s:.100})") from None
    if not isinstance(fields, dict):
        raise _bad_commit("it is not a map")
    version = fields.get("version")
    if type(version) is not int or version not in (2, 3):
        # The plain `repr` gives up on what nests deeply, with an error of its own.
        raise _bad_commit(f"its version is {reprlib.repr(version)}")
    did, data, signature = fields.get("did"), fields.get("data"), fields.get("sig")
    if not isinstance(did, str):
        raise _bad_commit("it has no DID")
    if not isinstance(signature, bytes):
        raise _bad_commit("it is not signed")
    if not isinstance(data, CID) or not _links_to_dag_cbor(data):
        raise _bad_commit("it has no link to a tree")
    # Early commits left `prev` out; nothing here follows it.
    before = fields.get("prev")
    if before is not None and not (isinstance(before, CID) and _links_to_dag_cbor(before)):
        raise _bad_commit("its link to the commit before is none")
    # The decoder refuses every other encoding; what was signed is made below on the strength of that.
    if encode_dag_cbor(fields) != block:
        raise _bad_commit("it is not in canonical encoding")
    return Commit(
        did=did,
        version=version,
        rev=_revision(fields.get("rev"), version),
        data=data.cid_bytes,
        unsigned=encode_dag_cbor({name: value for name, value in fields.items() if name != "sig"}),
        signature=signature,
    )


def _links_to_dag_cbor(cid: CID) -> bool:
    return len(cid.cid_bytes) == CID_BYTES and cid.cid_bytes.startswith(DAG_CBOR_PREFIX)


def _revision(rev: object, version: int) -> str | None:
    if rev is None and version == 2:
        return None
    # Snapshots are ordered by it, so it must be what it should be.
    if not isinstance(rev, str) or parse_tid(rev) is None:
        raise _bad_commit(f"its revision is {reprlib.repr(rev)}")
    return rev


def _bad_commit(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_COMMIT, f"the root block is no commit: {detail}")
