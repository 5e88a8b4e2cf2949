"""The project's own networks: ``mgnet``, ResNet-18's shape at a quarter of its size, and ``smallnet`` for thumbnails.

``mgnet``: two basic blocks a stage (He et al. 2015), a stem of one 3x3 convolution of stride 2 without max pooling, and
average-pool shortcuts (ResNet-D, He et al. 2018), so that small pictures keep their detail.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 40
"""Channels of the first stage; each later stage has twice as many as the one before."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, inputs, h, w) -> (n, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.conv2 = _conv(outputs, outputs)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if inputs != outputs:
            shortcut += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class MgNet(nn.Module):
    """Four stages at 1/2, 1/4, 1/8 and 1/16 of the input: (n, 3, h, w) -> {stage: (n, c, h', w')}."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, width, 2), nn.ReLU())
        self.stage1 = self._stage(width, width, 1)
        self.stage2 = self._stage(width, 2 * width, 2)
        self.stage3 = self._stage(2 * width, 4 * width, 2)
        self.stage4 = self._stage(4 * width, 8 * width, 2)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {"stage1": self.stage1(self.stem(x))}
        maps["stage2"] = self.stage2(maps["stage1"])
        maps["stage3"] = self.stage3(maps["stage2"])
        maps["stage4"] = self.stage4(maps["stage3"])
        return maps


class SmallNet(nn.Module):
    """Three stages at 1/2, 1/4 and 1/8 of the input, for 32 pixels: (n, 3, h, w) -> {stage: (n, c, h', w')}.

    Seven 3x3 convolutions, the first of each stage followed by max pooling, begun as identities as far as channels
    allow: the shape that Jordan found to learn CIFAR-10 fastest ("94% on CIFAR-10 in 3.29
    Seconds on a Single GPU", 2024).
    """

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), stem: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, stem), nn.GELU())
        self.stage1 = self._stage(stem, widths[0])
        self.stage2 = self._stage(widths[0], widths[1])
        self.stage3 = self._stage(widths[1], widths[2])

    @staticmethod
    def _stage(inputs: int, outputs: int) -> nn.Sequential:
        first, second = _conv(inputs, outputs), _conv(outputs, outputs)
        for convolution, channels in ((first[0], inputs), (second[0], outputs)):
            nn.init.dirac_(cast("torch.Tensor", convolution.weight).data[:channels])
        return nn.Sequential(first[0], nn.MaxPool2d(2), first[1], nn.GELU(), *second, nn.GELU())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {"stage1": self.stage1(self.stem(x))}
        maps["stage2"] = self.stage2(maps["stage1"])
        maps["stage3"] = self.stage3(maps["stage2"])
        return maps
