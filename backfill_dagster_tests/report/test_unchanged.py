"""A report of what it was made of before is not drawn again; one of anything else, or a damaged one, is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.report.drawing import Drawing
from backfill_dagster.report.page import REPORT_KEY, Report, build_report
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.report.stored import account, record, stored_study

AT = datetime(2024, 10, 3, 12, tzinfo=UTC)


class Drawn:
    """Counts the drawings that are made for a page, and makes none."""

    def __init__(self) -> None:
        self.number = 0

    def svg(self, drawing: Drawing, name: str, alt: str) -> str:
        self.number += 1
        return f"<svg>{name}</svg>"

    def by(self, study: Study) -> tuple[Report, int]:
        before = self.number
        report = build_report(study)
        return report, self.number - before


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    drawn = Drawn()
    monkeypatch.setattr(Drawing, "svg", lambda *arguments: drawn.svg(*arguments))
    return drawn


def studied(folder: Path, at: datetime = AT, **parts: Any) -> Study:
    kept = account(1, "pds.example", records_fetched=2, records_kept=2, posts=2)
    posts = [record(1, AT - timedelta(days=1)), record(1, at)]
    types = ["app.bsky.feed.post"]
    return stored_study(folder, [kept], tables={"posts": posts}, record_types=types, **parts)


def test_the_same_again_stays(drawn: Drawn, tmp_path: Path) -> None:
    study = studied(tmp_path)
    report, number = drawn.by(study)
    assert number == report.figures > 3
    written = (study.root / REPORT_KEY).stat()
    assert drawn.by(study) == (report, 0)
    assert drawn.by(studied(tmp_path)) == (report, 0)
    assert (study.root / REPORT_KEY).stat().st_mtime_ns == written.st_mtime_ns


@pytest.mark.parametrize(
    "damage", [lambda page: page[:-9], lambda page: page.replace(b"UTC", b"CET"), lambda _: b""]
)
def test_a_page_that_is_not_as_it_was_written_is_drawn_again(
    drawn: Drawn, tmp_path: Path, damage: Any
) -> None:
    study = studied(tmp_path)
    report, number = drawn.by(study)
    storage = StudyStorage(study.location)
    page = storage.read_bytes(REPORT_KEY)
    storage.write_bytes(REPORT_KEY, damage(page))
    assert drawn.by(study) == (report, number)
    assert storage.read_bytes(REPORT_KEY) == page


def test_what_no_word_tells_is_drawn_again_all_the_same(drawn: Drawn, tmp_path: Path) -> None:
    report, number = drawn.by(studied(tmp_path))
    # A second later on the same day: only the line of the account is longer by that.
    another, redrawn = drawn.by(studied(tmp_path, AT + timedelta(seconds=1)))
    assert redrawn == number
    assert another.summary_markdown == report.summary_markdown


def test_another_description_or_other_code_is_news(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, number = drawn.by(studied(tmp_path))
    assert drawn.by(studied(tmp_path, description="Another one."))[1] == number
    monkeypatch.setattr("backfill_dagster.report.drawing.drawn_by", lambda: "another version")
    assert drawn.by(studied(tmp_path, description="Another one."))[1] == number
