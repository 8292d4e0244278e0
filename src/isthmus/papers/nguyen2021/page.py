"""Nguyen, Brechet, Mondelli 2021: the bounds of Theorem 4.1 against dropout stability, layer by layer and by width.

Figures 3, 5, 6 (four tasks), 7 and 8 (other dropout ratios), 4 and 9 (two hidden layers of varying width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from isthmus.connectors import Connector, Dropout, Linear, Subnetwork, Trained
from isthmus.experiments.claims import Claim
from isthmus.experiments.jobs import Network, Pair, Problem
from isthmus.experiments.page import Experiment
from isthmus.experiments.tables import Column, Entry, Reader, Row, Table, first, mean
from isthmus.papers.nguyen2021.figures import FIGURES
from isthmus.papers.nguyen2021.jobs import PAGE, ExperimentA, ExperimentB
from isthmus.storage import read_json
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe

_NEAR_ZERO = 0.05
"""A loss that the page calls near zero; the paper gives no number."""


@dataclass(frozen=True)
class _Task:
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


def _fcn(figure: str, name: str, model: str, data: str, **options: Any) -> _Task:
    return _Task(figure, name, Problem(model, data, dtype="float32"), **options)


def _widths(name: str, inputs: int, data: str, widths: Sequence[int], **options: Any) -> list[_Task]:
    task = _fcn("4", f"{name}, two hidden layers", "", data, **options)
    problems = [replace(task.problem, model=f"mlp:{inputs}-{n}x2-10") for n in widths]
    return [replace(task, problem=p, width=n) for n, p in zip(widths, problems, strict=True)]


def _smoke() -> list[_Task]:
    brief: dict[str, Any] = dict(
        recipe=Recipe(lr=5e-3, steps=500, batch=64), target=5e-3, draws=2,
        subnets=Recipe(lr=5e-3, steps=200, batch=64), hub_steps=600, masks=8,
    )  # fmt: skip
    digits = Problem("mlp:64-40x3-10", "digits", 500, dtype="float32")
    methods = _methods(8, _trained(lr=5e-3, steps=400, batch=64))
    task = _Task(
        "3(a)", "digits, 3 x 40", digits, 2, **brief, others=(1 / 3, 1 / 4), other_draws=2, methods=methods, budget=100
    )
    images = Problem("convnet:8", "digits", 300, dtype="float32")
    convolutional = _Task("3(c)", "digits, convolutional", images, 1, **brief)
    narrow = [
        _Task("4", "digits, two hidden layers", replace(digits, model=f"mlp:64-{n}x2-10"), 1, **brief, width=n)
        for n in (8, 32)
    ]
    return [task, convolutional, *narrow]


def _laptop() -> list[_Task]:
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
        _Task("like 3(a)", "digits, 4 x 60", Problem("mlp:64-60x4-10", "digits"), 3, **small,
             methods=_methods(200, _trained(lr=5e-3, steps=2000, batch=64, hub_steps=4000)), budget=100),
        _fcn("3(a)", "MNIST, 10 x 245", "mlp:784-245x10-10", "mnist", networks=3, **mnist,
             methods=_methods(50, _trained(lr=1e-3, steps=30 * 234, hub_steps=40 * 234))),
        _Task("3(c)", "CIFAR-10, VGG-11", images, 2, **vgg,
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


def _paper() -> list[_Task]:
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
        _Task("3(c)", "CIFAR-10, VGG-11", images, 5, **vgg, others=thirds),
        *_widths("MNIST", 784, "mnist", (50, 100, 200, 500, 1000, 2000, 3000), networks=3, **two_m),
        *_widths("CIFAR-10", 3072, "cifar10", (50, 100, 250, 400, 500, 1000, 2000, 3000), networks=3, **two_c),
    ]  # fmt: skip


_SCALES = {"smoke": _smoke, "laptop": _laptop, "paper": _paper}


def cells(scale: str) -> Sequence[Cell]:
    """The cells of every task."""
    return [cell for task in _SCALES[scale]() for cell in task.cells()]


_TASKS = {task.problem: task for scale in _SCALES.values() for task in scale()}
_RATIOS = {1 / 3: "7", 1 / 4: "8"}
"""The figures of appendix B."""


def _of_task(name: str) -> Reader:
    """What is said of the task of a network."""
    return lambda entry: getattr(_TASKS[entry.cell.network.problem], name)


def _numbers(loss: Reader, error: Reader) -> dict[str, Column]:
    """Means over the networks with their 95 % intervals; both experiments measure the network itself."""
    return {
        "networks": lambda entries: len({e.cell.network for e in entries}),
        "reference": _once("reference"),
        "A": mean(loss, "±", of=ExperimentA),
        "B": mean(loss, "±", of=ExperimentB),
        "reference test error": _once("test_reference_error"),
        "A test error": mean(error, "±", of=ExperimentA),
        "B test error": mean(error, "±", of=ExperimentB),
    }


def _once(what: str) -> Column:
    """The mean over the networks, each once."""
    return lambda entries: mean(what, "±")(list({e.cell.network: e for e in entries}.values()))


def _top(what: str) -> Reader:
    """The largest over the layers."""
    return lambda entry: max(layer[what] for layer in entry["layers"])


def _curve(name: str) -> Column:
    """A column of the profile along the path."""
    return lambda entries: read_json(entries[0].stored.folder / "run" / "profile.json")[name]


def _name(entry: Entry) -> str:
    """Of a row; the subsets of path (B) in the paper are random."""
    method = entry.cell.method
    name = type(method).__name__
    return f"{name}, searched" if isinstance(method, Dropout) and method.search != "random" else name


_LAYERS = Table(
    of=(ExperimentA, ExperimentB),
    where=lambda cell: _TASKS[cell.network.problem].width is None,
    each="layers",
    by={
        "figure": lambda e: _RATIOS.get(e.cell.p) or _TASKS[e.cell.network.problem].figure,
        "task": _of_task("name"),
        "p": lambda e: round(e.cell.p, 4),
        "layer": "layer",
    },
    columns=_numbers("loss", "test_error"),
)
_WIDTHS = Table(
    of=(ExperimentA, ExperimentB),
    where=lambda cell: _TASKS[cell.network.problem].width is not None,
    by={"figure": _of_task("figure"), "task": _of_task("name"), "p": "cell.p", "width": _of_task("width")},
    columns=_numbers(_top("loss"), _top("test_error")),
)
_PATHS = Table(
    of=Pair,
    by={"figure": lambda e: "3(d)", "task": lambda e: _TASKS[e.cell.a.problem].name, "method": _name},
    columns={
        "segments": first("segments"),
        "max training loss": first("max_loss"),
        "excess": first("excess"),
        "bound": first("bound"),
        "max test error": first("test_error_max?"),
        "processor seconds": first("record.processor_seconds?"),
        ".t": _curve("t"),
        ".loss": _curve("loss"),
    },
)


def _above(row: Row, kind: str) -> float:
    """How far an experiment is above the network itself."""
    return max(row[kind] - row["reference"], 0.0)


def _far(rows: list[Row]) -> tuple[bool, str]:
    a, b = (_above(rows[0], kind) for kind in "AB")
    return b >= 10 * max(a, 1e-3), f"layer {rows[0]['layer']}: A {a:.3g}, B {b:.3g} above"


def _nowhere_above(rows: list[Row]) -> tuple[bool, str]:
    gaps = {r["layer"]: (_above(r, "A"), _above(r, "B")) for r in rows}
    text = "; ".join(f"layer {layer}: {a:.2g} and {b:.2g}" for layer, (a, b) in gaps.items())
    return all(a <= b for a, b in gaps.values()), text


def _far_below(rows: list[Row]) -> tuple[bool | None, str]:
    excess = {r["method"]: r["excess"] for r in rows}
    if not {"Dropout", "Subnetwork"} <= excess.keys():
        return None, "one path is missing"
    a, b = excess["Subnetwork"], excess["Dropout"]
    return 20 * a <= b, f"A {a:.3g}, B {b:.3g}"


def _by_width(rows: list[Row]) -> str:
    known = sorted((r for r in rows if r.get("B") is not None), key=lambda r: r["width"])
    return "width: A / B " + ", ".join(f"{r['width']}: {r['A']:.2g} / {r['B']:.2g}" for r in known)


def _half(row: Row) -> bool:
    return "layer" in row and row["p"] == 0.5 and row["figure"].endswith(("3(a)", "3(b)", "3(c)"))


def _widths_of(data: str, low: int, high: int) -> tuple[Claim, Claim]:
    """From which width the paper finds A near zero, and up to which B is not (section 6 on Figure 4)."""

    def wide(row: Row) -> bool:
        return "width" in row and row["task"].startswith(f"{data},")

    return (
        Claim(
            f"{{task}}: A is near zero from about {low} neurons", wide, ("task",), needs=("A",),
            value="A", at_most=_NEAR_ZERO, says=_by_width, over=("width", low, inf),
        ),
        Claim(
            f"{{task}}: B is not near zero below {high}", wide, ("task",), needs=("B",),
            value=lambda row: row["B"] if row["width"] < high else None, at_least=_NEAR_ZERO,
            says="smallest B {value:.3g} of {count} widths, at {width}", over=("width", -inf, high),
        ),
    )  # fmt: skip


CLAIMS = (
    Claim(
        "{task}: A is close to the reference at every layer", _half, ("task",), needs=("A",),
        value=lambda row: row["A"] - row["reference"], at_most=_NEAR_ZERO, says="at most {value:.3g} above it",
    ),
    Claim("{task}: B is far above it at the first layers", _half, ("task",), needs=("A", "B"), judge=_far),
    Claim(
        "{task}, dropout ratio {p:.3g}: A is at no layer further above the reference than B",
        lambda row: "layer" in row and row["p"] != 0.5, ("task", "p"), needs=("A", "B"), judge=_nowhere_above,
    ),
    *_widths_of("MNIST", 200, 2000),
    *_widths_of("CIFAR-10", 500, 3000),
    Claim(
        "{task}: the excess of path (A) is at least 20 times below that of (B)",
        lambda row: "method" in row, ("task",), judge=_far_below,
    ),
)  # fmt: skip
"""What section 6 says of Figures 3, 4 and 3(d), and appendix B of Figures 7 and 8."""

EXPERIMENT = Experiment(
    name=PAGE,
    title="Bounds of Theorem 4.1 by trained subnetworks (A) against dropout stability (B)",
    reference="Nguyen, Brechet, Mondelli 2021, section 6 and appendix B",
    cells=cells,
    tables=(_LAYERS, _WIDTHS, _PATHS),
    figures=FIGURES,
    claims=CLAIMS,
)
