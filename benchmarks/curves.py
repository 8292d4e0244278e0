"""How low trained curves are and what they cost: 784-500x5-10, 10,000 images; published recipe, and ours, in one run.

``python benchmarks/curves.py [A.safetensors B.safetensors] [--epochs 20] [--cpu] [--bands] [--digits] [--only TEXT]``;
without files two networks are trained on MNIST, with files the data are the first 10,000 images of Fashion-MNIST, with
--digits the networks are 64-60x4-10. --bands adds AutoNEB. The largest loss is over 61 points, on all examples.
With --garipov FOLDER the published code, ``curves.py`` of dnn-mode-connectivity in that folder, is run beside them, and
with --autoneb FOLDER that of AutoNEB (``published_band.py``).
``curve_pareto.py`` draws what this prints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location

import torch
import torch.nn.functional as F
from common import clock, data, perceptron, start, trained
from published_band import published_band
from torch import Tensor, nn

import isthmus as im

CURVES = {
    "Bezier, focus 3, Adam": lambda epochs: im.Bezier(recipe=ours(epochs)),
    "Bezier, focus 1, Adam": lambda epochs: im.Bezier(focus=1, recipe=ours(epochs)),
    "Bezier, focus 1, SGD (the published recipe)": lambda epochs: im.Bezier(focus=1, recipe=published(epochs)),
    "PolyChain, focus 3, Adam": lambda epochs: im.PolyChain(recipe=ours(epochs)),
    "Aligned Bezier, focus 3, Adam": lambda epochs: im.Aligned(im.Bezier(recipe=ours(epochs))),
}
BANDS = {
    f"AutoNEB, {name}, {band.spacing} spacing, {band.insertion} gaps": replace(band, recipe=recipe)
    for name, recipe in (
        ("Adam", im.Recipe(lr=None, batch=512, precision="auto")),
        ("SGD", im.AutoNEB().recipe),
    )
    for band in (
        im.AutoNEB(spacing="equal"),
        im.AutoNEB(spacing="loss"),
        im.AutoNEB(spacing="loss", insertion="highest"),
    )
}
"""With equal spacing it makes no difference in which gaps pivots are put in, as long as there are so many."""


def ours(epochs: int) -> im.Recipe:
    """The default recipe, with so many epochs."""
    return replace(im.Bezier().recipe, epochs=epochs)


def argument(name: str, default: str = "") -> str:
    """What stands after an option."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def published(epochs: int) -> im.Recipe:
    return im.Recipe("sgd", lr=0.02, epochs=epochs, batch=128, momentum=0.9)


def pair(files: list[str]) -> tuple[im.Objective, nn.Module, im.Params | str, im.Params | str]:
    """The objective, its network, and two trained ones."""
    if "--digits" in sys.argv:
        held, module = im.data.load("digits"), perceptron(4, 60, 64)
        x, y = held.x_train.flatten(1).float(), held.y_train
        ends = [trained(module, x, y, seed, epochs=80) for seed in (1, 2)]
        return im.Objective(module, data=(x, y)), module, ends[0], ends[1]
    module = perceptron()
    if not files:
        x, y = data()
        ends = [trained(module, x, y, seed, epochs=6) for seed in (1, 2)]
        return im.Objective(module, data=(x, y)), module, ends[0], ends[1]
    held = im.data.load("fashion-mnist")
    x, y = held.x_train[:10_000].flatten(1).float(), held.y_train[:10_000]
    return im.Objective(module, data=(x, y)), module, files[0], files[1]


def plain_epoch(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of an epoch of training one network by the obvious loop, the best of two."""
    module = deepcopy(network)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    times = []
    for _ in range(2):
        begin = clock()
        for index in torch.randperm(len(y)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
        times.append(clock() - begin)
    return min(times)


def published_code(
    folder: str, objective: im.Objective, ends: Sequence[im.Params], epochs: int
) -> tuple[int, float, float]:
    """Gradients, the largest loss at 61 points, and seconds of the published curve, in the loop of its ``train.py``."""
    spec = spec_from_file_location("published_curves", f"{folder}/curves.py")
    assert spec is not None
    assert spec.loader is not None
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    (x, y), names = objective.data, objective.parameter_names
    assert isinstance(x, Tensor)

    class Net(nn.Module):
        def __init__(self, _: int, fix_points: list[bool]) -> None:
            super().__init__()
            sizes = [ends[0][k].shape for k in names if ends[0][k].dim() == 2]
            self.layers = nn.ModuleList(code.Linear(n, m, fix_points=fix_points) for m, n in sizes)

        def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                x = F.relu(layer(x, coefficients))
            return self.layers[-1](x, coefficients)

    model = code.CurveNet(10, code.Bezier, Net, 3)
    parameters = list(model.net.parameters())
    for k, end in zip((0, 2), ends, strict=True):
        for parameter, name in zip(parameters[k::3], names, strict=True):
            parameter.data.copy_(end[name])
    model.init_linear()
    begin, steps = clock(), 0
    optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.02, momentum=0.9)
    for epoch in range(epochs):
        share = epoch / epochs
        optimizer.param_groups[0]["lr"] = 0.02 * min(1.0, max(0.01, 1 - (share - 0.5) / 0.4 * 0.99))
        for index in torch.randperm(len(y)).split(128):
            loss = F.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    seconds = clock() - begin
    with torch.no_grad():
        return steps, max(float(F.cross_entropy(model(x, torch.tensor([i / 60])), y)) for i in range(61)), seconds


def methods(epochs: int) -> dict[str, im.Connector]:
    """All, or those whose names hold the text after --only."""
    found = {name: make(epochs) for name, make in CURVES.items()}
    if "--bands" in sys.argv:
        found |= BANDS
    return {name: method for name, method in found.items() if argument("--only") in name}


def main() -> None:
    start("How low are trained curves, and what do they cost?")
    epochs = int(argument("--epochs", "20"))
    objective, module, a, b = pair([v for v in sys.argv[1:] if v.endswith(".safetensors")])
    x, y = objective.data
    assert isinstance(x, Tensor)
    print(f"  straight line: {im.profile(objective, im.connect(objective, a, b)).max:.4g}")
    for name, method in methods(epochs).items():
        epoch = plain_epoch(module, x, y)
        begin = clock()
        found = im.connect(objective, a, b, method)
        seconds = clock() - begin
        top = im.profile(objective, found, 61 // len(found.path) + 1).max
        info = found.info.inner if isinstance(method, im.Aligned) else found.info
        samples = info.history[-1]["gradient_samples"]
        print(
            f"  {name}: {found.cost.gradient_steps} gradients in {info.precision}, at most {top:.4g}"
            f" (ends {max(info.ends):.4g}), {seconds:.1f} s,"
            f" {seconds / (samples / len(y) * epoch):.2f} x as many samples of plain training",
            flush=True,
        )
    if folder := argument("--garipov"):
        ends = [im.load_params(v) if isinstance(v, str) else v for v in (a, b)]
        steps, top, seconds = published_code(folder, objective, ends, epochs)
        print(f"  dnn-mode-connectivity's code: {steps} gradients, at most {top:.4g}, {seconds:.1f} s", flush=True)
    if folder := argument("--autoneb"):
        ends = [im.load_params(v) if isinstance(v, str) else v for v in (a, b)]
        for steps, top, seconds in published_band(folder, objective, module, ends):
            print(f"  AutoNEB's code: {steps} gradients, at most {top:.4g}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
