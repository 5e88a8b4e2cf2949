"""What a page needs beyond questions and answers: the steps of a question one by one, a look around, and its rows."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus import search
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.question import Question
from mg_milvus.schema_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mg_milvus.codes import Codes
    from mg_milvus.connection import Connection
    from mg_milvus.hits import Hit
    from mg_milvus.images.decode import PictureSource
    from mg_milvus.question import Parts, QueryOptions
    from mg_milvus.search import Candidates, Prepared
    from mg_milvus.store import Row

_ID_BITS = 128
MOST_VALUES = 50
"""A text column with more different values than this among the rows looked at is not one to choose from."""


class Browser:
    """Looks into one collection. Every method may be called from several threads at once, and needs a collection.

    ``prepare`` and ``encode`` are the two halves of encoding a query: the first is cheap and runs side by side, the
    second takes several pictures at once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def fingerprint(self) -> str:
        """Of the encoder that filled the collection."""
        return self._connection.existing().fingerprint

    def question(self, options: QueryOptions) -> Question:
        """The question as it is understood when it is asked with a picture.

        Raises:
            QueryError: an option is out of range.
        """
        self._connection.existing()
        return Question.of(self._connection.schema, options)

    def prepare(
        self,
        picture: PictureSource,
        box: tuple[int, int, int, int] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        parts: Parts | None = None,
    ) -> Prepared:
        """A query picture, or the part of it in ``box`` (x, y, width, height), ready to be encoded.

        With ``parts`` the regions look for the box, and everything else sees the whole picture.

        Raises:
            PictureError: it cannot be read, or has more than ``max_pixels``.
            QueryError: the box does not lie inside it, or is too small to look for.
        """
        self._connection.existing()
        return search.prepared(self._connection.encoder, picture, box, max_pixels, parts)

    def encode(self, pictures: Sequence[Prepared]) -> list[dict[str, Codes]]:
        """Codes of each of several prepared pictures: granularity -> (1, bits / 8) uint8.

        Those with details have (1, details, scales, bits / 8) under ``parts`` as well.
        """
        found: list[dict[str, Codes]] = [{} for _ in pictures]
        for count in {len(picture.details) for picture in pictures}:  # none, one, or every region of a picture
            alike = [place for place, picture in enumerate(pictures) if len(picture.details) == count]
            codes = search.encoded(self._connection.encoder, [pictures[place] for place in alike])
            names = [name for name in self._connection.schema.code_bits if name in codes]
            for i, place in enumerate(alike):
                found[place] = {name: codes[name][i : i + 1] for name in names}
        return found

    def codes_of(self, row_id: str) -> dict[str, Codes]:
        """The codes of an indexed picture: granularity -> (1, bits / 8) uint8.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._connection.existing()
        row = self._connection.rows([row_id], tuple(self._connection.schema.bits))[0]
        return search.checked_codes(self._connection.schema, row.codes)

    def ask(
        self, codes: Mapping[str, Codes], options: QueryOptions, without: Sequence[str] = ()
    ) -> tuple[Question, list[Hit]]:
        """The question as it was understood, and its hits, as ``ImageIndex.query`` gives them.

        Args:
            codes: as ``encode`` gives them; without ``parts``, the regions are left out of what does not name them.
            options: see ``QueryOptions``.
            without: ids to leave out.

        Raises:
            QueryError: an option is out of range.
        """
        question = self._asked(codes, options)
        return question, search.ask(self._connection.store, self._connection.schema, codes, question, without)[0]

    def ask_wide(
        self, codes: Mapping[str, Codes], options: QueryOptions, without: Sequence[str] = ()
    ) -> tuple[Question, list[Hit], Candidates]:
        """As ``ask`` by the plan ``full``, and with it the candidates of all granularities, those of weight 0 too.

        Whoever has them can rank with any weights: those count that a granularity with a weight has found. The regions
        are among them when there are codes to ask them with, and the question does.

        Raises:
            QueryError: as ``ask``, or the fusion is the server's own.
        """
        schema, question = self._connection.schema, self._asked(codes, options)
        if question.fusion == "server":
            raise QueryError("candidates are ranked by 'rank' or 'score', got fusion 'server': ask for one of the two")
        names = [*schema.bits, *([PARTS] if question.parts else [])]
        widest = replace(question, weights=dict.fromkeys(names, 1.0), plan="full")
        found = search.candidates(self._connection.store, schema, codes, widest, without)[0]
        return question, search.ranked(found, schema, question), found

    def _asked(self, codes: Mapping[str, Codes], options: QueryOptions) -> Question:
        question = self.question(options)
        return question if PARTS in codes else question.without_parts(options)

    def row(self, row_id: str) -> Row:
        """One row, without its codes.

        Raises:
            NotIndexedError: there is no such row.
        """
        self._connection.existing()
        return self._connection.rows([row_id])[0]

    def sample(self, count: int, where: str | None = None) -> list[Row]:
        """Rows at random, at most ``count``, without codes; all of them are read only when they are few.

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
        rows = self._some(count, where, secrets.randbits(_ID_BITS))
        chosen = np.random.default_rng().permutation(len(rows))[:count]
        return [rows[i] for i in chosen]

    def values(self) -> dict[str, Any]:
        """What the schema's own columns hold, as seen in 1,000 rows or a few more: for filters to choose from.

        Returns:
            Name -> sorted texts of a string column (empty when there are too many to choose from), or [least, most]
            of a number column; columns without a value are left out.
        """
        fields = self._connection.schema.fields
        rows = self._some(1000, None, 0) if fields else []
        found: dict[str, Any] = {}
        for column in fields:
            seen = {row.fields[column.name] for row in rows if row.fields.get(column.name) not in (None, "")}
            if column.type == "string":
                found[column.name] = sorted(seen) if len(seen) <= MOST_VALUES else []
            elif column.type != "bool" and seen:
                found[column.name] = [min(seen), max(seen)]
        return found

    def _some(self, count: int, where: str | None, first: int) -> list[Row]:
        """Rows that match and whose ids follow one: ``count`` or a few times more, or all if there are not as many."""
        self._connection.existing()
        store = self._connection.store
        share = 4 * count / max(1, store.size())
        while True:
            both = " and ".join(f"({part})" for part in (_ids(first, share), where) if part)
            rows = [row for batch in store.scan(both or None) for row in batch]
            if len(rows) >= count or share >= 1:
                return rows
            share *= 16


def _ids(first: int, share: float) -> str:
    """The condition for a share of all ids, from the first on and round the end; empty for all of them."""
    if share >= 1:
        return ""
    behind = first + int(share * 2**_ID_BITS)
    least, end = (f'"{number % 2**_ID_BITS:0{_ID_BITS // 4}x}"' for number in (first, behind))
    return f"id >= {least} {'or' if behind >= 2**_ID_BITS else 'and'} id < {end}"
