"""``ImageIndex``: the facade that the library, the command line and the web page share."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from PIL import Image

from mg_milvus.codes import in_steps, pack
from mg_milvus.config import MilvusConfig
from mg_milvus.duplicates.find import DuplicateQuery, find_duplicates, find_duplicates_of
from mg_milvus.duplicates.hits import readable_twice, verify_hits, verify_rows
from mg_milvus.duplicates.ignored import add_ignored, file_content
from mg_milvus.duplicates.move import check_choice, move_members, undo_move
from mg_milvus.encoder.backbones import library_of
from mg_milvus.errors import FilterError, QueryError
from mg_milvus.images.discover import Rules, Tally, discover, text_path
from mg_milvus.images.paths import stored_path
from mg_milvus.ingest.columns import find_columns
from mg_milvus.ingest.fit_heads import heads_in_words
from mg_milvus.ingest.metadata import default_values, read_metadata
from mg_milvus.ingest.metrics import IngestMetrics
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.ingest.refit import run_refit, run_refit_in_place
from mg_milvus.ingest.relocate import run_relocate
from mg_milvus.ingest.run import Source, run_ingest
from mg_milvus.ingest.user_tags import tag_rows
from mg_milvus.results import IndexInfo
from mg_milvus.schema.models import REGIONS, Schema
from mg_milvus.schema.tags import ANY_TAG, USER_TAGS, find_word
from mg_milvus.search import rows as listing
from mg_milvus.search.chance import ChanceKeeper
from mg_milvus.search.explain import Trace
from mg_milvus.search.overview import MOST_LISTED, ClusterKeeper
from mg_milvus.search.query import Query, QueryOptions, QueryTerm, check_together, with_query_options
from mg_milvus.search.query_image import (
    QueryArea,
    check_codes,
    decode_query_image,
    encode_query_images,
    whole_codes,
)
from mg_milvus.search.searcher import Searcher, SearchResult
from mg_milvus.search.words import EncodedWords, TaggedWords
from mg_milvus.session import Session
from mg_milvus.store.filter_language import both
from mg_milvus.store.filters import among, filter_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from typing import Any, Unpack

    from mg_milvus.bulk.transfer import TransferReport
    from mg_milvus.codes import Codes, QueryCodes
    from mg_milvus.config import Tls
    from mg_milvus.duplicates.move import MoveReport
    from mg_milvus.duplicates.report import DuplicateReport
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.encoder.function import FeatureFunction
    from mg_milvus.images.decode import ImageSource
    from mg_milvus.images.discover import Found
    from mg_milvus.records import Progress, Verification
    from mg_milvus.results import Hits, IngestReport, RelocateReport
    from mg_milvus.search.explain import Explanation
    from mg_milvus.search.overview import Cluster, Clusters
    from mg_milvus.search.query_image import QueryImage
    from mg_milvus.search.rows import Listing
    from mg_milvus.search.words import Words
    from mg_milvus.store.base import Row
    from mg_milvus.store.filters import Filter

    PathLike = str | os.PathLike[str]


class ImageIndex:
    """Images in one Milvus collection, searched by similarity.

    Make one with ``open``; use it as a context manager. Queries may come from several threads at once.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._chance = ChanceKeeper(session)
        self._clusters = ClusterKeeper(session)

    @classmethod
    def open(
        cls,
        uri: PathLike = "mgm.db",
        schema: Schema | PathLike | None = None,
        encoder: Encoder | PathLike | FeatureFunction | None = None,
        token: str | None = None,
        *,
        collection: str | None = None,
        device: str = "auto",
        timeout: float = 10.0,
        tls: Tls | None = None,
    ) -> Self:
        """Open an index. Nothing is connected or created before it is needed.

        Args:
            uri: a Milvus Lite file ``*.db`` or a server ``http://host:19530``.
            schema: preset name, YAML file or ``Schema``. An existing collection has its own; a given schema may differ
                from that in weights and fusion only.
            encoder: ``builtin``, an encoder file, an ``Encoder``, or a function: RGB images of at most about 512 * 512
                pixels -> (n, d) floats, whose heads are fitted at the first ingest. An existing collection has its
                own; one that was filled with a function needs that function again.
            token: ``user:password`` or an API key, for servers that require one; default: user and password of the URI.
            collection: its name; default: the schema's, or the only one there is.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            timeout: seconds allowed for connecting and for each request.
            tls: certificates, for a server that is reached with TLS; ``https://`` alone trusts public authorities.

        Raises:
            SchemaError: the schema is not well formed.
        """
        return cls.from_config(MilvusConfig(str(uri), token, collection, timeout, tls), schema, encoder, device)

    @classmethod
    def from_config(
        cls,
        config: MilvusConfig,
        schema: Schema | PathLike | None = None,
        encoder: Encoder | PathLike | FeatureFunction | None = None,
        device: str = "auto",
    ) -> Self:
        """Open an index as ``open`` does, with the arguments about Milvus in one record.

        Args:
            config: URI, token, collection, timeout and certificates.
            schema: as in ``open``.
            encoder: as in ``open``.
            device: as in ``open``.

        Raises:
            SchemaError: the schema is not well formed.
        """
        if schema is not None and not isinstance(schema, Schema):
            schema = Schema.load(str(schema))
        if isinstance(encoder, os.PathLike):
            encoder = Path(encoder)
        elif callable(encoder):
            from mg_milvus.encoder.function import function_encoder

            encoder = function_encoder(encoder)
        return cls(Session(config, schema, encoder, device))

    @property
    def uri(self) -> str:
        """Where the collection lives."""
        return self._session.uri

    @property
    def collection(self) -> str:
        """Its name."""
        return self._session.collection

    @property
    def schema(self) -> Schema:
        """The collection's schema, or the one it will be created with."""
        return self._session.schema

    @property
    def session(self) -> Session:
        """The open collection: its store, schema and encoder."""
        return self._session

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder that filled the collection."""
        return self._session.existing().fingerprint

    @property
    def exists(self) -> bool:
        """Whether there is a collection already."""
        return self._session.description() is not None

    def ingest(
        self,
        *sources: PathLike,
        metadata: PathLike | None = None,
        reset_metadata: bool = False,
        batch_size: int = 64,
        workers: int | None = None,
        prune: bool = False,
        dry_run: bool = False,
        max_pixels: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        metrics: IngestMetrics | None = None,
        inside: PathLike | None = None,
        exclude: Sequence[str] = (),
    ) -> IngestReport:
        """Bring the index up to date with folders and files of images.

        Files whose size and time, or content, are those of their row are not encoded again. A new file with the content
        of a row whose file is gone takes over that row, with its fields. The first ingest into a
        new collection fits the hash heads to a sample of the images. A file that cannot be read is reported and
        keeps the row it may have. Ctrl-C ends it with a report; what Milvus acknowledged stays.

        Args:
            *sources: folders, walked recursively, and image files.
            metadata: CSV, JSON lines or Parquet file with values of the extra fields; images without a row there keep
                their values. Where no schema with fields was given, every column of the table is stored: those that
                the collection lacks are added to it, with the type of their cells, and nothing is encoded again.
            reset_metadata: images without a row in ``metadata`` get the defaults instead.
            batch_size: images per batch.
            workers: decoding threads; default: one a core.
            prune: also delete the rows under the given folders whose file is gone; not those whose file may be on a
                disk that is not mounted, or in a folder that cannot be read.
            dry_run: write nothing, decode no image; say what would be done.
            max_pixels: larger images are refused; default: MGM_MAX_PIXELS, or 200 million, as wherever images are read.
            progress: called after each batch.
            metrics: counts and durations; one for each ingest, whose text any thread can read meanwhile.
            inside: links are followed only to files in this folder; others are reported as failures.
            exclude: patterns of gitignore, relative to each folder, such as ``*.png`` or ``old/``; what matches is left
                out, as by the lines of a file ``.mgmignore`` in a folder.

        Raises:
            ImageError: a source does not exist, or a pattern is none; nothing was done.
            QueryError: ``reset_metadata`` without ``metadata``.
            SchemaError: the table cannot be read, or names none of the images; nothing was done.
            StoreError: Milvus failed; what was acknowledged stays.
        """
        if reset_metadata and metadata is None:
            raise QueryError("reset_metadata replaces the values of all images by those of a table; give metadata too")
        self._session.refresh()  # rows are written with the columns that there are now
        new_fields = self._session.missing_fields()
        fields = (*self.schema.fields, *new_fields) if self.exists else self.schema.fields
        table = columns = None
        if metadata is not None:
            given = self._session.given_schema
            required = [field.name for field in given.fields] if given and given.fields else None
            columns = find_columns(metadata, fields, required, self.schema.bits)
            new_fields, fields = (*new_fields, *columns.new), (*fields, *columns.new)
            table = read_metadata(metadata, fields, [stored_path(s) for s in sources], columns.headers)
        defaults = default_values(fields)

        def fields_of(found: Found, row: Row | None) -> Mapping[str, Any]:
            if table is not None:
                before = None if row is None else row.fields
                if before is not None and reset_metadata:  # tags that people gave are in no table
                    before = defaults | {name: value for name, value in before.items() if name == USER_TAGS}
                return table.values(found.path, before)
            return defaults if row is None else row.fields

        passed, rules = Tally(), Rules(inside=inside, exclude=exclude)
        match = None
        if table is not None and columns is not None:
            match = replace(
                table.match(found.path for found in discover(sources, lambda _: None, rules)),
                columns=columns.records(fields), columns_passed_over=columns.passed_over,
            )  # fmt: skip
        report = run_ingest(
            self._session,
            Source(
                lambda on_failure: discover(sources, on_failure, rules, passed),
                fields_of,
                sources if prune else (),
                new_fields,
            ),
            Settings(batch_size, workers, max_pixels, metrics or IngestMetrics()),
            dry_run=dry_run,
            progress=progress,
        )
        advice: tuple[str, ...] = ()
        if not dry_run:
            self._chance.refresh(report.later, report.far)
            if report.added or report.updated:
                advice = self._heads()[1]
        return replace(report, passed_over=passed.records(), table=match, advice=advice)

    def refit(
        self,
        to: str | None = None,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IngestReport:
        """Fit the hash heads again, on the collection as it has grown, and encode all its images with them.

        The images are read again from where they were ingested. The new codes go into a new collection beside this one,
        which serves meanwhile, and whose name the new one gets when it is whole. Ids, fields, tags, weights and the
        names of clusters stay. After an interruption do it again: it goes on. Rows that others add, change or delete
        meanwhile are followed; only in the last moment, the renaming, nobody should write.

        Args:
            to: instead, name of a collection to make and keep; it must not exist, and this one stays as it is. Images
                that cannot be read are reported as failures.
            batch_size: as in ``ingest``.
            workers: as in ``ingest``.
            progress: as in ``ingest``.

        Raises:
            QueryError: ``to`` exists already; or without it, the heads are fixed, or there are fewer than 50 images.
            ImageError: without ``to``, images cannot be read; the collection stays as it is.
        """
        settings = Settings(batch_size, workers)
        if to is None:
            return run_refit_in_place(self._session, settings, self._measure_refit, progress=progress)
        report = run_refit(self._session, to, settings, progress=progress)
        new = self._session.sibling(to, self.schema.model_copy(update={"collection": to}))
        with closing(new):
            ChanceKeeper(new).refresh(report.later, report.far)
        return report

    def _measure_refit(self, new: Session, report: IngestReport) -> None:
        """Measure what is kept beside a collection for the one that takes its place."""
        ChanceKeeper(new).refresh(report.later, report.far)
        self._clusters.carry_over(new)

    def load(
        self, folder: PathLike, *, partial: bool = False, bucket: str | None = None, rest: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> TransferReport:  # fmt: skip
        """Load a folder of codes, as ``bulk.encode`` and ``export`` write it, into the collection.

        A missing collection is created with the schema and encoder of the codes, and their collection name unless one
        was given when the index was opened; a given schema may have other weights, fusion and storage. Existing rows
        are replaced, so after a failure, load again.

        Args:
            folder: here or in a bucket.
            partial: load what there is, even where a shard is not finished.
            bucket: instead of writing row by row, let the server import files from its own bucket, in which this is
                the URL of a folder: ``s3://a-bucket/imports``. For a collection that is empty.
            rest: address of the server's REST API, which ``bucket`` needs; default: host and port of the URI.
            progress: called after each batch.

        Raises:
            CodeFileError: the folder is damaged, or not finished; nothing was written, unless damage was found inside
                of a file.
            EncoderMismatchError, SchemaMismatchError: the collection cannot take these codes; nothing was written.
            StoreError: Milvus failed; what was acknowledged stays.
        """
        from mg_milvus.bulk import import_jobs, transfer  # with all that reads from the web, which few commands need

        place = None if bucket is None else import_jobs.ImportPlace(bucket, rest)
        report = transfer.load(self._session, folder, partial=partial, place=place, progress=progress)
        self._chance.refresh()
        return report

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

        return transfer.export(self._session, folder, progress=progress)

    @with_query_options
    def query(
        self, image: ImageSource | list[ImageSource] | None = None, *, unlike: Sequence[ImageSource] = (),
        **options: Unpack[QueryOptions],
    ) -> Hits:  # fmt: skip
        """Find the images that look like one, or like several at once, or show what words say.

        Args:
            image: see ``query_many``; a list is searched with as a whole, see ``query_together``; None: only ``text``.
            unlike: images that push down what is near to them.
            **options: see ``QueryOptions``.

        Raises:
            ImageError: an image cannot be read.
            QueryError: an option is out of range, images have no such tag, or there is nothing to search with.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        if image is None and not unlike:
            return self.search({}, **options).hits
        if image is not None and not isinstance(image, list) and not unlike:
            return self.query_many([image], **options)[0]
        sought = image if isinstance(image, list) else [] if image is None else [image]
        terms = [QueryTerm(own) for own in sought]
        return self.query_together([*terms, *(QueryTerm(own, weight=-1.0) for own in unlike)], **options)

    @with_query_options
    def query_many(self, images: Sequence[ImageSource], **options: Unpack[QueryOptions]) -> list[Hits]:
        """Find the images that look like each of several, in one batch.

        Args:
            images: paths, encoded bytes, PIL images, numpy arrays (h, w), (h, w, 3) or (h, w, 4), or torch tensors
                (3, h, w) or (1, h, w); uint8, or floats from 0 to 1.
            **options: see ``QueryOptions``.

        Returns:
            At most k hits for each image, best first; equal scores are ordered by the weighted distance, then by id.
            Each ``Hits`` is a list with a notebook view.

        Raises:
            ImageError: an image cannot be read.
            QueryError: an option is out of range.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        query = self.check_query(**options)
        if not images:
            return []
        crop, encoder = options.get("crop"), self._session.encoder
        if options.get("verify"):
            images = [readable_twice(image) for image in images]
        decoded = [decode_query_image(encoder, image, QueryArea(crop, query.regions, query.views)) for image in images]
        found = self._searcher.search(encode_query_images(encoder, decoded), query)
        if options.get("verify"):
            return [verify_hits(hits, image, crop) for hits, image in zip(found, images, strict=True)]
        return found

    @with_query_options
    def query_together(self, terms: Sequence[QueryTerm], **options: Unpack[QueryOptions]) -> Hits:
        """Find the images that look like several at once, and unlike others: one ranking over images and granularities.

        With ``text``, these words are one more ranking, and all images may have negative weights. It takes no ``crop``,
        and searches no regions.

        Args:
            terms: the images, each with a weight; with a negative one it pushes down what is near to it.
            **options: see ``QueryOptions``.

        Returns:
            At most k hits, best first, with the distances to the nearest of the images to look for. The order of the
            terms does not matter.

        Raises:
            ImageError: an image cannot be read.
            NotIndexedError: an image to be like is not indexed.
            QueryError: an option is out of range, or there is neither text nor an image with a positive weight.
        """
        return self.search_together(terms, **options).hits

    @with_query_options
    def search_together(self, terms: Sequence[QueryTerm], **options: Unpack[QueryOptions]) -> SearchResult:
        """Search as ``query_together`` does: the query as it was understood, and its hits.

        Args:
            terms: as for ``query_together``.
            **options: see ``QueryOptions``.

        Raises:
            MgMilvusError: as ``query_together``.
        """
        query = check_together(terms, self.check_query(**options), options)
        exclude = []
        codes: dict[int, QueryCodes] = {}
        files = [(place, term.image) for place, term in enumerate(terms) if term.image is not None]
        if files:
            encoder = self._session.encoder
            encoded = encode_query_images(encoder, [decode_query_image(encoder, image) for _, image in files])
            for i, (place, _) in enumerate(files):
                codes[place] = {name: encoded[name][i : i + 1] for name in self.schema.bits}
        for place, term in enumerate(terms):
            if term.like is not None:
                row, codes[place] = self._stored_codes(term.like)
                exclude.append(row.id)
            elif term.codes is not None:
                codes[place] = whole_codes(self.schema, term.codes)
        weighted = [(codes[place], float(term.weight)) for place, term in enumerate(terms)]
        return SearchResult(query, self._searcher.search_together(weighted, query, exclude), None)

    @with_query_options
    def query_codes(self, codes: Mapping[str, bytes | Codes], **options: Unpack[QueryOptions]) -> Hits:
        """Find the images whose codes are near to given ones; a ``crop`` has no meaning here.

        Args:
            codes: granularity -> bits / 8 bytes (or uint8), for every granularity of the schema.
            **options: see ``QueryOptions``.

        Raises:
            QueryError: a granularity is missing, a code has the wrong length, or ``views`` are asked for.
        """
        self.check_query(**options).without_image(options)
        return self.search(check_codes(self.schema, codes), **options).hits

    @with_query_options
    def like(self, id_or_path: PathLike, **options: Unpack[QueryOptions]) -> Hits:
        """Find the images that look like one that is indexed, which is left out; nothing is encoded.

        Args:
            id_or_path: of the image.
            **options: see ``QueryOptions``.

        Raises:
            NotIndexedError: it is not indexed.
            ImageError: its file cannot be read, which ``verify`` needs.
        """
        query = self.check_query(**options).without_image(options)
        row, codes = self._stored_codes(id_or_path)
        hits = self._searcher.search(codes, query, [row.id])[0]
        return verify_hits(hits, text_path(row.path)) if options.get("verify") else hits

    @with_query_options
    def explain(
        self, image: ImageSource | None = None, *, like: PathLike | None = None, **options: Unpack[QueryOptions]
    ) -> Explanation:
        """Query as ``query`` does, or ``like``, and explain the scores of the hits, which are the same.

        Args:
            image: as for ``query``.
            like: instead, the id or path of an image that is indexed.
            **options: see ``QueryOptions``.

        Raises:
            QueryError: both of the two are given, or neither without ``text``; or as ``query`` and ``like``.
        """
        words_only = image is None and like is None and options.get("text") is not None
        if (image is None) == (like is None) and not words_only:
            raise QueryError("explain takes one query image; give it, or like=ID_OR_PATH, and not both")
        trace = Trace()
        with trace.timed("connect"):
            query = self.check_query(**options)
        if words_only:
            return self._searcher.explain({}, query.text_only(), trace=trace)
        if image is None:
            query = query.without_image(options)
            with trace.timed("codes"):
                row, codes = self._stored_codes(like or "")
            explained = self._searcher.explain(codes, query, [row.id], trace)
            image = text_path(row.path)
        else:
            image = readable_twice(image) if options.get("verify") else image
            explained = self._searcher.explain(self._traced_codes(image, query, options, trace), query, trace=trace)
        if options.get("verify"):
            return replace(explained, hits=verify_hits(explained.hits, image, options.get("crop")))
        return explained

    def _traced_codes(self, image: ImageSource, query: Query, options: QueryOptions, trace: Trace) -> QueryCodes:
        with trace.timed("load encoder"):
            encoder = self._session.encoder
        with trace.timed("decode"):
            decoded = decode_query_image(encoder, image, QueryArea(options.get("crop"), query.regions, query.views))
        with trace.timed("encode"):
            return encode_query_images(encoder, [decoded])

    def verify(
        self, image: ImageSource, ids_or_paths: Sequence[PathLike], *, crop: tuple[int, int, int, int] | None = None,
        max_pixels: int | None = None,
    ) -> list[Verification]:  # fmt: skip
        """What an image, or a crop of it, is to each of some indexed images, by their pixels; as ``query`` does.

        Raises:
            ImageError: the image cannot be read, or has more than ``max_pixels``.
            NotIndexedError: one of the others is not indexed.
            QueryError: the crop does not lie inside the image.
        """
        self._session.existing()
        return verify_rows(self._session.rows(ids_or_paths), image, crop, max_pixels)

    @with_query_options
    def check_query(self, **options: Unpack[QueryOptions]) -> Query:
        """Check options against the collection's schema, and take missing ones from it.

        Raises:
            CollectionNotFoundError: there is no collection.
            QueryError: an option is unknown or out of range.
        """
        self._session.existing()
        query = Query.of(self.schema, options)
        if (cluster := options.get("cluster")) is not None:
            ids = self.clusters().ids(cluster)
            if len(ids) > MOST_LISTED:
                raise QueryError(
                    f"cluster '{cluster}' has {len(ids):,} images, a query can be limited to {MOST_LISTED:,}: give one "
                    "of its parts"
                )
            query = replace(query, where=both(query.where, among(ids)))
        return replace(query, words=self._words(query.text)) if query.text else query

    def _words(self, text: str) -> Words:
        """What a text stands for in this collection.

        Raises:
            QueryError: images have no such tag, or no tags at all, or the text is longer than the text tower reads.
        """
        # Only a network of a library can have a text tower; for others the encoder need not be loaded.
        if library_of(self._session.existing().backbone):
            encoder = self._session.encoder
            if encoder.text_granularity is not None:
                return EncodedWords(encoder.text_granularity, in_steps(encoder.text_code(text)))
        self._check_tagged()
        return TaggedWords(find_word(text))

    def _check_tagged(self) -> None:
        """Raise QueryError if no image can have tags."""
        store = self._session.store
        if not store.count(ANY_TAG) and store.size() and not self._session.encoder.has_tags:
            raise QueryError(
                f"the images of '{self.collection}' have no tags: its encoder ({self._session.encoder.backbone}) has "
                "no classifier that names what it sees, and no text tower; ingest into a new collection with the "
                "encoder 'builtin'"
            )

    @with_query_options
    def decode_query(
        self, image: ImageSource, *, max_pixels: int | None = None, **options: Unpack[QueryOptions]
    ) -> QueryImage:
        """Decode a query image for ``encode``: the whole image, or what the options ``crop`` and ``regions`` need.

        Raises:
            ImageError: it cannot be read, or has more than ``max_pixels``.
            QueryError: an option is out of range, or the crop does not lie inside the image.
        """
        query = self.check_query(**options)
        area = QueryArea(options.get("crop"), query.regions, query.views)
        return decode_query_image(self._session.encoder, image, area, max_pixels)

    def encode(self, images: Sequence[QueryImage]) -> list[QueryCodes]:
        """Encode decoded query images in one batch.

        Returns:
            What each image is searched with, for ``search``: granularity -> (1, bits) float32, with views (1, views,
            bits); for one with query regions also ``regions`` -> (1, m, bits), see ``codes.QueryCodes``.
        """
        codes: list[dict[str, Any]] = [{} for _ in images]
        ways = [(image.regions, bool(image.views)) for image in images]
        for way in set(ways):
            places = [place for place, own in enumerate(ways) if own == way]
            batch = encode_query_images(self._session.encoder, [images[place] for place in places])
            names = [name for name in self.schema.code_bits if name in batch]
            for i, place in enumerate(places):
                codes[place] = {name: batch[name][i : i + 1] for name in names}
        return list(codes)

    def codes(self, id_or_path: PathLike) -> dict[str, Codes]:
        """The stored codes of an indexed image: granularity -> (1, bits / 8) uint8.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._session.existing()
        return {name: pack(values) for name, values in self._stored_codes(id_or_path)[1].items()}

    @with_query_options
    def search(
        self, codes: QueryCodes, *, exclude: Sequence[str] = (), all_candidates: bool = False,
        **options: Unpack[QueryOptions],
    ) -> SearchResult:  # fmt: skip
        """Search with the codes of one image: the query as it was understood, its hits and its candidates.

        A ``crop`` has no meaning here.

        Args:
            codes: as ``encode`` returns them, or ``mg_milvus.codes.signs`` of what ``codes`` returns; empty to
                search by ``text`` alone. Without codes of regions, a query that does not name them leaves them out.
            exclude: ids to leave out of the results.
            all_candidates: retrieve the candidates of every granularity, those without a weight too:
                they can be ranked again with any weights.
            **options: see ``QueryOptions``.

        Raises:
            QueryError: an option is out of range, or the server should fuse and ``all_candidates`` is set.
        """
        query = self.check_query(**options)
        if options.get("verify"):
            raise QueryError("verify needs the image itself; query with the image, or without verify")
        if not codes:
            query = query.text_only()
        elif REGIONS not in codes:
            query = query.without_regions(options)
        if all_candidates:
            return self._searcher.search_all_granularities(codes, query, exclude)
        return self._searcher.search_one(codes, query, exclude)

    @property
    def _searcher(self) -> Searcher:
        return Searcher(self._session.store, self.schema, self._chance.chance())

    def _stored_codes(self, id_or_path: PathLike) -> tuple[Row, QueryCodes]:
        row = self._session.rows([id_or_path], tuple(self.schema.bits))[0]
        return row, check_codes(self.schema, row.codes)

    def duplicates(
        self,
        *,
        of: PathLike | None = None,
        within: PathLike | None = None,
        newer_than: datetime | None = None,
        distance: int | None = None,
        precision: float | None = None,
        keep: str = "best",
        edited: bool = False,
        reference: Sequence[PathLike] = (),
        keep_folder: Sequence[PathLike] = (),
        ignore: PathLike | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> DuplicateReport:
        """Find groups of copies. Nothing is deleted, no row and no file.

        The codes propose pairs, and each is looked at: the same image, an edited one, a similar one. Images whose files
        are gone are compared by their codes only, are never kept, and nothing is removable because of them.

        Args:
            of: an image file; only what is near to it is looked for, without reading the index as a whole.
            within: only rows under this folder.
            newer_than: only pairs of which at least one file was modified after this time (a naive one is local).
            distance: look only at pairs whose ``fine`` codes differ in at most so many bits.
            precision: instead, share of the pairs that should not be near by chance (0.99); the distance follows from
                how near the unrelated images of this index are to each other.
            keep: which image of a group stays: ``best`` (most pixels, then bytes), ``largest`` (most bytes),
                ``oldest``, ``newest`` (by the time of the file) or ``first`` (by path).
            edited: edited copies (cropped, captioned, mirrored, turned) are removable, too.
            reference: folders whose images are never removable.
            keep_folder: folders whose images are kept rather than others.
            ignore: a file of pairs that are no duplicates, see ``not_duplicates``.
            progress: called now and then.

        Raises:
            QueryError: an option is out of range, the schema has no ``fine``, or there are too few rows.
            ImageError: ``of`` cannot be read.
        """
        self._session.existing()
        since = None if newer_than is None else int(newer_than.timestamp() * 1e9)
        query = DuplicateQuery(
            distance=distance, precision=precision, keep=keep, within=within, newer_than_ns=since, edited=edited,
            reference=tuple(reference), keep_folder=tuple(keep_folder), ignore=ignore,
        )  # fmt: skip
        query.check(self.schema)
        store, report = self._session.store, progress or (lambda _: None)
        if of is not None:
            return find_duplicates_of((store, self.schema, self._session.encoder), of, query, report)
        return find_duplicates(store, self.schema, query, report)

    def move_duplicates(self, report: DuplicateReport, ids: Sequence[str], folder: PathLike) -> MoveReport:
        """Move the files of copies into a folder, with a journal; ``undo_move`` puts them back. Nothing is deleted.

        Their other names and the other files of their shots go with them, and their rows leave the index. No file is
        overwritten, and an ingest passes over the folder.

        Args:
            report: of ``duplicates``, which the images are from.
            ids: of the images to move, such as ``[member.id for member in report.removable]``.
            folder: made if there is none.

        Raises:
            QueryError: an image is in no group of the report, its file is not there any more, a group would lose all
                its images, or the folder cannot be written; nothing was moved.
        """
        self._session.existing()
        members = check_choice(report, ids)
        return move_members(self._session.store, self.schema, members, Path(folder).absolute())

    def undo_move(self, folder: PathLike) -> MoveReport:
        """Put back what the last ``move_duplicates`` moved into a folder, files and rows; the report is empty without.

        A file whose old place is taken stays in the folder, and is in the report's failures.

        Raises:
            QueryError: the journal cannot be read.
        """
        self._session.existing()
        return undo_move(self._session.store, Path(folder).absolute())

    def not_duplicates(self, ignore: PathLike, *images: PathLike) -> int:
        """Remember in a file that images are no duplicates of each other, for ``duplicates(ignore=FILE)``.

        The file has one pair a line, by the content of the images, so it holds wherever they are moved.

        Args:
            ignore: the file; it is made if there is none.
            *images: two or more; each a file, indexed or not, or the id or path of an indexed image.

        Returns:
            The number of pairs that the file did not have.

        Raises:
            ImageError: a file is no image, or cannot be read; nothing was written.
            NotIndexedError: one of them is neither a file nor indexed; nothing was written.
            QueryError: they are fewer than two, or two have the same content, or the file cannot be read or written.
        """
        return add_ignored(ignore, [self._content(image) for image in images])

    def _content(self, image: PathLike) -> tuple[str, str]:
        """Content hash and path of an image file, or of an indexed image."""
        if os.path.isfile(image):
            return file_content(image), stored_path(image)
        row = self.row(image)
        return row.content_hash, row.path

    def row(self, id_or_path: PathLike) -> Row:
        """The row of an indexed image, without its codes.

        Raises:
            NotIndexedError: it is not indexed.
        """
        self._session.existing()
        return self._session.rows([id_or_path])[0]

    def rows(self, ids_or_paths: Sequence[PathLike]) -> list[Row]:
        """The rows of indexed images, in order, without duplicates and without their codes.

        Raises:
            NotIndexedError: one of them is not indexed.
        """
        self._session.existing()
        return self._session.rows(ids_or_paths)

    def tag(self, ids_or_paths: Sequence[PathLike], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """Add and remove tags of one's own, kept in the field ``user_tags``; the number of images that changed.

        An ingest, a relocation and an export keep them. Filters find them: ``user_tags == "beach"``.

        Args:
            ids_or_paths: the images.
            add: of 1 to 100 printable characters each, without ``|``.
            remove: whatever their case.

        Raises:
            NotIndexedError: an image is not indexed; nothing was changed.
            QueryError: a tag is none, or there is nothing to do.
        """
        self._session.existing()
        return tag_rows(self._session, [row.id for row in self._session.rows(ids_or_paths)], add, remove)

    def path(self, id_or_path: PathLike) -> str:
        """The path (or URI) that an indexed image was ingested from.

        Raises:
            NotIndexedError: it is not indexed.
        """
        return self.row(id_or_path).path

    def sample(self, count: int, filter: Filter | None = None) -> list[Row]:  # noqa: A002
        """A random sample of at most ``count`` rows (1 to 1,000), without codes, or of those that match a filter.

        Raises:
            QueryError: ``count`` is out of range.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        self._session.existing()
        return listing.sample_rows(self._session.store, self.schema, count, filter_text(filter))

    def images(
        self,
        *,
        filter: Filter | None = None,  # noqa: A002
        order_by: str = "id",
        limit: int = 100,
        offset: int = 0,
    ) -> list[Row]:
        """List rows, without codes.

        Args:
            filter: only rows that match, see ``QueryOptions``.
            order_by: a field of the rows, or ``folder``, ``name`` (as people order names: 9 before 10), ``date`` (of
                the file) or ``tag`` (the most probable), rising; with ``-`` before it falling: ``"-size"``. Missing
                values come last, and equal ones are ordered by id. All rows that match are read once.
            limit: rows returned, at most.
            offset: rows of that order to pass over.

        Raises:
            QueryError: there is no such field, or a number is out of range.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        self._session.existing()
        page = listing.Page(order_by, limit, offset)
        return listing.list_rows(self._session.store, self.schema, filter_text(filter), page)

    def listing(
        self,
        order_by: str = "folder",
        filter: Filter | None = None,  # noqa: A002
        cluster: str | None = None,
    ) -> Listing:
        """The ids of all rows, or of those that match, in order, to be shown page by page with ``page``.

        Args:
            order_by: as in ``images``. Folders, months (``date``), tags and texts are the sections of the listing.
            filter: only rows that match, see ``QueryOptions``. All rows that match are read once.
            cluster: only images of this cluster, by its number, name or label: see ``clusters``.

        Raises:
            QueryError: there is no such field, or no such cluster.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        self._session.existing()
        ordered = listing.order_rows(self._session.store, self.schema, filter_text(filter), order_by)
        return ordered if cluster is None else ordered.among(frozenset(self.clusters().ids(cluster)))

    def page(self, ids: Sequence[str]) -> list[Row]:
        """The rows of some ids, in their order, without codes; rows that are gone are left out."""
        self._session.existing()
        rows = self._session.store.fetch(ids)
        return [rows[own] for own in ids if own in rows]

    def clusters(self, *, refresh: bool = False, progress: Callable[[Progress], None] | None = None) -> Clusters:
        """The overview of the collection: clusters of alike images, in each smaller ones, in these near-duplicates.

        They are made of the stored codes: by ``coarse``, inside of these by ``mid``, and groups on ``fine``; of a
        schema with other granularities, by its first two. They are kept beside the collection with their names, and
        made anew when its number of images has changed.

        Args:
            refresh: make them anew in any case.
            progress: called now and then.
        """
        return self._clusters.clusters(progress or (lambda _: None), refresh=refresh)

    def name_cluster(self, cluster: str, name: str) -> Cluster:
        """Name a cluster, for ``clusters`` and the option ``cluster`` of queries. The name stays with the index.

        Args:
            cluster: number, name or label.
            name: empty to take it away.

        Raises:
            QueryError: there is no such cluster, or another one has the name, or it is too long or a number.
        """
        return self._clusters.rename(cluster, name)

    def facets(self, field: str, filter: Filter | None = None) -> dict[Any, int]:  # noqa: A002
        """Count the rows of each value of a field, the most frequent first; a missing value is None.

        Args:
            field: any field of the rows, or ``folder``, ``name``, ``date`` (months) or ``tag``. All rows that match are
                read once.
            filter: count only rows that match, see ``QueryOptions``.

        Raises:
            QueryError: there is no such field.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        self._session.existing()
        return listing.count_values(self._session.store, self.schema, field, filter_text(filter))

    def spellings(self, field: str, text: str) -> list[str]:
        """How a text is written in the values of a field, whatever the case: for ``like``, which heeds it.

        Args:
            field: any field of texts, such as ``path``. All rows are read once.
            text: what to look for.

        Raises:
            QueryError: there is no such field, or the text is written in too many ways.
        """
        return listing.spellings(self.facets(field), text)

    def tags(self, filter: Filter | None = None) -> dict[str, int]:  # noqa: A002
        """Count the images that have each tag: names and groups of what they show, and tags that people gave.

        The most frequent come first.

        Args:
            filter: count only rows that match, see ``QueryOptions``. All rows that match are read once.

        Raises:
            QueryError: the collection's encoder has no classifier, so images have no tags.
            FilterError: the filter cannot be read as a whole, or names no column.
        """
        self._session.existing()
        if USER_TAGS not in {field.name for field in self.schema.fields}:
            self._check_tagged()
        return listing.count_tags(self._session.store, filter_text(filter))

    def choices(self) -> dict[str, Any]:
        """Values of the schema's own fields to filter by, from a sample of up to 1,000 rows.

        Returns:
            Name -> sorted values of a string field (empty when there are more than 100), or [least, greatest] of a
            number field. Boolean fields, and number fields without a value, are left out.
        """
        self._session.existing()
        return listing.choices(self._session.store, self.schema)

    def warm_up(self) -> None:
        """Connect, load the encoder and search once, so that the first query is as fast as the following ones.

        Raises:
            CollectionNotFoundError: there is no collection.
        """
        codes = self.encode([self.decode_query(Image.new("RGB", (64, 64)))])
        self.search(codes[0], k=1)

    def relocate(
        self, old: PathLike, new: PathLike, *, progress: Callable[[Progress], None] | None = None
    ) -> RelocateReport:
        """Move the rows of a folder, or of one file, to where its files are now; nothing is read or encoded.

        Rows keep their codes, regions and fields. Moved is a row whose file exists under the new folder, which no other
        row has.

        Args:
            old: the folder or file as it was ingested; it need not exist any more.
            new: where it is now.
            progress: called after each batch.

        Raises:
            ImageError: ``new`` does not exist; nothing was done.
            NotIndexedError: no row lies in ``old``.
        """
        self._session.existing()
        self._session.refresh()
        return run_relocate(self._session, old, new, progress or (lambda _: None))

    def delete(self, ids_or_paths: Sequence[PathLike]) -> int:
        """Delete rows, by id or by the path they were ingested from; the files stay. The number of rows deleted.

        Raises:
            NotIndexedError: one of them is not indexed; nothing was deleted.
        """
        self._session.existing()
        return self._session.store.delete([row.id for row in self._session.rows(ids_or_paths)])

    def delete_where(self, filter: Filter) -> int:  # noqa: A002
        """Delete the rows that match a filter, see ``QueryOptions``; the number of rows deleted.

        Raises:
            FilterError: the filter is empty, or cannot be read as a whole; nothing was deleted.
        """
        where = filter_text(filter)
        if not where.strip():
            raise FilterError("an empty filter matches every row; delete all with the filter 'size >= 0'")
        self._session.existing()
        store = self._session.store
        ids = [row_id for rows in store.values(("id",), where) for (row_id,) in rows]
        return store.delete(ids)

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """Count the rows, or those that match a filter, see ``QueryOptions``."""
        self._session.existing()
        return self._session.store.count(filter_text(filter))

    def info(self) -> IndexInfo:
        """Describe the collection.

        Raises:
            CollectionNotFoundError: there is none.
        """
        description = self._session.existing()
        store = self._session.store
        heads, advice = self._heads()
        return IndexInfo(
            self.uri, store.server(), self.collection, store.count(), self.schema.model_dump(mode="json"),
            description.fingerprint, description.backbone, heads, self.schema.bytes_per_image, advice,
        )  # fmt: skip

    def _heads(self) -> tuple[str, tuple[str, ...]]:
        """What the hash heads were fitted on, in words, and advice."""
        chance = self._chance.chance()
        later, far = (0, 0) if chance is None else (chance.later, chance.far)
        return heads_in_words(self._session.existing(), self._session.store.count(), later, far)

    def close(self) -> None:
        """Close the index; idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
