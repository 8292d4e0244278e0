"""The networks of the cases: perceptrons, convolutional networks, weights by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, *x: Tensor) -> Any:
        return self.f(*x)


def between(*middle: nn.Module, width: int = 6) -> nn.Sequential:
    """A perceptron with something between its two layers."""
    return nn.Sequential(nn.Linear(4, width), *middle, nn.Linear(width, 3))


def between_convs(*middle: nn.Module, read: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.Conv2d(read, 2, 1))


class BasicBlock(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 6, 2))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets: every second pixel, new channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.conv(x) + short).mean((2, 3)))


class Branches(nn.Module):
    """Two branches side by side, then one half of each read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 5)
        self.join = nn.Linear(8, 6)
        self.first, self.rest = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(torch.cat([self.left(x).relu(), torch.tanh(self.right(x))], dim=1))
        first, rest = x.split([2, 4], dim=1)
        return self.first(first) * 2 + self.rest(rest)


class Gated(nn.Module):
    """SwiGLU with a per-unit gain, and RMSNorm in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(m, n, bias=False) for m, n in ((4, 6), (4, 6), (6, 5)))
        self.gain = nn.Parameter(torch.rand(6))
        self.norm, self.head = nn.RMSNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.down(F.silu(self.gate(x)) * self.up(x) * self.gain)))


class LowRank(nn.Module):
    """A weight with a low-rank update, W + B A: the rank is a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.B, self.A = (nn.Parameter(torch.randn(s)) for s in ((6, 4), (6, 2), (2, 4)))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.linear(x, self.W + self.B @ self.A)))


class Raw(nn.Module):
    """Weights by hand: x @ W, addmm, einsum, an explicit transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.U, self.V, self.W, self.b = (nn.Parameter(torch.randn(s)) for s in ((4, 6), (6, 5), (7, 5), (5,)))
        self.X = nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.b, (x @ self.U).sigmoid(), self.V)
        return torch.einsum("bi,ij->bj", F.softplus(x.matmul(self.W.t())), self.X)


class Reshaped(nn.Module):
    """Channels taken through views and transposes, and read in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 6)
        self.mix, self.out = nn.Linear(3, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1).reshape(x.size(0), -1)
        x = self.fc(x).view(-1, 2, 3)
        return self.out(self.mix(x).relu().transpose(1, 2).flatten(1))


class Shared(nn.Module):
    """One layer applied twice: what it makes is what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.loop, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.loop(self.loop(self.inp(x).relu()).relu()).relu())


class Skips(nn.Module):
    """DenseNet and U-Net: everything before is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.up = nn.BatchNorm2d(10), nn.ConvTranspose2d(10, 4, 2, 2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        both = torch.cat([F.max_pool2d(a, 2), F.max_pool2d(self.b(a).relu(), 2)], 1)
        return self.out(torch.cat([a, self.up(self.norm(both))], 1))


class Squeezed(nn.Module):
    """Squeeze and excitation: each channel times a function of the channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        self.down, self.up = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.out(x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None])


class Standardised(nn.Module):
    """Each row of a weight is standardised, so that no column can be removed alone; images padded and cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(torch.max(self.a(x), -self.a(x)), (1, 1, 2, 0), mode="reflect")
        w = self.b.weight - self.b.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.b.bias)
        return self.c(F.pad(x, (-1, 0, -1, 1)))


class Several(nn.Module):
    """Two inputs, one by keyword in other uses; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.maximum(self.a(x), self.b(y))
        return self.c(h), self.c(-h)


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(20, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 3)),
    )


class Bilinear(nn.Module):
    """A form of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.both, self.out = (
            nn.Linear(4, 6),
            nn.Linear(4, 5),
            nn.Bilinear(6, 5, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.both(self.one(x).relu(), self.two(x).tanh()).relu())


class Compared(nn.Module):
    """A layer's units against rows of weights, by a distance or an angle."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.one, self.rows, self.layer, self.out = (
            nn.Linear(4, 6),
            nn.Parameter(torch.rand(4, 6)),
            layer,
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.one(x).tanh().unsqueeze(1), self.rows))


class Scaled(nn.Module):
    """Units times a vector that a vector and a matrix make."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.vector, self.matrix = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inp(x).relu() * (self.vector @ self.matrix))
