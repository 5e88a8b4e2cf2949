"""``ImageIndex``: the facade that the library, the command line and the web page share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from mg_milvus.duplicates.find import DuplicateQuery, find_duplicates, find_duplicates_of
from mg_milvus.errors import QueryError
from mg_milvus.images.decode import DEFAULT_MAX_PIXELS
from mg_milvus.images.discover import discover, path_text
from mg_milvus.ingest.fit_heads import FEWEST_TO_FIT, SAMPLE_SIZE
from mg_milvus.ingest.metadata import default_values, read_metadata
from mg_milvus.ingest.metrics import IngestMetrics
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.ingest.run import Source, run_ingest, run_refit
from mg_milvus.results import IndexInfo
from mg_milvus.schema.models import Schema
from mg_milvus.search import retrieve, searcher
from mg_milvus.search.query import Query, QueryOptions
from mg_milvus.session import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Unpack

    from mg_milvus.bulk.transfer import TransferReport
    from mg_milvus.codes import Codes
    from mg_milvus.config import Tls
    from mg_milvus.duplicates.report import DuplicateReport
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Progress
    from mg_milvus.results import Hits, IngestReport
    from mg_milvus.search.explain import Explanation
    from mg_milvus.store.base import Row

    PathLike = str | os.PathLike[str]


class ImageIndex:
    """Images in one Milvus collection, found by their likeness.

    Make one with ``open``; use it as a context manager. Queries may come from several threads at once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def open(
        cls,
        uri: PathLike = "mgm.db",
        schema: Schema | PathLike | None = None,
        encoder: Encoder | PathLike | None = None,
        token: str | None = None,
        *,
        collection: str | None = None,
        device: str = "auto",
        timeout: float = 10.0,
        tls: Tls | None = None,
    ) -> Self:
        """Open an index. Nothing is connected or made before it is needed.

        Args:
            uri: a Milvus Lite file ``*.db`` or a server ``http://host:19530``.
            schema: preset name, YAML file or ``Schema``. A collection that exists knows its own; a given one may change
                weights and fusion only.
            encoder: ``builtin``, an encoder file, or an ``Encoder``. A collection that exists brings its own.
            token: ``user:password`` or an API key, where the server asks for one; default: what the URI holds.
            collection: its name; default: the schema's, or the only one there is.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            timeout: seconds that one call to the server may take.
            tls: certificates, for a server that is reached with TLS; ``https://`` alone trusts public authorities.

        Raises:
            SchemaError: the schema is not well formed.
        """
        if schema is not None and not isinstance(schema, Schema):
            schema = Schema.load(str(schema))
        if isinstance(encoder, os.PathLike):
            encoder = Path(encoder)
        return cls(Connection(
            str(uri), collection=collection, token=token, timeout=timeout, device=device,
            schema=schema, encoder=encoder, tls=tls,
        ))  # fmt: skip

    @property
    def uri(self) -> str:
        """Where the collection lives."""
        return self._connection.uri

    @property
    def collection(self) -> str:
        """Its name."""
        return self._connection.collection

    @property
    def schema(self) -> Schema:
        """The collection's schema, or the one it will be made with."""
        return self._connection.schema

    @property
    def connection(self) -> Connection:
        """What the index asks through: its store, its encoder, and what its collection says of itself."""
        return self._connection

    @property
    def exists(self) -> bool:
        """Whether there is a collection already."""
        return self._connection.description() is not None

    def ingest(
        self,
        *sources: PathLike,
        metadata: PathLike | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        prune: bool = False,
        dry_run: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Callable[[Progress], None] | None = None,
        metrics: IngestMetrics | None = None,
        inside: PathLike | None = None,
    ) -> IngestReport:
        """Bring the index up to date with folders and files of images.

        Files whose size and time, or content, are those of their row are not encoded again. The first ingest into a
        new collection fits the hash heads to a sample of the images. A file that cannot be read is reported and
        keeps the row it may have. Ctrl-C ends it with a report; what Milvus acknowledged stays.

        Args:
            *sources: folders, walked recursively, and image files.
            metadata: CSV, JSON lines or Parquet file with the schema's extra fields.
            batch_size: images per batch.
            workers: decoding threads; default: one a core.
            prune: also delete the rows under the given folders whose file is gone.
            dry_run: write nothing, read no image; say what would be done.
            max_pixels: larger images are refused.
            progress: called after each batch.
            metrics: counts and durations; one for each ingest, whose text any thread can read meanwhile.
            inside: what links lead to is taken only where it lies in this folder; the rest is reported.

        Raises:
            ImageError: a source does not exist; nothing was done.
            StoreError: Milvus failed; what was acknowledged stays.
        """
        table = read_metadata(metadata, self.schema.fields, [path_text(s) for s in sources]) if metadata else None
        defaults = default_values(self.schema.fields)

        def fields_of(found: Found, row: Row | None) -> Mapping[str, Any]:
            if table is not None:
                return table.values(found.path)
            return defaults if row is None else row.fields

        return run_ingest(
            self._connection,
            Source(
                lambda on_failure: discover(sources, on_failure, inside=inside), fields_of, sources if prune else ()
            ),
            Settings(batch_size, workers, max_pixels, metrics or IngestMetrics()),
            dry_run=dry_run,
            progress=progress,
        )

    def refit(
        self,
        to: str,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Fit the hash heads again, on the collection as it has grown, and build the new one beside the old.

        The images are read again from where they were ingested; those that are gone are reported as failures. The old
        collection stays as it is.

        Args:
            to: name of the collection to make; it must not exist.
            batch_size: as in ``ingest``.
            workers: as in ``ingest``.
            progress: as in ``ingest``.

        Raises:
            QueryError: ``to`` exists already.
        """
        return run_refit(self._connection, to, Settings(batch_size, workers), progress=progress)

    def load(
        self, folder: PathLike, *, partial: bool = False, bucket: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> TransferReport:  # fmt: skip
        """Put a folder of codes, as ``bulk.encode`` and ``export`` write it, into the collection.

        A collection that does not exist is made with the codes' own schema and encoder, and their name unless one was
        given when the index was opened; a schema that was given may have other weights, fusion and storage. Rows that
        are there already are replaced, so after a failure, just load again.

        Args:
            folder: here or in a bucket.
            partial: load what there is, even where a shard is not finished.
            bucket: instead of writing row by row, let the server import files from its own bucket, in which this is
                the URL of a folder: ``s3://a-bucket/imports``. For a collection that is empty.
            progress: called after each batch.

        Raises:
            CodeFileError: the folder is damaged, or not finished; nothing was written, unless damage was found inside
                of a file.
            EncoderMismatchError, SchemaMismatchError: the collection cannot take these codes; nothing was written.
            StoreError: Milvus failed; what was acknowledged stays.
        """
        from mg_milvus.bulk import transfer  # with all that reads from the web, which few commands need

        return transfer.load(self._connection, folder, partial=partial, bucket=bucket, progress=progress)

    def export(self, folder: PathLike, *, progress: Callable[[Progress], None] | None = None) -> TransferReport:
        """Write the collection into a folder of codes: all rows, the schema as it is tuned, and the encoder's file.

        Args:
            folder: here or in a bucket; without files of codes.
            progress: called after each batch.

        Raises:
            CollectionNotFoundError: there is none.
            CodeFileError: the folder cannot be written, or has codes already.
        """
        from mg_milvus.bulk import transfer

        return transfer.export(self._connection, folder, progress=progress)

    def query(self, image: ImageSource, **options: Unpack[QueryOptions]) -> Hits:
        """Find the images that look like one; see ``query_many``."""
        return self.query_many([image], **options)[0]

    def query_many(self, images: Sequence[ImageSource], **options: Unpack[QueryOptions]) -> list[Hits]:
        """Find the images that look like each of several, in one batch.

        Args:
            images: paths, encoded bytes, PIL images, numpy arrays (h, w), (h, w, 3) or (h, w, 4), or torch tensors
                (3, h, w) or (1, h, w); uint8, or floats from 0 to 1.
            **options: see ``QueryOptions``.

        Returns:
            At most k hits for each image, best first; equal scores are ordered by the weighted distance, then by id.
            Each answer is a list that shows itself in a notebook.

        Raises:
            ImageError: an image cannot be read.
            QueryError: an option is out of range.
            FilterError: Milvus does not understand the filter.
        """
        self._connection.existing()
        query = Query.of(self.schema, options)
        if not images:
            return []
        encoder, box = self._connection.encoder, options.get("crop")
        prepared = [searcher.prepared(encoder, image, box, regions=query.regions) for image in images]
        return searcher.ask(self._connection.store, self.schema, searcher.encoded(encoder, prepared), query)

    def query_codes(self, codes: Mapping[str, bytes | Codes], **options: Unpack[QueryOptions]) -> Hits:
        """Ask with codes that are there already.

        Args:
            codes: granularity -> bits / 8 bytes (or uint8), for every granularity of the schema.
            **options: see ``QueryOptions``; ``crop`` has no meaning here.

        Raises:
            QueryError: a granularity is missing, or a code has the wrong length.
        """
        self._connection.existing()
        query = Query.of(self.schema, options).without_regions(options)
        asked = searcher.checked_codes(self.schema, codes)
        return searcher.ask(self._connection.store, self.schema, asked, query)[0]

    def like(self, id_or_path: PathLike, **options: Unpack[QueryOptions]) -> Hits:
        """Find the images that look like one that is indexed, which is itself left out; nothing is encoded.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._connection.existing()
        query = Query.of(self.schema, options).without_regions(options)
        row = self._connection.rows([id_or_path], tuple(self.schema.bits))[0]
        codes = {name: np.frombuffer(code, np.uint8)[None] for name, code in row.codes.items()}
        return searcher.ask(self._connection.store, self.schema, codes, query, without=[row.id])[0]

    def explain(
        self, image: ImageSource | None = None, *, like: PathLike | None = None, **options: Unpack[QueryOptions]
    ) -> Explanation:
        """Ask as ``query`` does, or ``like``, and tell how the answer came about: its hits are the same.

        Args:
            image: as for ``query``.
            like: instead, the id or path of an image that is indexed.
            **options: see ``QueryOptions``.

        Raises:
            QueryError: none or both of the two are given; or as ``query`` and ``like``.
        """
        if (image is None) == (like is None):
            raise QueryError("explain asks with one image; give it, or like=ID_OR_PATH, and not both")
        trace = retrieve.Trace()
        with trace.timed("connect"):
            self._connection.existing()
        query = Query.of(self.schema, options)
        if image is None:
            query = query.without_regions(options)
            with trace.timed("codes"):
                row = self._connection.rows([like or ""], tuple(self.schema.bits))[0]
            codes = {name: np.frombuffer(code, np.uint8)[None] for name, code in row.codes.items()}
            return searcher.explain(self._connection.store, self.schema, codes, query, trace, [row.id])
        with trace.timed("load encoder"):
            encoder = self._connection.encoder
        with trace.timed("decode"):
            prepared = searcher.prepared(encoder, image, options.get("crop"), regions=query.regions)
        with trace.timed("encode"):
            codes = searcher.encoded(encoder, [prepared])
        return searcher.explain(self._connection.store, self.schema, codes, query, trace)

    def duplicates(
        self,
        *,
        of: PathLike | None = None,
        within: PathLike | None = None,
        newer_than: datetime | None = None,
        distance: int | None = None,
        precision: float | None = None,
        keep: str = "best",
        progress: Callable[[Progress], None] | None = None,
    ) -> DuplicateReport:
        """Find groups of near-identical images. Nothing is deleted, no row and no file.

        Images whose files are gone count too: the rows are compared.

        Args:
            of: an image file; only what is near to it is looked for, without reading the index as a whole.
            within: only rows under this folder.
            newer_than: only pairs of which at least one file was modified after this time (a naive one is local).
            distance: largest distance of near images on ``fine``, in bits.
            precision: instead, share of the pairs found that should not be near by chance (0.99); the distance
                follows from how near the unrelated images of this index are to each other.
            keep: which image of a group stays: ``best`` (most pixels, then bytes), ``largest`` (most bytes),
                ``oldest``, ``newest`` (by the time of the file) or ``first`` (by path).
            progress: called now and then.

        Raises:
            QueryError: an option is out of range, the schema has no ``fine``, or there are too few rows.
            ImageError: ``of`` cannot be read.
        """
        self._connection.existing()
        since = None if newer_than is None else int(newer_than.timestamp() * 1e9)
        query = DuplicateQuery(distance=distance, precision=precision, keep=keep, within=within, newer_than_ns=since)
        query.check(self.schema)
        store = self._connection.store
        if of is not None:
            return find_duplicates_of(store, self.schema, self._connection.encoder, of, query)
        return find_duplicates(store, self.schema, query, progress or (lambda _: None))

    def path(self, id_or_path: PathLike) -> str:
        """Where an indexed image was when it was ingested.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._connection.existing()
        return self._connection.rows([id_or_path])[0].path

    def delete(self, ids_or_paths: Sequence[PathLike]) -> int:
        """Delete rows, by id or by the path they were ingested from; the files stay. The number of rows deleted.

        Raises:
            NotIndexedError: one of them is not indexed; nothing was deleted.
        """
        self._connection.existing()
        return self._connection.store.delete([row.id for row in self._connection.rows(ids_or_paths)])

    def delete_where(self, filter: str) -> int:  # noqa: A002
        """Delete the rows that match a Milvus expression; the number of rows deleted."""
        self._connection.existing()
        store = self._connection.store
        ids = [row.id for rows in store.scan(filter) for row in rows]
        return store.delete(ids)

    def count(self, filter: str | None = None) -> int:  # noqa: A002
        """Count the rows, or those that match a Milvus expression."""
        self._connection.existing()
        return self._connection.store.count(filter)

    def info(self) -> IndexInfo:
        """Tell what the collection is.

        Raises:
            CollectionNotFoundError: there is none.
        """
        description = self._connection.existing()
        store = self._connection.store
        rows, fitted = store.count(), description.adapted_on
        advice: tuple[str, ...] = ()
        if description.schema.encoder.heads == "adapt" and rows >= FEWEST_TO_FIT:
            if not fitted:
                advice = (f"the hash heads are the shipped ones; mgm refit --to NAME would fit them to {rows} images",)
            elif fitted < SAMPLE_SIZE and rows >= 4 * fitted:
                advice = (f"the hash heads were fitted on {fitted} of {rows} images; mgm refit --to NAME would help",)
        return IndexInfo(
            self.uri, store.server(), self.collection, rows, self.schema.model_dump(mode="json"),
            description.fingerprint, description.backbone, f"adapted on {fitted} images" if fitted else "shipped",
            self.schema.bytes_per_image, advice,
        )  # fmt: skip

    def close(self) -> None:
        """Give the connection back; idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
