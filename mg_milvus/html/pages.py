"""HTML of results: fragments for notebooks, and the result page of ``mgm query --html``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mg_milvus.files import file_link, shown
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import Thumbnail, thumbnail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Template

    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Box, Hit


SIDE = 200
"""Longest side of a thumbnail in pixels."""

TEMPLATES = Path(__file__).parent / "templates"

_LIGHT = ('[data-jp-theme-light="true"]', "html[theme=light]", ".vscode-light")
_DARK = ('[data-jp-theme-light="false"]', "html[theme=dark]", ".vscode-dark", ".vscode-high-contrast")
"""Selectors of the themes of JupyterLab, Colab and VS Code, which may differ from the system's."""


def render(name: str, **values: Any) -> str:
    """An HTML fragment: a notebook template with escaped values, and a style that applies inside it only."""
    return template(f"notebook/{name}.html.jinja").render(style=_style(), **values)


@cache
def template(name: str) -> Template:
    """A template of ``html/templates``; values are escaped, and a missing name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    return environment.get_template(name)


@cache
def _style() -> str:
    """The notebook style sheet, with the palettes of the result pages: light, dark, and by the notebook's theme."""
    pages = (TEMPLATES / "result.css").read_text(encoding="utf-8")
    light, dark = (" ".join(block.split()) for block in re.findall(r":root \{(.*?)\}", pages, re.DOTALL)[:2])
    light, dark = light.replace("color-scheme: light dark", "color-scheme: light"), f"color-scheme: dark; {dark}"
    rules = [f".mgm {{ {light} }}", f"@media (prefers-color-scheme: dark) {{ .mgm {{ {dark} }} }}"]
    rules += [f"{theme} .mgm {{ {light} }}" for theme in _LIGHT] + [f"{theme} .mgm {{ {dark} }}" for theme in _DARK]
    return "\n".join([*rules, (TEMPLATES / "notebook" / "notebook.css").read_text(encoding="utf-8")])


@dataclass(frozen=True, slots=True)
class Bar:
    """Distance of an image on one granularity; ``percent`` is the share of equal bits."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int


def bars_of(distances: Mapping[str, int], bits: Mapping[str, int]) -> list[Bar]:
    """A bar for each granularity of which the largest distance is known, in the order of ``bits``."""
    return [
        Bar(name, place % 6, round(100 * max(0.0, 1 - distances[name] / length), 1), distances[name], length)
        for place, (name, length) in enumerate(bits.items())
        if name in distances
    ]


def words_of(hit: Hit) -> str:
    """What a hit is to the query image, in words: by the pixels where they were looked at, else by the codes."""
    return hit.verified.verdict if hit.verified else hit.words


HIT_SIDE = 480
"""Longest side of a hit's thumbnail in pixels: twice what a card shows, for dense screens."""

QUERY_SIDE = 720
"""Longest side of the query's thumbnail in pixels."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """One query and its hits, for a page.

    Attributes:
        title: name of the query image: its path, ``-``, an id.
        image: the query image.
        hits: best first.
        crop: the area that was searched with, as x, y, width, height in pixels of the whole image.
        remark: a sentence where none of the hits is related; see ``Hits``.
    """

    title: str
    image: ImageSource
    hits: Sequence[Hit]
    crop: tuple[int, int, int, int] | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """What a result page says about its queries.

    Attributes:
        collection: name of the searched collection.
        bits: granularity -> largest distance in bits, in the order to show.
        weights: granularity -> weight in the fusion.
        fusion: name of the fusion method.
        profile: name of the weight profile; None when none was chosen.
    """

    collection: str
    bits: Mapping[str, int]
    weights: Mapping[str, float]
    fusion: str
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class _Bar:
    """Distance and rank of a hit on one granularity."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int
    rank: str


@dataclass(frozen=True, slots=True)
class _Card:
    """One hit, as the template shows it."""

    rank: int
    score: str
    name: str
    path: str
    link: str
    thumbnail: Thumbnail
    bars: Sequence[_Bar]
    box: Box | None
    verdict: str


def result_page(results: Sequence[QueryResult], settings: QuerySettings) -> str:
    """Queries and their hits as one self-contained HTML page.

    Images are embedded as small JPEGs; one that is gone or cannot be read becomes a placeholder tile.

    Args:
        results: the queries, shown in this order.
        settings: shared by all queries.

    Returns:
        The HTML text, encodable as UTF-8.
    """
    queries = [
        {
            "title": result.title,
            "name": os.path.basename(result.title) or result.title,
            "thumbnail": thumbnail(result.image, QUERY_SIDE),
            "crop": result.crop,
            "remark": result.remark,
            "cards": [_card(hit, settings.bits) for hit in result.hits],
        }
        for result in results
    ]
    return template("result.html.jinja").render(
        queries=queries,
        collection=settings.collection,
        fusion=settings.fusion,
        profile=settings.profile,
        weights=[
            (name, f"{settings.weights[name]:g}", index % 6)
            for index, name in enumerate(settings.bits)
            if name in settings.weights
        ],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _card(hit: Hit, bits: Mapping[str, int]) -> _Card:
    bars = tuple(
        _Bar(
            name=name,
            hue=index % 6,
            percent=round(100 * max(0.0, 1 - hit.distances[name] / length), 1),
            distance=hit.distances[name],
            bits=length,
            rank=f"{hit.ranks[name]:g}" if name in hit.ranks else "",
        )
        for index, (name, length) in enumerate(bits.items())
        if name in hit.distances
    )
    path = text_path(hit.path)
    return _Card(
        rank=hit.rank,
        score=f"{hit.score:.4f}",
        name=path.name or hit.path,
        path=str(path),
        link=file_link(path),
        thumbnail=thumbnail(path, HIT_SIDE, hit.shown_box),
        box=hit.shown_box,
        bars=bars,
        verdict=words_of(hit),
    )
