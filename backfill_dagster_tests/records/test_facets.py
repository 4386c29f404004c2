import json
from typing import Any

import pytest

from backfill_dagster_tests.records.batches import OTHER_DID, row_of_post

INDEX = {"byteStart": 0, "byteEnd": 4}
LINK = {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/"}
MENTION = {"$type": "app.bsky.richtext.facet#mention", "did": OTHER_DID}
TAG = {"$type": "app.bsky.richtext.facet#tag", "tag": "atproto"}
OTHER = {"$type": "com.example.facet#bold", "uri": "https://example.com/not-a-link"}
BAD = "facets.features:bad_element"


def facet(*features: Any) -> dict[str, Any]:
    return {"index": INDEX, "features": list(features)}


@pytest.mark.parametrize(
    ("facets", "links", "mentions", "tags", "issues"),
    [
        ([], [], [], [], []),
        (
            [facet(LINK, TAG), facet(MENTION), facet(TAG)],
            [LINK["uri"]],
            [OTHER_DID],
            ["atproto", "atproto"],
            [],
        ),
        ([facet(OTHER)], [], [], [], []),
        ([facet()], [], [], [], []),
        ([None, 3, facet(LINK)], [LINK["uri"]], [], [], ["facets:bad_element"]),
        ([{"index": INDEX, "features": "x"}], [], [], [], ["facets:bad_element"]),
        ([{"index": INDEX}], [], [], [], ["facets:bad_element"]),
        ([facet("x", {}, {"$type": 1}, TAG)], [], [], ["atproto"], [BAD]),
        ([facet({**LINK, "uri": 1})], [], [], [], [BAD]),
        ([facet({**LINK, "uri": b"x"})], [], [], [], [BAD]),
        ([facet({**MENTION, "did": "bsky.app"})], [], [], [], [BAD]),
        ([facet({**MENTION, "did": OTHER_DID + "\n"})], [], [], [], [BAD]),
        ([facet({"$type": TAG["$type"]})], [], [], [], [BAD]),
    ],
)
def test_features_are_sorted_by_kind(
    facets: list[Any], links: list[str], mentions: list[str], tags: list[str], issues: list[str]
) -> None:
    row = row_of_post(facets=facets)
    assert (row["facet_links"], row["facet_mentions"], row["facet_tags"]) == (links, mentions, tags)
    assert json.loads(row["facets"]) == json.loads(row["record"])["facets"]
    assert row["issues"] == issues


@pytest.mark.parametrize(
    ("facets", "issue"), [(None, "null"), ("x", "not_a_list"), (facet(LINK), "not_a_list")]
)
def test_what_is_no_list_of_facets_is_null_and_named(facets: Any, issue: str) -> None:
    row = row_of_post(facets=facets)
    assert {row[f"facet{suffix}"] for suffix in ("s", "_links", "_mentions", "_tags")} == {None}
    assert row["issues"] == [f"facets:{issue}"]
