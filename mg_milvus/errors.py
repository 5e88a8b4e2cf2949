"""The exceptions of the package: every error that a user can cause.

MgMilvusError
├── SchemaError (ValueError)              a schema is malformed, or cannot be fulfilled
│   └── SchemaMismatchError               the collection was made with another schema
├── ImageError (ValueError)               an image cannot be read
├── QueryError (ValueError)               invalid query options: k, weights, crop ...
├── NotIndexedError (LookupError)         an id or a path that is not a row of the collection
├── EncoderError (ValueError)             an encoder file or name cannot be used
│   ├── EncoderMismatchError              the collection was filled by another encoder
│   └── WeightsNotFoundError              pretrained weights are not on this machine and cannot be fetched
├── CodeFileError (ValueError)            a file or a folder of codes is damaged, unfinished, or not one
├── LabelError (ValueError)               labels are missing, or do not fit the images
├── TrainingError (ValueError)            a training cannot run, or its configuration is invalid
├── MissingPackageError (ImportError)     a package is missing or broken, such as that of an extra
├── ClusterError (ConnectionError)        the Ray cluster is not there, or its workers die
├── ServeError (ValueError)               the web page cannot be served: port, token, folders
└── StoreError                            a Milvus request failed
    ├── StoreUnavailableError (ConnectionError)   not reachable, or the connection broke
    ├── AuthenticationError (PermissionError)     wrong or missing token
    │   └── PrivilegeError                the user lacks a privilege
    ├── StoreLockedError                  another process holds the Milvus Lite file
    ├── CollectionNotFoundError (LookupError)
    ├── ForeignCollectionError (ValueError)       the collection was not created by mg-milvus
    ├── FilterError (ValueError)          a filter cannot be read, or names no column
    └── UnsupportedError (ValueError)     not supported by this platform, server or version

A message is one line: the actual value, the expected one, and the remedy.
"""

from __future__ import annotations


class MgMilvusError(Exception):
    """Base class of all exceptions of this package."""


class SchemaError(MgMilvusError, ValueError):
    """A schema is malformed, or cannot be fulfilled."""


class SchemaMismatchError(SchemaError):
    """The collection was made with another schema."""


class ImageError(MgMilvusError, ValueError):
    """An image cannot be read."""


class QueryError(MgMilvusError, ValueError):
    """Invalid query options."""


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
    """A training cannot run, or its configuration is invalid."""


class MissingPackageError(MgMilvusError, ImportError):
    """A package is missing or broken, such as that of an extra."""


class ClusterError(MgMilvusError, ConnectionError):
    """The Ray cluster is not there, or its workers die."""


class ServeError(MgMilvusError, ValueError):
    """The web page cannot be served."""


class StoreError(MgMilvusError):
    """A Milvus request failed."""


class StoreUnavailableError(StoreError, ConnectionError):
    """Milvus is not reachable, or went away."""


class AuthenticationError(StoreError, PermissionError):
    """The token is missing or wrong."""


class PrivilegeError(AuthenticationError):
    """The user lacks a privilege."""


class StoreLockedError(StoreError):
    """Another process holds the Milvus Lite file."""


class CollectionNotFoundError(StoreError, LookupError):
    """There is no such collection."""


class ForeignCollectionError(StoreError, ValueError):
    """The collection was not created by mg-milvus."""


class FilterError(StoreError, ValueError):
    """A filter cannot be read as a whole, names no column, or compares different types."""


class UnsupportedError(StoreError, ValueError):
    """The platform, server or version does not support the request."""
