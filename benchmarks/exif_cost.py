"""What reading the time of a photograph (EXIF, the column ``taken``) adds to decoding it, as a share of processor time.

    python benchmarks/exif_cost.py [--images 40] [--rounds 5]

JPEGs of noise with the tags that a camera writes. Opening, decoding and the time of each take turns in one process. An
ingest reads, hashes and encodes besides, so its share is smaller.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time

import numpy as np
from PIL import ExifTags, Image

from mg_milvus.images.decode import _taken, decode

SIDES = {"0.1 MP": (384, 256), "2 MP": (1600, 1200)}
LEAST = 224


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model], exif[ExifTags.Base.Orientation] = "Maker", "Model", 1
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2024:05:01 12:34:56", ExifTags.Base.DateTimeDigitized: "2024:05:01 12:34:56",
        ExifTags.Base.ISOSpeedRatings: 100, ExifTags.Base.SubsecTimeOriginal: "120",
        ExifTags.Base.MakerNote: b"x" * 4000,
    }  # fmt: skip
    data = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(data, "JPEG", quality=90, exif=exif)
    return data.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shares = {}
    for name, size in SIDES.items():
        files = [photograph(seed, size) for seed in range(options.images)]
        found = []
        for _ in range(options.rounds):
            decoding = reading = 0.0
            for data in files:
                started = time.process_time()
                taken = decode(data, least=LEAST).taken
                decoding += time.process_time() - started
                with Image.open(io.BytesIO(data)) as image:
                    exif = image.getexif()  # read in any case, for the orientation
                    started = time.process_time()
                    again = _taken(exif.get_ifd(ExifTags.IFD.Exif))
                    reading += time.process_time() - started
                if taken is None or taken != again:
                    raise SystemExit("the two read different times")
            found.append(reading / (decoding - reading))
        shares[name] = {"median": round(statistics.median(found), 4), "most": round(max(found), 4)}
    print(json.dumps({"share of decoding": shares}, indent=1))


if __name__ == "__main__":
    main()
