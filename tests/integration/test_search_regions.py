"""Details found through an index: which images contain this, and where; coarse to fine; regions kept in step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mg_milvus.codes import pack
from mg_milvus.config import MilvusConfig
from mg_milvus.encoder.file import fingerprint
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import EncoderError, QueryError, SchemaMismatchError, StoreError
from mg_milvus.images.decode import open_image
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.run import OutOfStep, delete_orphans, find_out_of_step
from mg_milvus.schema.models import (
    REGIONS,
    RegionScale,
    RegionSettings,
    Schema,
    box_of,
    shared_scales,
    windows,
)
from mg_milvus.store.milvus import open_store
from tests.conftest import make_photos
from tests.images import collage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mg_milvus.records import Box

SETTINGS = RegionSettings(bits=128, scales=(RegionScale(size=0.7, grid=2), RegionScale(size=0.5, grid=3)))
SCHEMA = Schema(regions=SETTINGS)


def overlap(a: Box, b: Box) -> float:
    w = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


@pytest.fixture(scope="module")
def index(collages: Path) -> Iterator[ImageIndex]:
    with ImageIndex.open("memory:", SCHEMA) as made:
        report = made.ingest(collages)
        assert (report.added, report.adapted_on) == (60, 60)
        yield made


def test_a_detail_is_found_and_shown_where(index: ImageIndex, collages: Path) -> None:
    right = placed = 0
    for seed in range(0, 60, 6):
        for place in range(4):
            box = (place % 2 * 120, place // 2 * 80, 120, 80)
            x, y, w, h = box
            (hit,) = index.query(collage(seed).crop((x, y, x + w, y + h)), k=1, regions="contains")
            right += hit.path == str(collages / f"{seed:02}.png")
            placed += hit.box is not None and overlap(hit.box, box) >= 0.5
            assert hit.distances[REGIONS] <= SETTINGS.bits
    assert right >= 28  # chance is less than one in 60
    assert placed >= 28


def test_a_crop_alone_asks_the_regions(index: ImageIndex, collages: Path) -> None:
    image = collages / "07.png"
    by_crop = index.query(image, k=5, crop=(120, 80, 120, 80))
    assert by_crop == index.query(image, k=5, crop=(120, 80, 120, 80), regions="contains")
    assert by_crop[0].path == str(image)
    assert by_crop[0].box is not None
    assert overlap(by_crop[0].box, (120, 80, 120, 80)) >= 0.5
    # ... of which the whole image's codes still see the whole.
    assert by_crop[0].distances["fine"] == 0
    assert index.query(image, k=1, crop=(120, 80, 120, 80), granularity="fine")[0].distances["fine"] > 0


def test_regions_are_one_more_ranking(index: ImageIndex, collages: Path) -> None:
    hits = index.query(
        collages / "07.png", k=60, crop=(120, 80, 120, 80), weights={"coarse": 1, "regions": 2}, depth=60
    )
    assert len(hits) == 60
    for hit in hits:
        expected = 1 / (60 + hit.ranks["coarse"]) + 2 / (60 + hit.ranks["regions"])
        assert hit.score == pytest.approx(expected)


def test_without_being_asked_regions_change_nothing(index: ImageIndex, collages: Path) -> None:
    with ImageIndex.open("memory:", Schema()) as plain:
        plain.ingest(collages)
        for name in ("03.png", "41.png"):
            ours, theirs = index.query(collages / name, k=20), plain.query(collages / name, k=20)
            assert [(h.path, h.score, h.distances) for h in ours] == [(h.path, h.score, h.distances) for h in theirs]
            assert all(hit.box is None and "box" not in hit.as_dict() for hit in ours)


def test_a_hit_tells_its_box_as_json(index: ImageIndex, collages: Path) -> None:
    (hit,) = index.query(collages / "07.png", k=1, crop=(0, 0, 120, 80))
    assert hit.box is not None
    assert hit.as_dict()["box"] == list(hit.box)


def test_images_that_share_an_object_find_each_other(index: ImageIndex) -> None:
    """Two of four quarters are another image's, at other places; by chance it would be the first of 60 once in 60."""
    ranks = []
    for seed in range(0, 48, 4):
        made = collage(1000 + seed)
        for source, target in ((0, 3), (3, 0)):
            x, y = source % 2 * 120, source // 2 * 80
            part = collage(seed).crop((x, y, x + 120, y + 80))
            made.paste(part, (target % 2 * 120, target // 2 * 80))
        hits = index.query(made, k=60, regions="overlap")
        ranks.append(next(hit.rank for hit in hits if hit.path.endswith(f"{seed:02}.png")))
        assert hits[0].distances[REGIONS] <= SETTINGS.bits * len(shared_scales(SETTINGS.windows))
    assert np.mean(np.array(ranks) <= 5) >= 0.75, ranks


def test_a_filter_holds_for_regions(index: ImageIndex, collages: Path) -> None:
    image, other = collages / "07.png", collages / "09.png"
    where = f'path == "{other}"'
    hits = index.query(image, k=5, regions="contains", filter=where)
    assert [hit.path for hit in hits] == [str(other)]
    assert index.query(image, k=5, regions="contains", filter="width > 5000") == []


def test_a_filter_that_lets_many_through(index: ImageIndex, collages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = collages / "07.png"
    where = f'path != "{image}"'
    few = index.query(image, k=59, depth=59, regions="contains", filter=where)
    monkeypatch.setattr("mg_milvus.search.retrieve.MAX_DEPTH", 100)  # no room to name them all
    many = index.query(image, k=7, depth=7, regions="contains", filter=where)
    assert str(image) not in {hit.path for hit in few + many}
    assert [hit.path for hit in many] == [hit.path for hit in few[:7]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (200, 100, 100, 100)}, "does not lie inside the image"),
        ({"crop": (0, 0, 0, 10)}, "does not lie inside the image"),
        ({"crop": (0, 0, 7, 100)}, "7x100 pixels is too small to be recognised; expected at least 8"),
        ({"regions": "all"}, "regions is 'all', expected contains or overlap"),
        ({"regions": "contains", "fusion": "server"}, "the server cannot fuse the regions"),
        ({"granularity": "region"}, "did you mean 'regions'"),
    ],
)
def test_wrong_queries(index: ImageIndex, collages: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        index.query(collages / "00.png", **options)


def test_regions_need_the_image_itself(index: ImageIndex, collages: Path) -> None:
    for options in ({"regions": "contains"}, {"granularity": "regions"}, {"weights": {"coarse": 1, "regions": 1}}):
        with pytest.raises(QueryError, match="with the image itself"):
            index.like(collages / "00.png", **options)
    assert index.like(collages / "00.png", k=1)


def test_a_collection_without_regions_says_so(tmp_path: Path) -> None:
    with ImageIndex.open("memory:") as plain:
        plain.ingest(make_photos(tmp_path / "photos", 2))
        for options in ({"regions": "contains"}, {"weights": {"regions": 1}}, {"granularity": "regions"}):
            with pytest.raises(QueryError, match="this collection has no codes of regions"):
                plain.query(tmp_path / "photos/disc/00.jpg", **options)


def test_a_weight_in_the_schema_asks_regions_by_itself(collages: Path) -> None:
    parts = SETTINGS.model_copy(update={"weight": 1.0})
    with ImageIndex.open("memory:", Schema(regions=parts)) as made:
        made.ingest(collages)
        (hit,) = made.query(collages / "29.png", k=1)
        assert hit.ranks[REGIONS] >= 1
        assert made.like(collages / "29.png", k=1)  # of which only codes are there: by the others


def test_region_codes_do_not_depend_on_the_batch(collages: Path) -> None:
    encoder = load_encoder().with_regions(SETTINGS.windows).with_bits(SCHEMA.code_bits)
    images = [encoder.prepare(open_image(collages / f"{n:02}.png").image) for n in range(5)]
    together = encoder.encode(images)[REGIONS]
    assert together.shape == (5, SETTINGS.count, SETTINGS.bits // 8)
    alone = np.concatenate([encoder.encode([image])[REGIONS] for image in images])
    np.testing.assert_array_equal(together, alone)


def test_regions_are_pooled_from_the_one_pass(collages: Path) -> None:
    """Against plain slices of the maps, written out."""
    import torch

    from mg_milvus.encoder.torch_runtime import windowed

    maps = torch.rand(2, 3, 10, 14)
    chosen = windows(((0.5, 3), (1.0, 1)))
    found = windowed(maps, chosen)
    for number, (x, y, w, h) in enumerate(chosen):
        cut = maps[:, :, round(y * 10) : round((y + h) * 10), round(x * 14) : round((x + w) * 14)]
        expected = cut.double().pow(3).mean((2, 3)).pow(1 / 3).float()
        torch.testing.assert_close(found[:, number], expected, rtol=1e-4, atol=1e-5)


def test_a_detail_is_read_at_the_scale_of_its_windows() -> None:
    encoder = load_encoder().with_regions(SETTINGS.windows).with_bits(SCHEMA.code_bits)
    apart = []
    for seed in range(8):
        image = collage(seed)
        codes = encoder.encode([encoder.prepare(image)])[REGIONS][0]
        for number in range(4, 13):  # the 3 x 3 windows of half the sides
            x, y, w, h = box_of(windows(SETTINGS.windows)[number], *image.size)
            (details,) = encoder.region_codes([image.crop((x, y, x + w, y + h))])
            assert (details.shape, details.dtype) == ((2, SETTINGS.bits), np.float32)
            apart.append([int(np.bitwise_count(codes[number] ^ code).sum()) for code in pack(details)])
    too_large, right = np.mean(apart, axis=0)
    assert right < too_large
    assert right < SETTINGS.bits / 5


def test_windows_of_a_query_are_read_at_the_size_of_those_they_are_compared_with() -> None:
    """The first pass has the size of an ingest, so windows that both have get the same codes."""
    encoder = load_encoder().with_regions(SETTINGS.windows).with_bits(SCHEMA.code_bits)
    image = collage(3)
    (shared,) = encoder.shared_region_codes([image])
    scales = shared_scales(SETTINGS.windows)
    assert shared.shape == (len(scales), SETTINGS.bits)
    # 2 x 2 windows of .7, as an ingest has them, and 4 x 4 of .5, of which an ingest has the corners.
    assert scales.tolist()[:20] == [0] * 4 + [1] * 16
    stored = encoder.encode([encoder.prepare(image)])[REGIONS][0]
    np.testing.assert_array_equal(pack(shared[:4]), stored[:4])
    np.testing.assert_array_equal(pack(shared[[4, 7, 16, 19]]), stored[[4, 6, 10, 12]])


def test_an_encoder_with_regions_survives_its_file() -> None:
    encoder = load_encoder().with_regions(SETTINGS.windows).with_bits(SCHEMA.code_bits)
    again = load_encoder(encoder.to_bytes())
    assert again.fingerprint == encoder.fingerprint
    assert again.regions == SETTINGS.windows
    assert dict(again.bits) == SCHEMA.code_bits
    without = again.with_regions(())
    assert without.regions == ()
    assert REGIONS not in without.bits


def test_the_fingerprint_of_an_encoder_without_regions_is_over_what_older_files_have() -> None:
    encoder: Any = load_encoder()
    settings = encoder.state.configuration
    assert settings.regions == ()
    other = encoder.state.model_copy(update={"configuration": settings.model_copy(update={"regions": ((0.5, 2),)})})
    assert fingerprint(encoder.state) == encoder.fingerprint != fingerprint(other)


def test_parts_are_no_granularity_of_an_encoder_without_regions() -> None:
    with pytest.raises(EncoderError, match="has no granularity 'regions'; it offers coarse, mid, fine"):
        load_encoder().with_bits({"coarse": 64, "regions": 128})


def test_a_given_schema_may_change_the_weight_of_regions(collages: Path, tmp_path: Path) -> None:
    uri = tmp_path / "weights.db"
    with ImageIndex.open(uri, SCHEMA) as index:
        index.ingest(collages)
    heavier = Schema(regions=SETTINGS.model_copy(update={"weight": 2.0}))
    with ImageIndex.open(uri, heavier) as index:
        (hit,) = index.query(collages / "29.png", k=1)
        assert hit.lead == "fine"
        assert hit.score == pytest.approx(3.6 / 61 + 2 / (60 + hit.ranks[REGIONS]) + 5.6 / 61)
    with ImageIndex.open(uri, Schema()) as index, pytest.raises(SchemaMismatchError, match="regions is"):
        index.query(collages / "05.png")


def test_a_network_for_squares_has_no_regions() -> None:
    from mg_milvus.encoder.backbones import find_backbone
    from mg_milvus.encoder.file import Configuration, EncoderState, default_poolings
    from mg_milvus.encoder.torch_runtime import TorchEncoder

    configuration = Configuration(
        backbone="vit_b_16", backbone_fingerprint="0", side=224, poolings=default_poolings(find_backbone("vit_b_16"))
    )
    encoder = TorchEncoder(EncoderState(configuration=configuration, backbone={}, heads={}, statistics={}))
    with pytest.raises(EncoderError, match="vit_b_16 takes images of one size only"):
        encoder.with_regions(SETTINGS.windows)


def test_images_and_regions_stay_in_step(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    with ImageIndex.open(tmp_path / "step.db", SCHEMA) as index:
        index.ingest(folder)
        store = index.session.store
        assert store.regions.count() == 9 * SETTINGS.count
        before = store.regions.nearest(0, np.zeros((1, 16), np.uint8), 36)
        collage(77).save(folder / "disc/00.jpg")
        (folder / "disc/01.jpg").unlink()
        report = index.ingest(folder, prune=True)
        assert (report.updated, report.removed) == (1, 1)
        assert store.regions.count() == 8 * SETTINGS.count
        assert store.regions.nearest(0, np.zeros((1, 16), np.uint8), 36) != before
        assert index.query(collage(77), k=1, regions="contains")[0].path == str(folder / "disc/00.jpg")
        index.delete([folder / "disc/00.jpg"])
        assert store.regions.count() == 7 * SETTINGS.count


def test_what_a_crash_left_behind_is_mended_by_the_next_ingest(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    with ImageIndex.open(tmp_path / "step.db", SCHEMA) as index:
        index.ingest(folder)
        store = index.session.store
        gone, short = (image_id(str(folder / name)) for name in ("disc/00.jpg", "disc/01.jpg"))
        row = store.fetch([gone], tuple(SCHEMA.bits))[gone]
        store.upsert([replace(row, id="f" * 32, path="/nowhere.jpg", region_codes=bytes(SETTINGS.bytes_per_image))])
        store.delete(["f" * 32])
        # Regions whose image was never written, as after a kill between the two.
        region_rows = replace(row, id="e" * 32, path="/never.jpg", region_codes=bytes(SETTINGS.bytes_per_image))
        store.upsert([region_rows])
        store._call(lambda: store._client.delete(store.collection, filter=f'id == "{"e" * 32}"'))  # type: ignore[attr-defined]
        store.regions.delete([short])
        assert find_out_of_step(store, SCHEMA) == OutOfStep()  # one too many and one too few: the numbers fit
        found = find_out_of_step(store, SCHEMA, thorough=True)
        assert found == OutOfStep(frozenset({"e" * 32}), frozenset({short}))
        delete_orphans(store, found)
        report = index.ingest(folder)
        assert (report.unchanged, report.added + report.updated) == (8, 1)
        assert store.regions.count() == 9 * SETTINGS.count
        assert find_out_of_step(store, SCHEMA, thorough=True) == OutOfStep()


def test_a_collection_that_a_kill_left_without_its_regions_gets_them_with_the_next_ingest(tmp_path: Path) -> None:
    """Made in two steps, of which the second may not come to pass."""
    folder = make_photos(tmp_path / "photos", 3)
    with ImageIndex.open(tmp_path / "half.db", SCHEMA) as index:
        index.ingest(folder / "disc")
        store: Any = index.session.store
        store._client.drop_collection("images_regions")
    with ImageIndex.open(tmp_path / "half.db") as index:
        report = index.ingest(folder)
        assert (report.added, report.updated, report.failed) == (6, 3, 0)
        assert find_out_of_step(index.session.store, SCHEMA, thorough=True) == OutOfStep()
        assert index.session.store.regions.count() == 9 * SETTINGS.count


def test_regions_that_are_missing_or_of_another_encoder(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    uri = tmp_path / "lost.db"
    with ImageIndex.open(uri, SCHEMA) as index:
        index.ingest(folder)
    store: Any = open_store(MilvusConfig(str(uri), collection="images"))
    store._client.drop_collection("images_regions")
    with pytest.raises(StoreError, match="'images_regions', which holds the codes of regions, is missing"):
        store.regions.count()
    described = store.describe()
    store.regions.create(replace(described, fingerprint="another"))
    store.regions._loaded = None
    with pytest.raises(StoreError, match="holds regions of the encoder another, but 'images' was filled by"):
        store.regions.count()
    store.close()
