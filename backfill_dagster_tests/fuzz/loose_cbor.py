"""CBOR of any kind: lawful values at random, lawless encodings, and maps bent out of shape."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backfill_dagster_tests.repos.forge import Link, cbor, cid_of, head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

TEXTS = [
    "",
    "a",
    "\0",
    "é",
    "🦋" * 3,
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
    "2024-10-05T12:00:00.000Z",
    "$link",
]
TEXTS += ["at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3l5uvwqz2fk2k", "app.bsky.feed.post"]
NAMES = [
    "$type",
    "$link",
    "$bytes",
    "createdAt",
    "text",
    "uri",
    "cid",
    "did",
    "e",
    "l",
    "p",
    "k",
    "v",
    "t",
    "rev",
]
NAMES += ["version", "prev", "data", "sig", "roots", "", "é", "subject", "reply", "embed", "facets", "langs"]
# Links of every kind that is not the one of a repository's blocks.
ODD_CIDS = [
    b"",
    b"\x01",
    b"\x12\x20" + bytes(32),
    b"\x01\x71\x12\x20" + bytes(31),
    b"\x01\x71\x12\x20" + bytes(33),
]
ODD_CIDS += [
    b"\x01\x55\x12\x20" + bytes(32),
    b"\x01\x70\x12\x20" + bytes(32),
    b"\x01\x71\x13\x40" + bytes(64),
]
ODD_CIDS += [b"\x01\x71\x00\x04abcd", b"\x02\x71\x12\x20" + bytes(32), b"\x81\x00\x71\x12\x20" + bytes(32)]


@dataclass(frozen=True)
class Raw:
    """Bytes that are written as they are, where an item should stand."""

    encoded: bytes


@dataclass(frozen=True)
class Pairs:
    """A map whose keys stand as they are given: in any order, more than once, of any type."""

    items: Sequence[tuple[object, object]]


def encode(value: object) -> bytes:
    """Write a value as DAG-CBOR wherever it has a lawful form, else as it comes."""
    match value:
        case Raw():
            return value.encoded
        case float():
            return b"\xfb" + struct.pack(">d", value)
        case list() | tuple():
            return head(4, len(value)) + b"".join(map(encode, value))
        case dict():
            return encode(Pairs(sorted(value.items(), key=lambda item: encode(item[0]))))
        case Pairs():
            return head(5, len(value.items)) + b"".join(encode(name) + encode(of) for name, of in value.items)
    return cbor(value)


def random_value(chance: Random, depth: int = 3) -> Any:
    """Make a value of any type that DAG-CBOR has."""
    kind = chance.randrange(9 if depth else 7)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice([0, 1, -1, 23, 24, 2**31, 2**63, 2**64 - 1, -(2**63), -(2**64), 10**12])
    if kind == 2:
        return chance.choice([0.0, -0.0, 1.5, 1e308, 5e-324, -1.0])
    if kind == 3:
        return chance.randbytes(chance.choice([0, 1, 8, 36]))
    if kind == 4:
        return chance.choice([cid_of(chance.randbytes(2)), Link(chance.choice(ODD_CIDS))])
    if kind in (5, 6):
        return chance.choice(TEXTS)
    length = chance.randrange(5)
    if kind == 7:
        return [random_value(chance, depth - 1) for _ in range(length)]
    return {chance.choice(NAMES): random_value(chance, depth - 1) for _ in range(length)}


def lawless_item(chance: Random) -> Raw:
    """Make an item that DAG-CBOR forbids, that claims more than there is, or that nests as nothing honest does."""
    links = encode(cid_of(b"")) if chance.random() < 0.5 else b""
    levels = chance.choice([260, 1_100, 3_000])
    claims = head(4, chance.choice([300, 5_000]))
    return Raw(
        chance.choice(
            [
                b"\x18\x01",  # an integer longer than it has to be
                b"\x9f\x01\xff",  # a length left open
                b"\xbf\x61a\x01\xff",
                b"\x7f\x61a\xff",
                b"\xf7",  # undefined
                b"\xf8\x63",
                b"\xf9\x3c\x00",  # short floats
                b"\xfa\x3f\x80\x00\x00",
                encode(float("nan")),
                encode(float("inf")),
                b"\xc1\x01",  # another tag
                b"\xc2\x49" + b"\x01" * 9,
                b"\xd9\x00\x2a" + encode(cid_of(b""))[2:],  # a link's tag longer than it has to be
                b"\xd8\x2a\x01",
                b"\xd8\x2a\x41\x01",
                b"\x61\xff",  # text that is not UTF-8
                b"\x63\xed\xa0\x80",
                b"\xa2\x61a\x01\x61a\x02",  # a key twice
                b"\xa2\x61b\x01\x61a\x02",  # keys out of order
                b"\xa1\x01\x02",  # a key that is no text
                b"\x9b\x7f" + b"\xff" * 7,  # claims
                b"\xbb\x00\x00\x00\x10" + bytes(4),
                b"\x5b\x7f" + b"\xff" * 7,
                b"\xff",
                b"",
                b"\x82" + links + b"\x81" * levels + b"\x01",
                b"\x82" + links + b"\xa1\x60" * levels + b"\x01",
                b"\x82" + links + claims * levels + b"\x01" * 5_000,
            ]
        )
    )


def claim_bomb(chance: Random) -> bytes:
    """Make arrays within each other that each claim to be as long as all the rest."""
    size, levels = chance.choice([(20_000, 900), (100_000, 3_000), (600_000, 900), (600_000, 100_000)])
    core = encode(cid_of(b"")) if chance.random() < 0.5 else b""
    return (
        b"\xa1\x61a"
        + (b"\x9a" + (size - 5 * levels).to_bytes(4)) * levels
        + core
        + b"\x01" * (size - 5 * levels)
    )


def bent_map(chance: Random, fields: dict[str, Any]) -> object:
    """Bend a map out of its shape in one way."""
    return chance.choice(_BENDS)(chance, dict(fields))


def _without_field(chance: Random, fields: dict[str, Any]) -> object:
    if fields:
        del fields[chance.choice(sorted(fields))]
    return fields


def _with_field(chance: Random, fields: dict[str, Any]) -> object:
    return fields | {chance.choice([*NAMES, "zz"]): random_value(chance)}


def _renamed_field(chance: Random, fields: dict[str, Any]) -> object:
    if fields:
        fields[chance.choice(NAMES)] = fields.pop(chance.choice(sorted(fields)))
    return fields


def _other_value(chance: Random, fields: dict[str, Any]) -> object:
    return fields | {chance.choice(sorted(fields) or NAMES): random_value(chance)}


def _lawless_value(chance: Random, fields: dict[str, Any]) -> object:
    return fields | {chance.choice(sorted(fields) or NAMES): lawless_item(chance)}


def _other_type(chance: Random, fields: dict[str, Any]) -> object:
    """Change a value's type, and as little else as can be."""
    name = chance.choice(sorted(fields) or NAMES)
    value = fields.get(name)
    changed: object
    match value:
        case bool():
            changed = int(value)
        case int():
            changed = chance.choice([float(value % 2**53), str(value), -value - 1, bool(value)])
        case Link():
            changed = chance.choice(
                [bytes(value), Link(b"\0" + value), str(bytes(value)), Raw(encode(value)[2:])]
            )
        case bytes():
            changed = chance.choice([Link(value), value.decode("latin-1"), list(value[:20])])
        case str():
            changed = chance.choice([value.encode(), [value], list(value[:20])])
        case list():
            changed = chance.choice([dict(enumerate(map(str, value))), None, len(value)])
            if isinstance(changed, dict):
                changed = {str(place): item for place, item in changed.items()}
        case dict():
            changed = chance.choice([list(value.values()), sorted(value), None])
        case _:
            changed = chance.choice([0, False, "", b"", [], {}, Raw(b"\xf7")])
    return fields | {name: changed}


def _shuffled(chance: Random, fields: dict[str, Any]) -> object:
    items = list(fields.items())
    chance.shuffle(items)
    return Pairs(items)


def _with_a_double(chance: Random, fields: dict[str, Any]) -> object:
    items = sorted(fields.items(), key=lambda item: encode(item[0]))
    place = chance.randrange(len(items) + 1)
    return Pairs([*items[:place], chance.choice(items or [("a", 1)]), *items[place:]])


def _with_a_long_head(chance: Random, fields: dict[str, Any]) -> object:
    body = encode(fields)
    return Raw(b"\xb8" + bytes([len(fields) % 24]) + body[1:])


def _with_an_open_end(chance: Random, fields: dict[str, Any]) -> object:
    return Raw(b"\xbf" + encode(fields)[1:] + b"\xff")


def _with_a_tail(chance: Random, fields: dict[str, Any]) -> object:
    return Raw(encode(fields) + chance.choice([b"\0", b"\xf6", b"\xff", encode(fields)]))


def _cut(chance: Random, fields: dict[str, Any]) -> object:
    body = encode(fields)
    return Raw(body[: chance.randrange(len(body))])


def _another(chance: Random, fields: dict[str, Any]) -> object:
    return random_value(chance)


_BENDS: list[Callable[[Random, dict[str, Any]], object]] = [
    _without_field,
    _with_field,
    _renamed_field,
    _other_value,
    _other_value,
    _lawless_value,
    _lawless_value,
    _other_type,
    _other_type,
    _other_type,
    _shuffled,
    _with_a_double,
    _with_a_long_head,
    _with_an_open_end,
    _with_a_tail,
    _cut,
    _another,
]
