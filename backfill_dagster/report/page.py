"""Builds the report's page: one HTML file that needs nothing beside it, for the screen and for paper."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.report.identity import digest_of
from backfill_dagster.report.markup import element, table, text
from backfill_dagster.report.numbers import read_numbers
from backfill_dagster.report.overview import facts, overview_tables
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.report.figures.figure import NumbersTable, ReportFigure
    from backfill_dagster.report.numbers import ReportNumbers

REPORT_KEY = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """The page that was written, and what of it can be shown elsewhere.

    `summary_markdown` is a short form of it; `figures` counts the figures that have something to show; `problems`
    are sums that should agree and do not, as sentences.
    """

    key: str
    bytes: int
    sha256: str
    figures: int
    problems: tuple[str, ...]
    summary_markdown: str


def build_report(study: Study) -> Report:
    """Write the page of a study whose accounts and tables are built; the same data give the same bytes.

    A page that is made of the same already, and is whole, stays: to draw takes longer than all else that a run does
    which has nothing new. Raises StorageError if a file is missing, or cannot be read or written.
    """
    # Matplotlib takes a while to import, and whoever loads the definitions does not draw.
    from backfill_dagster.report.drawing import drawn_by
    from backfill_dagster.report.figures.all import all_figures
    from backfill_dagster.report.markdown import summary_markdown

    storage, numbers = StudyStorage(study.location), read_numbers(study)
    figures = all_figures(numbers)
    words = _page(study, numbers, figures, [figure.name if figure.drawing else "" for figure in figures])
    made_of = digest_of([drawn_by(), numbers, words])
    page = storage.read_bytes(REPORT_KEY) if storage.exists(REPORT_KEY) else b""
    if not _is_sealed(page, made_of):
        drawings = [
            figure.drawing.svg(figure.name, figure.alt) if figure.drawing else "" for figure in figures
        ]
        page = _sealed(_page(study, numbers, figures, drawings), made_of)
        storage.write_bytes(REPORT_KEY, page)
    [overview] = [figure.drawing for figure in figures if figure.name == _PLOT_IN_SUMMARY]
    plot = overview.png_uri(_PLOT_DOTS_PER_INCH) if overview else ""
    return Report(
        key=REPORT_KEY,
        bytes=len(page),
        sha256=hashlib.sha256(page).hexdigest(),
        figures=sum(figure.drawing is not None for figure in figures),
        problems=tuple(numbers.problems),
        summary_markdown=summary_markdown(study, numbers, figures, plot),
    )


# The digest of all else on the page and of what it was made of; so it tells of a page that was changed, too.
_SEAL = '<meta name="seal" content="{}">'


def _sealed(page: str, made_of: str) -> bytes:
    seal = hashlib.sha256(f"{made_of}{page}".encode()).hexdigest()
    return page.replace(_SEAL, _SEAL.format(seal), 1).encode()


def _is_sealed(page: bytes, made_of: str) -> bool:
    opening, _, closing = _SEAL.partition("{}")
    before, _, rest = page.decode(errors="replace").partition(opening)
    _, _, after = rest.partition(closing)
    return _sealed(f"{before}{_SEAL}{after}", made_of) == page


_PLOT_IN_SUMMARY = "records-per-day"
_PLOT_DOTS_PER_INCH = 80
_STYLE = """
:root {
  color-scheme: light; --page: #fff; --ink: #1a1a1a; --faint: #5c5c5c; --line: #d4d4d4; --card: #f6f6f4;
  --warn: #8a2c00; --warn-page: #fdf0e8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    color-scheme: dark; --page: #16181b; --ink: #e8e8e6; --faint: #a8abae; --line: #3b3f44; --card: #202327;
    --warn: #ffb38a; --warn-page: #38221a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; line-height: 1.35; margin: 0 0 .75rem; }
.description { margin: 0 0 1.25rem; color: var(--faint); white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0 0 1.5rem; }
dt { color: var(--faint); }
dd { margin: 0; }
.sums {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem 2rem; align-items: start;
}
.warning {
  border-left: .3rem solid var(--warn); background: var(--warn-page); color: var(--warn); padding: .6rem 1rem;
}
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; color: var(--faint); }
.number, th.number { text-align: right; white-space: nowrap; }
.sums tbody tr:last-child td { font-weight: 600; border-bottom: 0; border-top: 2px solid var(--line); }
figure { margin: 2.75rem 0 0; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .75rem; overflow-x: auto; }
.plot svg { display: block; width: 100%; min-width: 34rem; height: auto; }
.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin: .75rem 0; color: var(--faint); font-size: .925rem; }
details { font-size: .925rem; }
section { margin: 2.75rem 0 0; }
summary { cursor: pointer; }
.rows { overflow-x: auto; margin: .5rem 0 1rem; }
@page { size: A4; margin: 16mm 15mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h1 { font-size: 17pt; }
  h2 { font-size: 11.5pt; break-after: avoid; }
  figure { break-inside: avoid; margin-top: 10mm; }
  .plot { border: 0; padding: 0; overflow: visible; }
  .plot svg { min-width: 0; }
  .sums { grid-template-columns: 1fr 1fr; gap: 4mm 10mm; }
  .sums table, tr { break-inside: avoid; }
  figcaption { font-size: 8.5pt; color: #333; }
  table { font-size: 8.5pt; }
  details:not([open]) { display: none; }
}
"""


def _page(
    study: Study, numbers: ReportNumbers, figures: Sequence[ReportFigure], drawings: Sequence[str]
) -> str:
    title = f"Study {study.name}: report"
    head = element(
        "head",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Whatever stands in here, nothing is loaded and nothing runs.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="referrer" content="no-referrer">',
        _SEAL,
        text("title", title),
        element("style", _STYLE),
    )
    body = element(
        "body",
        element("main", _header(study, numbers), *map(_figure, figures, drawings), _methods(numbers)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _header(study: Study, numbers: ReportNumbers) -> str:
    described = text("p", study.description, class_="description") if study.description else ""
    pairs = "".join(text("dt", name) + text("dd", value) for name, value in facts(study, numbers))
    problems = [
        text("p", f"These numbers do not agree: {problem}. Rebuild the study's tables.", class_="warning")
        for problem in numbers.problems
    ]
    sums = element("div", *map(_numbers_table, overview_tables(numbers)), class_="sums")
    return element("header", text("h1", study.name), described, element("dl", pairs), *problems, sums)


def _figure(figure: ReportFigure, drawing: str) -> str:
    numbers = "".join(element("div", _numbers_table(one), class_="rows") for one in figure.tables)
    return element(
        "figure",
        text("h2", figure.title),
        element("div", drawing, class_="plot") if drawing else "",
        text("figcaption", figure.caption) if drawing else "",
        element("details", text("summary", "The numbers behind this figure"), numbers) if numbers else "",
        id=figure.name,
    )


def _methods(numbers: ReportNumbers) -> str:
    """Show the paragraph for a paper, which is Markdown of a title and plain paragraphs."""
    _, *paragraphs = numbers.methods.strip().split("\n\n")
    told = (text("p", " ".join(paragraph.split())) for paragraph in paragraphs)
    return element("section", text("h2", "Methods, in words for a paper"), *told, id="methods")


def _numbers_table(one: NumbersTable) -> str:
    return table(one.name, one.caption, one.head, one.rows)
