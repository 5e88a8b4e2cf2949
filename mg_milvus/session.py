"""An open collection: its store, schema and encoder; encoder files in the store, and their local cache."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mg_milvus import files
from mg_milvus.encoder.backbones import FUNCTION
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import (
    CollectionNotFoundError,
    EncoderError,
    EncoderMismatchError,
    NotIndexedError,
    SchemaMismatchError,
    StoreError,
)
from mg_milvus.files import one_line, write_private
from mg_milvus.images.discover import image_id, is_url
from mg_milvus.images.paths import Disks, same_place, spellings, stored_path
from mg_milvus.schema.diff import difference
from mg_milvus.schema.models import Schema
from mg_milvus.store.collections import is_fingerprint
from mg_milvus.store.milvus import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from mg_milvus.config import MilvusConfig
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.schema.models import ExtraField
    from mg_milvus.store.base import Description, Row, Store

    PathLike = str | os.PathLike[str]


_CHECKED_FOR = 1.0
"""Seconds after which a session looks again whether the collection is still the same one."""
WHOLE_FILE_LIMIT = 32_000_000
"""Encoder files of at most this many bytes are stored whole beside the collection; of larger ones the heads only."""


def cache_folder() -> Path:
    """Folder of the local encoder cache; see ``files.cache_folder``."""
    return files.cache_folder("encoders")


def keep_encoder(store: Store, encoder: Encoder) -> None:
    """Store an encoder beside the collection, so that a client needs the URI only.

    If it is too large to be stored whole, the local cache keeps it with its backbone.
    """
    data = encoder.to_bytes()
    if len(data) > WHOLE_FILE_LIMIT:
        _cache(encoder.fingerprint, data)
        data = encoder.to_bytes(WHOLE_FILE_LIMIT)
    store.put_encoder(encoder.fingerprint, data)


def encoder_of(store: Store, fingerprint: str, *, device: str, base: Encoder | None = None) -> Encoder:
    """The encoder that filled the store's collection.

    Loaded from the local cache if its fingerprint matches, else from the store. ``base`` provides the backbone of an
    encoder that is stored without one.

    Raises:
        EncoderMismatchError: the store does not have it, or has another one under its fingerprint.
        EncoderError: the stored data is no encoder, or the fingerprint is invalid.
    """
    if not is_fingerprint(fingerprint):  # it becomes the name of a file
        raise EncoderError(f"{one_line(repr(fingerprint), 60)} is not a fingerprint, expected 16 hexadecimal digits")
    with suppress(EncoderError):
        cached = load_encoder(_cache_file(fingerprint), device=device, base=base)
        if cached.fingerprint == fingerprint:
            return cached
    data = store.get_encoder(fingerprint)
    if data is None:
        raise EncoderMismatchError(
            f"collection '{store.collection}' was filled by the encoder {fingerprint}, which is no longer stored "
            "beside it; give that encoder's file, or ingest into a new collection"
        )
    encoder = load_encoder(data, device=device, base=base)
    if encoder.fingerprint != fingerprint:
        raise EncoderMismatchError(
            f"collection '{store.collection}' was filled by the encoder {fingerprint}, but {encoder.fingerprint} is "
            "stored beside it; give the right encoder's file, or ingest into a new collection"
        )
    _cache(fingerprint, data if base is None else encoder.to_bytes())  # with the network that was given
    return encoder


def cached_encoders() -> dict[Path, int]:
    """Files of the local encoder cache and their sizes in bytes."""
    sizes = {}
    for file in sorted(cache_folder().glob("*.safetensors")):
        with suppress(OSError):
            sizes[file] = file.stat().st_size
    return sizes


def clear_encoders() -> list[Path]:
    """Remove cached encoders that are stored whole beside their collections.

    Returns:
        The files that stay: collections store only the heads of larger ones, so the file may be the last whole copy.
    """
    kept = []
    for file, size in cached_encoders().items():
        if size > WHOLE_FILE_LIMIT:
            kept.append(file)
        else:
            with suppress(OSError):  # cached_encoders still lists it
                file.unlink()
    return kept


def _cache_file(fingerprint: str) -> Path:
    return cache_folder() / f"{fingerprint}.safetensors"


def _cache(fingerprint: str, data: bytes) -> None:
    with suppress(OSError):  # a cache that cannot be written is no reason to fail
        write_private(_cache_file(fingerprint), data)


class Session:
    """One collection in use: its store, description, schema and encoder, each loaded at first use.

    Attributes:
        config: how the collection is reached; its ``collection`` may be None.
        device: where encoders run.
        added: the last fields of the given schema that a collection is created with as ``Store.add_columns`` adds them.
    """

    def __init__(
        self, config: MilvusConfig, schema: Schema | None, encoder: Encoder | str | Path | None, device: str
    ) -> None:
        self.config, self.device = config, device
        self.added: tuple[str, ...] = ()
        self._collection = config.collection
        self._given_schema, self._given_encoder = schema, encoder
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._description: Description | None = None
        self._encoder: Encoder | None = None
        self._new_fields: tuple[ExtraField, ...] = ()
        self._identity: object = None
        self._checked = 0.0
        self._closed = False

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what the session was opened with, the token included; the copy connects anew at first use."""
        given = self._given_encoder
        encoder: Encoder | str | Path | bytes | None = given
        if given is not None and not isinstance(given, str | Path) and not _is_function(given):
            encoder = given.to_bytes()
        return _reopened, (replace(self.config, collection=self._collection), self._given_schema, encoder, self.device)

    @property
    def collection(self) -> str:
        """Name of the collection: as given, the schema's, or that of the only collection at the URI."""
        with self._lock:
            if self._collection is None:
                self._collection = self._given_schema.collection if self._given_schema else Schema().collection
                if self._given_schema is None and not self._is_absent():
                    names = self.store.collections()
                    if len(names) == 1 and names[0] != self._collection:
                        self._close_store()
                        self._collection = names[0]
            return self._collection

    @property
    def given_schema(self) -> Schema | None:
        """The schema given when the session was opened."""
        return self._given_schema

    @property
    def uri(self) -> str:
        """URI of the file or the server, without user and password."""
        return self.config.uri

    def prefer(self, collection: str) -> None:
        """Set the collection's name, unless a name or a schema was given when the session was opened."""
        with self._lock:
            if self._collection is None and self._given_schema is None:
                self._collection = collection

    @property
    def store(self) -> Store:
        """The open store; a missing Milvus Lite file is created."""
        with self._lock:
            if self._closed:
                raise StoreError(f"this index ({self.uri}) is closed; open it again")
            collection = self.collection if self._store is None else ""  # finding the name may open the store
            if self._store is None:
                self._store = open_store(replace(self.config, collection=collection))
            return self._store

    def description(self) -> Description | None:
        """The collection's description; None if there is no collection. Nothing is created."""
        with self._lock:
            if self._description is not None and time.monotonic() - self._checked > _CHECKED_FOR:
                self._checked = time.monotonic()
                if self.store.identity() != self._identity:
                    self._description = self._encoder = None
                else:
                    self.refresh()
            if self._description is None and not self._is_absent():
                collection = self.collection
                self._identity, self._checked = self.store.identity(), time.monotonic()
                description = self.store.describe()
                if description is not None and self._given_schema is not None:
                    _check_schema(collection, description, self._given_schema)
                self._description = description
            return self._description

    def refresh(self) -> None:
        """Read the description again: another client may have tuned the collection, or added columns."""
        with self._lock:
            if self._description is not None:
                self._description = self.store.describe()

    def forget(self) -> None:
        """Forget the collection, whose name another one has got: it is described anew, and its encoder loaded."""
        with self._lock:
            self._description = self._encoder = None
            self.store.identity()

    def missing_fields(self) -> tuple[ExtraField, ...]:
        """Fields of the given schema that the collection lacks."""
        description, given = self.description(), self._given_schema
        if description is None or given is None:
            return ()
        known = {field.name for field in description.schema.fields}
        return tuple(field for field in given.fields if field.name not in known)

    def add_fields(self, fields: Sequence[ExtraField]) -> None:
        """Add columns to the collection, or to the schema that it will be created with; see ``Store.add_columns``.

        Raises:
            SchemaError: the collection has one of another type, or its schema cannot have them.
        """
        with self._lock:
            if self.description() is None:
                self._new_fields = tuple(fields)
            elif fields:
                self._description = self.store.add_columns(fields)

    def existing(self) -> Description:
        """The collection's description.

        Raises:
            CollectionNotFoundError: there is no collection.
        """
        description = self.description()
        if description is None:
            place = f"at {self.uri}" if self._is_absent() else f"named '{self.collection}' at {self.uri}"
            others = [] if self._is_absent() else self.store.collections()
            hint = f"; there are {', '.join(others)}: choose one with --collection" if others else ""
            raise CollectionNotFoundError(f"there is no index {place}{hint or '; make it with mgm ingest FOLDER'}")
        return description

    @property
    def schema(self) -> Schema:
        """The collection's schema with the weights and fusion of the given one; without a collection, the given one."""
        description, given = self.description(), self._given_schema
        if description is None:
            schema = (given or Schema()).model_copy(update={"collection": self.collection})
            if self._new_fields:
                schema = Schema(**schema.model_dump() | {"fields": (*schema.fields, *self._new_fields)})
            if isinstance(self._given_encoder, str | Path):
                name = str(self._given_encoder)
                schema = schema.model_copy(update={"encoder": schema.encoder.model_copy(update={"name": name})})
            return schema
        if given is None:
            return description.schema
        granularities = tuple(
            granularity.model_copy(update={"weight": given.weights[granularity.name]})
            for granularity in description.schema.granularities
        )
        regions = description.schema.regions
        if regions is not None and given.regions is not None:
            regions = regions.model_copy(update={"weight": given.regions.weight})
        changed = {"granularities": granularities, "regions": regions, "fusion": given.fusion}
        return description.schema.model_copy(update=changed)

    @property
    def encoder(self) -> Encoder:
        """The collection's encoder.

        Raises:
            CollectionNotFoundError: there is no collection yet.
            EncoderMismatchError: it was filled by another encoder than the given one.
        """
        with self._lock:
            if self._encoder is None:
                recorded = self.existing().fingerprint
                given = None if self._given_encoder is None else self.base_encoder()
                if given is not None and given.fingerprint == recorded:
                    self._encoder = given
                    return given
                encoder = encoder_of(self.store, recorded, device=self.device, base=given)
                if given is not None and not _descends(encoder, given):
                    raise EncoderMismatchError(
                        f"collection '{self.collection}' was filled by the encoder {recorded}, you gave "
                        f"{given.fingerprint}: leave it out to use the collection's own, or ingest into a new "
                        "collection with --collection"
                    )
                self._encoder = encoder
            return self._encoder

    def base_encoder(self) -> Encoder:
        """The encoder a new collection starts from: the given one, else the schema's."""
        given = self._given_encoder if self._given_encoder is not None else self.schema.encoder.name
        return load_encoder(given, device=self.device) if isinstance(given, str | Path) else given

    def sibling(self, collection: str, schema: Schema) -> Session:
        """A session for another collection at the same URI, with the same base encoder."""
        config = replace(self.config, collection=collection)
        return Session(config, schema, self._given_encoder or self.encoder, self.device)

    def rows(self, ids_or_paths: Sequence[PathLike], granularities: tuple[str, ...] = ()) -> list[Row]:
        """The rows of images, in order, without duplicates.

        Raises:
            NotIndexedError: one of them is not indexed.
        """
        keys = {given: _keys(given) for given in ids_or_paths}
        rows = self.store.fetch(list(dict.fromkeys(key for some in keys.values() for key in some)), granularities)
        found = {given: next((key for key in some if key in rows), "") for given, some in keys.items()}
        absent = [given for given, key in found.items() if not key and _is_path(given)]
        if absent:  # a row may spell its path otherwise than the disk does now
            others = self._ids_in_same_place(absent)
            found |= others
            rows |= self.store.fetch(list(others.values()), granularities)
        missing = [str(given) for given, key in found.items() if key not in rows]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise NotIndexedError(
                f"'{missing[0]}'{more} is neither the id nor the path of an image in '{self.collection}'; paths are "
                "as they were ingested, mgm query shows them"
            )
        return [rows[key] for key in dict.fromkeys(found.values())]

    def _ids_in_same_place(self, paths: Sequence[PathLike]) -> dict[PathLike, str]:
        """The ids of the rows of these paths, which no row spells as the disk does; reads the paths of all rows."""
        disks = Disks()
        wanted: dict[str, list[PathLike]] = {}
        for path in paths:
            wanted.setdefault(disks.location(stored_path(path)), []).append(path)
        found: dict[PathLike, str] = {}
        for rows in self.store.scan():
            for row in rows:
                for path in wanted.get(disks.location(row.path), ()):
                    if same_place(row.path, stored_path(path), disks):
                        found.setdefault(path, row.id)
        return found

    def remember(self, description: Description, encoder: Encoder) -> None:
        """Set description and encoder after this client has created the collection, or found it created."""
        with self._lock:
            self._description, self._encoder = description, encoder
            self._identity, self._checked = self.store.identity(), time.monotonic()

    def close(self) -> None:
        """Close the store; idempotent."""
        with self._lock:
            self._close_store()
            self._closed = True

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _is_absent(self) -> bool:
        """Whether the URI is a Milvus Lite file that does not exist; opening it would create it."""
        return self._store is None and self.config.is_file and self.uri.endswith(".db") and not Path(self.uri).exists()


def _descends(encoder: Encoder, given: Encoder) -> bool:
    """Whether an encoder was adapted from the given one; of a function, loading has compared the features."""
    return given.fingerprint in encoder.ancestors or _is_function(given)


def _is_function(encoder: Encoder) -> bool:
    return encoder.backbone.startswith(f"{FUNCTION}:")


def _reopened(
    config: MilvusConfig, schema: Schema | None, encoder: Encoder | bytes | str | Path | None, device: str
) -> Session:
    return Session(
        config, schema, load_encoder(encoder, device=device) if isinstance(encoder, bytes) else encoder, device
    )


def _is_path(id_or_path: PathLike) -> bool:
    return not isinstance(id_or_path, str) or not (re.fullmatch(r"[0-9a-f]{32}", id_or_path) or is_url(id_or_path))


def _keys(id_or_path: PathLike) -> list[str]:
    """The ids that an image may have, the likeliest first."""
    if _is_path(id_or_path):
        return [image_id(path) for path in spellings(id_or_path)]
    text = str(id_or_path)
    return [image_id(text) if is_url(text) else text]


def _check_schema(collection: str, description: Description, given: Schema) -> None:
    """Refuse a given schema that differs from the collection's in more than weights and fusion.

    Encoders are compared elsewhere, by their fingerprints. The given schema may lack columns that were added since, and
    have others, which an ingest adds.
    """
    recorded = description.schema
    own = {field.name: field for field in given.fields}
    fields = (own.get(f.name, f if f.name in description.added else None) for f in recorded.fields)
    given = given.model_copy(
        update={
            "collection": recorded.collection,
            "encoder": recorded.encoder,
            "fields": tuple(field for field in fields if field is not None),
        }
    )
    costly = [d for d in difference(recorded, given) if d.consequence != "none"]
    if costly:
        listed = "; ".join(f"{d.key} is {d.old}, the given schema says {d.new}" for d in costly)
        raise SchemaMismatchError(
            f"collection '{collection}' was made with another schema: {listed}. Leave the schema out to use the "
            "collection's own, or ingest into a new collection with --collection"
        )
