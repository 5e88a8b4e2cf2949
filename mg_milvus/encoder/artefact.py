"""Encoder files: one ``.safetensors`` file holds the weights, the heads and, as metadata, the whole configuration.

Tensors are named ``backbone.*``, ``heads.<granularity>.*`` and ``statistics.<granularity>.*``. A heads-only file has no
``backbone.*``; its configuration names torchvision's weights and their fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray  # noqa: TC002 - pydantic reads the annotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mg_milvus.encoder.fit import Head, Statistics
from mg_milvus.encoder.manifold import ManifoldHead
from mg_milvus.encoder.readings import Reading
from mg_milvus.encoder.soundness import check_heads, check_moments, check_numbers, check_widths
from mg_milvus.encoder.table import find_backbone
from mg_milvus.encoder.weights import from_safetensors, single, to_safetensors, weights_fingerprint
from mg_milvus.errors import EncoderError
from mg_milvus.plain_files import read_plain
from mg_milvus.regions import Scale  # noqa: TC001 - pydantic reads the annotations
from mg_milvus.schema_parts import MOST_REGIONS, PARTS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mg_milvus.encoder import Encoder
    from mg_milvus.encoder.fit import Matrix
    from mg_milvus.encoder.hash_encoder import HashEncoder
    from mg_milvus.encoder.weights import Weights

_KEY = "mg_milvus_encoder"
_FINGERPRINT = "fingerprint"
BUILTIN = "builtin"
_MOST_BYTES = 4 << 30
"""Largest encoder file that is read: four times the largest backbone of the table."""


class Configuration(BaseModel):
    """Everything about an encoder that is not a tensor; JSON in the file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    backbone: str
    backbone_fingerprint: str
    side: Annotated[int, Field(ge=16, le=1024)]
    readings: dict[str, Reading]
    adapted_on: Annotated[int, Field(ge=0)] = 0
    ancestors: tuple[str, ...] = ()
    fixed: bool = False
    """Collections take the heads as they are: they were trained, or are a baseline to compare with."""
    regions: tuple[Scale, ...] = ()
    """Size and grid of the windows that get codes of their own; see ``regions.windows``."""

    @field_validator("regions")
    @classmethod
    def _as_in_a_schema(cls, scales: tuple[Scale, ...]) -> tuple[Scale, ...]:
        """A file may ask for no more windows than a schema may: each of them is read for every picture."""
        if any(not 0.1 <= size <= 1 or not 1 <= grid <= 16 for size, grid in scales):
            raise ValueError("expected windows of 0.1 to 1 of a picture, 1 to 16 along each side")
        if (count := sum(grid * grid for _, grid in scales)) > MOST_REGIONS:
            raise ValueError(f"there are {count} regions, expected at most {MOST_REGIONS}")
        return scales


class Parts(BaseModel):
    """An encoder in pieces, as it is on disk."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    configuration: Configuration
    backbone: dict[str, NDArray[Any]]
    heads: dict[str, Head | ManifoldHead]
    statistics: dict[str, Statistics]


def fingerprint(parts: Parts) -> str:
    """16 hexadecimal digits over configuration, heads, statistics and, through its own fingerprint, the backbone."""
    settings = parts.configuration.model_dump(mode="json")
    for name in ("fixed", "regions"):  # which files older than these settings do not have
        if not settings[name]:
            del settings[name]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(f"{text}{weights_fingerprint(_fitted_weights(parts))}".encode(), digest_size=8).hexdigest()


def to_bytes(parts: Parts, *, with_backbone: bool = True) -> bytes:
    """The content of the encoder file."""
    weights = _fitted_weights(parts)
    if with_backbone:
        weights |= {f"backbone.{name}": values for name, values in parts.backbone.items()}
    return to_safetensors(weights, {_KEY: parts.configuration.model_dump_json(), _FINGERPRINT: fingerprint(parts)})


def from_bytes(data: bytes, origin: str, shared: Weights | None = None) -> Parts:
    """Read an encoder file.

    Args:
        data: its content.
        origin: what to call it in errors.
        shared: the backbone's weights for a heads-only file; default: torchvision's.

    Raises:
        EncoderError: not an encoder file, damaged, or from a newer version.
        WeightsNotFoundError: heads only, and the backbone's weights are not here.
    """
    try:
        weights, metadata = from_safetensors(data)
    except ValueError as error:
        raise EncoderError(
            f"{origin} is not an encoder file or is damaged ({error}); expected a .safetensors file made by mgm fit"
        ) from error
    if _KEY not in metadata:
        raise EncoderError(
            f"{origin} holds tensors but is not an encoder file; make one from it with mgm fit --weights"
        )
    try:
        configuration = Configuration.model_validate_json(metadata[_KEY])
        fitted = {name: single(values) for name, values in weights.items() if not name.startswith("backbone.")}
        heads = {g: _head(fitted, f"heads.{g}.") for g in configuration.readings if f"heads.{g}.mean" in fitted}
        moments = {
            g: Statistics(
                fitted[f"statistics.{g}.mean"],
                fitted[f"statistics.{g}.factor"],
                fitted.get(f"statistics.{g}.nuisance"),
            )
            for g in configuration.readings
            if g != PARTS or f"statistics.{g}.mean" in fitted
        }
    except (ValidationError, KeyError) as error:
        detail = str(error)
        if isinstance(error, ValidationError):
            detail = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise EncoderError(
            f"{origin} is an encoder file that this version of mg-milvus cannot read "
            f"({detail}); update mg-milvus, or make the file again with mgm fit"
        ) from error
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    backbone = backbone or dict(shared or {}) or _pretrained(configuration.backbone)
    found = weights_fingerprint(backbone)
    if found != configuration.backbone_fingerprint:
        raise EncoderError(
            f"{origin}: the backbone's weights have the fingerprint {found}, expected "
            f"{configuration.backbone_fingerprint}; the file is damaged, or other weights of "
            f"{configuration.backbone} are on this machine"
        )
    check_numbers(backbone, origin)
    check_widths(configuration, heads, moments, origin)
    check_heads(heads, origin)
    check_moments(moments, origin)
    parts = Parts(configuration=configuration, backbone=backbone, heads=heads, statistics=moments)
    if fingerprint(parts) != metadata.get(_FINGERPRINT):
        raise EncoderError(
            f"{origin} has the fingerprint {fingerprint(parts)}, expected {metadata.get(_FINGERPRINT)}; the file is "
            "damaged: fetch or make it again"
        )
    return parts


def load(source: str | Path | bytes, *, device: str = "auto", base: Encoder | None = None) -> HashEncoder:
    """See ``mg_milvus.encoder.load_encoder``."""
    from mg_milvus.encoder.hash_encoder import HashEncoder

    shared = base.parts.backbone if isinstance(base, HashEncoder) else None
    if isinstance(source, bytes):
        return made(from_bytes(source, "the encoder", shared), device)
    if source == BUILTIN:
        file = resources.files("mg_milvus.encoder") / "weights" / "builtin.safetensors"
        return made(from_bytes(file.read_bytes(), "the built-in encoder"), device)
    path = Path(source)
    if not path.is_file():
        raise EncoderError(f"there is no encoder file {path}; give '{BUILTIN}' or a .safetensors file made by mgm fit")
    try:
        data = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise EncoderError(f"the encoder file {path} cannot be read: {error.strerror}") from error
    return made(from_bytes(data, str(path), shared), device)


def made(parts: Parts, device: str) -> HashEncoder:
    """The encoder of these parts, on onnxruntime where it can be, else on torch."""
    from mg_milvus.encoder.onnx_encoder import OnnxEncoder, onnx_runs

    if onnx_runs(parts.configuration.backbone, device):
        return OnnxEncoder(parts, device=device)
    from mg_milvus.encoder.torch_encoder import TorchEncoder

    return TorchEncoder(parts, device=device)


def untrained(backbone: str, weights: str | os.PathLike[str] | None, *, device: str = "auto") -> HashEncoder:
    """See ``mg_milvus.encoder.untrained_encoder``."""
    from mg_milvus.encoder.backbones import as_arrays, read_weights

    row = find_backbone(backbone)
    arrays = _pretrained(backbone) if weights is None else as_arrays(read_weights(weights))
    check_numbers(arrays, f"the weights {weights or backbone}")
    configuration = Configuration(
        backbone=backbone,
        backbone_fingerprint=weights_fingerprint(arrays),
        side=row.side,
        readings=default_readings(backbone),
    )
    return made(Parts(configuration=configuration, backbone=arrays, heads={}, statistics={}), device)


def _pretrained(backbone: str) -> dict[str, NDArray[Any]]:
    from mg_milvus.encoder.backbones import as_arrays, pretrained

    return as_arrays(pretrained(backbone))


def default_readings(backbone: str) -> dict[str, Reading]:
    """What the granularities read of a backbone: the last stage, smoothed most; the last two; those in cells.

    Regions read the earlier ones, which keep what is where.
    """
    stages = find_backbone(backbone).stages
    return {
        "coarse": Reading(stages=stages[-1:], smoothing=4),
        "mid": Reading(stages=stages[-2:], smoothing=2),
        "fine": Reading(stages=stages[-2:], pooling="mirrored", cells=2),
        PARTS: Reading(stages=stages[:-1]),
    }


def _head(fitted: Mapping[str, Matrix], prefix: str) -> Head | ManifoldHead:
    """A head from its tensors, which are named ``prefix`` and the head's attribute."""
    if f"{prefix}anchors" not in fitted:
        return Head(fitted[f"{prefix}mean"], fitted[f"{prefix}projection"])
    matrices = {f.name: fitted[prefix + f.name] for f in fields(ManifoldHead) if f.name != "neighbours"}
    neighbours = fitted[f"{prefix}neighbours"]
    # 0 is refused with the rest of what a head cannot work with.
    usable = neighbours.shape == () and 1 <= neighbours <= len(np.atleast_1d(matrices["anchors"]))
    return ManifoldHead(**matrices, neighbours=int(neighbours) if usable else 0)


def _fitted_weights(parts: Parts) -> dict[str, NDArray[Any]]:
    """Heads and statistics; means are float32, their other matrices have values of half precision, see ``fit.py``."""
    weights: dict[str, NDArray[Any]] = {}
    for name, head in parts.heads.items():
        for field in fields(head):
            weights[f"heads.{name}.{field.name}"] = _stored(field.name, getattr(head, field.name))
    for name, moments in parts.statistics.items():
        for field in fields(moments):
            value = getattr(moments, field.name)
            if value is not None:
                weights[f"statistics.{name}.{field.name}"] = _stored(field.name, value)
    return weights


def _stored(name: str, value: Matrix | int) -> NDArray[Any]:
    """One attribute of a head or of statistics as it is in the file."""
    values = np.asarray(value)
    if values.dtype.kind != "f" or name in {"mean", "centre"}:
        return values
    with np.errstate(over="ignore"):  # what is too large is refused when the file is read
        return values.astype(np.float16)
