"""What the client of ``mgm load --bucket`` does for a row: processor time of reading codes and writing files for jobs.

    python benchmarks/import_cost.py [--rows 50000] [--rounds 3] [--json FILE]

Made-up rows of the default schema, in memory: no bucket and no server, whose own rates are not measured here.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from result_file import write_result

from mg_milvus.bulk.dataset import CodeFile, images_file, to_parquet
from mg_milvus.images.discover import image_id
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row


def made_up(count: int, schema: Schema) -> list[Row]:
    """Rows whose paths are those of images in tars."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        path = f"s3://shop/images/{number // 10_000:06}.tar#{number % 10_000:09}.jpg"
        size, mtime, width, height = map(
            int, random.integers((20_000, 10**18, 300, 300), (10**6, 2 * 10**18, 4000, 4000))
        )
        codes = {name: random.bytes(bits // 8) for name, bits in schema.bits.items()}
        rows.append(Row(image_id(path), path, size, mtime, width, height, random.bytes(16).hex(), codes))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    schema = Schema()
    made = made_up(options.rows, schema)
    part, read, written = to_parquet(made, Description(schema, "0" * 16)), [], []
    for _ in range(options.rounds):
        started = time.process_time()
        rows = [row for chunk in CodeFile("made up", io.BytesIO(part)).read() for row in chunk]
        read.append(time.process_time() - started)
        started = time.process_time()
        file = images_file(rows, schema)
        written.append(time.process_time() - started)
    result = {
        "rows": options.rows,
        "reading, processor us a row": round(1e6 * statistics.median(read) / options.rows, 1),
        "writing, processor us a row": round(1e6 * statistics.median(written) / options.rows, 1),
        "bytes of codes a row": round(len(part) / options.rows, 1),
        "bytes of a job's file a row": round(len(file) / options.rows, 1),
    }
    print("\n".join(f"{name:32}{value:>10}" for name, value in result.items()))
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
