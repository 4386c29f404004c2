from pathlib import Path

import pytest

from backfill_dagster_tests.docs.pages import DEPLOYMENTS, PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", [*PAGES, *DEPLOYMENTS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text())}
    assert {page for page in PAGES if page.parent.name != ROOT.name} - listed == {index}


def test_headings_are_named_as_github_names_them() -> None:
    page = "# What's `new`?\n## A [link](x.md) & more\n## Twice\n```sh\n# none\n```\n## Twice\n"
    assert anchors(page) == {"whats-new", "a-link--more", "twice", "twice-1"}
    assert links("[a](b.md#c) ![d](e.png) [f [g]](h.md) `x`") == ["b.md#c", "e.png", "h.md"]
