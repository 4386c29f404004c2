"""What a study hands on to others, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from backfill_dagster.config.section import Section, variable_name


class Sharing(Section):
    """What `<name>_share` writes for others: [how to share](../how_to/share.md)."""

    what: Literal["ids", "pseudonyms"] = Field(
        "ids",
        description="`ids`: URIs and CIDs alone, from which others rebuild the study from the network, less what was "
        "deleted in between. `pseudonyms`: the tables without any text, with hashes in the place of what names "
        "accounts and records.",
    )
    label: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$",
        description="Name of the folder below `shared/`; that of `what` if left out.",
    )
    tables: tuple[str, ...] | None = Field(
        None, min_length=1, description="The record tables that are shared; all of the study's if left out."
    )
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the accounts that are shared, each whole; all if left out. The same accounts in every "
        "run, and a larger sample has those of a smaller one.",
    )
    sample_seed: str = Field("", description="Another text gives another sample of the same size.")
    created_at: Literal["second", "hour", "day"] = Field(
        "day", description="How exactly times are told among pseudonyms."
    )
    salt_variable: Annotated[str, AfterValidator(variable_name)] = Field(
        "BACKFILL_SHARING_SALT",
        description="The environment variable with the secret that pseudonyms are made with, of 32 characters or "
        "more.",
    )

    @property
    def folder(self) -> str:
        """The name of the folder that is written, below `shared/`."""
        return self.label or self.what
