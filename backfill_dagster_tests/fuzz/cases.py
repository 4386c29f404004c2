"""The cases of the fuzz: number `n` of seed `s` is the same file everywhere and always.

Even numbers change bytes blindly, odd ones change what the file says and mend its hashes and signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

from backfill_dagster_tests.fuzz.blind import mutate_blindly
from backfill_dagster_tests.fuzz.corpus import Seed, seeds
from backfill_dagster_tests.fuzz.crafted import mutate_knowingly

Family: TypeAlias = Literal["blind", "crafted"]


@dataclass(frozen=True)
class Case:
    """One mutated file, the account that it claims to be of, and the key that it is to be verified with.

    `original` is what a blind mutation began with: if the file is accepted, it must say the same.
    """

    seed: int
    number: int
    family: Family
    kind: str
    car: bytes
    did: str
    did_key: str
    original: Seed | None

    def __str__(self) -> str:
        return f"case {self.number} of seed {self.seed} ({self.family} {self.kind})"


def make_case(seed: int, number: int) -> Case:
    """Make one case."""
    chance = Random(f"{seed}/{number}")
    if number % 2 == 0:
        original = chance.choice(seeds())
        kind, car = mutate_blindly(chance, original)
        return Case(seed, number, "blind", kind, car, original.did, original.did_key, original)
    kind, draft = mutate_knowingly(chance)
    return Case(seed, number, "crafted", kind, draft.car(), draft.did, draft.signer.did_key, None)
