"""Nguyen 2019: paths inside sublevel sets on real data, descents, rays, and the sketches of Figures 1 to 5.

The paper has no experiments. Its Theorems 3.2, 4.2, 5.1 and 6.1 are carried out on digits and MNIST subsets, from
random, trained and bad points, and what rounding does to them is measured and proved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isthmus.experiments.page import Experiment
from isthmus.papers.nguyen2019.claims import CLAIMS
from isthmus.papers.nguyen2019.figures import FIGURES
from isthmus.papers.nguyen2019.jobs import Descent, Far, Joined, Sketch
from isthmus.papers.nguyen2019.problems import BAD, PAGE, STARTS, Setting
from isthmus.papers.nguyen2019.sketches import SKETCHES as FUNCTIONS
from isthmus.papers.nguyen2019.tables import TABLES
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe

_INPUTS = {"digits": 64, "mnist": 784}


def independent(data: str, n: int, hidden: Sequence[int] = (64, 32, 16)) -> Setting:
    """Theorem 3.2: independent samples and narrowing layers of leaky ReLU, whatever N is."""
    return Setting(data, n, (_INPUTS[data], *hidden, 10))


def wide_first(data: str, n: int) -> Setting:
    """Theorem 5.1: a first layer of 2N units, narrowing layers of leaky ReLU above."""
    return Setting(data, n, (_INPUTS[data], 2 * n, 24, 12, 10))


def wide(data: str, n: int, layers: int = 2) -> Setting:
    """Theorem 6.1: hidden layers of 2N units, ReLU."""
    return Setting(data, n, (_INPUTS[data], *(2 * n,) * layers, 10), None)


@dataclass(frozen=True)
class _Scale:
    """What is run. `data`: the samples that are independent for Theorem 3.2, and a second set for the other theorems.

    `samples`: N from ends of all `starts`; `more`: larger N for Theorems 3.2 and 5.1, `largest` for Theorem 5.1 alone,
    from random ends; `small`: N of the `variants` (losses, no biases); `deep`: N of three hidden layers of 2N units;
    `low`: N of the descents; `pairs` of each kind; `grid` points per axis of a sketch.
    """

    data: str
    samples: tuple[int, ...]
    more: tuple[int, ...]
    largest: tuple[int, ...]
    small: int
    deep: int
    low: int
    pairs: int
    recipe: Recipe
    num_points: int
    grid: int
    starts: tuple[str, ...] = STARTS
    variants: tuple[str, ...] = ("mse", "hinge", "no biases")

    def cells(self) -> list[Cell]:
        """All parts of the page."""
        return [*self.paths(), *self.descents(), *self.rays(), *(Sketch(name, self.grid) for name in FUNCTIONS)]

    @property
    def good(self) -> tuple[str, ...]:
        """The starts at which nothing is missing."""
        return tuple(s for s in self.starts if s not in BAD)

    def joined(self, theorem: str, setting: Setting, starts: Sequence[str]) -> list[Joined]:
        """Paths from ends of every kind, `pairs` of each."""
        return [
            Joined(setting, start, k, self.recipe, theorem=theorem, num_points=self.num_points)
            for start in starts
            for k in range(self.pairs)
        ]

    def paths(self) -> list[Cell]:
        """Theorems 3.2, 5.1 and 6.1."""
        out: list[Cell] = []
        for n in self.samples:
            out += self.joined("3.2", independent(self.data, n), self.starts)
            out += self.joined("5.1", wide_first("digits", n), self.starts)
            out += self.joined("6.1", wide("digits", n), self.starts)
        out += self.joined("6.1", wide("digits", self.deep, 3), self.starts)
        small = {"3.2": independent(self.data, self.small), "5.1": wide_first("digits", self.small)}
        small["6.1"] = wide("digits", self.small)
        for theorem, setting in small.items():
            for variant in self.variants:
                changed = replace(setting, bias=False) if variant == "no biases" else replace(setting, loss=variant)
                out += self.joined(theorem, changed, self.good)
        for n in self.samples[:2] if self.data != "digits" else ():
            out += self.joined("5.1", wide_first(self.data, n), self.good)
            out += self.joined("6.1", wide(self.data, n), self.good)
        for n in self.more:
            out += self.joined("3.2", independent(self.data, n), self.good)
            out += self.joined("5.1", wide_first("digits", n), self.good)
        for n in self.largest:
            out += [replace(c, num_points=3) for c in self.joined("5.1", wide_first(self.data, n), ("random",))[:1]]
        return out

    def descents(self) -> list[Cell]:
        """Theorem 4.2 with a wide layer below the output and below narrowing ones, Theorem 6.1, case 1."""
        n, points = self.low, 2 * self.num_points + 1
        last = Setting("digits", n, (64, 32, n, 10))
        first = Setting("digits", n, (64, n, 24, 12, 10))
        relu = Setting("digits", n, (64, n, n, 10), None)
        out: list[Cell] = []
        for setting in (last, first, relu):
            squared, hinge = replace(setting, loss="mse"), replace(setting, loss="hinge")
            out += [Descent(squared, s, 0, self.recipe, 1e-20, points) for s in self.starts if s != "trained"]
            out += [Descent(s, "low rank", 0, self.recipe, 1e-12, points) for s in (setting, hinge)]
        return out

    def rays(self) -> list[Cell]:
        """The second parts of Theorem 3.2, where no unit is idle, of Theorem 5.1, and of Theorem 4.2."""
        narrow = [independent(self.data, n, _below(n)) for n in self.samples]
        first = [wide_first("digits", n) for n in self.samples]
        within = [Setting("digits", self.low, (64, self.low, 24, 12, 10))]  # as many units as examples: none is idle
        return [Far(s, start, 0, self.recipe) for s in (*narrow, *first, *within) for start in self.good]


def _below(n: int) -> tuple[int, ...]:
    """Hidden widths below N, so that every unit acts on the samples."""
    return (64, 32, 16) if n >= 100 else (n - 4, n - 8)


_RECIPE = Recipe(lr=1e-3, steps=600, batch=64, check=50)

SCALES = {
    "smoke": _Scale(
        "digits", (20,), (), (), 20, 8, 12, 1, Recipe(lr=3e-3, steps=40, batch=20, check=20), 3, 41,
        ("trained", "low rank"), ("hinge",),
    ),
    "laptop": _Scale("mnist", (40, 100, 200, 400), (500,), (1000, 2000), 40, 60, 120, 1, _RECIPE, 11, 401),
    "paper": _Scale("mnist", (40, 100, 200, 400), (500,), (1000, 2000, 4000), 100, 60, 120, 5, _RECIPE, 41, 801),
}  # fmt: skip
"""The paper has no sizes of its own: "paper" is "laptop" with five pairs of each kind and more samples.

Theorem 3.2 ends at N = 500: the first 540 images of MNIST are independent with their ones, of the first 600 only 564.
"""


def cells(scale: str) -> Sequence[Cell]:
    """All parts of the page."""
    return SCALES[scale].cells()


EXPERIMENT = Experiment(
    name=PAGE,
    title="Paths inside sublevel sets, descents and rays, exact but for rounding",
    reference="Nguyen 2019, Theorems 3.2, 4.2, 5.1, 6.1 and Figures 1 to 5",
    cells=cells,
    tables=TABLES,
    figures=FIGURES,
    claims=CLAIMS,
)
"""The page."""
