"""How figures are drawn: one style, a palette that colour-blind readers can tell apart, and SVG that repeats itself.

The palette is Okabe and Ito's (2008). Colour never says anything alone: hatches, markers or labels say it too, so that
a figure holds in grey. Figures are dark on white whatever the theme of the page around them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator

from backfill_dagster.report.identity import digest_of
from backfill_dagster.report.wording import compact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes

    from backfill_dagster.report.days import DaySpan

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
INK, FAINT = "#1a1a1a", "#8a8a8a"
# As wide as the text of an A4 page, in inches.
WIDTH = 7.1

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    # A host's name may hold a dollar sign, and is no formula for that.
    "text.parse_math": False,
    "svg.fonttype": "none",
    # Ids are made from content and this, not from chance.
    "svg.hashsalt": "backfill_dagster",
}
_FONT, _FONTS = "'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"
# What Matplotlib counts days from.
_EPOCH = date(1970, 1, 1)
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@cache
def drawn_by() -> str:
    """Return the identity of the code that draws; from another one, the same numbers may look otherwise."""
    digest = hashlib.sha256(mpl.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style, whatever the reader's own settings of Matplotlib are, for the time of the block."""
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in another script is measured a little wrong, and shown right by the page's own fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this many inches, that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasSVG(figure)
    return figure


def lay_out(figure: Figure) -> None:
    """Give what is in a figure its final place, unless it has it: that takes as long as to draw it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


@dataclass(frozen=True)
class Drawing:
    """A figure that is yet to be drawn: what makes it, in the report's style, and all that it is made of.

    What was drawn of the same before in this process is drawn once: steps of the attrition for a file of their own
    and for the page, and most figures again when a study is collected anew and little has changed.
    """

    make: Callable[..., Figure]
    made_of: tuple[object, ...]

    def svg(self, name: str, alt: str) -> str:
        """Return it as an `<svg>` element to stand in a page, with `alt` for who cannot see it.

        Its ids begin with `name`, so that those of several figures do not meet in one page.
        """
        drawn = _once(("svg", name, self._identity), lambda: _svg(self._figure, name))
        return drawn.replace(_ALT, escape(alt), 1)

    def png_uri(self, dots_per_inch: int) -> str:
        """Return it as a data URI of a PNG, for readers of Markdown that show nothing else."""
        return _once(("png", dots_per_inch, self._identity), lambda: _png_uri(self._figure, dots_per_inch))

    @cached_property
    def _figure(self) -> Figure:
        with style():
            return self.make(*self.made_of)

    @cached_property
    def _identity(self) -> str:
        return f"{self.make.__module__}.{self.make.__qualname__} {digest_of(self.made_of)}"


def _once(key: tuple[object, ...], draw: Callable[[], str]) -> str:
    if key not in _drawn:
        with style():
            _drawn[key] = draw()
        if len(_drawn) > _MOST_DRAWN:
            _drawn.pop(next(iter(_drawn)))
    return _drawn[key]


# Of some tens of kilobytes each.
_MOST_DRAWN = 64
_drawn: dict[tuple[object, ...], str] = {}
_ALT = "what is to be seen"


def _svg(figure: Figure, name: str) -> str:
    # Not by `savefig`, which draws everything twice: once to lay it out.
    lay_out(figure)
    written = io.StringIO()
    FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(written.getvalue())  # noqa: S314  Matplotlib's own output
    # A style sheet would hold for the whole page, whose own says the same; the metadata say nothing.
    root[:] = [
        child
        for child in root
        if child.tag != f"{{{_SVG}}}metadata" and child.find(f"{{{_SVG}}}style") is None
    ]
    for element in root.iter():
        _adapt(element, name)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", _ALT)
    return ET.tostring(root, encoding="unicode")


def _png_uri(figure: Figure, dots_per_inch: int) -> str:
    # In the same places, whether it was drawn as SVG before or not.
    lay_out(figure)
    figure.set_dpi(dots_per_inch)
    written = io.BytesIO()
    FigureCanvasAgg(figure).print_png(written, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def count_axis(axes: Axes, axis: str, bins: int = 5) -> None:
    """Have an axis begin at 0 and count in whole numbers, written short."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(MaxNLocator(nbins=bins, integer=True, min_n_ticks=2))
    chosen.set_major_formatter(FuncFormatter(lambda number, _: compact(number)))
    axes.grid(visible=True, axis="x" if axis == "x" else "y")


def day_axis(axes: Axes, span: DaySpan) -> None:
    """Have the horizontal axis show the days of a span."""
    locator = AutoDateLocator(minticks=3, maxticks=9)  # type: ignore[no-untyped-call]
    dates = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    # Asked once: Matplotlib would do so a dozen times for each panel, and count days anew each time.
    ends = (datetime.combine(day, time(), UTC) for day in (span.first, span.last + timedelta(days=1)))
    places = locator.tick_values(*ends)  # type: ignore[no-untyped-call]
    labels = FixedFormatter(dates.format_ticks(places))  # type: ignore[no-untyped-call]
    labels.set_offset_string(dates.get_offset())  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(labels)
    axes.set_xlim(day_place(span.first), day_place(span.last) + 1)
    axes.set_xlabel("day of creation (UTC)")


def day_place(day: date) -> float:
    """Return where a day begins on an axis of days, in Matplotlib's own count."""
    return float((day - _EPOCH).days)


def labelled_bars(
    axes: Axes,
    labels: Sequence[str],
    numbers: Sequence[int],
    colours: Sequence[str],
    hatches: Sequence[str],
    written: Callable[[int], str],
) -> None:
    """Draw horizontal bars from the top down, the number of each beside it."""
    places = range(len(labels))
    bars = axes.barh(places, numbers, height=0.72, color=colours, edgecolor=INK, linewidth=0.5)
    for bar, hatch in zip(bars, hatches, strict=True):
        bar.set_hatch(hatch)
    axes.bar_label(bars, labels=[written(number) for number in numbers], padding=3, fontsize=7.5)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    # Room for the numbers, which stand beyond the bars.
    axes.set_xlim(0, max([*numbers, 1]) * 1.28)
    count_axis(axes, "x")


def _adapt(element: ET.Element, name: str) -> None:
    for attribute, value in element.attrib.items():
        if attribute == "id":
            element.set(attribute, f"{name}-{value}")
        elif attribute == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(attribute, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
        elif attribute == "style" and _FONT in value:
            element.set(attribute, value.replace(_FONT, _FONTS))
