"""From trained weights to an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mg_milvus.encoder.artefact import BUILTIN, Configuration, Parts, default_readings, load
from mg_milvus.encoder.backbones import as_arrays, as_tensors, build, pretrained, read_weights
from mg_milvus.encoder.fit import Head
from mg_milvus.encoder.table import find_backbone
from mg_milvus.encoder.torch_encoder import TorchEncoder
from mg_milvus.encoder.weights import weights_fingerprint
from mg_milvus.errors import EncoderError, TrainingError
from mg_milvus.images.edits import EDITS
from mg_milvus.schema_parts import PARTS
from mg_milvus.training.regions import region_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from mg_milvus.encoder import Features
    from mg_milvus.encoder.readings import Reading
    from mg_milvus.training.configuration import TrainingConfiguration

EDITED_SIDE = 320
"""Pixels that the longer side of a picture has at least before it is edited."""
_BATCH = 64


def first_weights(configuration: TrainingConfiguration) -> dict[str, torch.Tensor]:
    """The backbone's weights before training, by ``configuration.init``.

    Raises:
        EncoderError: they are not of this backbone.
        WeightsNotFoundError: torchvision's are not on this machine.
    """
    find_backbone(configuration.backbone)
    if configuration.init == "scratch":
        return build(configuration.backbone).state_dict()
    if configuration.init == "torchvision":
        return pretrained(configuration.backbone)
    try:
        encoder = load(configuration.init, device="cpu")
    except EncoderError:
        if configuration.init == BUILTIN:
            raise
        if not Path(configuration.init).is_file():
            raise TrainingError(
                f"init '{configuration.init}' is no file; expected builtin, torchvision, scratch, or a file of weights"
            ) from None
        return read_weights(configuration.init)
    if encoder.backbone != configuration.backbone:
        raise TrainingError(
            f"init '{configuration.init}' holds the backbone {encoder.backbone}, expected {configuration.backbone}; "
            f"set the backbone to {encoder.backbone}, or init to torchvision or scratch"
        )
    return as_tensors(encoder.parts.backbone)


def readings_of(configuration: TrainingConfiguration) -> dict[str, Reading]:
    """What each granularity that is trained reads of the backbone."""
    offered = default_readings(configuration.backbone)
    return {name: offered[name] for name in configuration.bits}


def encoder_of(
    configuration: TrainingConfiguration,
    weights: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    pictures: Sequence[Image.Image],
    device: str,
    *,
    edited: int = 0,
) -> TorchEncoder:
    """The encoder of a network's state, as it is written to a file.

    Args:
        configuration: of the training.
        weights: the state of a ``HashingNetwork``.
        base: the backbone's weights before training; those that training leaves out are taken from it.
        pictures: whose features give the statistics that are kept beside the heads.
        device: where the encoder is to run.
        edited: how many of them are also looked at as edited copies, so that ``fine`` codes can see through edits.
    """
    trained = {
        name: weights[f"backbone.{name}"].cpu().lerp(first.cpu().float(), configuration.blend)
        if first.is_floating_point()
        else weights[f"backbone.{name}"]
        for name, first in base.items()
        if f"backbone.{name}" in weights
    }
    backbone = as_arrays({
        # Half precision halves the file; codes are computed from these very values. Running variances, as all that is
        # one number a channel, stay exact: they may be larger than half precision can hold.
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in (dict(base) | trained).items()
    })  # fmt: skip
    settings = Configuration(
        backbone=configuration.backbone,
        backbone_fingerprint=weights_fingerprint(backbone),
        side=configuration.side,
        readings=readings_of(configuration) | {PARTS: default_readings(configuration.backbone)[PARTS]},
    )
    bare = TorchEncoder(Parts(configuration=settings, backbone=backbone, heads={}, statistics={}), device=device)
    features = features_of(bare, pictures)
    moved = {"fine": _moved(bare, pictures[:edited])} if edited and "fine" in features else None
    fitted = bare.with_statistics(features, configuration.bits, moved)
    if edited and find_backbone(configuration.backbone).multiple:
        statistics = fitted.parts.statistics | {PARTS: region_statistics(bare, pictures)}
        fitted = TorchEncoder(fitted.parts.model_copy(update={"statistics": statistics}), device=device)
    if configuration.heads == "adaptive":
        return fitted
    learned = {
        "heads": {name: _head(weights, name) for name in configuration.bits},
        "configuration": settings.model_copy(update={"fixed": True}),
    }
    return TorchEncoder(fitted.parts.model_copy(update=learned), device=device)


def features_of(encoder: TorchEncoder, pictures: Sequence[Image.Image]) -> Features:
    """Features of pictures, as an ingest would compute them: granularity -> (n, d) float32."""
    starts = range(0, len(pictures), _BATCH)
    chunks = [encoder.features([encoder.prepare(p) for p in pictures[start : start + _BATCH]]) for start in starts]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _moved(encoder: TorchEncoder, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
    """How ``fine`` features change with every strong edit: (edits * n, d)."""
    # Edits are in pixels, as of photographs; thumbnails would be destroyed by them.
    enlarged = [_enlarged(picture) for picture in pictures]
    plain = features_of(encoder, enlarged)["fine"]
    versions = [features_of(encoder, [edit.apply(p, "strong") for p in enlarged])["fine"] for edit in EDITS.values()]
    return np.concatenate([version - plain for version in versions])


def _enlarged(picture: Image.Image) -> Image.Image:
    scale = max(1.0, EDITED_SIDE / max(picture.size))
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


def _head(weights: Mapping[str, torch.Tensor], name: str) -> Head:
    """A trained hash layer as a head: the sign of its normalised bits is that of W (x - m) with W m = running mean."""
    projection = weights[f"heads.{name}.linear.weight"].double().cpu().numpy()
    threshold = weights[f"heads.{name}.norm.running_mean"].double().cpu().numpy()
    scale = 1 / np.linalg.norm(projection, axis=1, keepdims=True)
    rounded = (projection * scale).astype(np.float16).astype(np.float64)
    mean = np.linalg.lstsq(rounded, threshold * scale[:, 0], rcond=None)[0]
    return Head(mean.astype(np.float32), np.ascontiguousarray(rounded.T.astype(np.float32)))
