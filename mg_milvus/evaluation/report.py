"""What the figures of an evaluation were made of."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mg_milvus import __version__
from mg_milvus.codes import hamming
from mg_milvus.errors import ImageError, MissingPackageError, QueryError
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, SAME_CLASS
from mg_milvus.evaluation.scoring import (
    FLOAT,
    FUSED,
    PAIRS,
    fused_keys,
    recipes_of,
)
from mg_milvus.files import escape_controls, file_link
from mg_milvus.html.pages import render, template
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import thumbnail

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.evaluation.scoring import RelevanceOf, Scores
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Failure
    from mg_milvus.schema.models import Schema

    Figures = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Details:
    """What the figures were made of, for a report or for the same queries to an index.

    Attributes:
        queries: images asked, in the order of the average precisions in ``scores``.
        database: images searched.
        query_codes: granularity -> (q, bits / 8).
        database_codes: granularity -> (n, bits / 8).
        relevance_of: slice of the queries -> (q', n) uint8.
        scores: name of the ranking -> its scores; fused ones as ``fused:NAME``, of features as ``float:NAME``.
        fingerprint: of the encoder with its heads.
    """

    queries: tuple[Found, ...]
    database: tuple[Found, ...]
    query_codes: Mapping[str, Codes]
    database_codes: Mapping[str, Codes]
    relevance_of: RelevanceOf
    scores: Mapping[str, Scores]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: ready for JSON; ``to_json`` describes it.
        schema: granularities, weights and fusion that were evaluated.
        failures: images that could not be read or have no label; they are in no figure.
        details: for a report; None for the protocol ``copies``.
    """

    figures: Mapping[str, Any]
    schema: Schema
    failures: tuple[Failure, ...] = ()
    details: Details | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The figures in their stable form; keys may be added, none taken away.

        ``{"queries", "database", "granularities": {name: {"bits", "map", ...}}, "fused": {"rank": {"map", ...},
        "score": {...}, profile: {...}}, "float": {"map", ...}}``. Shares are from 0 to 1; what is not known is None.
        Ties count as ``metrics`` says.
        """
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return dict(self.figures) | {"failures": failures}

    def _repr_html_(self) -> str:
        """The figures as tables, and with ``details`` some queries, for a notebook."""
        return evaluation_html(self)


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
    """Share of the pairs of same and of different images at each Hamming distance, each adding up to one.

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
    text = escape_controls(name)
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

    label = escape_controls(label)
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


PAGE = "index.html"

FLOAT_ROW = "float"
"""The row or curve of the float features, which is drawn as a reference."""

THUMBNAIL_SIDE = 224
"""Longest side of a thumbnail in pixels: about twice what the page shows, for dense screens."""

JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class ResultShown:
    """One hit of a query that the report shows.

    Attributes:
        path: the image, as ``path_text`` writes it.
        text: how near it is, in words for people: ``"12 bits"``, ``"0.0312"``.
        relevant: whether it is what was looked for.
    """

    path: str
    text: str
    relevant: bool


@dataclass(frozen=True, slots=True)
class QueryShown:
    """A query that the report shows.

    Attributes:
        path: the image, as ``path_text`` writes it.
        average_precision: in 0 .. 1.
        hits: best first.
    """

    path: str
    average_precision: float
    hits: Sequence[ResultShown]


@dataclass(frozen=True, slots=True)
class ReportData:
    """What the report shows. Names are shown as they are and in the order given; an empty part is left out.

    Attributes:
        title: heading of the page.
        setup: what was done, a line each; ``"name: value"`` sets the name apart.
        table: row (granularity, fused, float ...) -> figure ("mAP", "P@10" ...) -> value; None or NaN: not known.
        curves: name -> recall (m,), precision (m,), both in 0 .. 1, recall ascending; ``"float"`` is drawn as the
            reference.
        histograms: granularity -> number of relevant pairs and number of other pairs at each Hamming distance, two
            integer arrays (bits + 1,).
        bars: granularity or profile -> mAP in 0 .. 1.
        float_map: mAP of the float features of the same network, drawn as a line across the bars; None or NaN: no line.
        health: granularity or "joint" -> measure of its codes ("bits", "effective bits", "collisions" ...) -> value.
        queries: the best and the worst queries; shown by falling average precision, the upper half as the best.
    """

    title: str
    setup: Sequence[str]
    table: Mapping[str, Mapping[str, float | None]]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    histograms: Mapping[str, tuple[np.ndarray, np.ndarray]]
    bars: Mapping[str, float]
    float_map: float | None
    health: Mapping[str, Mapping[str, float | None]]
    queries: Sequence[QueryShown]


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of a table, and whether it stands out."""

    text: str
    best: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in order, each with a cell for every column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True, slots=True)
class _Shown:
    """An image on the page: its thumbnail's data URI (empty when unreadable), the link to it, how it is called."""

    path: str
    name: str
    link: str
    thumbnail: str
    text: str
    relevant: bool = True
    hits: Sequence[_Shown] = ()


def check_report(folder: str | os.PathLike[str]) -> None:
    """Find out before an evaluation whether its report can be written; the folder is made if need be.

    Raises:
        MissingPackageError: matplotlib is not installed.
        QueryError: the folder cannot be made.
    """
    check_matplotlib()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(f"'{folder}' cannot be made: {error.strerror}; name a folder to write to") from error


def write_report(data: ReportData, folder: str | os.PathLike[str]) -> Path:
    """Write the report as ``folder/index.html``, one file that asks for nothing else; the folder is made if need be.

    The same data and images give the same bytes. Images that cannot be read become placeholders.

    Args:
        data: what to show.
        folder: where to write; an ``index.html`` there is replaced.

    Returns:
        Path of the page.

    Raises:
        MissingPackageError: matplotlib is not installed.
        QueryError: the page cannot be written.
    """
    return write_page(_page(data), folder)


def write_page(page: str, folder: str | os.PathLike[str]) -> Path:
    """Write a page as ``folder/index.html``; the folder is made if need be. Returns the path of the page.

    Raises:
        QueryError: it cannot be written.
    """
    check_report(folder)
    file = Path(folder) / PAGE
    try:
        file.write_bytes(page.encode())
    except OSError as error:
        raise QueryError(f"'{file}' cannot be written: {error.strerror}; name a folder to write to") from error
    return file


def _page(data: ReportData) -> str:
    hues = _hues(data)
    ranked = sorted(data.queries, key=lambda query: -query.average_precision)
    half = math.ceil(len(ranked) / 2)
    reference = None if data.float_map is None or math.isnan(data.float_map) else data.float_map
    return template("report.html.jinja").render(
        title=data.title,
        setup=[line.split(": ", 1) if ": " in line else ("", line) for line in data.setup],
        figures=_table(data.table, best=True),
        curves=curve_plot(data.curves, hues) if data.curves else "",
        key=[(name, *hues[name]) for name in data.curves],
        bars=bar_plot(data.bars, _bar_colours(data), reference) if data.bars else "",
        reference="" if reference is None else f"{reference:.3f}",
        histograms=[
            {"name": name, "plot": histogram_plot(name, *counts, hues[name][0]), "told": _overlap(*counts)}
            for name, counts in data.histograms.items()
        ],
        health=_table(data.health, best=False),
        shown=[
            (heading, [_query_section(query) for query in queries])
            for heading, queries in (("Best queries", ranked[:half]), ("Worst queries", ranked[half:][::-1]))
            if queries
        ],
        version=__version__,
    )


def _hues(data: ReportData) -> dict[str, tuple[str, bool]]:
    """Name -> colour and whether dashed: granularities first, so that each has one colour throughout the page."""
    names = [name for name in dict.fromkeys([*data.histograms, *data.curves]) if name != FLOAT_ROW]
    styles = {name: (f"h{place % HUES}", place >= HUES) for place, name in enumerate(names)}
    return styles | {FLOAT_ROW: ("soft", True)}


def _bar_colours(data: ReportData) -> dict[str, str]:
    """Granularities in their colours, all fusions in the next one."""
    hues = _hues(data)
    fused = f"h{len(data.histograms) % HUES}"
    return {name: hues[name][0] if name in {*data.histograms, FLOAT_ROW} else fused for name in data.bars}


def _table(figures: Figures, *, best: bool) -> Table:
    """With ``best``, the largest fraction of a column is marked, unless all are the same."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    largest = {}
    for column in columns:
        known = [value for row in figures.values() if isinstance(value := row.get(column), float) and value == value]
        if best and known and number(min(known)) != number(max(known)):
            largest[column] = number(max(known))
    rows = []
    for name, row in figures.items():
        texts = [(column, number(row.get(column))) for column in columns]
        rows.append((name, [Cell(text, largest.get(column) == text) for column, text in texts]))
    return Table(columns, rows)


def number(value: float | None) -> str:
    """Whole numbers as they are, fractions with three decimals, large and very small ones with what says something."""
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _overlap(same: np.ndarray, different: np.ndarray) -> str:
    """What a histogram says, in a sentence: mean distances, and the area that both distributions share."""
    if not same.sum() or not different.sum():
        return "There are no pairs of one of the two kinds."
    distances = np.arange(len(same))
    shares = same / same.sum(), different / different.sum()
    near, far = (float(distances @ share) for share in shares)
    return f"Mean {near:.1f} bits, others {far:.1f}; overlap {np.minimum(*shares).sum():.0%}."


def _query_section(query: QueryShown) -> _Shown:
    hits = [_shown_image(hit.path, hit.text, hit.relevant) for hit in query.hits]
    return _shown_image(query.path, f"{query.average_precision:.3f}", hits=hits)


def _shown_image(path: str, text: str, relevant: bool = True, hits: Sequence[_Shown] = ()) -> _Shown:
    file = text_path(path)
    return _Shown(str(file), "/".join(file.parts[-2:]), file_link(file), _thumbnail(file), text, relevant, hits)


def _thumbnail(file: Path) -> str:
    try:
        with opening(file, least=THUMBNAIL_SIDE) as decoded:
            image = decoded.image.copy()
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    except ImageError:
        return ""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


QUERIES_SHOWN = 12
HITS_SHOWN = 8


def report_data(evaluation: Evaluation, title: str) -> ReportData:
    """What ``report.write_report`` shows of an evaluation.

    Args:
        evaluation: of any protocol; without ``details`` there are no curves, histograms or queries.
        title: heading of the page.
    """
    figures = evaluation.to_json()
    details = evaluation.details
    rows = _rows(figures)
    return ReportData(
        title=title,
        setup=setup(figures),
        table=figure_table(figures) | _copies_rows(figures),
        curves={} if details is None else _curves(details, figures["float"]["granularity"]),
        histograms={} if details is None else _histograms(details),
        bars={name: found["map"] for name, found in rows.items() if found["map"] is not None},
        float_map=figures["float"]["map"],
        health=health_table(figures),
        queries=() if details is None else queries_shown(details, evaluation.schema),
    )


def setup(figures: Mapping[str, Any]) -> list[str]:
    """What was done, a line each."""
    lines = [
        f"protocol: {figures['about']}",
        f"queries: {figures['queries']:,}",
        f"database: {figures['database']:,}",
        f"encoder: {figures['fingerprint']}",
        f"hash heads: {figures['heads']}",
        f"bytes an image: {figures['bytes_per_image']}",
    ]
    if figures.get("alone"):
        lines.append(f"not asked: {figures['alone']:,} images without another of their class in the database")
    if figures["failures"]:
        lines.append(f"left out: {len(figures['failures']):,} files that could not be read or have no label")
    return lines


def figure_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Ranking -> figure -> value, with the names that people use; the best float reading is ``float``."""
    return {name: _flat(found) for name, found in (_rows(figures) | {"float": figures["float"]}).items()}


def copies_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Edit and strength -> ranking -> recall@1; empty for other protocols."""
    return {
        f"{edit}, {strength}": {name: own["recall@1"] for name, own in rankings.items()}
        for edit, strengths in figures.get("copies", {}).items()
        for strength, rankings in strengths.items()
    }


def health_table(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Granularity, or ``joint`` -> measure -> value."""
    found: dict[str, dict[str, float | None]] = {}
    for name, own in figures["granularities"].items():
        measures = {measure.replace("_", " "): value for measure, value in own["health"].items()}
        found[name] = {"bits": own["bits"], **measures}
    found["joint"] = {"bits": figures["bytes_per_image"] * 8, "collisions": figures["collisions"]["joint"]}
    return found


def _rows(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    fused = {_fused_name(name): found for name, found in figures["fused"].items()}
    return dict(figures["granularities"]) | fused


def _flat(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one ranking in one line, with the names that people use."""
    line = {"mAP": found["map"]}
    names = {"map_group": "mAP groups", "map_at_r": "mAP@R", "precision_radius_2": "P@radius 2"}
    line |= {names[key]: found[key] for key in names if key in found}
    for key, letter in (("precision", "P"), ("recall", "R"), ("ndcg", "NDCG")):
        line |= {f"{letter}@{k}": value for k, value in found.get(key, {}).items()}
    return line


def _fused_name(name: str) -> str:
    return f"{name} fusion" if name in {"rank", "score"} else name


def _copies_rows(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The same with rankings as rows would be wide; a report has a row for each edit."""
    return {f"recall@1, {name}": row for name, row in copies_table(figures).items()}


def _curves(details: Details, best_float: str) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Name -> mean recall and mean precision, rank by rank: the granularities, rank fusion, the best float reading."""
    names = {name: name for name in details.database_codes}
    names |= {FUSED + "rank": _fused_name("rank"), FLOAT + best_float: "float"}
    found = {}
    for name, shown in names.items():
        ranking = details.scores[name].ranking
        ranks = [k for k in sorted(ranking.recall) if k <= len(details.database)]
        found[shown] = np.array([ranking.recall[k] for k in ranks]), np.array([ranking.precision[k] for k in ranks])
    return found


def _histograms(details: Details) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Granularity -> pairs of the same class and of different ones at each distance, (bits + 1,) each."""
    found = {
        name: (np.zeros(codes.shape[1] * 8 + 1, np.int64), np.zeros(codes.shape[1] * 8 + 1, np.int64))
        for name, codes in details.database_codes.items()
    }
    step = max(1, PAIRS // len(details.database))
    for start in range(0, len(details.queries), step):
        part = slice(start, min(start + step, len(details.queries)))
        grades = details.relevance_of(part)
        for name, (same, different) in found.items():
            distances = hamming(details.query_codes[name][part], details.database_codes[name])
            same += np.bincount(distances[grades == SAME_CLASS], minlength=len(same))
            different += np.bincount(distances[grades < SAME_CLASS], minlength=len(same))
    return found


def queries_shown(details: Details, schema: Schema) -> list[QueryShown]:
    """The queries with the highest and the lowest average precision of the rank fusion, and their nearest images."""
    precisions = details.scores[f"{FUSED}rank"].ranking.average_precisions
    order = np.argsort(-precisions, kind="stable")
    half = QUERIES_SHOWN // 2
    chosen = order if len(order) <= QUERIES_SHOWN else np.concatenate([order[:half], order[-half:]])
    return [_query(details, schema, int(row), float(precisions[row])) for row in chosen]


def _query(details: Details, schema: Schema, row: int, precision: float) -> QueryShown:
    part = slice(row, row + 1)
    grades = details.relevance_of(part)[0]
    candidates = grades != NOT_A_CANDIDATE
    distances = {
        name: hamming(codes[part], details.database_codes[name])[0] for name, codes in details.query_codes.items()
    }
    recipe = recipes_of(schema)["rank"]
    keys = fused_keys(distances, schema.bits, [recipe], candidates)[0]
    rows = np.flatnonzero(candidates)
    nearest = rows[np.argsort(keys[rows], kind="stable")[:HITS_SHOWN]]
    hits = tuple(
        ResultShown(
            details.database[hit].path,
            ", ".join(f"{name} {values[hit]}" for name, values in distances.items()),
            bool(grades[hit] == SAME_CLASS),
        )
        for hit in nearest
    )
    return QueryShown(details.queries[row].path, precision, hits)


SIDE = 128
"""Longest side of a thumbnail in pixels."""
NOTEBOOK_QUERIES = 2
"""Of the best and of the worst."""
NOTEBOOK_HITS = 7


def evaluation_html(evaluation: Evaluation) -> str:
    """What there is to show of an evaluation."""
    figures, details = evaluation.to_json(), evaluation.details
    found = [] if details is None else queries_shown(details, evaluation.schema)
    ranked = sorted(found, key=lambda query: -query.average_precision)
    shown = []
    for query in (
        ranked if len(ranked) <= 2 * NOTEBOOK_QUERIES else ranked[:NOTEBOOK_QUERIES] + ranked[-NOTEBOOK_QUERIES:]
    ):
        cards = [_card(query.path, "query")]
        cards += [_card(hit.path, "✓" if hit.relevant else "✗") for hit in query.hits[:NOTEBOOK_HITS]]
        shown.append((f"Average precision {query.average_precision:.3f}", cards))
    tables = [
        _notebook_view_table(rows)
        for rows in (figure_table(figures), copies_table(figures), health_table(figures))
        if rows
    ]
    return render("evaluation", setup=setup(figures), tables=tables, shown=shown)


def _notebook_view_table(
    rows: Mapping[str, Mapping[str, float | None]],
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return ["", *columns], [(name, [number(row.get(column)) for column in columns]) for name, row in rows.items()]


def _card(path: str, badge: str) -> dict[str, Any]:
    file = text_path(path)
    return {"path": str(file), "name": file.name, "image": thumbnail(file, SIDE), "badge": badge}
