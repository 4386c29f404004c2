"""Reading by shape against reading one by one: whatever the blocks hold, nobody can tell which it was."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbrrr
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backfill_dagster.records import shapes
from backfill_dagster.records.filters import RecordFilter
from backfill_dagster.records.runs import Run, read_run
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.tables import BLOCK, FOLLOW, LIKE, REPOST
from backfill_dagster.records.transform import TransformedRecords
from backfill_dagster_tests.records.batches import CID, CREATED, DID, block_row, cbor, settings, transform

SUBJECT_RECORDS = (LIKE, REPOST)
SUBJECTS = (*SUBJECT_RECORDS, FOLLOW, BLOCK)
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def made_up(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(LETTERS, k=length))


def strong_reference(rng: random.Random, collection: str = "app.bsky.feed.post") -> dict[str, Any]:
    uri = f"at://did:plc:{made_up(rng, 24)}/{collection}/{made_up(rng, 13)}"
    return {"uri": uri, "cid": f"bafyrei{made_up(rng, 52)}"}


def usual(rng: random.Random, collection: str) -> dict[str, Any]:
    """Make up a record as clients write it; those of a collection have the same length, but for `via`."""
    second = rng.randrange(10**8)
    created = datetime.fromtimestamp(1_700_000_000 + second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    record: dict[str, Any] = {"$type": collection, "createdAt": f"{created}.{rng.randrange(1000):03}Z"}
    if collection in SUBJECT_RECORDS:
        record["subject"] = strong_reference(rng)
        if rng.random() < 0.3:
            record["via"] = strong_reference(rng, REPOST)
    else:
        record["subject"] = f"did:plc:{made_up(rng, 24)}"
    return record


def transform_both_ways(
    rows: list[dict[str, Any]], wanted: RecordSettings, least: int = 2
) -> tuple[TransformedRecords, TransformedRecords]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "MIN_ALIKE", least)
        by_shape = transform(rows, wanted)
        patch.setattr(shapes, "MIN_ALIKE", 10**9)
        return by_shape, transform(rows, wanted)


def assert_same(rows: list[dict[str, Any]], wanted: RecordSettings | None = None, least: int = 2) -> None:
    by_shape, one_by_one = transform_both_ways(rows, wanted or settings(), least)
    for name, frame in one_by_one.tables.items():
        assert frame.schema == by_shape.tables[name].schema
        assert frame.equals(by_shape.tables[name]), name
    assert one_by_one.rejects.equals(by_shape.rejects)
    assert one_by_one.counts.equals(by_shape.counts)


def run_of(blocks: list[bytes], collection: str) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "MIN_ALIKE", 2)
        return read_run(pl.Series(blocks, dtype=pl.Binary), collection, keep_record_json=True)[0]


def read_at_once(blocks: list[bytes], collection: str) -> list[int]:
    """Tell which blocks are read by their shape."""
    return run_of(blocks, collection).alike["position"].sort().to_list()


@pytest.mark.parametrize("collection", SUBJECTS)
def test_usual_records_are_read_at_once_and_alike(collection: str) -> None:
    rng = random.Random(collection)
    blocks = [cbor(usual(rng, collection)) for _ in range(600)]
    assert len(run_of(blocks, collection).alone) == 0
    rows = [block_row(block, collection, f"key{number}") for number, block in enumerate(blocks)]
    assert_same(rows, least=128)
    assert_same(rows, settings(start=datetime(2024, 9, 1, tzinfo=UTC), outside="drop"))
    assert_same(rows, settings(keep_record_json=False))


@pytest.mark.parametrize("collection", SUBJECTS)
def test_repeats_and_filters_see_no_difference(collection: str) -> None:
    rng = random.Random(collection)
    values = [usual(rng, collection) for _ in range(90)]
    for value in values[1::2]:
        value["subject"] = rng.choice(values[:20])["subject"]
    subjects = [value["subject"] for value in values[:15]]
    about = sorted(each["uri"] if isinstance(each, dict) else each for each in subjects)
    rows = [block_row(cbor(value), collection, f"k{number}") for number, value in enumerate(values)]
    own = [f"at://{DID}/{collection}/k{number}" for number in range(80)]
    for wanted in (
        RecordFilter(subjects=pl.Series(about)),
        RecordFilter(uris=pl.Series(own)),
        RecordFilter(uris=pl.Series(own), subjects=pl.Series(about)),
    ):
        filtered = settings(filters={collection: wanted})
        assert_same(rows, filtered)
        [table] = filtered.tables_of(collection)
        kept = transform_both_ways(rows, filtered)[0].tables[table]
        assert 10 < kept.height < len(rows)
        assert kept["first_for_subject"].unique().sort().to_list() == [False, True]


def test_few_records_are_read_one_by_one() -> None:
    rng = random.Random(1)
    blocks = [cbor(usual(rng, FOLLOW)) for _ in range(shapes.MIN_ALIKE)]
    for number, alike in ((shapes.MIN_ALIKE - 1, 0), (shapes.MIN_ALIKE, shapes.MIN_ALIKE)):
        run, failures = read_run(pl.Series(blocks[:number]), FOLLOW, keep_record_json=True)
        assert (run.alike.height, len(run.alone), failures) == (alike, number - alike, [])


def test_records_of_several_shapes_are_read_in_their_order() -> None:
    rng = random.Random(2)
    values = []
    for number in range(400):
        value = usual(rng, LIKE)
        if number % 3 == 0:
            value["client"] = "one" if number % 2 else "two"
        values.append(value)
    blocks = [cbor(value) for value in values]
    assert read_at_once(blocks, LIKE) == list(range(400))
    result = transform([block_row(block, LIKE, f"k{number}") for number, block in enumerate(blocks)])
    likes = result.tables["likes"]
    assert likes["subject_uri"].to_list() == [value["subject"]["uri"] for value in values]
    assert likes["via_uri"].to_list() == [value.get("via", {}).get("uri") for value in values]
    assert likes["created_at_raw"].to_list() == [value["createdAt"] for value in values]


def test_an_odd_client_of_one_account_does_not_hide_the_others() -> None:
    rng = random.Random(3)
    odd = [cbor({**usual(rng, FOLLOW), "x": made_up(rng, 9)}) for _ in range(3)]
    usuals = [cbor(usual(rng, FOLLOW)) for _ in range(20)]
    padded = [cbor({**usual(rng, FOLLOW), "x": "the same!"}) for _ in range(20)]
    assert len({len(block) for block in (*odd, *padded)}) == 1
    assert read_at_once(odd + usuals + padded, FOLLOW) == list(range(3, 43))


def follow(subject: Any = f"did:plc:{'a' * 24}", **fields: Any) -> bytes:
    return cbor({"$type": FOLLOW, "createdAt": CREATED, "subject": subject, **fields})


def swapped(block: bytes, before: bytes, after: bytes) -> bytes:
    assert block.count(before) == 1
    assert len(before) == len(after)
    return block.replace(before, after)


# Each as long as the usual follow, or as the follow with a field `via` or `x` beside which it stands.
FOLLOWED = b"did:plc:" + b"a" * 24
VIA = {"uri": f"at://{DID}/app.bsky.graph.starterpack/3l5uvwqz2fk2k", "cid": CID}
LINK = cbrrr.CID.decode(CID)
HOSTILE: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "another type of record": lambda: (follow(), swapped(follow(), b"graph.follow", b"graph.fellow")),
    "a key of the same length": lambda: (follow(), swapped(follow(), b"gsubject", b"gsubjekt")),
    "a byte string for the text": lambda: (
        follow(),
        swapped(follow(), b"\x78\x20" + FOLLOWED, b"\x58\x20" + FOLLOWED),
    ),
    "an array of letters for the text": lambda: (
        follow(),
        swapped(follow(), b"\x78\x20" + FOLLOWED, b"\x98\x20" + b"\x18\x61" * 16),
    ),
    "a text that ends early": lambda: (
        follow(),
        swapped(follow(), b"\x78\x20" + FOLLOWED, b"\x78\x1f" + FOLLOWED),
    ),
    "a text of a longer head": lambda: (
        follow(x=1),
        swapped(follow(x=1), b"\x78\x20" + FOLLOWED, b"\x79\x00\x20" + FOLLOWED[:-1]),
    ),
    "text that is not UTF-8": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-1] + b"\xff")),
    "a lone surrogate": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-3] + b"\xed\xa0\x80")),
    "a letter of two bytes": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-2] + "é".encode())),
    "a quote in the DID": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-1] + b'"')),
    "a backslash in the time": lambda: (follow(), swapped(follow(), b"000Z", b"00\\Z")),
    "a quote in the time": lambda: (follow(), swapped(follow(), b"000Z", b'00"Z')),
    "a line break in the time": lambda: (follow(), swapped(follow(), b"000Z", b"00\nZ")),
    "an upper-case letter in the DID": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-1] + b"A")),
    "a colon at the end of the DID": lambda: (follow(), swapped(follow(), FOLLOWED, FOLLOWED[:-1] + b":")),
    "a DID of another method": lambda: (follow(), swapped(follow(), b"did:plc:", b"did:web:")),
    "a DID of no method": lambda: (follow(), swapped(follow(), b"did:plc:", b"did:pl9:")),
    "keys that are double": lambda: (follow(aa=1, bb=2), swapped(follow(aa=1, bb=2), b"bbb", b"baa")),
    "keys that are unsorted": lambda: (follow(aa=1, bb=2), swapped(follow(aa=1, bb=2), b"baa", b"bcc")),
    "a reserved key": lambda: (follow(**{"$lenk": 1}), follow(**{"$link": 1})),
    "a link": lambda: (follow(x=bytes(41)[:-2] + b""), follow(x=LINK)),
    "a number that is longer than it need be": lambda: (
        follow(xx=25),
        swapped(follow(xx=25), b"\x18\x19", b"\x18\x09"),
    ),
    "no number": lambda: (follow(x=1.5), swapped(follow(x=1.5), b"\x3f\xf8", b"\x7f\xf8")),
    "an array that claims more": lambda: (
        follow(x=[1, 2]),
        swapped(follow(x=[1, 2]), b"\x82\x01", b"\x9b\x01"),
    ),
    "an unknown authority in via": lambda: (
        follow(via=VIA),
        swapped(follow(via=VIA), b"at://did:plc:", b"at://did:plc;"),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("position", [0, 20, 40])
def test_what_only_looks_the_same_is_read_alone(name: str, position: int) -> None:
    usual, other = HOSTILE[name]()
    assert len(usual) == len(other)
    rng = random.Random(4)
    same = [
        usual.replace(FOLLOWED, f"did:plc:{made_up(rng, 24)}".encode()) if FOLLOWED in usual else usual
        for _ in range(40)
    ]
    blocks = [*same[:position], other, *same[position:]]
    at_once = read_at_once(blocks, FOLLOW)
    assert position not in at_once
    assert len(at_once) == 40
    assert_same([block_row(block, FOLLOW, f"k{number}") for number, block in enumerate(blocks)])


def like(uri: str, cid: str = CID, **fields: Any) -> bytes:
    return cbor({"$type": LIKE, "createdAt": CREATED, "subject": {"uri": uri, "cid": cid}, **fields})


POST_URI = f"at://{DID}/app.bsky.feed.post/3l5uvwqz2fk2k"


@pytest.mark.parametrize(
    "blocks",
    [
        # A handle as authority, another kind of DID, a collection that is no NSID, keys that are none.
        [like(POST_URI.replace(DID, "a" * 27 + ".test"))] * 3,
        [like(POST_URI.replace("did:plc:", "did:web:"))] * 3,
        [like(POST_URI.replace("app.bsky.feed.post", "app..bsky.feed.pos"))] * 3,
        [like(POST_URI[:-1] + "!")] * 3,
        [like(POST_URI.replace("/3l5uvwqz2fk2k", ""))] * 3,
        # No CIDs, or none that are plain.
        [like(POST_URI, "Qm" + "a" * 44)] * 3,
        [like(POST_URI, "z" + "A" * 40)] * 3,
        [like(POST_URI, "abc")] * 3,
        # The same string in two places, so that nothing tells which is which.
        [like(POST_URI, via={"uri": POST_URI, "cid": CID})] * 3,
        [like(POST_URI, note=CID)] * 3,
        # `via` is not what it must be.
        [like(POST_URI, via=None)] * 3,
        [like(POST_URI, via=[1])] * 3,
        [like(POST_URI, via={"uri": 7, "cid": CID})] * 3,
        [like(POST_URI, via={"cid": "b" * 40})] * 3,
        # Fields that are not there, or of another type.
        [cbor({"$type": LIKE, "createdAt": CREATED})] * 3,
        [cbor({"$type": LIKE, "createdAt": CREATED, "subject": {"uri": POST_URI}})] * 3,
        [cbor({"$type": LIKE, "createdAt": CREATED, "subject": {"uri": POST_URI, "cid": 7}})] * 3,
        [cbor({"$type": LIKE, "createdAt": CREATED, "subject": POST_URI})] * 3,
        [cbor({"$type": LIKE, "createdAt": 7, "subject": {"uri": POST_URI, "cid": CID}})] * 3,
        [cbor({"$type": LIKE, "subject": {"uri": POST_URI, "cid": CID}})] * 3,
        [cbor({"createdAt": CREATED, "subject": {"uri": POST_URI, "cid": CID}})] * 3,
        [like(POST_URI, **{"$type": REPOST})] * 3,
        [like(POST_URI, createdAt="today")] * 3,
        # What the tag of a link begins with stands in a length, or in text.
        [like(POST_URI, note="*" * 0xD8)] * 3,
        [like(POST_URI, note="ظ")] * 3,
        [like(POST_URI, link=LINK)] * 3,
        [like(POST_URI, inner={"$bytes": "AA"})] * 3,
        # No records at all.
        [b""] * 3,
        [cbor(["like"])] * 3,
        [b"\xa1\x61a" + b"\x81" * 300 + b"\x01"] * 3,
    ],
)
def test_records_with_anything_amiss_have_no_shape(blocks: list[bytes]) -> None:
    assert read_at_once(blocks, LIKE) == []
    assert_same([block_row(block, LIKE, f"k{number}") for number, block in enumerate(blocks)])


def test_a_string_that_stands_twice_in_the_example_is_not_taken_for_its_twin() -> None:
    rng = random.Random(7)
    subjects = [strong_reference(rng) for _ in range(3)]
    blocks = [like(each["uri"], each["cid"], via=subjects[1]) for each in subjects]
    assert_same([block_row(block, LIKE, f"k{number}") for number, block in enumerate(blocks)])


def test_text_that_looks_like_a_marker_is_no_marker() -> None:
    rng = random.Random(9)
    record = usual(rng, FOLLOW)
    notes = [f"<{letter * (len(record[key]) - 2)}>" for key in ("createdAt", "subject") for letter in "AB"]
    blocks = [cbor({**usual(rng, FOLLOW), "notes": notes}) for _ in range(9)]
    assert_same([block_row(block, FOLLOW, f"k{number}") for number, block in enumerate(blocks)])


@pytest.mark.parametrize(
    "fields",
    [
        {"note": 'kept as it is: "quotes", \\, é, 🦋, \n'},
        {"note": b"bytes"},
        {"size": -(2**64)},
        {"size": -(2**64), "scale": 1e16},
        {"note": {"deep": [[[{"a": None}]]]}},
        {"createdAt": "no-time-at-all"},
        {"createdAt": "2024-10-05T12:00:00+09:00"},
    ],
)
def test_other_fields_are_part_of_the_shape(fields: dict[str, Any]) -> None:
    rng = random.Random(5)
    blocks = [cbor({**usual(rng, REPOST), **fields}) for _ in range(60)]
    assert read_at_once(blocks, REPOST) == list(range(60))
    assert_same([block_row(block, REPOST, f"k{number}") for number, block in enumerate(blocks)])


characters = st.sampled_from([*'az09AZ"\\/:.-_*<> \0\n\x7f', "é", "界", "🦋"])


@st.composite
def nearly_alike(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw usual records of a collection, a few of which differ in a letter, a byte, or a field."""
    collection = draw(st.sampled_from(SUBJECTS))
    rng = random.Random(draw(st.integers(0, 2**32)))
    extra = draw(st.dictionaries(st.sampled_from(["x", "via", "note", "$link"]), odd_values, max_size=1))
    rows = []
    for number in range(draw(st.integers(4, 10))):
        value = {**usual(rng, collection), **extra}
        change = draw(st.sampled_from(["none"] * 6 + ["letter", "letter", "byte", "field", "drop"]))
        if change == "field":
            value[draw(st.sampled_from(sorted(value)))] = draw(odd_values)
        elif change == "drop":
            del value[draw(st.sampled_from(sorted(value)))]
        block = cbor(value)
        if change in ("letter", "byte"):
            letter = draw(characters).encode() if change == "letter" else bytes([draw(st.integers(0, 255))])
            place = draw(st.integers(0, len(block) - len(letter)))
            block = block[:place] + letter + block[place + len(letter) :]
        rows.append(block_row(block, collection, f"k{number}"))
    return rows


odd_values = (
    st.none()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([CREATED, CID, POST_URI, DID, "a" * 24, "", "2024-10-05", LINK, bytes(36), {}, [], VIA])
    | st.text(max_size=30)
)


@examples(max_examples=150, deadline=None)
@given(nearly_alike(), st.sampled_from(["drop", "normalize"]))
def test_nobody_can_tell_how_a_record_was_read(rows: list[dict[str, Any]], outside: Any) -> None:
    wanted = settings(start=datetime(2024, 6, 1, tzinfo=UTC), outside=outside)
    assert_same(rows, wanted)


@pytest.mark.parametrize("collection", SUBJECTS)
def test_any_one_byte_can_be_another(collection: str) -> None:
    rng = random.Random(6)
    block = cbor({**usual(rng, collection), "z": 1})
    same = [cbor({**usual(rng, collection), "z": 1}) for _ in range(30)]
    same = [other for other in same if len(other) == len(block)]
    mutated = [
        block[:place] + bytes([value]) + block[place + 1 :]
        for place in range(len(block))
        for value in rng.sample(range(256), 6)
    ]
    # The example is taken from the middle.
    half = len(mutated) // 2
    blocks = [*mutated[:half], *same, *mutated[half:]]
    assert len(read_at_once(blocks, collection)) > len(same)
    assert_same([block_row(each, collection, f"k{number}") for number, each in enumerate(blocks)])
