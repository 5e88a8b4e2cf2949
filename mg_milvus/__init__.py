"""mg-milvus: multi-granular image search in Milvus with learned binary codes.

``ImageIndex.open("mgm.db")`` is where to start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg_milvus.config import Tls
    from mg_milvus.encoder.load import load_encoder
    from mg_milvus.errors import (
        AuthenticationError,
        CodeFileError,
        CollectionNotFoundError,
        EncoderError,
        EncoderMismatchError,
        FilterError,
        ForeignCollectionError,
        ImageError,
        LabelError,
        MgMilvusError,
        MissingPackageError,
        NotIndexedError,
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
    from mg_milvus.evaluation.evaluate import evaluate
    from mg_milvus.evaluation.tune import tune
    from mg_milvus.index import ImageIndex
    from mg_milvus.records import Hit
    from mg_milvus.results import IngestReport
    from mg_milvus.schema.models import Granularity, Schema
    from mg_milvus.search.fusion import fuse
    from mg_milvus.training.config import TrainingConfiguration
    from mg_milvus.training.train import train

__version__ = "0.1.0"

_HOMES = {
    "ImageIndex": "index",
    "Schema": "schema.models",
    "Granularity": "schema.models",
    "Hit": "records",
    "IngestReport": "results",
    "load_encoder": "encoder.load",
    "fuse": "search.fusion",
    "evaluate": "evaluation.evaluate",
    "tune": "evaluation.tune",
    "Tls": "config",
    "train": "training.train",
    "TrainingConfiguration": "training.config",
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
    "ImageError",
    "ImageIndex",
    "IngestReport",
    "LabelError",
    "MgMilvusError",
    "MissingPackageError",
    "NotIndexedError",
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
