"""Queries by words with a text tower: tiny networks of open_clip and transformers with random weights.

What the words find means nothing here; that the product computes what the libraries and the formula say does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip import pretrained

from mg_milvus.codes import in_steps
from mg_milvus.encoder.file import Configuration
from mg_milvus.encoder.libraries import load_text_tower
from mg_milvus.encoder.load import untrained_encoder
from mg_milvus.encoder.weights import from_safetensors
from mg_milvus.errors import EncoderError, QueryError, WeightsNotFoundError
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
from mg_milvus.schema.models import Schema
from mg_milvus.schema.tags import vocabulary
from tests.real_codes import distance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mg_milvus.encoder.base import HashEncoder

SCHEMA = Schema.model_validate(
    {"granularities": [{"name": "coarse", "bits": 16}, {"name": "mid", "bits": 24}, {"name": "fine", "bits": 32}]}
)
VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
          "image_size": 64, "patch_size": 16}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 54,
        "max_position_embeddings": 40, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}  # fmt: skip
TOWER = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
WORDS = "a red car at night"
NETWORKS = ("open_clip:texts-tower/mine", "hf:clip", "hf:siglip")


class Fitted(NamedTuple):
    """An encoder file over a network, and a collection that it filled."""

    file: Path
    uri: str
    photos: Path
    vectors: Callable[[Sequence[str]], torch.Tensor]
    """The library's own way from texts to vectors."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Networks as the libraries have them: folders of transformers, and open_clip's table of weights."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(3)
    letters = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    known = {letter: place for place, letter in enumerate(letters)} | {"<|startoftext|>": 52, "<|endoftext|>": 53}
    clip = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    siglip = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    for name, network in (
        ("clip", transformers.CLIPModel(clip)),
        ("siglip", transformers.SiglipModel(siglip)),
        ("speechless", transformers.CLIPModel(clip)),
    ):
        network.save_pretrained(folder / name)
        scaling = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 64, "width": 64}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(scaling))
        if name != "speechless":
            transformers.CLIPTokenizer(vocab=known, merges=[]).save_pretrained(folder / name)
    (folder / "texts-tower.json").write_text(json.dumps(TOWER))
    open_clip.add_model_config(folder / "texts-tower.json")
    torch.save(open_clip.create_model("texts-tower").state_dict(), folder / "texts-tower.pt")
    pretrained._PRETRAINED["texts-tower"] = {"mine": {"file": str(folder / "texts-tower.pt")}}
    yield folder
    del pretrained._PRETRAINED["texts-tower"]


def backbone(name: str, folder: Path) -> str:
    return name if name.startswith("open_clip:") else f"hf:{folder / name.removeprefix('hf:')}"


def library_vectors(name: str, folder: Path) -> Callable[[Sequence[str]], torch.Tensor]:
    if name.startswith("open_clip:"):
        whole = open_clip.create_model("texts-tower", pretrained="mine").eval()
        return lambda texts: whole.encode_text(open_clip.get_tokenizer("texts-tower")(list(texts)))
    whole = transformers.AutoModel.from_pretrained(folder / name.removeprefix("hf:")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name.removeprefix("hf:"))

    def vectors(texts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(texts), padding="max_length", max_length=40, return_tensors="pt")
        found: torch.Tensor = whole.get_text_features(**tokens).pooler_output
        return found

    return vectors


@pytest.fixture(scope="module", params=NETWORKS)
def fitted(
    request: pytest.FixtureRequest, folder: Path, labelled_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    place = tmp_path_factory.mktemp("fitted")
    options = FitOptions(backbone=backbone(request.param, folder), schema=SCHEMA)
    fit_encoder(labelled_photos, place / "mine.safetensors", options)
    with ImageIndex.open(place / "a.db", SCHEMA, place / "mine.safetensors") as index:
        index.ingest(labelled_photos)
    vectors = library_vectors(request.param, folder)
    return Fitted(place / "mine.safetensors", str(place / "a.db"), labelled_photos, vectors)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def expected_code(fitted: Fitted, encoder: HashEncoder, text: str) -> np.ndarray:
    """The formula: the text's vector less the mean of words, in the components of ``mid``, then their projection."""
    known = sorted(vocabulary().known.values())
    with torch.inference_mode():
        words = unit(fitted.vectors(known[:: len(known) // 128][:128]).numpy().astype(float))
        own = unit(fitted.vectors([text]).numpy().astype(float))[0]
    head = encoder.state.heads["mid"]
    deviation = (own - words.mean(axis=0)) / 2**0.5  # mid pools the last block and the vector, each a half
    components = unit(deviation @ head.axes[-len(own) :])
    return in_steps((components @ head.projection[: len(components)])[None].astype(np.float32))[0]


def test_words_rank_by_the_tower_and_the_real_code(fitted: Fitted) -> None:
    with ImageIndex.open(fitted.uri) as index:  # the collection's encoder, and the library's weights
        encoder: Any = index.session.encoder
        assert encoder.text_granularity == "mid"  # longer than coarse; fine pools no vector of the network's end
        hits = index.query(text=WORDS, k=60, depth=60)
        stored = {hit.id: np.unpackbits(index.codes(hit.id)["mid"][0]) for hit in hits}
        code = expected_code(fitted, encoder, WORDS)
    np.testing.assert_allclose(in_steps(encoder.text_code(WORDS))[0], code, atol=1)
    far = {key: distance(in_steps(encoder.text_code(WORDS))[0], bits) for key, bits in stored.items()}
    assert [hit.id for hit in hits] == sorted(far, key=lambda key: (round(far[key], 9), key))
    assert {hit.id: hit.distances["text"] for hit in hits} == {
        key: int((bits != (code > 0)).sum()) for key, bits in stored.items()
    }
    assert len({hit.distances["text"] for hit in hits}) > 3
    assert hits.bits["text"] == 24


def test_words_beside_images_are_one_more_ranking(fitted: Fitted) -> None:
    photo = sorted(fitted.photos.glob("*/*"))[0]
    with ImageIndex.open(fitted.uri) as index:
        one = index.explain(photo, text=WORDS, depth=60)
        assert one.fields["text"].weight == 3.0  # as much as coarse, mid and fine
        assert one.fields["text"].bits == 24
        several = index.query([photo, photo], text=WORDS, depth=60)
        assert [hit.path for hit in several] == [hit.path for hit in one.hits]
        assert [hit.score for hit in several] == pytest.approx([2 * hit.score for hit in one.hits])
        assert index.query(text="night, red: a car at", k=60) != index.query(text=WORDS, k=60)


def test_texts_have_vectors_of_the_kind_of_images(folder: Path) -> None:
    """What is hashed of an image is what the library compares with texts, and not what comes before a projection."""
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in NETWORKS:
        encoder: Any = untrained_encoder(backbone(name, folder), None, device="cpu")
        with torch.inference_mode():
            found = encoder._network(pixels)["output"].numpy()
            if name.startswith("open_clip:"):
                wanted = open_clip.create_model("texts-tower", pretrained="mine").eval().encode_image(pixels)
            else:
                whole = transformers.AutoModel.from_pretrained(folder / name.removeprefix("hf:")).eval()
                wanted = whole.get_image_features(pixels).pooler_output
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_texts_that_are_too_long_are_not_cut(fitted: Fitted) -> None:
    with ImageIndex.open(fitted.uri) as index:
        index.query(text=" ".join("a" * 38))  # and the tokens of the beginning and the end
        message = r"^the text 'a a .*…' has 39 words, \S+ reads at most 40 tokens, which are parts of words: say less$"
        with pytest.raises(QueryError, match=message):
            index.query(text=" ".join("a" * 39))


def test_a_client_without_the_tower_is_told(fitted: Fitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    photo = sorted(fitted.photos.glob("*/*"))[0]
    monkeypatch.setitem(pretrained._PRETRAINED, "texts-tower", {"mine": {"file": str(tmp_path / "nothing.pt")}})
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", _unreachable)
    message = (
        r"^words need the text tower of \S+, which is not on this machine and cannot be fetched: connect this machine "
        r"once, or query with an image$"
    )
    with ImageIndex.open(fitted.uri) as index:
        assert index.query(photo)[0].path == str(photo)
        with pytest.raises(WeightsNotFoundError, match=message):
            index.query(text=WORDS)


def _unreachable(*_: object, **__: object) -> None:
    raise OSError("We couldn't connect. Check your connection.")


def test_another_tower_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = untrained_encoder("open_clip:texts-tower/mine", None).row
    state = torch.load(folder / "texts-tower.pt", weights_only=True)
    state["ln_final.bias"] += 0.01
    torch.save(state, tmp_path / "other.pt")
    monkeypatch.setitem(pretrained._PRETRAINED, "texts-tower", {"mine": {"file": str(tmp_path / "other.pt")}})
    message = (
        r"^the text tower of open_clip:texts-tower/mine on this machine has the fingerprint [0-9a-f]{16}, expected "
        r"[0-9a-f]{16}: take the weights that the encoder was fitted with$"
    )
    with pytest.raises(EncoderError, match=message):
        load_text_tower(row)


def test_without_a_tower_that_clients_find_there_are_images_only(folder: Path, labelled_photos: Path) -> None:
    """A folder without a tokenizer; weights of a file of the user's; a tap before the vector."""
    file = folder / "texts-tower.pt"
    for name, weights, taps in (
        (f"hf:{folder / 'speechless'}", None, ()),
        ("open_clip:texts-tower", file, ()),
        ("open_clip:texts-tower/mine", None, ("transformer.resblocks.2", "transformer.resblocks.3")),
    ):
        encoder = untrained_encoder(name, weights, taps=taps)
        assert encoder.row.texts is None
        assert encoder.text_granularity is None
    with ImageIndex.open("memory:", SCHEMA, encoder) as index:
        index.ingest(labelled_photos)
        with pytest.raises(QueryError, match="has no classifier that names what it sees, and no text tower"):
            index.query(text=WORDS)


def test_the_mean_of_a_file_is_checked(fitted: Fitted) -> None:
    _, metadata = from_safetensors(fitted.file.read_bytes())
    whole = json.loads(metadata["mg_milvus_encoder"])
    texts = whole["network"]["texts"]
    for mean in (texts["mean"][:-1], [*texts["mean"][:-1], 1e999]):
        lying = whole | {"network": whole["network"] | {"texts": texts | {"mean": mean}}}
        with pytest.raises(ValueError, match="the mean of its texts has"):
            Configuration.model_validate(lying)
