import base64
import json
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.keys import SigningKey, SigningKeyError, verify_signature
from backfill_dagster_tests.repos.forge import (
    BASE58,
    K256_ORDER,
    P256_ORDER,
    K256Signer,
    P256Signer,
    Signer,
    base58,
)

LEGACY_K256 = "EcdsaSecp256k1VerificationKey2019"
LEGACY_P256 = "EcdsaSecp256r1VerificationKey2019"
SIGNERS: list[Signer] = [K256Signer(), P256Signer()]
K256_UNCOMPRESSED = PrivateKey(K256Signer().secret).public_key.format(compressed=False)


def crypto_vectors(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads(
        (shared_dir / f"vectors/interop/crypto/{name}.json").read_text()
    )
    return vectors


def unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def test_the_protocols_signatures_are_judged_as_stated_there(shared_dir: Path) -> None:
    vectors = crypto_vectors(shared_dir, "signature-fixtures")

    assert {tag for vector in vectors for tag in vector["tags"]} == {"high-s", "der-encoded"}
    for vector in vectors:
        key = SigningKey.from_did_key(vector["publicKeyDid"])
        message, signature = unbase64(vector["messageBase64"]), unbase64(vector["signatureBase64"])
        assert verify_signature(key, message, signature) is vector["validSignature"], vector["comment"]
        assert key == SigningKey.from_verification_method(vector["didDocSuite"], vector["publicKeyMultibase"])
        assert str(key) == key.did_key == vector["publicKeyDid"]


@pytest.mark.parametrize("curve", ["K256", "P256"])
def test_keys_of_the_w3cs_vectors_verify_what_their_private_halves_sign(shared_dir: Path, curve: str) -> None:
    for vector in crypto_vectors(shared_dir, f"w3c_didkey_{curve}"):
        signer: Signer
        if curve == "K256":
            signer = K256Signer(bytes.fromhex(vector["privateKeyBytesHex"]))
        else:
            number = 0
            for letter in vector["privateKeyBytesBase58"]:
                number = 58 * number + BASE58.index(letter)
            signer = P256Signer(number.to_bytes(32, "big"))
        key = SigningKey.from_did_key(vector["publicDidKey"])

        assert vector["publicDidKey"] == key.did_key == signer.did_key
        assert verify_signature(key, b"message", signer.sign(b"message"))
        assert not verify_signature(key, b"massage", signer.sign(b"message"))


def test_each_form_of_one_key_is_the_same_key() -> None:
    k256, p256 = K256Signer(), P256Signer()
    point = ec.derive_private_key(int.from_bytes(p256.secret, "big"), ec.SECP256R1()).public_key()
    p256_uncompressed = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    read = SigningKey.from_verification_method

    for signer, legacy_type, uncompressed in (
        (k256, LEGACY_K256, K256_UNCOMPRESSED),
        (p256, LEGACY_P256, p256_uncompressed),
    ):
        key = SigningKey.from_did_key(signer.did_key)
        assert key.public == signer.public
        assert read("Multikey", signer.did_key.removeprefix("did:key:")) == key
        assert read(legacy_type, "z" + base58(signer.public)) == key
        assert read(legacy_type, "z" + base58(uncompressed)) == key


@pytest.mark.parametrize("signer", SIGNERS)
def test_only_one_form_of_a_signature_is_accepted(signer: Signer) -> None:
    key = SigningKey.from_did_key(signer.did_key)
    signature = signer.sign(b"message")
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    order = K256_ORDER if isinstance(signer, K256Signer) else P256_ORDER

    assert verify_signature(key, b"message", signature)
    for other in (
        r + (order - s).to_bytes(32, "big"),
        signature + b"\0",
        r + b"\0" + signature[32:],
        signature[:-1],
        b"",
        bytes(64),
        r + bytes(32),
        bytes(32) + signature[32:],
        order.to_bytes(32, "big") + signature[32:],
        b"\xff" * 64,
    ):
        assert not verify_signature(key, b"message", other)


def test_a_key_does_not_verify_the_other_curves_signature() -> None:
    for signer, other in permutations(SIGNERS):
        key = SigningKey.from_did_key(signer.did_key)
        assert not verify_signature(key, b"message", other.sign(b"message"))


@settings(max_examples=50)
@given(st.sampled_from(SIGNERS), st.binary(max_size=80), st.binary(min_size=60, max_size=70) | st.binary())
def test_no_signature_raises(signer: Signer, message: bytes, signature: bytes) -> None:
    assert not verify_signature(SigningKey.from_did_key(signer.did_key), message, signature)


def test_nor_does_a_point_that_was_never_checked() -> None:
    assert not verify_signature(SigningKey("k256", b"\x02" + b"\xff" * 32), b"message", b"\x01" * 64)
    assert not verify_signature(SigningKey("p256", b"\x09" * 33), b"message", b"\x01" * 64)


MULTIKEY = K256Signer().did_key.removeprefix("did:key:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "zz0OIl",
        MULTIKEY[1:],
        MULTIKEY[:-1],
        MULTIKEY + "1",
        "m" + MULTIKEY[1:],
        "é" + MULTIKEY[1:],
        "z" + base58(b"\xed\x01" + K256Signer().public),
        "z" + base58(b"\xe7\x01" + K256_UNCOMPRESSED),
        "z" + base58(b"\xe7\x01" + b"\x02" + b"\xff" * 32),
        "z" + base58(b"\x80\x24" + b"\x02" + b"\xff" * 32),
        "z" + base58(b"\xe7\x01" + b"\x04" + K256Signer().public[1:]),
        "z" + base58(K256Signer().public),
    ],
)
def test_what_is_no_multikey_is_refused(text: str) -> None:
    with pytest.raises(SigningKeyError):
        SigningKey.from_multikey(text)
    with pytest.raises(SigningKeyError):
        SigningKey.from_did_key(f"did:key:{text}")
    with pytest.raises(SigningKeyError):
        SigningKey.from_verification_method("Multikey", text)


def test_a_key_as_long_as_a_book_is_not_even_decoded() -> None:
    started = time.monotonic()

    with pytest.raises(SigningKeyError):
        SigningKey.from_multikey("z" + "2" * 300_000)

    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("method_type", "point"),
    [
        ("JsonWebKey2020", K256Signer().public),
        ("EcdsaMultikey", K256Signer().public),
        (LEGACY_K256, b"\xe7\x01" + K256Signer().public),
        (LEGACY_K256, bytes([6 + K256_UNCOMPRESSED[-1] % 2]) + K256_UNCOMPRESSED[1:]),
        (LEGACY_K256, b"\x05" + K256Signer().public[1:]),
        (LEGACY_P256, b"\x05" + P256Signer().public[1:]),
        (LEGACY_K256, K256_UNCOMPRESSED[:-1]),
        (LEGACY_P256, K256_UNCOMPRESSED),
        (LEGACY_K256, b""),
    ],
)
def test_a_verification_method_of_another_form_is_refused(method_type: str, point: bytes) -> None:
    with pytest.raises(SigningKeyError):
        SigningKey.from_verification_method(method_type, "z" + base58(point))


def test_a_did_of_another_method_is_no_key() -> None:
    with pytest.raises(SigningKeyError):
        SigningKey.from_did_key("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
