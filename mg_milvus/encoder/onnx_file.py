"""Networks of ONNX files: read, tapped inside, and cut off behind the taps; onnxruntime alone runs what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg_milvus.encoder.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from mg_milvus.encoder.onnx_runtime import GRAPH, IMAGES_INPUT, open_session
from mg_milvus.encoder.taps import OUTPUT, Taps, Value, choose_taps, described, named_taps
from mg_milvus.errors import EncoderError, MissingPackageError
from mg_milvus.files import read_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto


_MAX_BYTES = 2 << 30
"""Protocol buffers hold no more."""
_SIDE, _STEP = 224, 32
_FLOAT32, _UINT8, _FLOAT16 = 1, 2, 10
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "HardSwish", "Gelu", "Mish", "Softplus"})


def load_onnx_file(name: str, taps: Sequence[str] = ()) -> tuple[Backbone, dict[str, NDArray[Any]]]:
    """Read a network, and describe it; see ``libraries.load_library_model``.

    Images are scaled by the file's metadata ``mean`` and ``std`` ("0.5,0.5,0.5"), or as those of ImageNet; a network
    that takes uint8 gets the pixels as they are.

    Args:
        name: ``onnx:FILE``.
        taps: names of values inside of the graph, early to late; none: those that ``choose_taps`` chooses.

    Returns:
        Its description and its graph: uint8 images in, the taps out.

    Raises:
        EncoderError: not an ONNX file, or not one that takes images.
        MissingPackageError: the package ``onnx`` is not installed.
    """
    path = Path(name.removeprefix("onnx:"))
    onnx = _package()
    model = _read(onnx, path)
    origin = f"onnx:{path.name}"
    batch, side = _check_input(_input(model, origin), origin)
    _scale_inside(onnx, model, origin)
    values = _with_vector(onnx, model, _values(onnx, model, batch, side or _SIDE))
    found = _chosen(values, taps, side or _SIDE, origin)
    row = described(origin, found, side or _SIDE)
    graph = _cut(onnx, model, row.stages)
    if not side and _takes_other_shapes(graph, row, batch):
        row = replace(row, multiple=_STEP)
    return row, {GRAPH: np.frombuffer(graph, np.uint8)}


def _chosen(values: Sequence[Value], taps: Sequence[str], side: int, origin: str) -> Taps:
    """Named taps, or those that are found: activations of a CNN, sums of a transformer's blocks."""
    if taps:
        return named_taps(values, taps, origin)
    found = choose_taps([_ranked(value, ("activation", "residual")) for value in values], side, origin)
    if found.kind == "column":
        found = choose_taps([_ranked(value, ("residual", "")) for value in values], side, origin)
    return found


def _package() -> ModuleType:
    try:
        import onnx
        import onnx.external_data_helper
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX files are read by the package onnx ({error}): pip install 'mg-milvus[onnx]'"
        ) from error
    return onnx


def _read(onnx: ModuleType, path: Path) -> ModelProto:
    if not path.is_file():
        raise EncoderError(f"there is no ONNX file {path}; expected onnx:FILE")
    try:
        model: ModelProto = onnx.load_model_from_string(read_plain(path, _MAX_BYTES))
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except OSError as error:
        raise EncoderError(f"the ONNX file {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protocol buffers and the checker raise many kinds
        reason = (str(error).splitlines() or [""])[0]
        raise EncoderError(f"{path} is not an ONNX file or is damaged ({reason}): export it again") from error
    return model


def _input(model: ModelProto, origin: str) -> ValueInfoProto:
    constants = {constant.name for constant in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise EncoderError(
            f"{origin} takes {len(inputs)} inputs ({names}), expected one of images: cut the vision part"
        )
    found: ValueInfoProto = inputs[0]
    return found


def _check_input(value: ValueInfoProto, origin: str) -> tuple[int, int]:
    """Images at once (0: any number) and side in pixels (0: any) of the input.

    Raises:
        EncoderError: it is no batch of square images with channels first.
    """
    tensor = value.type.tensor_type
    shape = [axis.dim_value for axis in tensor.shape.dim]
    if (
        len(shape) != 4
        or shape[0] not in {0, 1}
        or shape[1] not in {0, 3}
        or shape[2] != shape[3]
        or tensor.elem_type not in {_FLOAT32, _FLOAT16, _UINT8}
    ):
        raise EncoderError(
            f"{origin} takes the shape ({', '.join(str(axis or 'any') for axis in shape)}) of type {tensor.elem_type}, "
            "expected (any or 1, 3, h, h) of float32, float16 or uint8: export it with channels first"
        )
    return shape[0], shape[2]


def _scale_inside(onnx: ModuleType, model: ModelProto, origin: str) -> None:
    """Let the graph begin with images of uint8, which it scales itself."""
    graph = model.graph
    own = _input(model, origin)
    element, batch = own.type.tensor_type.elem_type, own.type.tensor_type.shape.dim[0].dim_value
    side = own.type.tensor_type.shape.dim[2].dim_value
    nodes: list[NodeProto] = []
    if element == _UINT8:
        nodes.append(onnx.helper.make_node("Identity", [IMAGES_INPUT], [own.name]))
    else:
        mean, std = _scaling(model, origin)
        factor = (1 / (255 * np.array(std))).astype(np.float32).reshape(1, 3, 1, 1)
        shift = (-np.array(mean) / std).astype(np.float32).reshape(1, 3, 1, 1)
        for label, values in (("factor", factor), ("shift", shift)):
            graph.initializer.append(onnx.numpy_helper.from_array(values, f"mgm_{label}"))
        node = onnx.helper.make_node
        nodes += [
            node("Cast", [IMAGES_INPUT], ["mgm_pixels"], to=_FLOAT32),
            node("Mul", ["mgm_pixels", "mgm_factor"], ["mgm_scaled"]),
            node("Add", ["mgm_scaled", "mgm_shift"], ["mgm_normal"]),
            node("Cast", ["mgm_normal"], [own.name], to=element),
        ]
    for place, each in enumerate(nodes):
        graph.node.insert(place, each)
    del graph.input[:]
    shape = [batch or "n", 3, side or "h", side or "w"]
    graph.input.append(onnx.helper.make_tensor_value_info(IMAGES_INPUT, _UINT8, shape))


def _scaling(model: ModelProto, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels between 0 and 1: those of the file's metadata, or of ImageNet.

    Raises:
        EncoderError: the metadata are not three numbers each.
    """
    noted = {each.key: each.value for each in model.metadata_props}
    given: list[tuple[float, ...]] = []
    for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        text = noted.get(key)
        try:
            values = usual if text is None else tuple(float(part) for part in text.strip("[]() ").split(","))
        except ValueError:
            values = ()
        if len(values) != 3 or not np.isfinite(values).all() or (key == "std" and min(values) <= 0):
            raise EncoderError(f"the metadata '{key}' of {origin} is {text!r}, expected three numbers: 0.5,0.5,0.5")
        given.append(values)
    return given[0], given[1]


def _values(onnx: ModuleType, model: ModelProto, batch: int, side: int) -> list[Value]:
    """All floats that a graph computes for grey images, in order; ``series`` says what computed them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    kinds = _kinds(model.graph)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kinds)
    images = np.full((batch or 2, 3, side, side), 128, np.uint8)
    found = _run(probe.SerializeToString(), list(kinds), images)
    return [
        Value(name, values.shape[1:], series=kinds[name])
        for name, values in found.items()
        if values.dtype in {np.dtype(np.float32), np.dtype(np.float16)} and values.ndim > 1
        and len(values) == len(images)
    ]  # fmt: skip


def _kinds(graph: GraphProto) -> dict[str, str]:
    """Outputs of the graph's operators -> ``activation``, ``residual`` (a sum of two computed values), or empty."""
    constants = {constant.name for constant in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    kinds: dict[str, str] = {}
    for node in graph.node:
        kind = "activation" if node.op_type in _ACTIVATIONS else ""
        if node.op_type == "Add" and constants.isdisjoint(node.input):
            kind = "residual"
        kinds |= {name: kind for name in node.output if name and not name.startswith("mgm_")}
    return kinds


def _ranked(value: Value, preferred: Sequence[str]) -> Value:
    rank = preferred.index(value.series) if value.series in preferred else len(preferred)
    return replace(value, rank=rank)


def _run(graph: bytes, names: Sequence[str], images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return dict(zip(names, open_session(graph).run(list(names), {IMAGES_INPUT: images}), strict=True))


def _with_vector(onnx: ModuleType, model: ModelProto, values: list[Value]) -> list[Value]:
    """The values, and that output of the graph that is a vector an image, if there is one, under the name of all."""
    shapes = {value.name: value.shape for value in values}
    vector = next((each.name for each in model.graph.output if len(shapes.get(each.name, ())) == 1), None)
    if vector is None or OUTPUT in shapes:
        return values
    model.graph.node.append(onnx.helper.make_node("Identity", [vector], [OUTPUT]))
    return [*values, Value(OUTPUT, shapes[vector])]


def _takes_other_shapes(graph: bytes, row: Backbone, batch: int) -> bool:
    """Whether a network takes images that are not square, with maps of their shape."""
    if row.layout == "tokens":
        return False  # a sequence does not say where its rows end
    images = np.full((batch or 2, 3, row.side, row.side + _STEP), 128, np.uint8)
    try:
        found = _run(graph, row.stages, images)
    except Exception:  # noqa: BLE001 - whatever it is that onnxruntime says of the shape
        return False
    axes = (2, 3) if row.layout == "nchw" else (1, 2)
    maps = [values for values in found.values() if values.ndim == 4]
    return bool(maps) and all(one.shape[axes[0]] <= one.shape[axes[1]] for one in maps)


def _cut(onnx: ModuleType, model: ModelProto, names: Sequence[str]) -> bytes:
    """The part of a graph that computes some of its values, which become its outputs."""
    graph = model.graph
    needed, kept = set(names), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(_read_by(node))
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    for field in (cut.graph.node, cut.graph.initializer, cut.graph.output, cut.graph.value_info, cut.metadata_props):
        del field[:]
    cut.graph.node.extend(reversed(kept))
    cut.graph.initializer.extend(each for each in graph.initializer if each.name in needed)
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    data: bytes = cut.SerializeToString()
    return data


def _read_by(node: NodeProto) -> Iterator[str]:
    """Names that an operator reads, those that its inner graphs read included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _read_by(each)
            yield from (output.name for output in inner.output)
