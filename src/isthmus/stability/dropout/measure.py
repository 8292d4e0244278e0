"""How dropout stable a trained network is: the smallest epsilon of Definition 1 that was found, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from math import inf, nan
from typing import TYPE_CHECKING, Any

import torch

from isthmus.checks import check_loss
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite
from isthmus.shown import brief, draw, line, one_line, plural, table
from isthmus.stability.dropout.dropped import Dropped
from isthmus.stability.dropout.search import Sought
from isthmus.stability.dropout.search import search as search_subsets
from isthmus.structure.chain import Chain
from isthmus.structure.network_units import Units
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@one_line
@dataclass(frozen=True, eq=False)
class StableLayer:
    """theta_i of Definition 1 for the entry layer i, the best that was found.

    `kept[j]`: the units that stay in layer j = i .. L-1; their outputs are multiplied by `factors[j]`, those of layer
    L-1 also by `scale`. `loss` is that of theta_i, `epsilon` what it has above the network's own. `separates`: theta_i
    separates the data, so its loss falls for ever as the scale grows; the scale is then the largest that is searched.
    `trace`: the losses of the subsets that were tried, in order; infinity where the search spent one evaluation's
    worth of work on gradients. `curve`: the best of the first t, t = 1 .. T. `expected`, for random subsets only: the
    mean of the best of t over all choices of t among the T. `penalty`: what the weights of theta_i add to its loss.
    """

    entry: int
    kept: Units
    factors: dict[int, float]
    scale: float
    loss: float
    epsilon: float
    error: float
    test_loss: float
    test_error: float
    separates: bool
    trace: tuple[float, ...]
    expected: tuple[float, ...]
    penalty: float = 0.0

    @property
    def curve(self) -> tuple[float, ...]:
        """The best loss among the first t evaluations, t = 1 .. T."""
        return tuple(accumulate(self.trace, min))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        out = {f.name: getattr(self, f.name) for f in fields(self)} | {"curve": self.curve}
        out["kept"] = {str(j): units.tolist() for j, units in self.kept.items()}
        out["factors"] = {str(j): v for j, v in self.factors.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}


@dataclass(frozen=True, eq=False)
class DropoutStability:
    """Definition 1 for one network: `layers[k]` is theta_{k+1}; the network is `epsilon`-dropout stable.

    The subsets are the best that were found, so `epsilon` is an upper bound on the smallest one. Losses leave a
    penalty out. Error rates and test values are NaN where they are not defined or no test data were given.

    `loss`, `error`, `test_loss`, `test_error`: of the network itself, `params`. `widths`: the units of its layers.
    `keep`, `masks`, `scale`, `search`, `seed`: as they were asked for. `chain`: its layers.
    """

    layers: tuple[StableLayer, ...]
    loss: float
    error: float
    test_loss: float
    test_error: float
    widths: tuple[int, ...]
    keep: float
    masks: int
    scale: str
    search: str
    seed: int
    chain: Chain
    params: Params

    def __repr__(self) -> str:
        found = f"epsilon {brief(self.epsilon)}", f"keep {self.keep:g}", f"search {self.search}"
        return line(self, *found, plural(len(self.layers), "entry layer"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The loss after dropping, by entry layer, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def _repr_html_(self) -> str:
        rows = [(s.entry, s.loss, s.epsilon, s.error, sum(map(len, s.kept.values()))) for s in self.layers]
        return table(("entry layer", "loss", "epsilon", "error", "units kept"), rows, repr(self))

    @property
    def epsilon(self) -> float:
        """The largest over the entry layers."""
        return max(layer.epsilon for layer in self.layers)

    @property
    def limited_by(self) -> StableLayer:
        """The entry layer whose theta_i has the largest loss, its penalty included, as a path through it meets both."""
        return max(self.layers, key=lambda layer: layer.epsilon + layer.penalty)

    def vertices(self) -> dict[int, Params]:
        """theta_i as parameters of the whole network, i = 1 .. L-1: dropped units are zero."""
        return {
            s.entry: Dropped(s.entry, s.kept, s.factors, s.scale, s.loss, s.separates).vertex(self.chain, self.params)
            for s in self.layers
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the weights."""
        names = ("loss", "error", "test_loss", "test_error", "keep", "masks", "scale", "search", "seed")
        return {
            "epsilon": self.epsilon,
            **{k: getattr(self, k) for k in names},
            "widths": list(self.widths),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def dropout_stability(
    objective: Objective,
    params: ParamsLike,
    keep: float = 0.5,
    masks: int = 200,
    scale: str = "output",
    search: str = "random",
    seed: int = 0,
    *,
    test: Objective | None = None,
    progress: Progress = no_progress,
) -> DropoutStability:
    """The smallest epsilon found for which the network is epsilon-dropout stable, and theta_i for every entry layer i.

    Definition 1: theta_i keeps at most floor(keep * n_j) units in each hidden layer j >= i, multiplies
    their outputs by some factors, and drops the rest; epsilon = max_i L(theta_i) - L(theta). Half (`keep` = 1/2) is
    what Theorem 1 asks for; any fraction may be measured.

    `masks`: how many networks are evaluated per entry layer. `scale`: "output", factors n_j / kept_j and the best
    factor of the outputs, a convex problem; "each", a factor for every layer (the footnote of the definition), improved
    from there by up to 30 quasi-Newton steps for the best subset; "layer", n_j / kept_j alone; "none", no factor.
    Networks without biases need only the first: their factors multiply. `search`: "random" is the paper's; "magnitude",
    "greedy" and "gates" look at the network and find far better subsets at the same price, "gates" the best.
    `test`: the objective on test data, at which theta_i is measured too.

    Needs a chain of layers. Cost: masks * (L - 1) evaluations of networks of keep * the width.
    Source: Kuditipudi et al. 2019, Definition 1 and section 6.

    Errors: ``UnsupportedError`` for a network that is no chain of layers, ``InputError`` for numbers that do not fit.

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> objective = Objective(net, "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    >>> s = dropout_stability(objective, {"0.weight": torch.ones(2, 1), "2.weight": torch.full((1, 2), 0.5)})
    >>> s.epsilon, s.layers[0].factors, s.layers[0].scale
    (0.0, {1: 2.0}, 1.0)
    """
    check_kinds(dropout_stability, locals())
    theta = objective.check(params)
    check_finite(theta, "params")
    sought = Sought(keep, masks, scale, search, screen=False)
    chain = require_hidden_chain(objective)
    found = search_subsets(objective, chain, theta, sought, torch.Generator().manual_seed(seed), progress)
    loss, error = _measure(objective, theta)
    check_loss("params", loss)
    test_loss, test_error = _measure(test, theta)
    layers = []
    for i, d in found.items():
        vertex = d.vertex(chain, theta)
        at_test = _measure(test, vertex)
        expected = expected_best(d.trace) if search == "random" else ()
        layers.append(
            StableLayer(
                i, d.kept, d.factors, d.scale, d.loss, d.loss - loss, _measure(objective, vertex)[1], *at_test,
                d.separates, d.trace, expected, objective.penalty_of(vertex),
            )
        )  # fmt: skip
    return DropoutStability(
        tuple(layers), loss, error, test_loss, test_error, chain.widths, keep, masks, scale, search, seed, chain, theta
    )


def _measure(objective: Objective | None, params: Params) -> tuple[float, float]:
    """(loss without penalty, error rate)."""
    if objective is None:
        return nan, nan
    loss, error = objective.measure(params)
    return loss - objective.penalty_of(params), error


def expected_best(losses: Sequence[float]) -> tuple[float, ...]:
    """The mean of the smallest of t of these T numbers over all choices of t of them, for t = 1 .. T.

    With x_(1) <= ... <= x_(T) it is the sum over k of x_(k) C(T-k, t-1) / C(T, t), an unbiased estimate of the expected
    best of t for numbers that were drawn independently. NaN counts as infinity.

    >>> expected_best([3.0, 1.0, 2.0])
    (2.0, 1.3333333333333333, 1.0)
    """
    x = torch.tensor([v if v == v else inf for v in losses], dtype=torch.float64).sort().values
    T = len(x)
    k = torch.arange(1, T + 1, dtype=torch.float64)
    out = []
    weight = torch.full((T,), 1 / T, dtype=torch.float64)
    for t in range(1, T + 1):
        used = weight > 0
        out.append(float((weight[used] * x[used]).sum()))
        # C(T-k, t) / C(T, t+1) from C(T-k, t-1) / C(T, t)
        weight = weight * (T - k - t + 1).clamp(min=0) * (t + 1) / (t * (T - t)) if t < T else weight
    return tuple(out)
