"""mg-milvus: multi-granular image search in Milvus with learned binary codes.

``ImageIndex.open("mgm.db")`` is where to start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg_milvus.encoder import load_encoder
    from mg_milvus.errors import (
        AuthenticationError,
        CodeFileError,
        CollectionNotFoundError,
        EncoderError,
        EncoderMismatchError,
        FilterError,
        ForeignCollectionError,
        LabelError,
        MgMilvusError,
        MissingPackageError,
        NotIndexedError,
        PictureError,
        QueryError,
        SchemaError,
        SchemaMismatchError,
        ServeError,
        StoreError,
        StoreLockedError,
        StoreUnavailableError,
        TrainingError,
        UnsupportedError,
        WeightsNotFoundError,
    )
    from mg_milvus.evaluation.run import evaluate
    from mg_milvus.evaluation.tuning import tune
    from mg_milvus.fusion import fuse
    from mg_milvus.hits import Hit, IngestReport
    from mg_milvus.index import ImageIndex
    from mg_milvus.schema import Granularity, Schema
    from mg_milvus.store.access import Tls
    from mg_milvus.training.configuration import TrainingConfiguration
    from mg_milvus.training.run import train

__version__ = "0.1.0"

_HOMES = {
    "ImageIndex": "index",
    "Schema": "schema",
    "Granularity": "schema",
    "Hit": "hits",
    "IngestReport": "hits",
    "load_encoder": "encoder",
    "fuse": "fusion",
    "evaluate": "evaluation.run",
    "tune": "evaluation.tuning",
    "Tls": "store.access",
    "train": "training.run",
    "TrainingConfiguration": "training.configuration",
}

__all__ = [
    "AuthenticationError",
    "CodeFileError",
    "CollectionNotFoundError",
    "EncoderError",
    "EncoderMismatchError",
    "FilterError",
    "ForeignCollectionError",
    "Granularity",
    "Hit",
    "ImageIndex",
    "IngestReport",
    "LabelError",
    "MgMilvusError",
    "MissingPackageError",
    "NotIndexedError",
    "PictureError",
    "QueryError",
    "Schema",
    "SchemaError",
    "SchemaMismatchError",
    "ServeError",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "Tls",
    "TrainingConfiguration",
    "TrainingError",
    "UnsupportedError",
    "WeightsNotFoundError",
    "__version__",
    "evaluate",
    "fuse",
    "load_encoder",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and pymilvus take seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'mg_milvus' has no attribute '{name}'")
    value = getattr(import_module(f"mg_milvus.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
