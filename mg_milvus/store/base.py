"""The ``Store`` protocol and its records, and how many clusters a BIN_IVF_FLAT index should have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.schema.models import ExtraField, FusionSettings, Schema


FEWEST_ROWS = 1_024
"""Rows of a segment from which on Milvus builds an index at all."""
FEW_ROWS = 65_536
"""Rows of a segment up to which any number of clusters is fine: comparing with all takes about a millisecond."""
MOST_LISTS = 65_536
"""The most that Milvus takes."""
_SEGMENT = 1 << 30
"""Bytes of rows in a sealed segment (dataCoord.segment.maxSize); each has an index of its own."""


def nlist_for(rows: int) -> int:
    """Clusters for the rows of one segment: 4 times their root, as Milvus and FAISS advise; 1 to 65,536."""
    return min(MOST_LISTS, max(1, round(4 * math.sqrt(rows))))


def fits(nlist: int, rows: int) -> bool:
    """Whether ``nlist`` is within a factor of two of the best one for the rows of a segment, or these are few.

    Recall and time change slowly with it, while rebuilding an index takes hours.
    """
    return rows <= FEW_ROWS or nlist_for(rows) / 2 <= nlist <= nlist_for(rows) * 2


def rows_a_segment(rows: int, row_bytes: float) -> int:
    """Rows of a sealed segment when there are so many of this size."""
    return min(rows, max(1, int(_SEGMENT / row_bytes)))


def typical_rows(segments: Sequence[int]) -> int:
    """Rows of the segment that a row drawn at random lies in, on average; small ones are not indexed and not counted.

    Args:
        segments: rows of each.

    Returns:
        0 when none is large enough for an index.
    """
    indexed = [rows for rows in segments if rows >= FEWEST_ROWS]
    return round(sum(rows * rows for rows in indexed) / sum(indexed)) if indexed else 0


def nprobe_for(nlist: int, wanted_nlist: int, wanted_nprobe: int) -> int:
    """Clusters to search: the share of ``wanted_nprobe`` in ``wanted_nlist``, of the actual number."""
    return min(nlist, max(1, round(nlist * wanted_nprobe / wanted_nlist)))


_NOT_GIVEN = -(2**63)


@dataclass(frozen=True, slots=True)
class Row:
    """One image as it is stored.

    Attributes:
        id: 32 hexadecimal digits.
        path: absolute path (or URI) of the image.
        size: bytes of the file.
        mtime_ns: modification time of the file, nanoseconds since the epoch.
        width: pixels, as shown (after the EXIF rotation).
        height: pixels.
        content_hash: hexadecimal BLAKE2b-128 of the file's bytes.
        codes: granularity -> packed code, bits / 8 bytes. May be empty or partial in what ``fetch`` returns.
        fields: the schema's own extra fields.
        tags: stored numbers of the tags, names before groups, see ``schema.tags``; empty without any.
        region_codes: codes of all regions, one behind the other, in the order of ``windows``. Empty: those that are
            stored stay; ``fetch`` and ``scan`` never read them, ``Regions.codes`` does.
        taken: when the photograph was taken, nanoseconds since the epoch, of the camera's clock as if that were UTC;
            not given, where the image does not say, it is ``mtime_ns``.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    width: int
    height: int
    content_hash: str
    codes: Mapping[str, bytes] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    region_codes: bytes = b""
    tags: Sequence[int] = ()
    taken: int = _NOT_GIVEN

    def __post_init__(self) -> None:
        if self.taken == _NOT_GIVEN:
            object.__setattr__(self, "taken", self.mtime_ns)

    def at_time(self, size: int, mtime_ns: int) -> Row:
        """The row of the same content, whose file has another size or modification time by now."""
        taken = _NOT_GIVEN if self.taken == self.mtime_ns else self.taken
        return replace(self, size=size, mtime_ns=mtime_ns, taken=taken)


@dataclass(frozen=True, slots=True)
class Description:
    """What a collection stores about itself, as JSON in its description.

    Attributes:
        schema: the schema it was created with, with the weights and fusion that it was tuned to since.
        fingerprint: of the encoder that fills it.
        adapted_on: images of this collection the heads were fitted on; 0 for shipped heads.
        backbone: name of the encoder's backbone, for people.
        added: names of the fields of the schema that were added since, the last ones there; see ``Store.add_columns``.
    """

    schema: Schema
    fingerprint: str
    adapted_on: int = 0
    backbone: str = ""
    added: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of one query on one granularity.

    Attributes:
        ids: (n,) primary keys, nearest first; the order within a tie is by id.
        distances: (n,) int32 Hamming distances in bits.
    """

    ids: list[str]
    distances: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class HybridSearch:
    """A search of several granularities, whose results the server fuses.

    Attributes:
        weights: granularity -> weight in the fusion, 0 or more.
        k: results returned for each query.
        depth: candidates retrieved from each granularity.
        rrf_k: constant in 1 / (rrf_k + rank).
        where: a filter.
    """

    weights: Mapping[str, float]
    k: int
    depth: int
    rrf_k: int
    where: str | None = None


@dataclass(frozen=True, slots=True)
class IndexLists:
    """The clusters of a BIN_IVF_FLAT index.

    Attributes:
        collection: whose codes it holds: the images' or their regions'.
        nlist: clusters that it was built with.
        rows: of a typical sealed segment, each of which has an index of its own; 0: none is large enough for one.
    """

    collection: str
    nlist: int
    rows: int


class Indexes(Protocol):
    """The indexes over the codes of one collection, and over those of its regions."""

    def lists(self) -> list[IndexLists]:
        """What BIN_IVF_FLAT was built with; empty where there is no such index, as on Milvus Lite."""

    def rebuild(self, collection: str, nlist: int) -> None:
        """Build BIN_IVF_FLAT again with so many clusters, for a collection that ``lists`` names.

        The collection is released and loaded again; queries fail for these seconds. The server then builds in the
        background, and compares with every row until it is done.
        """

    def refresh(self) -> None:
        """Load rows that the server imported by itself."""


class Regions(Protocol):
    """The codes of regions of one collection's images; they are written by ``Store.upsert``.

    Every method raises ``QueryError`` when the schema has no regions, and ``StoreError`` when what holds them is
    missing or was filled by another encoder.
    """

    def nearest(self, scale: int, codes: Codes, depth: int, images: Sequence[str] | None = None) -> list[Neighbours]:
        """Search the regions of one scale.

        Args:
            scale: its place in the schema.
            codes: (n, bits / 8) uint8.
            depth: regions returned for each query, at most.
            images: look at the regions of these images only.

        Returns:
            One ``Neighbours`` a query, whose ids are those of regions, see ``regions.region_id``.
        """

    def count(self) -> int:
        """Number of regions."""

    def scan(self) -> Iterator[list[str]]:
        """The ids of all regions, in batches of bounded size, in no stated order."""

    def codes(self, images: Sequence[str]) -> dict[str, bytes]:
        """Image id -> the codes of all its regions, as in ``Row.region_codes``. Images that lack some are left out."""

    def codes_by_id(self, regions: Sequence[str]) -> dict[str, bytes]:
        """Region id -> its code, bits / 8 bytes; regions that do not exist are left out."""

    def delete(self, images: Sequence[str]) -> None:
        """Delete the regions of images; the images' rows stay."""


class Store(Protocol):
    """One collection, and the encoders stored beside it, in some database.

    Every method raises ``StoreError`` or one of its children, never a vendor's exception. Reads see this client's own
    earlier writes. Queries may come from several threads at once.
    """

    uri: str
    collection: str

    @property
    def regions(self) -> Regions:
        """The codes of regions."""

    @property
    def indexes(self) -> Indexes:
        """The indexes over the codes."""

    def describe(self) -> Description | None:
        """The collection's own description; None when there is no such collection.

        Raises:
            ForeignCollectionError: the collection was not created by mg-milvus.
        """

    def identity(self) -> object:
        """What is equal as long as the collection is the same one; None if there is none.

        It may be dropped and created anew, or another one may get its alias. What was known of the former is forgotten.
        """

    def check(self, schema: Schema) -> None:
        """Refuse what ``create`` would refuse, before any work is done.

        Raises:
            UnsupportedError: the server cannot hold this schema.
            ForeignCollectionError: another program's collection has the name that the regions need.
        """

    def create(self, description: Description) -> Description:
        """Create the collection with its indexes, load it, and return its description.

        If another client has created it in the meantime, its description is returned: the first one wins. Where
        the server refuses the collection, its companions are removed again.

        Raises:
            UnsupportedError, ForeignCollectionError: as ``check``.
        """

    def retune(self, weights: Mapping[str, float], fusion: FusionSettings) -> Description:
        """Record other weights, one for every granularity, and another fusion; return the new description.

        Rows and codes stay as they are. ``describe`` of every client returns the new ones from now on.

        Raises:
            CollectionNotFoundError: there is no collection.
            ValueError: weights that a schema cannot have; nothing was changed.
        """

    def add_columns(self, fields: Sequence[ExtraField]) -> Description:
        """Add columns to those of the schema; return the new description. Rows and codes stay as they are.

        Rows that are there have no value in them. Columns that are there already, with the same type, are left alone.
        ``describe`` of every client returns the new description from now on.

        Raises:
            CollectionNotFoundError: there is no collection.
            SchemaError: a column is there with another type, or the schema cannot have it; nothing was changed.
        """

    @property
    def refit_name(self) -> str:
        """The name of the collection that is to take the place of this one; only a refit may create it."""

    def begin_refit(self) -> None:
        """Say that this collection, one of a ``refit_name``, is about to be filled, and not whole."""

    def take_over(self) -> bool:
        """Give this collection, whose ``refit_name`` says of what it is a refit and which is whole, the place of that.

        Clients that use the name find either the former collection or this one, whole. When it is interrupted, do it
        again. The former collection is removed with its companions. A session with it must be opened anew.

        Returns:
            Whether there was anything to do; False for what is no refit, or has its place already.
        """

    def drop(self) -> None:
        """Remove the collection and its companions, if there is one."""

    def upsert(self, rows: Sequence[Row]) -> None:
        """Write rows with all codes and fields; a row with an existing id replaces it. Returns when acknowledged.

        Regions are written before their images: an image that is there has its regions, whatever happens.
        """

    def nearest(
        self,
        granularity: str,
        codes: Codes,
        depth: int,
        where: str | None = None,
        *,
        known: dict[str, Mapping[str, bytes]] | None = None,
    ) -> list[Neighbours]:
        """Search one field with (n, bits / 8) uint8 codes: one ``Neighbours`` a query, at most ``depth`` long.

        With ``known`` (id -> granularity -> code), all codes of the hits are returned inline where the collection can
        return them, and added to ``known``.
        """

    def hybrid(self, codes: Mapping[str, Codes], search: HybridSearch) -> list[list[tuple[str, float]]]:
        """The server's own rank fusion: per query up to ``k`` pairs (id, score), best first."""

    def fetch(self, ids: Sequence[str], granularities: Sequence[str] = ()) -> dict[str, Row]:
        """Rows by id, with the codes of the named granularities only. Unknown ids are left out."""

    def fetch_codes(self, ids: Sequence[str], granularities: Sequence[str]) -> dict[str, Mapping[str, bytes]]:
        """Codes by id, and nothing else, in a fraction of the time of ``fetch``. Unknown ids are left out."""

    def scan(self, where: str | None = None, granularities: Sequence[str] = ()) -> Iterator[list[Row]]:
        """All rows, or those that match, with the codes of these granularities, in batches of bounded size.

        They are in no stated order.
        """

    def values(self, columns: Sequence[str], where: str | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """Some columns of all rows, or of those that match, in batches of bounded size, in no stated order.

        Reads nothing else: in Milvus Lite a quarter of the time of ``scan`` for the ids and paths of 20,000 rows.

        Args:
            columns: attributes of ``Row`` (no codes), and fields of the schema's own, each once.
            where: only rows that match.

        Returns:
            A tuple for each row, in the order of ``columns``; a missing value is None.
        """

    def count(self, where: str | None = None) -> int:
        """Number of rows, or of those that match."""

    def size(self) -> int:
        """Number of rows, at most a minute old, and counted after this client's writes."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows by id, and then their regions; the number of rows that were there."""

    def put_encoder(self, fingerprint: str, data: bytes) -> None:
        """Store an encoder file beside the collection, in the companion ``<collection>_encoder``; idempotent."""

    def get_encoder(self, fingerprint: str) -> bytes | None:
        """The encoder file of a fingerprint; None if it, or a part of it, is missing."""

    def drop_encoder(self, fingerprint: str) -> None:
        """Remove one encoder from beside the collection. No error when there is none."""

    def put_statistics(self, data: bytes) -> None:
        """Store what was measured of the collection beside it; what was there before is replaced."""

    def get_statistics(self) -> bytes | None:
        """What ``put_statistics`` stored last; None if nothing."""

    def put_clusters(self, data: bytes) -> None:
        """Store the clusters of the collection's images beside it; what was there before is replaced."""

    def get_clusters(self) -> bytes | None:
        """What ``put_clusters`` stored last; None if nothing."""

    def collections(self) -> list[str]:
        """Names of all mg-milvus collections at this URI, without companions, sorted."""

    def server(self) -> str:
        """Name and version of the database, such as "Milvus Lite 2.5.1"."""

    def close(self) -> None:
        """Close the connection; idempotent."""
