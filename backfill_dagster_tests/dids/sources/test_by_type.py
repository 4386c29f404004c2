"""Sources made of sources: what they give, and what they are called in messages."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from backfill_dagster.config.sources import SOURCES, Source
from backfill_dagster.dids.entries import BATCH_ROWS
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import DIDS, entries, frames, made_up, opened


def source(**body: object) -> Source:
    made: Source = TypeAdapter(Source).validate_python(body)
    return made


def inline(*dids: str) -> dict[str, object]:
    return {"type": "inline", "dids": list(dids)}


# The least that each type of source must say.
LEAST: dict[str, dict[str, object]] = {
    "inline": {"dids": ["x"]},
    "text": {"path": "x"},
    "csv": {"path": "x"},
    "parquet": {"path": "x"},
    "sqlite": {"path": "x"},
    "s3": {"path": "s3://bucket/x.csv"},
    "asset": {"backfill": "x"},
    "collected": {"backfill": "x"},
    "shared": {"path": "x"},
    "handles": {"handles": ["x.com"]},
    "pds": {"hosts": ["https://pds.example.com"]},
    "collection": {"collection": "app.bsky.feed.post"},
    "list": {"uri": "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.graph.list/3l5uvwqz2fk2k"},
    "plc_export": {},
    "union": {"sources": [inline("x")]},
    "except": {"source": inline("x"), "without": inline("y")},
}
ASKING_SERVERS = {"handles", "pds", "collection", "list", "plc_export"}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_type_of_the_yaml_has_what_reads_it(kind: str) -> None:
    made = opened(source(type=kind, **LEAST[kind]))

    assert made.describe().startswith("backfill.source")
    assert made.needs_network == (kind in ASKING_SERVERS)
    nested = opened(source(type="union", sources=[inline("x"), {"type": kind, **LEAST[kind]}]))
    assert nested.needs_network == (kind in ASKING_SERVERS)
    left_out = opened(source(type="except", source=inline("x"), without={"type": kind, **LEAST[kind]}))
    assert left_out.needs_network == (kind in ASKING_SERVERS)


def test_a_union_gives_all_that_its_members_do_in_their_order() -> None:
    made = source(type="union", sources=[inline(*DIDS[3:]), inline(*DIDS[:3]), inline(DIDS[0])])

    assert entries(made) == [*DIDS[3:], *DIDS[:3], DIDS[0]]


def test_a_difference_rejects_what_the_other_has(tmp_path: Path) -> None:
    made = opened(
        source(
            type="except",
            source=inline(*DIDS, "did:web:A.example"),
            without=inline(f" {DIDS[1]}", "did:web:a.EXAMPLE", "did:plc:nobody"),
        )
    )

    [batch] = frames(made)
    assert batch["input"].to_list() == [*DIDS, "did:web:A.example"]
    assert batch["reason"].to_list() == [None, "excluded", None, None, None, "excluded"]


def test_a_difference_goes_over_batches() -> None:
    dids = made_up(BATCH_ROWS + 10)
    batches = frames(opened(source(type="except", source=inline(*dids), without=inline(dids[0], dids[-1]))))

    assert [batch.height for batch in batches] == [BATCH_ROWS, 10]
    assert sum(batch["reason"].is_null().sum() for batch in batches) == len(dids) - 2


def test_an_error_names_the_field_however_deep_it_is(tmp_path: Path) -> None:
    missing = {"type": "csv", "path": str(tmp_path / "no.csv")}
    deep = source(
        type="union",
        sources=[
            inline("x"),
            {"type": "except", "source": inline("x"), "without": {"type": "union", "sources": [missing]}},
        ],
    )

    with pytest.raises(SourceError) as caught:
        frames(opened(deep))
    assert str(caught.value).startswith("backfill.source.sources.1.without.sources.0.path = ")
    with pytest.raises(SourceError, match=r"backfill\.source\.sources\.1\.without\.sources\.0\.path = "):
        opened(deep).stamp()


def test_a_stamp_is_that_of_all_and_none_if_one_has_none(tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_text(DIDS[0])
    text, server = {"type": "text", "path": str(path)}, {"type": "pds", "hosts": ["https://pds.example.com"]}
    union = source(type="union", sources=[inline("x"), text])
    difference = source(type="except", source=inline("x"), without=text)
    before = [opened(made).stamp() for made in (union, difference)]

    path.write_text("\n".join(DIDS))
    after = [opened(made).stamp() for made in (union, difference)]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert opened(source(type="union", sources=[text, server])).stamp() is None
    assert opened(source(type="except", source=text, without=server)).stamp() is None
    assert opened(source(type="except", source=server, without=text)).stamp() is None
