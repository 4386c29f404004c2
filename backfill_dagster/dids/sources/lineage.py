"""Which other backfills a study's lists come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from backfill_dagster.config.sources import AssetSource, nested_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.sources import Source
    from backfill_dagster.config.study import Study


# Fields of the YAML that say together where one thing of a study comes from.
Part: TypeAlias = tuple[str, ...]

# Which lists decide on the accounts, and which on the records; and what is only made of the tables in the end.
ACCOUNTS: Part = ("backfill.source", "backfill.exclude")
RECORDS: Part = ("backfill.filters",)
FEEDS: Part = ("backfill.derived.posts_used_in_feeds",)


def study_sources(study: Study) -> Iterator[tuple[str, Source]]:
    """Yield every source that a study's YAML names, with its field; those within others after the whole."""
    tops: list[tuple[str, Source | None]] = [
        ("backfill.source", study.source),
        ("backfill.exclude", study.exclude),
    ]
    for kind, chosen in study.filters.items():
        tops.append((f"backfill.filters.{kind}.uris", chosen.uris))
        tops.append((f"backfill.filters.{kind}.subjects", chosen.subjects))
    if study.derived.posts_used_in_feeds is not None:
        tops.append((f"{FEEDS[0]}.feeds", study.derived.posts_used_in_feeds.feeds))
    for field, source in tops:
        if source is not None:
            yield from nested_sources(source, field)


def asset_sources(study: Study) -> list[tuple[str, AssetSource]]:
    """Return the sources, with their fields, that are assets of other backfills in the same storage."""
    return [
        (field, source)
        for field, source in study_sources(study)
        if isinstance(source, AssetSource) and source.storage is None
    ]


def upstream_assets(study: Study, parts: Part) -> list[tuple[str, str]]:
    """Return (backfill, asset) of the assets that these parts of the YAML name, each once."""
    named = [source for field, source in asset_sources(study) if field.startswith(parts)]
    return list(dict.fromkeys((source.backfill, source.asset) for source in named))


def part_of(field: str) -> Part:
    """Return the part of the YAML that this field is of: what decides what is collected, or what is made of it."""
    return FEEDS if field.startswith(FEEDS) else ACCOUNTS + RECORDS
