"""The loop: epochs of batches, an average of the weights, a figure on held-out pictures, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from mg_milvus.encoder.device import has_bfloat16
from mg_milvus.errors import TrainingError
from mg_milvus.training.augmentation import mixed
from mg_milvus.training.average import MovingAverage
from mg_milvus.training.checkpoint import Course, checkpoint_beside, load_checkpoint, save_checkpoint, write
from mg_milvus.training.data import Batches
from mg_milvus.training.export import encoder_of, features_of
from mg_milvus.training.judging import held_out_figures
from mg_milvus.training.objective import Objective
from mg_milvus.training.optimisation import out_of_memory, parameter_groups, rate_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mg_milvus.encoder.torch_encoder import TorchEncoder
    from mg_milvus.training.configuration import TrainingConfiguration
    from mg_milvus.training.data import Batch, PictureCache
    from mg_milvus.training.network import HashingNetwork

STATISTICS_SAMPLE = 5_000
"""Training pictures whose features give the statistics in the encoder file."""
FEW_MORE = 300
"""Training pictures that stand in for them after each epoch, and among which those held out are searched."""
EDITED_SAMPLE = 500
"""Those of them that are also looked at as edited copies."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from.

    Attributes:
        cache: all pictures.
        labels: level -> (n, labels) bool; empty without labels.
        train: (m,) rows that are trained on.
        held_out: rows that judge each epoch, and are never trained on.
    """

    cache: PictureCache
    labels: Mapping[str, NDArray[np.bool_]]
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepReport:
    """Told after every step: the epoch, from 1, of how many; pictures done of how many; means of the losses so far."""

    epoch: int
    epochs: int
    done: int
    total: int
    losses: Mapping[str, float]


class Trainer:
    """One training. ``run`` does all of it, or goes on from a checkpoint."""

    def __init__(
        self,
        configuration: TrainingConfiguration,
        material: Material,
        network: HashingNetwork,
        base: Mapping[str, torch.Tensor],
        *,
        out: Path,
        device: torch.device,
        workers: int,
    ) -> None:
        self._configuration, self._material, self._base = configuration, material, base
        self._out, self._device, self._workers = out, device, workers
        self.checkpoint = checkpoint_beside(out)
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._objective = Objective(configuration, {k: v.shape[1] for k, v in material.labels.items()}).to(device)
        self._frozen = self._freeze()
        self._average = MovingAverage(self._network, configuration.optimisation.average)
        self._parameters = [p for m in (self._network, self._objective) for p in m.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            parameter_groups(self._parameters, configuration),
            lr=configuration.optimisation.rate,
            momentum=configuration.optimisation.momentum,
            nesterov=True,
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
    ) -> TorchEncoder:
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
            encoder, figures = self._judge()
            self.course.epoch += 1
            record = {"epoch": self.course.epoch, **losses, **figures, "seconds": time.perf_counter() - started}
            self.course.history.append(record)
            # Of epochs that are as good the last one: it has learned longest.
            if figures["held_out"] >= self.course.best:
                self.course.best, self.course.best_epoch = figures["held_out"], self.course.epoch
                write(self._out, encoder.to_bytes())
            self._save()
            on_epoch(record)
        return self._finish()

    def _epoch(self, epoch: int, on_step: Callable[[StepReport], None]) -> dict[str, float]:
        configuration = self._configuration
        batches = Batches(self._material.cache, self._material.train, configuration, epoch, self._objective.views)
        loader = DataLoader(
            batches, batch_size=None, shuffle=False, num_workers=self._workers,
            prefetch_factor=2 if self._workers else None,
        )  # fmt: skip
        self._network.train()
        for module in self._frozen:
            module.eval()
        sums: dict[str, float] = {}
        for step, batch in enumerate(loader, start=1):
            done = epoch * len(batches) + step - 1
            progress = done / (configuration.epochs * len(batches))
            self._objective.step(progress)
            for group in self._optimizer.param_groups:
                group["lr"] = rate_at(progress, configuration)
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

    def _step(self, batch: Batch, seed: int) -> dict[str, float]:
        """One step of the optimiser; a batch that does not fit into memory is divided, and stays divided."""
        while True:
            try:
                self._optimizer.zero_grad(set_to_none=True)
                losses = self._gradients(batch, seed)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.course.pieces >= len(batch.rows) // 2:
                    if out_of_memory(error):
                        raise TrainingError(
                            "even two pictures at a time do not fit into memory; lower the sides of the phases"
                        ) from error
                    raise
                self.course.pieces *= 2
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        nn.utils.clip_grad_norm_(self._parameters, self._configuration.optimisation.clip)
        self._optimizer.step()
        return losses

    def _gradients(self, batch: Batch, seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        random = np.random.default_rng([self._configuration.seed, seed])
        for part in np.array_split(np.arange(len(batch.rows)), self.course.pieces):
            rows = batch.rows[part].to(self._device)
            x = torch.cat([view[part] for view in batch.views]).to(self._device, memory_format=torch.channels_last)
            labels = {level: values[rows].float().repeat(len(batch.views), 1) for level, values in self._labels.items()}
            if random.random() < self._configuration.augmentation.mixup:
                x, labels = mixed(x, labels, random)
            precision = (
                torch.autocast(self._device.type, torch.bfloat16) if has_bfloat16(self._device) else nullcontext()
            )
            with precision:
                codes, scores = self._network(x)
            share = len(part) / len(batch.rows)
            losses = {name: share * value for name, value in self._objective(codes, scores, labels).items()}
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                found[name] = found.get(name, 0.0) + float(value.detach())
        return found

    def _judge(self) -> tuple[TorchEncoder, dict[str, float]]:
        """The encoder of the averaged weights, and its figures on the held-out pictures."""
        held_out = self._material.held_out
        rows = np.concatenate([held_out, self._some(FEW_MORE)])
        pictures = self._pictures(rows)
        encoder = encoder_of(self._configuration, self._average.weights, self._base, pictures, str(self._device))
        codes = encoder.codes(features_of(encoder, pictures))
        labels = {level: values[rows] for level, values in self._material.labels.items()}
        return encoder, held_out_figures(codes, labels, len(held_out))

    def _some(self, count: int) -> NDArray[np.int64]:
        """Training pictures drawn at random, always the same."""
        return np.random.default_rng(self._configuration.seed).permutation(self._material.train)[:count]

    def _pictures(self, rows: NDArray[np.int64]) -> list[Image.Image]:
        return [Image.fromarray(self._material.cache[int(row)]) for row in rows]

    def _finished(self) -> bool:
        return self.course.epoch - self.course.best_epoch >= self._configuration.patience

    def _finish(self) -> TorchEncoder:
        """The best encoder once more, with the statistics of many training pictures."""
        weights = {name.removeprefix("best."): value for name, value in self._best.items()}
        pictures = self._pictures(self._some(STATISTICS_SAMPLE))
        encoder = encoder_of(
            self._configuration, weights, self._base, pictures, str(self._device), edited=EDITED_SAMPLE
        )
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
            tensors[f"momentum.{i}"] = self._optimizer.state[parameter]["momentum_buffer"]
        if self.course.best_epoch == self.course.epoch:
            self._best = {f"best.{k}": v.detach().clone() for k, v in self._average.weights.items()}
        save_checkpoint(self.checkpoint, tensors | self._best, self.course)

    def _load(self, setup: dict[str, object]) -> None:
        tensors, course = load_checkpoint(self.checkpoint)
        different = [name for name in setup if course.setup.get(name) != setup[name]]
        if different:
            raise TrainingError(
                f"the checkpoint {self.checkpoint} was made with another {' and '.join(different)}; give the same "
                "pictures and configuration, or start without --resume"
            )

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self._network.load_state_dict(part("network."))
        self._objective.load_state_dict(part("objective."))
        self._average.load(part("average."))
        for i, parameter in enumerate(self._parameters):
            # In the parameter's own layout: another one rounds differently, and the result would not be the same.
            self._optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(
                parameter, requires_grad=False
            ).copy_(tensors[f"momentum.{i}"])
        self._best = {f"best.{k}": v for k, v in part("best.").items()}
        self.course = course
