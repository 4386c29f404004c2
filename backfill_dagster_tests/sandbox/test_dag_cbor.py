from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import cbrrr
import libipld
import orjson
import pytest

from backfill_dagster.sandbox.dag_cbor import Link, Raw, as_json, cid_of, cid_text, encode

if TYPE_CHECKING:
    from pathlib import Path


def from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$link"}:
        return Link(cbrrr.CID.decode(value["$link"]))
    if set(value) == {"$bytes"}:
        return base64.b64decode(value["$bytes"] + "==")
    return {key: from_json(item) for key, item in value.items()}


def test_the_protocols_fixtures(shared_dir: Path) -> None:
    fixtures = orjson.loads((shared_dir / "vectors/interop/data-model/data-model-fixtures.json").read_bytes())
    assert len(fixtures) == 3
    for fixture in fixtures:
        value = from_json(fixture["json"])
        block = encode(value)
        assert block == base64.b64decode(fixture["cbor_base64"] + "==")
        assert cid_text(cid_of(block)) == fixture["cid"]
        assert as_json(value) == fixture["json"]


def test_records_of_official_servers_get_the_same_cids(shared_dir: Path) -> None:
    checked = 0
    for manifest in sorted((shared_dir / "cars").glob("*.manifest.json")):
        for record in orjson.loads(manifest.read_bytes())["records"]:
            assert cid_text(cid_of(encode(from_json(record["value"])))) == record["cid"], record["uri"]
            checked += 1
    assert checked > 400


@pytest.mark.parametrize(
    "value",
    [
        *(
            sign * 2**power + step
            for power in (0, 5, 8, 16, 32, 53, 62)
            for step in (-1, 0, 1)
            for sign in (1, -1)
        ),
        *("x" * length for length in (0, 23, 24, 255, 256, 65_536)),
        *(list(range(length)) for length in (0, 23, 24, 256)),
        {"b": 1, "aa": 2, "": 3, "a": 4, "ключ": 5, "bb": None, "c" * 30: True},
        {str(number): {} for number in range(300)},
        0.5,
        1e300,
        b"",
        b"\x00" * 300,
        [False, True, None, {"a": [b"\xff"]}],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_two_other_codecs_agree(value: Any) -> None:
    written = encode(value)
    assert written == libipld.encode_dag_cbor(value) == cbrrr.encode_dag_cbor(value)
    assert libipld.decode_dag_cbor(written) == value


def test_links_and_byte_strings_are_told_apart() -> None:
    cid = cid_of(b"\xa0")
    decoded: Any = cbrrr.decode_dag_cbor(encode({"link": cid, "bytes": bytes(cid)}), atjson_mode=True)
    assert decoded == as_json({"link": cid, "bytes": bytes(cid)})
    assert set(decoded["link"]) == {"$link"}
    assert set(decoded["bytes"]) == {"$bytes"}


def test_raw_bytes_stand_as_they_are() -> None:
    assert encode([Raw(b"\xff"), 1]) == b"\x82\xff\x01"
