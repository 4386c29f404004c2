"""The data dictionary for people, and the tables that the reference's pages are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.columns import type_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backfill_dagster.closed_sets import ClosedSet
    from backfill_dagster.columns import Column
    from backfill_dagster.dictionary.resources import Resource

TYPES = """\
Types are Arrow's. Readers differ in what they call them: what is `string` here is `large_string` in pyarrow, and
`VARCHAR` in DuckDB. Instants are in UTC."""


def readable(name: str, resources: Sequence[Resource]) -> bytes:
    """Return the dictionary of a study of this name as Markdown, the same bytes for the same tables."""
    lines = [
        f"# Data dictionary of {name}",
        "",
        "What stands in this folder: each kind of table, what a row of it is, and its columns. The same for programs",
        "is in `data_dictionary.json`.",
        "",
        TYPES,
        "",
        *tables_text(resources),
    ]
    return "\n".join(lines).encode()


def tables_text(resources: Sequence[Resource], words_page: str = "") -> Iterator[str]:
    """Yield the lines that tell of tables; then, of the closed sets that their columns are out of.

    Unless these are on a page of their own.
    """
    for resource in resources:
        if not resource.inner:
            yield from _table(resource, words_page)
    inner = [resource for resource in resources if resource.inner]
    if inner:
        yield from (
            "## The pipeline's own files",
            "",
            "They may change with any version; `data_dictionary.json` of a study has their columns.",
            "",
            *rows(
                ("name", "files", "a row"),
                ((f"`{part.name}`", _files(part), part.description) for part in inner),
            ),
            "",
        )
    every_column = (column for resource in resources for column in resource.columns)
    for words in (
        () if words_page else dict.fromkeys(words for column in every_column for words in column.words)
    ):
        yield from words_text(words)


def words_text(words: type[ClosedSet]) -> Iterator[str]:
    """Yield the lines that tell of one closed set."""
    yield from (f"## {words.__name__}", "", _sentence_of(words), "")
    has_advice = any(word.advice for word in words)
    header = ("word", "what it means", "what to do") if has_advice else ("word", "what it means")
    cells = ((f"`{word.value}`", word.meaning, word.advice or "")[: len(header)] for word in words)
    yield from rows(header, cells)
    yield ""


def rows(header: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield _row(header)
    yield _row(["---"] * len(header))
    for row in cells:
        yield _row([cell.replace("|", "\\|") for cell in row])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(resource: Resource, words_page: str) -> Iterator[str]:
    yield from (f"## {resource.name}", "", resource.description, "", f"Files: {_files(resource)}", "")
    if resource.key:
        where = "in each file" if resource.apart else "in all files together"
        yield from (f"Each {', '.join(f'`{name}`' for name in resource.key)} stands once {where}.", "")
    cells = (
        (
            f"`{column.name}`",
            f"`{type_name(column.dtype)}`",
            "no" if column.required else "yes",
            _meaning(column, words_page),
        )
        for column in resource.columns
    )
    yield from rows(("column", "type", "can be null", "what it means"), cells)
    yield ""


def _files(resource: Resource) -> str:
    return ", ".join(f"`{glob}`" for glob in resource.files)


def _meaning(column: Column, words_page: str) -> str:
    if not column.words:
        return column.description
    named = " or ".join(
        f"[{words.__name__}]({words_page}#{words.__name__.lower()})" for words in column.words
    )
    return f"{column.description} Out of {named}."


def _sentence_of(words: type[ClosedSet]) -> str:
    return (words.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
