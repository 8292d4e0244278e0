"""Certificates of the line between two networks tuned from one start, through five families of networks.

``python benchmarks/certify_families.py [NAME ...] [--gap 0.05] [--steps 40]``, on one thread. A GPT of two layers, a
network like Llama's with grouped queries, an LSTM, on sequences of Penn Treebank; a VGG with BatchNorm and a ResNet-8
on the digits that come with the library. Every start is trained, and tuned twice, for `steps` steps of Adam on batches
of two seeds. Printed: the largest loss of a profile of 61 points, with interpolated statistics; the proved bound; their
quotient; sub-intervals; the cost in profiles as it was counted, and as processor seconds over those of the profile.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time

import torch
import torch.nn.functional as F
from curve_families import ResNet8
from torch import Tensor, nn

import isthmus as im

WORDS, LENGTH, WIDTH, HEADS = 500, 16, 32, 4


class Gpt(nn.Module):
    """Two blocks of LayerNorm, causal attention and GELU, before each of which the stream is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layers = [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)]
        layers += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)]
        self.blocks = nn.ModuleList(nn.ModuleList(copy.deepcopy(layers)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places.weight[: x.shape[1]]
        for before, packed, out, between, up, down in self.blocks:  # type: ignore[misc]
            q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in packed(before(h)).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + out(mixed.transpose(1, 2).flatten(2))
            h = h + down(F.gelu(up(between(h))))
        return self.head(self.norm(h))


class Llama(nn.Module):
    """Two blocks of RMSNorm, rotations, four queries to a pair of keys and values, and SwiGLU."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        own = WIDTH // HEADS
        self.words = nn.Embedding(WORDS, WIDTH)
        layers = [nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)]
        sizes = [(WIDTH, WIDTH), (WIDTH, 4 * own), (WIDTH, WIDTH)]
        sizes += [(WIDTH, 2 * WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)]
        layers += [nn.Linear(n, m, bias=False) for n, m in sizes]
        self.blocks = nn.ModuleList(nn.ModuleList(copy.deepcopy(layers)) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(WIDTH, 1e-5), nn.Linear(WIDTH, WORDS, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 10_000 ** -(torch.arange(0, own, 2) / own)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turned(self, q: Tensor) -> Tensor:
        first, last = q.chunk(2, -1)
        return q * self.cos + torch.cat([-last, first], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        for before, between, query, pair, out, gate, up, down in self.blocks:  # type: ignore[misc]
            n = before(h)
            q = query(n).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in pair(n).chunk(2, -1))
            mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True, enable_gqa=True)
            h = h + out(mixed.transpose(1, 2).flatten(2))
            n = between(h)
            h = h + down(F.silu(gate(n)) * up(n))
        return self.head(self.norm(h))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(x))[0])


def vgg() -> nn.Module:
    """Six convolutions with BatchNorm."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    n = 1
    for i, m in enumerate((16, 16, 32, 32, 64, 64)):
        layers += [nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
        n = m
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Family:
    """A network, whether it reads words, its examples under proof, and the steps and rate of training and of tuning."""

    make: Callable[[], nn.Module]
    text: bool
    examples: int
    steps: int
    lr: float = 3e-3
    tuned: float = 1e-3


FAMILIES = {
    "GPT": Family(Gpt, True, 16, 400),
    "Llama": Family(Llama, True, 16, 400),
    "LSTM": Family(Lstm, True, 16, 400),
    "VGG-BN": Family(vgg, False, 40, 200),
    "ResNet-8": Family(lambda: ResNet8(8), False, 40, 200),
}


def data_of(family: Family) -> tuple[Tensor, Tensor]:
    held = im.data.load(f"ptb:V={WORDS},T={LENGTH}" if family.text else "digits")
    x = held.x_train[:4000] if family.text else held.x_train.flatten(1).float()
    return x, held.y_train[: len(x)]


def loss_of(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def trained(module: nn.Module, x: Tensor, y: Tensor, seed: int, steps: int, lr: float) -> nn.Module:
    """A copy after so many steps of Adam on 32 examples each."""
    torch.manual_seed(seed)
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for _ in range(steps):
        few = torch.randint(0, len(y), (32,))
        optimizer.zero_grad()
        loss_of(module(x[few]), y[few]).backward()
        optimizer.step()
    return module.eval()


def option(name: str, default: float) -> float:
    return float(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


def show(
    name: str,
    objective: im.Objective,
    path: im.Path,
    measured_by: im.Objective,
    gap: float,
    budget: float | None = None,
) -> None:
    """Print the certificate of a path beside its profile by the objective `measured_by`, in value and time."""
    begin = process_time()
    measured = im.profile(measured_by, path, bn="interpolate")
    profile = process_time() - begin
    begin = process_time()
    found = im.certify(objective, path, gap, budget=budget)
    took = (process_time() - begin) / profile
    top = max(measured.max, found.witness[1])
    print(
        f"{name}: ends {max(found.ends):.4g}, largest {top:.5g}, {'proved' if found.proved else 'NOT proved'} "
        f"{found.bound:.6g}, ratio {found.bound / top:.5g}, {found.model}, {found.evaluations} sub-intervals, "
        f"{found.cost:.1f} profiles counted, {took:.1f} timed; {list(found.sources.items())[:3]}",
        flush=True,
    )
    if not found.close:
        print(f"  {found.summary}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    gap, tuning = option("--gap", 0.05), int(option("--steps", 40))
    for name, family in FAMILIES.items():
        if (asked := [v for v in sys.argv[1:] if v in FAMILIES]) and name not in asked:
            continue
        x, y = data_of(family)
        torch.manual_seed(0)
        start = trained(family.make(), x, y, 0, family.steps, family.lr)
        a, b = (trained(start, x, y, seed, tuning, family.tuned) for seed in (1, 2))
        data, axis = (x[: family.examples], y[: family.examples]), -1 if family.text else None
        objective = im.Objective(start, "cross_entropy", data, class_axis=axis)
        path = im.connect(objective, a, b, im.Linear()).path
        show(name, objective, path, objective.cast(torch.float64), gap)


if __name__ == "__main__":
    main()
