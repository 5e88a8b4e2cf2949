"""Networks of timm, open_clip and transformers: tiny ones with random weights, through fit, ingest and query."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from mg_milvus import session
from mg_milvus.encoder.backbones import library_of
from mg_milvus.encoder.file import Configuration
from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.encoder.torch_runtime import TorchEncoder
from mg_milvus.encoder.weights import from_safetensors, to_safetensors
from mg_milvus.errors import EncoderError, MissingPackageError, WeightsNotFoundError
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
from mg_milvus.schema.models import Schema

SCHEMA = Schema.model_validate({"granularities": [{"name": "coarse", "bits": 16}, {"name": "fine", "bits": 32}]})
VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
          "image_size": 64, "patch_size": 16}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of tiny networks, as their users have them: files, and folders of transformers."""
    import open_clip  # here, not above: seconds, which every worker would spend

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    for name in ("test_resnet", "test_vit"):
        save_file(timm.create_model(name, num_classes=5).state_dict(), folder / f"{name}.safetensors")
    (folder / "tiny-tower.json").write_text(json.dumps({
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }))  # fmt: skip
    open_clip.add_model_config(folder / "tiny-tower.json")
    torch.save(open_clip.create_model("tiny-tower").state_dict(), folder / "tiny-tower.pt")
    for name, network in (
        ("vit", transformers.ViTModel(transformers.ViTConfig(**VISION))),
        ("clip", transformers.CLIPModel(transformers.CLIPConfig(vision_config=VISION, text_config=TEXT))),
        ("bert", transformers.BertModel(transformers.BertConfig(**TEXT))),
    ):
        network.save_pretrained(folder / name)
        scaling = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 64, "width": 64}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(scaling))
    return folder


NETWORKS = {
    "timm:test_resnet": ("test_resnet.safetensors", ("layer2", "layer3", "layer4")),
    "timm:test_vit": ("test_vit.safetensors", ("blocks.2", "blocks.4", "blocks.5", "output")),
    "open_clip:tiny-tower": ("tiny-tower.pt", (*(f"transformer.resblocks.{i}" for i in (1, 2, 3)), "output")),
    "hf:vit": (None, ("layers.1", "layers.2", "layers.3", "output")),
    "hf:clip": (None, (*(f"tower.encoder.layers.{i}" for i in (1, 2, 3)), "output")),
}


def options(name: str, folder: Path, **others: object) -> FitOptions:
    weights, _ = NETWORKS[name]
    place = name if weights else f"hf:{folder / name.removeprefix('hf:')}"
    return FitOptions(backbone=place, weights=weights and folder / weights, schema=SCHEMA, **others)


def encoder_of(name: str, folder: Path, **others: object) -> TorchEncoder:
    made = options(name, folder)
    encoder = untrained_encoder(made.backbone, made.weights, device="cpu", **others)
    assert isinstance(encoder, TorchEncoder)
    return encoder


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_library_answers_queries(
    name: str, folder: Path, tmp_path: Path, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = fit_encoder(labelled_photos, tmp_path / "mine.safetensors", options(name, folder))
    assert (report.images, report.clients_need) == (60, "")
    encoder = load_encoder(tmp_path / "mine.safetensors")
    assert encoder.fingerprint == report.fingerprint
    assert encoder.row.stages == NETWORKS[name][1]
    with ImageIndex.open(tmp_path / "a.db", SCHEMA, tmp_path / "mine.safetensors") as index:
        assert index.ingest(labelled_photos).added == 60
    with ImageIndex.open(tmp_path / "a.db") as index:  # the encoder comes from the collection
        photo = labelled_photos / "disc" / "03.jpg"
        hit = index.query(photo)[0]
        assert (hit.path, hit.distances) == (str(photo), {"coarse": 0, "fine": 0})


def maps_of(encoder: TorchEncoder) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {stage: maps.numpy() for stage, maps in encoder._network(PIXELS).items()}


def test_taps_give_what_the_libraries_give(folder: Path) -> None:
    """Compared with each library's own way to its stages."""
    found = maps_of(encoder_of("timm:test_resnet", folder))
    own = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4)).eval()
    state = torch.load(folder / "tiny-tower.pt", weights_only=True)
    whole = timm.create_model("test_resnet", num_classes=5).eval()
    whole.load_state_dict(_file(folder / "test_resnet.safetensors"))
    own.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    with torch.inference_mode():
        for mine, theirs in zip(found.values(), own(PIXELS), strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)
        import open_clip

        clip = open_clip.create_model("tiny-tower").eval()
        clip.load_state_dict(state)
        found = maps_of(encoder_of("open_clip:tiny-tower", folder))
        np.testing.assert_allclose(found["output"], clip.encode_image(PIXELS).numpy(), atol=1e-5)
        vit = transformers.AutoModel.from_pretrained(folder / "vit").eval()
        theirs = vit(PIXELS, output_hidden_states=True)
        found = maps_of(encoder_of("hf:vit", folder))
        np.testing.assert_allclose(found["layers.1"], theirs.hidden_states[2].numpy(), atol=1e-5)
        np.testing.assert_allclose(found["output"], theirs.pooler_output.numpy(), atol=1e-5)


def _file(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_images_are_given_as_the_network_wants_them(folder: Path) -> None:
    """A CNN keeps the aspect, a transformer takes squares; pixels are scaled as the library says."""
    cnn, vit = encoder_of("timm:test_resnet", folder), encoder_of("hf:vit", folder)
    assert (cnn.row.side, cnn.row.multiple, cnn.row.mean, cnn.row.average) == (160, 32, (0.5, 0.5, 0.5), False)
    assert (vit.row.side, vit.row.multiple, vit.row.std, vit.row.average) == (64, 0, (0.25, 0.25, 0.25), True)
    assert vit.state.configuration.poolings["coarse"].stages == ("output",)
    assert vit.state.configuration.poolings["fine"].stages == ("layers.2", "layers.3")


def test_layers_can_be_named(folder: Path, tmp_path: Path, labelled_photos: Path) -> None:
    named = replace(options("timm:test_resnet", folder), taps=("layer1", "layer3"))
    fit_encoder(labelled_photos, tmp_path / "a.safetensors", named)
    assert load_encoder(tmp_path / "a.safetensors").row.channels == (32, 192)
    with pytest.raises(EncoderError, match=r"timm:test_resnet has no layer 'layer7'; it has layer1, layer2"):
        encoder_of("timm:test_resnet", folder, taps=("layer7",))
    with pytest.raises(EncoderError, match=r"timm:NAME.*leave --taps out"):
        FitOptions(taps=("layer1",)).base_encoder()


def test_of_a_large_network_only_the_heads_are_kept_and_clients_are_told(
    folder: Path, tmp_path: Path, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WHOLE_FILE_LIMIT", 600_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    file = tmp_path / "mine.safetensors"
    report = fit_encoder(labelled_photos, file, options("timm:test_resnet", folder))
    assert report.clients_need == str(file)  # the weights are a file of the user's
    with ImageIndex.open(tmp_path / "a.db", SCHEMA, file) as index:
        index.ingest(labelled_photos)
        kept = index.session.store.get_encoder(index.fingerprint)
    assert kept is not None
    assert len(kept) < 600_000 < report.bytes
    photo = labelled_photos / "disc" / "03.jpg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with (
        ImageIndex.open(tmp_path / "a.db") as index,
        pytest.raises(
            WeightsNotFoundError,
            match=r"^timm:test_resnet, the network of this encoder, is too large to be kept in Milvus: give the file "
            r"that mgm fit wrote \(--encoder FILE\), or have it here \(.*\)$",
        ),
    ):
        index.query(photo)
    for encoder in (file, None):  # the cache keeps what was given once
        with ImageIndex.open(tmp_path / "a.db", encoder=encoder) as index:
            assert index.query(photo)[0].path == str(photo)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet18", "the weights of timm:resnet18 are not on this machine and cannot be fetched"),
        ("open_clip:RN50/openai", "the weights of open_clip:RN50/openai are not on this machine and cannot be fetched"),
        ("hf:someone/tiny-vit", "the weights of hf:someone/tiny-vit are not on this machine and cannot be fetched"),
        ("timm:resnet1888", "timm has no network 'resnet1888'; near are"),
        ("timm:hf-hub:someone/net", "'timm:hf-hub:someone/net' names no network; expected timm:NAME"),
        ("open_clip:ViT-Z-1/openai", "open_clip has no network 'ViT-Z-1'; near are "),
        ("open_clip:RN50/nobody", "open_clip has no weights 'nobody' of RN50; it has openai"),
    ],
)
def test_without_weights_there_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(EncoderError) as caught:
        untrained_encoder(name, None)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet18", "open_clip:RN50/openai", "hf:someone/vit"])
def test_without_the_library_its_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra = {"timm": ("timm", "timm"), "open_clip": ("open_clip", "open-clip"), "hf": ("transformers", "hf")}[
        library_of(name)
    ]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"need {module} .*pip install 'mg-milvus\[{extra}\]'$"):
        untrained_encoder(name, None)


def test_folders_that_are_no_vision_towers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="is a BertModel, which reads no images"):
        untrained_encoder(f"hf:{folder / 'bert'}", None)
    transformers.ViTModel(transformers.ViTConfig(**VISION)).save_pretrained(tmp_path / "vit")
    with pytest.raises(EncoderError, match=r"how its pixels are scaled; expected preprocessor_config\.json"):
        untrained_encoder(f"hf:{tmp_path / 'vit'}", None)


def test_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"do not fit the backbone timm:test_vit: .* is missing, or of another"):
        untrained_encoder("timm:test_vit", folder / "test_resnet.safetensors")


def test_a_file_that_lies_about_its_network_is_refused(folder: Path, tmp_path: Path, labelled_photos: Path) -> None:
    """The description of a network is as far from trusted as the rest of a server's data."""
    fit_encoder(labelled_photos, tmp_path / "a.safetensors", options("hf:vit", folder))
    data = (tmp_path / "a.safetensors").read_bytes()
    weights, metadata = from_safetensors(data)
    whole = json.loads(metadata["mg_milvus_encoder"])

    def changed(**network: object) -> bytes:
        lying = whole | {"network": whole["network"] | network}
        return to_safetensors(weights, metadata | {"mg_milvus_encoder": json.dumps(lying)})

    for lie, message in {
        ("name", "timm:test_vit"): "is that of timm:test_vit",
        ("channels", (32, 32)): r"4 stages of \(32, 32\) channels",
        ("side", 10**9): "images of 1000000000 pixels",
        ("std", (0.0, 1.0, 1.0)): "scales pixels by",
        ("layout", "hwcn"): "'nchw'",
    }.items():
        with pytest.raises(EncoderError, match=message):
            load_encoder(changed(**dict([lie])))
    huge = json.loads(whole["network"]["architecture"]) | {"hidden_size": 1 << 20, "intermediate_size": 1 << 20}
    configuration = Configuration.model_validate(
        whole | {"network": whole["network"] | {"architecture": json.dumps(huge)}}
    )
    honest = load_encoder(data)
    lying = TorchEncoder(honest.state.model_copy(update={"configuration": configuration}), device="cpu")
    with pytest.raises(EncoderError, match="is missing, or of another shape"):  # before 4 TB of memory are taken
        lying.features([np.zeros((3, 64, 64), np.uint8)])
