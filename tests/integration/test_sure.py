"""Answers that say how sure they are: verdicts, chance, what is cut, the fusion by chance, and where they are shown."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mg_milvus.errors import QueryError
from mg_milvus.html.pages import QueryResult, QuerySettings, result_page
from mg_milvus.images.augment import AUGMENTATIONS
from mg_milvus.index import ImageIndex
from mg_milvus.search.chance import Chance, ChanceKeeper
from tests.cli.test_log import run
from tests.conftest import kind_of_image
from tests.integration.test_explanation import BITS, all_codes

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = {"coarse": 1.0, "mid": 2.0, "fine": 0.5}


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))


@pytest.fixture
def photo(labelled_photos: Path) -> Path:
    return labelled_photos / "stripes" / "05.jpg"


def kept(index: ImageIndex) -> Chance:
    chance = ChanceKeeper(index.session).chance()
    assert chance is not None
    return chance


def test_an_ingest_counts_the_distances_of_all_pairs(labelled_index: ImageIndex) -> None:
    chance, (_, bits) = kept(labelled_index), all_codes(labelled_index)
    assert (chance.rows, chance.fingerprint) == (60, labelled_index.fingerprint)
    for name, own in bits.items():
        far = [int((a != b).sum()) for place, a in enumerate(own) for b in own[:place]]
        assert chance.counts[name].tolist() == np.bincount(far, minlength=BITS[name] + 1).tolist()


def test_a_copy_is_the_same_image_and_noise_is_nothing(
    labelled_index: ImageIndex, photo: Path, noise: Image.Image
) -> None:
    (first, *_) = hits = labelled_index.query(photo)
    assert (first.path, first.verdict, hits.remark) == (str(photo), "same image", "")
    edited = AUGMENTATIONS["jpeg"].apply(Image.open(photo), "mild")
    assert labelled_index.query(edited, profile="instance")[0].verdict == "same image"
    chance = kept(labelled_index)
    for hit in labelled_index.query(noise):
        assert hit.verdict in {"loosely similar", "nothing in common"}
        assert hit.chance == {name: chance.of(name, np.array([far]))[0] for name, far in hit.distances.items()}
    assert "is indexed; the nearest are" in labelled_index.query(noise).remark


def test_what_a_hit_is_does_not_depend_on_the_weights(labelled_index: ImageIndex, photo: Path) -> None:
    """Nor on how many hits there are, nor on who fuses: ``fine`` is searched for neighbours whatever its weight."""
    edited = AUGMENTATIONS["jpeg"].apply(Image.open(photo), "mild")
    every = labelled_index.query(edited, k=60, granularity="fine")
    known = {hit.id: (hit.verdict, hit.confidence) for hit in every}
    assert {verdict for verdict, _ in known.values()} > {"same image", "nothing in common"}
    for options in (
        {"granularity": "mid"}, {"granularity": "coarse"}, {"weights": {"coarse": 1, "mid": 1}},
        {"fusion": "server", "profile": "balanced"},
    ):  # fmt: skip
        for k in (1, 7):
            hits = labelled_index.query(edited, k=k, depth=10, **options)
            assert {hit.id: (hit.verdict, hit.confidence) for hit in hits}.items() <= known.items()
            assert len(hits) == k
    together = labelled_index.query([edited, edited], k=7, granularity="mid")
    assert {hit.id: (hit.verdict, hit.confidence) for hit in together}.items() <= known.items()


def test_what_is_less_is_cut(labelled_index: ImageIndex, photo: Path, noise: Image.Image) -> None:
    every = labelled_index.query(photo, k=60)
    for word, verdicts in (
        ("same-image", {"same image"}),
        ("same-object", {"same image", "same object or scene"}),
        ("same-kind", {"same image", "same object or scene", "same kind"}),
    ):
        expected = [hit for hit in every if hit.verdict in verdicts]
        assert 0 < len(expected) < 60
        assert labelled_index.query(photo, k=60, min=word) == expected
    few = labelled_index.query(photo, k=60, max_chance=0.05)
    assert few == [hit for hit in every if min(hit.chance.values()) <= 0.05]
    assert 0 < len(few) < 60
    nothing = labelled_index.query(noise, min="same-kind")
    assert nothing == []
    assert nothing.remark.endswith("without min and max_chance the nearest are shown")


def test_fusion_by_chance_is_the_sum_of_logarithms(labelled_index: ImageIndex, photo: Path) -> None:
    ids, bits = all_codes(labelled_index)
    own, chance = ids.index(labelled_index.row(photo).id), kept(labelled_index)
    scores = dict.fromkeys(ids, 0.0)
    for name, weight in WEIGHTS.items():
        counts = chance.counts[name]
        for key, codes in zip(ids, bits[name], strict=True):
            far = int((codes != bits[name][own]).sum())
            share = (counts[: far + 1].sum() + (far + 1) / len(counts)) / (counts.sum() + 1)
            scores[key] -= weight * math.log10(share)
    hits = labelled_index.query(photo, k=60, fusion="chance", weights=WEIGHTS)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(scores)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True))
    explained = labelled_index.explain(photo, k=5, fusion="chance", weights=WEIGHTS)
    for hit, contributions in zip(explained.hits, explained.contributions, strict=True):
        assert sum(one.score or 0 for one in contributions.values()) == pytest.approx(hit.score)
    twice = labelled_index.query([photo, photo], k=60, fusion="chance", weights=WEIGHTS)
    assert {hit.id: hit.score / 2 for hit in twice} == pytest.approx(scores)
    assert twice[0].verdict == "same image"


def test_the_server_s_hits_have_verdicts_too(labelled_index: ImageIndex, photo: Path) -> None:
    hits = labelled_index.query(photo, fusion="server", profile="balanced")
    assert hits[0].verdict == "same image"
    assert labelled_index.query(photo, fusion="server", profile="balanced", min="same-image") == hits[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min": "kind"}, "min is 'kind', expected same-image, same-object, same-kind, loosely-similar"),
        ({"max_chance": 0}, "max_chance is 0, expected a share above 0, at most 1"),
        ({"max_chance": float("nan")}, "max_chance is nan"),
        ({"max_chance": "0.1"}, "max_chance is '0.1'"),
    ],
)
def test_wrong_options(labelled_index: ImageIndex, photo: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        labelled_index.query(photo, **options)  # type: ignore[arg-type]


def test_there_is_no_chance_of_regions(collage_index: ImageIndex, collages: Path) -> None:
    with pytest.raises(QueryError, match="there is no chance of regions"):
        collage_index.query(collages / "07.png", regions="contains", fusion="chance")
    hits = collage_index.query(collages / "07.png", regions="contains", k=60)
    assert {hit.path: hit.verdict for hit in hits}[str(collages / "07.png")] == "same image"


def test_a_crop_without_regions_says_so(labelled_index: ImageIndex, photo: Path, collage_index: ImageIndex) -> None:
    remark = labelled_index.query(photo, crop=(0, 0, 40, 40)).remark
    assert remark.endswith("to find details, ingest into a new collection with --schema regions")
    assert labelled_index.query(photo).remark == ""
    (row, *_) = collage_index.sample(1)
    assert collage_index.query(row.path, crop=(0, 0, 60, 60)).remark == ""


def test_auto_puts_first_what_stands_out(labelled_index: ImageIndex, photo: Path, collage_index: ImageIndex) -> None:
    plain = labelled_index.query(photo, k=60, weights=labelled_index.schema.weights)
    hits = labelled_index.query(photo, k=60)
    assert hits == labelled_index.query(photo, k=60, profile="auto")
    assert {hit.lead for hit in hits[1:]} == {None}
    assert (hits[0].lead, hits[0].path) == ("fine", str(photo))
    assert hits[0].score == pytest.approx(2 * 3.6 / 61)
    assert {hit.id: hit.score for hit in hits[1:]} == {hit.id: hit.score for hit in plain[1:]}
    # A quarter of an image is found by the regions, though they have no weight; only that hit has a box.
    right = 0
    for row in collage_index.images(order_by="path", limit=60)[::5]:
        image = Image.open(row.path)
        detail = image.crop((0, 0, image.width // 2, image.height // 2))
        found = collage_index.query(detail, k=5)
        contains = collage_index.query(detail, k=5, regions="contains", weights={"regions": 1})
        right += found[0].path == row.path
        if found[0].lead == "regions":
            assert found[0].path == contains[0].path
            assert found[0].box == contains[0].box
        assert all(hit.box is None and "regions" not in hit.distances for hit in found if hit.lead != "regions")
    assert right >= 8
    explained = collage_index.explain(detail, k=5)
    for hit, parts in zip(explained.hits, explained.contributions, strict=True):
        assert sum(one.score or 0 for one in parts.values()) == pytest.approx(hit.score)


def test_few_images_say_nothing_and_more_do(tmp_path: Path) -> None:
    for number in range(20):
        kind_of_image("disc", number).save(tmp_path / f"{number}.jpg")
    with ImageIndex.open("memory:") as index:
        index.ingest(tmp_path)
        (hit, *_) = index.query(tmp_path / "3.jpg")
        assert (hit.verdict, hit.confidence, hit.chance) == (None, None, {})
        assert "verdict" not in hit.as_dict()
        with pytest.raises(QueryError, match="at least 50 images, and this collection lacks it"):
            index.query(tmp_path / "3.jpg", min="same-kind")
        for number in range(20, 60):
            kind_of_image("disc", number).save(tmp_path / f"{number}.jpg")
        index.ingest(tmp_path)
        assert index.query(tmp_path / "3.jpg")[0].verdict == "same image"
        assert kept(index).rows == 60
        for number in range(60, 70):
            kind_of_image("disc", number).save(tmp_path / f"{number}.jpg")
        index.ingest(tmp_path)
        assert kept(index).rows == 60, "ten more change little"
        index.delete([str(tmp_path / f"{number}.jpg") for number in range(45)])
        index.ingest(tmp_path / "69.jpg")
        assert kept(index).rows == 60, "fewer than 50 are not measured"


def test_damaged_statistics_are_told_and_measured_again(
    tmp_path: Path, labelled_photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ImageIndex.open("memory:") as index:
        index.ingest(labelled_photos)
        index.session.store.put_statistics(b"{")
        with ImageIndex(index.session) as again:
            assert again.query(labelled_photos / "disc" / "01.jpg")[0].verdict is None
            assert "mgm ingest measures them again" in caplog.text
            again.ingest(labelled_photos)
            assert again.query(labelled_photos / "disc" / "01.jpg")[0].verdict == "same image"


def test_the_command_line_shows_words_first(
    labelled_index: ImageIndex, photo: Path, noise: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(labelled_index))
    monkeypatch.setenv("COLUMNS", "200")
    noise.save(tmp_path / "noise.png")
    done = run("query", photo, "-k", "3")
    head, first, *_ = done.stdout.splitlines()
    assert head.split() == ["rank", "score", "path", "verdict", "coarse", "mid", "fine"]
    assert "  same image  " in first
    done = run("query", tmp_path / "noise.png", "-k", "3")
    assert "is indexed; the nearest are" in done.stdout.splitlines()[-1]
    done = run("query", photo, "-k", "60", "--min", "same-image", "--max-chance", "0.5", "--json")
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["verdict"], line["path"]) == ("same image", str(photo))
    assert set(line["chance"]) == set(BITS)
    done = run("query", tmp_path / "noise.png", "--min", "same-kind")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "No images found."


def test_the_page_shows_words(labelled_index: ImageIndex, photo: Path, noise: Image.Image) -> None:
    settings = QuerySettings("images", BITS, WEIGHTS, "rank")
    hits, none = labelled_index.query(photo), labelled_index.query(noise)
    page = result_page([QueryResult("a", photo, hits), QueryResult("b", noise, none, remark=none.remark)], settings)
    assert '<p class="verdict">same image</p>' in page
    assert f'<p class="verdict">{none.remark}</p>' in page
    assert none.remark in none._repr_html_()
