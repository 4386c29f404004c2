"""Mutations of a file's bytes that know at most where its sections begin; no hash is mended, nothing signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster_tests.fuzz.corpus import seeds
from backfill_dagster_tests.repos.forge import varint

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from backfill_dagster_tests.fuzz.corpus import Seed


def mutate_blindly(chance: Random, seed: Seed) -> tuple[str, bytes]:
    """Change a seed's file in one way, or now and then in several; return the first way's name, and the file."""
    kind, mutation = chance.choice(_MUTATIONS)
    car = mutation(chance, seed.car, seed)
    while chance.random() < 0.2:
        # Sections are not where they were any more: only what needs no place of theirs is done on top.
        car = chance.choice(_ANYWHERE)(chance, car, seed)
    return kind, car


def _place(chance: Random, car: bytes) -> int:
    """Choose a place: anywhere, or near the start, where header, commit and top node often are."""
    return chance.randrange(len(car) if chance.random() < 0.7 else min(len(car), 600)) if car else 0


def _flip_bits(chance: Random, car: bytes, seed: Seed) -> bytes:
    changed = bytearray(car)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        if changed:
            changed[_place(chance, car)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _set_byte(chance: Random, car: bytes, seed: Seed) -> bytes:
    place = _place(chance, car)
    return (
        car[:place] + bytes([chance.choice([0, 0x7F, 0x80, 0xFF, chance.randrange(256)])]) + car[place + 1 :]
    )


def _insert(chance: Random, car: bytes, seed: Seed) -> bytes:
    place = _place(chance, car)
    return car[:place] + chance.randbytes(chance.choice([1, 1, 2, 9, 40, 300])) + car[place:]


def _delete(chance: Random, car: bytes, seed: Seed) -> bytes:
    place = _place(chance, car)
    return car[:place] + car[place + chance.choice([1, 1, 2, 9, 40, 300]) :]


def _overwrite(chance: Random, car: bytes, seed: Seed) -> bytes:
    place, length = _place(chance, car), chance.choice([2, 8, 36, 200])
    filling = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
    return car[:place] + filling + car[place + length :]


def _copy_within(chance: Random, car: bytes, seed: Seed) -> bytes:
    source, target, length = _place(chance, car), _place(chance, car), chance.choice([1, 36, 37, 200, 3_000])
    piece = car[source : source + length]
    return car[:target] + piece + car[target + (len(piece) if chance.random() < 0.5 else 0) :]


def _truncate(chance: Random, car: bytes, seed: Seed) -> bytes:
    return car[: _place(chance, car)]


def _append(chance: Random, car: bytes, seed: Seed) -> bytes:
    return car + chance.choice([b"\0", b"\x01", b"\n", bytes(512), b"</html>", chance.randbytes(50)])


def _truncate_at_boundary(chance: Random, car: bytes, seed: Seed) -> bytes:
    return car[: chance.choice(seed.boundaries)]


def _splice_halves(chance: Random, car: bytes, seed: Seed) -> bytes:
    other = chance.choice(seeds())
    if chance.random() < 0.5:
        return car[: _place(chance, car)] + other.car[_place(chance, other.car) :]
    return car[: chance.choice(seed.boundaries)] + other.car[chance.choice(other.boundaries) :]


def _sections(seed: Seed) -> list[bytes]:
    return [seed.car[start:end] for start, end in zip(seed.boundaries, seed.boundaries[1:], strict=False)]


def _with_sections(seed: Seed, sections: list[bytes]) -> bytes:
    return seed.car[: seed.boundaries[0]] + b"".join(sections)


def _repeat_sections(chance: Random, car: bytes, seed: Seed) -> bytes:
    sections = _sections(seed)
    for _ in range(chance.choice([1, 1, 3, 50])):
        sections.insert(chance.randrange(len(sections) + 1), chance.choice(sections))
    return _with_sections(seed, sections)


def _reorder_sections(chance: Random, car: bytes, seed: Seed) -> bytes:
    sections = _sections(seed)
    if chance.random() < 0.5:
        chance.shuffle(sections)
    else:
        a, b = chance.randrange(len(sections)), chance.randrange(len(sections))
        sections[a], sections[b] = sections[b], sections[a]
    return _with_sections(seed, sections)


def _drop_sections(chance: Random, car: bytes, seed: Seed) -> bytes:
    sections = _sections(seed)
    for _ in range(min(len(sections), chance.choice([1, 1, 2, 20]))):
        del sections[chance.randrange(len(sections))]
    return _with_sections(seed, sections)


def _foreign_sections(chance: Random, car: bytes, seed: Seed) -> bytes:
    """Put sections of another file between, or in place of, this one's."""
    sections, others = _sections(seed), _sections(chance.choice(seeds()))
    for _ in range(chance.choice([1, 1, 5, 50])):
        place = chance.randrange(len(sections))
        sections[place : place + chance.choice([0, 0, 1])] = [chance.choice(others)]
    return _with_sections(seed, sections)


def _exchange_blocks(chance: Random, car: bytes, seed: Seed) -> bytes:
    """Put one section's block under another's CID, with a length that fits."""
    sections = _sections(seed)
    place, other = chance.randrange(len(sections)), chance.choice(sections)
    cid = _cid_and_block(sections[place])[:36]
    body = cid + _cid_and_block(other)[36:]
    sections[place] = varint(len(body)) + body
    return _with_sections(seed, sections)


def _cid_and_block(section: bytes) -> bytes:
    return section[1 if section[0] < 0x80 else 2 :]


def _other_length(chance: Random, car: bytes, seed: Seed) -> bytes:
    """Write another length before a section, or the same one in a longer form."""
    sections = _sections(seed)
    place = chance.randrange(len(sections))
    body = _cid_and_block(sections[place])
    length = varint(len(body))
    lengths = [
        varint(max(0, len(body) + chance.choice([-40, -36, -2, -1, 1, 2, 300]))),
        varint(0),
        varint(35),
    ]
    lengths += [varint(2**31), varint(2**63 - 1), varint(2**63), b"\xff" * 12]
    lengths += [length[:-1] + bytes([length[-1] | 0x80, 0]), b""]
    sections[place] = chance.choice(lengths) + body
    return _with_sections(seed, sections)


_ANYWHERE: list[Callable[[Random, bytes, Seed], bytes]] = [
    _flip_bits,
    _set_byte,
    _insert,
    _delete,
    _overwrite,
    _copy_within,
    _truncate,
    _append,
]
_BY_SECTION: list[Callable[[Random, bytes, Seed], bytes]] = [
    _truncate_at_boundary,
    _splice_halves,
    _repeat_sections,
    _reorder_sections,
    _drop_sections,
    _foreign_sections,
    _exchange_blocks,
    _other_length,
]
_MUTATIONS = [(mutation.__name__.strip("_"), mutation) for mutation in (*_ANYWHERE, *_BY_SECTION)]
BLIND_KINDS = [kind for kind, _ in _MUTATIONS]
