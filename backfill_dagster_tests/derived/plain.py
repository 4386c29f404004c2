"""The derived tables made again row by row in plain Python, out of the rows of the record tables."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from backfill_dagster.config.study import Study

FEEDS_CSV = "feeds.csv"
TIMES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d %H:%M:%S+00")
Row = dict[str, Any]
_UNDATED = ("missing", "unparseable", "before_network", "future")


def rows(study: Study, *tables: str, undated: bool = True) -> Iterator[Row]:
    """Yield the rows of record tables as dicts; of the undated, `created_at` is None."""
    for table in tables:
        for path in sorted(study.root.glob(f"tables/{table}/*/*.parquet")):
            yield from pl.read_parquet(path, hive_partitioning=False).iter_rows(named=True)
        for path in sorted(study.root.glob(f"undated/{table}/*.parquet")) if undated else ():
            for row in pl.read_parquet(path).iter_rows(named=True):
                assert row["date_quality"] in _UNDATED
                yield {**row, "created_at": None}


def derived(study: Study, name: str) -> dict[str, list[Row]]:
    """Return the rows of a derived table by time window."""
    found: dict[str, list[Row]] = {}
    folders = {file.parent for file in study.root.glob(f"derived/{name}/*/*.parquet")}
    for folder in sorted(folders):
        window = folder.name.partition("=")[2]
        found[window] = pl.read_parquet(folder / "*.parquet", hive_partitioning=False).to_dicts()
    return found


def activity(study: Study) -> list[Row]:
    """Count each account's days."""
    tables = ("posts", "replies", "likes", "reposts", "follows", "blocks")
    days: dict[tuple[str, date], Row] = {}
    for table in tables:
        for row in rows(study, table, undated=False):
            key = row["did"], row["created_at"].date()
            day = days.setdefault(
                key, {**dict.fromkeys(tables, 0), "times": [], "words": 0, "languages": set()}
            )
            day[table] += 1
            day["times"].append(row["created_at"])
            if table in ("posts", "replies"):
                day["words"] += len((row["text"] or "").split())
                day["languages"] |= set(row["langs"] or [])
    return [
        {
            "did": did,
            "day": day,
            **{table: counted[table] for table in tables},
            "records": len(counted["times"]),
            "first_created_at": min(counted["times"]),
            "last_created_at": max(counted["times"]),
            "words": counted["words"],
            "languages": sorted(counted["languages"]),
        }
        for (did, day), counted in sorted(days.items())
    ]


def engagement(study: Study) -> list[Row]:
    """Count what each post received."""
    received: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for kind, tables, column in (
        ("likes", ("likes",), "subject_uri"),
        ("reposts", ("reposts",), "subject_uri"),
        ("replies", ("replies",), "reply_parent_uri"),
        ("quotes", ("posts", "replies"), "quoted_uri"),
    ):
        for row in rows(study, *tables):
            if row[column] is not None:
                received[row[column]][kind].append(row["did"])
    counted = []
    for post in rows(study, "posts", "replies", undated=False):
        by = received[post["uri"]]
        kinds = ("likes", "reposts", "replies", "quotes")
        counted.append(
            {
                **{name: post[name] for name in ("uri", "did", "record_type", "created_at")},
                **{f"{kind}_received": len(by[kind]) for kind in kinds},
                **{f"{kind}_accounts": len(set(by[kind])) for kind in kinds},
                "by_author": sum(did == post["did"] for kind in kinds for did in by[kind]),
            }
        )
    return sorted(counted, key=lambda row: str(row["uri"]))


def threads(replies: list[Row], posts: list[Row]) -> list[Row]:
    """Grow the trees of replies, one node after the other."""
    collected = {row["uri"]: row["created_at"] for row in (*posts, *replies)}
    by_root: dict[str, dict[str, str | None]] = defaultdict(dict)
    for reply in replies:
        root = reply["reply_root_uri"] or reply["reply_parent_uri"] or reply["uri"]
        by_root[root][reply["uri"]] = reply["reply_parent_uri"]
    grown = []
    own = {row["uri"] for row in posts}
    for root, parents in by_root.items():
        members = dict(parents)
        if root in own:
            members[root] = None
        for uri in {root, *(parent for parent in parents.values() if parent)}:
            members.setdefault(uri, None)
        sizes = [uri in collected for uri in members]
        for uri, parent in members.items():
            depth, top = _climb(members, uri)
            grown.append(
                {
                    "root_uri": root,
                    "uri": uri,
                    "did": uri.split("/")[2],
                    "collected": uri in collected,
                    "created_at": collected.get(uri),
                    "parent_uri": parent,
                    "depth": depth if top == root else None,
                    "top_uri": top,
                    "replies": sum(other == uri for other in members.values()),
                    "thread_size": sum(sizes),
                    "thread_missing": len(sizes) - sum(sizes),
                }
            )
    return sorted(grown, key=lambda row: (str(row["root_uri"]), str(row["uri"])))


def _climb(parents: dict[str, str | None], uri: str) -> tuple[int | None, str | None]:
    seen = {uri}
    while (above := parents[uri]) is not None:
        if above in seen:
            return None, None
        seen.add(above)
        uri = above
    return len(seen) - 1, uri


def write_feeds(study: Study, path: Path) -> None:
    """Write a table of feeds that shows some of the study's posts, some strangers', and things that are no posts."""
    chance = Random(5)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["feed", "uri", "shown_at"])
        for post in rows(study, "posts", "replies"):
            for _ in range(chance.choice((0, 0, 1, 2, 4))):
                born = post["created_at"] or datetime(2024, 10, 1, tzinfo=UTC)
                shown = born + timedelta(hours=chance.uniform(-24 * 3, 24 * 8))
                told = chance.choice([shown.isoformat(), *(f"{shown:{form}}" for form in TIMES)])
                writer.writerow(["a", post["uri"], told])
        writer.writerow(
            ["a", "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3kaaaaaaaaa2a", "2024-10-01"]
        )
        writer.writerow(
            ["a", "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.like/3kaaaaaaaaa2a", "2024-10-01"]
        )
        writer.writerow(["a", "https://bsky.app", "2024-10-01"])
        writer.writerow(
            ["a", "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3kaaaaaaaaa2b", "yesterday"]
        )


def feed_use(study: Study, path: Path, look_back_days: int) -> list[Row]:
    """Find each shown post's earliest day."""
    shown: dict[str, list[datetime]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                time = datetime.fromisoformat(row["shown_at"])
            except ValueError:
                continue
            shown[row["uri"]].append(time.replace(tzinfo=time.tzinfo or UTC))
    used = []
    for post in rows(study, "posts", "replies", undated=False):
        young = [
            time
            for time in shown[post["uri"]]
            if -1 <= (time.date() - post["created_at"].date()).days <= look_back_days
            and time.date() >= date(2022, 11, 1)
        ]
        if young:
            first = min(young)
            used.append(
                {
                    "used_on": first.date(),
                    "first_shown_at": first,
                    "days_shown": len({time.date() for time in young}),
                    "times_shown": len(young),
                    **post,
                }
            )
    return sorted(used, key=lambda row: str(row["uri"]))


def engaged(
    study: Study, own: set[str], start: datetime | None, end: datetime | None
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Count interactions by account and by post."""
    where = (
        ("replies", ("replies",), "reply_parent_uri", "reply_parent_did"),
        ("quotes", ("posts", "replies"), "quoted_uri", "quoted_did"),
        ("likes", ("likes",), "subject_uri", "subject_did"),
        ("reposts", ("reposts",), "subject_uri", "subject_did"),
        ("follows", ("follows",), None, "subject_did"),
    )
    accounts: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    posts: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for kind, tables, uri, subject in where:
        for row in rows(study, *tables, undated=False):
            time, other = row["created_at"], row[subject]
            if other is None or other == row["did"] or (start and time < start) or (end and time > end):
                continue
            if other not in own:
                accounts[other].append((kind, row))
            if uri and row[uri] and "/app.bsky.feed.post/" in row[uri]:
                posts[row[uri]].append((kind, row))
    return (
        {did: _sums(found) for did, found in accounts.items()},
        {uri: _sums(found) for uri, found in posts.items()},
    )


def _sums(found: list[tuple[str, Row]]) -> Row:
    times = [row["created_at"] for _, row in found]
    kinds = [kind for kind, _ in found]
    return {
        "interactions": len(found),
        "accounts": len({row["did"] for _, row in found}),
        **{kind: kinds.count(kind) for kind in ("replies", "quotes", "likes", "reposts", "follows")},
        "first": min(times),
        "last": max(times),
    }
