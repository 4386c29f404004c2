from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from atproto_crypto.verify import verify_signature  # type: ignore[import-untyped]

from backfill_dagster.sandbox.keys import Curve, K256Key, derive_key, did_key

if TYPE_CHECKING:
    from pathlib import Path


def test_public_keys_are_written_as_the_vectors_say(shared_dir: Path) -> None:
    vectors = orjson.loads((shared_dir / "vectors/interop/crypto/w3c_didkey_K256.json").read_bytes())
    assert vectors
    for vector in vectors:
        assert did_key(K256Key(bytes.fromhex(vector["privateKeyBytesHex"]))) == vector["publicDidKey"]


@pytest.mark.parametrize("curve", Curve)
def test_the_official_sdk_accepts_our_signatures(curve: Curve) -> None:
    for number in range(40):
        key, message = derive_key(curve, f"test {number}"), f"message {number}".encode()
        signature = key.sign(message)
        assert len(signature) == 64
        assert int.from_bytes(signature[32:]) <= curve.value // 2
        assert verify_signature(did_key(key), message, signature)
        assert not verify_signature(did_key(key), message + b"!", signature)
        assert not verify_signature(did_key(derive_key(curve, "another")), message, signature)


@pytest.mark.parametrize("curve", Curve)
def test_signing_again_gives_the_same_bytes(curve: Curve) -> None:
    assert derive_key(curve, "a").sign(b"m") == derive_key(curve, "a").sign(b"m")
    assert derive_key(curve, "a").multikey != derive_key(curve, "b").multikey
