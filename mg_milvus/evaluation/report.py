"""The report of an evaluation: figures, plots and pictures as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mg_milvus import __version__
from mg_milvus.display import file_link, shown
from mg_milvus.errors import PictureError, QueryError
from mg_milvus.evaluation.plots import HUES, bar_plot, check_matplotlib, curve_plot, histogram_plot
from mg_milvus.images.decode import opening
from mg_milvus.images.discover import text_path

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from jinja2 import Template

    Figures = Mapping[str, Mapping[str, float | None]]

__all__ = ["QueryShown", "ReportData", "ResultShown", "check_report", "write_report"]

PAGE = "index.html"

FLOAT = "float"
"""The row or curve of the float features, which is drawn as a reference."""

THUMBNAIL_SIDE = 224
"""Longest side of a thumbnail in pixels: about twice what the page shows, for dense screens."""

JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True)
class ResultShown:
    """One hit of a query that the report shows.

    Attributes:
        path: the picture, as ``path_text`` writes it.
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
        path: the picture, as ``path_text`` writes it.
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
class _Pictured:
    """A picture on the page: its thumbnail's data URI (empty when unreadable), the link to it, how it is called."""

    path: str
    name: str
    link: str
    thumbnail: str
    text: str
    relevant: bool = True
    hits: Sequence[_Pictured] = ()


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

    The same data and pictures give the same bytes. Pictures that cannot be read become placeholders.

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
            (heading, [_query(query) for query in queries])
            for heading, queries in (("Best queries", ranked[:half]), ("Worst queries", ranked[half:][::-1]))
            if queries
        ],
        version=__version__,
    )


@cache
def template(name: str) -> Template:
    """A template of this folder; the palette and the common parts are those of the result pages."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "pages"]),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _hues(data: ReportData) -> dict[str, tuple[str, bool]]:
    """Name -> colour and whether dashed: granularities first, so that each has one colour throughout the page."""
    names = [name for name in dict.fromkeys([*data.histograms, *data.curves]) if name != FLOAT]
    styles = {name: (f"h{place % HUES}", place >= HUES) for place, name in enumerate(names)}
    return styles | {FLOAT: ("soft", True)}


def _bar_colours(data: ReportData) -> dict[str, str]:
    """Granularities in their colours, all fusions in the next one."""
    hues = _hues(data)
    fused = f"h{len(data.histograms) % HUES}"
    return {name: hues[name][0] if name in {*data.histograms, FLOAT} else fused for name in data.bars}


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


def _query(query: QueryShown) -> _Pictured:
    hits = [_pictured(hit.path, hit.text, hit.relevant) for hit in query.hits]
    return _pictured(query.path, f"{query.average_precision:.3f}", hits=hits)


def _pictured(path: str, text: str, relevant: bool = True, hits: Sequence[_Pictured] = ()) -> _Pictured:
    file = text_path(path)
    return _Pictured(str(file), "/".join(file.parts[-2:]), file_link(file), _thumbnail(file), text, relevant, hits)


def _thumbnail(file: Path) -> str:
    try:
        with opening(file, least=THUMBNAIL_SIDE) as decoded:
            picture = decoded.picture.copy()
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    except PictureError:
        return ""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
