"""What is made of the tables beyond them: whom and what the study engaged with, and tables for analysis."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from backfill_dagster.config.section import Section
from backfill_dagster.config.sources import TableSource
from backfill_dagster.config.time_range import end_instant, start_instant

Interaction = Literal["reply", "quote", "like", "repost", "follow"]
INTERACTIONS: tuple[Interaction, ...] = ("reply", "quote", "like", "repost", "follow")


class Discovery(Section):
    """Find the accounts and the posts that the study's accounts engaged with in a period, both ends inside."""

    start_date: Annotated[datetime | None, BeforeValidator(start_instant)] = Field(
        None, description="First instant or day; the study period's if left out."
    )
    end_date: Annotated[datetime | None, BeforeValidator(end_instant)] = Field(
        None, description="Last instant or day; the study period's if left out."
    )
    interactions: tuple[Interaction, ...] = Field(
        INTERACTIONS, min_length=1, description="What counts as engaging with somebody."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Discovery:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise ValueError("start_date is after end_date")
        return self


class FeedUse(Section):
    """Find the posts that occur in a table of feeds, by the day on which they were shown."""

    feeds: TableSource = Field(description="A file with a row for each post that a feed showed.")
    uri_column: str = Field("uri", description="The column with the posts' AT-URIs.")
    time_column: str = Field(
        "date", description="The column that says when it was shown: a date, or an ISO 8601 instant."
    )
    look_back_days: int = Field(
        7,
        ge=0,
        le=3650,
        description="The oldest that a post may be on the day it is shown; older ones do not count.",
    )


class Derived(Section):
    """Which tables for analysis are made besides."""

    posts_used_in_feeds: FeedUse | None = None
    study_user_activity: bool = Field(
        False, description="The table `study_user_activity`: what each account did on each day."
    )
    threads: bool = Field(
        False, description="The table `threads`: each post's or reply's place in its thread."
    )
    engagement: bool = Field(
        False,
        description="The table `engagement`: what each post or reply received from the study's accounts.",
    )
