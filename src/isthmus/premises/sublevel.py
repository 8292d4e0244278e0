"""What Nguyen 2019 asks of a network and its data: widths against N, ranks, Property 3.1, Assumptions 2.1, 2.2, 2.4.

Its theorems differ in the layer k whose features [F_k, 1] play the part of linearly independent data for the layers
above: k = 0 for Theorem 3.2, 1 for 5.1, L-1 for 6.1, any for 4.2. Layers up to k are wide; the layers above k get
narrower, and their activations have an inverse. Here every k from 0 to L-1 is considered: the proofs of 5.1 and
6.1 hold together for the k in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, isnan, nan, prod

import torch
from torch import Tensor

from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params, cast
from isthmus.paths.full_rank import ones_column
from isthmus.stability.noise.measure import Condition
from isthmus.structure.activations import Activation, activation_of, affine_of, check_units, design, reads_flat
from isthmus.structure.chain import Chain
from isthmus.structure.slopes import chain_with_slopes

__all__ = [
    "RANK",
    "LevelNetwork",
    "SublevelConditions",
    "Theorem",
    "independent_examples",
    "narrowing",
    "rank_of",
    "singular_values",
    "sublevel_conditions",
]

WITHOUT_BIASES = "Lemma 5.2 moves biases, and this layer has none"
"""How the condition on the features of a layer without biases begins."""

RANK = 1e-12
"""Singular values below this fraction of the largest count as zero."""


def singular_values(M: Tensor) -> Tensor:
    """The singular values of M, descending; of its triangular factor, which is cheaper where M is far from square."""
    tall = M if len(M) >= M.shape[1] else M.T
    return torch.linalg.svdvals(torch.linalg.qr(tall, mode="r")[1] if len(tall) > 2 * tall.shape[1] else tall)


def rank_of(M: Tensor, tol: float = RANK) -> int:
    """The number of singular values above `tol` times the largest.

    >>> rank_of(torch.tensor([[1.0, 0.0], [0.0, 1e-13]], dtype=torch.float64))
    1
    """
    s = singular_values(M)
    return int((s > tol * s[0]).sum()) if len(s) else 0


def independent_examples(x: Tensor, tol: float = RANK) -> int:
    """The largest n for which the first n rows of x are linearly independent, by orthogonalisation in order.

    >>> independent_examples(torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 3.0]]))
    2
    """
    pivots = torch.linalg.qr(x.T, mode="r")[1].diagonal().abs()
    small = (pivots <= tol * x[: len(pivots)].norm(dim=1)).nonzero()
    return int(small[0]) if len(small) else len(pivots)


def closest_rows(x: Tensor, chunk: int = 4096) -> float:
    """The least distance of two rows of x [N, d], N >= 2; above `chunk` rows in blocks, as there are N^2 / 2 distances.

    Blocks are by matrix products, in which digits cancel, and each row's nearest by its own difference then.

    >>> closest_rows(torch.tensor([[0.0], [5.0], [3.0]])), closest_rows(torch.tensor([[0.0], [5.0], [3.0]]), chunk=2)
    (2.0, 2.0)
    """
    if len(x) <= chunk:
        return float(torch.pdist(x).min())
    least = float("inf")
    for start in range(0, len(x) - 1, chunk):  # a last row by itself has been compared with all others
        rows = x[start : start + chunk]
        distances = torch.cdist(rows, x[start:])
        distances.fill_diagonal_(float("inf"))
        least = min(least, float((rows - x[start:][distances.argmin(1)]).norm(dim=1).min()))
    return least


@dataclass(frozen=True, eq=False)
class LevelNetwork:
    """A chain of layers with its data, read in float64: what the constructions of Nguyen 2019 work on."""

    objective: Objective
    chain: Chain
    x: Tensor
    sizes: dict[int, tuple[int, int]]
    _reached: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, objective: Objective, params: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> LevelNetwork:
        """Read the objective's module at some points. Errors: no chain, normalisation, several input tensors."""
        wide = objective.cast(torch.float64)
        chain = chain_with_slopes(wide.program, wide.structure, (params, *others))
        check_units(chain)
        x = single(wide.data[0])
        point, h, sizes = cast(params, torch.float64), x[:1], {}
        for l in range(1, chain.L + 1):
            G = design(chain, l, point, h)
            sizes[l] = (len(G) * len(x), G.shape[2])
            h = chain.through(point, h, l)
        return cls(wide, chain, x, sizes)

    @property
    def N(self) -> int:
        """The number of samples."""
        return len(self.x)

    @cached_property
    def inputs(self) -> Tensor:
        """The samples as the first layer reads them, one row each."""
        return self.chain.entered(self.x).flatten(1)

    @property
    def L(self) -> int:
        """The number of layers."""
        return self.chain.L

    @cached_property
    def activations(self) -> dict[int, Activation]:
        """The activations of the hidden layers 1..L-1."""
        return {l: activation_of(self.chain.layer(l)) for l in range(1, self.L)}

    def has_bias(self, l: int) -> bool:
        """Whether layer l has biases."""
        return affine_of(self.chain.layer(l)).named()["bias"] is not None

    def features(self, params: Params, l: int) -> Tensor:
        """F_l on all samples, in float64."""
        return self.chain.features(cast(params, torch.float64), self.x, l, self.objective.chunk)

    def design(self, params: Params, l: int) -> Tensor:
        """What layer l reads: [rows, n_{l-1}, k_l], with one row per sample for a linear layer."""
        return design(self.chain, l, params, self.features(params, l - 1))

    def data(self, params: Params, k: int) -> Tensor:
        """[F_k, 1] as layer k + 1 reads it; without the column of ones where that layer has no biases."""
        return ones_column(self.design(params, k + 1).flatten(1), self.has_bias(k + 1))

    def reached(self, l: int) -> Tensor:
        """What layer l + 1 reads behind random weights of layers 1 .. l, for several draws of layer l side by side.

        Its rank is the one that layer l can reach if it has no biases to move: with samples that are zero or
        proportional, or an odd activation, that may be less than their number.
        """
        if l not in self._reached:
            rows, each = self.sizes[l + 1]
            draws = max(1, min(8, ceil(4 * rows / (each * self.chain.widths[l]))))
            generator = torch.Generator().manual_seed(0)
            below = {k: v for p in range(1, self.L + 1) for k, v in self._random(p, generator).items()}
            found = [self.design(below | self._random(l, generator), l + 1).flatten(1) for _ in range(draws)]
            self._reached[l] = torch.cat(found, 1)
        return self._reached[l]

    def _random(self, l: int, generator: torch.Generator) -> Params:
        """Normal weights of layer l, of the size that keeps features as large as they are."""
        layer, shapes = self.chain.layer(l), self.objective.structure.shapes
        inputs = prod(shapes[layer.weight][1:])
        draws = {k: torch.randn(shapes[k], generator=generator, dtype=torch.float64) for k in layer.trainable}
        return {k: v.to(self.x.device) * (2 / inputs) ** 0.5 for k, v in draws.items()}

    def units_needed(self, l: int) -> int:
        """How many units of layer l give layer l + 1 a matrix of full row rank: N for perceptrons."""
        rows, each = self.sizes[l + 1]
        return ceil(rows / each)

    @cached_property
    def closest(self) -> float:
        """The least distance of two samples, over the largest norm of a sample less the mean (Assumption 2.4)."""
        flat = self.inputs - self.inputs.mean(0)
        if len(flat) < 2:
            return 1.0
        return closest_rows(flat) / (float(flat.norm(dim=1).max()) or 1.0)


@dataclass(frozen=True)
class Theorem:
    """A statement with its premises. `level` is the layer k whose features are the data of the layers above."""

    name: str
    level: int
    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> bool:
        """Whether no premise is known to fail."""
        return all(c.holds is not False for c in self.conditions)

    @property
    def failing(self) -> list[str]:
        """The premises that fail, with their numbers."""
        found = {c.name: "none" if isnan(c.value) else f"{c.value:g}" for c in self.conditions}
        return [f"{c.name}: {found[c.name]}, needed {c.needed}" for c in self.conditions if c.holds is False]


def connecting(net: LevelNetwork) -> tuple[Theorem, ...]:
    """The theorems by which sublevel sets are connected, the one to be preferred first."""
    L = net.L
    order = dict.fromkeys([L - 1, 0, *range(1, L)])
    return tuple(Theorem(_name(k, L), k, (*_wide(net, k), *narrowing(net, k))) for k in order)


def descending(net: LevelNetwork) -> tuple[Theorem, ...]:
    """The theorems by which a path leads from any point down to the infimum, the one to be preferred first."""
    out = []
    for k in reversed(range(net.L)):
        if k == 0:
            out.append(Theorem(_name(0, net.L), 0, (*_wide(net, 0), *narrowing(net, 0))))
            continue
        needed = net.units_needed(k)
        conditions = (_width(net, k, needed, "N"), _distinct(net), *_without_biases(net, k), _independent(net, k))
        out.append(Theorem(_descent(net, k), k, (*conditions, *narrowing(net, k))))
    return tuple(out)


def _descent(net: LevelNetwork, k: int) -> str:
    """The theorem that covers a descent by layer k >= 1 if its premises hold; else which parts of the proofs do it.

    What they speak of are perceptrons, and Lemma 5.2 moves biases. Where no theorem is named, samples that layer k - 1
    cannot tell apart may stand in the way.
    """
    known = [a for a in net.activations.values() if a.independent and a.plain]
    if len(known) == net.L - 1 and all(net.sizes[l + 1] == (net.N, 1) for l in net.activations):
        if net.has_bias(k) and all(a.onto for a in known):
            return "4.2"
        wide = all(net.chain.widths[l] >= net.N and net.has_bias(l) for l in net.activations)
        if k == net.L - 1 and wide:
            return "6.1 (case 1)"
    return f"Lemma 5.2 for layer {k}, " + ("convexity above it" if k == net.L - 1 else "Theorem 3.2 above it")


def _name(k: int, L: int) -> str:
    if k == L - 1:
        return "6.1 (case 2)" if L > 1 else "convexity"
    return {0: "3.2", 1: "5.1"}.get(k, f"5.1 with layer {k} in place of layer 1")


def _wide(net: LevelNetwork, k: int) -> list[Condition]:
    """Of the layers 1..k, and of the data."""
    if k == 0:
        if net.L == 1:
            return []
        flat = Condition("layer 1 reads one row per sample", float(reads_flat(net.chain.layer(1))), "1", None)
        if not reads_flat(net.chain.layer(1)):
            return [Condition(flat.name, 0.0, "1", False)]
        rank = rank_of(ones_column(net.inputs, net.has_bias(1)))
        return [Condition("rank of [X, 1]" if net.has_bias(1) else "rank of X", rank, f"N = {net.N}", rank == net.N)]
    # above the first layer biases are no matter: behind features of full rank pre-activations can be anything
    out = [_distinct(net), *_without_biases(net, 1)]
    for l in range(1, k + 1):
        out += [_width(net, l, 2 * net.units_needed(l), "2N"), _independent(net, l)]
    return out


def _width(net: LevelNetwork, l: int, needed: int, what: str) -> Condition:
    n = net.chain.widths[l]
    rows, each = net.sizes[l + 1]
    same = rows == net.N and each == 1
    text = f">= {what} = {needed}" if same else f">= {needed} units for {rows} rows"
    return Condition(f"n_{l}", n, text, n >= needed)


def _distinct(net: LevelNetwork) -> Condition:
    return Condition("least distance of two samples (Assumption 2.4)", net.closest, f"> {RANK:g}", net.closest > RANK)


def _without_biases(net: LevelNetwork, l: int) -> list[Condition]:
    """Lemma 5.2 moves biases, by which the samples become independent; without them other weights must do it."""
    if net.has_bias(l):
        return []
    rows, rank = net.sizes[l + 1][0], rank_of(net.reached(l))
    what = "N" if rows == net.N else "rows"
    return [Condition(f"{WITHOUT_BIASES}: rank of F_{l}", rank, f"{what} = {rows}", rank == rows)]


def _independent(net: LevelNetwork, l: int) -> Condition:
    a = net.activations[l]
    value = nan if a.independent is None else float(a.independent)
    return Condition(f"Assumption 2.2 for {a.name}, layer {l}", value, "1", a.independent)


def narrowing(net: LevelNetwork, k: int) -> list[Condition]:
    """Of the layers k+1..L: linear ones that get narrower, with activations onto R between them."""
    out = []
    for l in range(k + 1, net.L + 1):
        if not reads_flat(net.chain.layer(l)):
            out.append(Condition(f"layer {l} reads one row per sample", 0.0, "1", False))
    for l in range(k + 1, net.L):
        n, m = net.chain.widths[l], net.chain.widths[l + 1]
        out.append(Condition(f"n_{l}", n, f"> n_{l + 1} = {m}", n > m))
        a = net.activations[l]
        slope = nan if a.slope is None else a.slope
        name = f"Assumption 2.1: slope of {a.name}, layer {l}, on negative numbers"
        out.append(Condition(name, slope, "> 0, and nothing else between the layers", a.onto and a.plain))
    return out


@dataclass(frozen=True, eq=False)
class SublevelConditions:
    """The premises of Nguyen 2019 at given points, numerical ranks with singular values above `tol` of the largest.

    `rank_data`: of [X, 1]; per point, `rank_features[l]` of F_l as the next layer reads it and `condition_features[l]`
    its condition number; `full_rank[l]`, l = 2..L: the least over the largest singular value of W_l (Property 3.1
    asks for more than 0). `connected` and `descent` list the theorems with their premises.
    """

    examples: int
    widths: tuple[int, ...]
    tol: float
    rank_data: int
    rank_features: tuple[dict[int, int], ...]
    condition_features: tuple[dict[int, float], ...]
    full_rank: tuple[dict[int, float], ...]
    connected: tuple[Theorem, ...]
    descent: tuple[Theorem, ...]

    @property
    def property_3_1(self) -> tuple[bool, ...]:
        """Per point, whether every W_l, l >= 2, has full rank."""
        return tuple(all(v > self.tol for v in point.values()) for point in self.full_rank)


def sublevel_conditions(objective: Objective, *points: Mapping[str, Tensor], tol: float = RANK) -> SublevelConditions:
    """The premises of Nguyen 2019 for a network on its data, and ranks at the given points.

    Costs one singular value decomposition of an N x n_l matrix per layer and point. Errors: ``UnsupportedError`` for
    a network that is no chain of layers or is normalised.

    >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.LeakyReLU(0.1), torch.nn.Linear(6, 2))
    >>> c = sublevel_conditions(Objective(net, data=(x, y)), net.state_dict())
    >>> c.rank_data, [(t.name, t.holds) for t in c.connected], c.property_3_1
    (3, [('6.1 (case 2)', True), ('3.2', True)], (True,))
    """
    checked = [cast(objective.check(p), torch.float64) for p in points]
    like = checked[0] if checked else {k: torch.empty_like(v) for k, v in objective._zeros().items()}
    net = LevelNetwork.of(objective, like, *checked)
    ranks: list[dict[int, int]] = []
    conditions: list[dict[int, float]] = []
    weights: list[dict[int, float]] = []
    for p in checked:
        s = {l: singular_values(net.design(p, l + 1).flatten(1)) for l in range(1, net.L)}
        ranks.append({l: int((v > tol * v[0]).sum()) for l, v in s.items()})
        conditions.append({l: float(v[0] / v[-1]) for l, v in s.items()})
        W = {l: singular_values(p[net.chain.layer(l).weight].flatten(1)) for l in range(2, net.L + 1)}
        weights.append({l: float(v[-1] / v[0]) if float(v[0]) > 0 else 0.0 for l, v in W.items()})
    return SublevelConditions(
        net.N,
        net.chain.widths,
        tol,
        rank_of(ones_column(net.inputs, True), tol),
        tuple(ranks),
        tuple(conditions),
        tuple(weights),
        connecting(net),
        descending(net),
    )
