"""Reads a report's page as a browser does: its tables by name, its texts, its elements."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "link", "img"}


@dataclass
class Page:
    """What a page holds. Rows of tables are tuples of texts, the head first; texts are told by their element."""

    tables: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def numbers(self, table: str) -> dict[str, int]:
        """Return the first number of each row of a table by the name of the row."""
        return {row[0]: int(row[1].replace(",", "")) for row in self.tables[table][1:]}

    def texts_in(self, tag: str) -> list[str]:
        """Return the texts that stand right in elements of a kind."""
        return [text for inside, text in self.texts if inside == tag]

    @property
    def whole_text(self) -> str:
        """All that can be read, styles apart."""
        return "\n".join(text for tag, text in self.texts if tag != "style")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[str] = []
        self._rows: list[tuple[str, ...]] = []
        self._row: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.page.tags.append((tag, attributes))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "table":
            assert attributes["id"] is not None
            self._rows = self.page.tables[attributes["id"].removeprefix("table-")] = []
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._row.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "tr":
            self._rows.append(tuple(self._row))

    def handle_data(self, data: str) -> None:
        if not data.strip():
            return
        self.page.texts.append((self._open[-1], data))
        if self._open[-1] in ("td", "th"):
            self._row[-1] += data

    def close(self) -> None:
        super().close()
        assert self._open == []


def read_page(html: str) -> Page:
    """Read a page whose elements are all closed, in their order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page
