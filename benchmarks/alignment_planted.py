"""Is an order of the units that was planted found again, in every kind of network?

    python benchmarks/alignment_planted.py --cpu [--hugging-face]

Ten times for each network: random weights a; a copy with noise of .05 standard deviations of each tensor on its
entries, whose units are renumbered at random; is that order found, unit for unit? Random biases and gains too, so that
every unit is told apart; all in float64. ``--hugging-face`` (needs ``isthmus[hf]``): six networks 64 wide, aligned with
themselves after a random order, and after random rotations of what may be rotated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from common import clock, perceptron, start
from rotations import Images, Text
from torch import Tensor, nn

import isthmus as im
from isthmus.alignment.rotations.turning import drawn as random_turn
from isthmus.params import equal

TRIALS, NOISE, EXAMPLES = 10, 0.05, 64
MATCHINGS = {
    "forward": im.WeightMatching(),
    "barycentre": im.WeightMatching("barycentre"),
    "activations": im.ActivationMatching(),
}


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        stride = 1 if n == m else 2
        self.body = nn.Sequential(*normed(n, m, stride), nn.ReLU(), *normed(m, m))
        self.short = nn.Identity() if n == m else nn.Sequential(*normed(n, m, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, channels, height, width]."""
        return F.relu(self.body(x) + self.short(x))


class Depthwise(nn.Module):
    """ConvNeXt's block: a depthwise convolution, a norm, and a perceptron beside the identity."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(n, n, 7, padding=3, groups=n), nn.LayerNorm(n)
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, channels, height, width]."""
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(h))).permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """Two layers of an LSTM over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(50, 32), nn.LSTM(32, 64, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of [n, places]."""
        return self.head(self.lstm(self.words(x))[0][:, -1])


class Logits(nn.Module):
    """A network of Hugging Face as a module of tensors."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Logits of words or images."""
        return self.inner(x).logits


def normed(n: int, m: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """A convolution behind which stands BatchNorm."""
    return [nn.Conv2d(n, m, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(m)]


def resnet(blocks: int = 3, width: int = 16) -> nn.Sequential:
    """ResNet-20 (3 blocks a stage), ResNet-8 (1)."""
    sizes = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
    body = [Residual(n, m) for n, m in pairwise(sizes)]
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))
    return nn.Sequential(*normed(3, width), nn.ReLU(), *body, *last)


def vgg(*, bn: bool) -> nn.Sequential:
    """Convolutions 32-64-128-128, each pooled, and two linear layers; images 32x32."""
    parts: list[nn.Module] = []
    for n, m in ((3, 32), (32, 64), (64, 128), (128, 128)):
        parts += normed(n, m) if bn else [nn.Conv2d(n, m, 3, padding=1)]
        parts += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))


def convnext() -> nn.Sequential:
    """Patches of 4x4, two blocks 48 wide."""
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    return nn.Sequential(nn.Conv2d(3, 48, 4, 4), Depthwise(48), Depthwise(48), *last)


def hugging_face(name: str) -> nn.Module:
    """A network 64 wide, with random weights."""
    import transformers
    from hugging_face import networks

    kind, options = networks(64)[name]
    module = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options))
    if name == "Mixtral":
        module.set_experts_implementation("batched_mm")  # the usual one does not run in float64
    return Logits(module)


def pictures(*shape: int) -> Tensor:
    """Gaussian noise."""
    return torch.randn(EXAMPLES, *shape, dtype=torch.float64)


def words(places: int, high: int = 50) -> Tensor:
    """Random words."""
    return torch.randint(1, high, (EXAMPLES, places))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "perceptron 784-512x3-10": (lambda: perceptron(3, 512), lambda: pictures(784)),
    "ResNet-20": (resnet, lambda: pictures(3, 16, 16)),
    "VGG with BatchNorm": (lambda: vgg(bn=True), lambda: pictures(3, 32, 32)),
    "ViT, LayerNorm": (Images, lambda: pictures(16, 49)),
    "GPT, separate q, k, v": (lambda: Text(50), lambda: words(64)),
    "GPT-2 (Hugging Face), packed q, k, v": (lambda: hugging_face("GPT2"), lambda: words(12)),
    "Llama (Hugging Face), grouped queries": (lambda: hugging_face("Llama"), lambda: words(12)),
    "LSTM, 2 layers of 64": (Recurrent, lambda: words(12)),
    "ConvNeXt, depthwise": (convnext, lambda: pictures(3, 16, 16)),
}


SIX = ("GPT2", "Llama", "Bert", "ViT", "ResNet", "Mixtral")


def problem(make: Callable[[], nn.Module], x: Callable[[], Tensor]) -> tuple[im.Objective, nn.Module]:
    """The network in float64, on random inputs."""
    torch.manual_seed(0)
    module, inputs = make().double().eval(), x()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (inputs, torch.zeros(EXAMPLES)))
    return objective, module


def drawn(objective: im.Objective, module: nn.Module, g: torch.Generator) -> im.Params:
    """Weights of the size that the module begins with, and vectors (biases, gains) .3 around theirs."""
    out = dict(module.state_dict())
    for name, v in out.items():
        if noisy(name, v):
            noise = torch.randn(v.shape, generator=g, dtype=torch.float64)
            out[name] = v + 0.3 * noise if v.dim() == 1 else float(v.std()) * noise
    return tied(objective, out)


def noisy(name: str, v: Tensor) -> bool:
    """Whether a tensor holds several weights."""
    return v.is_floating_point() and v.numel() > 1 and "running" not in name


def tied(objective: im.Objective, params: Mapping[str, Tensor]) -> im.Params:
    """The parameters with those under several names being one."""
    return {**params, **{alias: params[name] for alias, name in objective.program.tied.items()}}


def planted(name: str) -> None:
    """Ten trials of a network, and the seconds that each matching takes for all of them."""
    begin = clock()
    objective, module = problem(*NETWORKS[name])
    structure, g = objective.structure, torch.Generator().manual_seed(0)
    derived, found = clock() - begin, dict.fromkeys(MATCHINGS, 0)
    seconds, error = dict.fromkeys(MATCHINGS, 0.0), 0.0
    for _ in range(TRIALS):
        a = drawn(objective, module, g)
        near = {k: v + NOISE * v.std() * torch.randn(v.shape, generator=g).double() if noisy(k, v) else v
                for k, v in a.items()}  # fmt: skip
        near = tied(objective, near)
        b = structure.permute(near, orders(structure, g))
        for way, matching in MATCHINGS.items():
            begin = clock()
            alignment = im.align(objective, a, b, matching)
            seconds[way] += clock() - begin
            found[way] += equal(alignment.target, near)
            error = max(error, alignment.function_error)
    told = ", ".join(f"{way} {found[way]}/{TRIALS} in {seconds[way]:.1f} s" for way in MATCHINGS)
    units = sum(group.size for group in structure.groups)
    print(f"  {name:38} {len(structure.groups):2} groups, {units} units, {derived:.1f} s; {told}; function {error:.0e}",
          flush=True)  # fmt: skip


def orders(structure: Any, g: torch.Generator) -> dict[str, Tensor]:
    """A random order of each group."""
    return {group.name: torch.randperm(group.size, generator=g) for group in structure.groups}


def itself(name: str) -> None:
    """A network of Hugging Face against itself in a random order, and under random rotations with other gains."""
    words_or_pictures = (lambda: pictures(3, 8, 8)) if name in ("ViT", "ResNet") else lambda: words(12)
    objective, module = problem(lambda: hugging_face(name), words_or_pictures)
    g = torch.Generator().manual_seed(0)
    a, other = (drawn(objective, module, g) for _ in range(2))
    b = objective.structure.permute(a, orders(objective.structure, g))
    size = sum(v.numel() for v in a.values())
    print(f"  {name}: {size:,} parameters, {len(objective.structure.groups)} groups")
    for way, matching in MATCHINGS.items():
        row(f"permuted, {way}", objective, (a, b), matching)
    frame = im.align(objective, a, a, im.RotationMatching()).frame
    if frame is None or not frame.turns:
        print("    nothing to rotate")
        return
    turned = {t.group: random_turn(t, g) for t in frame.turns}
    kept = {k: v for k, v in orders(objective.structure, g).items() if k not in turned}
    b = frame.apply(a, kept, turned, frame.norms(other))
    row(f"rotated ({len(turned)} groups), rotations", objective, (a, b), im.RotationMatching())


def row(what: str, objective: im.Objective, ends: tuple[im.Params, im.Params], matching: im.Matching) -> None:
    """How far from a the network is that was a, before and after, relative to the size of a."""
    begin = clock()
    found = im.align(objective, *ends, matching)
    seconds = clock() - begin
    size = sum(float(v.double().square().sum()) for v in ends[0].values()) ** 0.5
    before, after = (d / size for d in found.distance)
    same = "every entry equal" if equal(found.target, ends[0]) else f"distance {before:.2f} -> {after:.0e}"
    print(f"    {what:36} {same}, function {found.function_error:.0e}, {seconds:.2f} s", flush=True)


def main() -> None:
    start("Are planted orders found?")
    chosen = [word for word in sys.argv[1:] if not word.startswith("--")]
    every, trial = (SIX, itself) if "--hugging-face" in sys.argv else (NETWORKS, planted)
    for name in every:
        if not chosen or name.split(",")[0].split()[0] in chosen:
            trial(name)


if __name__ == "__main__":
    main()
