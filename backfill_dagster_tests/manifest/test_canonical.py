"""Files of JSON in which no byte can be changed unnoticed."""

import hashlib
import json

import pytest

from backfill_dagster.manifest.canonical import Told

TOLD = Told({"study": "a", "numbers": [1, 2], "text": "häßlich"}, {"at": "2025-01-01", "runs": []})


def test_what_was_written_is_read() -> None:
    assert Told.from_bytes(TOLD.to_bytes()) == TOLD


def test_the_digest_is_of_the_content_alone_and_can_be_made_by_anybody() -> None:
    text = json.dumps(TOLD.content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert TOLD.digest == hashlib.sha256(text.encode()).hexdigest()
    assert Told(TOLD.content, {"at": "2026-01-01"}).digest == TOLD.digest
    assert Told({**TOLD.content, "numbers": [2, 1]}, TOLD.made).digest != TOLD.digest


def test_every_other_byte_is_noticed() -> None:
    data = TOLD.to_bytes()
    for position in range(len(data)):
        for bit in (1, 32):
            changed = bytearray(data)
            changed[position] ^= bit
            with pytest.raises(ValueError):
                Told.from_bytes(bytes(changed))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"content": {}}', TOLD.to_bytes() + b" ", b"[" * 9999]
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Told.from_bytes(data)
