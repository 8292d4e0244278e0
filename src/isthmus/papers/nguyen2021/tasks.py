"""The networks of Nguyen, Brechet, Mondelli 2021: how they are trained, and how both experiments on them are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from isthmus.connectors import Connector, Dropout, Linear, Subnetwork, Trained
from isthmus.experiments.jobs import Network, Pair, Problem
from isthmus.papers.nguyen2021.jobs import PAGE, ExperimentA, ExperimentB, PathA
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class Task:
    """A network of the paper on its data: how it is trained, and how the two experiments on it are run.

    `printed`: as the paper prints it: networks are trained to zero training error, the xi_l from random weights, not
    looked at before step `looks_from` and then until they make no error; B also without the factor n / kept; path (A)
    is made of the networks of Experiment A. Else networks and xi_l are trained to a loss of `target`, the xi_l from the
    network's own weights. `special`: recipes of single layers at a dropout ratio. `first`: a cell for each layer, in
    that order.

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
    printed: bool = False
    looks_from: int | None = None
    special: tuple[tuple[float, int, Recipe], ...] = ()
    first: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that Experiment A has as cells of their own; none where one cell has them all."""
        return tuple(sorted(self.first))

    def trained(self) -> list[Network]:
        """The networks theta'."""
        until: Literal["loss", "error"] = "error" if self.printed else "loss"
        target = 0.0 if self.printed else self.target
        return [Network(self.problem, seed, self.recipe, target, until) for seed in range(self.networks)]

    def turn(self, k: int) -> list[Cell]:
        """Both experiments on network k at p = 1/2, the paths from the second to the first, then the other ratios."""
        networks = self.trained()
        if k >= len(networks):
            return []
        out = self.experiments(networks[k], 0.5, self.draws)
        if k == min(1, len(networks) - 1):
            out += self.paths(networks)
        return out + [
            cell for p in self.others if k == 0 for cell in self.experiments(networks[0], p, self.other_draws)
        ]

    def experiments(self, network: Network, p: float, draws: int) -> list[Cell]:
        """Experiments A and B on one network; B as printed beside ours."""
        kept = [ExperimentB(network, p, network.seed, self.masks)]
        if self.printed:
            kept.append(ExperimentB(network, p, network.seed, self.masks, rescale=False))
        return [*self.subnetworks(network, p, draws), *kept]

    def subnetworks(self, network: Network, p: float, draws: int) -> list[ExperimentA]:
        """Experiment A, in one piece; layer by layer where `first` says in which order."""
        a = ExperimentA(network, p, network.seed, draws, self.subnets, self.hub_steps, self.target)
        if not self.printed:
            return [a]
        a = replace(a, target=0.0, init="random", looks_from=self.looks_from, keeps=self.path_a and p == 0.5)
        own = {l: recipe for q, l, recipe in self.special if q == p}
        return [replace(a, layers=(l,), recipe=own.get(l, self.subnets)) for l in self.first] or [a]

    @property
    def path_a(self) -> bool:
        """Whether the networks of Experiment A make the path (A) of Figure 3 (d)."""
        return self.printed and bool(self.methods)

    def paths(self, networks: Sequence[Network]) -> list[Cell]:
        """Between the first two networks."""
        if not self.methods:
            return []
        out: list[Cell] = []
        if self.path_a:
            a, b = (self.subnetworks(n, 0.5, self.draws)[0] for n in networks[:2])
            out.append(PathA(a, b))
        return [
            *out,
            *(Pair(PAGE, networks[0], networks[1], m, num_points=21, budget=self.budget) for m in self.methods),
        ]


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
    few: dict[str, Any] = brief | dict(
        recipe=replace(brief["recipe"], steps=200), draws=1, subnets=replace(brief["subnets"], steps=60), hub_steps=150
    )
    methods = _methods(8, _trained(lr=5e-3, steps=200, batch=64))
    task = Task(
        "3(a)", "digits, 3 x 40", digits, 2, **brief, others=(1 / 3, 1 / 4), other_draws=2, methods=methods, budget=100
    )
    images = Problem("convnet:4", "digits", 200, dtype="float32")
    convolutional = Task("3(c)", "digits, convolutional", images, 1, **few)
    as_printed = replace(
        task, figure="3(b)", name="digits, 2 x 12, as printed", problem=Problem("mlp:64-12x2-10", "digits", 200),
        recipe=replace(task.recipe, steps=200), subnets=replace(task.subnets, steps=120), hub_steps=120, masks=4,
        others=(), methods=(Linear(),), printed=True, looks_from=100,
    )  # fmt: skip
    narrow = [
        Task("4", "digits, two hidden layers", replace(digits, model=f"mlp:64-{n}x2-10"), 1, **few, width=n)
        for n in (8, 32)
    ]
    return [task, convolutional, as_printed, *narrow]


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
        Task("3(c)", "2000 images of CIFAR-10, VGG-11 of 16 to 128 channels", images, 2, **vgg,
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
    """Appendix C with Table 1; momentum is Nesterov's, as in the published program: the paper does not say."""

    def sgd(lr: float, epoch: int, momentum: float = 0.95, **options: Any) -> Recipe:
        options.setdefault("schedule", "constant")
        return Recipe("sgd", lr, 400 * epoch, 100, momentum, check=epoch, **options)

    def printed(epoch: int, o: Recipe, a: Recipe) -> dict[str, Any]:
        return dict(recipe=o, target=0.0, draws=20, subnets=a, hub_steps=a.steps, masks=200, printed=True,
                    looks_from=100 * epoch)  # fmt: skip

    m, c = 60_000 // 100, 50_000 // 100
    deep_m = printed(m, sgd(1e-3, m), sgd(2e-3, m))
    two_m = printed(m, sgd(5e-3, m), sgd(5e-3, m))
    deep_c = printed(c, sgd(1e-3, c), sgd(1e-3, c))
    two_c = printed(c, sgd(5e-4, c), sgd(5e-3, c))

    def vgg(**schedule: Any) -> Recipe:
        return sgd(5e-3, c, 0.9, weight_decay=5e-4, **schedule)

    every_20 = vgg(schedule="steps", gamma=0.5, every=20 * c)
    deep_v = printed(c, vgg(schedule="steps", gamma=0.5, every=10 * c), every_20)
    hard = (
        (1 / 4, 0, vgg(schedule="steps", gamma=0.1, every=250 * c)),
        (1 / 4, 1, vgg(schedule="plateau", gamma=0.9)),
    )
    thirds = (1 / 3, 1 / 4)
    methods = (Dropout(masks=200, search="random"), Linear(), Dropout(masks=200))
    images = Problem("vgg11:he", "cifar10", dtype="float32")
    return [
        _fcn("3(b)", "CIFAR-10, 5 x 500", "mlp:3072-500x5-10", "cifar10", networks=10, **deep_c, others=thirds,
             methods=methods),
        Task("3(c)", "CIFAR-10, VGG-11", images, 5, **deep_v, others=thirds, special=hard,
             first=(1, 4, 8, 0, 2, 3, 5, 6, 7, 9, 10)),
        *_widths("CIFAR-10", 3072, "cifar10", (500, 3000, 1000, 2000, 400, 250, 100, 50), networks=3, **two_c),
        _fcn("3(a)", "MNIST, 10 x 245", "mlp:784-245x10-10", "mnist", networks=10, **deep_m, others=thirds),
        *_widths("MNIST", 784, "mnist", (200, 2000, 50, 100, 500, 1000, 3000), networks=3, **two_m),
    ]  # fmt: skip


SCALES = {"smoke": _smoke, "laptop": _laptop, "paper": _paper}
"""What is run."""
