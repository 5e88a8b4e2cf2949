"""Report pages of evaluation and training: sections of tables, plots and example queries in one self-contained file."""

from __future__ import annotations

import html
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mg_milvus import __version__
from mg_milvus.errors import MissingPackageError, QueryError
from mg_milvus.files import escape_controls, file_link
from mg_milvus.html.pages import template
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Rows = Mapping[str, Mapping[str, float | None]]

PAGE = "index.html"
HUES = 6
"""Colours of the page's palette, ``--h0`` to ``--h5``."""
THUMBNAIL_SIDE = 224
"""Longest side of a thumbnail in pixels: about twice what the page shows, for dense screens."""

_VARIABLES = {f"#00000{index + 1}": f"var(--h{index})" for index in range(HUES)} | {
    "#00000a": "var(--ink)",
    "#00000b": "var(--soft)",
    "#00000c": "var(--line)",
}
"""Colour to draw with -> CSS variable that replaces it, so that plots follow the page's light or dark theme."""
_COLOUR = {variable.removeprefix("var(--").removesuffix(")"): colour for colour, variable in _VARIABLES.items()}
_LONGEST_LABEL = 40
"""Characters of a name beside an axis."""
_SMALL, _TEXT = 9, 9.5
"""Font sizes in points, which become the SVG's own units: a plot as wide as a phone shows them at about this size."""


@dataclass(frozen=True, slots=True)
class Table:
    """Column names, and for each row its name and its cells: text, and whether it is bold."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, bool]]]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its title, its key (name and CSS class of each line) and a note below."""

    title: str
    svg: str
    key: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """One result of an example query.

    Attributes:
        path: the image, as ``path_text`` writes it.
        text: how near it is, for people: ``"12 bits"``, ``"0.0312"``.
        relevant: whether it is relevant to the query.
    """

    path: str
    text: str
    relevant: bool


@dataclass(frozen=True, slots=True)
class ExampleQuery:
    """A query that the report shows.

    Attributes:
        path: the image, as ``path_text`` writes it.
        average_precision: in 0 .. 1.
        results: best first.
    """

    path: str
    average_precision: float
    results: Sequence[ExampleResult]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence on how to read what follows, and a table, plots or queries.

    ``layout``: CSS class of the grid of plots.
    """

    heading: str
    text: str
    table: Table | None = None
    plots: Sequence[Plot] = ()
    queries: Sequence[ExampleQuery] = ()
    layout: str = ""


def check_report(folder: str | os.PathLike[str]) -> None:
    """Check before the work whether a report can be written; create its folder.

    Raises:
        MissingPackageError: matplotlib is not installed.
        QueryError: the folder cannot be made.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "a report needs matplotlib, which is not installed: pip install 'mg-milvus[report]'"
        ) from error
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(f"'{folder}' cannot be made: {error.strerror}; name a folder to write to") from error


def write_report(
    folder: str | os.PathLike[str], title: str, setup: Sequence[tuple[str, str]], sections: Sequence[Section]
) -> Path:
    """Write ``folder/index.html``, one file that loads nothing else; the folder is created if need be.

    The same data and images give the same bytes. Images that cannot be read become placeholders.

    Args:
        folder: where to write; an ``index.html`` there is replaced.
        title: heading of the page.
        setup: name (may be empty) and value of each fact below the heading.
        sections: in the order of the page.

    Returns:
        Path of the page.

    Raises:
        QueryError: the page cannot be written.
    """
    check_report(folder)
    page = template("report.html.jinja").render(
        title=title, setup=setup, sections=sections, image_of=_image_of, version=__version__
    )
    file = Path(folder) / PAGE
    try:
        file.write_bytes(page.encode())
    except OSError as error:
        raise QueryError(f"'{file}' cannot be written: {error.strerror}; name a folder to write to") from error
    return file


def _image_of(path: str) -> dict[str, Any]:
    file = text_path(path)
    return {
        "path": str(file),
        "name": "/".join(file.parts[-2:]),
        "link": file_link(file),
        "thumbnail": thumbnail(file, THUMBNAIL_SIDE),
    }


def table(rows: Rows, best_of: Callable[[str], bool] = lambda _: False) -> Table:
    """A table of numbers; the largest fraction of the columns that ``best_of`` takes is bold, unless all are equal."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    largest = {}
    for column in columns:
        known = [value for row in rows.values() if isinstance(value := row.get(column), float) and value == value]
        if best_of(column) and known and number(min(known)) != number(max(known)):
            largest[column] = number(max(known))
    texts = {name: [(column, number(row.get(column))) for column in columns] for name, row in rows.items()}
    return Table(
        columns,
        [(name, [(text, largest.get(column) == text) for column, text in cells]) for name, cells in texts.items()],
    )


def number(value: float | None) -> str:
    """Integers in full, fractions with three decimals, small ones as powers of ten, unknown ones as a dash."""
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


class CurveOver(NamedTuple):
    """What a curve of precision is drawn over: the plot's title, the axis' label and scale, and its end, if fixed."""

    title: str
    label: str
    scale: str = "linear"
    end: float | None = None


RECALL = CurveOver("Precision over recall", "recall", end=1.0)
RANK = CurveOver("Precision of the first N", "N", "log")
RADIUS = CurveOver("Precision within a Hamming radius", "radius in bits")


def curve_plot(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], styles: Mapping[str, tuple[str, bool]],
    over: CurveOver = RECALL,
) -> str:  # fmt: skip
    """Precision over recall, rank or radius, all curves in one plot.

    Args:
        curves: name -> recall, rank or radius (m,), precision (m,) in 0 .. 1.
        styles: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``), and whether the line is dashed.
        over: ``RECALL``, ``RANK`` or ``RADIUS``.
    """
    figure, axes = _axes(4.6, 3.0)
    for name, (places, precision) in curves.items():
        colour, dashed = styles[name]
        axes.plot(places, precision, color=_COLOUR[colour], linewidth=1.7, linestyle="--" if dashed else "-")
    axes.set(xscale=over.scale, ylim=(0, 1.02), xlabel=over.label, ylabel="precision")
    if over.end is not None:
        axes.set_xlim(0, over.end)
    if over.scale == "log":
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color=_COLOUR["line"], linewidth=0.6)
    return _svg(figure, over.title)


def epoch_plot(
    name: str, lines: Mapping[str, NDArray[np.float64]], colours: Mapping[str, str], marked: int, *, share: bool = False
) -> str:
    """Values by epoch, all lines in one plot.

    Args:
        name: label of the axis, unique on the page.
        lines: name -> (epochs,) values from epoch 1 on; NaN is not drawn.
        colours: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``).
        marked: the epoch with a dashed line.
        share: the values lie in 0 .. 1, and the axis starts at 0.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(4.6, 2.6)
    axes.axvline(marked, color=_COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
    epochs = max((len(values) for values in lines.values()), default=1)
    for line, values in lines.items():
        style = "o-" if len(values) < 30 else "-"  # a single epoch is a point
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, style, color=_COLOUR[colours[line]], linewidth=1.7, markersize=3)
    axes.set(xlim=(0.5, epochs + 0.5), xlabel="epoch")
    axes.set_ylabel(_label(name), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if share:
        highest = max((float(np.nanmax(values)) for values in lines.values() if np.isfinite(values).any()), default=1.0)
        axes.set_ylim(0, min(1.02, 1.2 * highest) or 1)
    axes.grid(color=_COLOUR["line"], linewidth=0.6)
    return _svg(figure, name)


def bar_plot(bars: Mapping[str, float], colours: Mapping[str, str], reference: float | None) -> str:
    """Horizontal bars of mAP with their values, the first on top; NaN has no bar.

    Args:
        bars: name -> value in 0 .. 1.
        colours: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``).
        reference: where to draw a dashed line across; None: nowhere.
    """
    figure, axes = _axes(4.6, 0.55 + 0.26 * len(bars))
    places = np.arange(len(bars))
    values = np.array(list(bars.values()), dtype=np.float64)
    lengths = np.nan_to_num(values)
    axes.barh(places, lengths, height=0.66, color=[_COLOUR[colours[name]] for name in bars])
    style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": _SMALL, "color": _COLOUR["ink"]}
    for place, value in zip(places, values, strict=True):
        text = "–" if np.isnan(value) else f"{value:.3f}"
        axes.text(1, float(place), text, transform=axes.get_yaxis_transform(), **style)
    if reference is not None:
        axes.axvline(reference, color=_COLOUR["ink"], linewidth=1.1, linestyle=(0, (4, 3)))
    axes.set_yticks(places, [_label(name) for name in bars], parse_math=False, fontsize=_TEXT, color=_COLOUR["ink"])
    longest = max(lengths.max(), reference or 0.0) or 1.0
    axes.set(xlim=(0, 1.2 * longest), ylim=(len(bars) - 0.4, -0.6), xlabel="mAP")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "mAP")


def histogram_plot(name: str, same: np.ndarray, different: np.ndarray, colour: str) -> str:
    """Share of the relevant and of the other pairs at each Hamming distance; each adds up to one.

    Args:
        name: of the granularity.
        same: (bits + 1,) number of relevant pairs at each distance.
        different: (bits + 1,) of the other pairs, drawn in ``"soft"``.
        colour: of the relevant pairs.
    """
    figure, axes = _axes(4.0, 1.9)
    edges = np.arange(len(same) + 1) - 0.5
    for counts, shade in ((different, "soft"), (same, colour)):
        share = counts / max(1, counts.sum())
        axes.stairs(share, edges, fill=True, color=_COLOUR[shade], alpha=0.3)
        axes.stairs(share, edges, color=_COLOUR[shade], linewidth=1.4)
    furthest = np.max(np.flatnonzero(same + different), initial=0)
    axes.set(xlim=(-0.5, furthest + 0.5), xlabel="Hamming distance in bits", yticks=[])
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, f"Hamming distances of {name} codes")


def _label(name: str) -> str:
    """A name beside an axis, truncated so that it leaves room for the plot."""
    text = escape_controls(name)
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of this size in inches, in the page's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_COLOUR["line"])
    axes.tick_params(colors=_COLOUR["soft"], labelsize=_SMALL, length=3)
    axes.xaxis.label.set(color=_COLOUR["soft"], fontsize=_SMALL)
    axes.yaxis.label.set(color=_COLOUR["soft"], fontsize=_SMALL)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as one svg element; the label, which makes its ids unique, must be unique on the page."""
    from matplotlib import rc_context

    label = escape_controls(label)
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    # Without its own size the plot is as wide as the page allows.
    head = re.sub(r' (width|height)="[^"]*"', "", head) + f' role="img" aria-label="{html.escape(label)}">'
    # Style rules would apply to the whole page, and matplotlib numbers groups alike in every figure.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;]*;", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(f": {colour}", f": {variable}")
    return head + body.strip()
