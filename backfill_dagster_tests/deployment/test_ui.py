"""What a person does in Dagster's UI, done by a browser: look, materialize, launch a backfill, look again.

Opt in with `pytest --browser`. Needs Chromium as `chromium`, and Playwright (`pip install -e '.[ui]'`).
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.deployment.dagster_dev import Deployment, dagster_dev

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

SETTINGS = SandboxSettings(seed=5, accounts=30, hosts=4, records=40)
CHOSEN = ["pds1.sandbox.test", "pds2.sandbox.test"]
ASSETS = ["source_dids", "directory", "repos", "records", "posts", "replies", "likes", "reposts", "follows"]
ASSETS += ["blocks", "undated", "accounts", "report"]
# Of a page, and of what Dagster runs in processes of their own.
PAGE_SECONDS = 60
RUN_SECONDS = 180
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
_ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
# Dagster's own welcome, which lies over the first page that is opened.
_NO_WELCOME = "localStorage.setItem('communityNux', '1')"


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    with SandboxNetwork(SETTINGS) as network:
        yield network


@pytest.fixture
def deployment(network: SandboxNetwork, tmp_path: Path) -> Iterator[Deployment]:
    study = {
        "name": "study",
        "source": {"type": "inline", "dids": network.dids},
        "storage": {"path": str(tmp_path / "data")},
        "processing": {"requests_per_second": 100, "workers": 2},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
        },
    }
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "study.yaml").write_text(yaml.safe_dump({"backfill": study}))
    with dagster_dev(tmp_path) as deployment:
        yield deployment


@contextmanager
def browser_page(folder: Path) -> Iterator["Page"]:
    """Open a page in Chromium; if what is done there fails, say where the picture of it is."""
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed"
    expect.set_options(timeout=PAGE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        context = browser.new_context(viewport={"width": 1500, "height": 950})
        context.add_init_script(_NO_WELCOME)
        context.set_default_timeout(PAGE_SECONDS * 1000)
        page = context.new_page()
        try:
            yield page
        except BaseException as error:
            picture = folder / "failed.png"
            page.screenshot(path=picture)
            error.add_note(f"{page.url} looked like {picture}")
            raise
        finally:
            browser.close()


def metadata(page: "Page", key: str, value: int) -> "Locator":
    """Return the value in the row of a metadata table that has this key."""
    row = page.locator("tr").filter(has=page.get_by_text(key, exact=True)).first
    return row.get_by_text(str(value), exact=True)


def residents(network: SandboxNetwork) -> Counter[str]:
    """Count the accounts that the directory leads to a host for, by host."""
    return Counter(account.pds.removeprefix("http://") for account in network.truth.accounts() if account.pds)


def finished(deployment: Deployment, job: str) -> bool:
    return any(run.job == job and run.status == "SUCCESS" for run in deployment.runs())


def test_the_ui_shows_the_study_and_a_backfill_of_two_hosts_runs_from_it(
    deployment: Deployment, network: SandboxNetwork, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    accounts = residents(network)
    with browser_page(tmp_path) as page:
        # Beside the graph, of which only a part may fit, all assets are listed.
        page.goto(f"{deployment.url}/asset-groups")
        for asset in ASSETS:
            expect(page.get_by_text(asset, exact=True).first).to_be_visible()

        # The hosts are known as soon as the directory is resolved.
        page.goto(f"{deployment.url}/locations/backfill_dagster/jobs/study_stage_discover")
        page.get_by_role("button", name="Materialize all").click()
        deployment.wait_for("discovery", lambda: finished(deployment, "study_stage_discover"), RUN_SECONDS)

        page.goto(f"{deployment.url}/assets/study/repos")
        page.get_by_role("button", name="Materialize").first.click()
        dialog = page.get_by_role("dialog").filter(has_text="Launch runs to materialize")
        dialog.get_by_text("Select a partition").click()
        hosts = page.get_by_role("menu")
        for host in CHOSEN:
            hosts.get_by_text(host, exact=True).first.click()
        page.keyboard.press("Escape")
        expect(dialog.get_by_text("2 partitions")).to_be_visible()
        dialog.get_by_role("button", name="Launch backfill").click()
        expect(dialog).to_be_hidden()

        def backfill_runs() -> list[str]:
            return [run.status for run in deployment.runs() if "dagster/backfill" in run.tags]

        # Two neighbours are one run.
        deployment.wait_for("the backfill", lambda: backfill_runs() == ["SUCCESS"], RUN_SECONDS)
        [backfill] = {run.tags.get("dagster/backfill") for run in deployment.runs()} - {None}
        page.goto(f"{deployment.url}/runs/b/{backfill}")
        expect(page.get_by_text(re.compile("^(Success|Completed|Succeeded)$")).first).to_be_visible()

        page.goto(f"{deployment.url}/assets/study/repos?view=partitions")
        expect(page.get_by_text("Materialized (2)")).to_be_visible()
        expect(page.get_by_text("Missing (2)")).to_be_visible()
        expect(page.get_by_text("Failed (0)")).to_be_visible()
        for host in CHOSEN:
            page.get_by_text(host, exact=True).first.click()
            expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
            for key in ("accounts", "run_accounts"):
                expect(metadata(page, key, accounts[host])).to_be_visible()

        # How far the fetch was, over time: what the documentation tells people to look at.
        page.goto(f"{deployment.url}/assets/study/repos")
        page.get_by_role("button", name="Plots").first.click()
        page.get_by_role("button", name="Events").last.click()
        for plot in (
            "accounts_done",
            "accounts_per_second",
            "hosts_parked",
            "failed",
            "megabytes_per_second",
        ):
            expect(page.get_by_text(f"progress/{plot}", exact=True).first).to_be_visible()

        # Records, tables and accounts follow by themselves.
        deployment.wait_for(
            "the tables", lambda: finished(deployment, "study_stage_accounts"), 2 * RUN_SECONDS
        )
        page.goto(f"{deployment.url}/assets/study/accounts?view=checks&checkDetail=records_reconcile")
        expect(page.get_by_text("Passed", exact=True).first).to_be_visible()
        page.get_by_text("every_account_attempted", exact=True).first.click()
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
        others = accounts.total() - sum(accounts[host] for host in CHOSEN)
        expect(metadata(page, "not_attempted", others)).to_be_visible()

        page.goto(f"{deployment.url}/assets/study/report")
        path = page.get_by_text(re.compile(r"report\.html$")).first.inner_text()
        page.goto(Path(path).as_uri())
        expect(page.get_by_role("heading", level=1)).to_contain_text("study")
        # Where there is nothing to draw, a sentence stands in the figure's place.
        pictures = page.locator("figure:has(svg)")
        assert pictures.count() >= 5
        for number in range(pictures.count()):
            box = pictures.nth(number).bounding_box()
            assert box is not None
            assert box["width"] > 300
            assert box["height"] > 100
