"""What Nguyen 2019 asks of a network and its data: widths against N, ranks, Property 3.1, Assumptions 2.1, 2.2, 2.4.

Its theorems differ in the layer k whose features [F_k, 1] play the part of linearly independent data for the layers
above: k = 0 for Theorem 3.2, 1 for 5.1, L-1 for 6.1, any for 4.2. Layers up to k are wide; the layers above k get
narrower, and their activations have an inverse. Here every k from 0 to L-1 is considered: the proofs of 5.1 and
6.1 hold together for the k in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor

from isthmus.evaluate.level_network import (
    RANK,
    LevelNetwork,
    rank_of,
    singular_values,
)
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import cast
from isthmus.paths.full_rank import ones_column
from isthmus.shown import one_line
from isthmus.stability.noise.measure import Condition
from isthmus.structure.activations import reads_flat

__all__ = [
    "SublevelConditions",
    "Theorem",
    "narrowing",
    "sublevel_conditions",
]

WITHOUT_BIASES = "Lemma 5.2 moves biases, and this layer has none"
"""How the condition on the features of a layer without biases begins."""


@one_line
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
    if _is_perceptron(net):
        if net.has_bias(k) and all(a.onto for a in net.activations.values()):
            return "4.2"
        if k == net.L - 1 and all(net.chain.widths[l] >= net.N and net.has_bias(l) for l in net.activations):
            return "6.1 (case 1)"
    return f"Lemma 5.2 for layer {k}, " + ("convexity above it" if k == net.L - 1 else "Theorem 3.2 above it")


def _is_perceptron(net: LevelNetwork) -> bool:
    """Whether one plain activation of Assumption 2.2 stands behind each hidden layer, with one row per sample."""
    known = [a for a in net.activations.values() if a.independent and a.plain]
    return len(known) == net.L - 1 and all(net.sizes[l + 1] == (net.N, 1) for l in net.activations)


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


@one_line
@dataclass(frozen=True, eq=False)
class SublevelConditions:
    """The premises of Nguyen 2019 at given points, numerical ranks with singular values above `tol` of the largest.

    `rank_data`: of [X, 1]; per point, `rank_features[l]` of F_l as the next layer reads it and `condition_features[l]`
    its condition number; `full_rank[l]`, l = 2..L: the least over the largest singular value of W_l (Property 3.1
    asks for more than 0). `connected` and `descent` list the theorems with their premises.

    `examples`: how many there are. `widths`: the units of the layers.
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


def _full_rank(W: Tensor) -> float:
    """The least over the largest singular value."""
    s = singular_values(W.flatten(1))
    return float(s[-1] / s[0]) if float(s[0]) > 0 else 0.0


def sublevel_conditions(objective: Objective, *points: ParamsLike, tol: float = RANK) -> SublevelConditions:
    """The premises of Nguyen 2019 for a network on its data, and ranks at the given points.

    `points`: parameters at which ranks are measured. `tol`: singular values at most this share of the largest count as
    0.

    Costs one singular value decomposition of an N x n_l matrix per layer and point. Errors: ``UnsupportedError`` for
    a network that is no chain of layers or is normalised.

    >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.LeakyReLU(0.1), torch.nn.Linear(6, 2))
    >>> c = sublevel_conditions(Objective(net, data=(x, y)), net.state_dict())
    >>> c.rank_data, [(t.name, t.holds) for t in c.connected], c.property_3_1
    (3, [('6.1 (case 2)', True), ('3.2', True)], (True,))
    """
    check_kinds(sublevel_conditions, locals())
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
        weights.append({l: _full_rank(p[net.chain.layer(l).weight]) for l in range(2, net.L + 1)})
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
