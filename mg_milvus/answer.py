"""The answer to one question: a list of hits that shows itself in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex, overload

from mg_milvus.hits import Hit
from mg_milvus.images.discover import text_path
from mg_milvus.notebook import SIDE, render
from mg_milvus.notebook.bars import bars_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_SHOWN = 48
"""Pictures inside of a notebook: with more its file would grow too large."""


class Hits(list[Hit]):
    """Hits, best first. A list in every way, equal to any list of the same hits.

    Attributes:
        bits: granularity -> largest distance in bits, for the bars.
    """

    def __init__(self, hits: Iterable[Hit] = (), bits: Mapping[str, int] | None = None) -> None:
        super().__init__(hits)
        self.bits = dict(bits or {})

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> Hits: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Hit | Hits:
        """A hit; some of them are ``Hits`` again."""
        if isinstance(place, slice):
            return Hits(super().__getitem__(place), self.bits)
        return super().__getitem__(place)

    def _repr_html_(self) -> str:
        """Thumbnails, scores and distances; a picture that is gone or cannot be read is a placeholder."""
        from mg_milvus.images.thumbnails import thumbnail

        cards = [
            {
                "rank": hit.rank,
                "score": f"{hit.score:.4f}",
                "path": str(path),
                "name": path.name or hit.path,
                "picture": thumbnail(path, SIDE, hit.box),
                "bars": bars_of(hit.distances, self.bits),
            }
            for hit in self[:MOST_SHOWN]
            for path in [text_path(hit.path)]
        ]
        return render("hits", cards=cards, count=len(self))
