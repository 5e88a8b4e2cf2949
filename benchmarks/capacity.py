"""Does ``mgm plan`` tell the truth? Fills Milvus Lite with synthetic rows and compares predictions with what is there.

At each size the file is closed and opened again: its bytes on disk, the private memory of the process that serves it
(RssAnon, Linux only), and the bytes of the same collection as exported files of codes.

    python benchmarks/capacity.py --rows 10000,100000,1000000 --json capacity.json
    python benchmarks/capacity.py --rows 10000,100000 --schema precise --text-bytes 80
    python benchmarks/capacity.py --rows 10000,100000 --schema regions
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from processes import engine_pid, memory
from result_file import write_result

from mg_milvus.capacity import Assumptions, plan
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import Schema
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import MilvusStore

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 5_000
WITHIN = 0.15


def rows_of(schema: Schema, start: int, end: int, path_bytes: int, text_bytes: int) -> Iterator[list[Row]]:
    """Rows as a large collection has them: random names in many folders, random codes."""
    for first in range(start, end, BATCH):
        random = np.random.default_rng(first)
        rows = []
        for number in range(first, min(first + BATCH, end)):
            name = random.bytes(path_bytes).hex()
            path = f"/data/images/2024/{name[:2]}/{name[2:4]}/{name[4:]}"[: path_bytes - 4] + ".jpg"
            texts = {f.name: random.bytes(text_bytes).hex()[:text_bytes] for f in schema.fields if f.type == "string"}
            numbers = {f.name: 1_700_000_000_000_000_000 + number for f in schema.fields if f.type == "int"}
            rows.append(
                Row(
                    image_id(path), path, int(random.integers(20_000, 2_000_000)),
                    1_700_000_000_000_000_000 + int(random.integers(0, 10**17)), int(random.integers(300, 6000)),
                    int(random.integers(300, 6000)), random.bytes(16).hex(),
                    {name: random.bytes(bits // 8) for name, bits in schema.bits.items()}, texts | numbers,
                    random.bytes(schema.regions.bytes_per_image) if schema.regions else b"",
                )
            )  # fmt: skip
        yield rows


def compared(rows: int, what: str, real: int, predicted: float) -> dict[str, Any]:
    """One line of the result, printed."""
    off = predicted / real - 1
    print(
        f"{rows:>9,} {what:<7} real {real / 1e6:9.2f} MB, predicted {predicted / 1e6:9.2f} MB, {off:+.1%}", flush=True
    )
    return {"rows": rows, "what": what, "real": real, "predicted": round(predicted), "off": round(off, 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--schema", default="default")
    parser.add_argument("--path-bytes", type=int, default=60)
    parser.add_argument("--text-bytes", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    schema = Schema.load(options.schema)
    encoder = load_encoder()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file, done = Path(folder) / "mgm.db", 0
        for size in sorted(int(float(part)) for part in options.rows.split(",")):
            store = MilvusStore(MilvusConfig(str(file), collection=schema.collection, timeout=60.0))
            store.create(Description(schema, encoder.fingerprint, 0, encoder.backbone))
            store.put_encoder(encoder.fingerprint, encoder.to_bytes())
            begin = time.perf_counter()
            for rows in rows_of(schema, done, size, options.path_bytes, options.text_bytes):
                store.upsert(rows)
            written = (size - done) / (time.perf_counter() - begin)
            done = size
            kept = len(encoder.to_bytes()) * 4 // 3  # the encoder beside the rows, in base64
            store.close()
            store = MilvusStore(MilvusConfig(str(file), collection=schema.collection, timeout=60.0))
            store.count()
            if schema.regions:
                store.regions.count()
            resident = round(memory(engine_pid(file), "RssAnon") * 2**20)
            first = schema.granularities[0]
            store.nearest(first.name, np.zeros((1, first.bits // 8), np.uint8), 100)
            begin = time.perf_counter()
            for _ in range(5):
                store.nearest(first.name, np.zeros((1, first.bits // 8), np.uint8), 100)
            asked = (time.perf_counter() - begin) / 5
            store.close()
            made = plan(size, schema, Assumptions(options.path_bytes, options.text_bytes))
            results.append(compared(size, "file", file.stat().st_size - kept, made.lite_file))
            results.append(compared(size, "memory", resident, made.lite_memory))
            codes = Path(folder) / f"codes{size}"
            with ImageIndex.open(file, collection=schema.collection) as index:
                index.export(codes)
            exported = sum(part.stat().st_size for part in codes.glob("*.parquet"))
            results.append(compared(size, "codes", exported, made.codes_folder))
            print(
                f"{size:>9,} written {written:,.0f} rows/s, one search of {first.name} {1000 * asked:.1f} ms",
                flush=True,
            )
    if options.json:
        write_result(options.json, results)
    worst = max(abs(result["off"]) for result in results)
    print(f"worst: {worst:.1%} off, {WITHIN:.0%} allowed")
    return int(worst > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
