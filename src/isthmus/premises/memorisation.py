"""The assumptions of Corollaries 4.3 and 4.4 of Nguyen, Brechet, Mondelli 2021, on a network and its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.params import Params
from isthmus.premises.general_position import Position, position
from isthmus.premises.memorise import line_capacity, slab_capacity
from isthmus.premises.separability import Separability, separate
from isthmus.structure.chain import Chain, chain_of
from isthmus.structure.network_units import Units, random_units
from isthmus.training.progress import Progress, no_progress

_SUBSETS = 100
"""Random subsets of d + 1 points that the test of general position tries."""


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Assumptions (A1), (A2), (A3) of Corollary 4.3 for one network; (A1-b), which trains, is not among them.

    `held[l]`: the sets I_l they were tested on. `allowed`: the largest N for which (A1) holds, 4 floor(n_{L-2} / 8)
    floor((n_{L-1} - |I_{L-1}|) / (4 n_L)). `room[l]`: how many examples xi_l surely memorises by the
    construction here (see ``memorising``), for features in general position and m functions. `features[l]`: how the
    features I_l lie, l = 0 .. L-2 (0: the inputs); (A2) asks for ``features[L-2].generic``, (A3) for
    ``features[l].distinct``, l <= L-3, and the corollary for distinct inputs.
    """

    examples: int
    widths: tuple[int, ...]
    held: Units
    allowed: int
    room: dict[int, int]
    features: dict[int, Position]

    @property
    def L(self) -> int:
        """The number of layers."""
        return len(self.widths) - 1

    @property
    def failing(self) -> dict[str, float]:
        """The assumptions that fail, and by how much: missing room, surplus points on a hyperplane, equal points."""
        out: dict[str, float] = {}
        if self.allowed < self.examples:
            out["A1"] = self.examples - self.allowed
        for l, p in self.features.items():
            if l == self.L - 2 and not p.generic:
                out["A2"] = p.most_on_hyperplane - p.dimension
            if l < self.L - 2 and not p.distinct:
                out[f"A3, layer {l}" if l else "distinct inputs"] = p.coinciding
        return out


def memorisation(
    objective: Objective,
    params: Mapping[str, Tensor],
    held: Units | None = None,
    *,
    functions: int | None = None,
    subsets: int = _SUBSETS,
    tolerance: float = 1e-10,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Memorisation:
    """Test (A1), (A2), (A3) of Corollary 4.3: what N the widths allow, which assumption fails and by how much.

    `held`: the sets I_l, l = 1 .. L-1; default, of the sizes in the corollary: n_l - 1 units for l <= L-3,
    ceil(n_l / 2) for l = L-2 and L-1, at random but for L-2, where the units that repeat a value the least are taken:
    if these put too many points on hyperplanes {x_i = c}, (A2) fails for every set. `functions`: how many are
    memorised, for `room`; default 1 for class labels, else n_L. `subsets`, `tolerance`: of the numerical test of
    general position, see ``position``.

    Units that are off on many examples put these on one hyperplane, so (A2) as printed fails for most ReLU features.
    Stated for perceptrons; the features of convolutional layers are tested as they are, flattened.

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> objective = Objective(net, "mse", (torch.arange(3.0)[:, None], torch.zeros(3, 1)))
    >>> try: memorisation(objective, net.state_dict())
    ... except InputError as e: print(e)
    network: expected at least two hidden layers for Corollary 4.3, got 1
    """
    theta, chain = objective.check(params), chain_of(objective.program, objective.structure)
    L, n = chain.L, chain.widths
    _check_outputs(chain)
    if L < 3:
        raise InputError("network", expected="at least two hidden layers for Corollary 4.3", got=L - 1)
    generator = torch.Generator().manual_seed(seed)
    if held is None:
        held = _default_sets(objective, chain, theta, generator)
    _check_held(n, held)
    features = {}
    for l in range(L - 1):
        progress("testing how features lie", l, L - 1)
        some = _features(objective, chain, theta, l, held)
        features[l] = position(some, subsets=subsets if l == L - 2 else 0, tolerance=tolerance, generator=generator)
    progress("testing how features lie", L - 1, L - 1)
    free = {l: n[l] - len(held[l]) for l in held}
    m = functions or (n[L] if objective.data[1].is_floating_point() else 1)
    allowed = 4 * (n[L - 2] // 8) * (free[L - 1] // (4 * n[L]))
    room = {l: line_capacity(free[L - 2], free[L - 1], m) for l in range(L - 2)}
    room[L - 2] = slab_capacity(features[L - 2].dimension, free[L - 1], m)
    return Memorisation(objective.num_examples, n, held, allowed, room, features)


def separability(
    objective: Objective,
    params: Mapping[str, Tensor],
    held: Units | None = None,
    *,
    kind: str = "each",
    layers: Iterable[int] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[int, Separability]:
    """Corollary 4.4's assumption: whether the classes are linearly separable in the features I_l, l = 0 .. L-1.

    `held`: the sets I_l, of n_l / 2 to n_l - n_L units; default, random ones of n_l - n_L, the easiest. `layers`: only
    these l. `kind`: "each", n_L hyperplanes, one around each class, as the corollary says, or "argmax", see
    ``separate``. Layer L-1 of a network without output bias is tested with hyperplanes through the origin: its output
    layer has no others, which the proof of the corollary passes over (features 1 and 2 of one unit are separable, but
    no weights of it classify).

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> objective = Objective(net, data=(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 0])))
    >>> separability(objective, net.state_dict())[0].separable
    False
    """
    theta, chain = objective.check(params), chain_of(objective.program, objective.structure)
    y, n = objective.data[1], chain.widths
    _check_outputs(chain)
    if y.is_floating_point() or y.dim() != 1:
        raise UnsupportedError("labels", "separability needs one class number per example")
    if held is None:
        held = random_units(n, {l: max(n[l] - n[chain.L], -(-n[l] // 2)) for l in range(1, chain.L)}, _seeded(seed))
    _check_held(n, held)
    wanted = range(chain.L) if layers is None else sorted(set(layers))
    if not set(wanted) <= set(range(chain.L)):
        raise InputError("layers", expected=f"some of 0 .. {chain.L - 1}", got=layers)
    counts, out = _counted(objective, n[chain.L]), {}
    for done, l in enumerate(wanted):
        progress("separating features", done, len(wanted))
        bias = l < chain.L - 1 or has_output_bias(chain)
        some = _features(objective, chain, theta, l, held)[counts]
        out[l] = separate(some, y[counts], n[chain.L], kind=kind, bias=bias)
    progress("separating features", len(wanted), len(wanted))
    return out


def _counted(objective: Objective, classes: int) -> Tensor:
    """Which examples have a label that counts: that of a class, and not the one that is ignored."""
    y, labels = objective.data[1], objective.criterion.classes
    of_a_class = (y >= 0) & (y < classes)
    return of_a_class if labels is None else of_a_class & labels.counts(y)


def has_output_bias(chain: Chain) -> bool:
    """Whether the output layer can add a constant."""
    return bool(chain.layer(chain.L).vectors)


def is_perceptron(chain: Chain) -> bool:
    """Whether all layers are linear, as the corollaries suppose."""
    return all(any(n.base == "linear" for n in layer.nodes) for layer in chain.layers)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _default_sets(objective: Objective, chain: Chain, theta: Params, generator: torch.Generator) -> Units:
    L, n = chain.L, chain.widths
    sizes = {l: n[l] - 1 if l <= L - 3 else -(-n[l] // 2) for l in range(1, L)}
    held = random_units(n, sizes, generator)
    varied = chain.features(theta, single(objective.data[0]), L - 2, objective.chunk)
    held[L - 2] = _most_varied(varied, sizes[L - 2])
    return held


def _most_varied(h: Tensor, k: int) -> Tensor:
    """The k units whose most frequent value occurs the least (in any of their positions), ascending."""
    entries = [unit.reshape(len(unit), -1).T for unit in h.movedim(1, 0)]
    repeats = [max(int(v.unique(return_counts=True)[1].max()) for v in unit) for unit in entries]
    return torch.tensor(repeats).argsort(stable=True)[:k].sort().values


def _check_held(widths: tuple[int, ...], held: Mapping[int, Any]) -> None:
    for l in range(1, len(widths) - 1):
        if l not in held or len(held[l]) > widths[l]:
            got = len(held[l]) if l in held else "none"
            raise InputError(f"held[{l}]", expected=f"at most {widths[l]} unit numbers", got=got)


def _check_outputs(chain: Chain) -> None:
    """Refuse an output layer whose channels have several pixels: each of them is an output."""
    pixels = prod((next(n.shape for n in chain.layer(chain.L).nodes if n.kind == "affine") or ())[2:])
    if pixels > 1:
        raise UnsupportedError("the output layer", f"its {chain.widths[-1]} channels have {pixels} pixels each")


def _features(objective: Objective, chain: Chain, params: Params, l: int, held: Units) -> Tensor:
    h = chain.features(params, single(objective.data[0]), l, objective.chunk)
    return (chain.entered(h) if l == 0 else h[:, held[l].to(h.device)]).flatten(1).double()
