"""What ``mgm encode`` costs an image: processor time, bytes in files of codes, memory. ``mgm plan`` uses these figures.

    python benchmarks/encode_cost.py FOLDER [--images 200] [--rounds 2] [--json FILE]

The presets take turns, each round in a process of its own. Processor time, not time of the day, so that the figures
hold on a machine that does other things too: what two cores encode a second is 2 over the seconds of processor time an
image, as long as reading keeps up. The encoder is loaded and has seen a batch before the clock starts; finding,
reading, decoding, encoding and writing Parquet are in it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from result_file import write_result
from side_by_side.measuring import alone

from mg_milvus.bulk.encode import EncodeOptions, encode
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import discover
from mg_milvus.schema.models import Schema

PRESETS = ("default", "regions", "precise")


def processor_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def encoded(images: list[str], preset: str) -> dict[str, Any]:
    """Figures of these images with a preset of the schema, and the shipped heads."""
    schema = Schema.load(preset)
    regions = schema.regions.windows if schema.regions else ()
    encoder = load_encoder(schema.encoder.name).with_regions(regions).with_bits(schema.code_bits)
    options = EncodeOptions(schema=schema)
    with TemporaryDirectory() as scratch:
        encode(*images[:16], out=f"{scratch}/first", encoder=encoder, options=options)
        before = processor_seconds()
        report = encode(*images, out=f"{scratch}/codes", encoder=encoder, options=options)
        seconds = processor_seconds() - before
        assert report.encoded == len(images)
        size = sum(file.stat().st_size for file in Path(scratch, "codes").glob("*.parquet"))
    return {
        "processor ms an image": round(1e3 * seconds / len(images), 2),
        "images/s of two cores": round(2 * len(images) / seconds, 1),
        "bytes of codes an image": round(size / len(images), 1),
        "runtime": encoder.runtime,
    }


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure; what is text is the same in all rounds."""
    first = rounds[0]
    return {
        name: value if isinstance(value, str) else round(statistics.median(each[name] for each in rounds), 1)
        for name, value in first.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = sorted(file.path for file in discover([options.folder], print))
    images = found[:: max(1, len(found) // options.images)][: options.images]
    rounds = [{preset: alone(encoded, images, preset) for preset in PRESETS} for _ in range(options.rounds)]
    result = {preset: median([each[preset] for each in rounds]) for preset in PRESETS}
    for preset, figures in result.items():
        print(preset, figures, flush=True)
    if options.json:
        write_result(options.json, {"images": len(images)} | result)


if __name__ == "__main__":
    main()
