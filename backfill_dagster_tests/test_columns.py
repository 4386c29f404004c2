import polars as pl
import pytest

from backfill_dagster.columns import Column, schema_of, type_name
from backfill_dagster.dictionary.resources import every_resource


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (pl.String(), "string"),
        (pl.Boolean(), "bool"),
        (pl.Datetime("us", "UTC"), "timestamp[us, tz=UTC]"),
        (pl.Datetime("ms"), "timestamp[ms]"),
        (
            pl.List(pl.Struct({"a": pl.Int64(), "b": pl.List(pl.Float64())})),
            "list<struct<a: int64, b: list<double>>>",
        ),
    ],
)
def test_types_are_named_as_arrow_names_them(dtype: pl.DataType, name: str) -> None:
    assert type_name(dtype) == name


def test_a_schema_is_its_columns_in_order() -> None:
    columns = (Column("b", pl.String(), "One."), Column("a", pl.Int64(), "Two."))
    assert list(schema_of(columns).items()) == [("b", pl.String()), ("a", pl.Int64())]


def test_no_column_of_any_table_is_without_a_description() -> None:
    for resource in every_resource():
        assert resource.description.endswith("."), resource.name
        for column in resource.columns:
            assert column.description.endswith("."), (resource.name, column.name)
            assert type_name(column.dtype)
