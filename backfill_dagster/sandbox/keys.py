"""Signing keys of accounts, both curves of the protocol (https://atproto.com/specs/cryptography)."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

import libipld
from coincurve import PrivateKey
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Curve(Enum):
    """A curve, by the group order of its keys."""

    K256 = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class SigningKey(Protocol):
    """A private key."""

    @property
    def multikey(self) -> str:
        """The public key as a DID document's `publicKeyMultibase` holds it: base58btc, compressed point."""

    def sign(self, message: bytes) -> bytes:
        """Sign the SHA-256 of a message: 64 bytes r||s, low-S, the same for the same message."""


class K256Key:
    """A secp256k1 key."""

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)

    @property
    def multikey(self) -> str:
        """Multicodec 0xe7 and the compressed point."""
        return _multibase(b"\xe7\x01", self._key.public_key.format(compressed=True))

    def sign(self, message: bytes) -> bytes:
        """Sign as libsecp256k1 does: RFC 6979 nonces, always low-S; the last byte is the recovery id."""
        return bytes(self._key.sign_recoverable(message)[:64])


class P256Key:
    """A NIST P-256 key."""

    def __init__(self, secret: bytes) -> None:
        self._key = ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())

    @property
    def multikey(self) -> str:
        """Multicodec 0x1200 and the compressed point."""
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        return _multibase(b"\x80\x24", point)

    def sign(self, message: bytes) -> bytes:
        """Sign with an RFC 6979 nonce and lower S, which OpenSSL does not do by itself."""
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(self._key.sign(message, algorithm))
        order = Curve.P256.value
        return r.to_bytes(32) + min(s, order - s).to_bytes(32)


@lru_cache(maxsize=1024)
def derive_key(curve: Curve, seed: str) -> SigningKey:
    """Derive the one key that belongs to a seed."""
    secret = 1 + int.from_bytes(sha256(f"sandbox key {seed}".encode()).digest()) % (curve.value - 1)
    return (K256Key if curve is Curve.K256 else P256Key)(secret.to_bytes(32))


def did_key(key: SigningKey) -> str:
    """Name a public key as PLC operations do."""
    return f"did:key:{key.multikey}"


def _multibase(codec: bytes, point: bytes) -> str:
    return str(libipld.encode_multibase("z", codec + point))
