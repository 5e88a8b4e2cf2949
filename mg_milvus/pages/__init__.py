"""Result pages: queries and their hits as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mg_milvus.display import file_link, shown
from mg_milvus.images.discover import text_path
from mg_milvus.images.thumbnails import Thumbnail, thumbnail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Template

    from mg_milvus.hits import Hit
    from mg_milvus.images.decode import PictureSource
    from mg_milvus.regions import Box

__all__ = ["QueryResult", "result_page"]

HIT_SIDE = 480
"""Longest side of a hit's thumbnail in pixels: twice what a card shows, for dense screens."""

QUERY_SIDE = 720
"""Longest side of the query's thumbnail in pixels."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """One question and its answer.

    Attributes:
        title: what to call the query picture: its path, ``-``, an id.
        picture: the query picture.
        hits: best first.
        crop: the part of the picture that was asked with, as x, y, width, height in pixels of the whole picture.
    """

    title: str
    picture: PictureSource
    hits: Sequence[Hit]
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Bar:
    """How near a hit is on one granularity."""

    name: str
    hue: int
    percent: float
    distance: int
    bits: int
    rank: str


@dataclass(frozen=True, slots=True)
class _Card:
    """What the template shows of one hit."""

    rank: int
    score: str
    name: str
    path: str
    link: str
    thumbnail: Thumbnail
    bars: Sequence[_Bar]
    box: Box | None

    @property
    def fills(self) -> bool:
        """Whether the picture's shape is near the tile's, from square to 16:9."""
        return self.thumbnail.height <= self.thumbnail.width <= 16 / 9 * self.thumbnail.height


def result_page(
    results: Sequence[QueryResult],
    *,
    collection: str,
    bits: Mapping[str, int],
    weights: Mapping[str, float],
    fusion: str,
    profile: str | None = None,
) -> str:
    """Queries and their hits as one self-contained HTML page.

    Pictures are embedded as small JPEGs; one that is gone or cannot be read becomes a placeholder tile.

    Args:
        results: the queries, shown in this order.
        collection: name of the collection that was asked.
        bits: granularity -> largest distance in bits, in the order to show.
        weights: granularity -> weight in the fusion.
        fusion: name of the fusion method.
        profile: name of the weight profile, when one was asked for.

    Returns:
        The HTML text, encodable as UTF-8.
    """
    queries = [
        {
            "title": result.title,
            "name": os.path.basename(result.title) or result.title,
            "thumbnail": thumbnail(result.picture, QUERY_SIDE),
            "crop": result.crop,
            "cards": [_card(hit, bits) for hit in result.hits],
        }
        for result in results
    ]
    return _template("result.html.jinja").render(
        queries=queries,
        collection=collection,
        fusion=fusion,
        profile=profile,
        weights=[(name, f"{weights[name]:g}", index % 6) for index, name in enumerate(bits) if name in weights],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


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
        thumbnail=thumbnail(path, HIT_SIDE, hit.box),
        box=hit.box,
        bars=bars,
    )
