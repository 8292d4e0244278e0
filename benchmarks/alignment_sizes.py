"""Seconds and memory of matching by weights against the number of parameters.

    python benchmarks/alignment_sizes.py --cpu [NETWORK ...]

VGG-11 for images 32x32, perceptrons 784-width x3-10, and GPT-2 of Hugging Face (needs ``isthmus[hf]``), with random
weights in float32; b is a second draw. Each in a process of its own. "function": f(b) and f(target) in float64 on 4
examples, which ``align`` always compares.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from alignment_planted import Logits, orders
from common import CPU, clock, perceptron, start
from torch import Tensor, nn

import isthmus as im
from isthmus.params import equal


def vgg11() -> nn.Sequential:
    """Eight convolutions and three linear layers, 9.75 M parameters."""
    parts: list[nn.Module] = []
    n = 3
    for m in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        parts += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU()] if m else [nn.MaxPool2d(2)]
        n = m or n
    last = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*parts, nn.Flatten(), *last)


def gpt2(layers: int) -> nn.Module:
    """768 wide; with 12 layers the small GPT-2."""
    import transformers

    return Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers)))


def pictures() -> Tensor:
    """Four of them."""
    return torch.randn(4, 3, 32, 32)


def digits() -> Tensor:
    """Four of them."""
    return torch.randn(4, 784)


def words() -> Tensor:
    """Four sentences of 16."""
    return torch.randint(0, 50_257, (4, 16))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "vgg-11": (vgg11, pictures),
    "perceptron-512": (lambda: perceptron(3, 512), digits),
    "perceptron-2048": (lambda: perceptron(3, 2048), digits),
    "gpt2-2": (lambda: gpt2(2), words),
    "gpt2-12": (lambda: gpt2(12), words),
}


def one(name: str) -> None:
    """A network against another draw, and against itself in another order."""
    torch.set_num_threads(1)
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    b, module = make().state_dict(), make().eval()
    a = dict(module.state_dict())
    size = sum(p.numel() for p in module.parameters())
    begin = clock()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (inputs(), torch.zeros(4)))
    structure = objective.structure
    objective.program  # noqa: B018 - traced before the clock starts again
    derived, begin, before = clock() - begin, clock(), peak()
    found = im.align(objective, a, b, im.WeightMatching())
    seconds = clock() - begin
    (run,) = found.runs
    print(f"  {name:16} {size / 1e6:6.2f} M, {len(structure.groups)} groups: structure {derived:.1f} s, forward "
          f"{seconds:.1f} s ({run.assignments} assignments), function {found.function_error:.0e}; memory {before:.1f} "
          f"GB, then {peak():.1f} GB", flush=True)  # fmt: skip
    shuffled = structure.permute(a, orders(structure, torch.Generator().manual_seed(0)))
    begin = clock()
    back = im.align(objective, a, shuffled, im.WeightMatching())
    same = "every entry equal" if equal(back.target, a) else "another order"
    print(f"  {'':16} against itself: {same}, {clock() - begin:.1f} s", flush=True)


def peak() -> float:
    """The largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    chosen = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--one" in sys.argv:
        return one(chosen[0])
    start("What does matching by weights cost?")
    for name in chosen or NETWORKS:
        subprocess.run([sys.executable, __file__, name, "--one", *(["--cpu"] if CPU else [])], check=True)


if __name__ == "__main__":
    main()
