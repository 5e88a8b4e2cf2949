"""What an encoder should know of regions before it sees a collection: their moments, and what a cut-out changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from mg_milvus.encoder.backbones import find_backbone
from mg_milvus.encoder.file import Configuration, EncoderState, default_poolings
from mg_milvus.encoder.hash_heads import Head, Statistics, augmentation_covariance, statistics
from mg_milvus.encoder.load import load_encoder
from mg_milvus.encoder.networks import as_arrays, as_tensors, build, pretrained, read_weights
from mg_milvus.encoder.torch_runtime import TorchEncoder
from mg_milvus.encoder.weights import weights_fingerprint
from mg_milvus.errors import EncoderError, TrainingError
from mg_milvus.images.augment import AUGMENTATIONS, recompress
from mg_milvus.schema.models import REGIONS, RegionSettings, box_of, scale_of, windows
from mg_milvus.training.network import half_spaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from mg_milvus.encoder.base import Features, HashEncoder
    from mg_milvus.encoder.pooling import Pooling
    from mg_milvus.training.config import TrainingConfiguration


QUALITY = 60
"""JPEG quality of the details."""
_SAMPLE = 20_000
_BATCH = 64


def region_statistics(encoder: HashEncoder, images: Sequence[Image.Image]) -> Statistics:
    """Moments of the features of regions, and of how those of a detail differ from those of its window.

    A detail lies anywhere in an image; it is compared with the nearest window of its size, as a search will do.

    Args:
        encoder: its heads play no part.
        images: of any kind. Those smaller than the encoder's input are joined, four in one: enlarged ones would lack
            the detail that regions are about.
    """
    scales = RegionSettings().windows
    reading = encoder.with_regions(scales)
    scenes = _scenes(images, encoder.side)
    chunks = [scenes[start : start + _BATCH] for start in range(0, len(scenes), _BATCH)]
    whole = np.concatenate([reading.features([encoder.prepare(s) for s in chunk])[REGIONS] for chunk in chunks])
    whole = whole.astype(np.float32)
    all_windows, places = windows(scales), scale_of(scales)
    random = np.random.default_rng(1)
    moved = []
    for place, (size, _) in enumerate(scales):
        corners = random.uniform(0, 1 - size, (len(scenes), 2))
        own = np.flatnonzero(places == place)
        nearest = own[((all_windows[own, :2] - corners[:, None]) ** 2).sum(axis=2).argmin(axis=1)]
        details = [_cut(scene, corner, size) for scene, corner in zip(scenes, corners, strict=True)]
        seen = np.concatenate(
            [reading.region_image_features(details[start : start + _BATCH]) for start in range(0, len(details), _BATCH)]
        )
        moved.append(seen[:, place].astype(np.float32) - whole[np.arange(len(scenes)), nearest])
    rows = whole.reshape(-1, whole.shape[2])
    moments = statistics(rows[random.permutation(len(rows))[:_SAMPLE]])
    return Statistics(moments.mean, moments.factor, augmentation_covariance(np.concatenate(moved)))


def _cut(scene: Image.Image, corner: np.ndarray, size: float) -> Image.Image:
    left, top, width, height = box_of(np.array([*corner, size, size]), *scene.size)
    return recompress(scene.crop((left, top, left + width, top + height)), quality=QUALITY)


def _scenes(images: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Large images as they are; of small ones, every four beside and below each other."""
    large = [image for image in images if image.width * image.height >= side * side]
    small = [image for image in images if image.width * image.height < side * side]
    joined = []
    for start in range(0, len(small) - 3, 4):
        four = small[start : start + 4]
        width, height = four[0].size
        scene = Image.new("RGB", (2 * width, 2 * height))
        for place, image in enumerate(four):
            scene.paste(image.resize((width, height)), (place % 2 * width, place // 2 * height))
        joined.append(scene)
    return large + joined


EDITED_SIDE = 320
"""Pixels that the longer side of an image has at least before it is edited."""
_EXPORT_BATCH = 64


def first_weights(configuration: TrainingConfiguration) -> dict[str, torch.Tensor]:
    """The backbone's weights before training, by ``configuration.init``.

    Raises:
        EncoderError: they are not of this backbone.
        WeightsNotFoundError: those of ImageNet are not on this machine.
    """
    find_backbone(configuration.backbone)
    if configuration.init == "scratch":
        return build(configuration.backbone).state_dict()
    if configuration.init == "imagenet":
        return pretrained(configuration.backbone)
    if not Path(configuration.init).is_file():
        raise TrainingError(f"init '{configuration.init}' is no file; expected imagenet, scratch, or a file of weights")
    try:
        encoder = cast("HashEncoder", load_encoder(configuration.init, device="cpu"))
    except EncoderError:
        return read_weights(configuration.init)
    if encoder.backbone != configuration.backbone:
        raise TrainingError(
            f"init '{configuration.init}' holds the backbone {encoder.backbone}, expected {configuration.backbone}; "
            f"set the backbone to {encoder.backbone}, or init to imagenet or scratch"
        )
    return as_tensors(encoder.state.backbone)


def poolings_of(configuration: TrainingConfiguration) -> dict[str, Pooling]:
    """What each granularity that is trained reads of the backbone."""
    offered = default_poolings(find_backbone(configuration.backbone))
    return {name: offered[name] for name in configuration.bits}


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a training.

    Attributes:
        base: the backbone's before training; those that training leaves out are taken from it.
        trained: the state of a ``HashingNetwork``.
    """

    base: Mapping[str, torch.Tensor]
    trained: Mapping[str, torch.Tensor]


def encoder_of(configuration: TrainingConfiguration, weights: Weights, device: str) -> HashEncoder:
    """The encoder of a network's state, as it is written to a file, still without heads; ``with_heads`` adds them.

    Args:
        configuration: of the training.
        weights: before and after training.
        device: where the encoder is to run.
    """
    base, after = weights.base, weights.trained
    trained = {
        name: after[f"backbone.{name}"].cpu().lerp(first.cpu().float(), configuration.blend)
        if first.is_floating_point()
        else after[f"backbone.{name}"]
        for name, first in base.items()
        if f"backbone.{name}" in after
    }
    backbone = as_arrays({
        # Half precision halves the file; codes are computed from these very values. Running variances, as all that is
        # one number a channel, stay exact: they may be larger than half precision can hold.
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in (dict(base) | trained).items()
    })  # fmt: skip
    regions = default_poolings(find_backbone(configuration.backbone))[REGIONS]
    settings = Configuration(
        backbone=configuration.backbone,
        backbone_fingerprint=weights_fingerprint(backbone),
        side=configuration.side,
        poolings=poolings_of(configuration) | {REGIONS: regions},
    )
    return TorchEncoder(EncoderState(configuration=settings, backbone=backbone, heads={}, statistics={}), device=device)


def with_heads(
    encoder: HashEncoder,
    configuration: TrainingConfiguration,
    trained: Mapping[str, torch.Tensor],
    sample: Sample,
    *,
    edited: int = 0,
) -> HashEncoder:
    """The encoder of ``encoder_of`` with the heads that were trained, or with adaptive ones.

    Args:
        encoder: the network.
        configuration: of the training.
        trained: the state of a ``HashingNetwork``.
        sample: images whose statistics are kept beside the heads.
        edited: see ``fit_statistics``.
    """
    fitted = fit_statistics(encoder, sample, configuration.bits, edited=edited)
    if configuration.heads == "adaptive":
        return fitted
    learned = {
        "heads": {name: _head(trained, name) for name in configuration.bits},
        "configuration": fitted.state.configuration.model_copy(update={"fixed": True}),
    }
    return TorchEncoder(fitted.state.model_copy(update=learned), device=encoder.device)


@dataclass(frozen=True, slots=True)
class Sample:
    """Images and their features: granularity -> (n, d) float32."""

    images: Sequence[Image.Image]
    features: Features


def fit_statistics(encoder: HashEncoder, sample: Sample, bits: Mapping[str, int], *, edited: int) -> HashEncoder:
    """The encoder with statistics of these images, and heads made from them.

    Args:
        encoder: its heads play no part.
        sample: whose features give the statistics.
        bits: granularity -> code length.
        edited: how many of the images are also looked at as edited copies, so that ``fine`` codes can see through
            edits; with any, regions have statistics, too.
    """
    moved = {"fine": _moved(encoder, sample.images[:edited])} if edited and "fine" in sample.features else None
    fitted = encoder.with_statistics(sample.features, bits, moved)
    if not edited or not encoder.row.multiple:
        return fitted
    moments = fitted.state.statistics | {REGIONS: region_statistics(encoder, sample.images)}
    return type(fitted)(fitted.state.model_copy(update={"statistics": moments}), device=fitted.device)


def sample_of(encoder: HashEncoder, images: Sequence[Image.Image]) -> Sample:
    """Images with their features, as an ingest would compute them."""
    return Sample(images, features_of(encoder, images))


def features_of(encoder: HashEncoder, images: Sequence[Image.Image]) -> Features:
    """Features of images, as an ingest would compute them: granularity -> (n, d) float32."""
    starts = range(0, len(images), _EXPORT_BATCH)
    chunks = [encoder.features([encoder.prepare(p) for p in images[start : start + _EXPORT_BATCH]]) for start in starts]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _moved(encoder: HashEncoder, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """How ``fine`` features change with every strong edit, and with all edits at once at two strengths: (m, d)."""
    # Edits are in pixels, as of photographs; thumbnails would be destroyed by them.
    enlarged = [_enlarged(image) for image in images]
    plain = features_of(encoder, enlarged)["fine"]
    edits = [(edit, "strong") for edit in AUGMENTATIONS.values()] + [(AUGMENTATIONS["all"], "medium")]
    versions = [features_of(encoder, [edit.apply(p, strength) for p in enlarged])["fine"] for edit, strength in edits]
    return np.concatenate([version - plain for version in versions])


def _enlarged(image: Image.Image) -> Image.Image:
    scale = max(1.0, EDITED_SIDE / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _head(weights: Mapping[str, torch.Tensor], name: str) -> Head:
    """A trained hash layer as a head: the sign of its bits is that of W (x - m) with W m = threshold."""
    projection, threshold = half_spaces(weights, name)
    scale = 1 / np.linalg.norm(projection, axis=1, keepdims=True)
    rounded = (projection * scale).astype(np.float16).astype(np.float64)
    mean = np.linalg.lstsq(rounded, threshold * scale[:, 0], rcond=None)[0]
    return Head(mean.astype(np.float32), np.ascontiguousarray(rounded.T.astype(np.float32)))
