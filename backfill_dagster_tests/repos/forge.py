"""Repositories made by hand for the tests, sound or broken in any way a test asks for.

Deliberately shares nothing with the package under test, nor with its CBOR libraries: a mistake made in both places
would otherwise prove itself right.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coincurve import PrivateKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
REV = "3l4qxwyzabc2k"

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Link(bytes):
    """A CID that is to be written as a link (tag 42), where plain bytes are written as a byte string."""


def cbor(value: object) -> bytes:
    """Canonical DAG-CBOR: shortest heads, map keys by length and then by bytes, links as tag 42."""
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case Link():
            return b"\xd8\x2a" + head(2, len(value) + 1) + b"\x00" + value
        case bytes():
            return head(2, len(value)) + value
        case str():
            text = value.encode()
            return head(3, len(text)) + text
        case list() | tuple():
            return head(4, len(value)) + b"".join(cbor(item) for item in value)
        case dict():
            return ordered_map(
                sorted(value.items(), key=lambda item: (len(item[0].encode()), item[0].encode()))
            )
    raise TypeError(type(value))


def ordered_map(items: Iterable[tuple[str, object]]) -> bytes:
    """A map whose keys stand in the order given, canonical or not."""
    pairs = [cbor(key) + cbor(value) for key, value in items]
    return head(5, len(pairs)) + b"".join(pairs)


def head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | extra]) + argument.to_bytes(size, "big")
    raise OverflowError(argument)


def cid_of(block: bytes, codec: int = 0x71) -> Link:
    return Link(bytes([1, codec, 0x12, 0x20]) + hashlib.sha256(block).digest())


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(0x80 | number & 0x7F)
        number >>= 7
    out.append(number)
    return bytes(out)


def frame(cid: bytes, block: bytes) -> bytes:
    return varint(len(cid) + len(block)) + cid + block


def car_header(roots: Sequence[bytes], version: int = 1) -> bytes:
    header = cbor({"roots": [Link(root) for root in roots], "version": version})
    return varint(len(header)) + header


def car(root: bytes, blocks: Mapping[Link, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    pairs = blocks.items() if isinstance(blocks, Mapping) else blocks
    return car_header([root]) + b"".join(frame(cid, block) for cid, block in pairs)


def layer_of(key: bytes) -> int:
    bits = bin(int.from_bytes(hashlib.sha256(key).digest(), "big") | 1 << 256)[3:]
    return (len(bits) - len(bits.lstrip("0"))) // 2


def keys_at_layer(layer: int, count: int, collection: str = "app.bsky.feed.post") -> list[bytes]:
    """The first `count` of a fixed sequence of keys that belong on this layer, ascending."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = f"{collection}/{number:08d}".encode()
        if layer_of(key) == layer:
            found.append(key)
        number += 1
    return found


def entry(key: bytes, value: bytes, tree: bytes | None = None, *, previous: bytes = b"") -> dict[str, object]:
    shared = 0
    while shared < min(len(previous), len(key)) and previous[shared] == key[shared]:
        shared += 1
    return {"p": shared, "k": key[shared:], "v": Link(value), "t": None if tree is None else Link(tree)}


def node(entries: Sequence[dict[str, object]], left: bytes | None = None) -> bytes:
    return cbor({"e": list(entries), "l": None if left is None else Link(left)})


def tree(leaves: Mapping[bytes, Link]) -> tuple[Link, dict[Link, bytes]]:
    """The one tree that holds these leaves: its root and its blocks."""
    blocks: dict[Link, bytes] = {}

    def put(block: bytes) -> Link:
        cid = cid_of(block)
        blocks[cid] = block
        return cid

    def build(keys: Sequence[bytes], layer: int) -> Link | None:
        if not keys:
            return None
        here = [i for i, key in enumerate(keys) if layer_of(key) == layer]
        cuts = [*here, len(keys)]
        left = build(keys[: cuts[0]], layer - 1)
        entries = []
        previous = b""
        for i, cut in zip(here, cuts[1:], strict=True):
            right = build(keys[i + 1 : cut], layer - 1)
            entries.append(entry(keys[i], leaves[keys[i]], right, previous=previous))
            previous = keys[i]
        return put(node(entries, left))

    keys = sorted(leaves)
    root = build(keys, max(map(layer_of, keys), default=0))
    return root or put(node([])), blocks


class Signer(Protocol):
    @property
    def did_key(self) -> str: ...

    def sign(self, message: bytes) -> bytes: ...


def base58(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


@dataclass(frozen=True)
class K256Signer:
    secret: bytes = b"\x11" * 32

    @property
    def public(self) -> bytes:
        return PrivateKey(self.secret).public_key.format(compressed=True)

    @property
    def did_key(self) -> str:
        return "did:key:z" + base58(b"\xe7\x01" + self.public)

    def sign(self, message: bytes) -> bytes:
        return PrivateKey(self.secret).sign_recoverable(message)[:64]


@dataclass(frozen=True)
class P256Signer:
    secret: bytes = b"\x22" * 32

    @property
    def _private(self) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(int.from_bytes(self.secret, "big"), ec.SECP256R1())

    @property
    def public(self) -> bytes:
        point = self._private.public_key().public_numbers()
        return bytes([2 + (point.y & 1)]) + point.x.to_bytes(32, "big")

    @property
    def did_key(self) -> str:
        return "did:key:z" + base58(b"\x80\x24" + self.public)

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._private.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + min(s, P256_ORDER - s).to_bytes(32, "big")


def commit(data: bytes, signer: Signer, /, **fields: object) -> bytes:
    """A signed commit; a field set to `...` is left out, any other value replaces the usual one."""
    unsigned: dict[str, object] = {"did": DID, "version": 3, "data": Link(data), "rev": REV, "prev": None}
    unsigned = {name: value for name, value in (unsigned | fields).items() if value is not ...}
    return cbor({"sig": signer.sign(cbor(unsigned))} | unsigned)


@dataclass
class ForgedRepo:
    """A sound repository whose parts a test may then break; `car()` writes what is there."""

    records: Mapping[str, object]
    signer: Signer = field(default_factory=K256Signer)
    commit_fields: Mapping[str, object] = field(default_factory=dict)
    root: Link = field(init=False)
    data: Link = field(init=False)
    nodes: dict[Link, bytes] = field(init=False)
    leaves: dict[bytes, Link] = field(init=False)
    blocks: dict[Link, bytes] = field(init=False)

    def __post_init__(self) -> None:
        blocks = [cbor(record) for record in self.records.values()]
        self.leaves = {path.encode(): cid_of(block) for path, block in zip(self.records, blocks, strict=True)}
        self.data, self.nodes = tree(self.leaves)
        commit_block = commit(self.data, self.signer, **self.commit_fields)
        self.root = cid_of(commit_block)
        self.blocks = {self.root: commit_block, **self.nodes, **{cid_of(block): block for block in blocks}}

    def car(self) -> bytes:
        return car(self.root, self.blocks)


def car_of_tree(
    data: bytes, blocks: Mapping[Link, bytes], signer: Signer | None = None, **fields: object
) -> bytes:
    """A CAR of a tree made by hand, under a commit that is signed like any other."""
    commit_block = commit(data, signer or K256Signer(), **fields)
    root = cid_of(commit_block)
    return car(root, {root: commit_block, **blocks})


def link_of_text(text: str) -> Link:
    """Read a CID as it is written in JSON."""
    body = text.removeprefix("b").upper()
    return Link(base64.b32decode(body + "=" * (-len(body) % 8)))


def of_json(value: Any) -> object:
    """Turn JSON of the protocol's data model into what `cbor` writes."""
    match value:
        case {"$link": str(text)}:
            return link_of_text(text)
        case {"$bytes": str(text)}:
            return base64.b64decode(text + "=" * (-len(text) % 4))
        case dict():
            return {name: of_json(item) for name, item in value.items()}
        case list():
            return [of_json(item) for item in value]
    return value
