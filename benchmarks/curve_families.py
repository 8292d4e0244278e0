"""Trained curves through other families of networks: how low, what was proved, what it cost, and on held-out data.

``python benchmarks/curve_families.py [NAME ...] [--cpu]``. Pairs from two seeds, trained on the digits that come with
the library (1,200 of 1,797; the rest is held out): a perceptron, a ResNet-8 with BatchNorm, a vision transformer, an
LSTM over rows, a U-Net with GroupNorm that takes noise away, and a network on the graph of pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from common import clock, start
from torch import Tensor, nn
from torch.nn import functional as F

import isthmus as im


class Block(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(k, m, 3, padding=1, bias=False) for k in (n, m))
        self.norm_one, self.norm_two = nn.BatchNorm2d(m), nn.BatchNorm2d(m)
        self.short = nn.Identity() if n == m else nn.Conv2d(n, m, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(F.relu(self.norm_one(self.one(x)))))
        return F.relu(y + self.short(x))


class ResNet8(nn.Sequential):
    def __init__(self, width: int = 16, shape: tuple[int, int, int] = (1, 8, 8), deep: int = 1) -> None:
        w = width
        super().__init__(
            nn.Unflatten(1, shape), nn.Conv2d(shape[0], w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
            *stage(w, w, deep), nn.AvgPool2d(2), *stage(w, 2 * w, deep), nn.AvgPool2d(2), *stage(2 * w, 4 * w, deep),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10),
        )  # fmt: skip


def stage(n: int, m: int, deep: int) -> list[nn.Module]:
    return [Block(n, m), *(Block(m, m) for _ in range(deep - 1))]


def resnet_20() -> nn.Module:
    return ResNet8(8, deep=3)


class Transformer(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(1, (4, 2, 4, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.head(self.norm(self.layers(self.embed(patches) + self.places)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unflatten(1, (8, 8)))[0][:, -1])


class UNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.down = nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.GroupNorm(4, w), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.GroupNorm(4, 2 * w), nn.SiLU())
        self.up = nn.ConvTranspose2d(2 * w, w, 2, 2)
        self.out = nn.Sequential(nn.Conv2d(2 * w, w, 3, padding=1), nn.GroupNorm(4, w), nn.SiLU(), nn.Conv2d(w, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        top = self.down(x.unflatten(1, (1, 8, 8)))
        return self.out(torch.cat([top, self.up(self.deep(top))], 1)).flatten(1)


class OnGraph(nn.Module):
    """Messages along the edges of the grid of pixels; every pixel also has its place as a feature."""

    edges: Tensor
    places: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        line = torch.eye(8).roll(1, 0).tril() + torch.eye(8).roll(-1, 0).triu() + torch.eye(8)
        edges = torch.kron(line, torch.eye(8)) + torch.kron(torch.eye(8), line) - torch.eye(64)
        self.register_buffer("edges", edges / edges.sum(1, keepdim=True))
        self.register_buffer("places", torch.cartesian_prod(torch.arange(8), torch.arange(8)) / 8)
        self.first = nn.Linear(3, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(torch.cat([x[..., None], self.places.expand(len(x), -1, -1)], -1)))
        for layer in self.layers:
            h = h + F.relu(layer(torch.cat([h, self.edges @ h], -1)))
        return self.head(h.mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 10))


FAMILIES = {
    "perceptron": perceptron, "ResNet-8, BatchNorm": ResNet8, "ResNet-20, BatchNorm": resnet_20,
    "transformer": Transformer, "LSTM": Recurrent, "U-Net, GroupNorm": UNet, "graph network": OnGraph,
}  # fmt: skip
EPOCHS = {"perceptron": 40, "ResNet-8, BatchNorm": 10, "ResNet-20, BatchNorm": 10, "graph network": 60, "LSTM": 60}


def task(name: str) -> tuple[Tensor, Tensor, str]:
    """Inputs, targets and loss of all 1,797 examples."""
    held = im.data.load("digits")
    assert held.x_test is not None
    assert held.y_test is not None
    x = torch.cat([held.x_train, held.x_test]).flatten(1).float()
    y = torch.cat([held.y_train, held.y_test])
    if not name.startswith("U-Net"):
        return x, y, "cross_entropy"
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x + 0.5 * x.std() * noise, x, "mse"


def trained(make: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    module, steps = make(), epochs * (len(x) // 64)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = F.cross_entropy if y.dtype == torch.int64 else F.mse_loss
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64)[: len(x) // 64]:
            optimizer.zero_grad()
            loss(module(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def bound_of(objective: im.Objective, path: im.Path) -> str:
    """The proved bound over what was measured on as many examples, or what has no rule."""
    few = objective.subset(40)
    found = im.certify(few, path, gap=0.05)
    if found.proved:
        return f"proved {found.bound:.4g} (measured {im.profile(few, path, bn='interpolate').max:.4g}, 40 examples)"
    return f"not proved: {next((s.why for s in found.segments if s.why), found)}"


def main() -> None:
    start("How low are curves through other families of networks?")
    asked = [v for v in sys.argv[1:] if not v.startswith("-")]
    for name, make in FAMILIES.items():
        if asked and not any(v.lower() in name.lower() for v in asked):
            continue
        x, y, loss = task(name)
        train, test = (im.Objective(make().eval(), loss, (x[s], y[s])) for s in (slice(0, 1200), slice(1200, None)))
        a, b = (trained(make, x[:1200], y[:1200], seed, EPOCHS.get(name, 30)) for seed in (1, 2))
        line = im.profile(train, im.connect(train, a, b), test=test)
        for epochs in (20, 60):
            begin = clock()
            method = im.Bezier(recipe=replace(im.Bezier().recipe, epochs=epochs))
            found = im.connect(train, a, b, method)
            seconds = clock() - begin
            curve = im.profile(train, found, test=test)
            assert line.test is not None
            assert curve.test is not None
            ends = max(found.info.ends)
            print(
                f"  {name}, {epochs} epochs: ends {ends:.4g}, line {line.max:.4g}, curve {curve.max:.4g}"
                f" in {seconds:.1f} s; held out: ends {max(curve.test.loss[0], curve.test.loss[-1]):.4g}, line"
                f" {line.test.max:.4g}, curve {curve.test.max:.4g}, error {curve.test.barriers['error'].max:.3g}",
                flush=True,
            )
            if found.outcome.ok:
                break
        begin = clock()
        print(f"    {bound_of(train, found.path)}, {clock() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
