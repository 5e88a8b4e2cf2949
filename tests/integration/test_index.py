"""The facade: ingest, ask, delete, refit, on the exact twin and on Milvus Lite, with real image files."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.networks import build
from mg_milvus.errors import (
    CollectionNotFoundError,
    EncoderError,
    EncoderMismatchError,
    FilterError,
    ImageError,
    NotIndexedError,
    QueryError,
    SchemaMismatchError,
    StoreError,
)
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
from mg_milvus.records import Progress
from mg_milvus.schema.models import Schema
from mg_milvus.session import cache_folder
from tests.conftest import kind_of_image, make_photos
from tests.real_codes import distance as far
from tests.real_codes import real_code


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ImageIndex, Path]]:
    """An index on the exact twin that no test changes, and its images."""
    photos = make_photos(tmp_path_factory.mktemp("index") / "photos")
    with ImageIndex.open("memory:") as index:
        report = index.ingest(photos)
        assert (report.seen, report.added, report.failed, report.adapted_on) == (60, 60, 0, 60)
        yield index, photos


def rows(index: ImageIndex) -> dict[str, dict[str, bytes]]:
    """Path -> codes of all rows."""
    store = index.session.store
    return {row.path: dict(row.codes) for batch in store.scan(granularities=("coarse", "mid", "fine")) for row in batch}


def test_an_image_finds_itself_first_with_distance_zero(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    for file in (photos / "disc" / "03.jpg", photos / "blocks" / "11.jpg"):
        first = index.query(file, k=5)[0]
        assert (first.rank, first.path) == (1, str(file))
        assert first.distances == {"coarse": 0, "mid": 0, "fine": 0}
        assert first.fields["width"] == 96


def test_every_way_to_hand_over_an_image_gives_the_same_answer(read_only: tuple[ImageIndex, Path]) -> None:
    import torch

    index, _ = read_only
    image = kind_of_image("stripes", 77)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    answers = index.query_many([image, pixels, pixels / 255.0, tensor, tensor.float() / 255], k=7)
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 7


def test_several_images_in_one_batch_are_asked_as_alone(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    files = sorted(photos.glob("*/0*.jpg"))[:9]
    assert index.query_many(files, k=4) == [index.query(file, k=4) for file in files]
    assert index.query_many([]) == []


def test_the_ranking_is_the_definition(read_only: tuple[ImageIndex, Path]) -> None:
    """Against the formula on all rows, by brute force; depth covers the whole collection."""
    index, photos = read_only
    file = photos / "stripes" / "05.jpg"
    stored, weights = rows(index), {"coarse": 1.0, "mid": 0.0, "fine": 3.0}
    distance = {
        name: {
            path: far(real_code(index, file, name), np.unpackbits(np.frombuffer(codes[name], np.uint8)))
            for path, codes in stored.items()
        }
        for name in ("coarse", "fine")
    }

    def score(path: str) -> float:
        total = 0.0
        for name, of in distance.items():
            nearer = sum(d < of[path] for d in of.values())
            equal = sum(d == of[path] for d in of.values())
            total += weights[name] / (60 + nearer + (equal + 1) / 2)
        return total

    expected = sorted(stored, key=lambda path: -round(score(path), 12))
    hits = index.query(file, k=60, weights=weights, depth=60)
    assert [hit.score for hit in hits] == pytest.approx([score(path) for path in expected])
    own = int.from_bytes(stored[str(file)]["fine"])
    bits = {path: (int.from_bytes(codes["fine"]) ^ own).bit_count() for path, codes in stored.items()}
    assert {hit.path: hit.distances["fine"] for hit in hits} == bits
    assert [h.score for h in hits] == pytest.approx([score(h.path) for h in hits])


def test_like_is_the_query_of_the_stored_codes_without_the_image_itself(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    file = photos / "disc" / "07.jpg"
    stored = rows(index)
    asked = index.query_codes(stored[str(file)], k=60)
    liked = index.like(file, k=59)
    assert {hit.path: hit.distances for hit in liked} == {
        hit.path: hit.distances for hit in asked if hit.path != str(file)
    }
    assert {hit.path: hit.distances["mid"] for hit in asked} == {
        path: (int.from_bytes(codes["mid"]) ^ int.from_bytes(stored[str(file)]["mid"])).bit_count()
        for path, codes in stored.items()
    }
    assert index.like(asked[0].id, k=59) == liked
    assert [hit.rank for hit in liked] == list(range(1, 60))
    # All ranks move up by one, which may change the order where several are fused, but not that of one alone.
    alone = {"weights": {"fine": 1}, "k": 60}
    paths = [hit.path for hit in index.query_codes(stored[str(file)], **alone) if hit.path != str(file)]
    assert [hit.path for hit in index.like(file, **alone)] == paths


def test_codes_can_be_asked_directly(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    path = str(photos / "disc" / "01.jpg")
    first, *others = index.query_codes(rows(index)[path], k=5)
    assert (first.path, first.distances) == (path, {"coarse": 0, "mid": 0, "fine": 0})
    assert others == index.query_codes(index.codes(path), k=5)[1:]
    with pytest.raises(QueryError, match="no code for 'mid'"):
        index.query_codes({"coarse": bytes(8)})
    with pytest.raises(QueryError, match="the code for coarse has 4 uint8, expected 8 uint8 bytes"):
        index.query_codes({"coarse": bytes(4), "mid": bytes(16), "fine": bytes(32)})


def test_a_crop_is_asked_as_the_cropped_image(read_only: tuple[ImageIndex, Path]) -> None:
    index, _ = read_only
    image = kind_of_image("blocks", 50, (200, 120))
    cropped = image.crop((20, 10, 120, 90))
    assert index.query(image, crop=(20, 10, 100, 80), k=5) == index.query(cropped, k=5)
    with pytest.raises(QueryError, match="200"):
        index.query(image, crop=(150, 0, 100, 80))


def test_filters_and_the_single_granularity(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    hits = index.query(photos / "disc" / "00.jpg", k=60, filter=f'path like "{photos}/stripes/%"')
    assert {Path(hit.path).parent.name for hit in hits} == {"stripes"}
    alone = index.like(photos / "disc" / "00.jpg", k=59, granularity="mid")
    assert [h.distances["mid"] for h in alone] == sorted(h.distances["mid"] for h in alone)
    asked, stored = real_code(index, photos / "disc" / "00.jpg", "mid"), rows(index)
    nearest = [np.unpackbits(np.frombuffer(stored[hit.path]["mid"], np.uint8)) for hit in
               index.query(photos / "disc" / "00.jpg", k=60, granularity="mid")]  # fmt: skip
    distances = [far(asked, bits) for bits in nearest]
    assert (len(distances), distances) == (60, sorted(distances))
    with pytest.raises(FilterError):
        index.query(photos / "disc" / "00.jpg", filter="path ==== 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0, expected a whole number from 1"),
        ({"k": 20, "depth": 10}, "depth is 10 and k is 20"),
        ({"profile": "instanc"}, "unknown profile 'instanc', expected auto, category"),
        ({"weights": {"corse": 1}}, "unknown granularity 'corse' (did you mean 'coarse'?)"),
        ({"weights": {"coarse": 0}}, "all weights are 0"),
        ({"weights": {"coarse": float("nan")}}, "the weight of coarse is nan"),
        ({"weights": {"coarse": 1}, "profile": "object"}, "exclude each other"),
        ({"fusion": "sum"}, "fusion is 'sum', expected rank, score, chance, server"),
        ({"rrf_k": -1}, "rrf_k is -1"),
        ({"kk": 3}, "unknown option 'kk' (did you mean 'k'?)"),
    ],
)
def test_bad_options_are_refused(read_only: tuple[ImageIndex, Path], options: dict[str, object], message: str) -> None:
    index, photos = read_only
    with pytest.raises(QueryError, match=re.escape(message)):
        index.query(photos / "disc" / "00.jpg", **options)  # type: ignore[misc]


def test_threads_get_the_answers_one_thread_gets(read_only: tuple[ImageIndex, Path]) -> None:
    index, photos = read_only
    files = sorted(photos.glob("*/1*.jpg"))[:12]
    expected = [index.query(file, k=3) for file in files]
    answers: list[object] = [None] * len(files)

    def ask(place: int) -> None:
        answers[place] = index.query(files[place], k=3)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected


def test_info_tells_what_it_is(read_only: tuple[ImageIndex, Path]) -> None:
    index, _ = read_only
    info = index.info()
    assert (info.rows, info.bytes_per_image, info.heads, info.backbone) == (
        60,
        56,
        "adapted on 60 images",
        "efficientnet_lite0",
    )
    assert info.advice == ()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """15 images in three folders: for what does not depend on their number, nor on fitted heads."""
    return make_photos(tmp_path / "photos", 5)


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[ImageIndex]:
    with ImageIndex.open(tmp_path / "index.db") as index:
        yield index


def test_a_rerun_skips_what_is_unchanged_and_encodes_what_changed(lite: ImageIndex, few: Path) -> None:
    lite.ingest(few)
    assert lite.ingest(few).unchanged == 15
    before = rows(lite)

    changed, touched, new = few / "disc" / "00.jpg", few / "disc" / "01.jpg", few / "disc" / "new.png"
    kind_of_image("stripes", 90).save(changed)
    os.utime(touched, ns=(1, 1))
    kind_of_image("blocks", 91).save(new)
    report = lite.ingest(few)
    assert (report.added, report.updated, report.unchanged, lite.count()) == (1, 1, 14, 16)
    after = rows(lite)
    assert after[str(changed)] != before[str(changed)]
    assert after[str(touched)] == before[str(touched)]
    assert lite.ingest(few).unchanged == 16
    assert lite.query(changed, k=1)[0].distances == {"coarse": 0, "mid": 0, "fine": 0}


def test_codes_do_not_depend_on_batches_or_workers(tmp_path: Path, photos: Path) -> None:
    found = []
    for batch_size, workers in ((64, 1), (7, 3)):
        with ImageIndex.open("memory:") as index:
            index.ingest(photos, batch_size=batch_size, workers=workers)
            found.append(rows(index))
    assert found[0] == found[1]


def test_every_stored_code_is_that_of_the_file(lite: ImageIndex, photos: Path) -> None:
    lite.ingest(photos)
    for path in rows(lite):
        hit = lite.query(path, k=1)[0]
        assert (hit.path, sum(hit.distances.values())) == (path, 0)


def test_prune_removes_what_is_gone_under_the_root_only(lite: ImageIndex, few: Path, tmp_path: Path) -> None:
    other = make_photos(tmp_path / "other", per_kind=1)
    lite.ingest(few, other)
    (few / "disc" / "03.jpg").unlink()
    shutil.rmtree(other / "disc")
    assert lite.ingest(few, prune=True, dry_run=True).removed == 1
    assert lite.count() == 18
    assert lite.ingest(few, prune=True).removed == 1
    assert lite.count() == 17
    assert lite.ingest(few).removed == 0


def test_prune_refuses_to_empty_a_folder_that_may_not_be_mounted(lite: ImageIndex, few: Path) -> None:
    lite.ingest(few)
    shutil.rmtree(few)
    few.mkdir()
    with pytest.raises(StoreError, match="Is the disk mounted"):
        lite.ingest(few, prune=True)
    assert lite.count() == 15


def test_a_dry_run_writes_nothing(tmp_path: Path, photos: Path) -> None:
    with ImageIndex.open(tmp_path / "none.db") as index:
        report = index.ingest(photos, dry_run=True)
        assert (report.added, report.dry_run) == (60, True)
    assert not (tmp_path / "none.db").exists()


def test_few_images_keep_the_shipped_heads_and_a_refit_adapts_them(lite: ImageIndex, photos: Path) -> None:
    report = lite.ingest(*sorted(photos.glob("disc/*.jpg")))
    assert (report.added, report.adapted_on) == (20, 0)
    assert lite.info().heads == "shipped"
    lite.ingest(photos)
    assert "mgm refit" in lite.info().advice[0]
    report = lite.refit("better")
    assert (report.added, report.adapted_on) == (60, 60)
    with pytest.raises(QueryError, match="a collection 'better' already"):
        lite.refit("better")
    with ImageIndex.open(lite.uri, collection="better") as better:
        assert better.info().heads == "adapted on 60 images"
        assert better.query(photos / "disc" / "00.jpg", k=1)[0].rank == 1
    assert lite.count() == 60


def test_a_refit_carries_fields_over_and_reports_what_is_gone(tmp_path: Path, photos: Path) -> None:
    schema = Schema.from_yaml("fields: [{name: label, type: string}]")
    table = tmp_path / "labels.csv"
    table.write_text(
        "path,label\n" + "".join(f"{p.parent.name}/{p.name},{p.parent.name}\n" for p in photos.glob("*/*"))
    )
    with ImageIndex.open(tmp_path / "a.db", schema) as index:
        index.ingest(photos, metadata=table)
        (photos / "disc" / "00.jpg").unlink()
        report = index.refit("again")
        assert (report.added, [Path(f.path).name for f in report.failures]) == (59, ["00.jpg"])
        with ImageIndex.open(tmp_path / "a.db", collection="again") as again:
            assert again.count('label == "disc"') == 19


def test_metadata_fills_fields_and_a_new_table_updates_them(tmp_path: Path, few: Path) -> None:
    schema = Schema.from_yaml("fields: [{name: year, type: int, default: 1999}]")
    table = tmp_path / "meta.csv"
    table.write_text("path,year\ndisc/00.jpg,2001\ndisc/01.jpg,2002\n")
    with ImageIndex.open(tmp_path / "m.db", schema) as index:
        index.ingest(few, metadata=table)
        assert (index.count("year == 2001"), index.count("year == 1999")) == (1, 13)
        codes = rows(index)
        table.write_text("path,year\ndisc/00.jpg,2010\ndisc/01.jpg,2002\n")
        report = index.ingest(few, metadata=table)
        assert (report.updated, report.unchanged) == (1, 14)
        assert index.query(few / "disc" / "00.jpg", k=1)[0].fields["year"] == 2010
        assert index.ingest(few).unchanged == 15
        assert rows(index) == codes


def test_delete_says_how_many_and_keeps_the_files(lite: ImageIndex, few: Path) -> None:
    lite.ingest(few)
    file = few / "disc" / "00.jpg"
    key = lite.query(few / "disc" / "01.jpg", k=1)[0].id
    with pytest.raises(NotIndexedError, match=r"'nowhere\.jpg' is neither the id nor the path"):
        lite.delete([str(file), "nowhere.jpg"])
    assert lite.count() == 15
    assert lite.delete([str(file), key, key]) == 2
    assert lite.delete_where(f'path like "{few}/stripes/%"') == 5
    assert (lite.count(), file.exists()) == (8, True)
    with pytest.raises(NotIndexedError):
        lite.like(file)


def test_the_encoder_travels_with_the_collection(tmp_path: Path, photos: Path) -> None:
    with ImageIndex.open(tmp_path / "a.db") as index:
        index.ingest(photos)
        fingerprint = index.info().fingerprint
        expected = index.query(photos / "disc" / "00.jpg", k=5)
    assert not cache_folder().exists()
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert index.query(photos / "disc" / "00.jpg", k=5) == expected
    copy = cache_folder() / f"{fingerprint}.safetensors"
    assert load_encoder(copy).fingerprint == fingerprint
    copy.write_bytes(b"damaged")
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert index.query(photos / "disc" / "00.jpg", k=5) == expected
    assert load_encoder(copy).fingerprint == fingerprint


def test_a_large_encoder_with_weights_of_its_own_is_kept_in_the_cache_or_given(tmp_path: Path, photos: Path) -> None:
    weights, file = tmp_path / "w.safetensors", tmp_path / "large.safetensors"
    save_file(build("resnet18").state_dict(), weights)  # 45 MB
    fit_encoder(photos, file, FitOptions(backbone="resnet18", weights=weights))
    query = photos / "disc" / "00.jpg"
    with ImageIndex.open(tmp_path / "l.db", encoder=file) as index:
        index.ingest(*sorted((photos / "disc").iterdir())[:5])
        expected = index.query(query, k=3)
    with ImageIndex.open(tmp_path / "l.db") as index:
        assert index.query(query, k=3) == expected
    shutil.rmtree(cache_folder())
    with ImageIndex.open(tmp_path / "l.db", encoder=file) as index:
        assert index.query(query, k=3) == expected


def test_another_encoder_is_refused_with_both_fingerprints(tmp_path: Path, photos: Path) -> None:
    other = tmp_path / "other.safetensors"
    fit_encoder(photos, other)
    with ImageIndex.open(tmp_path / "a.db") as index:
        index.ingest(photos)
        recorded = index.info().fingerprint
    with ImageIndex.open(tmp_path / "a.db", encoder=load_encoder("builtin")) as index:
        assert index.ingest(photos).unchanged == 60  # what it was adapted from is no other encoder
    other_bits = load_encoder(other).with_bits({"coarse": 64, "mid": 128, "fine": 248})
    assert other_bits.fingerprint != recorded
    with (
        ImageIndex.open(tmp_path / "a.db", encoder=other_bits) as index,
        pytest.raises(EncoderMismatchError, match=f"{recorded}, you gave {other_bits.fingerprint}"),
    ):
        index.query(photos / "disc" / "00.jpg")
    with ImageIndex.open(tmp_path / "b.db", encoder=other) as index:
        index.ingest(photos / "disc")
    for mine in (other, "builtin"):  # what it was adapted from, at first and at second hand
        with ImageIndex.open(tmp_path / "b.db", encoder=mine) as index:
            assert index.ingest(photos / "disc").unchanged == 20


def test_another_schema_is_refused_and_weights_may_change(tmp_path: Path, few: Path) -> None:
    with ImageIndex.open(tmp_path / "a.db") as index:
        index.ingest(few)
    with (
        ImageIndex.open(tmp_path / "a.db", "compact") as index,
        pytest.raises(SchemaMismatchError, match="bits"),
    ):
        index.ingest(few)
    weighted = Schema.from_yaml(
        "granularities: [{name: coarse, bits: 64, weight: 0}, {name: mid, bits: 128}, {name: fine, bits: 256}]"
    )
    with ImageIndex.open(tmp_path / "a.db", weighted) as index:
        assert index.schema.weights == {"coarse": 0, "mid": 1, "fine": 1}
        named = index.query(few / "disc" / "00.jpg", weights={"mid": 1, "fine": 1})
        assert index.query(few / "disc" / "00.jpg")[1:] == named[1:]  # the image itself stands out


def test_an_unknown_granularity_is_refused_before_any_work(tmp_path: Path, photos: Path) -> None:
    schema = Schema.from_yaml("granularities: [{name: hue, bits: 64}]")
    with (
        ImageIndex.open(tmp_path / "h.db", schema) as index,
        pytest.raises(EncoderError, match="no granularity 'hue'; it offers coarse, mid, fine"),
    ):
        index.ingest(photos, progress=lambda step: pytest.fail(f"worked: {step}"))


def test_the_compact_preset_takes_sixteen_bytes(photos: Path) -> None:
    with ImageIndex.open("memory:", "compact") as index:
        index.ingest(photos)
        assert index.info().bytes_per_image <= 16
        assert index.query(photos / "disc" / "00.jpg", k=1)[0].path.endswith("00.jpg")


def test_asking_where_nothing_is_makes_nothing(tmp_path: Path) -> None:
    with (
        ImageIndex.open(tmp_path / "no.db") as index,
        pytest.raises(CollectionNotFoundError, match="mgm ingest FOLDER"),
    ):
        index.query(kind_of_image("disc", 0))
    assert list(tmp_path.iterdir()) == []


def test_the_only_collection_is_found_by_itself(tmp_path: Path, few: Path) -> None:
    with ImageIndex.open(tmp_path / "a.db", collection="holidays") as index:
        index.ingest(few)
    with ImageIndex.open(tmp_path / "a.db") as index:
        assert (index.collection, index.count()) == ("holidays", 15)


def test_a_closed_index_says_so(read_only: tuple[ImageIndex, Path]) -> None:
    index = ImageIndex.open("memory:")
    index.close()
    index.close()
    with pytest.raises(StoreError, match="is closed"):
        index.count()


def test_progress_reaches_the_end_and_an_unknown_source_stops_at_once(photos: Path) -> None:
    seen: list[Progress] = []
    with ImageIndex.open("memory:") as index:
        index.ingest(photos, progress=seen.append, batch_size=16)
        assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("encoding", 60, 60)
        assert any("fit" in step.stage for step in seen)
        with pytest.raises(ImageError, match="nowhere"):
            index.ingest(photos, photos / "nowhere")


def test_server_fusion_finds_the_image_itself(lite: ImageIndex, photos: Path) -> None:
    lite.ingest(photos)
    file = photos / "stripes" / "04.jpg"
    hits = lite.query(file, k=10, fusion="server", profile="balanced")
    assert (hits[0].path, sum(hits[0].distances.values())) == (str(file), 0)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    near = {hit.path for hit in lite.query(file, k=20)}
    assert len(near & {hit.path for hit in hits}) >= 8


def test_images_of_one_pixel_are_found_again(lite: ImageIndex, few: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(few / "dot.png")
    Image.new("RGB", (1, 10_000), "blue").save(few / "line.png")
    assert lite.ingest(few).added == 17
    assert lite.query(few / "line.png", k=1)[0].path == str(few / "line.png")
