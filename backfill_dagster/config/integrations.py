"""What comes next: consumers that the study's records are handed to, each record once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from backfill_dagster.config.section import Section

ConsumerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")]


# What notes, beside a queue, which batches were added to it.
_BATCHES_OF_QUEUE = "handed_over_batches"


def _local_path(value: Path) -> Path:
    if ":/" in str(value):
        raise ValueError("must be a local path")
    return value


class Consumer(Section):
    """Somebody who takes records over, and how: as files of a folder, or as rows of a queue."""

    type: Literal["parquet", "sqlite"] = Field(
        description="`parquet` puts batches into a folder; `sqlite` adds rows to a queue table with `id, payload, "
        "metadata, created_at, status`."
    )
    tables: tuple[str, ...] = Field(
        min_length=1, description="The tables whose records are handed over, such as `posts` and `replies`."
    )
    path: Annotated[Path, AfterValidator(_local_path)] | None = Field(
        None,
        description="The folder of the batches, or the SQLite file; `handoff/<consumer>/outbox`, or "
        "`handoff/<consumer>/queue.sqlite`, in the study's folder if left out.",
    )
    columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The columns that are handed over, `uri` always among them; all of a table's if left out.",
    )
    batch_size: int = Field(
        10_000,
        ge=1,
        le=100_000,
        description="Records in a batch at most: of a file, or of a transaction on the queue.",
    )
    records_per_row: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Of a queue: records in the payload of a row, which then is a list; if left out, the payload is "
        "one record.",
    )
    queue_table: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")] | None = Field(
        None, description="Of a queue: the name of its table; `queue` if left out."
    )

    @field_validator("tables", "columns")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        repeated = sorted({name for name in value or () if (value or ()).count(name) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} twice")
        return value

    @model_validator(mode="after")
    def _of_its_type(self) -> Consumer:
        if self.type == "parquet":
            for name in ("records_per_row", "queue_table"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: only a consumer of type sqlite has it")
        elif self.queue_table is not None and (
            self.queue_table == _BATCHES_OF_QUEUE or self.queue_table.startswith("sqlite_")
        ):
            raise ValueError(f"queue_table: {self.queue_table} is the name of a table with another use")
        return self


class Integrations(Section):
    """Who takes the study's records over. What was handed to a consumer is never handed to it again."""

    classification: bool = Field(
        True,
        description="Whether records are handed over at all; `false` skips it, and keeps what was noted.",
    )
    consumers: dict[ConsumerName, Consumer] = Field(
        default_factory=dict, description="Who takes records over, by names of your choice."
    )

    @model_validator(mode="after")
    def _each_in_its_own_place(self) -> Integrations:
        taken: dict[tuple[str, str | None, str], str] = {}
        for name, consumer in self.consumers.items():
            for table in consumer.tables if consumer.path is not None else ():
                place = (str(consumer.path), consumer.queue_table, table)
                if place in taken:
                    raise ValueError(
                        f"consumers.{name}.path = {str(consumer.path)!r}: {taken[place]} has {table} there already; "
                        "each record would be there twice"
                    )
                taken[place] = name
        return self
