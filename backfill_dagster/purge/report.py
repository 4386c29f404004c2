"""What a purge came to, in numbers: whom it was about stands in no report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What one purge did.

    `accounts` and `records` are what was asked for. `removed` counts rows by the kind of file that they stood in:
    `blocks` and `attempts` (of packs), `records`, `rejects`, `tables`, `undated`, `accounts`, `directory`,
    `source_dids`, `filters` (lists of records and subjects), `frozen` (records in frozen builds), `handoff` (batches,
    queues and ledgers), `metadata_store`, `legacy`, `shared` (ids), `rehydration`; and `shared_whole` counts folders of
    shared pseudonyms, which go whole. `masked` counts stored records of others in which a purged account was named,
    `masked_in_log` lines of the study's log file. `hosts` are those whose packs were written anew.
    `named_in_config` counts the accounts that the study's own YAML lists. `not_purged` says of each file of a frozen
    build that cannot be read, why: until it is taken from a copy or deleted, the purge is not done.
    """

    accounts: int = 0
    records: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    masked: int = 0
    hosts: tuple[str, ...] = ()
    masked_in_log: int = 0
    named_in_config: int = 0
    not_purged: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything that was stored had to be changed."""
        return bool(self.masked or self.hosts or any(self.removed.values()))
