"""Everything runs on the device of the objective, and gives the numbers of the host: on a pretended device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import isthmus as im
from isthmus import pipeline
from isthmus.analysis.ray import ray
from isthmus.cli import run_app
from isthmus.experiments.jobs import Network, Pair
from isthmus.experiments.jobs import Problem as Asked
from isthmus.models import mean_field, mean_field_init, seeded
from isthmus.models.train_mean_field import train_mean_field
from isthmus.papers.freeman2017.jobs import Ends, Judge, Proof, String
from isthmus.papers.freeman2017.problems import Polynomial
from isthmus.papers.kuditipudi2019.jobs import Losses, Noise, Subnetworks
from isthmus.papers.nguyen2019.jobs import Descent, Joined
from isthmus.papers.nguyen2019.problems import Setting
from isthmus.papers.nguyen2021.jobs import ExperimentA, ExperimentB
from isthmus.papers.shevchenko2020.jobs import Paths, Trials
from isthmus.papers.shevchenko2020.tasks import Schedule, Task
from isthmus.storage.state import memory_in
from isthmus.sweep import Cell, Local, Store, run_cells
from tests.laws.test_methods import QUICK, own_problem
from tests.pretended_device import DEVICE
from tests.problems import (
    Problem,
    blobs,
    classify,
    convolutional,
    made_once,
    odd_widths,
    perceptron,
    random_params,
    tanh_regression,
    two_layers,
    wide_relu,
    wide_then_narrow,
)

STEPS = im.Recipe(steps=10, batch=8)
THEORY: dict[str, Any] = {"masks": 2, "draws": 1, "steps": 5, "examples": 5}


def there(x: Tensor) -> Tensor:
    """On the device."""
    return x.to(DEVICE)


def on_the_device(p: Problem) -> Problem:
    a, b = ({k: there(v) for k, v in end.items()} for end in (p.a, p.b))
    return replace(p, objective=p.objective.on(tree_map(there, p.objective.data)), a=a, b=b)


def agree(found: Any, wanted: Any) -> None:
    """Both hold the same, up to the rounding of another alignment; `found` may lie on the device."""
    one, other = tree_leaves(found), tree_leaves(wanted)
    assert len(one) == len(other)
    for v, w in zip(one, other, strict=True):
        if isinstance(v, Tensor):
            torch.testing.assert_close(v.cpu(), w, rtol=1e-12, atol=1e-12, equal_nan=True)
        elif isinstance(v, float):
            assert (isnan(v) and isnan(w)) or v == pytest.approx(w, rel=1e-9, abs=1e-12)
        else:
            assert v == w or (v, w) == (str(DEVICE), "cpu")


@made_once
def few_examples() -> Problem:
    """Half of the units memorise the examples, and separate their classes."""
    module = perceptron([4, 24, 24, 2]).double()
    objective = im.Objective(module, "cross_entropy", blobs(16, (4,), 2))
    return Problem("few examples", objective, random_params(module, 1), random_params(module, 2))


@made_once
def lasso() -> Problem:
    module = perceptron([3, 5, 2]).double()
    x, _ = blobs(9, (3,), 3)
    objective = im.Objective(module, "mse", (x, x[:, :2].sin()), penalty=im.L1(0.2, ("2.weight",)))
    return Problem("lasso", objective, random_params(module, 1), random_params(module, 2))


@made_once
def batchnorm() -> Problem:
    module = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    return classify("batchnorm", module, (5,))


class Shifted(nn.Sequential):
    """Constants of the host: a buffer that no state_dict holds, and attributes."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("shift", torch.linspace(0, 1, 5).double(), persistent=False)
        self.scale, self.order = torch.linspace(1, 2, 5).double(), torch.tensor([4, 2, 0, 1, 3])

    def forward(self, input: Tensor) -> Tensor:
        shift = self.get_buffer("shift")
        return super().forward((input * self.scale + shift).index_select(1, self.order))


@made_once
def shifted() -> Problem:
    return classify("shifted", Shifted(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), (5,))


def found_by(p: Problem, method: im.Connector, **options: Any) -> im.Connection:
    found = im.connect(p.objective, p.a, p.b, method, seed=1, **options)
    assert {v.device for knot in found.path.knots for v in knot.values()} == {p.objective.device}
    return found


Question = Callable[[Problem, Path], Any]
"""Of a problem, with a folder to work in."""


def path(method: im.Connector) -> Question:
    return lambda p, _: found_by(p, method).path.knots


def resumed(method: im.Connector) -> Question:
    """The path, and what a second process makes of all that the first one left in a folder."""

    def paths(p: Problem, folder: Path) -> Any:
        memories = [memory_in(folder, p.objective, p.a, p.b, method, seed=1) for _ in range(2)]
        return [found_by(p, method, memory=memory).path.knots for memory in memories]

    return paths


def stored(p: Problem, folder: Path) -> Any:
    """A path that was saved is read onto the device, and measured."""
    im.save(found_by(p, im.Sublevel()), folder / "path.safetensors")
    again = im.load_connection(folder / "path.safetensors", p.objective.device)
    return again.path.knots, im.profile(p.objective, again, 3).loss


def on_file(p: Problem, folder: Path) -> Any:
    """A path that stays in its file, its points on the device."""
    file = folder / "path.safetensors"
    im.save(im.Path.through([p.a, p.b]), file)
    flat = im.plane(p.objective, p.a, p.b, {k: 2 * v for k, v in p.a.items()}, file, points=2)
    return im.profile(p.objective, file, 3).loss, im.ensemble(p.objective, file, 2).average, flat.off


def profiled(**options: Any) -> Question:
    def values(p: Problem, _: Path) -> Any:
        found = im.profile(p.objective, im.connect(p.objective, p.a, p.b), 7, **options)
        return found.t, found.loss, found.error

    return values


def certified(method: im.Connector) -> Question:
    def bounds(p: Problem, _: Path) -> Any:
        found = found_by(p, method)
        proofs = [im.certify(p.objective, found, model=m, budget=1) for m in ("box", "chord")]
        assert all(im.verify_certificate(p.objective, found.path, proof) == [] for proof in proofs)
        return [(s.claim, s.bound) for proof in proofs for s in proof.segments]

    return bounds


def asked(ask: Callable[..., Any], *more: Any, **options: Any) -> Question:
    return lambda p, _: plain(ask(p.objective, p.a, *more, **options))


def plain(found: Any) -> Any:
    """Results as dictionaries of what they hold, but for the time that they took."""
    if is_dataclass(found):
        found = {f.name: getattr(found, f.name) for f in fields(found)}
    if isinstance(found, tuple | list):
        return [plain(v) for v in found]
    return {k: plain(v) for k, v in found.items() if k != "seconds"} if isinstance(found, Mapping) else found


def straightened(p: Problem, _: Path) -> Any:
    string = im.connect(p.objective, p.a, p.b, QUICK[im.StringSampling])
    found = im.straighten(p.objective, string, 10.0, points=5, passes=3)
    return found.before, found.after, found.path.knots


def averaged(p: Problem, _: Path) -> Any:
    """Members along a path, and what their averages give."""
    found = im.ensemble(p.objective, found_by(p, im.Linear()), 3)
    return found.members, found.average, plain(found.to_dict())


def cycled(p: Problem, folder: Path) -> Any:
    return im.fast_geometric_ensemble(p.objective, p.a, cycles=2, memory=folder)


def climbed(p: Problem, _: Path) -> Any:
    """How high one must climb between three networks."""
    middle = {k: v + 0.1 * v.abs() for k, v in p.a.items()}
    found = im.minima_graph(p.objective, [p.a, p.b, middle], num_points=3)
    return found.weights, found.saddles.tolist(), found.losses


def seen(p: Problem, folder: Path) -> Any:
    """The plane through three networks, and the way over the third on it."""
    third = {k: v + 0.1 * v.abs() if v.is_floating_point() else v for k, v in p.a.items()}
    way = im.Path.through([p.a, third, p.b])
    return plain(im.plane(p.objective, p.a, p.b, third, way, points=3, folder=folder).to_dict())


def geometry(p: Problem, _: Path) -> Any:
    level = 1.2 * max(p.objective.loss(p.a), p.objective.loss(p.b))
    return plain(im.geometry(p.objective, p.a, p.b, [level], method=QUICK[im.StringSampling]))


def trained(p: Problem, _: Path) -> Any:
    """A network with BatchNorm and a mean-field network, from weights that were drawn on the host."""
    (x, y), at = p.objective.data, p.objective.device
    assert isinstance(x, Tensor)
    module = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)), 0)
    fitted = pipeline.train(module.double().to(at), (x, y), STEPS, seed=0)
    net = mean_field((5, 6, 4), "tanh", seed=0).to(at)
    spread = train_mean_field(net, (x, nn.functional.one_hot(y, 4)), step=0.05, time=0.5, batch=4)
    return fitted.params, fitted.loss, spread, mean_field_init(net, "unimodal", 0)


CASES: dict[str, tuple[Callable[[], Problem], Question]] = {
    **{
        kind.__name__: (lambda kind=kind: own_problem(kind, 1), path(QUICK.get(kind) or kind()))
        for kind in im.METHODS
        if kind is not im.TwoLayerReLU
    },
    "TwoLayerReLU, lasso": (lasso, resumed(im.TwoLayerReLU(units=2, attempts=1, recipe=STEPS))),
    "Subnetwork, convolutional": (convolutional, path(im.Subnetwork(draws=2, inner=im.Trained(recipe=STEPS)))),
    "Subnetwork, own": (
        odd_widths,
        resumed(im.Subnetwork(subsets="own", draws=2, inner=im.Trained(recipe=STEPS, init="dropout"))),
    ),
    "Subnetwork, L-BFGS": (
        two_layers,
        path(im.Subnetwork(inner=im.Trained(recipe=im.Recipe(steps=3, optimizer="lbfgs")))),
    ),
    "Subnetwork, memorised": (few_examples, path(im.Subnetwork(inner=im.Memorised(), draws=2))),
    "Subnetwork, separated": (few_examples, path(im.Subnetwork(inner=im.Separated(), draws=2))),
    "StringSampling, resumed": (tanh_regression, resumed(replace(QUICK[im.StringSampling], excess=0.005))),
    "Sublevel, stored": (wide_then_narrow, stored),
    "a path in a file": (two_layers, on_file),
    "descend": (wide_then_narrow, lambda p, _: im.descend(p.objective, p.a).path.knots),
    "ray": (wide_then_narrow, lambda p, _: ray(p.objective, p.a, 1e3).path.knots),
    "straighten": (tanh_regression, straightened),
    "geometry": (tanh_regression, geometry),
    "ensemble": (batchnorm, averaged),
    "fast geometric ensemble": (tanh_regression, cycled),
    "minima graph": (odd_widths, climbed),
    "plane": (batchnorm, seen),
    "profile": (convolutional, profiled(tol=1e-2)),
    "profile, screened": (odd_widths, profiled(screen="bf16")),
    **{f"profile, {bn}": (batchnorm, profiled(bn=bn)) for bn in ("interpolate", "recompute", "keep")},
    "certify, convolutional": (convolutional, certified(im.Linear())),
    "certify, BatchNorm": (batchnorm, certified(im.Linear())),
    "constants of the host": (shifted, profiled(bn="keep")),
    "certify, tanh": (tanh_regression, certified(im.Linear())),
    "certify, Dropout": (two_layers, certified(im.Dropout(masks=2))),
    "dropout stability": (convolutional, asked(im.dropout_stability, masks=4, search="greedy")),
    "pattern stability": (odd_widths, asked(im.pattern_stability, 3)),
    "noise stability": (convolutional, asked(im.noise_stability, draws=2, examples=5)),
    "subnetwork bounds": (odd_widths, asked(im.subnetwork_bounds, draws=2, recipe=STEPS, masks=2)),
    "dropout bounds": (odd_widths, asked(im.dropout_bounds, draws=3)),
    "theory, two layers": (two_layers, lambda p, _: plain(im.theory(p.objective, p.a, p.b, **THEORY).rows)),
    "theory, wide": (wide_relu, lambda p, _: plain(im.theory(p.objective, p.a, p.b, **THEORY).rows)),
    "training": (two_layers, trained),
}


X, ROWS, G = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 0]), torch.Generator()
NUMBER = torch.tensor(2.0)
ALLOWED: dict[str, Callable[[Tensor], Any]] = {
    "copies": lambda x: x.copy_(X).cpu().copy_(x).to(DEVICE),
    "numbers of the host": lambda x: [NUMBER * x, x - NUMBER, torch.where(x > 1, NUMBER, x), x.masked_fill(x > 1, 0)],
    "an index of the host": lambda x: [x[ROWS], x[:, [0, 2]], x[torch.tensor([True, False])], x[ROWS[0]]],
    "writing by an index of the host": lambda x: x.index_put_((ROWS,), there(X)),
    "values": lambda x: [float(x.sum()), x.tolist(), bool(x[0, 0] == 0)],
    "generators of its own": lambda x: [torch.randn(2, device=DEVICE), torch.randperm(3, device=DEVICE), x.normal_()],
    "what is made there": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE) * torch.eye(3, device=DEVICE)[0],
    "gradients": lambda x: torch.autograd.grad((x.requires_grad_() ** 2).sum(), x),
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "sums": lambda x: x + X,
    "sums into the host": lambda x: torch.zeros(()).add_(x.sum()),
    "two numbers of the host": lambda x: x.clamp(NUMBER, NUMBER),
    "products": lambda x: x @ X.T,
    "lists": lambda x: torch.cat([x, X]),
    "index_select": lambda x: x.index_select(0, ROWS),
    "gather": lambda x: x.gather(0, ROWS[:, None]),
    "a host tensor by its index": lambda x: X[there(ROWS)],
    "writing what lies elsewhere": lambda x: x.index_put_((ROWS,), X),
    "masks": lambda x: torch.where(X > 1, x, x),
    "generators of the host": lambda x: torch.randperm(3, generator=G, device=DEVICE),
    "filling from a generator of the host": lambda x: x.normal_(generator=G),
    "numpy": lambda x: x.numpy(),
    "least squares without full rank": lambda x: torch.linalg.lstsq(x, x, driver="gelsd"),
    "products of whole numbers": lambda x: x.long() @ x.long().T,
}


@pytest.mark.parametrize("what", [*ALLOWED, *REFUSED])
def test_the_pretended_device_allows_what_cuda_allows(what):
    if what in ALLOWED:
        held = [v for v in tree_leaves(ALLOWED[what](there(X))) if isinstance(v, Tensor)]
        assert all(v.device == DEVICE for v in held)
        return
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[what](there(X))


@pytest.mark.parametrize("name", CASES)
def test_the_device_gives_what_the_host_gives(name, tmp_path):
    make, ask = CASES[name]
    host, device = (tmp_path / where for where in ("host", "device"))
    for folder in (host, device):
        folder.mkdir()
    problem = make()
    agree(ask(on_the_device(problem), device), ask(problem, host))


def network(seed: int) -> Network:
    return Network(Asked("mlp:64-8x2-10", "digits", 20, tests=10), seed, im.Recipe(steps=20, batch=20))


def ends(seed: int) -> Ends:
    levels, recipe = (0.5,), im.Recipe(lr=0.05, steps=100, batch=16)
    return Ends(Polynomial("quadratic", "squared", examples=16), Judge(points=3), levels, recipe, seed)


STRING = String("2", "quadratic", ends(0), ends(1), 0.5, 1.1, replace(QUICK[im.StringSampling], threshold=None))
TRIALS = Trials(Task("digits", examples=40, tests=20), 6, Schedule(0.05, 10, 5), (0, 1), saved=2)
CELLS: dict[str, tuple[Cell, ...]] = {
    "pair": (Pair("pairs", network(0), network(1), im.Dropout(masks=2), num_points=3, budget=1),),
    "nguyen2021": (ExperimentA(network(0), draws=2, recipe=STEPS, hub_steps=10), ExperimentB(network(0), draws=2)),
    "kuditipudi2019": (
        Subnetworks(network(0), (0.5,), 2, (0.5,), 3), Losses(network(0), "text", 1), Noise(network(0), draws=2)
    ),
    "nguyen2019": (
        Joined(Setting("digits", 20, (64, 41, 12, 10)), num_points=3),
        Descent(Setting("digits", 20, (64, 41, 12, 10)), num_points=3),
    ),
    "freeman2017": (STRING, Proof(STRING)),
    "shevchenko2020": (Paths(TRIALS, TRIALS, ((0, 1),), num_points=3),),
}  # fmt: skip


@pytest.mark.parametrize("page", CELLS)
def test_cells_work_on_the_device_and_leave_results_on_the_host(page, tmp_path):
    found = {}
    for device in ("cpu", str(DEVICE)):
        store = Store(tmp_path / device.partition(":")[0])
        report = run_cells(CELLS[page], store, Local(), device=device)
        assert report.ok, [failed.detail for failed in report.failed.values()]
        stored = [store.load(cell) for cell in CELLS[page]]
        assert {s.record["device"] for s in stored} == {device}
        found[device] = [s.result for s in stored]
    agree(found[str(DEVICE)], found["cpu"])


def test_the_command_line_trains_connects_and_reads_paths_on_the_device(tmp_path, capsys):
    common = ["--examples", "20", "--device", DEVICE.type, "--quiet"]
    ends, run = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)], tmp_path / "run"
    for seed, end in enumerate(ends):
        train = ["train", "--model", "mlp:64-6-10", "--out", end, "--epochs", "1", "--seed", str(seed)]
        assert run_app([*train, *common]) == 0
    method = ["--method", "Linear", "--num-points", "3", "--budget", "20", "--out", str(run)]
    assert run_app(["connect", *ends, *method, *common]) == 0
    again = ["profile", str(run / "path.safetensors"), "--num-points", "3", "--out", str(tmp_path / "again")]
    assert run_app([*again, *common, "--json"]) == 0, capsys.readouterr().err
