"""Content identifiers (CIDs), in the one form that repositories use.

That form is 36 bytes: version 1, a codec (DAG-CBOR, or raw), and a SHA-256 multihash
(https://atproto.com/specs/data-model#link-and-cid-formats).
"""

from __future__ import annotations

import hashlib

import libipld

from backfill_dagster.repos.varint import read_varint

CID_BYTES = 36
# Version 1, codec, SHA-256, 32 bytes of digest: what stands before the digest.
DAG_CBOR_PREFIX = b"\x01\x71\x12\x20"
RAW_PREFIX = b"\x01\x55\x12\x20"
PREFIX_BYTES = len(DAG_CBOR_PREFIX)

_CID_V0_HEAD = b"\x12\x20"
_CID_V0_BYTES = 34


def dag_cbor_cid(block: bytes) -> bytes:
    """Return the CID of a DAG-CBOR block."""
    return DAG_CBOR_PREFIX + hashlib.sha256(block).digest()


def is_repo_cid(cid: bytes) -> bool:
    """Say whether a CID has the form that repositories use, so that its block can be checked."""
    return len(cid) == CID_BYTES and cid.startswith((DAG_CBOR_PREFIX, RAW_PREFIX))


def cid_text(cid: bytes) -> str:
    """Return a CID as text, in base32 (`bafy...`, `bafk...`). Raises ValueError if it does not begin with one.

    Whatever stands behind its end is left out, so `is_repo_cid` comes first where there may be something.
    """
    text: str = libipld.encode_cid(cid)
    return text


def cid_length(data: bytes, position: int, end: int) -> int:
    """Return how many bytes the CID at `position` has, whatever its version, codec and hash function.

    Raises ValueError or EOFError if no whole CID stands there before `end`.
    """
    if data[position : position + len(_CID_V0_HEAD)] == _CID_V0_HEAD:
        length = _CID_V0_BYTES
    else:
        version, after = read_varint(data, position, end)
        if version != 1:
            raise ValueError(f"CID version {version} is unknown")
        for _ in ("codec", "hash function"):
            _, after = read_varint(data, after, end)
        digest_bytes, after = read_varint(data, after, end)
        length = after - position + digest_bytes
    if position + length > end:
        raise EOFError("the data ends inside a CID")
    return length
