"""Train the backbone of the encoder that ships: the small residual net, on a labelled tree of small pictures.

    python benchmarks/train_backbone.py TRAIN_FOLDER --val VAL_FOLDER --out backbone.safetensors

TRAIN_FOLDER holds group/class/picture. Both levels supervise: cross-entropy on the classes, and on the groups with a
smaller weight. Pictures grow from 32 to 64 pixels during training. A run that was stopped goes on from the last whole
epoch (OUT.checkpoint.safetensors). The result has half precision; ``mgm fit TRAIN_FOLDER --backbone mgnet --weights
OUT`` makes the encoder that ships of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from mg_milvus.encoder.network import MgNet

SIDE = 64
EPOCHS = ((4, 32), (6, 48), (8, 64))  # (epochs, input pixels)
BATCH = 256
PEAK_RATE = 0.3
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
GROUP_WEIGHT = 0.3
EMA_DECAY = 0.998
SEED = 1
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def read_tree(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 64, 64) uint8, classes (n,) and groups (n,), in the order of their paths."""
    files = sorted(folder.glob("*/*/*.webp"))
    classes = {name: i for i, name in enumerate(sorted({f.parts[-3] + "/" + f.parts[-2] for f in files}))}
    groups = {name: i for i, name in enumerate(sorted({f.parts[-3] for f in files}))}
    pictures = np.empty((len(files), SIDE, SIDE, 3), np.uint8)
    for i, file in enumerate(files):
        with Image.open(file) as picture:
            pictures[i] = np.asarray(picture.convert("RGB").resize((SIDE, SIDE)))
    labels = torch.tensor([classes[f.parts[-3] + "/" + f.parts[-2]] for f in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), labels, torch.tensor([groups[f.parts[-3]] for f in files])


def augment(pictures: torch.Tensor, side: int, random: torch.Generator) -> torch.Tensor:
    """Random resized crop, flip, slight turn, colour and grey: (n, 3, 64, 64) uint8 -> (n, 3, side, side) float."""
    n = len(pictures)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=random) * (high - low) + low

    def chance(p: float) -> torch.Tensor:
        return torch.rand(n, generator=random) < p

    x = pictures.float() / 255
    area, aspect = uniform(0.3, 1.0), torch.exp(uniform(-0.29, 0.29))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    angle = uniform(-0.2, 0.2) * chance(0.3)
    flip = torch.where(chance(0.5), -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = width * flip * angle.cos(), -width * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = height * flip * angle.sin(), height * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    saturation = torch.where(chance(0.1), torch.zeros(n), uniform(0.6, 1.4)).view(n, 1, 1, 1)
    x = grey + (x - grey) * saturation
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(0.6, 1.4).view(n, 1, 1, 1)
    x = (x * uniform(0.6, 1.4).view(n, 1, 1, 1)).clamp(0, 1)
    blurred = chance(0.1)
    if blurred.any():
        x[blurred] = F.avg_pool2d(x[blurred], 3, 1, 1, count_include_pad=False)
    return (x - MEAN) / STD


class Classifier(nn.Module):
    """The backbone with GeM pooling and one linear layer for both label levels."""

    def __init__(self, classes: int, groups: int) -> None:
        super().__init__()
        self.backbone = MgNet()
        self.linear = nn.Linear(self.backbone.stage4[1].conv2[1].num_features, classes + groups)
        self.sizes = [classes, groups]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)["stage4"].float().clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        classes, groups = self.linear(self.features(x)).split(self.sizes, 1)
        return classes, groups


def rate(progress: float) -> float:
    """Learning rate at a share of the training: linear warm-up over 8 %, cosine to 0."""
    warm = 0.08
    if progress < warm:
        return PEAK_RATE * progress / warm
    return PEAK_RATE * (1 + math.cos(math.pi * (progress - warm) / (1 - warm))) / 2


@torch.inference_mode()
def accuracy(model: Classifier, data: tuple[torch.Tensor, ...], side: int) -> float:
    model.eval()
    right = 0
    for start in range(0, len(data[0]), 500):
        x = (data[0][start : start + 500].float() / 255 - MEAN) / STD
        x = F.interpolate(x, side, mode="bilinear").to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            right += int((model(x)[0].argmax(1) == data[1][start : start + 500]).sum())
    model.train()
    return right / len(data[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = options.out.with_suffix(".checkpoint.safetensors")

    train, val = read_tree(options.train), read_tree(options.val)
    classes, groups = int(train[1].max()) + 1, int(train[2].max()) + 1
    torch.manual_seed(SEED)
    model = Classifier(classes, groups).to(memory_format=torch.channels_last)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    parameters = decayed + plain
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain}], lr=0.1, momentum=0.9, nesterov=True
    )
    sides = [side for epochs, side in EPOCHS for _ in range(epochs)]
    first = 0
    if checkpoint.exists():
        saved = load_file(checkpoint)
        first = int(saved["epoch"])
        model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        ema = {k[4:]: v for k, v in saved.items() if k.startswith("ema.")}
        for i, p in enumerate(parameters):
            optimizer.state[p]["momentum_buffer"] = saved[f"momentum.{i}"]
    steps = len(train[0]) // BATCH
    log = options.out.with_suffix(".log.jsonl").open("a")
    for epoch in range(first, len(sides)):
        random = torch.Generator().manual_seed(SEED * 1000 + epoch)
        order = torch.randperm(len(train[0]), generator=random)
        total, started = 0.0, time.time()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate((epoch + step / steps) / len(sides))
            rows = order[step * BATCH : (step + 1) * BATCH]
            x = augment(train[0][rows], sides[epoch], random).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                by_class, by_group = model(x)
            loss = F.cross_entropy(by_class.float(), train[1][rows], label_smoothing=SMOOTHING)
            loss = loss + GROUP_WEIGHT * F.cross_entropy(by_group.float(), train[2][rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            total += loss.item()
            decay = min(EMA_DECAY, (1 + epoch * steps + step) / (10 + epoch * steps + step))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    ema[name].lerp_(value, 1 - decay)
        averaged = Classifier(classes, groups).to(memory_format=torch.channels_last)
        averaged.load_state_dict(ema)
        record = {
            "epoch": epoch + 1, "of": len(sides), "side": sides[epoch], "loss": round(total / steps, 4),
            "val_accuracy": round(accuracy(averaged, val, SIDE), 4), "seconds": round(time.time() - started),
        }  # fmt: skip
        print(json.dumps(record), file=log, flush=True)
        state = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
        state |= {f"ema.{k}": v.contiguous() for k, v in ema.items()}
        state |= {f"momentum.{i}": optimizer.state[p]["momentum_buffer"].contiguous() for i, p in enumerate(parameters)}
        save_file(state | {"epoch": torch.tensor(epoch + 1)}, checkpoint.with_suffix(".part"))
        os.replace(checkpoint.with_suffix(".part"), checkpoint)
        backbone = {
            k.removeprefix("backbone."): v.half().contiguous() if v.is_floating_point() else v
            for k, v in ema.items()
            if k.startswith("backbone.")
        }
        save_file(backbone, options.out.with_suffix(".part"))
        os.replace(options.out.with_suffix(".part"), options.out)


if __name__ == "__main__":
    main()
