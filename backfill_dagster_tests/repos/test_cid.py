import base64
import hashlib
import json
from pathlib import Path

import pytest

from backfill_dagster.repos.cid import cid_length, cid_text, dag_cbor_cid, is_repo_cid
from backfill_dagster_tests.repos.forge import cbor, cid_of, link_of_text, varint

SHA1_CID = b"\x01\x71" + b"\x11\x14" + hashlib.sha1(b"block").digest()
SHA512_CID = b"\x01\x71" + b"\x13\x40" + hashlib.sha512(b"block").digest()
IDENTITY_CID = b"\x01\x55" + b"\x00\x05block"
V0_CID = b"\x12\x20" + hashlib.sha256(b"block").digest()
BLAKE_CID = b"\x01\x71" + varint(0xB220) + b"\x20" + bytes(32)


def test_blocks_of_the_protocols_own_fixtures_have_the_cids_stated_there(shared_dir: Path) -> None:
    fixtures = json.loads((shared_dir / "vectors/interop/data-model/data-model-fixtures.json").read_text())

    for fixture in fixtures:
        block = base64.b64decode(fixture["cbor_base64"] + "==")
        assert cid_text(dag_cbor_cid(block)) == fixture["cid"]
        assert dag_cbor_cid(block) == link_of_text(fixture["cid"])


def test_a_cid_is_written_with_the_letters_of_its_codec() -> None:
    assert cid_text(cid_of(b"block")).startswith("bafyrei")
    assert cid_text(cid_of(b"block", codec=0x55)).startswith("bafkrei")


@pytest.mark.parametrize("cid", [b"", b"\x01", b"\x02\x71\x12\x20" + bytes(32)])
def test_what_is_no_cid_has_no_text(cid: bytes) -> None:
    with pytest.raises(ValueError):
        cid_text(cid)


def test_only_sha256_of_a_known_codec_is_a_repositorys_cid() -> None:
    assert is_repo_cid(cid_of(b"block"))
    assert is_repo_cid(cid_of(b"block", codec=0x55))
    for other in (
        SHA1_CID,
        SHA512_CID,
        IDENTITY_CID,
        V0_CID,
        BLAKE_CID,
        cid_of(b"", codec=0x70),
        cid_of(b"")[:-1],
    ):
        assert not is_repo_cid(other)


@pytest.mark.parametrize(
    "cid", [SHA1_CID, SHA512_CID, IDENTITY_CID, V0_CID, BLAKE_CID, bytes(cid_of(b"block"))]
)
def test_the_length_of_any_kind_of_cid_is_found(cid: bytes) -> None:
    data = b"before" + cid + cbor("after")

    assert cid_length(data, 6, len(data)) == len(cid)
    assert cid_length(data, 6, 6 + len(cid)) == len(cid)
    with pytest.raises(EOFError):
        cid_length(data, 6, 6 + len(cid) - 1)


@pytest.mark.parametrize("data", [b"\x00" * 40, b"\x02\x71\x12\x20" + bytes(32), b"\x81\x00" + bytes(40)])
def test_other_versions_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        cid_length(data, 0, len(data))
