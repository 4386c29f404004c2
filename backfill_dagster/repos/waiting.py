"""The accounts that a fetch is for, by host: in a scratch file, so that only those whose turn has come are held."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.repos.accounts import Account

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

WAITING_SCHEMA = pl.Schema(
    dict.fromkeys(("did", "pds", "pds_host", "key_type", "key_multibase", "known_rev"), pl.String())
)


class WaitingAccounts:
    """Rows of accounts (WAITING_SCHEMA) in a file: first all are added, then those of each host are read.

    A context manager, which closes the file. Raises StorageError.
    """

    def __init__(self, path: Path) -> None:
        self._dealt = DealtRows(path, WAITING_SCHEMA)

    def __enter__(self) -> Self:
        self._dealt.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dealt.__exit__(kind, error, traceback)

    def add(self, rows: pl.DataFrame) -> None:
        """Add accounts of any hosts."""
        for (host,), some in rows.partition_by("pds_host", as_dict=True, maintain_order=True).items():
            self._dealt.add(host, some)

    @property
    def by_host(self) -> Mapping[str, Collection[Account]]:
        """The accounts of each host, in the order in which they were added."""
        return {str(host): _OfHost(self._dealt, str(host)) for host in self._dealt.rows_of}


@dataclass(frozen=True, slots=True)
class _OfHost(Collection[Account]):
    """The accounts of one host, read some at a time whenever they are gone through."""

    dealt: DealtRows
    host: str

    def __len__(self) -> int:
        return self.dealt.rows_in(self.host)

    def __iter__(self) -> Iterator[Account]:
        for some in self.dealt.parts_of(self.host):
            yield from map(Account.from_directory, *(some[name] for name in WAITING_SCHEMA))

    def __contains__(self, account: object) -> bool:
        return any(account == one for one in self)
