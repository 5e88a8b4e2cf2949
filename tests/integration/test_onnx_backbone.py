"""Networks of ONNX files, made here: a CNN and a transformer, through fit, ingest and query."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from mg_milvus import session
from mg_milvus.encoder.load import load_encoder, untrained_encoder
from mg_milvus.encoder.onnx_runtime import GRAPH, OnnxEncoder
from mg_milvus.errors import EncoderError, MissingPackageError, WeightsNotFoundError
from mg_milvus.index import ImageIndex
from mg_milvus.ingest.fit_heads import FitOptions, fit_encoder
from mg_milvus.schema.models import Schema
from tests.conftest import kind_of_image

SCHEMA = Schema.model_validate({"granularities": [{"name": "coarse", "bits": 16}, {"name": "fine", "bits": 32}]})
Shape = list[int | str]
CHANNELS = (8, 12, 16, 24)


def weights(*shape: int, seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, *shape])
    return (random.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)


def save(
    file: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: Shape, **about: object
) -> Path:
    element = about.get("element", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("pixel_values", element, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", "d"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, about.get("metadata", {}))
    onnx.save(model, file)
    return file


def cnn(file: Path, shape: Shape | None = None, **about: object) -> Path:
    """Four convolutions of stride 2 with ReLU, then a classifier of 5 labels that nobody needs."""
    nodes, constants, before = [], {}, "pixel_values"
    for number, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False)):
        constants[f"w{number}"] = weights(outputs, inputs, 3, 3, seed=1)
        nodes += [
            helper.make_node("Conv", [before, f"w{number}"], [f"conv{number}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]),
        ]
        before = f"relu{number}"
    constants["classes"] = weights(CHANNELS[-1], 5, seed=2)
    nodes += [
        helper.make_node("ReduceMean", [before], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "classes"], ["features"]),
    ]
    return save(file, nodes, constants, shape or ["n", 3, "h", "w"], **about)


def transformer(file: Path, blocks: int = 4) -> Path:
    """16 patches of a 64 px image, blocks x + W relu(V x), and the mean of all tokens."""
    width = 16
    constants = {"patch": weights(width, 3, 16, 16, seed=3), "sequence": np.array([0, width, -1])}
    nodes = [
        helper.make_node("Conv", ["pixel_values", "patch"], ["patches"], strides=[16, 16]),
        helper.make_node("Reshape", ["patches", "sequence"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["x0"], perm=[0, 2, 1]),
    ]
    for block in range(blocks):
        constants |= {f"v{block}": weights(width, 32, seed=block), f"w{block}": weights(32, width, seed=block)}
        nodes += [
            helper.make_node("MatMul", [f"x{block}", f"v{block}"], [f"up{block}"]),
            helper.make_node("Relu", [f"up{block}"], [f"wide{block}"]),
            helper.make_node("MatMul", [f"wide{block}", f"w{block}"], [f"down{block}"]),
            helper.make_node("Add", [f"x{block}", f"down{block}"], [f"x{block + 1}"]),
        ]
    nodes.append(helper.make_node("ReduceMean", [f"x{blocks}"], ["features"], axes=[1], keepdims=0))
    return save(file, nodes, constants, ["n", 3, 64, 64])


def encoder_of(file: Path, **options: object) -> OnnxEncoder:
    encoder = untrained_encoder(f"onnx:{file}", None, device="cpu", **options)
    assert isinstance(encoder, OnnxEncoder)
    return encoder


@pytest.mark.parametrize(
    ("make", "stages"), [(cnn, ("relu1", "relu2", "relu3")), (transformer, ("x2", "x3", "x4", "output"))]
)
def test_an_onnx_file_answers_queries(
    make: object, stages: tuple[str, ...], tmp_path: Path, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = make(tmp_path / "net.onnx")
    fit_encoder(labelled_photos, tmp_path / "mine.safetensors", FitOptions(backbone=f"onnx:{file}", schema=SCHEMA))
    encoder = load_encoder(tmp_path / "mine.safetensors")
    assert (encoder.backbone, encoder.row.stages) == ("onnx:net.onnx", stages)
    with ImageIndex.open(tmp_path / "a.db", SCHEMA, tmp_path / "mine.safetensors") as index:
        assert index.ingest(labelled_photos).added == 60
    file.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)  # a client needs neither the file nor the package
    with ImageIndex.open(tmp_path / "a.db") as index:
        photo = labelled_photos / "disc" / "03.jpg"
        hit = index.query(photo)[0]
        assert (hit.path, hit.distances) == (str(photo), {"coarse": 0, "fine": 0})


def test_stages_are_those_that_torch_computes(tmp_path: Path) -> None:
    encoder = encoder_of(cnn(tmp_path / "net.onnx", metadata={"mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.5"}))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), np.uint8)
    found = encoder._session.run(list(encoder.row.stages), {"images": pixels})
    x = (torch.from_numpy(pixels).float() / 255 - 0.5) / torch.tensor([0.25, 0.25, 0.5]).view(3, 1, 1)
    expected = []
    for number, (inputs, outputs) in enumerate(zip((3, *CHANNELS), CHANNELS, strict=False)):
        x = F.conv2d(x, torch.from_numpy(weights(outputs, inputs, 3, 3, seed=1)), stride=2, padding=1).relu()
        expected += [x] if number else []
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)


def test_images_are_given_as_the_file_wants_them(tmp_path: Path) -> None:
    anything = encoder_of(cnn(tmp_path / "any.onnx"))
    assert (anything.row.side, anything.row.multiple, anything.row.average) == (224, 32, False)
    one = encoder_of(cnn(tmp_path / "one.onnx", [1, 3, 64, 64]))
    assert (one.row.side, one.row.multiple, one._images_at_once) == (64, 0, 1)
    assert one.features([one.prepare(kind_of_image("disc", seed)) for seed in range(3)])["mid"].shape == (3, 40)
    squares = encoder_of(transformer(tmp_path / "vit.onnx"))
    assert (squares.row.side, squares.row.multiple, squares.row.average) == (64, 0, True)


def test_what_is_not_read_is_cut_off(tmp_path: Path) -> None:
    whole, cut = cnn(tmp_path / "net.onnx"), encoder_of(tmp_path / "net.onnx", taps=("conv0", "relu2"))
    graph = onnx.load_model_from_string(cut.state.backbone[GRAPH].tobytes()).graph
    assert {node.op_type for node in graph.node} == {"Cast", "Mul", "Add", "Conv", "Relu"}
    assert {each.name for each in graph.initializer} == {"mgm_factor", "mgm_shift", "w0", "w1", "w2"}
    assert whole.stat().st_size > len(cut.state.backbone[GRAPH]) - 1000
    with pytest.raises(EncoderError, match=r"onnx:net\.onnx has no layer 'relu9'; it has relu0, relu1, relu2, relu3$"):
        encoder_of(tmp_path / "net.onnx", taps=("relu9",))


def test_of_a_large_file_only_the_heads_are_kept(
    tmp_path: Path, labelled_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WHOLE_FILE_LIMIT", 40_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    file, mine = cnn(tmp_path / "net.onnx"), tmp_path / "mine.safetensors"
    report = fit_encoder(labelled_photos, mine, FitOptions(backbone=f"onnx:{file}", schema=SCHEMA))
    assert (report.clients_need, report.bytes > 40_000) == (str(mine), True)
    with ImageIndex.open(tmp_path / "a.db", SCHEMA, mine) as index:
        index.ingest(labelled_photos / "disc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with (
        ImageIndex.open(tmp_path / "a.db") as index,
        pytest.raises(WeightsNotFoundError, match=r"^onnx:net\.onnx, the network of this encoder, is .*--encoder"),
    ):
        index.query(labelled_photos / "disc" / "03.jpg")


def test_files_that_cannot_be_used_end_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no protocol buffer")
    last = cnn(tmp_path / "last.onnx", ["n", "h", "w", 3])
    cases = {
        tmp_path / "nowhere.onnx": "there is no ONNX file",
        tmp_path / "text.onnx": "is not an ONNX file or is damaged",
        last: r"takes the shape \(any, any, any, 3\) of type 1, expected",
        cnn(tmp_path / "many.onnx", [4, 3, 64, 64]): r"takes the shape \(4, 3, 64, 64\)",
        cnn(tmp_path / "ints.onnx", element=TensorProto.INT32): "of type 6, expected",
        cnn(tmp_path / "mean.onnx", metadata={"mean": "grey"}): "the metadata 'mean' of onnx:mean.onnx is 'grey'",
    }
    for file, message in cases.items():
        with pytest.raises(EncoderError, match=message) as caught:
            encoder_of(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(EncoderError, match="has its weights with it; leave --weights out"):
        untrained_encoder(f"onnx:{last}", tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="runs in onnxruntime on the CPU; leave --device out"):
        untrained_encoder(f"onnx:{cnn(tmp_path / 'net.onnx')}", None, device="cuda")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mg-milvus\[onnx\]'$"):
        encoder_of(tmp_path / "net.onnx")


def test_a_graph_cannot_read_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may name a file for its weights: that of a server would read any file here, and send codes of it back."""
    encoder = encoder_of(cnn(tmp_path / "net.onnx"))
    model = onnx.load_model_from_string(encoder.state.backbone[GRAPH].tobytes())
    stolen = next(each for each in model.graph.initializer if each.name == "w0")
    (tmp_path / "secret.bin").write_bytes(stolen.raw_data)
    stolen.ClearField("raw_data")
    stolen.data_location = TensorProto.EXTERNAL
    stolen.external_data.add(key="location", value="secret.bin")
    hostile = encoder.state.model_copy(update={"backbone": {GRAPH: np.frombuffer(model.SerializeToString(), np.uint8)}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match=r"the graph of onnx:net\.onnx cannot be run \(.*\): make the encoder again"):
        OnnxEncoder(hostile).features([np.zeros((3, 64, 64), np.uint8)])
