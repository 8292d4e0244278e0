"""Noise stability (Kuditipudi et al. 2019, Definitions 2 to 4): how little the noise of dropping units matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.evaluate.chain import require_hidden_chain
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.objective.given import ParamsLike
from isthmus.shown import brief, draw, line, one_line, plural, table
from isthmus.stability.noise.cushions import Piece, Work
from isthmus.stability.noise.jacobian import Layered
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@one_line
@dataclass(frozen=True)
class Condition:
    """One premise with its number. `holds` is None where the paper only says O(.) and names no constant."""

    name: str
    value: float
    needed: str
    holds: bool | None


@dataclass(frozen=True, eq=False)
class NoiseStability:
    """Definitions 2 to 4 of Kuditipudi et al. 2019 for one network, as distributions over the examples.

    Layers i = 1..d as in the paper, x^i is the value before the activation, phi(x^{i-1}) what layer i reads. Every
    entry is the best constant in its inequality for one example (an inequality 0 <= 0 gives infinity for a cushion and
    0 for a contraction):

    - ``layer_cushion[i]``: mu ||A_i||_F ||phi(x^{i-1})|| <= ||x^i||, [examples];
    - ``interlayer_cushion[i, j]``: mu ||J^{i,j}|| ||x^i|| <= ||x^j||, spectral norm; 1 for i = j;
    - ``minimal_interlayer_cushion[i]``: its minimum over j >= i;
    - ``activation_contraction[i]``: ||x^i|| <= c ||phi(x^i)||, i = 1..d-1;
    - ``interlayer_smoothness[i, j]``, 2 <= i < j: both inequalities of Definition 3 at all `times`, the largest
      number that at least half of the draws of Algorithm 1 reach; ``smoothness_draws[i, j]`` [draws, examples]
      and, apart, ``smoothness_times[i, j]`` [draws, 2, times], the minimum over the examples for each inequality;
    - ``concentration[i]``: sqrt(h_i) times the largest unit of phi(x^i) under noise over its norm, i = 1..d-1.

    With biases, x^i in place of A_i phi(x^{i-1}), x^j in place of J x^i and the affine expansion of M^{i,j} in
    place of J keep the proof of Lemma 3 word for word; without biases they are the same numbers. Convolutions are
    linear maps on the whole input, their units are channels.

    `p`: the dropout probability. `widths`: the units of the layers, inputs and outputs included. `lipschitz`: beta.
    `output_norm`: ||f(x)||, [examples]. `jacobian_norm[i, j]`: ||J^{i,j}||, [examples]. `column_share[i]`: the norm of
    each column of A_i over that of A_i. `accuracy`: the relative accuracy of the spectral norms.

    `times`: the t of Definition 3.
    """

    p: float
    times: tuple[float, ...]
    widths: tuple[int, ...]
    lipschitz: float
    output_norm: Tensor
    layer_cushion: dict[int, Tensor]
    activation_contraction: dict[int, Tensor]
    interlayer_cushion: dict[tuple[int, int], Tensor]
    jacobian_norm: dict[tuple[int, int], Tensor]
    smoothness_draws: dict[tuple[int, int], Tensor]
    smoothness_times: dict[tuple[int, int], Tensor]
    concentration: dict[int, Tensor]
    column_share: dict[int, Tensor]
    accuracy: float

    def __repr__(self) -> str:
        found = f"epsilon {brief(self.epsilon)}", f"p {self.p:g}"
        return line(self, *found, plural(self.d, "layer"), plural(len(self.output_norm), "example"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The cushions of every layer, drawn on `ax` (default: new axes). Needs ``isthmus[plot]``."""
        return draw(self, ax)

    def _repr_html_(self) -> str:
        rows = [(c.name, float(c.value), c.needed, c.holds) for c in self.conditions]
        return table(("condition", "found", "needed", "holds"), rows, repr(self))

    @property
    def d(self) -> int:
        """The number of layers."""
        return len(self.widths) - 1

    @property
    def minimal_interlayer_cushion(self) -> dict[int, Tensor]:
        """mu_{i ->}: for each example the minimum of mu_{i,j} over j >= i."""
        d = self.d
        return {
            i: torch.stack([self.interlayer_cushion[i, j] for j in range(i, d + 1)]).min(0).values
            for i in range(1, d + 1)
        }

    @property
    def interlayer_smoothness(self) -> dict[tuple[int, int], Tensor]:
        """For each example the largest rho that at least half of the draws reach."""
        return {k: _half(v) for k, v in self.smoothness_draws.items()}

    @property
    def contraction(self) -> float:
        """c of Definition 2: the maximum over examples and layers."""
        return max(float(v.max()) for v in self.activation_contraction.values())

    @property
    def smoothness(self) -> float:
        """rho of Definition 3: for at least half of the draws, all layers, examples and times at once."""
        if not self.smoothness_draws:
            return inf
        return float(_half(torch.stack([v.min(1).values for v in self.smoothness_draws.values()]).min(0).values))

    @property
    def epsilon(self) -> float:
        """Definition 4: beta c d^(3/2) max ||f(x)|| / (sqrt(h_min) min_{i >= 2} mu_i mu_{i ->})."""
        cushion = self.minimal_interlayer_cushion
        worst = min(float(self.layer_cushion[i].min()) * float(cushion[i].min()) for i in range(2, self.d + 1))
        top = self.lipschitz * self.contraction * self.d**1.5 * float(self.output_norm.max())
        return top / (sqrt(min(self.widths[1:-1])) * worst) if worst > 0 and top < inf else inf

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The side conditions of Definition 4 and of Lemma 3, with the numbers found."""
        spread = max(float(v.max()) for v in self.concentration.values())
        share = max(float(v.max()) for v in self.column_share.values()) / sqrt(self.p)
        rho, d = self.smoothness, self.d
        return (
            Condition("interlayer smoothness rho", rho, f">= 3d = {3 * d}", rho >= 3 * d),
            Condition("smallest hidden width h_min", min(self.widths[1:-1]), "large: Omega(1) up to logarithms", None),
            Condition("sqrt(h_i) ||phi||_inf / ||phi||", spread, "O(1); never above sqrt(h_i)", None),
            Condition("Lipschitz constant of the loss", self.lipschitz, "finite", self.lipschitz < inf),
            Condition("dropout probability p", self.p, "<= 3/4 (Lemma 3)", self.p <= 0.75),
            Condition("||[A_i]_j|| / (sqrt(p) ||A_i||_F)", share, "O(1) (Lemma 3)", None),
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers of Definition 4 and, per layer, five quantiles of every distribution, as plain values."""
        tables: dict[str, Mapping[Any, Tensor]] = {
            "layer_cushion": self.layer_cushion,
            "activation_contraction": self.activation_contraction,
            "interlayer_cushion": self.interlayer_cushion,
            "minimal_interlayer_cushion": self.minimal_interlayer_cushion,
            "interlayer_smoothness": self.interlayer_smoothness,
            "concentration": self.concentration,
        }
        return {
            "epsilon": self.epsilon,
            "contraction": self.contraction,
            "smoothness": self.smoothness,
            "p": self.p,
            "times": list(self.times),
            "examples": len(self.output_norm),
            "accuracy": self.accuracy,
            "conditions": [vars(c) for c in self.conditions],
            "quantiles": [0.0, 0.25, 0.5, 0.75, 1.0],
            **{name: {_name(k): _quantiles(v) for k, v in table.items()} for name, table in tables.items()},
        }


def _name(key: int | tuple[int, int]) -> str:
    return str(key) if isinstance(key, int) else f"{key[0]},{key[1]}"


def _quantiles(v: Tensor) -> list[float]:
    ordered = v.sort().values  # torch.quantile makes NaN of infinities
    return [float(ordered[round(q * (len(v) - 1))]) for q in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _half(draws: Tensor) -> Tensor:
    """The largest value that at least half of the draws (axis 0) reach."""
    return draws.sort(0, descending=True).values[ceil(len(draws) / 2) - 1]


def noise_stability(
    objective: Objective,
    params: ParamsLike,
    p: float = 0.5,
    *,
    draws: int = 20,
    times: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    examples: int | Sequence[int] | Tensor | None = None,
    lipschitz: float | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NoiseStability:
    """Layer cushions, interlayer cushions, activation contraction, interlayer smoothness and epsilon.

    `p`: the dropout probability of Algorithm 1. `draws`: how often it is drawn for Definition 3. `times`: the t
    of Definition 3, where the weights are t theta + (1 - t) theta^i, so that t = 0 is the full noise. `examples`:
    the first so many, or their numbers; default all. `lipschitz`: beta, the Lipschitz constant of the loss in the
    outputs; known for "cross_entropy" (sqrt 2), else infinite until given. `tolerance`: relative accuracy of the
    spectral norms (see ``spectral_norms``); the one reached is ``.accuracy``.

    Needs a chain of linear and convolutional layers with ReLU, pooling over disjoint windows, flattening, BatchNorm in
    evaluation mode between a layer and its ReLU; refuses others by name. Cost: for each pair of layers some tens
    of passes through the layers between them, and about d + 2 passes through the network per draw and time.

    Source: Kuditipudi et al. 2019, section 4.1, after Arora et al. 2018.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> objective = Objective(net, "mse", (torch.ones(1, 2), torch.zeros(1, 1)))
    >>> n = noise_stability(objective, {"0.weight": torch.eye(2), "2.weight": torch.ones(1, 2)})
    >>> round(float(n.layer_cushion[2]), 6), round(float(n.interlayer_cushion[1, 2]), 6)
    (1.0, 1.0)
    """
    check_kinds(noise_stability, locals())
    theta = objective.check(params)
    times = tuple(float(t) for t in times)
    _check_options(p, draws, times, lipschitz)
    chain = require_hidden_chain(objective)
    net = Layered.of(chain, theta)
    x = _examples(single(objective.data[0]), examples)
    beta = lipschitz or (sqrt(2) if objective.named_loss == "cross_entropy" else inf)
    generator = torch.Generator().manual_seed(seed)
    kept = [_algorithm_1(chain.widths, p, generator, x) for _ in range(draws)]
    work = Work(net, kept, times, tolerance, seed, progress)
    parts = x.split(work.chunk(x[:1], objective.memory, objective.bytes_each))
    found = Piece.joined([work.measure(part, k, len(parts)) for k, part in enumerate(parts)])
    return NoiseStability(p=p, times=times, widths=chain.widths, lipschitz=beta, **vars(found))


def _check_options(p: float, draws: int, times: Sequence[float], lipschitz: float | None) -> None:
    if not 0 < p < 1:
        raise InputError("p", expected="a dropout probability in (0, 1)", got=p)
    if draws < 1:
        raise InputError("draws", expected="at least 1 draw of Algorithm 1", got=draws)
    if not times or not all(0 <= t <= 1 for t in times):
        raise InputError("times", expected="numbers in [0, 1], at least one", got=times)
    if lipschitz is not None and not lipschitz > 0:
        raise InputError("lipschitz", expected="a positive number", got=lipschitz)


def _examples(x: Tensor, wanted: int | Sequence[int] | Tensor | None) -> Tensor:
    if wanted is None:
        return x
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(x):
            raise InputError("examples", expected=f"1 to {len(x)} examples", got=wanted)
        return x[:wanted]
    index = torch.as_tensor(wanted)
    if index.dtype != torch.int64 or index.dim() != 1 or not len(index):
        got = f"{index.dtype} of shape {tuple(index.shape)}"
        raise InputError("examples", expected="a number, or a list of example numbers", got=got)
    low, high = int(index.min()), int(index.max())
    if not 0 <= low <= high < len(x):
        raise InputError("examples", expected=f"numbers from 0 to {len(x) - 1}", got=f"{low} to {high}")
    return x[index.to(x.device)]


def _algorithm_1(widths: Sequence[int], p: float, generator: torch.Generator, like: Tensor) -> dict[int, Tensor]:
    """delta for the units of every hidden layer: 0 with probability p, else 1 / (1 - p)."""
    uniform = {l: torch.rand(n, generator=generator, dtype=torch.float64) for l, n in enumerate(widths)}
    return {l: torch.where(u < p, 0.0, 1 / (1 - p)).to(like) for l, u in uniform.items() if 0 < l < len(widths) - 1}
