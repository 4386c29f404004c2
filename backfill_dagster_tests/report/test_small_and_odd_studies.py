"""Pages of studies at the edges: nobody, one account, nothing complete, an open period, hostile words."""

import re
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.report.page import Report, build_report
from backfill_dagster.storage import StudyStorage
from backfill_dagster.survivorship.rates import RATES_SCHEMA
from backfill_dagster.survivorship.stored import DELETION_RATES_KEY
from backfill_dagster_tests.report.reading import Page, read_page
from backfill_dagster_tests.report.stored import account, attempt, record, stored_study

DAY = datetime(2024, 10, 3, 9, tzinfo=UTC)
HOST = "pds.example"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></text></svg><b>out</b>",
    r"$\frac{1}{$ & &amp; <!--",
    "a\x00b\x08c\u202egro.elpmaxe\ud7ff",
    "|`*_[x](javascript:alert(1))_*`|\n# h",
    "https://evil.example/" + "x" * 180,
    "xn--例え.テスト",
]


def build(study: Study) -> tuple[Report, Page, str]:
    with warnings.catch_warnings():
        # What the drawing library warns of is a defect here: a page that is not as it should be.
        warnings.simplefilter("error", UserWarning)
        report = build_report(study)
    html = StudyStorage(study.root).path(report.key).read_text(encoding="utf-8")
    return report, read_page(html), html


def test_a_study_of_nobody(tmp_path: Path) -> None:
    report, page, _ = build(stored_study(tmp_path, []))
    assert report.figures == 0
    assert report.problems == ()
    assert not page.texts_in("svg")
    assert page.numbers("overview-accounts") == {"complete": 0, "in the source": 0}
    assert page.numbers("overview-records")["fetched"] == 0
    assert page.texts_in("h2") == [
        "No record is dated within the study's period",
        "The source lists no account",
        "No account has a known host",
        "No record was fetched",
        "No account has a record in the study's period",
        "The source gave nothing",
        "There is no account to lose",
        "How much is deleted cannot be told from a single collection; a refresh shows it",
        "Methods, in words for a paper",
    ]
    assert "nothing yet" in page.texts_in("dd")


def test_accounts_of_which_none_is_complete(tmp_path: Path) -> None:
    accounts = [
        account(1, HOST, "failed", reason="timed_out"),
        account(2, HOST, "failed", reason="timed_out"),
        account(3, "other.example", "takendown"),
        account(4, None, "unresolved", reason="no_pds"),
        account(5, None, "tombstoned", reason="tombstoned"),
        account(6, HOST, "pending"),
    ]
    failed = {HOST: [attempt(1, "failed"), attempt(2, "failed")]}
    report, page, _ = build(stored_study(tmp_path, accounts, attempts=failed))
    assert report.figures == 4, "states and hosts, steps and losses"
    assert page.tables["account-states"][1:] == [
        ("failed (timed out)", "failed, to be tried again", "2", "33.3 %"),
        ("pending", "not fetched yet", "1", "16.7 %"),
        ("takendown", "not active or not found, as its server says", "1", "16.7 %"),
        ("tombstoned", "not resolved, as the directory says", "1", "16.7 %"),
        ("unresolved (no pds)", "not resolved, as the directory says", "1", "16.7 %"),
        ("all states", "", "6", "100.0 %"),
    ]
    assert page.texts_in("h2")[1] == "0 of 6 accounts complete (0.0 %)"
    assert page.tables["host-speeds"][1:] == [
        ("2 hosts with fewer accounts", "4", "0", "2", "0", "0.000", "0.000", "-"),
        ("all hosts", "4", "0", "2", "0", "0.000", "0.000", "-"),
    ]


def test_one_account_with_one_record(tmp_path: Path) -> None:
    one = account(
        1, HOST, records_fetched=1, records_kept=1, posts=1, first_created_at=DAY, last_created_at=DAY
    )
    study = stored_study(tmp_path, [one], attempts={HOST: [attempt(1)]}, tables={"posts": [record(1, DAY)]})
    report, page, html = build(study)
    assert report.figures == 6, "nothing was left out"
    assert report.problems == ()
    days = {row[0]: row[1] for row in page.tables["records-by-time"][1:]}
    assert {day for day, posts in days.items() if posts != "0"} == {"2024-10-03"}
    assert [row[1] for row in page.tables["coverage-weeks"][1:]] == ["1", *["0"] * 9]
    assert {row[1:] for row in page.tables["coverage-quantiles"][1:]} == {("2024-10-03", "2024-10-03", "1")}
    assert HOST not in html, "a host of one account may bear that person's name"
    assert HOST not in report.summary_markdown


def test_records_outside_and_without_a_date_are_told_apart(tmp_path: Path) -> None:
    one = account(
        1,
        HOST,
        records_fetched=9,
        records_kept=5,
        records_filtered=3,
        records_rejected=1,
        posts=5,
        undated=1,
        filtered=[{"reason": "unwanted_type", "records": 3}],
        rejected=[{"reason": "bad_key", "records": 1}],
    )
    rows = [
        record(1, DAY),
        record(1, DAY),
        *(record(1, DAY.replace(year=2023), in_range=False) for _ in "ab"),
    ]
    report, page, _ = build(stored_study(tmp_path, [one], tables={"posts": rows}))
    assert report.problems == ()
    assert page.numbers("overview-dates") == {
        "dated within the study's period": 2,
        "dated outside it": 2,
        "undated: no date that can be believed": 1,
        "kept": 5,
    }
    assert page.tables["left-out-records"][1:] == [
        ("filtered", "unwanted type", "3", "33.3 %"),
        ("rejected", "bad key", "1", "11.1 %"),
    ]


def test_sums_that_do_not_agree_are_shown(tmp_path: Path) -> None:
    off = account(1, HOST, records_fetched=5, records_kept=3, posts=2)
    report, page, _ = build(stored_study(tmp_path, [off], tables={"posts": [record(1, DAY)] * 4}))
    assert len(report.problems) == 3
    shown = [
        attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "warning"
    ]
    assert len(shown) == 3
    assert "5 records were fetched, but 3 are accounted for" in page.whole_text
    assert "3 records were kept, but the tables have 2" in page.whole_text
    assert "5 records were fetched" in report.summary_markdown


def test_accounts_that_left_the_source_do_not_count(tmp_path: Path) -> None:
    accounts = [account(1, HOST), account(2, HOST, in_source=False, shown=False)]
    attempts = {HOST: [attempt(1), attempt(2)]}
    _, page, _ = build(stored_study(tmp_path, accounts, attempts=attempts))
    assert page.numbers("overview-accounts")["in the source"] == 1
    assert page.tables["host-speeds"][-1][:5] == ("all hosts", "1", "1", "0", "1")


@pytest.mark.parametrize(
    ("period", "first", "last"),
    [
        ({"start_date": None, "end_date": None}, "2023-05", "2025-03"),
        ({"start_date": "2024-01-01", "end_date": None}, "2024-01", "2025-03"),
        ({"start_date": None, "end_date": "2024-10-05"}, "2023-05", "2024-10"),
        ({"start_date": "2024-01-01", "end_date": "2099-01-01"}, "2024-01", "2025-03"),
    ],
)
def test_an_open_period_runs_from_the_first_record_to_the_last_fetch(
    tmp_path: Path, period: dict[str, Any], first: str, last: str
) -> None:
    early = datetime(2023, 5, 20, tzinfo=UTC)
    one = account(
        1, HOST, records_fetched=2, records_kept=2, likes=2, first_created_at=early, last_created_at=DAY
    )
    inside = period["start_date"] is None
    tables = {"likes": [record(1, early, in_range=inside), record(1, DAY)]}
    study = stored_study(tmp_path, [one], tables=tables, time_range=period)
    report, page, _ = build(study)
    assert report.problems == ()
    months = [row[0] for row in page.tables["records-by-time"][1:]]
    assert (months[0], months[-1]) == (first, last)
    assert sum(int(row[3]) for row in page.tables["records-by-time"][1:]) == 1 + inside


def test_words_of_strangers_do_no_harm(tmp_path: Path) -> None:
    accounts, attempts, number = [], {}, 0
    for host in HOSTILE:
        numbers = range(number, number + 6)
        number += 6
        accounts += [account(each, host) for each in numbers]
        attempts[host] = [attempt(each, seconds=0.1 + each) for each in numbers]
    accounts += [account(number + place, None, word, reason=word) for place, word in enumerate(HOSTILE)]
    accounts[0] |= {
        "records_fetched": len(HOSTILE),
        "records_rejected": len(HOSTILE),
        "rejected": [{"reason": word, "records": 1} for word in HOSTILE],
        "signed_by": HOSTILE[0],
    }
    study = stored_study(
        tmp_path, accounts, left_out=HOSTILE, attempts=attempts, description=" ".join(HOSTILE[:4])
    )
    report, page, html = build(study)
    assert {"script", "img", "b"} & {tag for tag, _ in page.tags} == set()
    assert {name for _, attributes in page.tags for name in attributes if name.startswith("on")} == set()
    assert not re.search("[\x00-\x08\u202e]", html + report.summary_markdown)
    assert html.count("<svg") == html.count("</svg>") == report.figures == 5
    listed = {row[0] for row in page.tables["host-speeds"][1:]}
    assert {*HOSTILE[:4], HOSTILE[-1]} <= listed
    assert all(len(name) <= 60 for name in listed)
    drawn = page.texts_in("text")
    assert any(HOSTILE[0] in line for line in drawn), "the largest hosts are named in the drawing"
    assert any(HOSTILE[1] in line for line in drawn)
    for line in report.summary_markdown.splitlines():
        if line.startswith("|"):
            assert not re.search(r"(?<!\\)[<`\[]", line), line
            columns = len(re.findall(r"(?<!\\)\|", line))
            assert columns in (3, 4, 5, 7, 8, 9), line


def test_many_accounts_are_drawn_as_shares(tmp_path: Path) -> None:
    accounts, rows = [], []
    for number in range(200):
        begins = DAY + timedelta(hours=6 * number)
        accounts.append(
            account(
                number,
                HOST,
                records_fetched=2,
                records_kept=2,
                likes=2,
                first_created_at=begins,
                last_created_at=begins + timedelta(days=3),
            )
        )
        rows += [record(number, begins), record(number, begins + timedelta(days=3))]
    _, page, html = build(stored_study(tmp_path, accounts, tables={"likes": rows}))
    assert "have had their first record" in page.texts_in("text")
    assert {row[0]: row[1] for row in page.tables["coverage-quantiles"][1:]}["50%"] == "2024-10-28"
    assert len(html) < 200_000


def test_what_goes_is_drawn_and_what_had_gone_is_estimated(tmp_path: Path) -> None:
    accounts = [account(1, HOST, obtained="repo", records_fetched=2, records_kept=2, likes=2, posts=0)]
    study = stored_study(
        tmp_path, accounts, tables={"likes": [record(1, DAY), record(1, DAY + timedelta(days=9))]}
    )
    like = "app.bsky.feed.like"
    rates = [
        ("records", like, "all ages", 9000.0, 11, 2, 1.5, 0.0011, 0.0006, 0.002),
        ("records", like, "over 1 year", 2000.0, 1, None, 1.5, 0.0005, 1e-90, 0.003),
        ("records", like, "30 to 90 days", 7000.0, 10, None, 1.5, 0.0014, 0.0007, 0.0028),
        ("accounts", None, "all ages", 900.0, 1, None, 1.0, 0.001, 0.0001, 0.006),
        # Of a collection that the study does not ask for.
        ("records", "example.app.thing", "all ages", 9000.0, 1, 0, 1.0, 0.0001, 0.0, 0.001),
    ]
    frame = pl.DataFrame(rates, schema=RATES_SCHEMA, orient="row")
    StudyStorage(study.root).write(DELETION_RATES_KEY, frame)
    _, page, html = build(study)
    assert "11 deleted in 9,000 record-days: 36.7 per 1,000 records and 30 days" in page.texts_in("h2")
    told = {row[:2]: row[2:] for row in page.tables["deletions"][1:]}
    assert told[like, "all ages"] == ("9,000.000", "11", "2", "33", "18", "60")
    assert told["accounts", "all ages"][-1] == "180"
    assert "example" not in html
    # 149 days from the day to the fetch, of which 60 in a class that was watched, and 59 in the next older one.
    [[collection, there, share, *_, from_older, from_younger]] = page.tables["deletions-before"][1:]
    assert (collection, there) == (like, "2")
    assert 5 < float(share.removesuffix(" %")) < 25
    assert from_older == "under 1 day, 1 to 7 days, 7 to 30 days, 90 days to 1 year"
    assert from_younger == "-"
    assert "too short to tell" not in page.whole_text
    assert f"{like} {share}" in page.whole_text
