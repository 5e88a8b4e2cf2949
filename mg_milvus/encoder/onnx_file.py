"""The bytes of an ONNX model, written directly: the format is protocol buffers, and a few dozen lines are all it takes.

The numbers of the fields are those of ``onnx.proto3`` in the ONNX project. Its package would be 30 MB that nothing else
here needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Attribute = int | Sequence[int]
    Shape = Sequence[str | int]

OPSET = 20
"""The first with ``Gelu``; onnxruntime has it since 1.17."""
_IR_VERSION = 9
_FLOAT32, _UINT8 = 1, 2
_ELEMENTS = {"float32": _FLOAT32, "uint8": _UINT8, "int8": 3, "int32": 6}
_INT, _INTS = 2, 7
_LENGTH = 2
"""The wire type of whatever says its length first."""


@dataclass(slots=True)
class Graph:
    """A graph under construction; every operator gives one value, whose name is what ``add`` returns."""

    _nodes: list[bytes] = field(default_factory=list)
    _constants: list[bytes] = field(default_factory=list)

    def constant(self, values: NDArray[Any]) -> str:
        """A tensor of weights."""
        name = f"c{len(self._constants)}"
        about = (
            b"".join(_number(1, size) for size in values.shape)
            + _number(2, _ELEMENTS[values.dtype.name])
            + _text(8, name)
        )
        self._constants.append(_field(5, about, _field(9, np.ascontiguousarray(values).tobytes())))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """One operator of ONNX."""
        output = f"v{len(self._nodes)}"
        self._add(operator, inputs, output, attributes)
        return output

    def give(self, value: str, output: str) -> None:
        """Make a value an output of the graph, under this name."""
        self._add("Identity", (value,), output, {})

    def _add(self, operator: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Attribute]) -> None:
        content = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)
        content += b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(_field(1, content))

    def model(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> bytes:
        """The whole file: name -> shape of uint8 inputs and float32 outputs; a size that is text may be any."""
        values = [_field(11, _value(name, _UINT8, shape)) for name, shape in inputs.items()]
        values += [_field(12, _value(name, _FLOAT32, shape)) for name, shape in outputs.items()]
        graph = _field(7, *self._nodes, _text(2, "backbone"), *self._constants, *values)
        return _number(1, _IR_VERSION) + graph + _field(8, _number(2, OPSET))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, one) for one in value) + _number(20, _INTS)


def _value(name: str, element: int, shape: Shape) -> bytes:
    """Name and type of an input or an output."""
    sizes = (_number(1, size) if isinstance(size, int) else _text(2, size) for size in shape)
    tensor = _number(1, element) + _field(2, *(_field(1, size) for size in sizes))
    return _text(1, name) + _field(2, _field(1, tensor))


def _varint(number: int) -> bytes:
    """A whole number from 0, seven bits a byte, lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(key: int, value: int) -> bytes:
    return _varint(key << 3) + _varint(value)


def _field(key: int, *content: bytes) -> bytes:
    return b"".join((_varint(key << 3 | _LENGTH), _varint(sum(map(len, content))), *content))


def _text(key: int, value: str) -> bytes:
    return _field(key, value.encode())
