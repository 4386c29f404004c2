"""Accounts that look other than they are, to the directory's readers or in their repositories."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, ClassVar

from backfill_dagster.sandbox.account_state import PREVIOUS_KEY

if TYPE_CHECKING:
    from backfill_dagster.sandbox.account_state import AccountState, Identity


class View(Enum):
    """What is made from an account's state."""

    DOCUMENT = auto()  # its DID document
    AUDIT_LOG = auto()
    REPO = auto()  # its export


class Pretence:
    """A state that is shown in place of the true one, in some views."""

    __slots__ = ()
    views: ClassVar[frozenset[View]]

    def shown(self, state: AccountState) -> AccountState:
        """Return the state that is shown."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StaleDocument(Pretence):
    """The DID document names the key before the current one; with `times=1`, only when it is first looked up.

    That is how a key looks which was rotated, and used, while somebody holds the old document.
    """

    views: ClassVar = frozenset({View.DOCUMENT})

    def shown(self, state: AccountState) -> AccountState:
        """Put an earlier key in the place of the current one."""
        stale = replace(state.identity, key=_earlier_key(state))
        return replace(state, identities=(*state.identities[:-1], stale))


@dataclass(frozen=True, slots=True)
class SilentSinceMigration(Pretence):
    """The repository is signed with the key before the current one, which the audit log knows."""

    views: ClassVar = frozenset({View.AUDIT_LOG, View.REPO})

    def shown(self, state: AccountState) -> AccountState:
        """Sign with the earlier key, and enter it in the log if it is not there."""
        key = _earlier_key(state)
        earlier: tuple[Identity, ...] = ()
        if all(identity.key != key for identity in state.identities):
            earlier = (replace(state.identities[0], key=key),)
        return replace(state, identities=(*earlier, *state.identities), repo_key=key)


@dataclass(frozen=True, slots=True)
class HostileEndpoint(Pretence):
    """The DID document names this URL as the account's PDS."""

    pds: str = "http://169.254.169.254"
    views: ClassVar = frozenset({View.DOCUMENT})

    def shown(self, state: AccountState) -> AccountState:
        """Put the URL in the place of the true one."""
        identity = replace(state.identity, pds=self.pds)
        return replace(state, identities=(*state.identities[:-1], identity))


def _earlier_key(state: AccountState) -> str:
    current = state.identity.key
    earlier = [identity.key for identity in state.identities if identity.key != current]
    return earlier[-1] if earlier else PREVIOUS_KEY
