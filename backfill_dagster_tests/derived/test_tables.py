"""The other derived tables of a collected study, against plain Python, and what makes them anew."""

import hashlib

import polars as pl
import pytest

from backfill_dagster import derivation, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.derived import activity, engagement, feed_use
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.windows import study_windows
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.derived import plain


def build(study: Study, name: str) -> dict[str, bool]:
    """Build all windows of a derived table; return which were rebuilt."""
    windows = study_windows(study.time_range)
    reports = derivation.build_derived(study, study_files.study_tables(study), name, windows)
    assert [report.partition for report in reports] == windows
    found = plain.derived(study, name)
    assert {report.partition: report.rows for report in reports if report.rows} == {
        window: len(rows) for window, rows in found.items()
    }
    return {report.partition: report.rebuilt for report in reports}


def test_activity_is_that_of_the_rows(collected: Study) -> None:
    build(collected, "study_user_activity")
    found = plain.derived(collected, "study_user_activity")
    assert all(f"{row['day']:%Y-%m}" == window for window, rows in found.items() for row in rows)
    rows = sorted((row for rows in found.values() for row in rows), key=lambda row: (row["did"], row["day"]))
    assert rows == plain.activity(collected)
    assert sum(row["records"] for row in rows) > 1000


def test_engagement_is_that_of_the_rows(collected: Study) -> None:
    build(collected, "engagement")
    found = plain.derived(collected, "engagement")
    assert all(f"{row['created_at']:%Y-%m}" == window for window, rows in found.items() for row in rows)
    rows = sorted((row for rows in found.values() for row in rows), key=lambda row: str(row["uri"]))
    assert rows == plain.engagement(collected)
    for kind in ("likes", "reposts", "replies", "quotes"):
        assert sum(row[f"{kind}_received"] for row in rows) > 0


@pytest.mark.parametrize(
    ("module", "constant", "name"),
    [
        (activity, "_AT_ONCE", "study_user_activity"),
        (engagement, "_AT_ONCE", "engagement"),
        (feed_use, "_AT_ONCE", "posts_used_in_feeds"),
    ],
)
def test_many_small_lots_make_the_same_rows(
    collected: Study, module: object, constant: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(collected, name)
    whole = plain.derived(collected, name)
    monkeypatch.setattr(module, constant, 400)
    assert any(build(collected, name).values())
    parts = list((collected.root / "derived" / name).rglob("*.parquet"))
    assert len(parts) > 1.5 * len(whole)
    cut = plain.derived(collected, name)
    by = derivation.DERIVED[name].key
    for found in (whole, cut):
        for rows in found.values():
            rows.sort(key=lambda row: [str(row[column]) for column in by])
    assert cut == whole


def test_what_has_not_changed_is_not_built_again(collected: Study) -> None:
    tables = study_files.study_tables(collected)
    for name in derivation.derived_names(collected):
        build(collected, name)
        assert not any(build(collected, name).values())
    assert not any(derivation.stale_derived(collected, tables).values())


def test_a_file_that_is_gone_is_written_again(collected: Study) -> None:
    build(collected, "engagement")
    [file, *_] = sorted((collected.root / "derived/engagement").rglob("*.parquet"))
    content = file.read_bytes()
    file.unlink()
    window = file.parent.name.partition("=")[2]
    stale = derivation.stale_derived(collected, study_files.study_tables(collected))["engagement"]
    assert stale == [window]
    rebuilt = build(collected, "engagement")
    assert [one for one, changed in rebuilt.items() if changed] == [window]
    assert file.read_bytes() == content


def test_folders_of_other_windows_and_tables_are_removed(collected: Study) -> None:
    build(collected, "engagement")
    stranger = collected.root / "derived/engagement/month=1999-01/part-00000.parquet"
    other = collected.root / "derived/no_such/month=2024-10/part-00000.parquet"
    for path in (stranger, other):
        path.parent.mkdir(parents=True)
        pl.DataFrame({"uri": ["x"]}).write_parquet(path)
    build(collected, "engagement")
    derivation.remove_other_derived(collected)
    assert not stranger.exists()
    assert not other.exists()


def test_posts_used_in_feeds_are_those_of_the_rows(collected: Study) -> None:
    counts = derivation.read_feeds(collected)
    assert (counts["no_post"], counts["no_time"]) == (2, 1)
    build(collected, "posts_used_in_feeds")
    found = plain.derived(collected, "posts_used_in_feeds")
    assert all(f"{row['used_on']:%Y-%m}" == window for window, rows in found.items() for row in rows)
    rows = sorted((row for rows in found.values() for row in rows), key=lambda row: str(row["uri"]))
    feeds = collected.root.parent.parent / plain.FEEDS_CSV
    expected = plain.feed_use(collected, feeds, 3)
    assert rows == expected
    assert len(expected) > 100


def test_a_purge_takes_accounts_out_of_what_feeds_showed_without_their_source(collected: Study) -> None:
    storage = StudyStorage(collected.root)
    before = pl.concat(storage.read(key) for key in storage.keys("feeds"))
    purged = before["uri"][0].split("/")[2]
    tombstones = Tombstones(b"salt", frozenset([hashlib.sha256(b"salt" + purged.encode()).digest()]))
    contents = {key: storage.path(key).read_bytes() for key in storage.keys("feeds")}
    try:
        removed = feed_use.purge_shown(storage, tombstones)
        after = pl.concat(storage.read(key) for key in storage.keys("feeds"))
        assert removed == before.height - after.height > 0
        assert not after["uri"].str.contains(purged, literal=True).any()
        assert feed_use.purge_shown(storage, tombstones) == 0
    finally:
        for key, content in contents.items():
            storage.path(key).write_bytes(content)


def test_a_window_that_failed_its_check_is_built_again(collected: Study) -> None:
    build(collected, "engagement")
    tables = study_files.study_tables(collected)
    [file, *_] = sorted((collected.root / "derived/engagement").rglob("*.parquet"))
    window = file.parent.name.partition("=")[2]
    content, rows = file.read_bytes(), pl.read_parquet(file, hive_partitioning=False)
    pl.concat([rows, rows.head(1)]).write_parquet(file)
    found = derivation.inspect(collected, tables, "engagement", [window])
    assert (found.repeated_keys, found.unaccounted, found.faulty) == (2, 1, (window,))
    assert derivation.stale_derived(collected, tables)["engagement"] == [window]
    assert build(collected, "engagement")[window]
    assert file.read_bytes() == content
