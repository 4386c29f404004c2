from pathlib import Path

import polars as pl

from backfill_dagster.repos.accounts import Account
from backfill_dagster.repos.waiting import WAITING_SCHEMA, WaitingAccounts


def rows(*accounts: tuple[str, str, str | None]) -> pl.DataFrame:
    told = [(did, f"http://{host}", host, "Multikey", None, rev) for did, host, rev in accounts]
    return pl.DataFrame(told, schema=WAITING_SCHEMA, orient="row")


def test_accounts_are_read_by_host_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    with WaitingAccounts(tmp_path / "waiting") as waiting:
        waiting.add(
            rows(
                ("did:plc:b", "one.test", None),
                ("did:plc:a", "two.test:81", "3k"),
                ("did:plc:c", "one.test", None),
            )
        )
        waiting.add(rows(("did:plc:a2", "one.test", "3l")))
        by_host = waiting.by_host
        assert {host: len(accounts) for host, accounts in by_host.items()} == {
            "one.test": 3,
            "two.test:81": 1,
        }
        [other] = by_host["two.test:81"]
        assert other == Account("did:plc:a", "http://two.test:81", "two.test:81", "Multikey", None, "3k")
        # As often as they are asked for.
        for _ in range(2):
            assert [account.did for account in by_host["one.test"]] == [
                "did:plc:b",
                "did:plc:c",
                "did:plc:a2",
            ]
        first, second = iter(by_host["one.test"]), iter(by_host["one.test"])
        assert next(first).did == next(second).did
        assert other not in by_host["one.test"]


def test_nobody_waits_on_no_host(tmp_path: Path) -> None:
    with WaitingAccounts(tmp_path / "waiting") as waiting:
        waiting.add(rows())
        assert not waiting.by_host
