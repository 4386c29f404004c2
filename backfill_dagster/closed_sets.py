"""Closed sets of words that stand in stored files: each word says here what it means, and what to do about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class ClosedSet(StrEnum):
    """A set of words of which each has a meaning, and advice if there is anything to do.

    A member is written `NAME = "word", "What it means."` or `NAME = "word", "What it means.", "What to do."`.
    Documentation is made of these texts.
    """

    meaning: str
    advice: str | None

    def __new__(cls, word: str, meaning: str = "", advice: str | None = None) -> Self:
        """Make a member whose value is the word alone, by which it can be looked up."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        member.advice = advice
        return member
