"""From picture files to rows: the first ingest, the later ones, and the refit."""

from mg_milvus.ingest.first import FEWEST_TO_FIT, SAMPLE_SIZE, reservoir, sample_features
from mg_milvus.ingest.meters import IngestMeters, MetricsFile
from mg_milvus.ingest.pipeline import Settings
from mg_milvus.ingest.regions import mend, out_of_step
from mg_milvus.ingest.run import run_ingest, run_refit

__all__ = [
    "FEWEST_TO_FIT",
    "SAMPLE_SIZE",
    "IngestMeters",
    "MetricsFile",
    "Settings",
    "mend",
    "out_of_step",
    "reservoir",
    "run_ingest",
    "run_refit",
    "sample_features",
]
