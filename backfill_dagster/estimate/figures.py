"""What was measured, and what is assumed: the figures that an estimate is made of.

Those of the processor are from docs/performance.md (records, bytes) and docs/scale.md (accounts, hosts, memory), on one
core of a shared Xeon; those of storage from `repos/preflight.py`. What is assumed can be given another value on the
command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, bytes and counts by which accounts become costs."""

    # Assumed: of accounts that post at all; most accounts of the network have fewer, active ones ten times as many.
    records_per_account: float = 2_500
    bytes_per_record: float = 380
    # Assumed: to the first byte of an answer, and from one host. Large hosts are faster.
    request_seconds: float = 0.3
    host_bytes_per_second: float = 4e6
    # Assumed: of the machine.
    line_bytes_per_second: float = 50e6
    # Measured, in seconds of one core, of the process that asks servers: there is one, however many cores there are.
    look_up_per_account: float = 0.7e-3
    fetch_per_account: float = 1.2e-3
    fetch_per_byte: float = 1.33e-9
    # Of the workers, which share what there is to do.
    verify_and_pack_per_account: float = 0.4e-3
    verify_and_pack_per_record: float = 5.4e-6
    convert_per_account: float = 0.65e-3
    convert_per_record: float = 8.1e-6
    table_per_account: float = 0.13e-3
    table_per_record: float = 7.3e-6
    inventory_per_record: float = 3.4e-6
    # Of one process again: Dagster's events and files of each host, the table of accounts and all after it.
    own_per_host: float = 0.09
    finish_per_account: float = 0.24e-3
    finish_per_record: float = 0.9e-6
    start_up: float = 3.0
    # Measured, in bytes stored for a byte received.
    packs_per_byte: float = 0.45
    records_per_byte: float = 0.6
    tables_per_byte: float = 0.75
    # Measured peaks.
    parent_memory: float = 390e6
    parent_memory_per_account: float = 0.35e3
    worker_memory: float = 400e6


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars, as AWS lists them for us-east-1; they change."""

    machine_hour: float = 0.0816  # m7g.large: 2 vCPUs, 8 GiB
    gigabyte_month: float = 0.023  # S3 Standard
    put_of_thousand: float = 0.005
    get_of_thousand: float = 0.0004


@dataclass(frozen=True, slots=True)
class Skew:
    """How accounts spread over hosts where that is not known yet: shares of a frame of 383,598 accounts on 340 hosts.

    As (hosts, share of all accounts that they have together).
    """

    groups: tuple[tuple[int, float], ...] = field(
        default=((10, 0.521), (70, 0.475), (260, 0.004)),
    )

    def spread(self, accounts: int) -> list[int]:
        """Return the accounts of each host, largest first; hosts without any are left out."""
        shares = [share / hosts for hosts, share in self.groups for _ in range(hosts)]
        # Rounded sums, so that no account is lost or made up.
        bounds = [round(accounts * total) for total in accumulate(shares, initial=0.0)]
        counts = [after - before for before, after in pairwise([*bounds[:-1], accounts])]
        return sorted((count for count in counts if count > 0), reverse=True)
