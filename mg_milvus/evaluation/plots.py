"""The plots of a report as SVG elements that stand in a page: in its colours and its font, with ids of their own.

Needs matplotlib, of which no backend is chosen and no setting is changed for others.
"""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.display import printable
from mg_milvus.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["HUES", "bar_plot", "check_matplotlib", "curve_plot", "epoch_plot", "histogram_plot"]

HUES = 6
"""Colours of the page's palette, ``--h0`` to ``--h5``."""

_STANDS_FOR = {f"#00000{index + 1}": f"var(--h{index})" for index in range(HUES)} | {
    "#00000a": "var(--ink)",
    "#00000b": "var(--soft)",
    "#00000c": "var(--line)",
}
"""Colour to draw with -> what the page knows it as, so that dark pages have plots for the dark."""

_COLOUR = {meaning.removeprefix("var(--").removesuffix(")"): colour for colour, meaning in _STANDS_FOR.items()}

_LONGEST_WORD = 40
"""Characters of a name beside an axis."""

_SMALL, _TEXT = 9, 9.5
"""Font sizes in points, which become the SVG's own units: a plot as wide as a phone shows them at about this size."""


def check_matplotlib() -> None:
    """Tell before the work is done whether plots can be made.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "a report needs matplotlib, which is not installed: pip install 'mg-milvus[report]'"
        ) from error


def curve_plot(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], styles: Mapping[str, tuple[str, bool]]) -> str:
    """Precision over recall, all curves in one plot; the page names them.

    Args:
        curves: name -> recall (m,), precision (m,), in 0 .. 1.
        styles: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``), and whether the line is dashed.
    """
    figure, axes = _plot(4.6, 3.0)
    for name, (recall, precision) in curves.items():
        colour, dashed = styles[name]
        axes.plot(recall, precision, color=_COLOUR[colour], linewidth=1.7, linestyle="--" if dashed else "-")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color=_COLOUR["line"], linewidth=0.6)
    return _svg(figure, "Precision over recall")


def epoch_plot(
    lines: Mapping[str, NDArray[np.float64]], colours: Mapping[str, str], what: str, marked: int, *, share: bool
) -> str:
    """A figure by epoch, all lines in one plot; the page names them.

    Args:
        lines: name -> (epochs,) values of the epochs from 1.
        colours: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``).
        what: the figure; the page's only plot of it.
        marked: the epoch where a dashed line stands.
        share: the values lie in 0 .. 1, and the axis begins at 0.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _plot(4.6, 2.6)
    axes.axvline(marked, color=_COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
    most = 1
    for name, values in lines.items():
        most = max(most, len(values))
        style = "o-" if len(values) < 30 else "-"  # one epoch alone is a point
        axes.plot(
            np.arange(1, len(values) + 1), values, style, color=_COLOUR[colours[name]], linewidth=1.7, markersize=3
        )
    axes.set(xlim=(0.5, most + 0.5), xlabel="epoch")
    axes.set_ylabel(_word(what), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if share:
        highest = max((float(np.nanmax(values)) for values in lines.values() if np.isfinite(values).any()), default=1.0)
        axes.set_ylim(0, min(1.02, 1.2 * highest) or 1)
    axes.grid(color=_COLOUR["line"], linewidth=0.6)
    return _svg(figure, what)


def bar_plot(bars: Mapping[str, float], colours: Mapping[str, str], reference: float | None) -> str:
    """Bars from the left with their values, the first on top; NaN has no bar.

    Args:
        bars: name -> value in 0 .. 1.
        colours: name -> colour (``"h0"`` .. ``"h5"``, ``"soft"``).
        reference: where to draw a dashed line across; None: nowhere.
    """
    figure, axes = _plot(4.6, 0.55 + 0.26 * len(bars))
    places = np.arange(len(bars))
    values = np.array(list(bars.values()), dtype=np.float64)
    lengths = np.nan_to_num(values)
    axes.barh(places, lengths, height=0.66, color=[_COLOUR[colours[name]] for name in bars])
    right = axes.get_yaxis_transform()
    for place, value in zip(places, values, strict=True):
        text = "–" if np.isnan(value) else f"{value:.3f}"
        axes.text(
            1, float(place), text, transform=right, ha="right", va="center", fontsize=_SMALL, color=_COLOUR["ink"]
        )
    if reference is not None:
        axes.axvline(reference, color=_COLOUR["ink"], linewidth=1.1, linestyle=(0, (4, 3)))
    axes.set_yticks(places, [_word(name) for name in bars], parse_math=False, fontsize=_TEXT, color=_COLOUR["ink"])
    longest = max(lengths.max(), reference or 0.0) or 1.0
    axes.set(xlim=(0, 1.2 * longest), ylim=(len(bars) - 0.4, -0.6), xlabel="mAP")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "mAP")


def histogram_plot(name: str, same: np.ndarray, different: np.ndarray, colour: str) -> str:
    """Share of the pairs of same and of different pictures at each Hamming distance, each adding up to one.

    Args:
        name: of the granularity.
        same: (bits + 1,) number of pairs at each distance.
        different: (bits + 1,), drawn in ``"soft"``.
        colour: of the same ones.
    """
    figure, axes = _plot(4.0, 1.9)
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


def _word(name: str) -> str:
    """A name beside an axis, cut where it would leave no room for the plot."""
    text = printable(name)
    return text if len(text) <= _LONGEST_WORD else text[: _LONGEST_WORD - 1] + "…"


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of this size in inches, in the page's colours."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_COLOUR["line"])
    axes.tick_params(colors=_COLOUR["soft"], labelsize=_SMALL, length=3)
    axes.xaxis.label.set(color=_COLOUR["soft"], fontsize=_SMALL)
    axes.yaxis.label.set(color=_COLOUR["soft"], fontsize=_SMALL)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as one svg element; the label has to be the page's only one of its kind."""
    from matplotlib import rc_context

    label = printable(label)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    # The page says how wide the plot is: as wide as there is room.
    head = re.sub(r' (width|height)="[^"]*"', "", head) + f' role="img" aria-label="{html.escape(label)}">'
    # Rules for every element would hold in the whole page, and groups are numbered alike in every figure.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;]*;", "", body)
    for colour, meaning in _STANDS_FOR.items():
        body = body.replace(f": {colour}", f": {meaning}")
    return head + body.strip()
