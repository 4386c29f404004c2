"""Three thousand hosts, most of them of a handful of accounts, on one drawing that can be read."""

import random
import re
from dataclasses import replace
from pathlib import Path

import polars as pl

from backfill_dagster.report.figures.host_speeds import host_speeds
from backfill_dagster.report.hosts import HOSTS_SCHEMA
from backfill_dagster.report.numbers import read_numbers
from backfill_dagster_tests.report.stored import stored_study

LARGE = 80
HOSTS = 3_000


def hosts() -> pl.DataFrame:
    chance = random.Random(1)
    rows = []
    for number in range(HOSTS):
        accounts = 20_000 - 150 * number if number < LARGE else chance.choice([1, 1, 1, 2, 3, 6])
        downloads = 0 if number % 50 == 49 else accounts
        rows.append(
            {
                "pds_host": f"host-{number:04d}.example",
                "accounts": accounts,
                "complete": downloads,
                "failed": accounts - downloads,
                "downloads": downloads,
                "bytes": downloads * 400_000,
                "seconds": downloads * chance.lognormvariate(0, 1),
            }
        )
    return pl.DataFrame(rows, schema=HOSTS_SCHEMA, orient="row")


def test_many_hosts_are_drawn_small_and_few_are_named(tmp_path: Path) -> None:
    found = hosts()
    numbers = replace(read_numbers(stored_study(tmp_path, [])), hosts=found)
    figure = host_speeds(numbers)
    assert figure.drawing is not None
    drawn = figure.drawing.svg(figure.name, figure.alt)
    assert len(drawn) < 600_000
    named = re.findall(r"host-(\d{4})\.example", drawn[drawn.index(">") :])
    assert len(named) == 8
    assert named[:4] == ["0000", "0001", "0002", "0003"], "the largest"
    mean = found["accounts"].sum() / HOSTS
    assert all(int(number) < LARGE for number in named), f"the slowest are of hosts above {mean:.0f} accounts"
    *listed, others, total = figure.tables[0].rows
    assert len(listed) == 25
    assert others[0] == "2,975 hosts with fewer accounts"
    assert total[1] == found["accounts"].sum()
    assert sum(int(row[1] or 0) for row in [*listed, others]) == total[1]
    assert figure.title.startswith(f"{total[1]:,} accounts on 3,000 hosts, 20,000 of them on the largest")
