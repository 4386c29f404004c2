"""Signing keys of accounts, in each form that DID documents write them, and the signatures they make.

https://atproto.com/specs/cryptography
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import coincurve
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from backfill_dagster.errors import BackfillError

Curve: TypeAlias = Literal["k256", "p256"]

# What a Multikey begins with: the curve, as an unsigned varint of the multicodec table.
_MULTICODECS: dict[Curve, bytes] = {"k256": b"\xe7\x01", "p256": b"\x80\x24"}
_LEGACY_TYPES: dict[str, Curve] = {
    "EcdsaSecp256k1VerificationKey2019": "k256",
    "EcdsaSecp256r1VerificationKey2019": "p256",
}
_ORDERS: dict[Curve, int] = {
    "k256": 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141,
    "p256": 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551,
}
_COMPRESSED_BYTES = 33
_UNCOMPRESSED_BYTES = 65
_UNCOMPRESSED_HEAD = 4
_SCALAR_BYTES = 32
# An uncompressed key has 89 characters. Decoding base58 takes quadratic time, so no more is tried.
_MAX_MULTIBASE_LENGTH = 128
_DID_KEY_PREFIX = "did:key:"


class SigningKeyError(BackfillError):
    """Text that is no public key of a curve that the protocol knows; it concerns one DID document only."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key: its curve, and its point in the compressed form of 33 bytes. As text, `did:key:z...`."""

    curve: Curve
    public: bytes

    @classmethod
    def from_did_key(cls, text: str) -> SigningKey:
        """Read `did:key:z...`. Raises SigningKeyError."""
        if not text.startswith(_DID_KEY_PREFIX):
            raise SigningKeyError(f"not a did:key: {text[:80]!r}")
        return cls.from_multikey(text.removeprefix(_DID_KEY_PREFIX))

    @classmethod
    def from_multikey(cls, text: str) -> SigningKey:
        """Read the `publicKeyMultibase` of a verification method of type Multikey. Raises SigningKeyError."""
        data = _base58_bytes(text)
        for curve, multicodec in _MULTICODECS.items():
            if data.startswith(multicodec) and len(data) == len(multicodec) + _COMPRESSED_BYTES:
                return cls(curve, _compressed_point(curve, data.removeprefix(multicodec)))
        raise SigningKeyError(f"not a Multikey of a known curve: {text!r}")

    @classmethod
    def from_verification_method(cls, method_type: str, public_key_multibase: str) -> SigningKey:
        """Read the key of a DID document's verification method, `Multikey` or one of the older types.

        The older types name the curve themselves and hold the bare point, in either form. Raises SigningKeyError.
        """
        if method_type == "Multikey":
            return cls.from_multikey(public_key_multibase)
        curve = _LEGACY_TYPES.get(method_type)
        if curve is None:
            raise SigningKeyError(f"unknown type of verification method: {method_type[:80]!r}")
        return cls(curve, _compressed_point(curve, _base58_bytes(public_key_multibase)))

    @property
    def did_key(self) -> str:
        """The key in the form `did:key:z...`, the same for each form it was read from."""
        multikey: str = libipld.encode_multibase("z", _MULTICODECS[self.curve] + self.public)
        return _DID_KEY_PREFIX + multikey

    def __str__(self) -> str:
        return self.did_key


def verify_signature(key: SigningKey, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` is the key's, over the SHA-256 of `message`.

    It has to be 64 bytes, r and s, with s in the lower half: every other form of a valid signature is refused,
    so that nobody can make a second one from the first.
    """
    if len(signature) != 2 * _SCALAR_BYTES:
        return False
    r = int.from_bytes(signature[:_SCALAR_BYTES])
    s = int.from_bytes(signature[_SCALAR_BYTES:])
    if s > _ORDERS[key.curve] // 2:
        return False
    der = encode_dss_signature(r, s)
    try:
        if key.curve == "k256":
            return bool(coincurve.PublicKey(key.public).verify(der, message))
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key.public)
        point.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _base58_bytes(text: str) -> bytes:
    """Decode multibase in base58btc, the only base that the protocol uses for keys."""
    if not text.startswith("z") or len(text) > _MAX_MULTIBASE_LENGTH:
        raise SigningKeyError(f"not a key in base58btc: {text[:80]!r}")
    try:
        data: bytes = libipld.decode_multibase(text)[1]
    except ValueError:
        raise SigningKeyError(f"not a key in base58btc: {text!r}") from None
    return data


def _compressed_point(curve: Curve, point: bytes) -> bytes:
    """Check that a point is on its curve, and return it in compressed form."""
    # Both libraries would take a third form of 65 bytes as well, the hybrid one.
    uncompressed = len(point) == _UNCOMPRESSED_BYTES and point[0] == _UNCOMPRESSED_HEAD
    if len(point) != _COMPRESSED_BYTES and not uncompressed:
        raise SigningKeyError(f"not a point in a known form: {point.hex()}")
    try:
        if curve == "k256":
            return bytes(coincurve.PublicKey(point).format(compressed=True))
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    except ValueError:
        raise SigningKeyError(f"not a point on {curve}: {point.hex()}") from None
