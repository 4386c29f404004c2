"""A list of a million DIDs, made up, through each kind of file: how much memory it takes to read and to collect."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 1_000_000
# Read batch by batch and let go; a Python object for each DID would take 90 MB at once.
MOST_TO_READ = 60
# What is kept of it is 48 MB, and there are two such while it is put together and looked through for duplicates.
MOST_TO_COLLECT = 250

# In a process of its own, since a peak is one of a whole process. Each kind is first read with few rows, so that what
# the libraries take for themselves is there already.
PROGRAM = """
import asyncio, json, resource, sqlite3, sys
from contextlib import closing
from pathlib import Path
import polars as pl
from backfill_dagster.config.sources import ParquetSource, SqliteSource, TextSource
from backfill_dagster.dids.collect import collect_dids
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.dids.sources.by_type import entry_source

folder, kind, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def made_up(first, last):
    numbers = pl.int_range(first, last, eager=True).cast(pl.String)
    for digit, letter in zip("0189", "wxyz"):
        numbers = numbers.str.replace_all(digit, letter, literal=True)
    return pl.DataFrame({"did": "did:plc:" + numbers.str.pad_start(24, "b")})


def write(path, count):
    step = 50_000
    parts = [(first, min(first + step, count)) for first in range(0, count, step)]
    if kind == "text":
        with path.open("w") as file:
            for part in parts:
                file.write("\\n".join(made_up(*part)["did"]) + "\\n")
        return TextSource(type="text", path=path)
    if kind == "parquet":
        import pyarrow as pa, pyarrow.parquet as pq
        with pq.ParquetWriter(path, pa.schema([("did", pa.string())])) as writer:
            for part in parts:
                writer.write_table(pa.table({"did": pa.array(made_up(*part)["did"].to_list(), pa.string())}))
        return ParquetSource(type="parquet", path=path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE dids (did TEXT)")
        for part in parts:
            database.executemany("INSERT INTO dids VALUES (?)", [(did,) for did in made_up(*part)["did"]])
    return SqliteSource(type="sqlite", path=path)


def collect(source):
    reader = entry_source(source, "backfill.source", storage=folder)
    return asyncio.run(collect_dids(reader, SourceAccess(folder)))


async def read(source):
    reader = entry_source(source, "backfill.source", storage=folder)
    return sum([batch.height async for batch in reader.entries(SourceAccess(folder))])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


few, many = write(folder / "few", 70_000), write(folder / "many", count)
assert collect(few).dids.height == 70_000
before = peak()
read_rows = asyncio.run(read(many))
read_peak = peak()
collected = collect(many)
print(json.dumps({
    "rows": read_rows, "dids": collected.dids.height, "rejects": collected.rejects.height,
    "to_read": read_peak - before, "to_collect": peak() - before,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count a process's peak in another unit")
@pytest.mark.parametrize("kind", ["text", "parquet", "sqlite"])
def test_a_million_dids_take_bounded_memory(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), kind, str(COUNT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)

    assert (told["rows"], told["dids"], told["rejects"]) == (COUNT, COUNT, 0)
    assert told["to_read"] < MOST_TO_READ
    assert told["to_collect"] < MOST_TO_COLLECT
