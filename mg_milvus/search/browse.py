"""What a page needs beyond queries and answers: the steps of a query one by one, a look around, and its rows."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.schema.regions import REGIONS
from mg_milvus.search import retrieve, searcher
from mg_milvus.search.query import MAX_DEPTH, Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.records import Hit
    from mg_milvus.search.query import QueryOptions, Regions
    from mg_milvus.search.retrieve import Candidates
    from mg_milvus.search.searcher import Prepared
    from mg_milvus.session import Connection
    from mg_milvus.store.base import Row


_ID_BITS = 128
MOST_VALUES = 50
"""A text column with more different values than this among the rows looked at is not one to choose from."""


class Browser:
    """Looks into one collection. Every method may be called from several threads at once, and needs a collection.

    ``prepare`` and ``encode`` are the two halves of encoding a query: the first is cheap and runs side by side, the
    second takes several images at once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def fingerprint(self) -> str:
        """Of the encoder that filled the collection."""
        return self._connection.existing().fingerprint

    def query(self, options: QueryOptions) -> Query:
        """The query as it is understood when it is asked with an image.

        Raises:
            QueryError: an option is out of range.
        """
        self._connection.existing()
        return Query.of(self._connection.schema, options)

    def prepare(
        self,
        image: ImageSource,
        box: tuple[int, int, int, int] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        regions: Regions | None = None,
    ) -> Prepared:
        """A query image, or the part of it in ``box`` (x, y, width, height), ready to be encoded.

        With ``regions`` the regions look for the box, and everything else sees the whole image.

        Raises:
            ImageError: it cannot be read, or has more than ``max_pixels``.
            QueryError: the box does not lie inside it, or is too small to look for.
        """
        self._connection.existing()
        return searcher.prepared(self._connection.encoder, image, box, max_pixels, regions)

    def encode(self, images: Sequence[Prepared]) -> list[dict[str, Codes]]:
        """Codes of each of several prepared images: granularity -> (1, bits / 8) uint8.

        Those with details have (1, details, scales, bits / 8) under ``regions`` as well.
        """
        found: list[dict[str, Codes]] = [{} for _ in images]
        for count in {len(image.details) for image in images}:  # none, one, or every region of an image
            alike = [place for place, image in enumerate(images) if len(image.details) == count]
            codes = searcher.encoded(self._connection.encoder, [images[place] for place in alike])
            names = [name for name in self._connection.schema.code_bits if name in codes]
            for i, place in enumerate(alike):
                found[place] = {name: codes[name][i : i + 1] for name in names}
        return found

    def codes_of(self, row_id: str) -> dict[str, Codes]:
        """The codes of an indexed image: granularity -> (1, bits / 8) uint8.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._connection.existing()
        row = self._connection.rows([row_id], tuple(self._connection.schema.bits))[0]
        return searcher.checked_codes(self._connection.schema, row.codes)

    def ask(
        self, codes: Mapping[str, Codes], options: QueryOptions, without: Sequence[str] = ()
    ) -> tuple[Query, list[Hit]]:
        """The query as it was understood, and its hits, as ``ImageIndex.query`` gives them.

        Args:
            codes: as ``encode`` gives them; without ``regions``, the regions are left out of what does not name them.
            options: see ``QueryOptions``.
            without: ids to leave out.

        Raises:
            QueryError: an option is out of range.
        """
        query = self._asked(codes, options)
        return query, searcher.ask(self._connection.store, self._connection.schema, codes, query, without)[0]

    def ask_wide(
        self, codes: Mapping[str, Codes], options: QueryOptions, without: Sequence[str] = ()
    ) -> tuple[Query, list[Hit], Candidates]:
        """As ``ask`` by the plan ``full``, and with it the candidates of all granularities, those of weight 0 too.

        Whoever has them can rank with any weights: those count that a granularity with a weight has found. The regions
        are among them when there are codes to ask them with, and the query does.

        Raises:
            QueryError: as ``ask``, or the fusion is the server's own.
        """
        schema, query = self._connection.schema, self._asked(codes, options)
        if query.fusion == "server":
            raise QueryError("candidates are ranked by 'rank' or 'score', got fusion 'server': ask for one of the two")
        names = [*schema.bits, *([REGIONS] if query.regions else [])]
        widest = replace(query, weights=dict.fromkeys(names, 1.0), plan="full")
        found = retrieve.candidates(self._connection.store, schema, codes, widest, without)[0]
        return query, searcher.ranked(found, schema, query), found

    def _asked(self, codes: Mapping[str, Codes], options: QueryOptions) -> Query:
        query = self.query(options)
        return query if REGIONS in codes else query.without_regions(options)

    def row(self, row_id: str) -> Row:
        """One row, without its codes.

        Raises:
            NotIndexedError: there is no such row.
        """
        self._connection.existing()
        return self._connection.rows([row_id])[0]

    def sample(self, count: int, where: str | None = None) -> list[Row]:
        """Rows at random, at most ``count``, without codes.

        Ids are hashes, so the rows whose ids follow a random one are a random sample.

        Args:
            count: from 1 to 1,000.
            where: a Milvus expression; only rows that match.

        Raises:
            QueryError: ``count`` is out of range.
            FilterError: Milvus does not understand the expression.
        """
        if not 1 <= count <= 1000:
            raise QueryError(f"count is {count}, expected a whole number from 1 to 1000")
        ids = self._some(count, where, secrets.randbits(_ID_BITS))
        chosen = np.random.default_rng().permutation(len(ids))[:count]
        return list(self._connection.store.fetch([ids[i] for i in chosen]).values())

    def values(self) -> dict[str, Any]:
        """What the schema's own columns hold, as seen in up to 1,000 rows: for filters to choose from.

        Returns:
            Name -> sorted texts of a string column (empty when there are too many to choose from), or [least, most]
            of a number column; columns without a value are left out.
        """
        fields = self._connection.schema.fields
        rows = self._connection.store.fetch(self._some(1000, None, 0)[:1000]).values() if fields else []
        found: dict[str, Any] = {}
        for column in fields:
            seen = {row.fields[column.name] for row in rows if row.fields.get(column.name) not in (None, "")}
            if column.type == "string":
                found[column.name] = sorted(seen) if len(seen) <= MOST_VALUES else []
            elif column.type != "bool" and seen:
                found[column.name] = [min(seen), max(seen)]
        return found

    def _some(self, count: int, where: str | None, first: int) -> list[str]:
        """Ids from ``first`` on of rows that match: ``count`` or a few times more, or all when there are not as many.

        They come from a search, which looks at every row but returns few: Milvus Lite's way to list rows is slower.
        """
        self._connection.existing()
        store, bits = self._connection.store, self._connection.schema.bits
        shortest = min(bits, key=bits.__getitem__)
        anywhere = np.zeros((1, bits[shortest] // 8), np.uint8)
        share = 4 * count / max(1, store.size())
        while True:
            both = " and ".join(f"({part})" for part in (_ids(first, share), where) if part)
            (found,) = store.nearest(shortest, anywhere, min(16 * count, MAX_DEPTH), both or None)
            if len(found.ids) >= count or share >= 1:
                return found.ids
            share *= 16


def _ids(first: int, share: float) -> str:
    """The condition for a share of all ids, from the first on and round the end; empty for all of them."""
    if share >= 1:
        return ""
    behind = first + int(share * 2**_ID_BITS)
    least, end = (f'"{number % 2**_ID_BITS:0{_ID_BITS // 4}x}"' for number in (first, behind))
    return f"id >= {least} {'or' if behind >= 2**_ID_BITS else 'and'} id < {end}"
