"""The encoder on onnxruntime against the one on torch: maps, poolings, codes; which of them runs; what is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load as load_tensors

from mg_milvus.codes import pack
from mg_milvus.encoder import pooling, torch_runtime
from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.layers import OWN
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.networks import as_arrays, as_tensors, build, extractor
from mg_milvus.encoder.onnx_graph import backbone_graph
from mg_milvus.encoder.onnx_runtime import (
    RUNTIME_VARIABLE,
    OnnxEncoder,
    has_fast_int8,
    onnx_runs,
    ranges_of,
)
from mg_milvus.encoder.pooling import Pooling
from mg_milvus.encoder.torch_runtime import TorchEncoder
from mg_milvus.encoder.weights import from_safetensors, single, to_safetensors
from mg_milvus.errors import EncoderError, MissingPackageError
from mg_milvus.index import ImageIndex
from mg_milvus.schema.models import REGIONS, windows
from tests.conftest import KINDS, kind_of_image, make_photos
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from mg_milvus.encoder.base import HashEncoder

SCALES = ((0.5, 3), (1.0, 1))
fast_int8 = pytest.mark.skipif(not has_fast_int8(), reason="needs a CPU with VNNI, for products of 8 bits: see lscpu")
BITS = {"coarse": 64, "mid": 128, "fine": 256, REGIONS: 128}


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, float32, and the default runtime."""
    monkeypatch.delenv(RUNTIME_VARIABLE, raising=False)
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime.has_fast_int8", lambda: False)
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime._GPUS", ())
    monkeypatch.setattr("mg_milvus.encoder.torch_runtime.has_bfloat16", lambda _: False)


@pytest.fixture(scope="module")
def encoder_with_regions() -> HashEncoder:
    """The built-in encoder with regions, whose heads are the shipped ones."""
    return OnnxEncoder(load_encoder(device="cpu").state, device="cpu").with_regions(SCALES).with_bits(BITS)


@pytest.fixture(scope="module")
def prepared(encoder_with_regions: HashEncoder) -> list[np.ndarray]:
    sizes = [(96, 64), (64, 96), (80, 80)]
    return [encoder_with_regions.prepare(kind_of_image(KINDS[i % 3], i, sizes[i // 3 % 3])) for i in range(36)]


def random_weights(name: str) -> dict[str, torch.Tensor]:
    """A network with statistics of noise, and scales of both signs: max pooling and folding must bear them."""
    torch.manual_seed(1)
    network = build(name)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return network.state_dict()


@pytest.mark.parametrize("name", sorted(OWN))
@pytest.mark.parametrize("size", [(112, 112), (96, 144), (56, 40)])
def test_networks_give_the_maps_that_torch_gives(name: str, size: tuple[int, int]) -> None:
    weights, row = random_weights(name), find_backbone(name)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *size), np.uint8)
    graph = backbone_graph(name, as_arrays(weights), row.stages)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = session.run(row.stages, {"images": images})
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (row.mean, row.std))
    with torch.inference_mode():
        expected = extractor(name, weights)((torch.from_numpy(images).float() / 255 - mean) / deviation)
    for stage, maps in zip(row.stages, found, strict=True):
        there = expected[stage].numpy()
        np.testing.assert_allclose(maps, there, atol=1e-5 * np.abs(there).max(), rtol=0)


@pytest.mark.parametrize(
    "how",
    [
        Pooling(stages=("a", "b")),
        Pooling(stages=("a", "b"), kind="pyramid", cells=3),
        Pooling(stages=("b",), kind="mirrored", cells=2),
        Pooling(stages=("a", "b"), kind="mirrored", cells=3),
    ],
)
def test_pooling_is_that_of_torch(how: Pooling) -> None:
    random = np.random.default_rng(3)
    maps = {"a": random.normal(size=(3, 5, 7, 9)), "b": random.normal(size=(3, 4, 5, 4))}
    single = {stage: values.astype(np.float32) for stage, values in maps.items()}
    tensors = {stage: torch.from_numpy(values) for stage, values in single.items()}
    np.testing.assert_allclose(pooling.pool(single, how), torch_runtime.pool(tensors, how).numpy(), atol=1e-6)
    if how.kind == "gem":
        areas = windows(((0.5, 3), (0.3, 2), (1.0, 1)))
        expected = torch_runtime.pool_regions(tensors, how, areas).numpy()
        np.testing.assert_allclose(pooling.pool_regions(single, how, areas), expected, atol=1e-6)


def test_codes_are_those_of_torch(encoder_with_regions: HashEncoder, prepared: list[np.ndarray]) -> None:
    """Rounding differs, so a value next to 0 may fall on the other side: measured 0 to 0.02 bits of 10,000."""
    encoder_with_regions = OnnxEncoder(encoder_with_regions.state, device="cpu")
    in_torch = TorchEncoder(encoder_with_regions.state, device="cpu")
    assert in_torch.fingerprint == encoder_with_regions.fingerprint
    details = [kind_of_image(KINDS[i % 3], i, (70, 50)) for i in range(6)]
    pairs = [
        *((codes, in_torch.encode(prepared)[name]) for name, codes in encoder_with_regions.encode(prepared).items())
    ]
    for encode in ("region_codes", "shared_region_codes"):
        real = [getattr(own, encode)(details) for own in (encoder_with_regions, in_torch)]
        pairs.append((pack(real[0].reshape(-1, 128)), pack(real[1].reshape(-1, 128))))
    assert [codes.shape for codes, _ in pairs] == [
        (36, 8),
        (36, 16),
        (36, 32),
        (36, 10, 16),
        (12, 16),
        (342, 16),
    ]
    differing = sum(int(np.bitwise_count(codes ^ others).sum()) for codes, others in pairs)
    assert differing <= 8 * sum(codes.size for codes, _ in pairs) / 5000
    assert all(len(np.unique(codes.reshape(len(codes), -1), axis=0)) > len(codes) / 2 for codes, _ in pairs)


@fast_int8
def test_eight_bits_change_few_bits(
    encoder_with_regions: HashEncoder, prepared: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs: one in 100 (benchmarks/encode_rate.py)."""
    exact = OnnxEncoder(encoder_with_regions.state, device="cpu")
    full = exact.encode(prepared)
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime.has_fast_int8", lambda: True)
    rounded = OnnxEncoder(encoder_with_regions.state, device="cpu")
    assert rounded.runtime == "onnxruntime, 8 bits"
    pairs = [(codes, full[name]) for name, codes in rounded.encode(prepared).items()]
    differing = sum(int(np.bitwise_count(codes ^ others).sum()) for codes, others in pairs)
    assert 0 < differing <= 8 * sum(codes.size for codes, _ in pairs) / 25


def test_ranges_are_those_of_the_network_that_ships(
    encoder_with_regions: HashEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime.has_fast_int8", lambda: True)
    configuration = encoder_with_regions.state.configuration
    ranges = ranges_of(configuration)
    assert ranges is not None
    assert len(ranges) == 59  # the pixels, 49 layers, 9 sums
    assert all(low >= -1 / 128 and high <= 6 for name, (low, high) in ranges.items() if name.endswith("depthwise"))
    assert ranges_of(configuration.model_copy(update={"backbone_fingerprint": "0" * 16})) is None
    assert ranges_of(configuration.model_copy(update={"backbone": "smallnet"})) is None


@pytest.mark.parametrize("eight_bits", [False, pytest.param(True, marks=fast_int8)])
def test_a_code_does_not_depend_on_the_batch(
    encoder_with_regions: HashEncoder, prepared: list[np.ndarray], eight_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime.has_fast_int8", lambda: eight_bits)
    encoder_with_regions = OnnxEncoder(encoder_with_regions.state, device="cpu")
    whole = encoder_with_regions.encode(prepared)
    for size in (1, 5):
        some = [encoder_with_regions.encode(prepared[i : i + size]) for i in range(0, len(prepared), size)]
        for name, codes in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in some]), codes)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stem.norm.bias", None),
        ("block99_expand.conv.weight", np.zeros((1, 1, 3, 3), np.float32)),
        ("stem.conv.weight", np.zeros((32, 3), np.float32)),
        ("stem.norm.bias", np.zeros(1, np.float32)),
        ("block2_expand.conv.weight", np.zeros((144, 7, 1, 1), np.float32)),
    ],
)
def test_weights_of_another_network_are_refused(
    encoder_with_regions: HashEncoder, prepared: list[np.ndarray], name: str, values: np.ndarray | None
) -> None:
    weights = {key: value for key, value in encoder_with_regions.state.backbone.items() if key != name}
    if values is not None:
        weights[name] = values
    wrong = encoder_with_regions.state.model_copy(update={"backbone": weights})
    for kind in (OnnxEncoder, TorchEncoder):
        with pytest.raises(EncoderError, match="these weights do not fit the backbone efficientnet_lite0"):
            kind(wrong, device="cpu").encode(prepared[:1])


def test_what_runs_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert onnx_runs("efficientnet_lite0", "cpu")
    assert load_encoder(device="cpu").runtime == "onnxruntime, float32"
    assert onnx_runs("efficientnet_lite0", "auto") == (sys.platform == "linux")
    assert not onnx_runs("resnet18", "cpu")
    assert not onnx_runs("efficientnet_lite0", "cuda")
    monkeypatch.setattr("mg_milvus.encoder.onnx_runtime._GPUS", (str(tmp_path),))
    assert not onnx_runs("efficientnet_lite0", "auto")
    assert onnx_runs("efficientnet_lite0", "cpu")


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("onnx-int8", "onnxruntime, 8 bits"),
        ("onnx", "onnxruntime, float32"),
        ("torch", "torch"),
        ("", "onnxruntime, float32"),
    ],
)
def test_a_runtime_can_be_forced(monkeypatch: pytest.MonkeyPatch, runtime: str, expected: str) -> None:
    monkeypatch.setenv(RUNTIME_VARIABLE, runtime)
    assert load_encoder(device="cpu").runtime == expected
    assert not onnx_runs("resnet18", "cpu")


def test_an_unknown_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNTIME_VARIABLE, "onnx-int4")
    with pytest.raises(EncoderError, match="MGM_RUNTIME is 'onnx-int4', expected onnx-int8, onnx, torch"):
        load_encoder(device="cpu")


def test_without_onnxruntime_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="onnxruntime, which runs the encoder on CPUs, cannot be imported"):
        load_encoder(device="cpu")


def test_files_are_those_that_others_read() -> None:
    """Against the safetensors library, all types of weights, also the one that numpy has not."""
    values = torch.linspace(-3, 3, 15).reshape(3, 5)
    kinds = (torch.int64, torch.bool, torch.float16, torch.uint8, torch.bfloat16, torch.float64, torch.float32)
    tensors = {f"w{place}": values.to(kind) for place, kind in enumerate(kinds)} | {"one": torch.tensor(7)}
    data = to_safetensors(as_arrays(tensors), {"b": "2", "a": "1"})
    assert data == to_safetensors(dict(reversed(as_arrays(tensors).items())), {"a": "1", "b": "2"})
    for name, read in load_tensors(data).items():
        torch.testing.assert_close(read, tensors[name], rtol=0, atol=0)
    weights, metadata = from_safetensors(data)
    assert metadata == {"a": "1", "b": "2"}
    for name, again in as_tensors(weights).items():
        torch.testing.assert_close(again, tensors[name], rtol=0, atol=0)
        np.testing.assert_array_equal(single(weights[name]), tensors[name].float().numpy())


def imports_of(*command: str, **environment: str) -> tuple[set[str], str]:
    """The modules that an ``mgm`` command imports, and all that it writes."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mg_milvus", *command],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
        env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | environment,
    )  # fmt: skip
    others = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE)), "\n".join([done.stdout, *others])


UNUSED = {"torch", "torchvision", "onnx", "sympy", "pandas", "requests"}


def test_ingest_and_query_from_the_shell_load_no_torch_and_leave_nothing(tmp_path: Path) -> None:
    """The first ingest fits the hash heads, too."""
    photos = make_photos(tmp_path / "photos", per_kind=17)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    place = ("--uri", str(tmp_path / "a.db"), "--device", "cpu")
    loaded, said = imports_of("ingest", str(photos), *place, TMPDIR=str(temporary))
    assert "51" in said
    assert {"onnxruntime", "pymilvus", "numpy"} <= loaded
    assert not loaded & UNUSED
    assert list(temporary.iterdir()) == []  # onnxruntime would keep its telemetry there
    with ImageIndex.open(tmp_path / "a.db", device="cpu") as index:
        assert index.session.encoder.adapted_on == 51

    image = photos / "disc" / "02.jpg"
    loaded, said = imports_of("query", str(image), "-k", "1", *place, TMPDIR=str(temporary))
    assert str(image) in "".join(said.split())
    assert len(said.splitlines()) <= 4  # no warnings
    assert {"onnxruntime", "pymilvus", "numpy"} <= loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "onnx",
        "scipy",
        "yaml",
        "jinja2",
        "mg_milvus.bulk",
        "sympy",
        "pandas",
        "requests",
    }
    assert list(temporary.iterdir()) == []
