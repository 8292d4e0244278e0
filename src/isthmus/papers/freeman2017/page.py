"""Freeman & Bruna 2017: lengths and beads against the level, the disconnected cases, the gap against the width.

Figures 2 and 3 (polynomials), 4 (MNIST), 5 (CIFAR-10), 6 (Penn Treebank), 7 (frames), 8 and appendix D.1 (three points
permuted), section 2.3.1 (two Gaussians), Corollary 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isthmus.connectors import ConstrainedStringSampling, StringSampling, TwoLayerReLU
from isthmus.experiments.jobs import Problem
from isthmus.experiments.page import Experiment
from isthmus.papers.freeman2017.claims import CLAIMS
from isthmus.papers.freeman2017.figures import FIGURES
from isthmus.papers.freeman2017.jobs import PAGE, Ends, Judge, Proof, String
from isthmus.papers.freeman2017.problems import Images, Learned, Polynomial
from isthmus.papers.freeman2017.tables import PAPER, rows
from isthmus.papers.freeman2017.theory import Disconnected, Gap, PrintedMixture
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class _Task:
    """A network on its data, taken to the `levels`, and strings between neighbours among 2 * `pairs` networks.

    Segments must stay below `reach` times the level, beads are trained to `bead` times it. `few`: levels of which only
    so many pairs are connected. `straight`: so many pairs are straightened.
    """

    figure: str
    name: str
    problem: Learned
    judge: Judge
    levels: tuple[float, ...]
    ends: Recipe
    pairs: int
    method: StringSampling
    few: tuple[tuple[float, int], ...] = ()
    dense: int = 0
    straight: int = 0
    reach: float = 1.0

    def pair(self, k: int) -> list[Cell]:
        """The strings of pair k, from the highest level to the lowest; none where there are not so many pairs."""
        if k >= self.pairs:
            return []
        few = dict(self.few)
        a, b = (Ends(self.problem, self.judge, self.levels, self.ends, seed) for seed in (2 * k, 2 * k + 1))
        levels = [level for level in self.levels if k < few.get(level, self.pairs)]
        passes = 3 if k < self.straight else 0
        strings = [
            String(self.figure, self.name, a, b, level, self.reach, self.method, self.dense, passes) for level in levels
        ]
        return [*strings, *(Proof(s) for s in strings if self.problem.loss == "squared")]


@dataclass(frozen=True)
class _Scale:
    """All parts of the page at one size."""

    tasks: tuple[_Task, ...]
    permutation: tuple[float, ...]
    mixture: tuple[float, ...]
    gaps: tuple[Gap, ...]
    steps: int = 1000
    depth: int = 10

    def cells(self) -> list[Cell]:
        """The cheap parts first, then pair after pair of every task."""
        out: list[Cell] = []
        for example, levels, lr in (("permutation", self.permutation, 0.01), ("mixture", self.mixture, 0.05)):
            size: dict[str, Any] = {"attempts": 2, "recipe": Recipe(lr=lr, steps=self.steps, batch=512)}
            out += [Disconnected(example, level, StringSampling(depth=self.depth, **size)) for level in levels]
            out.append(Disconnected(example, min(levels), ConstrainedStringSampling(beads=3 * self.depth, **size)))
        out.append(PrintedMixture())
        turns = range(max(task.pairs for task in self.tasks))
        return [*out, *self.gaps, *(cell for k in turns for task in self.tasks for cell in task.pair(k))]


LEVELS_2 = (0.125, 0.1, 0.075, 0.05, 0.025, 0.01, 0.0075, 0.005, 0.0025, 0.001)
LEVELS_3 = (
    *(0.32, 0.24, 0.20, 0.18, 0.17, 0.168, 0.164, 0.162, 0.16, 0.158, 0.156, 0.154, 0.152),
    *(0.15, 0.14, 0.12, 0.10, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01),
)
"""The thresholds of Figures 2 and 3."""
_SQUARED = {
    "quadratic": (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5),
    "cubic": (8e-2, 6e-2, 4e-2, 2e-2, 1e-2, 5e-3, 2e-3),
}
"""Levels of the mean squared error, at which a plain implementation was run before."""


def _published(bead: float, reach: float, recipe: Recipe | None = None, **options: Any) -> StringSampling:
    """The search as the authors' program does it: one bead always, beads to `bead` times the level.

    Their training is `recipe`, or Adam with the options `lr`, `batch`, `steps`, `check`.
    """
    adam = {k: options.pop(k) for k in ("lr", "batch", "steps", "check") if k in options}
    recipe = recipe or Recipe(**adam, schedule="constant")
    return StringSampling(always=True, alpha=bead / reach, recipe=recipe, **options)


# the authors' programs; "steps" counts epochs of training data there
def _mnist(model: str, **options: Any) -> Images:
    """Pixels in [0, 1], weights normal(0, 0.1), biases 0.1."""
    return Images(Problem(model, "mnist", dtype="float32", **options), "mnist", scaled=True)


def _cifar(model: str, **options: Any) -> Images:
    """Crops of 24 x 24, weights normal(0, 0.05) and (0, 0.04), a decay of 0.004."""
    return Images(Problem(model, "cifar10", dtype="float32", **options), "cifar10", crop=24, decay=4e-3)


def _words(lr: float, steps: int, epoch: int, check: int) -> Recipe:
    """SGD at a constant rate for four epochs, halved after each further one."""
    return Recipe("sgd", lr, steps, 20, 0.0, 0.0, "steps", check, every=epoch, hold=3 * epoch)


def _photographs(steps: int, epoch: int, check: int) -> Recipe:
    """SGD at 0.1, a tenth of it after every 350 epochs."""
    return Recipe("sgd", 0.1, steps, 128, 0.0, 0.0, "steps", check, gamma=0.1, every=350 * epoch)


def _polynomial(name: str, pairs: int, levels: tuple[float, ...], lr: float, steps: int, **options: Any) -> _Task:
    """Figure 2 or 3, on `examples` points: beads half way, as the authors put them."""
    examples = options.pop("examples", 200)
    problem = Polynomial(name, "absolute", name == "quadratic", examples, 1.0)
    ends = Recipe(lr=lr, steps=10 * steps, batch=examples, check=5, schedule="constant")
    method = _published(
        0.95, 1.1, depth=12, patience=12, lr=lr, batch=examples, steps=steps, check=20, attempts=2, budget=20 * steps,
        position="half",
    )  # fmt: skip
    figure = "2" if name == "quadratic" else "3"
    return _Task(figure, name, problem, Judge(), levels, ends, pairs, method, dense=41, reach=1.1, **options)


def _at_maximum(task: _Task, pairs: int = 10) -> _Task:
    """The same strings, of so many pairs, with every bead where the loss is highest."""
    method = replace(task.method, position="maximum")
    return replace(
        task, pairs=min(task.pairs, pairs), straight=0, figure=f"{task.figure}, at the maximum", method=method
    )


def _squares(pairs: int, levels: slice) -> list[_Task]:
    """The same polynomials with the mean squared error, biases and a linear output, 64 points."""
    out = []
    for name, all_levels in _SQUARED.items():
        ends = Recipe(lr=0.01, steps=60_000, batch=64, check=10, schedule="constant")
        method = StringSampling(
            depth=12, attempts=2, recipe=Recipe(lr=0.01, steps=6000, batch=64, schedule="constant", check=10)
        )
        problem = Polynomial(name, "squared", False, 64)
        out.append(
            _Task(
                "squared error", f"{name}, squared", problem, Judge(), all_levels[levels], ends, pairs, method, (), 41
            )
        )
    return out


def _smoke() -> _Scale:
    brief: dict[str, Any] = dict(lr=0.01, batch=32, steps=200, check=10, attempts=1, depth=4)
    images = _Task(
        "4", "digits", Images(Problem("conv5:4-4-8", "digits", 200, dtype="float32", tests=100), "mnist", scaled=True),
        Judge("error", "test", 5),
        (0.6, 0.4), Recipe(lr=0.01, steps=400, batch=32, check=5, schedule="constant"), 1,
        _published(0.98, 1.02, **brief), dense=5, reach=1.02,
    )  # fmt: skip
    return _Scale(
        (
            _polynomial("quadratic", 2, LEVELS_2[:3:2], 0.02, 1000, straight=1, examples=64),
            _at_maximum(_polynomial("quadratic", 1, LEVELS_2[:1], 0.02, 1000, examples=64)),
            _polynomial("cubic", 1, (0.32, 0.156), 0.02, 1000, straight=1, examples=64),
            *_squares(1, slice(0, 2)),
            images,
        ),
        (0.3, 0.03), (1.0, 0.2),
        tuple(
            Gap(m, 0, steps=100, method=TwoLayerReLU(attempts=0, recipe=Recipe(lr=1e-2, steps=30))) for m in (4, 16)
        ),
        40, 2,
    )  # fmt: skip


def sequential(method: StringSampling) -> StringSampling:
    """Algorithm 1 as printed, with both branches taken: one bead after the other, half way, trained to the level."""
    return replace(method, order="depth", batched=False, position="half", alpha=1.0, always=False)


def _laptop() -> _Scale:
    images = Recipe(lr=1e-4, steps=12_000, batch=100, check=10, schedule="constant")
    mnist = _mnist("conv5:8-16-64", tests=1000)
    epoch, words = 50_000 // 128, 10_000 // 20
    cubic = _polynomial("cubic", 4, LEVELS_3, 5e-3, 20_000, straight=2, few=((0.01, 3),))
    quadratic = _polynomial("quadratic", 4, LEVELS_2[:-1], 1e-2, 20_000, straight=2)
    tasks = (
        quadratic,
        _Task(
            "4", "MNIST, 8-16-64", mnist, Judge("error", "test", 11), (0.2, 0.1, 0.06, 0.04, 0.03), images,
            2, _published(0.98, 1.02, lr=1e-4, batch=100, steps=3000, check=20, attempts=2, depth=8), reach=1.02,
        ),
        _Task(
            "6", "Penn Treebank, 1000 words", Problem("lstm:48x2", "ptb:V=1000,T=20", 10_000, "cross_entropy",
            "float32", 500), Judge("perplexity", "test", 9),
            (500, 300, 200, 150, 130, 120, 110, 100), _words(5.0, 8000, words, 2), 2,
            _published(0.98, 1.1, _words(5.0, 2000, words, 20), attempts=2, depth=8), reach=1.1,
        ),
        _Task(
            "5", "CIFAR-10, 32-32-96-48", _cifar("conv5:32-32-96-48:lrn", tests=1000), Judge("error", "test", 7),
            (0.8, 0.7, 0.6, 0.5), _photographs(6000, epoch, 10), 1,
            _published(0.98, 1.1, _photographs(1500, epoch, 20), attempts=2, depth=8), reach=1.1,
        ),
        cubic, _at_maximum(quadratic, 2), *_squares(3, slice(None)),
        *_race(mnist, 2000, 0.1, Recipe(lr=1e-3, steps=4000, batch=100, check=10, schedule="constant"), 1),
        _at_maximum(cubic, 2),
    )  # fmt: skip
    gaps = tuple(
        Gap(m, seed, method=TwoLayerReLU(recipe=Recipe(lr=1e-2, steps=500)))
        for m in (4, 8, 16, 32, 64, 128)
        for seed in range(3)
    )
    return _Scale(tasks, (0.3, 0.2, 0.1, 0.08, 0.03, 0.01), (1.0, 0.8, 0.6, 0.4, 0.2, 0.05), gaps)


def _paper() -> _Scale:
    """Sections 4.1 to 4.3; the paper names neither its number of pairs nor its restricted test sets."""

    mnist = _mnist("conv5:32-64-1024")
    ends = Recipe(lr=1e-4, steps=200_000, batch=100, check=100, schedule="constant")
    epoch, words = 50_000 // 128, 46_479 // 20
    common: dict[str, Any] = dict(attempts=2, budget=1_000_000)
    polynomials = [
        _polynomial(name, 10, levels, 1e-3, 200_000, straight=10, examples=10_000)
        for name, levels in (("quadratic", LEVELS_2), ("cubic", LEVELS_3))
    ]
    tasks = (
        _Task(
            "4", "MNIST", mnist, Judge("error", "test", 20),
            (0.04, 0.02, 0.015, 0.01, 0.009, 0.0085, 0.008, 0.00775, 0.0075, 0.007), ends, 10,
            _published(0.98, 1.02, lr=1e-4, batch=100, steps=50_000, check=600, **common), reach=1.02,
        ),
        _Task(
            "5", "CIFAR-10", _cifar("conv5:64-64-384-192:lrn"), Judge("error", "test", 20),
            (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), _photographs(200_000, epoch, 100), 10,
            _published(0.98, 1.1, _photographs(50_000, epoch, epoch), **common), reach=1.1,
        ),
        _Task(
            "6", "Penn Treebank", Problem("lstm:200x2", "ptb:V=10000,T=20", dtype="float32"),
            Judge("perplexity", "test", 20), (700, 300, 250, 200, 150, 135), _words(5.0, 200_000, words, 5), 10,
            _published(0.98, 1.1, _words(5.0, 50_000, words, 100), **common), reach=1.1,
        ),
        *polynomials, *map(_at_maximum, polynomials), *_squares(10, slice(None)),
        *_race(mnist, 60_000, 0.02, ends, 3),
    )  # fmt: skip
    gaps = tuple(Gap(m, seed) for m in (4, 8, 16, 32, 64, 128, 256, 512) for seed in range(10))
    return _Scale(tasks, (0.3, 0.2, 0.1, 0.08, 0.03, 0.01), (1.0, 0.8, 0.6, 0.4, 0.2, 0.05), gaps)


def _race(problem: Images, examples: int, level: float, ends: Recipe, pairs: int) -> list[_Task]:
    """Pairs below a training loss, connected by the library's search and by the sequential one."""
    small = problem.fewer(examples)
    method = StringSampling(
        alpha=0.95 / 1.1, depth=8, recipe=Recipe(lr=1e-3, steps=2000, batch=100, schedule="constant", check=20)
    )
    kinds = {"as it is": method, "one problem": replace(method, batched=True), "sequential": sequential(method)}
    return [
        _Task("show", name, small, Judge("loss", "train", 11), (level,), ends, pairs, kind, reach=1.1)
        for name, kind in kinds.items()
    ]


SCALES = {"smoke": _smoke(), "laptop": _laptop(), "paper": _paper()}
"""What is run."""


def cells(scale: str) -> Sequence[Cell]:
    """All parts of the page."""
    return SCALES[scale].cells()


EXPERIMENT = Experiment(
    name=PAGE,
    title="Dynamic String Sampling: how long and how bent the ways between networks are",
    reference="Freeman & Bruna 2017, Figures 2 to 8, appendix D.1, section 2.3.1, Corollary 2.5",
    cells=cells,
    tables=(rows,),
    figures=FIGURES,
    paper=PAPER,
    claims=CLAIMS,
)
"""The page."""
