"""Kuditipudi et al. 2019, section 6 and appendix D: subnetworks, noise stability, and the paths of Theorems 1 to 3.

Figure 2 (MNIST, a network of three convolutions), Figures 3 and 5 and appendix D.3 (CIFAR-10, VGG-11), the theorems
on a pair of the MNIST networks, and on perceptrons of digits trained with dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isthmus.connectors import Bezier, Connector, Dropout, Linear, Narrow, NoiseDropout, PolyChain
from isthmus.experiments.jobs import Network, On, Pair, Problem
from isthmus.experiments.page import Experiment, PaperValue
from isthmus.papers.kuditipudi2019 import lemma3, section5
from isthmus.papers.kuditipudi2019.claims import CLAIMS
from isthmus.papers.kuditipudi2019.figures import FIGURES
from isthmus.papers.kuditipudi2019.jobs import PAGE, Losses, Noise, Subnetworks
from isthmus.papers.kuditipudi2019.tables import tables
from isthmus.sweep import Cell
from isthmus.training.fit import Recipe


@dataclass(frozen=True)
class _Paths:
    """Methods on pairs of trained networks, on the first `examples`; `budget`: sub-intervals of the certificate."""

    methods: tuple[Connector, ...]
    examples: int | None
    num_points: int = 21
    budget: int = 100
    gap: float = 0.01

    def cells(self, networks: Sequence[Network]) -> list[Cell]:
        """Networks 2k and 2k + 1 are a pair, and k is the seed of the method."""
        out: list[Cell] = []
        for k, (a, b) in enumerate(zip(networks[::2], networks[1::2], strict=False)):
            ends = (fewer(a, self.examples), fewer(b, self.examples))
            out += [Pair(PAGE, *ends, m, k, self.num_points, self.gap, self.budget) for m in self.methods]
        return out


@dataclass(frozen=True)
class _Filters:
    """Figure 2: networks of three convolutions, their subnetworks, and narrow networks of the same form."""

    data: str
    channels: int
    recipe: Recipe
    trials: int
    ps: tuple[float, ...]
    draws: int
    widths: tuple[int, ...]
    narrow_recipe: Recipe
    examples: int
    paths: _Paths
    drawn: int | None = None

    def networks(self, channels: int, recipe: Recipe) -> list[Network]:
        """One for each trial, as in the paper's code: no pooling, no biases."""
        problem = Problem(f"convnet:{channels}:nopool:nobias", self.data, dtype="float32")
        return [Network(problem, seed, recipe, 0.0) for seed in range(self.trials)]

    def cells(self) -> list[Cell]:
        """The three plots, then the paths between neighbours among the first two networks."""
        networks = self.networks(self.channels, self.recipe)
        out: list[Cell] = []
        out += [Subnetworks(fewer(n, self.examples, self.drawn), self.ps, self.draws) for n in networks]
        for width in self.widths:
            out += [
                Losses(fewer(n, self.examples, self.drawn), "2 right") for n in self.networks(width, self.narrow_recipe)
            ]
        return out + self.paths.cells(networks[:2])


@dataclass(frozen=True)
class _Channels:
    """Figures 3, 5 and D.3: two networks trained with channel-wise dropout, one without; their noise, their paths."""

    data: str
    model: str
    rates: str
    recipe: Recipe
    noisy: int
    draws: int
    passes: int
    paths: _Paths

    def network(self, model: str, seed: int) -> Network:
        """Trained to the end of its steps."""
        return Network(Problem(model, self.data, dtype="float32"), seed, self.recipe, 0.0)

    def cells(self) -> list[Cell]:
        """Losses with dropout off and active, noise stability with and without training by dropout, the paths."""
        networks = [self.network(f"{self.model}:dropout={self.rates}", seed) for seed in (0, 1)]
        plain = self.network(self.model, 0)
        noise = [Noise(fewer(n, self.noisy), 0.5, self.draws) for n in (networks[0], plain)]
        losses = [Losses(networks[0], "text", self.passes), Losses(networks[1], "text", self.passes)]
        return [*noise, *losses, Losses(plain, "text"), *self.paths.cells(networks)]


@dataclass(frozen=True)
class _Perceptrons:
    """Pairs of perceptrons trained with dropout."""

    model: str
    recipe: Recipe
    pairs: int
    paths: _Paths
    draws: int = 200

    def cells(self) -> list[Cell]:
        """Lemma 3 on every network, and the paths between neighbours."""
        problem = Problem(self.model, "digits")
        networks = [Network(problem, seed, self.recipe, 0.0) for seed in range(2 * self.pairs)]
        dropped = [lemma3.LowDraws(fewer(n, self.paths.examples), draws=self.draws) for n in networks]
        return [*dropped, *self.paths.cells(networks)]


def fewer(network: Network, examples: int | None, drawn: int | None = None) -> On:
    """The network without its dropout, on so many training examples and no test examples; None for all.

    They are the first ones, or with `drawn` random ones from that seed.
    """
    model = network.problem.model.partition(":dropout=")[0]
    changes = {} if examples is None else {"examples": examples, "tests": 0, "drawn": drawn}
    return On(network, replace(network.problem, model=model, **changes))


# the paper's trainings (appendix D.1); Keras' decay of 1e-6 per step changes the learning rate by half a percent
_SGD = Recipe("sgd", lr=0.1, steps=5000, batch=64, momentum=0.0, schedule="constant", check=5000)
_EPOCH = 50_000 // 128
_VGG = Recipe("sgd", lr=0.05, steps=300 * _EPOCH, batch=128, weight_decay=5e-4, schedule="halving", check=30 * _EPOCH,
              nesterov=False)  # fmt: skip
_PS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_DIGITS = Recipe(steps=6000, batch=256)

SCALES = {
    "smoke": (
        _Filters(
            "digits", 8, Recipe(lr=1e-2, steps=80, batch=64), 2, (0.2, 0.5), 3, (1, 2),
            Recipe(lr=1e-2, steps=80, batch=64), 200,
            _Paths(
                (Linear(), Dropout(masks=4), NoiseDropout(draws=2), Narrow(p=0.25, draws=2, recipe=Recipe(steps=30))),
                200, 3, 2,
            ),
        ),
        _Channels(
            "digits", "convnet:8", "0.1x2-0.25", Recipe(lr=1e-2, steps=80, batch=64), 60, 3, 1,
            _Paths((Linear(), Narrow(width=2, draws=2, recipe=Recipe(steps=30))), 200, 3, 0),
        ),
        _Perceptrons(
            "mlp:64-20x2-10:dropout=0.25", Recipe(lr=1e-2, steps=200, batch=128), 1,
            _Paths(
                (Linear(), NoiseDropout(draws=4), Narrow(p=0.3, draws=4, attempts=1, recipe=Recipe(steps=100))),
                None, 5, 20,
            ),
            8,
        ),
    ),
    "laptop": (
        _Filters(
            "mnist", 32, replace(_SGD, steps=2000, check=2000), 5, _PS, 20,
            (1, 2, 4, 6), replace(_SGD, steps=1500, check=1500), 2048,
            _Paths(
                (Linear(), Dropout(), NoiseDropout(), Narrow(p=0.2, attempts=1, recipe=Recipe(steps=1500))),
                2048, 11, 0,
            ),
        ),
        _Channels(
            # p / ((1 - p) n), the relative noise of dropout in a layer of n channels, is that of the paper
            "cifar10", "vgg11:16", "0.08x3-0.2x7", Recipe(lr=1e-3, steps=9 * _EPOCH, batch=128, check=3 * _EPOCH),
            64, 20, 1,
            _Paths(
                (Linear(), Dropout(masks=10), NoiseDropout(), Narrow(p=0.2, attempts=1, recipe=Recipe(steps=1500))),
                2500, 11, 0,
            ),
        ),
        _Perceptrons(
            "mlp:64-60x4-10:dropout=0.25", _DIGITS, 3,
            _Paths((Linear(), Dropout(), NoiseDropout(), Narrow(p=0.3, width=12)), None, 61),
        ),
    ),
    "paper": (
        _Filters(
            "mnist", 32, _SGD, 5, _PS, 20, (1, 2, 3, 4, 5, 6, 8, 10), _SGD, 4096,
            _Paths((Linear(), Dropout(), NoiseDropout(), Narrow(p=0.2)), 4096, 61), 0,
        ),
        _Channels(
            "cifar10", "vgg11:64:he", "0.25x3-0.5x7", _VGG, 50_000, 20, 10,
            _Paths(
                (Linear(), Dropout(), NoiseDropout(), Narrow(width=(16, 32, 64, 128, *(256,) * 6))),
                50_000, 61, 0,
            ),
        ),
        _Perceptrons(
            "mlp:64-60x4-10:dropout=0.25", _DIGITS, 10,
            _Paths((Linear(), Dropout(), NoiseDropout(), Narrow(p=0.3, width=12)), None, 61),
        ),
    ),
}  # fmt: skip
"""What is run: Figure 2, Figures 3 and 5, the perceptrons."""


_FILTERS, _CHANNELS, _ = SCALES["paper"]
_PAPER = {
    "filters": _FILTERS.networks(_FILTERS.channels, _FILTERS.recipe)[0],
    "channels": _CHANNELS.network(f"{_CHANNELS.model}:dropout={_CHANNELS.rates}", 0),
    "plain": _CHANNELS.network(_CHANNELS.model, 0),
}


APART = {"smoke": (2,), "laptop": (2, 3, 4, 6, 8), "paper": (2, 3, 4, 6, 8)}
"""Section 5: numbers of hidden units."""
_CURVES = (
    Linear(),
    Bezier(recipe=Recipe(lr=1e-2, steps=4000, batch=64)),
    PolyChain(recipe=Recipe(lr=1e-2, steps=4000, batch=64)),
)
_BETWEEN = {
    "smoke": (Linear(), Bezier(recipe=Recipe(lr=1e-2, steps=60, batch=64))),
    "laptop": _CURVES,
    "paper": _CURVES,
}


def cells(scale: str) -> Sequence[Cell]:
    """All parts of the page."""
    filters, channels, perceptrons = SCALES[scale]
    apart = [section5.Apart(h, method) for h in APART[scale] for method in _BETWEEN[scale]]
    return [*channels.cells(), *filters.cells(), *perceptrons.cells(), *apart]


EXPERIMENT = Experiment(
    name=PAGE,
    title="Dropout stability, noise stability and the paths they give",
    reference="Kuditipudi et al. 2019, Figures 2, 3, 5 and D.3",
    cells=cells,
    tables=(*tables(_PAPER), lemma3.TABLE, section5.TABLE),
    figures=FIGURES | {"section-5": section5.figure},
    paper=(
        PaperValue({"figure": "text", "what": "training set, dropout off"}, "accuracy %", 99, "section 6"),
        PaperValue({"figure": "text", "what": "test set, dropout off"}, "accuracy %", 92, "section 6"),
        PaperValue({"figure": "text", "what": "training set, dropout active"}, "accuracy %", 95, "section 6"),
        PaperValue({"figure": "text", "what": "test set, dropout active"}, "accuracy %", 91, "section 6"),
        PaperValue({"figure": "5", "method": "Linear"}, "loss", 2.34, "section 6 and Figure 5"),
        PaperValue({"figure": "5", "method": "Linear"}, "accuracy %", 10, "section 6 and Figure 5"),
    ),
    claims=(*CLAIMS, *lemma3.CLAIMS, *section5.CLAIMS),
)
"""The page."""
