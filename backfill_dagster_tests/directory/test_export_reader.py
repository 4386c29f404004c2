"""The export's copy: every operation once, whatever goes wrong on the way, and how far it is good."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiohttp import web

from backfill_dagster.config.study import Study
from backfill_dagster.connections import Connections, open_connections
from backfill_dagster.directory import export_copy, export_reader
from backfill_dagster.directory.export_copy import OPERATIONS_SCHEMA, ExportCopy, Reached
from backfill_dagster.directory.export_reader import ExportReader, young_enough
from backfill_dagster.errors import DirectoryUnreachableError, StorageError
from backfill_dagster.network.patience import RunOverError, RunTime
from backfill_dagster_tests.dids.sources.asking_servers import study_of_server
from backfill_dagster_tests.directory.exporting import BEGIN, Export, entry, lines, plc, written
from backfill_dagster_tests.network.loopback import serve

Entries = list[dict[str, Any]]
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_reader, "PAGE", 5)
    monkeypatch.setattr(export_copy, "FILE_ROWS", 12)
    monkeypatch.setattr(export_reader, "FILE_ROWS", 12)


def reading(
    folder: Path,
    *exports: Export,
    do: Callable[[ExportReader], Awaitable[Reached]] | None = None,
    needed: datetime | None = None,
    stop: bool = False,
    minutes: float | None = None,
    **settings: Any,
) -> Reached:
    """Bring the copy in a folder up to date from the first of these servers, with the others as its mirrors."""

    async def run() -> Reached:
        async with AsyncExitStack() as stack:
            addresses = [await stack.enter_async_context(serve(export)) for export in exports]
            mirrors = [f"http://{address}" for address in addresses[1:]]
            study = with_minutes(study_of(folder, addresses[0], mirrors), minutes)
            connections = await stack.enter_async_context(open_connections(study, None, study.processing))
            reader = ExportReader(connections, **settings)
            # The copy has the directory's name, of which the port is another each time.
            reader.copy = copy_in(folder)
            if do is not None:
                return await do(reader)
            return await reader.bring_up_to(needed or young_enough(24), stop=stop)

    return asyncio.run(asyncio.wait_for(run(), 30))


def study_of(folder: Path, address: str, mirrors: list[str]) -> Study:
    return study_of_server(folder, address, plc_export={"mirrors": mirrors})


def with_minutes(study: Study, minutes: float | None) -> Study:
    processing = study.processing.model_copy(update={"max_run_minutes": minutes})
    return study.model_copy(update={"processing": processing})


def copy_in(folder: Path) -> ExportCopy:
    study = study_of_server(folder, "plc.test")
    return ExportCopy(study.root.parent, study.network)


def stored(folder: Path) -> pl.DataFrame:
    files = sorted(copy_in(folder).storage.path("operations").iterdir())
    return pl.concat([pl.read_parquet(file) for file in files])


def dids(entries: Entries) -> list[str]:
    return [entry["did"] for entry in entries]


SECONDS = [entry(number) for number in range(33)]


# --- every operation once ---


def test_all_pages_are_read_in_order(tmp_path: Path) -> None:
    export = Export(SECONDS)
    before = datetime.now(UTC)

    reached = reading(tmp_path, export)

    found = stored(tmp_path)
    assert found.schema == OPERATIONS_SCHEMA
    assert found["did"].to_list() == dids(SECONDS)
    assert found["created_at"].to_list() == [BEGIN + timedelta(seconds=number) for number in range(33)]
    assert found["handle"].to_list() == [f"n{number}.test" for number in range(33)]
    assert found["key_multibase"].to_list() == [f"zKey{number}" for number in range(33)]
    assert found["pds"].unique().to_list() == ["https://pds.example.com"]
    assert reached == copy_in(tmp_path).reached()
    assert before - timedelta(minutes=1) <= reached.until <= datetime.now(UTC) - timedelta(minutes=1)
    # Full files, and one that is still to be added to.
    files = sorted(tmp_path.rglob("operations/*.parquet"))
    assert [pl.read_parquet(file).height for file in files] == [13, 12, 8]


@pytest.mark.parametrize("together", [2, 3, 4])
def test_operations_of_one_instant_are_neither_lost_nor_doubled_at_a_page_s_border(
    tmp_path: Path, together: int
) -> None:
    entries = [entry(number, BEGIN + timedelta(milliseconds=number // together)) for number in range(40)]

    reached = reading(tmp_path, Export(entries))

    assert stored(tmp_path)["did"].to_list() == dids(entries)
    assert reached.at == BEGIN + timedelta(milliseconds=39 // together)
    assert reached.cids == {entry["cid"] for entry in entries if entry["createdAt"] == written(reached.at)}


def test_more_operations_of_one_instant_than_fit_on_a_page_are_an_error(tmp_path: Path) -> None:
    entries = [entry(number, BEGIN + timedelta(seconds=number // 9)) for number in range(20)]

    with pytest.raises(DirectoryUnreachableError, match="than fit on a page"):
        reading(tmp_path, Export(entries))


def test_times_finer_than_milliseconds(tmp_path: Path) -> None:
    entries = [
        {**entry(number), "createdAt": (BEGIN + timedelta(microseconds=300 * number)).isoformat()}
        for number in range(30)
    ]
    export = Export(entries)

    reading(tmp_path, export)

    assert stored(tmp_path)["did"].to_list() == dids(entries)


def test_what_was_nullified_is_left_out_and_an_odd_operation_is_kept(tmp_path: Path) -> None:
    entries = [dict(one) for one in SECONDS[:9]]
    entries[4]["nullified"] = True
    del entries[5]["nullified"]
    entries[6]["operation"] = {"type": "future"}
    entries[7]["operation"] = "nothing"
    entries[8]["nullified"] = True

    reached = reading(tmp_path, Export(entries))

    found = stored(tmp_path)
    assert found["did"].to_list() == [plc(number) for number in (0, 1, 2, 3, 5, 6, 7)]
    assert found["effect"].to_list() == ["document"] * 5 + ["unknown"] * 2
    # It counts for how far the copy reaches all the same.
    assert (reached.at, set(reached.cids)) == (BEGIN + timedelta(seconds=8), {"cid8"})


def test_a_page_that_is_cut_between_two_lines_is_not_the_end(tmp_path: Path) -> None:
    reading(tmp_path, Export(SECONDS, answers={0: lines(SECONDS[:2]), 2: lines(SECONDS[5:7])}))

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(status=429, headers={"Retry-After": "1"}),
        lambda: lines(SECONDS[4:9], cut=10),
        lambda: web.Response(body=b"<html>"),
        lambda: lines([{"did": "did:plc:x"}]),
        lambda: lines([{**SECONDS[9], "createdAt": "2023-03-01"}]),
        lambda: lines([{**SECONDS[9], "cid": 5}]),
        lambda: lines(SECONDS[8:4:-1]),
        lambda: lines(SECONDS[:5]),
        lambda: lines([]),
    ],
    ids=[
        "500",
        "429",
        "cut",
        "html",
        "no operation",
        "no time",
        "no cid",
        "disorder",
        "from the beginning",
        "nothing",
    ],
)
def test_a_bad_page_is_asked_for_again(tmp_path: Path, bad: Callable[[], web.Response]) -> None:
    export = Export(SECONDS, answers={2: bad()})

    reading(tmp_path, export)

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)
    assert export.asked[2] == export.asked[3]


# --- going on ---


def test_what_was_read_before_a_failure_stays_and_is_not_asked_for_again(tmp_path: Path) -> None:
    for pages in (3, 1, 2):
        with pytest.raises(DirectoryUnreachableError, match="HTTP 500"):
            reading(tmp_path, Export(SECONDS, fails_from=pages))
    read = stored(tmp_path)["did"].to_list()
    assert read == dids(SECONDS[: len(read)])
    assert len(read) > 15
    reached = copy_in(tmp_path).reached()
    assert reached is not None
    assert reached.until < reached.at == BEGIN + timedelta(seconds=len(read) - 1)

    export = Export(SECONDS)
    reading(tmp_path, export)

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)
    assert export.asked[0] == written(reached.at - timedelta(milliseconds=1))


def test_a_file_that_was_lost_is_read_again(tmp_path: Path) -> None:
    reading(tmp_path, Export(SECONDS))
    last = max(tmp_path.rglob("operations/*.parquet"))
    last.write_bytes(b"damaged")
    with pytest.raises(StorageError, match="remove it"):
        reading(tmp_path, Export(SECONDS))

    last.unlink()
    reading(tmp_path, Export(SECONDS))

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)


def test_a_mirror_goes_on_where_the_directory_stopped(tmp_path: Path) -> None:
    directory, dead, mirror = Export(SECONDS, fails_from=2), Export([], fails_from=0), Export(SECONDS[:30])

    reached = reading(tmp_path, directory, dead, mirror)

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS[:30])
    assert mirror.asked[0] == written(BEGIN + timedelta(seconds=8) - timedelta(milliseconds=1))
    # What the mirror lacks may have come to it late: nothing is known of what followed.
    assert reached.until == BEGIN + timedelta(seconds=29)

    later = reading(tmp_path, Export(SECONDS), mirror)
    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)
    assert later.until > BEGIN + 24 * HOUR


def test_an_export_that_is_young_enough_is_not_asked_for(tmp_path: Path) -> None:
    more = [*SECONDS, entry(33)]
    reading(tmp_path, Export(SECONDS))
    idle = Export(more)

    reading(tmp_path, idle)
    reading(tmp_path, idle, needed=young_enough(0))
    assert idle.asked == []
    reached = reading(tmp_path, idle, needed=datetime.now(UTC) - timedelta(seconds=30))
    assert stored(tmp_path)["did"].to_list() == dids(more)
    assert len(idle.asked) == 2
    assert reached.until < datetime.now(UTC) - timedelta(seconds=59)


def test_it_goes_no_further_than_it_must(tmp_path: Path) -> None:
    export = Export(SECONDS)
    end = BEGIN + timedelta(seconds=11)

    reached = reading(tmp_path, export, needed=end, stop=True)

    assert end <= reached.until < end + timedelta(seconds=1)
    assert stored(tmp_path)["did"].to_list() == dids(SECONDS[:13])
    assert reading(tmp_path, Export([], fails_from=0), needed=end, stop=True) == reached


def test_operations_of_the_last_minute_are_left_for_later(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    entries = [*SECONDS[:7], entry(7, now - timedelta(minutes=2)), entry(8, now), entry(9, now)]

    reached = reading(tmp_path, Export(entries))
    assert stored(tmp_path)["did"].to_list() == dids(entries[:8])
    assert reached.until < now

    reading(tmp_path, Export(entries), needed=now + HOUR, settled_after=timedelta(0))
    assert stored(tmp_path)["did"].to_list() == dids(entries)


def test_an_empty_export_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnreachableError, match="its export is empty"):
        reading(tmp_path, Export([]))
    reading(tmp_path, Export([]), Export(SECONDS))
    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)


def test_a_run_whose_time_is_over_keeps_what_it_has(tmp_path: Path) -> None:
    class Slow(Export):
        async def __call__(self, request: web.Request) -> web.Response:
            await asyncio.sleep(0.1)
            return await super().__call__(request)

    with pytest.raises(RunOverError):
        reading(tmp_path, Slow(SECONDS), minutes=0.25 / 60)
    read = stored(tmp_path)["did"].to_list()
    assert 5 <= len(read) < 33
    assert read == dids(SECONDS[: len(read)])


def test_copies_of_several_directories_do_not_mix(tmp_path: Path) -> None:
    def folder(address: str, **network: Any) -> Path:
        study = study_of_server(tmp_path, address, **network)
        return ExportCopy(study.root.parent, study.network).storage.folder

    folders = [
        folder("plc.test"),
        folder("plc.test:81"),
        folder("other.test"),
        folder("plc.test", sandbox={"seed": 1}),
        folder("plc.test", sandbox={"seed": 2}),
    ]
    assert len(set(folders)) == len(folders)
    assert {path.parent for path in folders} == {tmp_path / "data" / ".plc_export"}


# --- several at once ---


def test_only_one_reads_at_a_time_and_the_others_find_it_there(tmp_path: Path) -> None:
    export = Export(SECONDS)

    async def three(reader: ExportReader) -> Reached:
        others = [reader_like(reader) for _ in range(2)]
        found = await asyncio.gather(*(one.bring_up_to(young_enough(24)) for one in (reader, *others)))
        assert found == [found[0]] * 3
        return found[0]

    def reader_like(reader: ExportReader) -> ExportReader:
        connections: Connections = reader._connections
        other = ExportReader(connections)
        other.copy = copy_in(tmp_path)
        return other

    reading(tmp_path, export, do=three)

    assert stored(tmp_path)["did"].to_list() == dids(SECONDS)
    assert len(export.asked) == len(set(export.asked)) == 9


def test_one_who_waits_for_another_ends_with_its_run(tmp_path: Path) -> None:
    async def wait(reader: ExportReader) -> Reached:
        async with copy_in(tmp_path).writer(RunTime()):
            return await reader.bring_up_to(young_enough(24))

    with pytest.raises(RunOverError):
        reading(tmp_path, Export(SECONDS), do=wait, minutes=0.3 / 60)


# --- what is read from it ---


def test_the_latest_operation_of_each_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_copy, "_FILES_AT_ONCE", 1)
    again = [
        entry(number, BEGIN + HOUR + timedelta(seconds=number), prev=f"cid{number}") for number in (3, 30, 3)
    ]
    for number, one in enumerate(again):
        one["cid"] = f"again{number}"
        one["createdAt"] = written(BEGIN + HOUR + timedelta(seconds=number))
        one["operation"]["alsoKnownAs"] = [f"at://again{number}.test"]
    reading(tmp_path, Export([*SECONDS, *again]))
    wanted = pl.Series([plc(3), plc(5), plc(30), plc(99), plc(3)])

    latest = pl.concat(copy_in(tmp_path).latest(wanted))

    assert dict(latest.select("did", "handle").iter_rows()) == {
        plc(3): "again2.test",
        plc(5): "n5.test",
        plc(30): "again1.test",
    }


def test_who_was_created_in_a_period(tmp_path: Path) -> None:
    later = entry(3, BEGIN + HOUR, prev="cid3")
    later["cid"] = "later"
    reading(tmp_path, Export([*SECONDS, later]))

    def created(first: int | None, last: int | None) -> list[str]:
        ends = (None if number is None else BEGIN + timedelta(seconds=number) for number in (first, last))
        return [did for part in copy_in(tmp_path).created(*ends) for did in part]

    assert created(None, None) == dids(SECONDS)
    assert created(5, 20) == dids(SECONDS[5:21])
    assert created(30, None) == dids(SECONDS[30:])
    assert created(None, 2) == dids(SECONDS[:3])
    assert created(40, 50) == []
