"""Pictures by the million: encode without Milvus into files of codes, load them, write a collection back to them."""

from mg_milvus.bulk.encode import EncodeReport, encode
from mg_milvus.bulk.folder import Shard

__all__ = ["EncodeReport", "Shard", "encode"]
