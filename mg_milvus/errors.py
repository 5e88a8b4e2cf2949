"""Everything that can go wrong and that a user can cause.

MgMilvusError
├── SchemaError (ValueError)              a schema is not well formed, or asks for what cannot be
│   └── SchemaMismatchError               the collection was made with another schema
├── ImageError (ValueError)             an image cannot be read
├── QueryError (ValueError)               a query cannot be answered as asked: k, weights, crop ...
├── NotIndexedError (LookupError)         an id or a path that is not a row of the collection
├── EncoderError (ValueError)             an encoder file or name cannot be used
│   ├── EncoderMismatchError              the collection was filled by another encoder
│   └── WeightsNotFoundError              pretrained weights are not on this machine and cannot be fetched
├── CodeFileError (ValueError)            a file or a folder of codes is damaged, unfinished, or not one
├── LabelError (ValueError)               labels are missing, or do not fit the images
├── TrainingError (ValueError)            a training, or its configuration, cannot be as asked
├── MissingPackageError (ImportError)     an extra is needed
├── ServeError (ValueError)               the web page cannot be served as asked: port, token, folders
└── StoreError                            Milvus said no
    ├── StoreUnavailableError (ConnectionError)   not reachable, or gone in the middle
    ├── AuthenticationError (PermissionError)     wrong or missing token
    ├── StoreLockedError                  another process holds the Milvus Lite file
    ├── CollectionNotFoundError (LookupError)
    ├── ForeignCollectionError (ValueError)       the collection was not made by mg-milvus
    ├── FilterError (ValueError)          Milvus could not parse a filter expression
    └── UnsupportedError (ValueError)     this platform, server or version cannot do it

Messages hold what was got, what was expected, and the remedy, in one line.
"""

from __future__ import annotations


class MgMilvusError(Exception):
    """The root: catch this one to catch everything of this package."""


class SchemaError(MgMilvusError, ValueError):
    """A schema is not well formed, or asks for what cannot be."""


class SchemaMismatchError(SchemaError):
    """The collection was made with another schema."""


class ImageError(MgMilvusError, ValueError):
    """An image cannot be read."""


class QueryError(MgMilvusError, ValueError):
    """A query cannot be answered as asked."""


class NotIndexedError(MgMilvusError, LookupError):
    """An id or a path that is not a row of the collection."""


class EncoderError(MgMilvusError, ValueError):
    """An encoder file or name cannot be used."""


class EncoderMismatchError(EncoderError):
    """The collection was filled by another encoder."""


class WeightsNotFoundError(EncoderError):
    """Pretrained weights are not on this machine and cannot be fetched."""


class CodeFileError(MgMilvusError, ValueError):
    """A file or a folder of codes is damaged, unfinished, or not one."""


class LabelError(MgMilvusError, ValueError):
    """Labels are missing, or do not fit the images."""


class TrainingError(MgMilvusError, ValueError):
    """A training, or its configuration, cannot be as asked."""


class MissingPackageError(MgMilvusError, ImportError):
    """An optional package is needed."""


class ServeError(MgMilvusError, ValueError):
    """The web page cannot be served as asked."""


class StoreError(MgMilvusError):
    """Milvus refused or failed."""


class StoreUnavailableError(StoreError, ConnectionError):
    """Milvus is not reachable, or went away."""


class AuthenticationError(StoreError, PermissionError):
    """The token is missing or wrong."""


class StoreLockedError(StoreError):
    """Another process holds the Milvus Lite file."""


class CollectionNotFoundError(StoreError, LookupError):
    """There is no such collection."""


class ForeignCollectionError(StoreError, ValueError):
    """The collection was not made by mg-milvus."""


class FilterError(StoreError, ValueError):
    """Milvus could not parse a filter expression."""


class UnsupportedError(StoreError, ValueError):
    """The platform, server or version cannot do what was asked."""
