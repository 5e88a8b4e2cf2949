"""Finding details: how often the image that contains a detail is found, whether it is shown where, and at what cost.

    python benchmarks/parts.py PHOTOGRAPHS [--queries 200] [--schemas parts ...] [--curve] [--latency 10000] [--json F]

Every image of the folder is ingested into Milvus Lite through ``ImageIndex``. Queries are random crops of a half, a
quarter and a tenth of the area of some of them, enlarged by 1.3 and recompressed as JPEG of quality 60; "turned" ones
are cut out of the image turned by up to 8 degrees. Columns: the source among the first and the first ten results, and
the share of sources whose box overlaps the true one by half (IoU). ``composite``: a quarter pasted into another image
at a random place and size (0.3 to 0.6 of its side); the whole composite is asked, region by region.

Rows: ``whole`` asks the codes of whole images with equal weights, ``fine`` only that, ``regions`` the regions,
``fused`` regions and ``fine`` two to one, ``floats`` the features under the regions' codes by cosine: the ceiling.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from result_file import write_result

from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.load import load_encoder
from mg_milvus.images.discover import discover
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import REGIONS, RegionScale, RegionSettings, Schema, scale_of, windows
from mg_milvus.store.base import Description, Row
from mg_milvus.store.milvus import open_store

AREAS = {"half": 0.5, "quarter": 0.25, "tenth": 0.1}
ENLARGED = 1.3
QUALITY = 60
TURN = 8.0
CURVE = (("13 regions", 128), ("29 regions", 64), ("83 regions", 128))
Box = tuple[float, float, float, float]


def saved(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def detail(image: Image.Image, area: float, turned: bool, random: np.random.Generator) -> tuple[Image.Image, Box]:
    """A crop of the image's shape and its box in pixels."""
    w, h = (round(side * area**0.5) for side in image.size)
    x, y = int(random.integers(image.width - w + 1)), int(random.integers(image.height - h + 1))
    angle = float(random.uniform(-TURN, TURN))
    if turned:
        image = image.rotate(angle, Image.Resampling.BICUBIC, center=(x + w / 2, y + h / 2))
    cut = image.crop((x, y, x + w, y + h))
    return saved(cut.resize((round(ENLARGED * w), round(ENLARGED * h)), Image.Resampling.BICUBIC)), (x, y, w, h)


def composite(image: Image.Image, other: Image.Image, random: np.random.Generator) -> Image.Image:
    cut, _ = detail(image, 0.25, False, random)
    share = float(random.uniform(0.3, 0.6))
    w, h = round(share * other.width), round(share * other.height)
    place = int(random.integers(other.width - w + 1)), int(random.integers(other.height - h + 1))
    made = other.copy()
    made.paste(cut.resize((w, h), Image.Resampling.BICUBIC), place)
    return saved(made)


def overlap(a: Box, b: Box) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, w) * max(0.0, h)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


class Counted:
    """Ranks of the sources and overlaps of their boxes."""

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.overlaps: list[float] = []

    def figures(self) -> dict[str, float]:
        ranks = np.array(self.ranks)
        found = {"recall@1": float((ranks == 1).mean()), "recall@10": float((ranks <= 10).mean())}
        return found | ({"iou": float((np.array(self.overlaps) >= 0.5).mean())} if self.overlaps else {})


def settings(names: list[str], curve: bool) -> dict[str, Schema]:
    """Name -> schema: those named, and others around the presets."""
    found = {name: Schema.load(name) for name in names}
    grids = {
        "13 regions": {0.7: 2, 0.5: 3}, "29 regions": {0.7: 2, 0.5: 3, 0.33: 4},
        "83 regions": {0.7: 3, 0.5: 5, 0.33: 7},
    }  # fmt: skip
    for label, bits in CURVE if curve else ():
        scales = tuple(RegionScale(size=size, grid=grid) for size, grid in grids[label].items())
        found[f"{label}, {bits} bits"] = Schema(regions=RegionSettings(bits=bits, scales=scales))
    return found


def quality(folder: Path, name: str, schema: Schema, queries: int) -> dict[str, Any]:
    assert schema.regions
    found = sorted(discover([folder], lambda _: None), key=lambda own: own.path)
    random = np.random.default_rng(0)
    asked = random.permutation(len(found))[:queries]
    result: dict[str, Any] = {"bytes": schema.regions.bytes_per_image, "regions": schema.regions.count}
    with TemporaryDirectory() as place, ImageIndex.open(Path(place) / "parts.db", schema) as index:
        report = index.ingest(folder)
        result["images_per_second"] = report.images_per_second
        result["bytes_on_disk"] = (Path(place) / "parts.db").stat().st_size / report.added
        encoder = index.session.encoder
        everything: list[Any] = []
        for start in range(0, len(found), 64):
            images = [Image.open(own.path).convert("RGB") for own in found[start : start + 64]]
            everything.append(encoder.features([encoder.prepare(p) for p in images])[REGIONS].astype(np.float32))
        floats, places = np.concatenate(everything), scale_of(schema.regions.windows)
        mean = floats.reshape(-1, floats.shape[2]).mean(axis=0)
        floats = unit(floats - mean)
        for kind, area, turned in [*((k, a, False) for k, a in AREAS.items()), ("quarter, turned", 0.25, True)]:
            tallies = {row: Counted() for row in ("whole", "fine", "regions", "fused", "floats")}
            for row in asked:
                image = Image.open(found[row].path).convert("RGB")
                cut, box = detail(image, area, turned, random)
                options: dict[str, Any] = {"k": 100, "depth": 100}
                answers = {
                    "whole": index.query(cut, **options),
                    "fine": index.query(cut, granularity="fine", **options),
                    "regions": index.query(cut, regions="contains", **options),
                    "fused": index.query(cut, weights={"regions": 2, "fine": 1}, **options),
                }
                for way, hits in answers.items():
                    rank = next((hit.rank for hit in hits if hit.path == found[row].path), 101)
                    tallies[way].ranks.append(rank)
                    if way in {"regions", "fused"}:
                        own = hits[rank - 1].box if rank <= len(hits) else None
                        tallies[way].overlaps.append(overlap(own, box) if own else 0.0)
                rank, own = by_floats(encoder.region_image_features([cut])[0], mean, floats, places, int(row))
                w, h = image.size
                tallies["floats"].ranks.append(rank)
                x = windows(schema.regions.windows)[own] * (w, h, w, h)
                tallies["floats"].overlaps.append(overlap((x[0], x[1], x[2], x[3]), box))
            result[kind] = {way: tally.figures() for way, tally in tallies.items()}
            show(f"{name}: {kind}", result[kind])
        tallies = {row: Counted() for row in ("whole", "fine", "regions")}
        for row in asked[: queries // 2]:
            other = found[int(random.integers(len(found)))].path
            if other == found[row].path:
                continue
            made = composite(Image.open(found[row].path).convert("RGB"), Image.open(other).convert("RGB"), random)
            for way, more in (("whole", {}), ("fine", {"granularity": "fine"}), ("regions", {"regions": "overlap"})):
                hits = index.query(made, k=100, **more)
                tallies[way].ranks.append(next((hit.rank for hit in hits if hit.path == found[row].path), 101))
        result["composite"] = {way: tally.figures() for way, tally in tallies.items()}
        show(f"{name}: composite", result["composite"])
    return result


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_floats(
    features: np.ndarray, mean: np.ndarray, floats: np.ndarray, places: np.ndarray, row: int
) -> tuple[int, int]:
    """Rank of the source by the best cosine of its regions, and the number of that region."""
    asked = unit(features.astype(np.float32) - mean)
    cosines = np.einsum("nrd,rd->nr", floats, asked[places], optimize=True)
    best = cosines.max(axis=1)
    return int((best >= best[row]).sum()), int(cosines[row].argmax())


def latency(rows: int, name: str, schema: Schema, times: int = 30) -> dict[str, float]:
    """Milliseconds of a query for a detail beyond the encoding, in an index of random codes on Milvus Lite."""
    assert schema.regions
    random = np.random.default_rng(1)
    with TemporaryDirectory() as place:
        store = open_store(MilvusConfig(str(Path(place) / "parts.db"), collection=schema.collection))
        store.create(Description(schema, load_encoder().fingerprint))
        for start in range(0, rows, 500):
            store.upsert([
                Row(
                    hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(), f"/{number}.jpg", 1, 1, 384, 256,
                    "0" * 32, {g: random.bytes(bits // 8) for g, bits in schema.bits.items()}, {},
                    random.bytes(schema.regions.bytes_per_image),
                )
                for number in range(start, min(start + 500, rows))
            ])  # fmt: skip
        from mg_milvus.search.query import Query
        from mg_milvus.search.searcher import Searcher

        found: dict[str, float] = {}
        for label, options in (
            ("regions", {"regions": "contains"}),
            ("parts and coarse", {"weights": {"coarse": 1, "regions": 2}}),
        ):
            query = Query.of(schema, options)  # type: ignore[arg-type]
            taken = []
            for _ in range(times):
                codes: dict[str, Any] = {
                    g: random.standard_normal((1, bits), np.float32) for g, bits in schema.bits.items()
                }
                shape = (1, len(schema.regions.scales), schema.regions.bits)
                codes[REGIONS] = random.standard_normal(shape, np.float32)
                started = time.perf_counter()
                Searcher(store, schema).search(codes, query)
                taken.append(1000 * (time.perf_counter() - started))
            found[label] = statistics.median(taken)
            print(f"{name}: {label}, {rows:,} images: {found[label]:.1f} ms beyond the encoding", flush=True)
        store.close()
    return found


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':10}" + "".join(f"{column:>11}" for column in ("recall@1", "recall@10", "iou")))
    for row, figures in rows.items():
        print(f"{row:10}" + "".join(f"{value:11.3f}" for value in figures.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--schemas", nargs="*", default=["regions", "regions-precise"])
    parser.add_argument("--curve", action="store_true", help="also fewer and more regions and bits")
    parser.add_argument("--latency", type=int, default=0, help="also time queries among this many images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for name, schema in settings(options.schemas, options.curve).items():
        result[name] = quality(options.folder, name, schema, options.queries)
        own = result[name]
        print(
            f"{name}: {own['regions']} regions, {own['bytes']} bytes of their codes an image "
            f"({own['bytes_on_disk']:,.0f} on disk with all else), {own['images_per_second']:.0f} images/s"
        )
        if options.latency:
            own["latency_ms"] = latency(options.latency, name, schema)
    if options.json:
        write_result(options.json, result)


if __name__ == "__main__":
    main()
