"""Queries by words: their ranking by hand, in the fusion, from the command line and the page; tags of the encoder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from mg_milvus import QueryTerm
from mg_milvus.encoder.classifier import TAGS, TEMPERATURE
from mg_milvus.encoder.file import fingerprint
from mg_milvus.encoder.hash_heads import MOST_ANCHORS
from mg_milvus.encoder.imagenet import PACKAGES
from mg_milvus.encoder.load import load_encoder
from mg_milvus.errors import EncoderError, FilterError, QueryError
from mg_milvus.images.discover import image_id
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import RegionSettings, Schema
from mg_milvus.schema.tags import LEVELS, NO_TAG, encode_tag, probability_of, vocabulary
from mg_milvus.search import words
from mg_milvus.store.base import Description, Row
from tests.cli.test_log import run
from tests.integration.test_efficientnet import weights_file
from tests.integration.test_explanation import mean_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = {name: place for place, name in enumerate(vocabulary().tags)}
SHOWN: list[dict[str, float]] = [
    {"beagle": 0.9, "dog": 0.97},
    {"beagle": 0.3, "basset": 0.5, "dog": 0.9},
    {"tabby": 0.8, "cat": 0.95},
    {"sports car": 0.6, "convertible": 0.3, "car": 0.9},
    {"convertible": 0.1, "car": 0.15},
    {"dog": 0.1},
    {},
    {"electric guitar": 0.7, "acoustic guitar": 0.25, "musical instrument": 0.98},
]
"""The probabilities of the tags of eight images."""
SCHEMA = Schema.from_yaml("version: 1\ngranularities: [{name: coarse, bits: 8}]")


def level(value: float) -> float:
    """A probability as it is read again."""
    return probability_of(encode_tag(0, value))


@pytest.fixture(scope="module", params=["memory", "lite"])
def tagged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    """Eight images with these tags; the code of image n is n bits of 1."""
    uri = "memory:" if request.param == "memory" else str(tmp_path_factory.mktemp("words") / "w.db")
    with ImageIndex.open(uri, schema=SCHEMA) as opened:
        opened.session.store.create(Description(SCHEMA, "0123456789abcdef"))
        opened.session.store.upsert([
            Row(image_id(f"/{n}.jpg"), f"/{n}.jpg", 1, 1, 10 * n, 1, "", {"coarse": bytes([(1 << n) - 1])},
                tags=[encode_tag(PLACE[name], value) for name, value in own.items()])
            for n, own in enumerate(SHOWN)
        ])  # fmt: skip
        yield opened


def order(index: ImageIndex, **options: Any) -> str:
    return "".join(hit.path[1] for hit in index.query(**options))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beagle", "01"),
        ("dogs", "015"),
        ("hound", "01"),  # beagle and basset: .9, and .5 + .3
        ("convertible", "34"),
        ("car", "34"),
        ("guitar", "7"),
        ("animal", "0215"),
        ("vehicle", "34"),
        ("elephant", ""),
    ],
)
def test_the_most_probable_come_first(tagged: ImageIndex, text: str, expected: str) -> None:
    assert order(tagged, text=text) == expected


def test_a_hit_says_how_sure_and_what_else_is_seen(tagged: ImageIndex) -> None:
    first, second = tagged.query(text="convertible")
    assert first.distances == {"text": round(100 * (1 - level(0.3)))}
    assert second.distances == {"text": round(100 * (1 - level(0.1)))}
    assert (first.score, second.score) == (1 / 61, 1 / 62)
    assert first.fields["tags"] == {
        "car": round(level(0.9), 2), "sports car": round(level(0.6), 2), "convertible": round(level(0.3), 2)
    }  # fmt: skip
    assert second.fields["tags"] == {}
    (alone,) = tagged.query(text="convertible", k=1)
    assert alone.path == "/3.jpg"


def test_words_are_one_more_ranking(tagged: ImageIndex) -> None:
    """Against the formula: every image is a candidate, by its bits from image 2 and its probability of a dog."""
    hits = tagged.like("/2.jpg", text="dog", weights={"coarse": 1, "text": 3})
    others = [n for n in range(8) if n != 2]
    bits = {n: abs(n - 2) for n in others}
    far = {n: 100 * (1 - level(SHOWN[n]["dog"])) if "dog" in SHOWN[n] else 100.0 for n in others}
    near = {n: 1 / (60 + mean_rank(bits[n], list(bits.values()))) for n in others}
    sure = {n: 3 / (60 + mean_rank(far[n], list(far.values()))) for n in others}
    expected = {f"/{n}.jpg": near[n] + sure[n] for n in others}
    assert {hit.path: hit.score for hit in hits} == pytest.approx(expected)
    assert [hit.path for hit in hits][:3] == ["/0.jpg", "/1.jpg", "/5.jpg"]
    by_score = tagged.like("/2.jpg", text="dog", weights={"coarse": 1, "text": 3}, fusion="score")
    assert by_score[0].path == "/0.jpg"
    assert by_score[0].score == pytest.approx(1 * (1 - 2 / 8) + 3 * level(0.97))


@pytest.mark.parametrize("terms", [{2: 1.0, 7: 0.5, 4: -0.3}, {1: -1.0}])
def test_words_are_one_more_ranking_beside_several_images(tagged: ImageIndex, terms: dict[int, float]) -> None:
    """Against the formula: beside images, words weigh as much as those to look for; alone, as much as one image."""
    others = [n for n in range(8) if n not in terms]
    far = {n: 100 * (1 - level(SHOWN[n]["dog"])) if "dog" in SHOWN[n] else 100.0 for n in range(8)}
    rows = others if max(terms.values()) > 0 else [n for n in others if "dog" in SHOWN[n]]  # the candidates
    expected = dict.fromkeys((f"/{n}.jpg" for n in rows), 0.0)
    for n in rows:
        for image, weight in terms.items():
            bits = [abs(other - image) for other in rows]
            expected[f"/{n}.jpg"] += 2 * weight / (60 + mean_rank(abs(n - image), bits))
        of_words = 3 * (sum(weight for weight in terms.values() if weight > 0) or 1)
        expected[f"/{n}.jpg"] += of_words / (60 + mean_rank(far[n], [far[other] for other in rows]))
    asked = [QueryTerm(like=f"/{n}.jpg", weight=weight) for n, weight in terms.items()]
    hits = tagged.query_together(asked, text="dog", weights={"coarse": 2, "text": 3})
    assert {hit.path: hit.score for hit in hits} == pytest.approx(expected)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        n, wanted = int(hit.path[1]), [image for image, weight in terms.items() if weight > 0]
        nearest = {"coarse": min(abs(n - image) for image in wanted)} if wanted else {}
        assert hit.distances == nearest | {"text": round(far[n])}
    assert tagged.query_together(asked[::-1], text="dog", weights={"coarse": 2, "text": 3}) == hits


def test_words_and_several_images_from_the_command_line(tagged: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_milvus.cli.settings.open_index", lambda *_, **__: nullcontext(tagged))
    done = run("query", "--text", "dog", "--like", "/2.jpg", "--like", "/4.jpg", "--together", "--json")
    assert done.exit_code == 0, done.output
    expected = tagged.query_together([QueryTerm(like="/2.jpg"), QueryTerm(like="/4.jpg")], text="dog")
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [hit.path for hit in expected]
    assert json.loads(done.stdout.splitlines()[0])["query"] == "dog, /2.jpg, /4.jpg"


def test_words_weigh_as_much_as_all_granularities(tagged: ImageIndex) -> None:
    given = tagged.like("/2.jpg", text="dog", weights={"coarse": 2.5})
    assert list(given) == list(tagged.like("/2.jpg", text="dog", weights={"coarse": 2.5, "text": 2.5}))
    explained = tagged.explain(like="/2.jpg", text="dog", weights={"coarse": 2.5})
    assert explained.fields["text"].weight == 2.5
    assert explained.fields["text"].candidates == 3
    alone = tagged.explain(text="dog")
    assert list(alone.hits) == list(tagged.query(text="dog"))
    assert list(alone.fields) == ["text"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('tags == "dog"', "01"),
        ({"tags": "dog"}, "01"),
        ('tags == "beagle" and width < 10', "0"),
        ('tags != "dog"', "234567"),
        ('not (tags == "dog")', "234567"),
        ('tags in ["dogs", "cat"]', "012"),
        ({"tags": ["dogs", "cat"]}, "012"),
        ('tags not in ["animal", "car"]', "4567"),
        ('"guitar" == tags or width == 60', "67"),
        ("tags in []", ""),
        ("tags not in []", "01234567"),
    ],
)
def test_filters_on_tags(tagged: ImageIndex, where: Any, expected: str) -> None:
    assert "".join(row.path[1] for row in tagged.images(filter=where, order_by="path")) == expected
    assert tagged.count(where) == len(expected)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ('tags == "elefant"', "images have no tag 'elefant'; the nearest known are 'elephant'"),
        ("tags == 3", "images have no tag 3"),
        ('tags > "dog"', "tags are compared with words by ==, != and in"),
        ('tags like "d%"', "tags are compared with words by ==, != and in"),
        ("tags == path", "tags are compared with words by ==, != and in"),
        ("tags is null", "no image lacks tags, it may have none"),
    ],
)
def test_filters_on_tags_that_cannot_be(tagged: ImageIndex, where: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        tagged.count(where)


def test_a_filter_and_words(tagged: ImageIndex) -> None:
    assert order(tagged, text="dog", filter="width > 5") == "15"
    assert order(tagged, text="dog", filter={"tags": "beagle"}) == "01"


def test_tags_are_counted(tagged: ImageIndex) -> None:
    assert tagged.tags("width <= 30") == {
        "beagle": 2, "dog": 2, "basset": 1, "car": 1, "cat": 1, "convertible": 1, "sports car": 1, "tabby": 1,
    }  # fmt: skip
    assert list(tagged.tags().items())[:2] == [("beagle", 2), ("dog", 2)]


def test_few_rows_are_read_where_many_images_have_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3,000 dogs of all probabilities the 20 most probable, without reading the others."""
    with ImageIndex.open("memory:", schema=SCHEMA) as index:
        store = index.session.store
        store.create(Description(SCHEMA, "0123456789abcdef"))
        store.upsert([
            Row(image_id(f"/{n}.jpg"), f"/{n}.jpg", n, 1, 1, 1, "", {"coarse": b"\0"},
                tags=[PLACE["dog"] * LEVELS + n % LEVELS])
            for n in range(3000)
        ])  # fmt: skip
        read, scan = [], store.scan
        monkeypatch.setattr(store, "scan", lambda where: ((read.append(len(some)), some)[1] for some in scan(where)))
        found = words.retrieve_tagged(store, frozenset([PLACE["dog"]]), 20, "size < 2990")
        best = sorted(image_id(f"/{n}.jpg") for n in range(LEVELS - 1, 2990, LEVELS))
        assert found == best[:20]
        assert sum(read) == len(best) == 99


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "there is nothing to search with: give an image, or text"),
        ({"text": "elefant"}, "the nearest known are 'elephant'"),
        ({"text": 3}, "text is 3, expected text"),
        ({"text": "dog", "fusion": "server"}, "the server cannot fuse words"),
        ({"text": "dog", "weights": {"txt": 1}}, "unknown granularity 'txt' .did you mean 'text'"),
        ({"weights": {"text": 1, "coarse": 1}}, "there is a weight of text, but no text"),
        ({"text": " "}, "text is ' ', expected words"),
        ({"image": [], "text": "dog"}, "there is no image to look for"),
        ({"unlike": ["a.jpg"]}, "there is no image to look for: give at least one with a weight above 0, or text"),
    ],
)
def test_queries_by_words_that_cannot_be(tagged: ImageIndex, options: dict[str, Any], says: str) -> None:
    with pytest.raises(QueryError, match=says):
        tagged.query(**options)


def test_an_encoder_without_classifier_says_so(tmp_path: Path) -> None:
    def brightness(images: list[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(image.resize((8, 8))).ravel() / 255 for image in images], np.float32)

    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    for seed in range(60):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
    with ImageIndex.open("memory:", encoder=brightness) as index:
        index.ingest(tmp_path)
        for ask in (lambda: index.query(text="dog"), index.tags, lambda: index.query(tmp_path / "a.png", text="dog")):
            with pytest.raises(QueryError, match=r"have no tags: its encoder \(function:.* has no classifier"):
                ask()


def test_tags_are_those_of_the_reference_network() -> None:
    """Softmax of the whole network by another implementation, for painted images; the bias and the order included."""
    encoder = load_encoder()
    images = [encoder.prepare(Image.radial_gradient("L").convert("RGB").crop((0, 0, 256, 200 + n))) for n in range(3)]
    other = EfficientNet.from_name("efficientnet-lite0", image_size=images[0].shape[1:]).eval()
    other.load_state_dict(torch.load(weights_file("efficientnet_lite0"), weights_only=True))
    tags = encoder.encode_and_tag(images).tags
    assert tags is not None
    assert tags.dtype == np.int16
    groups = np.array(vocabulary().groups)
    for image, own in zip(images, tags.tolist(), strict=True):
        with torch.inference_mode():
            logits = other((torch.from_numpy(image[None]).float() - 127) / 128)[0]
        shares = torch.softmax(logits / TEMPERATURE, 0).numpy().astype(float)
        of_group = {group: shares[groups == group].sum() for group in set(groups.tolist()) - {-1}}
        best = np.argsort(-shares)[:2].tolist()
        best_group = max(of_group, key=of_group.__getitem__)
        for stored, number, value in zip(own, [*best, best_group], [*shares[best], of_group[best_group]], strict=True):
            if value > 0.025:
                assert stored // LEVELS == number
                assert abs(stored - encode_tag(number, value)) <= 2  # levels: 8 bits, or half precision
            elif value < 0.015:
                assert stored == NO_TAG


def test_an_encoder_with_the_heads_of_a_collection_has_16_mb_at_most() -> None:
    encoder = load_encoder().with_regions(RegionSettings().windows)
    features = encoder.features([encoder.prepare(Image.linear_gradient("L").convert("RGB"))])
    random = np.random.default_rng(0)
    sample = {
        name: random.standard_normal((300 if name == "regions" else 5 * MOST_ANCHORS, *values.shape[1:]), np.float32)
        for name, values in features.items() if name != TAGS
    }  # fmt: skip
    adapted = encoder.adapted(sample, {"coarse": 64, "mid": 128, "fine": 256, "regions": 128})
    assert len(adapted.to_bytes()) <= 16_000_000


def test_the_classifier_travels_with_the_encoder() -> None:
    encoder = load_encoder()
    data = encoder.to_bytes()
    again = load_encoder(data)
    assert again.has_tags
    assert again.fingerprint == encoder.fingerprint == fingerprint(again.state)
    image = [encoder.prepare(Image.linear_gradient("L").convert("RGB"))]
    assert (again.features(image)[TAGS] == encoder.features(image)[TAGS]).all()
    assert again.with_bits({"coarse": 32}).has_tags
    place = data.index(encoder.state.classifier.weight.tobytes()[:64])  # type: ignore[attr-defined]
    damaged = data[: place + 5] + bytes([data[place + 5] ^ 1]) + data[place + 6 :]
    with pytest.raises(EncoderError, match=r"the classifier has the fingerprint .* expected .* damaged"):
        load_encoder(damaged)
    assert set(PACKAGES) >= {encoder.backbone}


def test_an_ingest_keeps_what_the_encoder_sees(labelled_index: ImageIndex, labelled_photos: Path) -> None:
    file = sorted(labelled_photos.rglob("*.jpg"))[7]
    encoder = labelled_index.session.encoder
    features = encoder.features([encoder.prepare(Image.open(file))])
    expected = [tag for tag in features[TAGS][0].tolist() if tag != NO_TAG]
    stored = list(labelled_index.row(file).tags)
    assert [tag // LEVELS for tag in stored] == [tag // LEVELS for tag in expected]
    assert np.abs(np.array(stored) - expected).max(initial=0) <= 1


def test_the_commands(tmp_path: Path, labelled_photos: Path) -> None:
    uri = ("--uri", str(tmp_path / "c.db"))
    assert run("ingest", str(labelled_photos / "disc"), *uri).exit_code == 0
    counts = json.loads(run("tags", "--json", *uri).stdout)
    lines = run("tags", *uri).stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[str(count), tag] for tag, count in counts.items()]
    tag = next(iter(counts))
    found = run("query", "--text", tag, "-k", "30", "--json", *uri)
    hits = [json.loads(line) for line in found.stdout.splitlines()]
    assert sum(tag in hit["tags"] for hit in hits) == counts[tag]
    assert {hit["query"] for hit in hits} == {tag}
    beside = run("query", "--like", hits[0]["path"], "--text", tag, "-k", "3", *uri)
    assert "text" in beside.stdout.splitlines()[0]
    unknown = run("query", "--text", "elefant", *uri)
    assert unknown.exit_code == 1
    assert "the nearest known are 'elephant'" in unknown.stderr
    assert run("query", "--text", "dog", "--verify", *uri).exit_code == 2
    assert "sports car" in run("tags", "--all", *uri).stdout.splitlines()


def test_the_page_takes_words(labelled_index: ImageIndex) -> None:
    pytest.importorskip("fastapi", reason="the web page needs the extra web")
    from fastapi.testclient import TestClient

    from mg_milvus.web.app import create_app
    from mg_milvus.web.security import WebSettings

    tag = next(iter(labelled_index.tags()))
    with TestClient(create_app(labelled_index, WebSettings()), base_url="http://127.0.0.1:8000") as client:
        found = client.get("/api/query", params={"text": tag, "k": 3}).json()
        expected = labelled_index.query(text=tag, k=3)
        assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
        assert (found["bits"], found["weights"], found["query"]["codes"]) == ({"text": 100}, {"text": 1.0}, "")
        every = client.get("/api/query", params={"text": tag, "k": 1, "candidates": True}).json()
        ranked = sorted(every["candidates"], key=lambda candidate: candidate["ranked_by"]["text"])
        assert [candidate["id"] for candidate in ranked[:3]] == [hit.id for hit in expected]
        assert [hit["id"] for hit in every["hits"]] == [expected[0].id]
        beside = client.get("/api/query", params={"text": tag, "id": expected[0].id, "k": 3, "candidates": True}).json()
        same = labelled_index.like(expected[0].id, text=tag, k=3)
        assert [hit["id"] for hit in beside["hits"]] == [hit.id for hit in same]
        assert any("text" in candidate["retrieved_by"] for candidate in beside["candidates"])
        several = {"like": [expected[0].id, expected[1].id], "unlike": expected[2].id}
        terms = [
            QueryTerm(like=expected[0].id),
            QueryTerm(like=expected[1].id),
            QueryTerm(like=expected[2].id, weight=-1),
        ]
        for options in ({}, {"text": tag}):
            answer = client.get("/api/query", params={**several, **options, "k": 4}).json()
            wanted = labelled_index.query_together(terms, k=4, **options)
            assert answer["hits"] == json.loads(json.dumps([hit.as_dict() for hit in wanted]))
            assert answer["query"]["codes"] == ""
        answer = client.get("/api/query", params={**several, "candidates": True})
        assert (answer.status_code, "those of one image" in answer.json()["error"]) == (400, True)
        refused = client.get("/api/query", params={"text": "elefant"})
        assert refused.status_code == 400
        assert "the nearest known are 'elephant'" in refused.text
