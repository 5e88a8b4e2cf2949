"""The table of backbones: name -> stages to pool, input size. Without torch; ``networks.py`` builds them."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mg_milvus.errors import EncoderError

Layout: TypeAlias = Literal["nchw", "nhwc", "tokens"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


@dataclass(frozen=True, slots=True)
class Texts:
    """The text tower beside a network, which its library has: how it is recognised, and where its vectors lie.

    Attributes:
        fingerprint: of its weights.
        mean: (d,) of the vectors of many words, each of length 1. The vectors of texts lie apart from those of images
            (Liang et al., "Mind the Gap", NeurIPS 2022), so each kind is centred on its own mean.
    """

    fingerprint: str
    mean: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Backbone:
    """One row of the table.

    Attributes:
        name: as users write it: torchvision's name for the model, or that of a library with the library before it.
        stages: nodes of the network to pool, early to late; a module's name means its output.
        channels: of each stage.
        side: in pixels; the area of an input image is about side * side.
        multiple: input width and height are multiples of this, and the aspect of the image is kept; 0 for a network
            that takes squares only.
        layout: axes of a stage's output: channels first, channels last, or a sequence of tokens, those of places last.
        mean: of the channels red, green and blue, subtracted from pixels between 0 and 1.
        std: what the differences are divided by.
        roles: granularity -> stages that it pools, where they are not the usual ones; see ``file.default_poolings``.
        average: ``coarse`` and ``mid`` pool averages: the values have both signs, as those of transformers, and a
            generalised mean would count the negative ones as 0.
        architecture: what a library needs to build the network, besides the name; JSON.
        texts: the text tower, whose vectors are of the kind that the network gives in the end; None: there is none.
    """

    name: str
    stages: tuple[str, ...]
    channels: tuple[int, ...]
    side: int = 224
    multiple: int = 32
    layout: Layout = "nchw"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    average: bool = False
    architecture: str = ""
    texts: Texts | None = None

    @property
    def library(self) -> str:
        """Where the network comes from, one of ``LIBRARIES`` or ``FUNCTION``; empty for those of the table."""
        return FUNCTION if self.name.startswith(f"{FUNCTION}:") else library_of(self.name)


FUNCTION = "function"
"""Before the colon of the name of a function of the user's, which takes the place of a network."""
LIBRARIES: dict[str, str] = {
    "timm": "timm:NAME",
    "open_clip": "open_clip:MODEL/PRETRAINED",
    "hf": "hf:ID_OR_FOLDER",
    "onnx": "onnx:FILE",
}
"""Where networks come from that are not in the table -> how users name them."""


EXTRAS = {"timm": "timm", "open_clip": "open-clip", "hf": "hf", "onnx": "onnx"}
"""Library -> the extra of this package that installs it."""


def library_of(name: str) -> str:
    """The library before the colon of a backbone's name, one of ``LIBRARIES``, or empty."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in LIBRARIES else ""


def _lite(size: int, side: int, blocks: tuple[int, int], channels: tuple[int, int]) -> Backbone:
    """EfficientNet-Lite: the expansions of two blocks, one that keeps places and one that survives edits, and the head.

    Expansions end in ReLU6 and are non-negative, which suits generalised means; projections are linear.
    """
    places, edits = (f"block{block}_expand" for block in blocks)
    return Backbone(
        f"efficientnet_lite{size}", (places, edits, "head"), (*channels, 1280), side=side,
        mean=_LITE_MEAN, std=_LITE_STD,
        roles={"coarse": ("head",), "mid": (edits, "head"), "fine": (edits,), "regions": (places,)},
    )  # fmt: skip


BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        _lite(0, 224, (8, 11), (480, 672)),
        _lite(1, 240, (11, 15), (480, 672)),
        _lite(2, 256, (11, 15), (528, 720)),
        Backbone("smallnet", ("stage1", "stage2", "stage3"), (64, 256, 256), side=32, multiple=8),
        Backbone("resnet18", ("layer2", "layer3", "layer4"), (128, 256, 512)),
        Backbone("resnet50", ("layer2", "layer3", "layer4"), (512, 1024, 2048)),
        Backbone("mobilenet_v3_small", ("features.3", "features.8", "features.12"), (24, 48, 576)),
        Backbone("mobilenet_v3_large", ("features.6", "features.12", "features.16"), (40, 112, 960)),
        Backbone("efficientnet_b0", ("features.3", "features.5", "features.8"), (40, 112, 1280)),
        Backbone(
            "regnet_y_400mf",
            ("trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
            (104, 208, 440),
        ),
        Backbone("convnext_tiny", ("features.3", "features.5", "features.7"), (192, 384, 768)),
        Backbone(
            "vit_b_16",
            tuple(f"encoder.layers.encoder_layer_{layer}" for layer in (5, 8, 11)),
            (768, 768, 768),
            multiple=0,
            layout="tokens",
        ),
        Backbone("swin_t", ("features.3", "features.5", "features.7"), (192, 384, 768), layout="nhwc"),
    )
}


def find_backbone(name: str) -> Backbone:
    """The row of a backbone.

    Raises:
        EncoderError: no such backbone.
    """
    if name not in BACKBONES:
        others = ", ".join(LIBRARIES.values())
        raise EncoderError(f"unknown backbone '{name}'; known are {', '.join(BACKBONES)}, and for mgm fit {others}")
    return BACKBONES[name]
