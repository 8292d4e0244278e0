"""Nguyen, Brechet, Mondelli 2021: the bounds of Theorem 4.1 against dropout stability, layer by layer and by width.

Figures 3, 5, 6 (four tasks), 7 and 8 (other dropout ratios), 4 and 9 (two hidden layers of varying width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from isthmus.connectors import Connector, Dropout, Linear, Subnetwork, Trained
from isthmus.experiments.jobs import Network, Pair, Problem
from isthmus.experiments.page import Done, Experiment, Finding, Row
from isthmus.papers.nguyen2021 import figures
from isthmus.papers.nguyen2021.jobs import PAGE, ExperimentA, ExperimentB
from isthmus.storage import read_json
from isthmus.sweep import Cell
from isthmus.sweep.store import Stored
from isthmus.training.fit import Recipe

NEAR_ZERO = 0.05
"""A loss that the page calls near zero; the paper gives no number."""


@dataclass(frozen=True)
class Task:
    """A network of the paper on its data: how it is trained, and how the two experiments on it are run.

    `networks` are trained; the dropout ratios in `others` are measured on the first of them only (appendix B), with
    `other_draws` subsets per layer. The first two networks are the ends of the `methods`' paths; `budget` is what the
    numerical bound of the straight line may cost (those of the theorems are exact).
    """

    figure: str
    name: str
    problem: Problem
    networks: int
    recipe: Recipe
    target: float
    draws: int
    subnets: Recipe
    hub_steps: int | None
    masks: int
    others: tuple[float, ...] = ()
    other_draws: int = 20
    methods: tuple[Connector, ...] = ()
    budget: int = 0
    width: int | None = None

    def trained(self) -> list[Network]:
        """The networks theta'."""
        return [Network(self.problem, seed, self.recipe, self.target) for seed in range(self.networks)]

    def cells(self) -> list[Cell]:
        """Both experiments on every network, then the paths of the first two."""
        networks = self.trained()
        out: list[Cell] = []
        for p in (0.5, *self.others):
            draws = self.draws if p == 0.5 else self.other_draws
            for network in networks if p == 0.5 else networks[:1]:
                a = ExperimentA(network, p, network.seed, draws, self.subnets, self.hub_steps, self.target)
                out += [a, ExperimentB(network, p, network.seed, self.masks)]
        if self.methods:
            out += [Pair(PAGE, networks[0], networks[1], m, num_points=21, budget=self.budget) for m in self.methods]
        return out


def _fcn(figure: str, name: str, model: str, data: str, **options: Any) -> Task:
    return Task(figure, name, Problem(model, data, dtype="float32"), **options)


def _widths(name: str, inputs: int, data: str, widths: Sequence[int], **options: Any) -> list[Task]:
    task = _fcn("4", f"{name}, two hidden layers", "", data, **options)
    problems = [replace(task.problem, model=f"mlp:{inputs}-{n}x2-10") for n in widths]
    return [replace(task, problem=p, width=n) for n, p in zip(widths, problems, strict=True)]


def _smoke() -> list[Task]:
    brief: dict[str, Any] = dict(
        recipe=Recipe(lr=5e-3, steps=500, batch=64), target=5e-3, draws=2,
        subnets=Recipe(lr=5e-3, steps=200, batch=64), hub_steps=600, masks=8,
    )  # fmt: skip
    digits = Problem("mlp:64-40x3-10", "digits", 500, dtype="float32")
    methods = _methods(8, _trained(lr=5e-3, steps=400, batch=64))
    task = Task(
        "3(a)", "digits, 3 x 40", digits, 2, **brief, others=(1 / 3, 1 / 4), other_draws=2, methods=methods, budget=100
    )
    images = Problem("convnet:8", "digits", 300, dtype="float32")
    convolutional = Task("3(c)", "digits, convolutional", images, 1, **brief)
    narrow = [
        Task("4", "digits, two hidden layers", replace(digits, model=f"mlp:64-{n}x2-10"), 1, **brief, width=n)
        for n in (8, 32)
    ]
    return [task, convolutional, *narrow]


def _laptop() -> list[Task]:
    mnist: dict[str, Any] = dict(
        recipe=Recipe(lr=1e-3, steps=40 * 234, batch=256), target=1e-3, draws=2,
        subnets=Recipe(lr=1e-3, steps=30 * 234, batch=256), hub_steps=40 * 234, masks=50,
    )  # fmt: skip
    cifar: dict[str, Any] = dict(
        recipe=Recipe(lr=1e-3, steps=40 * 195, batch=256), target=1e-3, draws=2,
        subnets=Recipe(lr=2e-3, steps=50 * 195, batch=256), hub_steps=50 * 195, masks=50,
    )  # fmt: skip
    small: dict[str, Any] = dict(
        recipe=Recipe(lr=5e-3, steps=4000, batch=64), target=1e-3, draws=20,
        subnets=Recipe(lr=5e-3, steps=2000, batch=64), hub_steps=4000, masks=200,
    )  # fmt: skip
    vgg: dict[str, Any] = dict(
        recipe=Recipe(lr=5e-4, steps=80 * 31, batch=64), target=1e-2, draws=1,
        subnets=Recipe(lr=1e-3, steps=40 * 31, batch=64), hub_steps=100 * 31, masks=30,
    )  # fmt: skip
    ratios: dict[str, Any] = dict(others=(1 / 3, 1 / 4), other_draws=1)
    images = Problem("vgg11:16:he", "cifar10", 2000, dtype="float32", tests=2000)
    return [
        _fcn("3(b)", "CIFAR-10, 5 x 500", "mlp:3072-500x5-10", "cifar10", networks=3, **cifar, **ratios,
             methods=_methods(50, _trained(lr=2e-3, steps=50 * 195, hub_steps=50 * 195))),
        Task("like 3(a)", "digits, 4 x 60", Problem("mlp:64-60x4-10", "digits"), 3, **small,
             methods=_methods(200, _trained(lr=5e-3, steps=2000, batch=64, hub_steps=4000)), budget=100),
        _fcn("3(a)", "MNIST, 10 x 245", "mlp:784-245x10-10", "mnist", networks=3, **mnist,
             methods=_methods(50, _trained(lr=1e-3, steps=30 * 234, hub_steps=40 * 234))),
        Task("3(c)", "CIFAR-10, VGG-11", images, 2, **vgg,
             methods=_methods(30, _trained(lr=1e-3, steps=1000, batch=64, hub_steps=3000, slack=0.01))),
        *_widths("MNIST", 784, "mnist", (25, 50, 200, 400), networks=1, **mnist | {"draws": 1}),
        *_widths("CIFAR-10", 3072, "cifar10", (50, 250, 500), networks=1, **cifar | {"draws": 1}),
    ]  # fmt: skip


def _trained(*, hub_steps: int | None = None, slack: float = 0.0, **recipe: Any) -> Subnetwork:
    """Theorem 4.1 with subnetworks trained by that recipe."""
    return Subnetwork(slack=slack, inner=Trained(recipe=Recipe(**recipe), hub_steps=hub_steps))


def _methods(masks: int, trained: Subnetwork) -> tuple[Connector, ...]:
    """The straight line, the paper's dropout with random subsets and ours with searched ones, and Theorem 4.1."""
    return Linear(), Dropout(masks=masks, search="random"), Dropout(masks=masks), trained


def _paper() -> list[Task]:
    """Table 1; the paper stops at zero training error or after 400 epochs, here at the target or after 400."""

    def sgd(lr: float, momentum: float, epochs: int, n: int, decay: float = 0.0) -> Recipe:
        return Recipe("sgd", lr, epochs * n // 100, 100, momentum, decay, "constant")

    def options(o: Recipe, a: Recipe) -> dict[str, Any]:
        return dict(recipe=o, target=1e-4, draws=20, subnets=a, hub_steps=a.steps, masks=200)

    deep_m = options(sgd(1e-3, 0.95, 400, 60000), sgd(2e-3, 0.95, 400, 60000))
    two_m = options(sgd(5e-3, 0.95, 400, 60000), sgd(5e-3, 0.95, 400, 60000))
    deep_c = options(sgd(1e-3, 0.95, 400, 50000), sgd(1e-3, 0.95, 400, 50000))
    two_c = options(sgd(5e-4, 0.95, 400, 50000), sgd(5e-3, 0.95, 400, 50000))
    vgg = options(sgd(5e-3, 0.9, 400, 50000, 5e-4), sgd(5e-3, 0.9, 400, 50000, 5e-4))
    thirds = (1 / 3, 1 / 4)
    paths = _methods(200, _trained(steps=400 * 195, hub_steps=400 * 195))
    images = Problem("vgg11", "cifar10", dtype="float32")
    return [
        _fcn("3(a)", "MNIST, 10 x 245", "mlp:784-245x10-10", "mnist", networks=10, **deep_m, others=thirds),
        _fcn("3(b)", "CIFAR-10, 5 x 500", "mlp:3072-500x5-10", "cifar10", networks=10, **deep_c, others=thirds,
             methods=paths),
        Task("3(c)", "CIFAR-10, VGG-11", images, 5, **vgg, others=thirds),
        *_widths("MNIST", 784, "mnist", (50, 100, 200, 500, 1000, 2000, 3000), networks=3, **two_m),
        *_widths("CIFAR-10", 3072, "cifar10", (50, 100, 250, 400, 500, 1000, 2000, 3000), networks=3, **two_c),
    ]  # fmt: skip


_SCALES = {"smoke": _smoke, "laptop": _laptop, "paper": _paper}


def cells(scale: str) -> Sequence[Cell]:
    """The cells of every task."""
    return [cell for task in _SCALES[scale]() for cell in task.cells()]


def rows(done: Done) -> list[Row]:
    """Per task and dropout ratio one row for each layer; per width one row; per method one row of Figure 3(d)."""
    tasks = {t.problem: t for scale in _SCALES.values() for t in scale()}
    found: dict[tuple[Problem, float], dict[str, list[Any]]] = {}
    paths = []
    for cell, stored in done:
        if isinstance(cell, ExperimentA | ExperimentB):
            kind = type(cell).__name__[-1]
            found.setdefault((cell.network.problem, cell.p), {"A": [], "B": []})[kind].append(stored.result)
        elif isinstance(cell, Pair):
            paths.append(_path_row(tasks[cell.a.problem], cell, stored))
    layers, widths = [], []
    for (problem, p), both in found.items():
        task = tasks[problem]
        if task.width is not None:
            widths.append(_width_row(task, both))
        else:
            layers += _layer_rows(task, p, both)
    return [*layers, *widths, *paths]


def _layer_rows(task: Task, p: float, both: dict[str, list[Any]]) -> list[Row]:
    count = max(len(r["layers"]) for kind in both.values() for r in kind) + (not both["A"])
    return [
        {
            "figure": task.figure if p == 0.5 else {1 / 3: "7", 1 / 4: "8"}[p],
            "task": task.name,
            "p": round(p, 4),
            "layer": l,
            **_columns(both, "reference", "test_reference_error", l),
        }
        for l in range(count)
    ]


def _width_row(task: Task, both: dict[str, list[Any]]) -> Row:
    return {
        "figure": task.figure,
        "task": task.name,
        "p": 0.5,
        "width": task.width,
        **_columns(both, "reference", "test_reference_error", None),
    }


def _columns(both: dict[str, list[Any]], loss: str, error: str, l: int | None) -> Row:
    """Means and half widths of their 95 % intervals over the networks; l None: the largest over the layers."""
    results = both["A"] or both["B"]
    out: Row = {"networks": len(results)}
    out |= _mean("reference", [r[loss] for r in results])
    for kind in ("A", "B"):
        out |= _mean(kind, [v for r in both[kind] if (v := _at(r, "loss", l)) is not None])
    out |= _mean("reference test error", [r[error] for r in results])
    for kind in ("A", "B"):
        out |= _mean(f"{kind} test error", [v for r in both[kind] if (v := _at(r, "test_error", l)) is not None])
    return out


def _at(result: Any, what: str, l: int | None) -> float | None:
    values = [row[what] for row in result["layers"] if l is None or row["layer"] == l]
    return max(values) if values else None


def _mean(name: str, values: list[float]) -> Row:
    if not values:
        return {}
    return {name: fmean(values)} | ({f"{name} ±": half_width(values)} if len(values) > 1 else {})


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean, by Student's t.

    >>> round(half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5


def _path_row(task: Task, cell: Pair, stored: Stored) -> Row:
    profile = read_json(stored.folder / "run" / "profile.json")
    r = stored.result
    return {
        "figure": "3(d)",
        "task": task.name,
        "method": _name(cell.method),
        "segments": r["segments"],
        "max training loss": r["max_loss"],
        "excess": r["excess"],
        "bound": r["bound"],
        "max test error": r.get("test_error_max"),
        "processor seconds": stored.record.get("processor_seconds"),
        ".t": profile["t"],
        ".loss": profile["loss"],
    }


def _name(method: Connector) -> str:
    """Of a row; the subsets of path (B) in the paper are random."""
    name = type(method).__name__
    return f"{name}, searched" if isinstance(method, Dropout) and method.search != "random" else name


def findings(table: list[Row]) -> list[Finding]:
    """What section 6 says of Figures 3, 4 and 3(d), as far as it was measured."""
    out = []
    for task in dict.fromkeys(r["task"] for r in table if r["figure"].endswith(("3(a)", "3(b)", "3(c)"))):
        layers = [r for r in table if r["task"] == task and "layer" in r and r["p"] == 0.5]
        both = [r for r in layers if "A" in r and "B" in r]
        if not both:
            continue
        worst = max(r["A"] - r["reference"] for r in layers if "A" in r)
        out.append(Finding(f"{task}: A is close to the reference at every layer", worst <= NEAR_ZERO,
                           f"at most {worst:.3g} above it"))  # fmt: skip
        first = both[0]
        a, b = (max(first[k] - first["reference"], 0.0) for k in "AB")
        out.append(Finding(f"{task}: B is far above it at the first layers", b >= 10 * max(a, 1e-3),
                           f"layer {first['layer']}: A {a:.3g}, B {b:.3g} above"))  # fmt: skip
    for task, p in dict.fromkeys((r["task"], r["p"]) for r in table if "layer" in r and r["p"] != 0.5):
        both = [r for r in table if r["task"] == task and r.get("p") == p and "layer" in r and "A" in r and "B" in r]
        if both:
            out.append(_ratio_finding(task, p, both))
    for task in dict.fromkeys(r["task"] for r in table if "width" in r):
        out += _width_findings(task, sorted((r for r in table if r["task"] == task), key=lambda r: r["width"]))
    for task in dict.fromkeys(r["task"] for r in table if "method" in r):
        excess = {r["method"]: r["excess"] for r in table if r["task"] == task and "method" in r}
        if {"Dropout", "Subnetwork"} <= set(excess):
            d, s = excess["Dropout"], excess["Subnetwork"]
            out.append(Finding(f"{task}: the excess of path (A) is at least 20 times below that of (B)",
                               20 * s <= d, f"A {s:.3g}, B {d:.3g}"))  # fmt: skip
    return out


def _ratio_finding(task: str, p: float, both: list[Row]) -> Finding:
    """What appendix B says of Figures 7 and 8."""
    gaps = [[max(r[k] - r["reference"], 0.0) for k in "AB"] for r in both]
    text = "; ".join(f"layer {r['layer']}: {a:.2g} and {b:.2g}" for r, (a, b) in zip(both, gaps, strict=True))
    return Finding(f"{task}, dropout ratio {p:.3g}: A is at no layer further above the reference than B",
                   all(a <= b for a, b in gaps), text)  # fmt: skip


_ENOUGH = {"MNIST": (200, 2000), "CIFAR-10": (500, 3000)}
"""From which width the paper finds A near zero, and up to which B is not (section 6 on Figure 4)."""


def _width_findings(task: str, table: list[Row]) -> list[Finding]:
    name = task.split(",")[0]
    if name not in _ENOUGH:
        return []
    low, high = _ENOUGH[name]
    wide = [r for r in table if r["width"] >= low and "A" in r]
    rest = [r for r in table if r["width"] < high and "B" in r]
    tops = {"A": max((r["A"] for r in wide), default=None), "B": min((r["B"] for r in rest), default=None)}
    text = ", ".join(f"{r['width']}: {r['A']:.2g} / {r['B']:.2g}" for r in table if "A" in r and "B" in r)
    return [
        Finding(f"{task}: A is near zero from about {low} neurons",
                None if tops["A"] is None else tops["A"] <= NEAR_ZERO, f"width: A / B {text}"),
        Finding(f"{task}: B is not near zero below {high}",
                None if tops["B"] is None else tops["B"] > NEAR_ZERO,
                f"smallest B {tops['B']:.3g}, widths up to {rest[-1]['width']}" if rest else "no widths"),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    name=PAGE,
    title="Bounds of Theorem 4.1 by trained subnetworks (A) against dropout stability (B)",
    reference="Nguyen, Brechet, Mondelli 2021, section 6 and appendix B",
    cells=cells,
    rows=rows,
    figures={
        "fig3": figures.layers_linear,
        "fig3d": figures.paths,
        "fig4": figures.widths_linear,
        "fig5": figures.layers_log,
        "fig6": figures.layers_test_error,
        "fig7": figures.third,
        "fig8": figures.quarter,
        "fig9": figures.widths_log,
    },
    findings=findings,
)
