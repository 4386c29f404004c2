from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import libipld
from atproto_crypto.verify import verify_signature  # type: ignore[import-untyped]

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster_tests.repos.plain import PlainRepo, plain_repo

from ..reading import frames, walk

if TYPE_CHECKING:
    from backfill_dagster.sandbox.truth import AccountTruth


@dataclass(frozen=True)
class Export:
    """What a server sent as an account's repository."""

    account: AccountTruth
    car: bytes

    @property
    def roots(self) -> list[bytes]:
        header: Any = libipld.decode_dag_cbor(frames(self.car)[0])
        roots: list[bytes] = header["roots"]
        return roots

    @property
    def sections(self) -> list[tuple[bytes, bytes]]:
        return frames(self.car)[1]

    @property
    def blocks(self) -> dict[bytes, bytes]:
        return dict(self.sections)

    @property
    def commit(self) -> dict[str, Any]:
        commit: Any = libipld.decode_dag_cbor(self.blocks[self.roots[0]])
        assert isinstance(commit, dict)
        return commit

    @property
    def leaves(self) -> list[tuple[str, bytes]]:
        return list(walk(self.blocks, self.commit["data"], set()))

    @property
    def wrong_hashes(self) -> list[bytes]:
        return [cid for cid, data in self.sections if hashlib.sha256(data).digest() != cid[4:]]

    def is_signed(self) -> bool:
        """Whether the account's key made the signature, as the official SDK sees it."""
        commit = self.commit
        signature = commit.pop("sig")
        unsigned = libipld.encode_dag_cbor(commit)
        return bool(verify_signature(self.account.signing_key, unsigned, signature))

    def verify(self) -> PlainRepo:
        assert self.account.signing_key is not None
        key = SigningKey.from_did_key(self.account.signing_key)
        return plain_repo(verify_repo(self.car, did=self.account.did, keys=[key]), self.car)

    def verdict(self) -> RepoFault | None:
        """What the project's own verifier finds wrong."""
        try:
            self.verify()
        except RepoRejectedError as error:
            return error.fault
        return None


Fetch = Callable[..., Export]
