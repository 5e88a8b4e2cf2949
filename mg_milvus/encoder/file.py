"""Whether the heads of an encoder file can work at all: asked when it is loaded, not at the first image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray  # noqa: TC002 - pydantic reads the annotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.hash_heads import Head, ManifoldHead, Statistics
from mg_milvus.encoder.pooling import Reading, width
from mg_milvus.encoder.weights import BFLOAT16, from_safetensors, single, to_safetensors, weights_fingerprint
from mg_milvus.errors import EncoderError
from mg_milvus.schema.regions import (
    MOST_REGIONS,
    REGIONS,
    Scale,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.encoder.hash_heads import Matrix
    from mg_milvus.encoder.weights import Weights


def check_widths(
    configuration: Configuration, heads: Mapping[str, Head | ManifoldHead], moments: Mapping[str, Statistics],
    origin: str,
) -> None:  # fmt: skip
    """Compare what heads and statistics take with what is read of the backbone, without building it.

    Raises:
        EncoderError: they differ, or a stage is read that the backbone does not have.
    """
    row = find_backbone(configuration.backbone)
    channels = dict(zip(row.stages, row.channels, strict=True))
    for name, reading in configuration.readings.items():
        if unknown := sorted(set(reading.stages) - channels.keys()):
            raise EncoderError(
                f"{origin}: {name} reads the stage '{unknown[0]}', {row.name} has {', '.join(channels)}: make the file "
                "again with mgm fit"
            )
        expected = width(reading.model_copy(update={"pooling": "gem"}) if name == REGIONS else reading, channels)
        taken = [made[name].mean.shape for made in (heads, moments) if name in made]
        if name in moments:
            matrices = (moments[name].factor, moments[name].nuisance)
            taken += [matrix.shape[1:] for matrix in matrices if matrix is not None]
        for shape in taken:
            if shape != (expected,):
                raise EncoderError(
                    f"{origin}: the head of {name} does not work (it is for features of the shape {shape}, and "
                    f"{row.name} gives {expected} numbers): make the file again with mgm fit"
                )


def check_numbers(backbone: Weights, origin: str) -> None:
    """Refuse weights that make every code the same.

    Raises:
        EncoderError: some of them are no numbers.
    """
    for name, values in backbone.items():
        if not np.isfinite(single(values) if values.dtype == BFLOAT16 else values).all():
            raise EncoderError(f"{origin}: the weights {name} hold values that are no numbers: take other weights")


def check_heads(heads: Mapping[str, Head | ManifoldHead], origin: str) -> None:
    """Try each head, so that one that was made to fail fails here.

    Raises:
        EncoderError: its matrices do not fit together, or hold what is no number.
    """
    for name, head in heads.items():
        wrong: object
        if isinstance(head, ManifoldHead) and not head.neighbours:
            wrong = f"it ties images to no number of its {len(np.atleast_1d(head.anchors))} anchors"
        elif head.projection.ndim != 2:
            wrong = f"its projection has the shape {head.projection.shape}"
        else:
            wrong = _tried(head)
        if wrong is not None:
            raise EncoderError(
                f"{origin}: the head of {name} does not work ({wrong}): make the file again with mgm fit"
            )


def check_moments(moments: Mapping[str, Statistics], origin: str) -> None:
    """Look at the statistics, which heads of other lengths are made from later.

    Raises:
        EncoderError: they hold what is no number, or no rows.
    """
    for name, own in moments.items():
        matrices = [matrix for matrix in (own.factor, own.nuisance) if matrix is not None]
        if any(matrix.ndim != 2 or not matrix.size for matrix in matrices):
            raise EncoderError(
                f"{origin}: the statistics of {name} have the shapes {[matrix.shape for matrix in matrices]}, expected "
                "rows of numbers: make the file again with mgm fit"
            )
        if not all(np.isfinite(values).all() for values in (own.mean, *matrices)):
            raise EncoderError(
                f"{origin}: the statistics of {name} hold values that are no numbers: make the file again with mgm fit"
            )


def _tried(head: Head | ManifoldHead) -> object:
    """What is wrong with the codes of a head, None when nothing is."""
    try:
        codes = head(np.zeros((1, max(1, head.mean.size)), np.float32))
    except (ValueError, IndexError) as error:
        return error
    if codes.shape != (1, head.bits) or head.bits % 8 or not head.bits:
        return f"codes of the shape {codes.shape}"
    if not np.isfinite(codes).all():
        return "codes that are no numbers"
    return None


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
        """A file may ask for no more windows than a schema may: each of them is read for every image."""
        if any(not 0.1 <= size <= 1 or not 1 <= grid <= 16 for size, grid in scales):
            raise ValueError("expected windows of 0.1 to 1 of an image, 1 to 16 along each side")
        if (count := sum(grid * grid for _, grid in scales)) > MOST_REGIONS:
            raise ValueError(f"there are {count} regions, expected at most {MOST_REGIONS}")
        return scales


class Contents(BaseModel):
    """An encoder in pieces, as it is on disk."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    configuration: Configuration
    backbone: dict[str, NDArray[Any]]
    heads: dict[str, Head | ManifoldHead]
    statistics: dict[str, Statistics]


def fingerprint(contents: Contents) -> str:
    """16 hexadecimal digits over configuration, heads, statistics and, through its own fingerprint, the backbone."""
    settings = contents.configuration.model_dump(mode="json")
    for name in ("fixed", "regions"):  # which files older than these settings do not have
        if not settings[name]:
            del settings[name]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(
        f"{text}{weights_fingerprint(_fitted_weights(contents))}".encode(), digest_size=8
    ).hexdigest()


def to_bytes(contents: Contents, *, with_backbone: bool = True) -> bytes:
    """The content of the encoder file."""
    weights = _fitted_weights(contents)
    if with_backbone:
        weights |= {f"backbone.{name}": values for name, values in contents.backbone.items()}
    return to_safetensors(
        weights, {_KEY: contents.configuration.model_dump_json(), _FINGERPRINT: fingerprint(contents)}
    )


def from_bytes(data: bytes, origin: str, shared: Weights | None = None) -> Contents:
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
            if g != REGIONS or f"statistics.{g}.mean" in fitted
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
    contents = Contents(configuration=configuration, backbone=backbone, heads=heads, statistics=moments)
    if fingerprint(contents) != metadata.get(_FINGERPRINT):
        raise EncoderError(
            f"{origin} has the fingerprint {fingerprint(contents)}, expected {metadata.get(_FINGERPRINT)}; the file is "
            "damaged: fetch or make it again"
        )
    return contents


def _pretrained(backbone: str) -> dict[str, NDArray[Any]]:
    from mg_milvus.encoder.networks import as_arrays, pretrained

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
        REGIONS: Reading(stages=stages[:-1]),
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


def _fitted_weights(contents: Contents) -> dict[str, NDArray[Any]]:
    """Heads and statistics; means are float32, their other matrices have values of half precision, see ``fit.py``."""
    weights: dict[str, NDArray[Any]] = {}
    for name, head in contents.heads.items():
        for field in fields(head):
            weights[f"heads.{name}.{field.name}"] = _stored(field.name, getattr(head, field.name))
    for name, moments in contents.statistics.items():
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
