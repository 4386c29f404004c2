"""A slow reader of repositories, written from the specifications alone, to hold the package against.

It shares no code with the package: cbrrr decodes all, `cryptography` checks signatures on both curves, and of the
tree it asks one thing only. A tree is a function of its contents, so the reader gathers the leaves without judging
the way to them, builds the tree of these leaves anew, and compares the roots: every rule of the tree's shape and
encoding is in that comparison.

Sources: https://ipld.io/specs/transport/car/carv1/, https://atproto.com/specs/repository and .../cryptography.
Where they leave something open the package's documented choice is taken: header and commit may have further fields,
commits of version 2 have no revision, a key is UTF-8 of at most 1,024 bytes but need be no path.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cbrrr import CID, decode_dag_cbor, encode_dag_cbor
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from backfill_dagster_tests.repos.forge import BASE58, K256_ORDER, P256_ORDER

if TYPE_CHECKING:
    from collections.abc import Sequence

DAG_CBOR, RAW = b"\x01\x71\x12\x20", b"\x01\x55\x12\x20"
MAX_HEADER_BYTES = 8192
MAX_KEY_BYTES = 1024
# A hash of 256 bits has room for no more layers.
MAX_LAYERS = 128
REVISION = re.compile("[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")


class UnlawfulError(Exception):
    """The file breaks a rule."""


@dataclass(frozen=True)
class Sizes:
    """How large the file is in each dimension that an implementation may bound."""

    car_bytes: int
    sections: int
    commit_bytes: int
    largest_node_bytes: int
    most_entries: int


@dataclass(frozen=True)
class Repo:
    """What a lawful file says: its commit, and CID and block of the record at each key, in the keys' order."""

    commit_cid: bytes
    commit_block: bytes
    rev: str | None
    leaves: dict[bytes, tuple[bytes, bytes]]
    sizes: Sizes


def read_repo(car: bytes, did: str, did_key: str) -> Repo:
    """Read a file as the whole repository of `did`, signed by the key `did:key:...`. Raises UnlawfulError."""
    root, blocks, sections = read_car(car)
    commit_block = _block(blocks, root)
    commit = _fields(commit_block)
    _require(commit.get("did") == did, "it is another account's")
    rev = _revision(commit)
    for name in ("data", "prev"):
        link = commit.get(name)
        _require((link is None and name == "prev") or _is_dag_cbor_link(link), f"{name} is no link")
    signed = encode_dag_cbor({name: value for name, value in commit.items() if name != "sig"})
    _require(is_signed(signed, commit.get("sig"), did_key), "the signature is not the key's")
    tree = Tree(blocks)
    leaves = tree.leaves(commit["data"].cid_bytes)
    sizes = Sizes(len(car), sections, len(commit_block), tree.largest_node_bytes, tree.most_entries)
    records = {key: (cid, _block(blocks, cid)) for key, cid in leaves.items()}
    return Repo(root, commit_block, rev, records, sizes)


def read_car(car: bytes) -> tuple[bytes, dict[bytes, bytes], int]:
    """Return the one root, the blocks that have the hash of their CID, and the number of sections."""
    stream = BytesIO(car)
    length = _varint(stream)
    _require(0 < length <= MAX_HEADER_BYTES, "the header has no lawful length")
    header = _fields(_take(stream, length))
    _require(type(header.get("version")) is int and header["version"] == 1, "it is no CAR of version 1")
    roots = header.get("roots")
    _require(isinstance(roots, list) and len(roots) == 1, "there is not one root")
    root = header["roots"][0]
    _require(_is_dag_cbor_link(root), "the root is no link to DAG-CBOR")
    blocks: dict[bytes, bytes] = {}
    sections = 0
    while stream.tell() < len(car):
        sections += 1
        section = BytesIO(_take(stream, _varint(stream)))
        cid = _cid(section)
        block = section.read()
        if cid[:4] in (DAG_CBOR, RAW) and len(cid) == 36 and hashlib.sha256(block).digest() == cid[4:]:
            blocks[cid] = block
    return root.cid_bytes, blocks, sections


class Tree:
    """Reads trees out of blocks, and measures them on the way."""

    def __init__(self, blocks: dict[bytes, bytes]) -> None:
        self.blocks = blocks
        self.largest_node_bytes = 0
        self.most_entries = 0

    def leaves(self, root: bytes) -> dict[bytes, bytes]:
        """Return the CIDs of all records by key, in order. Raises UnlawfulError if this is not their tree."""
        found: list[tuple[bytes, bytes]] = []
        self._gather(root, set(), 0, found)
        leaves = dict(sorted(found))
        _require(len(leaves) == len(found), "a key stands twice")
        for key in leaves:
            _require(0 < len(key) <= MAX_KEY_BYTES, "a key has no lawful length")
            try:
                key.decode()
            except UnicodeDecodeError:
                raise UnlawfulError("a key is not UTF-8") from None
        _require(root_of(leaves) == root, "the tree of these leaves is another")
        return leaves

    def _gather(self, cid: bytes, visited: set[bytes], depth: int, found: list[tuple[bytes, bytes]]) -> None:
        _require(depth <= MAX_LAYERS, "the tree has more layers than a hash has bits for")
        # Its keys would stand twice, or it has none: no lawful tree has a node in two places.
        _require(cid not in visited, "a node stands in two places")
        visited.add(cid)
        block = _block(self.blocks, cid)
        node = _fields(block)
        entries = node.get("e")
        _require(isinstance(entries, list), "a node has no entries")
        assert isinstance(entries, list)
        self.largest_node_bytes = max(self.largest_node_bytes, len(block))
        self.most_entries = max(self.most_entries, len(entries))
        self._descend(node.get("l"), visited, depth, found)
        key = b""
        for entry in entries:
            _require(isinstance(entry, dict), "an entry is no map")
            shared, rest, value = entry.get("p"), entry.get("k"), entry.get("v")
            _require(type(shared) is int and isinstance(rest, bytes) and isinstance(value, CID), "odd entry")
            _require(0 <= shared <= len(key), "a prefix is longer than what it is a part of")
            key = key[:shared] + rest
            found.append((key, value.cid_bytes))
            self._descend(entry.get("t"), visited, depth, found)

    def _descend(
        self, link: object, visited: set[bytes], depth: int, found: list[tuple[bytes, bytes]]
    ) -> None:
        if link is not None:
            _require(isinstance(link, CID), "a subtree is no link")
            assert isinstance(link, CID)
            self._gather(link.cid_bytes, visited, depth + 1, found)


def root_of(leaves: dict[bytes, bytes]) -> bytes:
    """Return the CID of the tree of these leaves, by the definition of that tree."""
    keys = sorted(leaves)
    layers = {key: layer_of(key) for key in keys}

    def subtree(keys: Sequence[bytes], layer: int) -> CID | None:
        if not keys:
            return None
        here = [place for place, key in enumerate(keys) if layers[key] == layer]
        ends = [*here[1:], len(keys)]
        left = subtree(keys[: here[0]] if here else keys, layer - 1)
        entries: list[Any] = []
        before = b""
        for place, end in zip(here, ends, strict=False):
            key = keys[place]
            shared = next(
                (n for n, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), len(before)
            )
            tree = subtree(keys[place + 1 : end], layer - 1)
            entries.append({"p": shared, "k": key[shared:], "v": CID(leaves[key]), "t": tree})
            before = key
        return _cid_of({"l": left, "e": entries})

    root = subtree(keys, max(layers.values(), default=0)) or _cid_of({"l": None, "e": []})
    return bytes(root)


@lru_cache(maxsize=20_000)
def layer_of(key: bytes) -> int:
    """Return the number of zero bits at the start of the key's SHA-256, in pairs."""
    bits = "".join(f"{byte:08b}" for byte in hashlib.sha256(key).digest())
    return (len(bits) - len(bits.lstrip("0"))) // 2


def is_signed(message: bytes, signature: object, did_key: str) -> bool:
    """Tell whether a signature is the key's, in the one form that the protocol allows."""
    if not isinstance(signature, bytes) or len(signature) != 64:
        return False
    multikey = _unbase58(did_key.removeprefix("did:key:z"))
    curve: ec.EllipticCurve
    curve, order = (
        (ec.SECP256K1(), K256_ORDER) if multikey.startswith(b"\xe7\x01") else (ec.SECP256R1(), P256_ORDER)
    )
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    if s > order // 2:
        return False
    key = ec.EllipticCurvePublicKey.from_encoded_point(curve, multikey[2:])
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _unbase58(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + BASE58.index(character)
    return number.to_bytes(35)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UnlawfulError(otherwise)


def _take(stream: BytesIO, length: int) -> bytes:
    taken = stream.read(length)
    _require(len(taken) == length, "it ends too early")
    return taken


def _varint(stream: BytesIO) -> int:
    digits = [_take(stream, 1)[0]]
    while digits[-1] & 0x80:
        _require(len(digits) < 9, "a varint has more than nine bytes")
        digits.append(_take(stream, 1)[0])
    _require(len(digits) == 1 or digits[-1] != 0, "a varint is not as short as it could be")
    return sum((digit & 0x7F) << 7 * place for place, digit in enumerate(digits))


def _cid(section: BytesIO) -> bytes:
    """Take the CID that a section begins with, of whatever kind."""
    start = section.read(2)
    section.seek(0)
    if start == b"\x12\x20":
        return _take(section, 34)
    _require(_varint(section) == 1, "a CID has an unknown version")
    for _ in ("codec", "hash function"):
        _varint(section)
    _take(section, _varint(section))
    length = section.tell()
    section.seek(0)
    return _take(section, length)


def _block(blocks: dict[bytes, bytes], cid: bytes) -> bytes:
    _require(cid in blocks, "a block is missing, or has not the hash of its CID")
    return blocks[cid]


def _fields(block: bytes) -> dict[str, Any]:
    try:
        value = decode_dag_cbor(block)
    except (ValueError, RecursionError, MemoryError) as error:
        raise UnlawfulError(f"a block is not DAG-CBOR: {error}") from None
    _require(isinstance(value, dict), "a block is no map")
    assert isinstance(value, dict)
    _require(encode_dag_cbor(value) == block, "a block is not in its canonical form")
    return value


def _revision(commit: dict[str, Any]) -> str | None:
    version, rev = commit.get("version"), commit.get("rev")
    _require(type(version) is int and version in (2, 3), "the version is unknown")
    if rev is None and version == 2:
        return None
    _require(isinstance(rev, str) and REVISION.fullmatch(rev) is not None, "the revision is no TID")
    return str(rev)


def _is_dag_cbor_link(value: object) -> bool:
    return isinstance(value, CID) and value.cid_bytes.startswith(DAG_CBOR) and len(value.cid_bytes) == 36


def _cid_of(value: Any) -> CID:
    return CID(DAG_CBOR + hashlib.sha256(encode_dag_cbor(value)).digest())
