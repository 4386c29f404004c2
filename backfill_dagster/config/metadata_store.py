"""Where it is noted, beside the study's own tables, which accounts were collected and what each run came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from backfill_dagster.config.section import Section, http_origin


class MetadataStore(Section):
    """A store with an item for each collected account and for each run, for whoever asks from outside.

    Of DynamoDB, credentials come from the environment (`AWS_...`), as for all of AWS's tools.
    """

    type: Literal["sqlite", "dynamodb"] = Field(
        "sqlite", description="`sqlite` is a file; `dynamodb` a table of Amazon's."
    )
    path: Path | None = Field(
        None,
        description="Of `sqlite`: the file, which several studies may share; `metadata.sqlite` in the study's folder "
        "if left out. Of a study in S3 its tables `user_metadata` and `run_metadata` are the store, if it is left out.",
    )
    table_name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{3,255}$")] | None = Field(
        None,
        description="Of `dynamodb`: the table, whose partition key is `pk` and whose sort key is `sk`, both texts.",
    )
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{2,40}$")] | None = Field(
        None, description="Of `dynamodb`: the region, such as `us-east-2`."
    )
    endpoint_url: Annotated[str, AfterValidator(http_origin)] | None = Field(
        None, description="Of `dynamodb`: the address of the service, if it is not Amazon's own."
    )

    @model_validator(mode="after")
    def _of_its_type(self) -> MetadataStore:
        of_dynamodb = ("table_name", "region", "endpoint_url")
        if self.type == "sqlite":
            for name in of_dynamodb:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: only type dynamodb has it")
            return self
        if self.path is not None:
            raise ValueError("path: only type sqlite has it")
        for name in ("table_name", "region"):
            if getattr(self, name) is None:
                raise ValueError(f"type dynamodb needs {name}")
        return self
