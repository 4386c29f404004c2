import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backfill_dagster.config import RECORD_TYPES, RESERVED_NAMES, Study, load_study
from backfill_dagster.errors import ConfigError
from backfill_dagster.records.windows import study_windows

INLINE = "source: {type: inline, dids: ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa']}"


def write(folder: Path, body: str, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"backfill:\n  name: {name}\n" + textwrap.indent(textwrap.dedent(body), "  "))
    return path


def load(folder: Path, body: str) -> Study:
    return load_study(write(folder, body))


def complaint(folder: Path, body: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, body)
    return str(caught.value)


def test_everything_beyond_name_and_source_has_a_default(tmp_path: Path) -> None:
    study = load(tmp_path, INLINE)
    assert study.record_types == RECORD_TYPES
    assert study.time_range.start_date == datetime(2024, 9, 27, tzinfo=UTC)
    assert study.time_range.end_date == datetime(2024, 12, 2, tzinfo=UTC)
    assert study.processing.verify == "full"
    assert study.root == Path("data/study")


@pytest.mark.parametrize(
    ("written", "start", "end"),
    [
        (
            "{start_date: '2024-09-27', end_date: '2024-12-02'}",
            datetime(2024, 9, 27, tzinfo=UTC),
            datetime(2024, 12, 2, 23, 59, 59, 999_999, tzinfo=UTC),
        ),
        (
            "{start_date: 2024-09-27, end_date: 2024-12-02}",
            datetime(2024, 9, 27, tzinfo=UTC),
            datetime(2024, 12, 2, 23, 59, 59, 999_999, tzinfo=UTC),
        ),
        (
            "{start_date: '2024-09-27-01:02:03', end_date: '2024-12-02-00:00:00'}",
            datetime(2024, 9, 27, 1, 2, 3, tzinfo=UTC),
            datetime(2024, 12, 2, tzinfo=UTC),
        ),
        (
            "{start_date: '2024-09-27T02:00:00+02:00'}",
            datetime(2024, 9, 27, tzinfo=UTC),
            None,
        ),
    ],
)
def test_both_ends_are_inside(tmp_path: Path, written: str, start: datetime, end: datetime | None) -> None:
    period = load(tmp_path, f"{INLINE}\ntime_range: {written}").time_range
    assert (period.start_date, period.end_date) == (start, end)


def test_months_under_drop_run_from_floor_to_ceiling(tmp_path: Path) -> None:
    study = load(
        tmp_path, f"{INLINE}\ntime_range: {{start_date: '2024-09-27', end_date: '2024-12-02', outside: drop}}"
    )
    assert study_windows(study.time_range) == ["2024-09", "2024-10", "2024-11", "2024-12"]


def test_months_under_normalize_span_the_life_of_the_network(tmp_path: Path) -> None:
    months = study_windows(load(tmp_path, INLINE).time_range, now=datetime(2025, 2, 28, tzinfo=UTC))
    assert months[0] == "2022-11"
    assert months[-1] == "2025-02"
    assert len(months) == 28


def test_environment_variables_fill_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH", "7")
    monkeypatch.setenv("WHERE", "elsewhere")
    study = load(
        tmp_path, f"{INLINE}\nprocessing: {{batch_size: '${{BATCH}}'}}\nstorage: {{path: './${{WHERE}}/x'}}"
    )
    assert study.processing.batch_size == 7
    assert study.storage.path == Path("elsewhere/x")


def test_a_missing_variable_names_field_and_variable(tmp_path: Path) -> None:
    text = complaint(tmp_path, f"{INLINE}\nstorage: {{path: '${{NOT_SET_ANYWHERE}}'}}")
    assert "study.yaml: backfill.storage.path" in text
    assert "NOT_SET_ANYWHERE" in text


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("source: {type: sqlte}", ["backfill.source", "sqlte", "inline, text, csv, parquet, sqlite"]),
        ("source: {type: text}", ["backfill.source.path", "missing"]),
        ("source: {type: csv, pth: a}", ["backfill.source.pth", "'a'", "unknown key", "`path`"]),
        (f"{INLINE}\nprocessing: {{batch_sze: 4}}", ["backfill.processing.batch_sze", "4", "`batch_size`"]),
        (f"{INLINE}\nprocessing: {{batch_size: 5000}}", ["backfill.processing.batch_size", "5000", "1000"]),
        (f"{INLINE}\nprocessing: {{verify: fast}}", ["processing.verify", "fast", "'full' or 'structure'"]),
        (
            f"{INLINE}\nrecord_types: [app.bsky.feed.pst]",
            ["record_types.0", "app.bsky.feed.pst", "app.bsky.feed.post"],
        ),
        (f"{INLINE}\nrecord_types: []", ["record_types", "at least one"]),
        (f"{INLINE}\ninactive_accounts: drop", ["inactive_accounts", "drop", "'hide', 'keep' or 'purge'"]),
        (f"{INLINE}\npurge_deleted_after_days: -1", ["purge_deleted_after_days", "-1", "0"]),
        (
            f"{INLINE}\ntime_range: {{start_date: 2024-02-01, end_date: 2024-01-01}}",
            ["time_range", "after end_date"],
        ),
        (f"{INLINE}\ntime_range: {{partitions: hourly}}", ["time_range.partitions", "hourly", "'weekly'"]),
        (f"{INLINE}\ntime_range: {{start_date: soon}}", ["time_range.start_date", "soon", "YYYY-MM-DD"]),
        (f"{INLINE}\nstorage: {{type: dynamodb}}", ["storage.type", "dynamodb", "400 kB"]),
        (
            f"{INLINE}\nstorage: {{path: 's3://bucket/x'}}",
            ["storage.path", "s3://bucket/x", "local directory"],
        ),
        (f"{INLINE}\nnetwork: {{plc_url: 'plc.directory'}}", ["network.plc_url", "plc.directory", "http(s)"]),
        (f"{INLINE}\nnetwork: {{connect_to: {{'a b': 'c'}}}}", ["network.connect_to", "host:port"]),
        (f"{INLINE}\nname: two", ["name", "twice"]),
        ("", ["backfill.source", "missing"]),
    ],
)
def test_a_wrong_value_names_file_field_value_and_what_is_allowed(
    tmp_path: Path, body: str, parts: list[str]
) -> None:
    text = complaint(tmp_path, body)
    for part in ["study.yaml", *parts]:
        assert part in text, text


@pytest.mark.parametrize("name", ["config", "type", "my-study", "Study", "1st", "x" * 42, "demo_rebuild"])
def test_names_that_cannot_be_jobs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        load_study(write(tmp_path, INLINE, name))


def test_the_name_is_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"backfill:\n  name: two\n  {INLINE}\n")
    with pytest.raises(ConfigError, match="must be 'one'"):
        load_study(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("backfill: [", "not valid YAML"),
        ("just text", "mapping named `backfill`"),
        ("backfill: {}\nextra: 1", "extra"),
        ("&a [*a]", "mapping named `backfill`"),
    ],
)
def test_a_file_that_is_no_backfill(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_study(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_study(tmp_path / "study.yaml")


def test_every_name_that_dagster_keeps_is_reserved() -> None:
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    assert set(DISALLOWED_NAMES) <= RESERVED_NAMES
