"""The page of a whole study on the sandbox: its numbers, that it stands alone, and that it names nobody."""

import hashlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import pipeline, study_files
from backfill_dagster.attrition.build import METHODS_KEY, build_attrition
from backfill_dagster.attrition.steps import ATTRITION_KEY
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster.orchestration.summary import study_summary
from backfill_dagster.records.tables import USUAL_TABLES
from backfill_dagster.report.hosts import MIN_ACCOUNTS_TO_NAME
from backfill_dagster.report.page import REPORT_KEY, Report, build_report
from backfill_dagster.repos import ledger_lots
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.report.reading import Page, read_page
from backfill_dagster_tests.report.stored import account, stored_study
from backfill_dagster_tests.studies import sandbox_study

DRAWN = {
    "records-per-day",
    "account-states",
    "host-speeds",
    "left-out-records",
    "coverage",
    "attrition",
    "losses",
}
# Of a study that was collected once nobody knows how much of it goes.
FIGURES = DRAWN | {"deletions"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("report")
    study = sandbox_study(folder, settings=SandboxSettings(seed=5, accounts=60, hosts=5, records=40))
    for stage in (
        pipeline.collect_source,
        pipeline.resolve_accounts,
        pipeline.fetch_repos,
        pipeline.convert_records,
        pipeline.build_tables,
    ):
        stage(study)
    return study


@pytest.fixture(scope="module")
def report(study: Study) -> Report:
    return build_report(study)


@pytest.fixture(scope="module")
def html(study: Study, report: Report) -> str:
    return StudyStorage(study.root).path(report.key).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return read_page(html)


@pytest.fixture(scope="module")
def accounts(study: Study) -> pl.DataFrame:
    return pl.read_parquet(study.root / "accounts.parquet")


def test_it_is_the_same_of_however_many_ranges_of_accounts(
    study: Study, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, summary = StudyStorage(study.root), study_summary(study)
    lost = [storage.read_bytes(key) for key in (ATTRITION_KEY, METHODS_KEY)]
    drawn = storage.path(report.key).stat().st_ino
    monkeypatch.setattr(ledger_lots, "ACCOUNTS_AT_ONCE", 7)
    for key in (ATTRITION_KEY, METHODS_KEY):
        storage.remove(key)
    assert build_attrition(study).problems == ()
    assert [storage.read_bytes(key) for key in (ATTRITION_KEY, METHODS_KEY)] == lost
    # It would be drawn again of other numbers.
    assert build_report(study) == report
    assert storage.path(report.key).stat().st_ino == drawn
    assert study_summary(study) == summary


def test_all_figures_are_there_and_explained(page: Page, report: Report) -> None:
    assert {attributes.get("id") for tag, attributes in page.tags if tag == "figure"} == FIGURES
    assert report.figures == len(DRAWN)
    assert report.problems == ()
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == len(DRAWN)
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert len(drawing["aria-label"] or "") > 60
    assert all(len(caption) > 200 for caption in page.texts_in("figcaption"))


def test_sums_equal_the_stored_ones(page: Page, accounts: pl.DataFrame) -> None:
    found = page.numbers("overview-records")
    assert found["fetched"] == accounts["records_fetched"].sum()
    assert found["kept, in the tables"] == accounts["records_kept"].sum()
    assert found["filtered, by the study's own choice"] == accounts["records_filtered"].sum()
    assert found["rejected, unusable"] == accounts["records_rejected"].sum()
    dates = page.numbers("overview-dates")
    assert dates["undated: no date that can be believed"] == accounts["undated"].sum() > 0
    assert page.numbers("overview-accounts")["complete"] == accounts["state"].eq("complete").sum()


@pytest.mark.parametrize(
    "table", ["overview-accounts", "overview-records", "overview-dates", "overview-proofs"]
)
def test_the_last_row_is_the_sum_of_the_others(page: Page, table: str) -> None:
    *parts, total = page.numbers(table).values()
    assert sum(parts) == total > 0


def test_states_equal_the_stored_ones(page: Page, accounts: pl.DataFrame) -> None:
    *rows, total = page.tables["account-states"][1:]
    shown = {row[0]: int(row[2]) for row in rows}
    expected: dict[str, int] = {}
    for state, reason in accounts.select("state", "reason").iter_rows():
        label = state if reason in (None, state) else f"{state} ({reason})"
        label = label.replace("_", " ")
        expected[label] = expected.get(label, 0) + 1
    assert shown == expected
    assert int(total[2]) == accounts.height


def test_records_by_day_equal_the_tables(study: Study, page: Page) -> None:
    head, *rows = page.tables["records-by-time"]
    assert head == ("day", *USUAL_TABLES)
    shown = {row[0]: dict(zip(USUAL_TABLES, (int(cell) for cell in row[1:]), strict=True)) for row in rows}
    assert min(shown) == "2024-09-27"
    assert max(shown) == "2024-12-02"
    for table in USUAL_TABLES:
        stored = pl.scan_parquet(study.root / f"tables/{table}/*/*.parquet").filter("in_range").collect()
        expected = dict(stored["created_at"].dt.strftime("%Y-%m-%d").value_counts().iter_rows())
        assert {day: counts[table] for day, counts in shown.items() if counts[table]} == expected
    by_type = {row[0]: row[1:] for row in page.tables["records-by-type"][1:]}
    in_period = sum(sum(counts.values()) for counts in shown.values())
    assert page.numbers("overview-dates")["dated within the study's period"] == in_period
    assert int(by_type["all types"][1].replace(",", "")) == in_period


def test_weeks_equal_the_tables(study: Study, page: Page, accounts: pl.DataFrame) -> None:
    stored = pl.concat(
        pl.read_parquet(study.root / f"tables/{table}/*/*.parquet")
        .filter("in_range")
        .select("did", "created_at")
        for table in USUAL_TABLES
    )
    start = pl.lit("2024-09-27").str.to_datetime(time_zone="UTC")
    weeks = stored.with_columns(week=(pl.col("created_at") - start).dt.total_days() // 7)
    expected = dict(weeks.group_by("week").agg(pl.col("did").n_unique()).iter_rows())
    shown = [int(row[1]) for row in page.tables["coverage-weeks"][1:]]
    assert shown == [expected.get(week, 0) for week in range(10)]
    assert page.tables["coverage-weeks"][1][2].startswith(f"{100 * shown[0] / _in_tables(accounts):.1f}")
    quantiles = {row[0]: row[1:] for row in page.tables["coverage-quantiles"][1:]}
    spans = weeks.group_by("did").agg(
        first=pl.col("created_at").min(), last=pl.col("created_at").max(), weeks=pl.col("week").n_unique()
    )
    least, most = spans.min().row(0)[1:], spans.max().row(0)[1:]
    assert quantiles["0%"] == (f"{least[0]:%Y-%m-%d}", f"{least[1]:%Y-%m-%d}", str(least[2]))
    assert quantiles["100%"] == (f"{most[0]:%Y-%m-%d}", f"{most[1]:%Y-%m-%d}", str(most[2]))


def test_hosts_equal_the_ledger(study: Study, page: Page, accounts: pl.DataFrame) -> None:
    rows = {row[0]: row[1:] for row in page.tables["host-speeds"][1:]}
    ledger = read_ledger(StudyStorage(study.root)).filter(pl.col("outcome") == "complete")
    sizes = dict(accounts.drop_nulls("pds_host").group_by("pds_host").len().iter_rows())
    named = {host for host in rows if host.endswith(".test")}
    assert named == {host for host, size in sizes.items() if size >= MIN_ACCOUNTS_TO_NAME}
    assert named != set(sizes), "no host of the study is small enough to be left unnamed"
    for host in named:
        downloads = ledger.filter(pl.col("pds_host") == host)
        assert rows[host][0] == str(sizes[host])
        assert rows[host][3] == str(downloads.height)
        assert float(rows[host][4].replace(",", "")) == pytest.approx(
            int(downloads["bytes_received"].sum()) / 1e6, abs=1e-3
        )
    assert int(rows["all hosts"][0]) == sum(sizes.values())
    assert int(rows["all hosts"][3]) == ledger.height


def test_reasons_agree_with_the_command_lines_summary(study: Study, page: Page) -> None:
    summary = study_summary(study)
    rows = page.tables["left-out-records"][1:]
    assert {row[0] for row in rows} == {"filtered", "rejected"}
    for _, reason, records, _ in rows:
        name = reason.replace(" ", "_")
        assert re.search(rf"^  {name} +{records}$", summary, re.MULTILINE), name
    told = page.numbers("overview-records")
    assert f"{told['kept, in the tables']:,} of {told['fetched']:,} fetched" in summary
    for table, kept, _ in page.tables["records-by-type"][1:-1]:
        assert re.search(rf"^  {table} +{kept}$", summary, re.MULTILINE), table


def test_the_same_data_give_the_same_bytes(study: Study, report: Report, html: str, tmp_path: Path) -> None:
    assert build_report(study) == report
    StudyStorage(study.root).remove(REPORT_KEY)
    script = (
        "import sys; from pathlib import Path; from backfill_dagster.config.loading import load_study\n"
        "from backfill_dagster.report.page import build_report\n"
        "print(build_report(load_study(Path(sys.argv[1]))).sha256)"
    )
    # Another process hashes in another order, and has settings of its own for what it draws.
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.grid: True\n")
    config = study.root.parent.parent / "study.yaml"
    done = subprocess.run(
        [sys.executable, "-c", script, str(config)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "PATH": "/usr/bin", "HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == report.sha256 == hashlib.sha256(html.encode()).hexdigest()


def test_the_page_needs_nothing_beside_it(html: str, page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_lead_somewhere(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'xlink:href="#([^"]+)"', html))
    assert used
    assert used <= set(ids)


def test_drawings_are_well_formed_and_their_text_is_text(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == len(DRAWN)
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.findall(".//{http://www.w3.org/2000/svg}text")
        assert not root.findall(".//{http://www.w3.org/2000/svg}style"), "it would hold for the whole page"


def test_nobody_is_named(study: Study, report: Report, html: str, accounts: pl.DataFrame) -> None:
    directory = pl.read_parquet(study.root / "directory.parquet")
    names = [*directory["did"], *accounts["handle"].drop_nulls(), *directory["handle"].drop_nulls()]
    assert len(names) > 150
    for name in names:
        assert name not in html
        assert name not in report.summary_markdown
    assert "did:" not in html
    assert "at://" not in html


def test_the_summary_holds_the_sums_and_no_syntax_of_strangers(report: Report, page: Page) -> None:
    summary = report.summary_markdown
    for name, number in page.numbers("overview-records").items():
        assert f"| {name} | {number:,} |" in summary.replace("\\", "")
    assert "\n| --- | --- | --- |\n" in summary
    [image] = re.findall(r"!\[[^\]]*\]\((.{30})", summary)
    assert image.startswith("data:image/png;base64,")
    assert len(summary) < 100_000


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    study = stored_study(tmp_path, [account(1, "pds.example")])
    StudyStorage(study.root).remove(study_files.ACCOUNTS_KEY)
    with pytest.raises(StorageError, match=r"accounts\.parquet is missing"):
        build_report(study)
    assert not StudyStorage(study.root).exists(REPORT_KEY)


def test_definitions_are_loaded_without_what_draws() -> None:
    script = (
        "import sys, backfill_dagster.definitions, backfill_dagster.report.page\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'matplotlib'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip().endswith("[]")


def _in_tables(accounts: pl.DataFrame) -> int:
    return accounts.filter(pl.col("shown") & pl.col("repo_rev").is_not_null()).height
