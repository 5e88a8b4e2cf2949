"""The encoder file: configuration, heads and statistics in one ``.safetensors``, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray  # noqa: TC002 - pydantic reads the annotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mg_milvus.encoder.backbones import FUNCTION, Backbone, find_backbone
from mg_milvus.encoder.classifier import Classifier
from mg_milvus.encoder.hash_heads import DiffusionHead, Head, Statistics
from mg_milvus.encoder.imagenet import PACKAGES, imagenet_network
from mg_milvus.encoder.label_map import LabelMap
from mg_milvus.encoder.pooling import Pooling, width
from mg_milvus.encoder.taps import MOST_TAPS, OUTPUT
from mg_milvus.encoder.weights import BFLOAT16, from_safetensors, single, to_safetensors, weights_fingerprint
from mg_milvus.errors import EncoderError, MissingPackageError, WeightsNotFoundError
from mg_milvus.schema.models import MOST_REGIONS, REGIONS, Scale
from mg_milvus.schema.tags import vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mg_milvus.encoder.hash_heads import Matrix
    from mg_milvus.encoder.weights import Weights


def check_widths(state: EncoderState, origin: str) -> None:
    """Compare the inputs of heads and statistics with the pooled features, without building the backbone.

    Raises:
        EncoderError: their lengths differ, or the backbone does not have a pooled stage.
    """
    row, heads, moments = state.configuration.row, state.heads, state.statistics
    channels = dict(zip(row.stages, row.channels, strict=True))
    for name, pooling in state.configuration.poolings.items():
        if unknown := sorted(set(pooling.stages) - channels.keys()):
            raise EncoderError(
                f"{origin}: {name} reads the stage '{unknown[0]}', {row.name} has {', '.join(channels)}: make the file "
                "again with mgm fit"
            )
        expected = width(pooling.model_copy(update={"kind": "gem"}) if name == REGIONS else pooling, channels)
        if name in state.labels:
            _check_labels(name, state.labels[name], expected, origin)
            expected += state.labels[name].scores
        taken = [fitted[name].mean.shape for fitted in (heads, moments) if name in fitted]
        if name in moments:
            matrices = (moments[name].factor, moments[name].nuisance)
            taken += [matrix.shape[1:] for matrix in matrices if matrix is not None]
        for shape in taken:
            if shape != (expected,):
                raise EncoderError(
                    f"{origin}: the head of {name} does not work (it is for features of the shape {shape}, and "
                    f"{row.name} gives {expected} numbers): make the file again with mgm fit"
                )


def _check_labels(name: str, learned: LabelMap, expected: int, origin: str) -> None:
    shapes = learned.mean.shape, learned.weights.shape
    works = shapes[0] == (expected,) and learned.weights.ndim == 2 and shapes[1][0] == expected and learned.scores
    if not works or not all(np.isfinite(values).all() for values in (learned.mean, learned.weights)):
        raise EncoderError(
            f"{origin}: what labels taught {name} does not work (it has the shapes {shapes}, expected finite numbers "
            f"for {expected} features): make the file again with mgm fit"
        )


def check_numbers(backbone: Weights, origin: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        EncoderError: a weight is not finite.
    """
    for name, values in backbone.items():
        if not np.isfinite(single(values) if values.dtype == BFLOAT16 else values).all():
            raise EncoderError(f"{origin}: the weights {name} hold values that are no numbers: take other weights")


def check_heads(heads: Mapping[str, Head | DiffusionHead], origin: str) -> None:
    """Apply each head to zeros, so that a malformed one fails here and not at the first image.

    Raises:
        EncoderError: its matrices do not fit together, or hold values that are not finite.
    """
    for name, head in heads.items():
        wrong: object
        if isinstance(head, DiffusionHead) and not head.neighbours:
            wrong = f"it weights an impossible number of its {len(np.atleast_1d(head.anchors))} anchors"
        elif isinstance(head, DiffusionHead) and (head.rows.dtype != np.int8 or not head.rows.size):
            wrong = f"it averages with rows of the shape {head.rows.shape} and the type {head.rows.dtype}"
        elif isinstance(head, DiffusionHead) and not 0 < head.reach < np.inf:
            wrong = f"its sample reaches to {head.reach}"
        elif head.projection.ndim != 2:
            wrong = f"its projection has the shape {head.projection.shape}"
        else:
            wrong = _fault(head)
        if wrong is not None:
            raise EncoderError(
                f"{origin}: the head of {name} does not work ({wrong}): make the file again with mgm fit"
            )


def check_moments(moments: Mapping[str, Statistics], origin: str) -> None:
    """Check the statistics, from which heads of other lengths are fitted later.

    Raises:
        EncoderError: they hold values that are not finite, or no rows.
    """
    for name, own in moments.items():
        if not 0 < own.floor <= 1:
            raise EncoderError(
                f"{origin}: the statistics of {name} have the floor {own.floor}, expected 0 to 1: make the file again "
                "with mgm fit"
            )
        matrices = [matrix for matrix in (own.factor, own.nuisance, own.clusters) if matrix is not None]
        if own.clusters is not None and own.clusters.shape[1:] != own.factor.shape[:1]:
            raise EncoderError(
                f"{origin}: the clusters of {name} have the shape {own.clusters.shape}, expected {len(own.factor)} "
                "numbers each: make the file again with mgm fit"
            )
        if any(matrix.ndim != 2 or not matrix.size for matrix in matrices):
            raise EncoderError(
                f"{origin}: the statistics of {name} have the shapes {[matrix.shape for matrix in matrices]}, expected "
                "rows of numbers: make the file again with mgm fit"
            )
        if not all(np.isfinite(values).all() for values in (own.mean, *matrices)):
            raise EncoderError(
                f"{origin}: the statistics of {name} hold values that are no numbers: make the file again with mgm fit"
            )


def _fault(head: Head | DiffusionHead) -> object:
    """What is wrong with a head, None when it works."""
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
_CLASSIFIER = "classifier"
"""Beginning of the names of its tensors, and name of its own fingerprint in the metadata."""
BUILTIN = "builtin"
SHIPPED = (BUILTIN, "large")
"""Encoders whose heads ship with the package; the weights of their networks are in packages, see ``imagenet.py``."""
MAX_BYTES = 4 << 30
"""Largest encoder file to read, in bytes: four times the largest backbone of the table."""


class Configuration(BaseModel):
    """Everything about an encoder that is not a tensor; JSON in the file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    backbone: str
    backbone_fingerprint: str
    side: Annotated[int, Field(ge=16, le=1024)]
    poolings: dict[str, Pooling]
    adapted_on: Annotated[int, Field(ge=0)] = 0
    ancestors: tuple[str, ...] = ()
    fixed: bool = False
    """Collections use the heads unchanged: they were trained, or are a baseline to compare with."""
    regions: tuple[Scale, ...] = ()
    """Size and grid of the windows that get codes of their own; see ``schema.regions.windows``."""
    network: Backbone | None = None
    """The description of a network that is not in the table of backbones."""

    @property
    def row(self) -> Backbone:
        """The backbone's description.

        Raises:
            EncoderError: it is neither here nor in the table.
        """
        return self.network or find_backbone(self.backbone)

    @field_validator("network")
    @classmethod
    def _check_network(cls, row: Backbone | None) -> Backbone | None:
        """Refuse descriptions that no network can have."""
        if row is None:
            return None
        stages = len(row.stages)
        if not 1 <= stages == len(row.channels) <= MOST_TAPS or not all(1 <= c <= 1 << 16 for c in row.channels):
            raise ValueError(f"{row.name} has {stages} stages of {row.channels} channels")
        if not 16 <= row.side <= 1024 or not 0 <= row.multiple <= 256:
            raise ValueError(f"{row.name} takes images of {row.side} pixels in steps of {row.multiple}")
        if not all(map(math.isfinite, (*row.mean, *row.std))) or min(row.std) <= 0:
            raise ValueError(f"{row.name} scales pixels by {row.mean} and {row.std}")
        if row.texts is not None:
            mean = row.texts.mean
            if row.stages[-1] != OUTPUT or len(mean) != row.channels[-1] or not all(map(math.isfinite, mean)):
                raise ValueError(f"{row.name} gives {row.channels[-1]} numbers, the mean of its texts has {len(mean)}")
        return row

    @model_validator(mode="after")
    def _check_library(self) -> Self:
        if self.network is not None and (self.network.name != self.backbone or not self.network.library):
            raise ValueError(f"the description of {self.backbone} is that of {self.network.name}")
        return self

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, scales: tuple[Scale, ...]) -> tuple[Scale, ...]:
        """Apply a schema's limits on the number of windows: each of them is encoded for every image."""
        if any(not 0.1 <= size <= 1 or not 1 <= grid <= 16 for size, grid in scales):
            raise ValueError("expected windows of 0.1 to 1 of an image, 1 to 16 along each side")
        if (count := sum(grid * grid for _, grid in scales)) > MOST_REGIONS:
            raise ValueError(f"there are {count} regions, expected at most {MOST_REGIONS}")
        return scales


class EncoderState(BaseModel):
    """All of an encoder except the runtime: what its file holds."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    configuration: Configuration
    backbone: dict[str, NDArray[Any]]
    heads: dict[str, Head | DiffusionHead]
    statistics: dict[str, Statistics]
    labels: dict[str, LabelMap] = {}
    """What labels have taught granularities, by which their features are longer."""
    classifier: Classifier | None = None
    """For tags; no code depends on it."""


def fingerprint(state: EncoderState) -> str:
    """16 hexadecimal digits over all but the classifier; over the backbone through its own fingerprint."""
    text = json.dumps(state.configuration.model_dump(mode="json", exclude_none=True), sort_keys=True)
    return hashlib.blake2b(f"{text}{weights_fingerprint(_fitted_weights(state))}".encode(), digest_size=8).hexdigest()


def to_bytes(state: EncoderState, *, with_backbone: bool = True) -> bytes:
    """The content of the encoder file."""
    weights = _fitted_weights(state)
    if with_backbone:
        weights |= {f"backbone.{name}": values for name, values in state.backbone.items()}
    metadata = {_KEY: state.configuration.model_dump_json(exclude_none=True), _FINGERPRINT: fingerprint(state)}
    if with_backbone and state.classifier is not None:
        own = {f"{_CLASSIFIER}.{f.name}": getattr(state.classifier, f.name) for f in fields(Classifier)}
        weights |= own
        metadata[_CLASSIFIER] = weights_fingerprint(own)
    return to_safetensors(weights, metadata)


def from_bytes(data: bytes, origin: str, shared: EncoderState | None = None) -> EncoderState:
    """Read and check an encoder file.

    Args:
        data: its content.
        origin: its name in errors.
        shared: has the backbone's weights for a heads-only file; default: the ImageNet weights.

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
        own = {name: weights.pop(name) for name in list(weights) if name.startswith(f"{_CLASSIFIER}.")}
        fitted = {
            name: values if values.dtype == np.int8 else single(values)
            for name, values in weights.items()
            if not name.startswith("backbone.")
        }
        heads = {g: _head(fitted, f"heads.{g}.") for g in configuration.poolings if f"heads.{g}.mean" in fitted}
        moments = {
            g: Statistics(
                fitted[f"statistics.{g}.mean"],
                fitted[f"statistics.{g}.factor"],
                fitted.get(f"statistics.{g}.nuisance"),
                float(fitted[f"statistics.{g}.floor"]),
                fitted.get(f"statistics.{g}.clusters"),
            )
            for g in configuration.poolings
            if g != REGIONS or f"statistics.{g}.mean" in fitted
        }
        labels = {
            g: LabelMap(fitted[f"labels.{g}.mean"], fitted[f"labels.{g}.weights"])
            for g in configuration.poolings
            if f"labels.{g}.mean" in fitted
        }
    except (ValidationError, KeyError, TypeError) as error:
        detail = str(error)
        if isinstance(error, ValidationError):
            detail = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise EncoderError(
            f"{origin} is an encoder file that this version of mg-milvus cannot read "
            f"({detail}); update mg-milvus, or make the file again with mgm fit"
        ) from error
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    classifier = _classifier(own, configuration.row, metadata.get(_CLASSIFIER), origin) if own else None
    if not backbone and shared is not None:
        backbone, classifier = dict(shared.backbone), shared.classifier
    elif not backbone:
        backbone, classifier = pretrained_weights(configuration.row)
    actual = weights_fingerprint(backbone)
    if configuration.row.library != FUNCTION and actual != configuration.backbone_fingerprint:
        raise EncoderError(
            f"{origin}: the backbone's weights have the fingerprint {actual}, expected "
            f"{configuration.backbone_fingerprint}; the file is damaged, or other weights of "
            f"{configuration.backbone} are on this machine"
        )
    check_numbers(backbone, origin)
    state = EncoderState(
        configuration=configuration, backbone=backbone, heads=heads, statistics=moments, labels=labels,
        classifier=classifier,
    )  # fmt: skip
    check_widths(state, origin)
    check_heads(heads, origin)
    check_moments(moments, origin)
    if fingerprint(state) != metadata.get(_FINGERPRINT):
        raise EncoderError(
            f"{origin} has the fingerprint {fingerprint(state)}, expected {metadata.get(_FINGERPRINT)}; the file is "
            "damaged: fetch or make it again"
        )
    return state


def _classifier(own: Weights, row: Backbone, expected: str | None, origin: str) -> Classifier:
    """The classifier of a file, from its tensors.

    Raises:
        EncoderError: it does not fit the network, or is not the one that was written.
    """
    if (actual := weights_fingerprint(own)) != expected:
        raise EncoderError(
            f"{origin}: the classifier has the fingerprint {actual}, expected {expected}; the file is damaged: fetch "
            "or make it again"
        )
    classes = vocabulary().names
    shapes = {"weight": (classes, row.channels[-1]), "scale": (classes,), "bias": (classes,)}
    found = {name.removeprefix(f"{_CLASSIFIER}."): (values.shape, values.dtype.name) for name, values in own.items()}
    wanted = {name: (shape, "int8" if name == "weight" else "float32") for name, shape in shapes.items()}
    if found != wanted or not all(np.isfinite(own[f"{_CLASSIFIER}.{name}"]).all() for name in shapes):
        raise EncoderError(
            f"{origin}: the classifier does not work (it has {found}, expected finite {wanted}): make the file again "
            "with mgm fit"
        )
    return Classifier(**{name: own[f"{_CLASSIFIER}.{name}"] for name in shapes})


def pretrained_weights(row: Backbone) -> tuple[dict[str, NDArray[Any]], Classifier | None]:
    """Pretrained weights of a backbone, and its classifier if it is one of ``PACKAGES``; these need no torch.

    Raises:
        MissingPackageError: its library is not installed.
        WeightsNotFoundError: they are not on this machine and cannot be fetched.
    """
    if row.name in PACKAGES:
        return imagenet_network(row.name)
    from mg_milvus.encoder.networks import as_arrays, pretrained

    if not row.library:
        return as_arrays(pretrained(row.name)), None
    if row.library == FUNCTION:
        raise EncoderError(f"{row.name}: the encoder lacks the features that it is recognised by; make it again")
    if row.library == "onnx":
        raise WeightsNotFoundError(
            f"{row.name}, the network of this encoder, is too large to be kept in Milvus: give the file that mgm fit "
            "wrote (--encoder FILE)"
        )
    from mg_milvus.encoder.libraries import library_weights

    try:
        return as_arrays(library_weights(row.name)), None
    except (MissingPackageError, WeightsNotFoundError) as error:
        raise type(error)(
            f"{row.name}, the network of this encoder, is too large to be kept in Milvus: give the file that mgm fit "
            f"wrote (--encoder FILE), or have it here ({error})"
        ) from error


def default_poolings(row: Backbone) -> dict[str, Pooling]:
    """How granularities pool a backbone: ``coarse`` the last stage, smoothed most; ``mid`` and ``fine`` the last two.

    Regions pool the earlier stages, which keep positions. The backbone's row may name other stages.
    """
    earlier = row.stages[:-1] or row.stages
    stages = {"coarse": row.stages[-1:], "mid": row.stages[-2:], "fine": row.stages[-2:], REGIONS: earlier}
    stages |= row.roles
    kind: Literal["gem", "pyramid"] = "pyramid" if row.average else "gem"
    return {
        "coarse": Pooling(stages=stages["coarse"], kind=kind, smoothing=4),
        "mid": Pooling(stages=stages["mid"], kind=kind, smoothing=2),
        "fine": Pooling(stages=stages["fine"], kind="mirrored", cells=2),
        REGIONS: Pooling(stages=stages[REGIONS]),
    }


def _head(fitted: Mapping[str, Matrix], prefix: str) -> Head | DiffusionHead:
    """A head from its tensors, named ``prefix`` + attribute."""
    if f"{prefix}anchors" not in fitted:
        return Head(fitted[f"{prefix}mean"], fitted[f"{prefix}projection"])
    scalars = ("neighbours", "own", "reach")
    matrices: dict[str, Any] = {f.name: fitted[prefix + f.name] for f in fields(DiffusionHead) if f.name not in scalars}
    neighbours, own, reach = (fitted[prefix + name] for name in scalars)
    # check_heads refuses 0 and nan.
    usable = neighbours.shape == own.shape == () and 1 <= neighbours <= own <= len(np.atleast_1d(matrices["anchors"]))
    return DiffusionHead(
        **matrices, neighbours=int(neighbours) if usable else 0, own=int(own) if usable else 0,
        reach=float(reach) if reach.shape == () else math.nan,
    )  # fmt: skip


def _fitted_weights(state: EncoderState) -> dict[str, NDArray[Any]]:
    """Tensors of heads, statistics and labels; means are float32, the other matrices float16, see ``half``."""
    weights: dict[str, NDArray[Any]] = {}
    for name, head in state.heads.items():
        for field in fields(head):
            weights[f"heads.{name}.{field.name}"] = _stored(field.name, getattr(head, field.name))
    for name, moments in state.statistics.items():
        for field in fields(moments):
            value = getattr(moments, field.name)
            if value is not None:
                weights[f"statistics.{name}.{field.name}"] = _stored(field.name, value)
    for name, learned in state.labels.items():
        for field in fields(learned):
            weights[f"labels.{name}.{field.name}"] = _stored(field.name, getattr(learned, field.name))
    return weights


def _stored(name: str, value: Matrix | int) -> NDArray[Any]:
    """An attribute of a head or of statistics in the type that the file has."""
    values = np.asarray(value)
    if values.dtype.kind != "f" or name in {"mean", "centre"}:
        return values
    with np.errstate(over="ignore"):  # infinities are refused when the file is read
        return values.astype(np.float16)
