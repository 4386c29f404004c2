"""The transformation of repositories that nobody here generated, against the manifests of their records."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from backfill_dagster.records.tables import COLLECTIONS
from backfill_dagster.records.transform import TransformedRecords, transform_records
from backfill_dagster_tests.records import exported_repos
from backfill_dagster_tests.records.batches import PDS, block_row, blocks, settings

START = datetime(2026, 6, 1, tzinfo=UTC)
END = datetime(2026, 10, 1, tzinfo=UTC) - timedelta(microseconds=1)
FETCHED_AT = datetime(2026, 11, 22, tzinfo=UTC)

# What the manifests leave open: the instants that the odd dates of `weird` name, if any.
ODD_DATES = {
    "2026-08-01 12:00:00": (datetime(2026, 8, 1, 12, tzinfo=UTC), "createdAt:no_zone"),
    "2026-08-01": (datetime(2026, 8, 1, tzinfo=UTC), "createdAt:date_only"),
    "2026-02-30T00:00:00Z": (None, "createdAt:unparseable"),
    "not a date": (None, "createdAt:unparseable"),
    "": (None, "createdAt:unparseable"),
    1750000000000: (None, "createdAt:not_a_string"),
    None: (None, "createdAt:missing"),
}


def transform(name: str, outside: Any = "normalize", *, keep_record_json: bool = True) -> TransformedRecords:
    did, rev, records = exported_repos.record_blocks(name)
    rows = []
    for key, cid, block in records:
        collection, rkey = key.split("/", 1)
        rows.append(block_row(block, collection, rkey, did, cid))
    account = {"did": did, "pds": PDS, "repo_rev": rev, "obtained": "repo", "fetched_at": FETCHED_AT}
    accounts = pl.DataFrame([account])
    wanted = settings(start=START, end=END, outside=outside, keep_record_json=keep_record_json)
    return transform_records(blocks(rows), accounts, wanted)


def live_records(name: str) -> dict[str, dict[str, Any]]:
    records = exported_repos.manifest(name)["records"] or []
    return {record["uri"]: record for record in records if record["status"] == "live"}


def rows_of(result: TransformedRecords) -> dict[str, tuple[str, dict[str, Any]]]:
    rows = [(name, row) for name, frame in result.tables.items() for row in frame.iter_rows(named=True)]
    assert len({row["uri"] for _, row in rows}) == len(rows)
    return {row["uri"]: (name, row) for name, row in rows}


def table_of(record: dict[str, Any]) -> str:
    if record["collection"] == "app.bsky.feed.post":
        return "replies" if "reply" in record["value"] else "posts"
    return f"{record['collection'].rpartition('.')[2]}s"


def instant_of(raw: Any) -> datetime | None:
    return ODD_DATES[raw][0] if raw in ODD_DATES else datetime.fromisoformat(raw)


@pytest.mark.parametrize("name", exported_repos.WHOLE)
def test_every_record_of_the_manifest_is_a_row_with_its_cid_value_and_dates(name: str) -> None:
    rows = rows_of(transform(name))
    expected = {
        uri: record for uri, record in live_records(name).items() if record["collection"] in COLLECTIONS
    }
    assert rows.keys() == expected.keys()
    for uri, record in expected.items():
        table, row = rows[uri]
        value = record["value"]
        raw = value.get("createdAt")
        assert table == table_of(record)
        assert (row["did"], row["collection"], row["rkey"]) == (
            record["did"],
            record["collection"],
            record["rkey"],
        )
        assert row["cid"] == record["cid"]
        assert json.loads(row["record"]) == value
        assert row["created_at_raw"] == (raw if isinstance(raw, str) else None)
        assert row["created_at"] == instant_of(raw)
        if record["inRange"] is not None:
            assert row["in_range"] == record["inRange"]
        if raw in ODD_DATES:
            assert ODD_DATES[raw][1] in row["issues"]


@pytest.mark.parametrize("name", exported_repos.WHOLE)
def test_posts_say_what_their_values_say(name: str) -> None:
    values = {uri: record["value"] for uri, record in live_records(name).items()}
    for uri, (table, row) in rows_of(transform(name)).items():
        if table not in {"posts", "replies"}:
            continue
        value = values[uri]
        embed = value.get("embed", {})
        assert row["text"] == value.get("text")
        assert row["langs"] == value.get("langs")
        assert row["tags"] == value.get("tags")
        assert row["labels"] == (
            [label["val"] for label in value["labels"]["values"]] if "labels" in value else None
        )
        assert row["embed_type"] == embed.get("$type")
        assert json.loads(row["embed"] or "{}") == embed
        assert json.loads(row["facets"] or "[]") == value.get("facets", [])
        features = [feature for facet in value.get("facets", []) for feature in facet["features"]]
        assert (row["facet_links"] or []) == [feature["uri"] for feature in features if "uri" in feature]
        assert (row["facet_mentions"] or []) == [feature["did"] for feature in features if "did" in feature]
        assert (row["facet_tags"] or []) == [feature["tag"] for feature in features if "tag" in feature]
        assert row["quoted_uri"] == embed.get("record", {}).get("uri")
        assert row["external_uri"] == embed.get("external", {}).get("uri")
        images = embed.get("images", [])
        assert (row["alt_texts"] or []) == [image["alt"] for image in images]
        assert (row["blob_cids"] or []) == [image["image"]["ref"]["$link"] for image in images]
        assert (row["media_types"] or []) == [image["image"]["mimeType"] for image in images]
        reply = value.get("reply", {})
        assert row["reply_parent_uri"] == reply.get("parent", {}).get("uri")
        assert row["reply_root_cid"] == reply.get("root", {}).get("cid")
        if reply.get("root"):
            assert row["reply_root_did"] == reply["root"]["uri"].split("/")[2]


@pytest.mark.parametrize("name", exported_repos.WHOLE)
def test_subjects_are_what_their_values_say(name: str) -> None:
    values = {uri: record["value"] for uri, record in live_records(name).items()}
    for uri, (table, row) in rows_of(transform(name)).items():
        subject = values[uri].get("subject")
        if table in {"likes", "reposts"}:
            expected = subject if isinstance(subject, dict) else {"uri": None, "cid": None}
            assert (row["subject_uri"], row["subject_cid"]) == (expected["uri"], expected["cid"])
            parts = (expected["uri"] or "at://").removeprefix("at://").split("/")
            assert (row["subject_did"] or "") == parts[0]
        elif table in {"follows", "blocks"}:
            assert row["subject_did"] == (subject if subject.startswith("did:") else None)


@pytest.mark.parametrize("name", exported_repos.WHOLE)
def test_dropping_keeps_what_is_in_range_and_what_has_no_date(name: str) -> None:
    dropped, normalised = rows_of(transform(name, "drop")), rows_of(transform(name))
    undated = {"missing", "unparseable", "before_network", "future"}
    expected = {
        uri: row for uri, row in normalised.items() if row[1]["in_range"] or row[1]["date_quality"] in undated
    }
    assert dropped == expected
    if name != "empty":
        assert 0 < len(dropped) < len(normalised)


@pytest.mark.parametrize("name", exported_repos.WHOLE)
@pytest.mark.parametrize("outside", ["drop", "normalize"])
def test_the_counts_are_those_of_the_manifest(name: str, outside: str) -> None:
    result = transform(name, outside)
    live = live_records(name)
    assert result.counts["records"].sum() == len(live)
    assert result.rejects.is_empty()
    for collection in {record["collection"] for record in live.values()}:
        counted = result.counts.filter(collection=collection)["records"].sum()
        assert counted == sum(record["collection"] == collection for record in live.values())


def test_without_json_all_else_is_the_same() -> None:
    whole, bare = transform("weird"), transform("weird", keep_record_json=False)
    for name, frame in bare.tables.items():
        assert frame["record"].null_count() == frame.height
        assert frame.schema == whole.tables[name].schema
        assert frame.drop("record").equals(whole.tables[name].drop("record"))
    assert bare.counts.equals(whole.counts)
