"""What an ingest costs beyond decoding and encoding: images a second of both, in turn, in one process.

    python benchmarks/ingest_rate.py FOLDER [--rounds 3] [--json FILE]

The first side is ``ImageIndex.ingest`` of the folder into a new Milvus Lite file, heads adapted: discovery, hashing of
the content, fitting, making the collection, keeping the encoder, upserting. The other side decodes the same files in as
many threads and encodes them in the same batches with heads that are there, and does nothing else.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from result_file import write_result

from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.decode import decode
from mg_milvus.images.discover import discover, text_path
from mg_milvus.index import ImageIndex

if TYPE_CHECKING:
    from mg_milvus.encoder.base import Encoder

BATCH = 64


def bare(files: list[Path], encoder: Encoder) -> float:
    """Seconds for decoding and encoding alone."""

    def prepared(file: Path) -> object:
        return encoder.prepare(decode(file.read_bytes(), least=encoder.side).image)

    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = [pool.submit(prepared, file) for file in files[: 3 * BATCH]]
        rest = iter(files[3 * BATCH :])
        while ahead:
            batch = [future.result() for future in ahead[:BATCH]]
            ahead = ahead[BATCH:] + [pool.submit(prepared, file) for _, file in zip(range(BATCH), rest, strict=False)]
            encoder.encode(batch)
    return time.perf_counter() - started


def ingested(folder: Path, encoder: Encoder) -> float:
    """Seconds for an ingest into a new file, as its report says."""
    with tempfile.TemporaryDirectory() as scratch, ImageIndex.open(f"{scratch}/i.db", encoder=encoder) as index:
        return index.ingest(folder, batch_size=BATCH).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoder = load_encoder()
    files = [text_path(found.path) for found in discover([options.folder], print)]
    bare(files[:BATCH], encoder)  # the first forward pass is slower
    rounds = [(bare(files, encoder), ingested(options.folder, encoder)) for _ in range(options.rounds)]
    alone, whole = (statistics.median(side) for side in zip(*rounds, strict=True))
    result = {
        "images": len(files),
        "decode and encode, images/s": round(len(files) / alone, 1),
        "ingest, images/s": round(len(files) / whole, 1),
        "ratio": round(statistics.median(a / w for a, w in rounds), 3),
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }
    print("\n".join(f"{name:32}{value:>10}" for name, value in result.items()))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
