"""Words and numbers as the report writes them; the network's words are made harmless here before they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

MAX_SHOWN_CHARACTERS = 60
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def plain_text(value: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return a text from outside in one line of printable characters, cut to a length.

    What XML cannot hold, or what turns the direction of the text around it, is replaced.
    """
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in value
    )
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def spaced_name(name: str) -> str:
    """Return a name out of a closed set of ours (`bad_key`) as words."""
    return plain_text(name.replace("_", " "))


def compact(number: float) -> str:
    """Write a number for an axis: 1500 as 1.5k."""
    for size, unit in _UNITS:
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def counted(number: int, what: str) -> str:
    """Write a number of things whose name has a regular plural."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def percent(part: float, whole: float) -> str:
    """Write a share: a small one not as nothing, and one that is not the whole not as the whole."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def instant(value: datetime | None) -> str:
    """Write an instant, in UTC and to the minute; `-` for none."""
    return "-" if value is None else f"{value:%Y-%m-%d %H:%M} UTC"
