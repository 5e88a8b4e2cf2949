"""The training loop: steps, optimizer, moving average of the weights, held-out metrics."""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from mg_milvus.encoder.torch_runtime import has_bfloat16
from mg_milvus.errors import TrainingError
from mg_milvus.evaluation.metrics import NOT_A_CANDIDATE, code_blocks, score_rankings
from mg_milvus.training.checkpoint import Course, checkpoint_beside, load_checkpoint, save_checkpoint, write
from mg_milvus.training.data import Batch, Batches, mixed
from mg_milvus.training.export import Weights, encoder_of, sample_of, with_heads
from mg_milvus.training.losses import LEVELS, Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.codes import Codes
    from mg_milvus.encoder.base import HashEncoder
    from mg_milvus.training.config import Optimisation, TrainingConfiguration
    from mg_milvus.training.data import ImageCache
    from mg_milvus.training.export import Sample
    from mg_milvus.training.network import HashingNetwork


class MovingAverage:
    """Exponential moving average of weights and buffers (Polyak and Juditsky 1992); early steps use a smaller decay."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step ``step``, from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, share)
            else:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on from these weights."""
        for name, value in self.weights.items():
            value.copy_(weights[name])


def rate_at(progress: float, settings: Optimisation) -> float:
    """Learning rate at a share of the training, 0 to 1.

    Linear warm-up, then steps, or a cosine to 0 (Loshchilov and Hutter 2017).
    """
    if progress < settings.warm_up:
        return settings.rate * max(progress, 1e-4) / settings.warm_up
    if settings.steps is not None:
        # Shares of a training are quotients, and 0.6 / 0.2 is a little less than 3.
        return settings.rate * settings.steps.factor ** math.floor(progress / settings.steps.every + 1e-9)
    done = (progress - settings.warm_up) / max(1 - settings.warm_up, 1e-9)
    return settings.rate * (1 + math.cos(math.pi * done)) / 2


SQUARES_DECAY = 0.999
"""Decay of adam's mean of squared gradients, as in its paper and in all that use it here."""


def optimizer_of(
    backbone: Sequence[nn.Parameter], others: Sequence[nn.Parameter], settings: Optimisation
) -> torch.optim.Optimizer:
    """The optimizer of a training; its groups hold their ``share`` of the learning rate.

    Weights of convolutions and linear maps decay; scales and offsets do not (He et al. 2018, "Bag of Tricks").

    Args:
        backbone: parameters of the backbone, which learn at their own rate.
        others: those of hash layers, classifiers and losses.
        settings: what kind, and its constants.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if (p.ndim > 1) == weights], "weight_decay": decay, "share": share}
        for parameters, share in ((backbone, settings.backbone_rate), (others, 1.0))
        for weights, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.rate, betas=(settings.momentum, SQUARES_DECAY))
    # torch has no Nesterov without momentum, which would be the plain step.
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=nesterov)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory, on any device."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or ("out of memory" in str(error).lower())
    )


def held_out_metrics(
    codes: Mapping[str, Codes], labels: Mapping[str, NDArray[np.bool_]], held_out: int
) -> dict[str, float]:
    """mAP of each granularity on the labels of its own level, and their mean.

    Each held-out image is a query against all others: among themselves alone, a few would have nothing to find.

    Args:
        codes: granularity -> (n, bits / 8) uint8, of the held-out images and then of some that were trained on.
        labels: level -> (n, labels) bool; clusters stand in for labels where there are none.
        held_out: how many of the n are held out.

    Returns:
        ``map_<granularity>`` and ``held_out``.
    """
    metrics: dict[str, float] = {}
    for name, values in codes.items():
        level = labels[LEVELS.get(name, "classes")].astype(np.float32)

        def relevance_of(part: slice, level: NDArray[np.float32] = level) -> NDArray[np.uint8]:
            found = (level[part] @ level.T > 0).astype(np.uint8)
            found[np.arange(len(found)), np.arange(len(level))[part]] = NOT_A_CANDIDATE
            return found

        blocks = code_blocks(values[:held_out], values, relevance_of)
        # Where no other image shares a label with one held out there is no mAP: 0 for all epochs alike.
        metrics[f"map_{name}"] = float(np.nan_to_num(score_rankings(blocks).map))
    return metrics | {"held_out": float(np.mean(list(metrics.values())))}


STATISTICS_SAMPLE = 5_000
"""Training images whose features give the statistics in the encoder file."""
FEW_MORE = 300
"""Training images that stand in for them after each epoch, and among which those held out are searched."""
EDITED_SAMPLE = 500
"""Those of them that are also looked at as edited copies."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from.

    Attributes:
        cache: all images.
        labels: level -> (n, labels) bool; empty without labels.
        train: (m,) rows that are trained on.
        held_out: rows that judge each epoch, and are never trained on.
    """

    cache: ImageCache
    labels: Mapping[str, NDArray[np.bool_]]
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Job:
    """Where a training runs: the encoder file, the device, and the processes that make batches (0: this one)."""

    out: Path
    device: torch.device
    workers: int


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress of a training, handed to ``on_step`` after every step.

    Attributes:
        epoch: the current epoch, from 1.
        epochs: all epochs.
        done: images of this epoch that are done.
        total: images of an epoch.
        losses: name -> mean in this epoch so far.
    """

    epoch: int
    epochs: int
    done: int
    total: int
    losses: Mapping[str, float]


VARIATIONS = 8
"""Variations in which a frozen backbone sees an image; later epochs use the features of earlier ones again."""


class FrozenFeatures:
    """Features of a backbone that stays as it is, in files without names: variation -> rows and features.

    Half precision, as heads are stored. What an epoch needs first is computed then, and not again.
    """

    def __init__(self, network: HashingNetwork, device: torch.device) -> None:
        self._network, self._device = network, device
        self._variations: dict[int, tuple[NDArray[np.int64], NDArray[np.float16]]] = {}

    def __contains__(self, variation: int) -> bool:
        return variation in self._variations

    def __getitem__(self, variation: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Rows (n,), and their features (n, views, d), those of all granularities side by side."""
        return self._variations[variation]

    def divided(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (n, d) of all granularities -> those of each."""
        widths = self._network.widths
        return dict(zip(widths, torch.split(features, list(widths.values()), dim=1), strict=True))

    @torch.no_grad()
    def compute(self, variation: int, batches: Iterable[Batch], report: Callable[[int], None]) -> None:
        """Features of a variation's images; ``report`` receives the number of batches done.

        Raises:
            TrainingError: the disk is full.
        """
        rows: list[NDArray[np.int64]] = []
        shape: tuple[int, ...] = ()
        with tempfile.TemporaryFile(prefix="mgm-") as file:
            try:
                for done, batch in enumerate(batches, start=1):
                    views = [
                        torch.cat(list(self._network.features(view.to(self._device)).values()), dim=1)
                        for view in batch.views
                    ]
                    features = torch.stack(views, dim=1).half().cpu().numpy()
                    rows.append(batch.rows.numpy())
                    shape = features.shape[1:]
                    file.write(features.tobytes())
                    report(done)
                file.flush()
            except OSError as error:
                raise TrainingError(
                    f"the features of the frozen backbone do not fit into {tempfile.gettempdir()}: {error.strerror}; "
                    "set TMPDIR to a folder with room"
                ) from error
            count = sum(map(len, rows))
            # The mapping keeps the file's space until it is dropped.
            self._variations[variation] = (
                np.concatenate(rows), np.memmap(file, np.float16, "r", shape=(count, *shape))
            )  # fmt: skip


class FeatureBatches:
    """The batches of one epoch of features: rows (n,) and features (n, views, d), in an order of the seed's."""

    def __init__(self, rows: NDArray[np.int64], features: NDArray[np.float16], batch: int, seed: int) -> None:
        self._rows, self._features = rows, features
        order = np.random.default_rng(seed).permutation(len(rows))
        self.size = size = min(batch, len(order))
        self._places = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Batch]:
        for places in self._places:
            features = torch.from_numpy(self._features[places].astype(np.float32))
            yield Batch(torch.from_numpy(self._rows[places]), features.unbind(1))


class Trainer:
    """One training. ``run`` does all of it, or goes on from a checkpoint."""

    def __init__(
        self,
        configuration: TrainingConfiguration,
        material: Material,
        network: HashingNetwork,
        base: Mapping[str, torch.Tensor],
        job: Job,
    ) -> None:
        self._configuration, self._material, self._base = configuration, material, base
        self._out, self._device, self._workers = job.out, job.device, job.workers
        device = job.device
        self.checkpoint = checkpoint_beside(job.out)
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._objective = Objective(configuration, {k: v.shape[1] for k, v in material.labels.items()}).to(device)
        self._frozen = self._freeze()
        self._features = FrozenFeatures(self._network, device) if configuration.frozen else None
        self._judges: tuple[HashEncoder, Sample] | None = None
        self._average = MovingAverage(self._network, configuration.optimisation.average)
        self._parameters = [p for m in (self._network, self._objective) for p in m.parameters() if p.requires_grad]
        own = {id(p) for p in self._network.backbone.parameters()}
        self._optimizer = optimizer_of(
            [p for p in self._parameters if id(p) in own],
            [p for p in self._parameters if id(p) not in own],
            configuration.optimisation,
        )
        self._labels = {k: torch.from_numpy(v).to(device) for k, v in material.labels.items()}
        self.course = Course(setup={})
        self._best: dict[str, torch.Tensor] = {}

    def run(
        self,
        setup: dict[str, object],
        *,
        resume: bool,
        stop_after: int | None,
        on_step: Callable[[StepReport], None],
        on_epoch: Callable[[dict[str, float]], None],
    ) -> HashEncoder:
        """Train, and write the best encoder to ``out`` after every epoch that brings a better one.

        Raises:
            TrainingError: nothing fits into memory, a loss is not a number, a file cannot be written, or the checkpoint
                to go on from is of another setup.
        """
        self.course = Course(setup=setup)
        if resume:
            self._load(setup)
        last = self._configuration.epochs if stop_after is None else min(stop_after, self._configuration.epochs)
        while self.course.epoch < last and not self._finished():
            started = time.perf_counter()
            losses = self._epoch(self.course.epoch, on_step)
            encoder, metrics = self._judge()
            self.course.epoch += 1
            record = {"epoch": self.course.epoch, **losses, **metrics, "seconds": time.perf_counter() - started}
            self.course.history.append(record)
            # Of epochs that are as good the last one: it has learned longest.
            if metrics["held_out"] >= self.course.best:
                self.course.best, self.course.best_epoch = metrics["held_out"], self.course.epoch
                write(self._out, encoder.to_bytes())
            self._save()
            on_epoch(record)
        return self._finish()

    def _epoch(self, epoch: int, on_step: Callable[[StepReport], None]) -> dict[str, float]:
        configuration = self._configuration
        self._network.train()
        for module in self._frozen:
            module.eval()
        batches = self._batches(epoch, on_step)
        sums: dict[str, float] = {}
        for step, batch in enumerate(self._loaded(batches), start=1):
            done = epoch * len(batches) + step - 1
            progress = done / (configuration.epochs * len(batches))
            self._objective.step(progress)
            for group in self._optimizer.param_groups:
                group["lr"] = group["share"] * rate_at(progress, configuration.optimisation)
            losses = self._step(batch, seed=done)
            if not all(map(math.isfinite, losses.values())):
                raise TrainingError(
                    f"a loss is not a number in epoch {epoch + 1}: {losses}; lower optimisation.rate "
                    f"(now {configuration.optimisation.rate}) and go on with --resume"
                )
            self._average.update(self._network, done)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            means = {name: value / step for name, value in sums.items()}
            on_step(
                StepReport(epoch + 1, configuration.epochs, step * batches.size, len(batches) * batches.size, means)
            )
        return means

    def _batches(self, epoch: int, on_step: Callable[[StepReport], None]) -> Batches | FeatureBatches:
        """The batches of an epoch: images, or their features where the backbone is frozen."""
        material, configuration = self._material, self._configuration
        if self._features is None:
            return Batches(material.cache, material.train, configuration, epoch, self._objective.views)
        variation = epoch % VARIATIONS
        if variation not in self._features:
            images = Batches(material.cache, material.train, configuration, variation, self._objective.views)
            total = len(images) * images.size

            def report(batches: int) -> None:
                on_step(StepReport(epoch + 1, configuration.epochs, batches * images.size, total, {}))

            self._features.compute(variation, self._loaded(images), report)
        seed = configuration.seed * 100_003 + epoch
        return FeatureBatches(*self._features[variation], configuration.optimisation.batch, seed)

    def _loaded(self, batches: Batches | FeatureBatches) -> Iterable[Batch]:
        if isinstance(batches, FeatureBatches):
            return batches
        return DataLoader(
            batches, batch_size=None, shuffle=False, num_workers=self._workers,
            prefetch_factor=2 if self._workers else None,
        )  # fmt: skip

    def _step(self, batch: Batch, seed: int) -> dict[str, float]:
        """One step of the optimizer; a batch that does not fit into memory is divided, and stays divided."""
        while True:
            try:
                self._optimizer.zero_grad(set_to_none=True)
                losses = self._gradients(batch, seed)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.course.pieces >= len(batch.rows) // 2:
                    if out_of_memory(error):
                        raise TrainingError(
                            "even two images at a time do not fit into memory; lower the sides of the phases"
                        ) from error
                    raise
                self.course.pieces *= 2
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        if self._configuration.optimisation.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._configuration.optimisation.clip)
        self._optimizer.step()
        return losses

    def _gradients(self, batch: Batch, seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        random = np.random.default_rng([self._configuration.seed, seed])
        for part in np.array_split(np.arange(len(batch.rows)), self.course.pieces):
            rows = batch.rows[part].to(self._device)
            x = torch.cat([view[part] for view in batch.views]).to(self._device)
            labels = {level: values[rows].float().repeat(len(batch.views), 1) for level, values in self._labels.items()}
            if random.random() < self._configuration.augmentation.mixup:
                x, labels = mixed(x, labels, random)
            precision = (
                torch.autocast(self._device.type, torch.bfloat16) if has_bfloat16(self._device) else nullcontext()
            )
            if self._features is not None:
                codes, scores = self._network.hashed(self._features.divided(x))
            else:
                with precision:
                    codes, scores = self._network(x.contiguous(memory_format=torch.channels_last))
            share = len(part) / len(batch.rows)
            losses = {name: share * value for name, value in self._objective(codes, scores, labels).items()}
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                found[name] = found.get(name, 0.0) + float(value.detach())
        return found

    def _judge(self) -> tuple[HashEncoder, dict[str, float]]:
        """The encoder of the averaged weights, and its metrics on the held-out images."""
        held_out = self._material.held_out
        rows = np.concatenate([held_out, self._some(FEW_MORE)])
        bare, sample = self._judges or self._sampled(self._average.weights, rows)
        if self._features is not None:
            self._judges = bare, sample
        encoder = with_heads(bare, self._configuration, self._average.weights, sample)
        codes = encoder.codes(sample.features)
        labels = {level: values[rows] for level, values in self._material.labels.items()}
        return encoder, held_out_metrics(codes, labels, len(held_out))

    def _sampled(self, weights: Mapping[str, torch.Tensor], rows: NDArray[np.int64]) -> tuple[HashEncoder, Sample]:
        """The encoder of these weights, without heads, and what it reads of these images."""
        encoder = encoder_of(self._configuration, Weights(self._base, weights), str(self._device))
        return encoder, sample_of(encoder, self._images(rows))

    def _some(self, count: int) -> NDArray[np.int64]:
        """Training images drawn at random, always the same."""
        return np.random.default_rng(self._configuration.seed).permutation(self._material.train)[:count]

    def _images(self, rows: NDArray[np.int64]) -> list[Image.Image]:
        return [Image.fromarray(self._material.cache[int(row)]) for row in rows]

    def _finished(self) -> bool:
        return self.course.epoch - self.course.best_epoch >= self._configuration.patience

    def _finish(self) -> HashEncoder:
        """The best encoder once more, with the statistics of many training images."""
        weights = {name.removeprefix("best."): value for name, value in self._best.items()}
        bare, sample = self._sampled(weights, self._some(STATISTICS_SAMPLE))
        encoder = with_heads(bare, self._configuration, weights, sample, edited=EDITED_SAMPLE)
        write(self._out, encoder.to_bytes())
        return encoder

    def _freeze(self) -> list[nn.Module]:
        """Modules that stay as they are, the running means of their normalisation included."""
        backbone = self._network.backbone
        frozen: list[nn.Module] = []
        for prefix in self._configuration.freeze:
            start = "" if prefix == "backbone" else prefix
            found = [module for name, module in backbone.named_modules() if name.startswith(start)]
            if not found:
                known = ", ".join(name for name, _ in backbone.named_children())
                raise TrainingError(f"freeze '{prefix}' names no module of the backbone; expected backbone, or {known}")
            frozen += found
        for module in frozen:
            module.requires_grad_(False)
        return frozen

    def _save(self) -> None:
        tensors = {f"network.{k}": v for k, v in self._network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self._average.weights.items()}
        tensors |= {f"objective.{k}": v for k, v in self._objective.state_dict().items()}
        for i, parameter in enumerate(self._parameters):
            tensors |= {f"optimizer.{i}.{k}": v for k, v in self._optimizer.state[parameter].items() if v is not None}
        if self.course.best_epoch == self.course.epoch:
            self._best = {f"best.{k}": v.detach().clone() for k, v in self._average.weights.items()}
        save_checkpoint(self.checkpoint, tensors | self._best, self.course)

    def _load(self, setup: dict[str, object]) -> None:
        tensors, course = load_checkpoint(self.checkpoint)
        different = [name for name in setup if course.setup.get(name) != setup[name]]
        if different:
            raise TrainingError(
                f"the checkpoint {self.checkpoint} was made with another {' and '.join(different)}; give the same "
                "images and configuration, or start without --resume"
            )

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self._network.load_state_dict(part("network."))
        self._objective.load_state_dict(part("objective."))
        self._average.load(part("average."))
        for i, parameter in enumerate(self._parameters):
            # In the parameter's own layout: another one rounds differently, and the result would not be the same.
            self._optimizer.state[parameter].update({
                name: torch.empty_like(parameter, requires_grad=False).copy_(value) if value.ndim else value
                for name, value in part(f"optimizer.{i}.").items()
            })  # fmt: skip
        self._best = {f"best.{k}": v for k, v in part("best.").items()}
        self.course = course
