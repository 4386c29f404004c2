"""Handles of the sandbox's accounts, as a study's source: its servers answer for them, and a DNS server of a test."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import pipeline, purging, study_files
from backfill_dagster.dids.sources.handles import HandleEntries
from backfill_dagster.errors import SourceError
from backfill_dagster.sandbox.faults import HostDown
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.network.dns_server import DnsServer
from backfill_dagster_tests.studies import sandbox, sandbox_study


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    yield network
    network.faults.clear()
    network.edit.reset()


def handle_of(network: SandboxNetwork, did: str) -> str:
    return network.population.by_did[did].handle


def resolvable(network: SandboxNetwork) -> list[str]:
    """Return the accounts that their server answers for and whose document names their handle."""
    truth = [network.truth.account(did) for did in network.dids]
    return [account.did for account in truth if account.is_complete and account.handle]


def test_every_active_account_is_found_by_its_handle(tmp_path: Path, network: SandboxNetwork) -> None:
    handles = tmp_path / "handles.txt"
    lines = [f"@{handle_of(network, did)}" for did in network.dids]
    handles.write_text("# participants\n" + "\n".join(lines) + "\nnobody.sandbox.test\nno handle\n")
    study = sandbox_study(
        tmp_path,
        source={"type": "handles", "path": str(handles)},
        network={"connect_to": {"nobody.sandbox.test:80": network.connect_to["pds1.sandbox.test:80"]}},
    )

    collected = pipeline.collect_source(study)

    assert set(resolvable(network)) <= set(collected.dids["did"])
    assert len(resolvable(network)) > 30
    assert collected.given == len(network.dids) + 2
    reasons = dict(collected.rejects.select("input", "reason").iter_rows())
    assert reasons["no handle"] == "bad_handle"
    assert reasons["nobody.sandbox.test"] == "handle_not_found"
    assert set(reasons.values()) <= {"bad_handle", "handle_not_found", "handle_mismatch"}


def test_dns_decides_before_the_server(tmp_path: Path, network: SandboxNetwork) -> None:
    first, second, third = resolvable(network)[:3]
    names = [handle_of(network, did) for did in (first, second, third)]
    records = {
        f"_atproto.{names[0]}": [f"did={first}"],
        # Says what the account does not confirm.
        f"_atproto.{names[1]}": [f"did={first}"],
        f"_atproto.{names[2]}": [f"did={first}", f"did={third}"],
    }
    with DnsServer(records) as dns:
        study = sandbox_study(
            tmp_path,
            source={"type": "handles", "handles": names},
            network={"dns_server": dns.address},
        )
        collected = pipeline.collect_source(study)

    assert collected.dids["did"].to_list() == [first]
    assert collected.rejects.drop("entry").rows() == [
        (1, names[1], "handle_mismatch"),
        (2, names[2], "handle_conflict"),
    ]


def test_a_handle_that_could_not_be_looked_up_is_listed_and_found_by_the_next_run(
    tmp_path: Path, network: SandboxNetwork
) -> None:
    down = network.hosts[0]
    accounts = {did: network.truth.account(did).pds for did in resolvable(network)}
    there = next(did for did, pds in accounts.items() if pds and pds != f"http://{down}")
    away = next(did for did, pds in accounts.items() if pds == f"http://{down}")
    handles = [handle_of(network, did) for did in (away, there)]
    study = sandbox_study(
        tmp_path, source={"type": "handles", "handles": handles}, processing={"max_retries": 0}
    )

    network.faults.set_host(down, HostDown())
    collected = pipeline.collect_source(study)
    assert collected.dids["did"].to_list() == [there]
    assert collected.rejects.drop("entry").rows() == [(0, handles[0], "handle_unreachable")]

    network.faults.clear()
    assert pipeline.collect_source(study).dids["did"].to_list() == [away, there]


def test_nothing_is_collected_while_a_handle_to_leave_out_is_unreachable(
    tmp_path: Path, network: SandboxNetwork
) -> None:
    down = network.hosts[0]
    away = next(did for did in resolvable(network) if network.truth.account(did).pds == f"http://{down}")
    study = sandbox_study(
        tmp_path,
        exclude={"type": "handles", "handles": [handle_of(network, away)]},
        processing={"max_retries": 0},
    )

    network.faults.set_host(down, HostDown())
    with pytest.raises(SourceError, match=r"backfill\.exclude\.handles: 1 of its 1 entries could not"):
        pipeline.collect_source(study)
    assert not (study.root / study_files.SOURCE_KEY).exists()

    network.faults.clear()
    collected = pipeline.collect_source(study)
    assert away not in set(collected.dids["did"])
    assert collected.rejects.filter(pl.col("reason") == "excluded")["input"].to_list() == [away]


def test_a_handle_that_went_to_somebody_else_is_theirs(tmp_path: Path, network: SandboxNetwork) -> None:
    first, second = resolvable(network)[:2]
    handle = handle_of(network, first)
    study = sandbox_study(tmp_path, source={"type": "handles", "handles": [handle]})
    network.edit.change_handle(first, "another.sandbox.test")
    network.edit.change_handle(second, handle)

    assert pipeline.collect_source(study).dids["did"].to_list() == [second]


def test_the_handle_of_a_purged_account_is_not_stored(tmp_path: Path, network: SandboxNetwork) -> None:
    kept, gone = resolvable(network)[:2]
    handles = [handle_of(network, did) for did in (kept, gone)]
    study = sandbox_study(tmp_path, source={"type": "handles", "handles": handles})
    pipeline.collect_source(study)
    purging.purge(study, dids=[gone], rebuild=lambda _: None)

    collected = pipeline.collect_source(study)

    assert collected.dids["did"].to_list() == [kept]
    assert collected.rejects.drop("entry").rows() == [(1, None, "purged")]
    stored = b"".join(path.read_bytes() for path in study.root.rglob("*.parquet"))
    assert handles[1].encode() not in stored


def test_a_purge_reaches_handles_among_what_was_left_out(tmp_path: Path, network: SandboxNetwork) -> None:
    kept, twice, excluded, unreachable = resolvable(network)[:4]
    handles = {did: handle_of(network, did) for did in (kept, twice, excluded, unreachable)}
    study = sandbox_study(
        tmp_path,
        source={"type": "handles", "handles": [*handles.values(), f"@{handles[twice].upper()}"]},
        exclude={"type": "inline", "dids": [excluded]},
        processing={"max_retries": 0},
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    # Its handle is looked up in vain now, but the directory knows whose it is.
    storage = StudyStorage(study.root)
    network.faults.set_host(str(network.truth.account(unreachable).pds).removeprefix("http://"), HostDown())
    pipeline.collect_source(study)
    stored = storage.read(study_files.SOURCE_REJECTS_KEY)
    assert handles[unreachable] in stored["input"].to_list()
    network.faults.clear()

    gone = [twice, excluded, unreachable]
    purging.purge(study, dids=gone, rebuild=lambda _: None)

    content = b"".join(path.read_bytes() for path in study.root.rglob("*.parquet")).lower()
    assert [handles[did] for did in gone if handles[did].encode() in content] == []
    assert handles[kept].encode() in content


def test_handles_ask_servers_and_have_no_stamp(tmp_path: Path, network: SandboxNetwork) -> None:
    study = sandbox_study(tmp_path, source={"type": "handles", "handles": ["alice.sandbox.test"]})

    assert pipeline.source_stamp(study) is None
    source = HandleEntries(study.source, "backfill.source")  # type: ignore[arg-type]
    assert source.needs_network
    assert source.describe() == "backfill.source.handles"
