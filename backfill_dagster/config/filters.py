"""Which records of a type a study keeps."""

from __future__ import annotations

import re
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, Field, model_validator

from backfill_dagster.config.section import Section
from backfill_dagster.config.sources import Source, UriSource


def _pattern(value: str) -> str:
    try:
        pl.select(pl.lit("").str.contains(value))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"is no regular expression: {' '.join(str(error).split())}") from None
    return value


def _language(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*", value):
        raise ValueError("must be a language tag such as en or pt-BR")
    return value


class RecordFilter(Section):
    """What a record of one type must be to be kept: everything that is said here; nothing said keeps all."""

    uris: UriSource | None = Field(None, description="The AT-URIs of the records to keep.")
    subjects: Source | None = Field(
        None,
        description="What a like, repost, follow or block must be about: AT-URIs or DIDs, of which a DID stands for "
        "all that is its account's.",
    )
    allow_empty: bool = Field(
        False, description="Whether `uris` or `subjects` may be empty, and so keep nothing."
    )
    languages: tuple[Annotated[str, AfterValidator(_language)], ...] | None = Field(
        None, min_length=1, description="Language tags of which a post must have one; `en` is also `en-GB`."
    )
    text: Annotated[str, AfterValidator(_pattern)] | None = Field(
        None, description="A regular expression that must occur in a post's text; `(?i)` ignores case."
    )

    @model_validator(mode="after")
    def _says_something(self) -> RecordFilter:
        if not any((self.uris, self.subjects, self.languages, self.text is not None)):
            raise ValueError("says nothing: give uris, subjects, languages or text, or leave the filter out")
        return self
