"""Blocks and networks of images, each as small as it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(
    n: int, m: int, kernel: int = 3, stride: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU, **options: Any
):
    own = nn.Conv2d(n, m, kernel, stride, kernel // 2, bias=False, **options)
    return nn.Sequential(own, nn.BatchNorm2d(m), *([act()] if act else []))


class Residual(nn.Module):
    """ResNet's basic block: an identity shortcut, or a projection where the shape changes."""

    def __init__(self, n: int, m: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(n, m, 3, stride), conv(m, m, act=None))
        self.short = conv(n, m, 1, stride, act=None) if n != m else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x), inplace=True)


class PreActivated(nn.Module):
    """WideResNet's block: normalised and activated first."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, m, 3, padding=1, bias=False)
        self.bn2, self.drop, self.conv2 = nn.BatchNorm2d(m), nn.Dropout(0.3), nn.Conv2d(m, m, 3, padding=1, bias=False)
        self.short = nn.Conv2d(n, m, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        return self.conv2(self.drop(F.relu(self.bn2(self.conv1(h))))) + self.short(h)


class Dense(nn.Module):
    """DenseNet's layer: what it makes is put beside what it read."""

    def __init__(self, n: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n), nn.Conv2d(n, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Inverted(nn.Module):
    """MobileNetV2's block, and EfficientNet's with squeeze and excitation."""

    def __init__(self, n: int, expand: int, act: Callable[[], nn.Module] = nn.ReLU6, squeeze: int = 0) -> None:
        super().__init__()
        self.expand, self.depthwise = conv(n, expand, 1, act=act), conv(expand, expand, 3, act=act, groups=expand)
        self.project = conv(expand, n, 1, act=None)
        self.gate = nn.Identity()
        if squeeze:
            parts = (nn.Conv2d(expand, squeeze, 1), nn.SiLU(), nn.Conv2d(squeeze, expand, 1), nn.Sigmoid())
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *parts)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(self.expand(x))
        return x + self.project(h * self.gate(h) if self.squeeze else h)


class ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(n, n, 7, padding=3, groups=n), nn.LayerNorm(n)
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.scale = nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)


def pooled(*body: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


class UNet(nn.Module):
    """Down and up again with GroupNorm, transposed convolutions and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.lower = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.GroupNorm(3, 6), nn.SiLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.last = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(torch.cat([first, self.up(self.lower(first))], 1))
