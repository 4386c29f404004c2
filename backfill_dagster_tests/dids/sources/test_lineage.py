from pathlib import Path

import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster.dids.sources.lineage import (
    ACCOUNTS,
    FEEDS,
    RECORDS,
    asset_sources,
    upstream_assets,
)


def study(folder: Path, **parts: object) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"backfill": {"name": "study", **parts}}, sort_keys=False))
    return load_study(path)


def asset(backfill: str, **options: object) -> dict[str, object]:
    return {"type": "asset", "backfill": backfill, **options}


INLINE = {"type": "inline", "dids": ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]}


def test_assets_are_found_wherever_a_list_can_stand(tmp_path: Path) -> None:
    made = study(
        tmp_path,
        source={
            "type": "union",
            "sources": [
                INLINE,
                {"type": "except", "source": asset("a"), "without": asset("b", asset="accounts")},
            ],
        },
        exclude=asset("c", asset="source_dids"),
        filters={
            "app.bsky.feed.post": {"uris": asset("a", asset="engaged_posts")},
            "app.bsky.feed.like": {"subjects": asset("a", asset="engaged_posts")},
        },
        derived={"posts_used_in_feeds": {"feeds": asset("d", asset="posts")}},
    )

    assert upstream_assets(made, ACCOUNTS) == [
        ("a", "engaged_accounts"),
        ("b", "accounts"),
        ("c", "source_dids"),
    ]
    assert upstream_assets(made, RECORDS) == [("a", "engaged_posts")]
    assert upstream_assets(made, FEEDS) == [("d", "posts")]
    assert [field for field, _ in asset_sources(made)] == [
        "backfill.source.sources.1.source",
        "backfill.source.sources.1.without",
        "backfill.exclude",
        "backfill.filters.app.bsky.feed.post.uris",
        "backfill.filters.app.bsky.feed.like.subjects",
        "backfill.derived.posts_used_in_feeds.feeds",
    ]


def test_what_is_stored_elsewhere_is_nobody_s_asset_here(tmp_path: Path) -> None:
    assert upstream_assets(study(tmp_path, source=asset("a", storage="/elsewhere")), ACCOUNTS) == []
    assert upstream_assets(study(tmp_path, source=INLINE), ACCOUNTS) == []
