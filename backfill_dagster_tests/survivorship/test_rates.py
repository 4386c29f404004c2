"""The estimator on simulated records whose hazard is known."""

import math
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.survivorship.ages import (
    BIN_EDGES,
    CLASS_EDGES,
    CLASSES,
    ages_in_days,
    bin_of,
    days_by_class,
)
from backfill_dagster.survivorship.person_time import watched
from backfill_dagster.survivorship.rates import (
    ALL_AGES,
    RATES_SCHEMA,
    account_rates,
    account_time,
    deletion_rates,
    dispersion,
    hazards,
    lost_before,
)
from backfill_dagster.survivorship.watched_by_account import WatchedByAccount

POST = "app.bsky.feed.post"
START = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
# Daily rates by class of age, falling as they do: many go at once, few later.
HAZARDS = (0.05, 0.01, 0.004, 0.002, 0.001, 0.0005)
NETWORK_DAYS = 500


def hazard_sum(ages: np.ndarray) -> np.ndarray:
    """Return the cumulative hazard up to each age."""
    ends = [*CLASS_EDGES[1:], np.inf]
    spent = [
        np.clip(np.minimum(ages, end) - first, 0, None) for first, end in zip(CLASS_EDGES, ends, strict=True)
    ]
    total: np.ndarray = np.array(HAZARDS) @ np.array(spent)
    return total


def did(number: int) -> str:
    """Name an account: like hashes, these are in all ranges."""
    return f"did:plc:{'2a7kqz'[number % 6]}{number}"


def simulate(
    seed: int,
    accounts: int,
    records: int,
    collections: list[float],
    burst: float = 0.0,
    at_once: int = 1000,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, int, pl.DataFrame]:
    """Simulate accounts that write all the time and delete by HAZARDS; they are collected on these days.

    A share of them (`burst`) deletes all that is left at once, on a day of chance. Returns what `watched` takes, how
    many records were made up to the first collection, and those then left by day.
    """
    chance = np.random.default_rng(seed)
    total = accounts * records
    owner = np.repeat(np.arange(accounts), records)
    made = chance.uniform(0, NETWORK_DAYS, total)
    # The inverse of the cumulative hazard, on a fine grid.
    grid = np.concatenate([np.linspace(0, 40, 4000), np.linspace(40.1, 20_000, 20_000)])
    gone = made + np.interp(chance.exponential(size=total), hazard_sum(grid), grid)
    purges = np.where(chance.random(accounts) < burst, chance.uniform(400, 500, accounts), np.inf)
    gone = np.minimum(gone, np.maximum(purges[owner], made))
    inventories, events = [], []
    ends = [*collections[1:], None]
    for day, following in zip(collections, ends, strict=True):
        there = (made <= day) & (gone > day)
        ages = pl.Series(day - made[there])
        seen_at = START + day * DAY
        inventories.append(
            pl.DataFrame({"did": [did(o) for o in owner[there]], "age": bin_of(ages).cast(pl.Int32)})
            .group_by("did", "age")
            .agg(records=pl.len())
            .with_columns(
                collection=pl.lit(POST),
                fetched_at=pl.lit(seen_at),
                confirmed_at=pl.lit(seen_at),
                confirmations=pl.lit(0, pl.UInt32),
                next_at=pl.lit(
                    None if following is None else START + following * DAY, pl.Datetime("us", "UTC")
                ),
            )
        )
        if following is None:
            break
        went = there & (gone <= following)
        written = [tid(round((START + float(when) * DAY).timestamp() * 1e6), 7) for when in made[went]]
        events.append(
            pl.DataFrame({"did": [did(o) for o in owner[went]], "rkey": written}).with_columns(
                collection=pl.lit(POST),
                stood_before=pl.lit(value=True),
                changed=pl.lit(value=False),
                before_at=pl.lit(seen_at),
                before_confirmed_at=pl.lit(seen_at),
                fetched_at=pl.lit(START + following * DAY),
            )
        )
    first = collections[0]
    left = pl.DataFrame(
        {"day": [START.date() + timedelta(days=int(w)) for w in made[(made <= first) & (gone > first)]]}
    )
    by_day = left.group_by("day").agg(records=pl.len()).with_columns(table=pl.lit("posts"))
    with (
        TemporaryDirectory() as scratch,
        WatchedByAccount(Path(scratch), did_ranges(accounts, at_once)) as sums,
    ):
        found = watched(inventories, events, sums)
        by_account = pl.concat(own for _, own in sums.by_collection())
        return found.by_age, by_account, deletion_rates(found), int((made <= first).sum()), by_day


def test_rates_and_the_share_that_had_gone_are_found_again() -> None:
    covered = total = shares_covered = 0
    for seed in range(8):
        _, _, rates, made, by_day = simulate(seed, 60, 300, [500.0, 501.0, 504.0, 514.0])
        found = {
            age: (low, high) for age, low, high in rates.select("age", "rate_low", "rate_high").iter_rows()
        }
        for age, truth in zip(CLASSES, HAZARDS, strict=True):
            if age in found:
                total += 1
                covered += found[age][0] <= truth <= found[age][1]
        [lost] = lost_before(rates, by_day, START + 500 * DAY, {"posts": POST})
        truth = 1 - lost.present / made
        shares_covered += lost.low <= truth <= lost.high
        assert lost.share == pytest.approx(truth, abs=0.25)
        assert lost.from_older == lost.from_younger == ()
    # Intervals of 95 % hold the truth in about so many cases, and the bounds of all ages at once in more.
    assert covered / total > 0.9
    assert shares_covered >= 7


def test_accounts_that_delete_everything_at_once_widen_the_interval() -> None:
    _, by_account, bursts, _, _ = simulate(3, 60, 200, [420.0, 440.0, 460.0], burst=0.3)
    _, _, even, _, _ = simulate(3, 60, 200, [420.0, 440.0, 460.0])
    [burst] = bursts.filter(age=ALL_AGES).iter_rows(named=True)
    [calm] = even.filter(age=ALL_AGES).iter_rows(named=True)
    assert burst["dispersion"] > 20 > 2 > calm["dispersion"]
    assert burst["rate_high"] / burst["rate"] - 1 > 3 * (calm["rate_high"] / calm["rate"] - 1)
    assert by_account["deleted"].sum() == burst["deleted"]


@given(
    st.lists(
        st.tuples(st.floats(0, 3000), st.floats(0.01, 900), st.integers(1, 40)), min_size=1, max_size=20
    ),
)
@settings(max_examples=40)
def test_intervals_are_given_to_classes_without_a_rest(spans: list[tuple[float, float, int]]) -> None:
    ages, days, looks = (np.array(column, dtype=float) for column in zip(*spans, strict=True))
    parts = days_by_class(ages, days, looks)
    assert len(parts) == len(CLASSES) + 1
    assert np.allclose(sum(parts), days * looks)
    for number, (age, span, times) in enumerate(spans):
        # One by one, as they come.
        singles = sum(
            np.array(days_by_class(np.array([age + nth * span]), np.array([span]), np.ones(1)))[:, 0]
            for nth in range(times)
        )
        middles = [age + (nth + 0.5) * span for nth in range(times)]
        if all(abs(middle - edge) > 1e-6 for middle in middles for edge in CLASS_EDGES) and span < 400:
            assert np.allclose(singles, [part[number] for part in parts])
    for part, first in zip(parts[:-1], CLASS_EDGES, strict=True):
        assert (part >= 0).all()
        assert (part[ages + days * looks <= first] == 0).all()


@pytest.mark.parametrize(
    ("age", "span", "told"),
    [
        (0.1, 1.02, "under 1 day"),
        (0.7, 1.0, "1 to 7 days"),
        (0.1, 1.5, None),
        (0.1, 7.1, "1 to 7 days"),
        (0.1, 12.0, None),
        (2.0, 30.4, "7 to 30 days"),
        (2.0, 50.0, None),
        (20.0, 50.0, "30 to 90 days"),
        (100.0, 600.0, None),
        (400.0, 900.0, "over 1 year"),
    ],
)
def test_an_interval_tells_of_the_class_of_its_middle_unless_it_is_much_longer(
    age: float, span: float, told: str | None
) -> None:
    parts = days_by_class(np.array([age]), np.array([span]), np.ones(1))
    assert {name: part[0] for name, part in zip((*CLASSES, None), parts, strict=True) if part[0]} == {
        told: span
    }


# By the days between two looks: the ages of which they tell.
SCHEDULES = {1: CLASSES, 7: CLASSES[1:], 30: CLASSES[2:]}


@pytest.mark.parametrize("between", SCHEDULES)
def test_what_is_known_of_an_age_is_true_however_rarely_one_looks(between: int) -> None:
    collections = [500.0 + number * between for number in range(15 if between == 1 else 4)]
    _, _, rates, made, by_day = simulate(between, 200, 1500, collections)
    known = rates.filter(pl.col("age") != ALL_AGES)
    assert known["age"].to_list() == list(SCHEDULES[between])
    truths = dict(zip(CLASSES, HAZARDS, strict=True))
    for age, low, high in known.select("age", "rate_low", "rate_high").iter_rows():
        # Intervals that reach into an older class count whole: a fifth less is found of the youngest.
        assert low <= 1.05 * truths[age], age
        assert high >= (0.8 if age == CLASSES[0] else 0.95) * truths[age], age
    [lost] = lost_before(rates, by_day, START + 500 * DAY, {"posts": POST})
    assert lost.from_older == tuple(age for age in CLASSES if age not in SCHEDULES[between])
    assert lost.from_younger == ()
    truth = 1 - lost.present / made
    assert lost.share == pytest.approx(truth, abs=0.02 if between == 1 else 0.12)
    # What is assumed of young records makes it too low, as is said.
    assert lost.low < truth
    [whole] = rates.filter(age=ALL_AGES).iter_rows(named=True)
    assert whole["deleted"] >= known["deleted"].sum()
    assert whole["days"] >= known["days"].sum()


def test_looks_that_find_nothing_changed_are_intervals_of_their_own(tmp_path: Path) -> None:
    chain = {"did": "did:a", "collection": POST}
    made = START - timedelta(hours=3)
    for between, told in (
        (1, {"under 1 day": (1.0, 0), "1 to 7 days": (2.5, 1)}),
        (10, {"7 to 30 days": (20.0, 0), "30 to 90 days": (5.0, 1), "unknown": (10.0, 0)}),
    ):
        # Three looks at which it stood, and a fourth at which it had gone.
        stood, gone = START + 3 * between * DAY, START + 4 * between * DAY
        inventory = pl.DataFrame([{**chain, "records": 1, "confirmations": 3}]).with_columns(
            pl.col("confirmations").cast(pl.UInt32),
            age=bin_of(ages_in_days(pl.Series([tid(round(made.timestamp() * 1e6), 7)]), pl.Series([START]))),
            fetched_at=pl.lit(START),
            confirmed_at=pl.lit(stood),
            next_at=pl.lit(gone),
        )
        event = pl.DataFrame(
            [
                {
                    **chain,
                    "rkey": tid(round(made.timestamp() * 1e6), 7),
                    "stood_before": True,
                    "changed": False,
                    "before_at": START,
                    "before_confirmed_at": stood,
                    "fetched_at": gone,
                }
            ]
        )
        with WatchedByAccount(tmp_path, did_ranges(1, 1)) as sums:
            found = watched([inventory], [event], sums)
        rows = {age: (days, gone) for _, age, days, gone in found.by_age.iter_rows() if days or gone}
        assert rows == told


def test_what_accounts_add_up_to_is_the_same_however_many_are_added_at_once() -> None:
    days = [400.0, 430.0, 460.0, 490.0, 520.0]
    whole, by_ranges = (
        simulate(seed=5, accounts=20, records=50, collections=days, at_once=at_once) for at_once in (20, 1)
    )
    assert by_ranges[1].height == 20
    for found, expected in zip(by_ranges[:3], whole[:3], strict=True):
        assert_frame_equal(found, expected, check_exact=True)


@given(st.floats(0, 4000))
@settings(max_examples=40)
def test_an_age_is_in_the_bin_between_its_edges(age: float) -> None:
    [number] = bin_of(pl.Series([age]))
    assert BIN_EDGES[number] <= age
    assert number == len(BIN_EDGES) - 1 or age < BIN_EDGES[number + 1]
    assert set(CLASS_EDGES) <= set(BIN_EDGES)


def test_the_age_is_in_the_key_unless_that_is_impossible() -> None:
    seen = datetime(2024, 10, 1, tzinfo=UTC)

    def key(instant: datetime) -> str:
        return tid(round(instant.timestamp() * 1e6), 1)

    keys = [key(seen - 3 * DAY), "self", key(seen + DAY), key(datetime(2015, 1, 1, tzinfo=UTC))]
    ages = ages_in_days(pl.Series(keys), pl.Series([seen] * 4))
    assert ages.to_list() == [3.0, None, None, None]
    assert bin_of(ages).to_list()[1:] == [None] * 3


def rates_of(*rows: tuple[str, float]) -> pl.DataFrame:
    whole = [("records", POST, age, 100.0, 1, None, 1.0, rate, rate / 2, 2 * rate) for age, rate in rows]
    return pl.DataFrame(whole, schema=RATES_SCHEMA, orient="row")


def test_ages_that_were_not_watched_have_the_rate_of_the_next_older_one() -> None:
    found = hazards(rates_of(("7 to 30 days", 0.02), ("30 to 90 days", 0.01)), POST)
    assert found is not None
    assert found.rates == (0.02, 0.02, 0.02, 0.01, 0.01, 0.01)
    assert found.from_older == ("under 1 day", "1 to 7 days")
    assert found.from_younger == ("90 days to 1 year", "over 1 year")
    assert found.made_for_each(40) == pytest.approx(math.exp(30 * 0.02 + 10 * 0.01))
    assert hazards(rates_of(("all ages", 0.5)), POST) is None
    assert hazards(rates_of(("7 to 30 days", 0.02)), "app.bsky.feed.like") is None


def test_what_had_gone_is_what_the_rates_make_of_the_ages() -> None:
    rates = rates_of(*((age, 0.01) for age in CLASSES))
    by_day = pl.DataFrame(
        {"table": ["posts", "replies"], "day": [date(2024, 10, 1)] * 2, "records": [30, 10]}
    )
    tables = {"posts": POST, "replies": POST, "likes": "app.bsky.feed.like"}
    [lost] = lost_before(rates, by_day, datetime(2024, 10, 11, 12, tzinfo=UTC), tables)
    assert (lost.collection, lost.present) == (POST, 40)
    shares = (lost.share, lost.low, lost.high)
    assert shares == pytest.approx([1 - math.exp(-10 * rate) for rate in (0.01, 0.005, 0.02)])
    # Rates beyond all reason say that nothing is known, and no more.
    assert lost.from_older == lost.from_younger == ()
    # Of ages that no record has reached nothing is taken, from neither side.
    for known, older, younger in (
        ("over 1 year", CLASSES[:3], ()),
        ("1 to 7 days", CLASSES[:1], CLASSES[2:3]),
        ("under 1 day", (), CLASSES[1:3]),
    ):
        [lost] = lost_before(
            rates_of((known, 0.01)), by_day, datetime(2024, 10, 11, 12, tzinfo=UTC), {"posts": POST}
        )
        assert (lost.from_older, lost.from_younger) == (older, younger)
    unsure = rates_of(("over 1 year", 1e6)).with_columns(rate_low=pl.lit(0.0))
    [lost] = lost_before(unsure, by_day, datetime(2026, 10, 11, tzinfo=UTC), {"posts": POST})
    assert lost.share == pytest.approx(1)
    assert lost.low == 0
    assert not lost.is_told


def test_a_rate_of_accounts_counts_the_days_between_looks() -> None:
    times = [START + number * 10 * DAY for number in range(3)]
    states = pl.DataFrame(
        [
            *(("a", state, time) for state, time in zip(["complete"] * 3, times, strict=True)),
            *(
                ("b", state, time)
                for state, time in zip(["complete", "deactivated", "complete"], times, strict=True)
            ),
            ("c", "tombstoned", START),
        ],
        schema={"did": pl.String, "value": pl.String, "seen_at": pl.Datetime("us", "UTC")},
        orient="row",
    )
    gone = ["deactivated", "tombstoned"]
    time = account_time(states, gone)
    [row] = account_rates(time).iter_rows(named=True)
    assert (row["watched"], row["deleted"], row["days"]) == ("accounts", 1, 25.0)
    apart = [account_time(own, gone) for own in states.partition_by("did")]
    assert apart[0].and_also(apart[1]).and_also(apart[2]) == time
    assert account_rates(apart[2]).is_empty()


def test_independent_deletions_are_not_dispersed() -> None:
    chance = np.random.default_rng(1)
    days = chance.uniform(10, 1000, 5000)
    assert dispersion(chance.poisson(0.01 * days).astype(float), days) == pytest.approx(1, abs=0.1)
    assert dispersion(np.array([100.0, *[0.0] * 99]), np.ones(100)) == pytest.approx(100)
    assert dispersion(np.zeros(5), np.ones(5)) == 1
