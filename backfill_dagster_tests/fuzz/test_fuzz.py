"""The fuzz itself: a small part of its run, and proof that it finds what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from backfill_dagster.records.transform import TransformedRecords, transform_records
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.verify import VerifiedRepo, verify_repo
from backfill_dagster_tests.fuzz import judge
from backfill_dagster_tests.fuzz.__main__ import MUTATIONS
from backfill_dagster_tests.fuzz.blind import BLIND_KINDS
from backfill_dagster_tests.fuzz.campaign import MAX_RSS_MB, report, run_campaign, run_shard
from backfill_dagster_tests.fuzz.cases import Case, make_case
from backfill_dagster_tests.fuzz.corpus import seeds, whole_seeds
from backfill_dagster_tests.fuzz.crafted import CRAFTED_KINDS
from backfill_dagster_tests.fuzz.judge import ACCEPTED, Verdict, judge_file, judge_tables

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20


def test_two_thousand_mutations() -> None:
    tally = run_shard(SEED, 0, 2_000)

    assert tally.findings == []
    kinds = {(family, kind) for family, kind, _ in tally.outcomes}
    assert kinds == {("blind", kind) for kind in BLIND_KINDS} | {("crafted", kind) for kind in CRAFTED_KINDS}
    # Nothing is shown by files that are all refused at the door, or all of them accepted.
    outcomes = {outcome for _, _, outcome in tally.outcomes}
    assert outcomes >= {ACCEPTED, *(fault.value for fault in RepoFault)} - {RepoFault.EMPTY_BODY.value}
    accepted = {family: count_of(tally.outcomes, family, ACCEPTED) for family in ("blind", "crafted")}
    assert accepted["blind"] > 50
    assert accepted["crafted"] > 250
    assert tally.records > 10_000
    assert "2,000 mutations" in report(tally)


def count_of(outcomes: dict[tuple[str, str, str], int], family: str, outcome: str) -> int:
    return sum(count for (of, _, end), count in outcomes.items() if (of, end) == (family, outcome))


@pytest.mark.fuzz
def test_a_hundred_thousand_mutations() -> None:
    tally = run_campaign(SEED, MUTATIONS, 2, lambda _: None)

    assert tally.findings == []
    assert tally.mutations == MUTATIONS
    assert tally.peak_rss_mb < MAX_RSS_MB


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    numbers = range(300)

    forwards = [make_case(SEED, number) for number in numbers]
    backwards = [make_case(SEED, number) for number in reversed(numbers)]

    assert forwards == backwards[::-1]
    assert len({case.car for case in forwards}) > 280
    assert make_case(SEED + 1, 1).car != forwards[1].car


def test_half_of_the_cases_are_signed_again_and_half_are_not() -> None:
    cases = [make_case(SEED, number) for number in range(100)]
    keys = {seed.did_key for seed in seeds()}

    assert [case.family for case in cases] == ["blind", "crafted"] * 50
    assert all((case.did_key in keys) == (case.family == "blind") for case in cases)


# Planted defects: each is found.


def untouched() -> Case:
    """A case of which nothing was changed."""
    seed = whole_seeds()[0]
    return replace(make_case(SEED, 0), car=seed.car, did=seed.did, did_key=seed.did_key, original=seed)


def forged() -> Case:
    """A case in which nothing is wrong but the signature."""
    case = untouched()
    other = next(seed for seed in whole_seeds() if seed.did_key != case.did_key)
    return replace(case, did_key=other.did_key)


def verify_and(change: Callable[[VerifiedRepo], VerifiedRepo]) -> Callable[..., VerifiedRepo]:
    return lambda car, **rest: change(verify_repo(car, **rest))


def without_last_record(repo: VerifiedRepo) -> VerifiedRepo:
    return replace(
        repo,
        collections=repo.collections[:-1],
        rkeys=repo.rkeys[:-1],
        starts=repo.starts[:-1],
        ends=repo.ends[:-1],
    )


def with_blocks_reversed(repo: VerifiedRepo) -> VerifiedRepo:
    return replace(repo, starts=repo.starts[::-1], ends=repo.ends[::-1])


def refuse(fault: RepoFault) -> Callable[..., VerifiedRepo]:
    def verify(car: bytes, **_: Any) -> VerifiedRepo:
        raise RepoRejectedError(fault, "planted")

    return verify


def fail(car: bytes, **_: Any) -> VerifiedRepo:
    raise KeyError("planted")


def believe(car: bytes, **rest: Any) -> VerifiedRepo:
    return verify_repo(car, **rest, check_signature=False)


@pytest.mark.parametrize(
    ("case", "verify", "finding"),
    [
        (untouched(), verify_repo, None),
        (forged(), verify_repo, None),
        (untouched(), fail, "verification raised KeyError('planted')"),
        (untouched(), refuse(RepoFault.BAD_TREE), "refused as bad_tree, though it is lawful"),
        (untouched(), refuse(RepoFault.TOO_LARGE), "refused as too_large, though it is lawful"),
        (forged(), believe, "accepted, though the signature is not the key's"),
        (untouched(), verify_and(without_last_record), "other records"),
        (untouched(), verify_and(lambda repo: replace(repo, rkeys=repo.rkeys[::-1])), "other records"),
        (untouched(), verify_and(with_blocks_reversed), "other records"),
        (untouched(), verify_and(lambda repo: replace(repo, rev="3l4qxwyzabc2k")), "another commit"),
        (untouched(), verify_and(lambda repo: replace(repo, signed_by="previous")), "signed by previous"),
        (replace(untouched(), original=whole_seeds()[1]), verify_repo, "something else than before"),
    ],
)
def test_a_verifier_that_errs_is_found_out(
    case: Case, verify: Callable[..., VerifiedRepo], finding: str | None
) -> None:
    findings = judge_file(case, verify).findings

    assert len(findings) == (0 if finding is None else 1)
    assert finding is None or finding in findings[0]


def test_a_verifier_that_takes_long_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "MAX_SECONDS", 0.0)

    assert ["to verify" in finding for finding in judge_file(untouched()).findings] == [True]
    assert ["to lay out" in finding for finding in judge_tables([judge_file(untouched())]).findings] == [True]


def transform_and(
    change: Callable[[TransformedRecords], TransformedRecords],
) -> Callable[..., TransformedRecords]:
    return lambda *arguments: change(transform_records(*arguments))


def with_posts(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[..., TransformedRecords]:
    return transform_and(
        lambda result: replace(result, tables=result.tables | {"posts": change(result.tables["posts"])})
    )


def accepted(number: int) -> Verdict:
    verdict = judge_file(replace(untouched(), number=number))
    assert verdict.outcome == ACCEPTED
    return verdict


@pytest.mark.parametrize(
    ("transform", "finding"),
    [
        (with_posts(lambda posts: posts.slice(1)), "the counts of kept records are not what is there"),
        (with_posts(lambda posts: posts.slice(1)), "is filtered, not kept"),
        (
            with_posts(lambda posts: posts.with_columns(record=pl.col("record").reverse())),
            "is not its record",
        ),
        (transform_and(lambda result: replace(result, counts=result.counts.slice(1))), "do not sum up"),
        (
            transform_and(
                lambda result: replace(
                    result, rejects=result.tables["likes"].select("did", "collection", "rkey")
                )
            ),
            "the counts of rejected records are not what is there",
        ),
    ],
)
def test_tables_that_err_are_found_out(transform: Callable[..., TransformedRecords], finding: str) -> None:
    verdicts = [accepted(1), accepted(2)]

    assert judge_tables(verdicts).findings == []
    findings = judge_tables(verdicts, transform).findings
    assert [name for name in ("case 1 ", "case 2 ") if any(name in text for text in findings)] != []
    assert any(finding in text for text in findings)


def test_the_file_whose_records_raise_is_named() -> None:
    def transform(blocks: Any, accounts: pl.DataFrame, settings: Any) -> TransformedRecords:
        if any(did.endswith("c") for did in accounts["did"]):
            raise ValueError("planted")
        return transform_records(blocks, accounts, settings)

    findings = judge_tables([accepted(1), accepted(2), accepted(3)], transform).findings

    assert len(findings) == 1
    assert "case 2 of" in findings[0]
    assert "its records raised ValueError('planted')" in findings[0]
