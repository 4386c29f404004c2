import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.blocks import Link, decode_blocks
from backfill_dagster.records.record_json import json_series, link_text, records_as_json, to_json
from backfill_dagster_tests.records.batches import CID


def test_the_protocols_own_data_is_written_as_it_says(shared_dir: Path) -> None:
    fixtures = json.loads((shared_dir / "vectors/interop/data-model/data-model-fixtures.json").read_text())
    assert len(fixtures) == 3
    blocks = []
    for fixture in fixtures:
        text = fixture["cbor_base64"]
        blocks.append(base64.b64decode(text + "=" * (-len(text) % 4)))
    records, failures = decode_blocks(blocks, [True] * 3)
    assert failures == []
    expected = [fixture["json"] for fixture in fixtures]
    assert [json.loads(to_json(record)) for record in records] == expected
    assert [json.loads(text) for text in records_as_json(records)] == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", '{"$bytes":""}'),
        (b"\xff\xfe\x00", '{"$bytes":"//4A"}'),
        (b"\xff", '{"$bytes":"/w"}'),
        (1.5, "1.5"),
        (-0.0, "-0.0"),
        (2.0, "2.0"),
        (1.5e300, "1.5e+300"),
        (2**64 - 1, "18446744073709551615"),
        (-(2**64), "-18446744073709551616"),
        ("\0\n\r\x7f\u2028🦋", '"\\u0000\\n\\r\x7f\u2028🦋"'),
        ("", '""'),
        (None, "null"),
    ],
)
def test_values(value: Any, text: str) -> None:
    record = {"b": 1, "a": value}
    expected = f'{{"b":1,"a":{text}}}'
    assert to_json(record).decode() == expected
    assert records_as_json([record]).to_list() == [expected]
    assert records_as_json([{}, record, {"c": "\n,\n"}]).to_list() == ["{}", expected, '{"c":"\\n,\\n"}']


def test_links_of_any_kind_are_written() -> None:
    assert (
        link_text(Link(b"\x12\x20" + bytes(32))) == "Qm" + "NLei78zWmzUdbeRB3CiUfAizWUrbeeZh5K1rhAQKCh51"[:44]
    )
    assert link_text(Link(b"")) == "b"
    assert link_text(Link(b"\x00\x01")) == "baaaq"
    assert json.loads(
        to_json({"a": Link(base64.b32decode(CID[1:].upper() + "=" * (-len(CID[1:]) % 8)))})
    ) == {"a": {"$link": CID}}


def test_columns_of_nothing() -> None:
    assert records_as_json([]).to_list() == []
    assert json_series([]).to_list() == []
    assert json_series([None, b'"x"', None]).to_list() == [None, '"x"', None]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), max_size=6))
def test_json_gives_back_what_it_was_made_of(records: list[dict[str, Any]]) -> None:
    assert [json.loads(text) for text in records_as_json(records)] == records


@pytest.mark.parametrize(
    "odd", [{}, {"embed": {"a": -(2**64)}, "x": 1e16}, {"x": -(2**64)}, {"facets": [-(2**63)]}]
)
def test_parts_that_are_written_already_change_nothing(odd: dict[str, Any]) -> None:
    records = [
        {
            "a": number,
            "embed": {"text": "é\n", "link": Link(bytes(36))},
            "facets": [1.5, "-" + "9" * number],
            "z": 1,
        }
        for number in range(80)
    ]
    records[3] |= odd
    records[5].pop("embed")
    written = {
        name: json_series([to_json(record[name]) if name in record else None for record in records])
        for name in ("embed", "facets")
    }
    assert records_as_json(records, written).to_list() == [to_json(record).decode() for record in records]
