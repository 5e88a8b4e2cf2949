"""The configuration of a training: one YAML file, checked before anything is read."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mg_milvus.errors import SchemaError, TrainingError
from mg_milvus.schema.yaml import read_yaml

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


Method = Literal["orthohash", "csq", "dsh", "hashnet", "greedyhash"]
HashLayerKind = Literal["standardised", "batch_norm", "linear"]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Phase(_Settings):
    """Some epochs at some input sizes; every batch draws one of the sizes."""

    epochs: Annotated[int, Field(ge=1)]
    sides: Annotated[tuple[Annotated[int, Field(ge=16, le=512)], ...], Field(min_length=1)]


class Weights(_Settings):
    """Weights of the losses in their sum; 0 leaves one out.

    ``coarse`` and ``mid`` weigh the supervised hashing of groups and of classes, ``fine`` the instance discrimination,
    ``quantisation`` and ``balance`` are taken over all codes that are trained, ``softmax`` weighs plain classifiers of
    classes and groups on the features, which make a backbone that other collections can use.
    """

    coarse: NonNegative = 1.0
    mid: NonNegative = 1.0
    fine: NonNegative = 1.0
    quantisation: NonNegative = 0.1
    balance: NonNegative = 0.1
    softmax: NonNegative = 0.0


class Augmentation(_Settings):
    """How an image is varied. Chances are per image or per small group of images."""

    area: tuple[Share, Share] = (0.35, 1.0)
    """Share of the image that a crop keeps, least and most; (1, 1) keeps it whole."""
    shift: Annotated[int, Field(ge=0, le=32)] = 0
    """Largest shift in pixels of the input, mirrored at the border."""
    mirror: Share = 0.5
    colour: Share = 0.8
    grey: Share = 0.1
    blur: Share = 0.15
    jpeg: Share = 0.15
    rotation: Share = 0.2
    """Chance of a turn by up to 20 degrees."""
    text: Share = 0.1
    erasing: Share = 0.1
    style: Share = 0.15
    """Chance of a change of style: posterised, solarised, drawn in pencil, textures replaced by a random filter."""
    together: Share = 0.0
    """Chance of all of these at once and strong, whatever their own chances: a copy edited past recognition."""
    mixup: Share = 0.0
    """Chance that a batch is blended with itself in another order (Zhang et al. 2018); only without ``fine``."""


class Steps(_Settings):
    """A learning rate that falls in steps: times ``factor`` after every share ``every`` of the training."""

    factor: Annotated[float, Field(gt=0, lt=1)]
    every: Annotated[float, Field(gt=0, le=1)]


class Optimisation(_Settings):
    """How the weights move; the rate begins with a linear warm-up, and falls as a cosine to zero or in steps."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd: stochastic gradient descent with momentum; adam: Kingma and Ba 2015, with decay as a part of the loss."""
    batch: Annotated[int, Field(ge=2, le=8192)] = 256
    rate: Annotated[float, Field(gt=0)] = 0.1
    backbone_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Rate of the backbone's weights as a share of ``rate``, which is that of hash layers and classifiers."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; for adam, the decay of the mean of the gradients."""
    nesterov: bool = True
    """Whether the momentum of sgd looks ahead."""
    weight_decay: NonNegative = 5e-4
    """Of weights; offsets and scales do not decay."""
    warm_up: Share = 0.08
    steps: Steps | None = None
    """Steps in place of the cosine."""
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    """Largest norm of a gradient; null: any."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay of the exponential moving average of the weights, which is what is evaluated and kept; 0: the weights."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing of the softmax losses."""


class TrainingConfiguration(_Settings):
    """Everything that decides a training's result, besides the images."""

    backbone: str = "efficientnet_lite0"
    init: str = "imagenet"
    """Where the backbone's weights begin: ``imagenet``, ``scratch``, or an encoder or weights file."""
    freeze: tuple[str, ...] = ()
    """Modules of the backbone, by the beginning of their names, that stay as they are; ``backbone`` is all of it."""
    heads: Literal["learned", "adaptive"] = "learned"
    """learned: the encoder keeps the hash functions trained here; adaptive: they are fitted to each collection."""
    supervised: Method = "orthohash"
    recipe: Literal["ours", "paper"] = "ours"
    """What stands where nothing is set: the defaults here, or what the paper of ``supervised`` says (``PAPERS``)."""
    hash_layer: HashLayerKind = "standardised"
    """Features -> relaxed codes. standardised: a linear map, each bit centred and scaled over the batch; batch_norm:
    the same with a scale and an offset that are learned; linear: a linear map with an offset."""
    bits: dict[str, Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = {
        "coarse": 64,
        "mid": 128,
        "fine": 256,
    }
    side: Annotated[int, Field(ge=16, le=512)] = 128
    """Input pixels of the finished encoder."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)] = (Phase(epochs=20, sides=(96, 112, 128)),)
    weights: Weights = Weights()
    augmentation: Augmentation = Augmentation()
    optimisation: Optimisation = Optimisation()
    blend: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the first weights in the finished backbone, the rest being the trained ones (Wortsman et al., WiSE-FT,
    CVPR 2022): keeps what the first could do elsewhere. Only with adaptive heads, which fit any backbone."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Share of the images, of every class alike, that is not trained on but judges each epoch; 2,000 at most."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a better held-out mAP after which the training stops."""
    seed: Annotated[int, Field(ge=0, le=100_000_000)] = 1

    def with_recipe(self) -> TrainingConfiguration:
        """The configuration with the settings of its recipe wherever none was given; once more changes nothing.

        Raises:
            TrainingError: the settings that were given do not go with those of the recipe.
        """
        if self.recipe == "ours":
            return self
        given, paper = self.model_dump(exclude_unset=True), PAPERS[self.supervised]
        both = {part: paper[part] | given.get(part, {}) for part in ("weights", "optimisation")}
        return self.of(dict(paper) | given | both, f"the recipe of the paper of {self.supervised}")

    @property
    def trained(self) -> dict[str, int]:
        """Bits of the granularities whose codes are trained."""
        return {name: bits for name, bits in self.bits.items() if getattr(self.weights, name)}

    @property
    def frozen(self) -> bool:
        """Whether all of the backbone stays as it is."""
        return "backbone" in self.freeze

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def sides(self, epoch: int) -> tuple[int, ...]:
        """Input sizes of an epoch, from 0."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.sides
            epoch -= phase.epochs
        raise IndexError(epoch)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := [name for name in self.bits if name not in ("coarse", "mid", "fine")]:
            raise ValueError(f"bits: '{unknown[0]}' is no granularity of a training; expected coarse, mid or fine")
        if self.blend and self.heads == "learned":
            raise ValueError("blend changes the network under the heads that it has learned; set heads to adaptive")
        if self.augmentation.mixup and "fine" in self.bits and self.weights.fine:
            raise ValueError("mixup blends images that 'fine' must tell apart; set mixup or weights.fine to 0")
        if self.augmentation.mixup and self.frozen:
            raise ValueError("mixup blends images, of which a frozen backbone sees each alone; set mixup to 0")
        if not self.trained and not self.weights.softmax:
            raise ValueError("all weights are 0: there is nothing to learn")
        if self.heads == "learned" and (idle := [name for name in self.bits if name not in self.trained]):
            raise ValueError(f"weights.{idle[0]} is 0: take {idle[0]} out of bits, or set heads to adaptive")
        if self.augmentation.area[0] > self.augmentation.area[1] or not self.augmentation.area[1]:
            raise ValueError(f"augmentation.area is {self.augmentation.area}; expected the smaller share first")
        return self

    def changed(
        self,
        settings: Mapping[str, object],
        *,
        epochs: int | None = None,
        rate: float | None = None,
        batch: int | None = None,
    ) -> TrainingConfiguration:
        """Another configuration: some settings replaced, and the ones named here, which lie deeper.

        ``epochs`` makes one phase of all, with the input sizes of the last.

        Raises:
            TrainingError: a setting is unknown or wrong.
        """
        merged = self.model_dump(exclude_unset=True) | dict(settings)
        if epochs is not None:
            merged["phases"] = [{"epochs": epochs, "sides": self.phases[-1].sides}]
        given = {name: value for name, value in {"rate": rate, "batch": batch}.items() if value is not None}
        merged["optimisation"] = merged.get("optimisation", {}) | given
        return self.of(merged, "the options")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> TrainingConfiguration:
        """Read a YAML file.

        Raises:
            TrainingError: it cannot be read, or a setting is wrong; the message names the setting.
        """
        try:
            content = read_yaml(file)
        except SchemaError as error:
            raise TrainingError(f"the configuration {file} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise TrainingError(f"the configuration {file} holds no settings; expected lines such as 'seed: 1'")
        return cls.of(content, str(file))

    @classmethod
    def of(cls, settings: dict[str, object], origin: str = "the configuration") -> TrainingConfiguration:
        """From plain values, with errors in one line.

        Raises:
            TrainingError: a setting is unknown or wrong.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "settings"
            raise TrainingError(f"{origin}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def _paper(hash_layer: HashLayerKind, **optimisation: object) -> Mapping[str, Any]:
    """A paper's recipe: its loss alone, without the terms, the warm-up and the average that are ours."""
    return MappingProxyType({
        "bits": {"coarse": 64, "mid": 128},
        "hash_layer": hash_layer,
        "weights": {"quantisation": 0, "balance": 0},
        "optimisation": {"nesterov": False, "warm_up": 0, "clip": None, "average": 0, **optimisation},
    })  # fmt: skip


PAPERS: Mapping[Method, Mapping[str, Any]] = MappingProxyType({
    # Liu et al. 2016, implementation details, and solver.prototxt of lhmRyan/deep-supervised-hashing-DSH: every layer
    # learns at one rate. The paper's steps, every 20,000 of 150,000 iterations, are every 4,000 of 30,000 in
    # finetune_solver.prototxt.
    "dsh": _paper(
        "linear", batch=200, rate=1e-3, momentum=0.9, weight_decay=4e-3, steps={"factor": 0.6, "every": 2 / 15}
    ),
    # Cao et al. 2017, setup of the experiments, and pytorch/src/train.py of thuml/HashNet: rates of 3e-4 (its README)
    # and ten times that in the hash layer, halved every 2,000 of 10,000 iterations. Batches are the paper's.
    "hashnet": _paper(
        "linear", batch=256, rate=3e-3, backbone_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4,
        steps={"factor": 0.5, "every": 0.2},
    ),
    # cifar1.py of ssppp/GreedyHash: one rate for all layers, a tenth after 30 of 50 epochs.
    "greedyhash": _paper(
        "linear", batch=32, rate=1e-3, momentum=0.9, weight_decay=5e-4, steps={"factor": 0.1, "every": 0.6}
    ),
    # train.py and options.py of yuanli2333/Hadamard-Matrix-for-hashing: 0.7 every 10 of 90 epochs.
    "csq": _paper(
        "linear", optimizer="adam", batch=64, rate=1e-3, backbone_rate=0.01, weight_decay=0,
        steps={"factor": 0.7, "every": 1 / 9},
    ),
    # main.py of kamwoh/orthohash, and its README for the rate of the backbone.
    "orthohash": _paper(
        "batch_norm", optimizer="adam", batch=256, rate=1e-4, backbone_rate=0.1, weight_decay=5e-4,
        steps={"factor": 0.1, "every": 0.8},
    ),
})  # fmt: skip
"""Method -> settings of its paper; where the paper leaves one open, those of its authors' code.

Epochs, variations of the images and how the best epoch is chosen are no part of them.
"""
