"""HTML as text, every value escaped where it is put in."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Cell = str | int | float | None


def element(tag: str, *content: str, **attributes: str) -> str:
    """Return an element around content that is HTML already; `class_` is the attribute `class`."""
    told = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{told}>{''.join(content)}</{tag}>"


def text(tag: str, content: str, **attributes: str) -> str:
    """Return an element around plain text."""
    return element(tag, escape(content), **attributes)


def table(name: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table with the id `table-<name>`; columns of numbers and of shares are right-aligned."""
    aligned = [
        {"class_": "number"} if all(_is_number(row[column]) for row in rows) else {}
        for column in range(len(head))
    ]
    titles = [text("th", title, scope="col", **align) for title, align in zip(head, aligned, strict=True)]
    lines = [
        element("tr", *(text("td", written(cell), **align) for cell, align in zip(row, aligned, strict=True)))
        for row in rows
    ]
    return element(
        "table",
        text("caption", caption),
        element("thead", element("tr", *titles)),
        element("tbody", *lines),
        id=f"table-{name}",
    )


def written(value: Cell) -> str:
    """Write a cell's value: whole numbers with separators, others with three decimals, and `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if isinstance(value, float) else value


def _is_number(cell: Cell) -> bool:
    return not isinstance(cell, str) or cell.endswith("%") or cell == "-"
