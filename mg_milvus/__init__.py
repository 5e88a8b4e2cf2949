"""mg-milvus: multi-granular image search in Milvus with learned binary codes.

``ImageIndex.open("mgm.db")`` is where to start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mg_milvus.bulk.transfer import TransferReport
    from mg_milvus.config import MilvusConfig, Tls
    from mg_milvus.duplicates.move import MoveReport
    from mg_milvus.duplicates.report import DuplicateGroup, DuplicateReport, GroupMember
    from mg_milvus.encoder.base import Encoder
    from mg_milvus.encoder.embedding import ImageEmbeddingFunction
    from mg_milvus.encoder.load import load_encoder
    from mg_milvus.errors import (
        AuthenticationError,
        ClusterError,
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
        PrivilegeError,
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
    from mg_milvus.evaluation.report import Evaluation
    from mg_milvus.evaluation.tune import Target, TuneReport, tune
    from mg_milvus.index import ImageIndex
    from mg_milvus.ingest.metrics import IngestMetrics
    from mg_milvus.records import Failure, Hit, Progress, Verification
    from mg_milvus.results import Hits, IndexInfo, IngestReport, RelocateReport
    from mg_milvus.schema.models import Granularity, Schema
    from mg_milvus.search.explain import Explanation
    from mg_milvus.search.fusion import Fused, Fusion, fuse
    from mg_milvus.search.overview import Cluster, ClusterImage, Clusters
    from mg_milvus.search.query import QueryOptions, QueryTerm
    from mg_milvus.search.rows import Listing
    from mg_milvus.store.conformance import Conformance, Feature, conformance
    from mg_milvus.training.config import TrainingConfiguration
    from mg_milvus.training.train import TrainReport, train
    from mg_milvus.training.trainer import StepReport

__version__ = "0.1.0"

_HOMES = {
    "Cluster": "search.overview",
    "ClusterImage": "search.overview",
    "Clusters": "search.overview",
    "Conformance": "store.conformance",
    "DuplicateGroup": "duplicates.report",
    "DuplicateReport": "duplicates.report",
    "Encoder": "encoder.base",
    "Evaluation": "evaluation.report",
    "Explanation": "search.explain",
    "Failure": "records",
    "Feature": "store.conformance",
    "Fused": "search.fusion",
    "Fusion": "search.fusion",
    "Granularity": "schema.models",
    "GroupMember": "duplicates.report",
    "Hit": "records",
    "Hits": "results",
    "ImageEmbeddingFunction": "encoder.embedding",
    "ImageIndex": "index",
    "IndexInfo": "results",
    "IngestMetrics": "ingest.metrics",
    "IngestReport": "results",
    "Listing": "search.rows",
    "MilvusConfig": "config",
    "MoveReport": "duplicates.move",
    "Progress": "records",
    "QueryOptions": "search.query",
    "QueryTerm": "search.query",
    "RelocateReport": "results",
    "Schema": "schema.models",
    "StepReport": "training.trainer",
    "Target": "evaluation.tune",
    "Tls": "config",
    "TrainReport": "training.train",
    "TrainingConfiguration": "training.config",
    "TransferReport": "bulk.transfer",
    "TuneReport": "evaluation.tune",
    "Verification": "records",
    "conformance": "store.conformance",
    "evaluate": "evaluation.evaluate",
    "fuse": "search.fusion",
    "load_encoder": "encoder.load",
    "train": "training.train",
    "tune": "evaluation.tune",
}
"""Public name -> its module; the errors are in ``errors``."""

__all__ = [
    "AuthenticationError",
    "Cluster",
    "ClusterError",
    "ClusterImage",
    "Clusters",
    "CodeFileError",
    "CollectionNotFoundError",
    "Conformance",
    "DuplicateGroup",
    "DuplicateReport",
    "Encoder",
    "EncoderError",
    "EncoderMismatchError",
    "Evaluation",
    "Explanation",
    "Failure",
    "Feature",
    "FilterError",
    "ForeignCollectionError",
    "Fused",
    "Fusion",
    "Granularity",
    "GroupMember",
    "Hit",
    "Hits",
    "ImageEmbeddingFunction",
    "ImageError",
    "ImageIndex",
    "IndexInfo",
    "IngestMetrics",
    "IngestReport",
    "LabelError",
    "Listing",
    "MgMilvusError",
    "MilvusConfig",
    "MissingPackageError",
    "MoveReport",
    "NotIndexedError",
    "PrivilegeError",
    "Progress",
    "QueryError",
    "QueryOptions",
    "QueryTerm",
    "RelocateReport",
    "Schema",
    "SchemaError",
    "SchemaMismatchError",
    "ServeError",
    "StepReport",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "Target",
    "Tls",
    "TrainReport",
    "TrainingConfiguration",
    "TrainingError",
    "TransferReport",
    "TuneReport",
    "UnsupportedError",
    "Verification",
    "WeightsNotFoundError",
    "__version__",
    "conformance",
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
