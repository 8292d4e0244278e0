"""``align``: the second of two networks renumbered so that its units are those of the first, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.alignment.activations import ActivationMatching
from isthmus.alignment.assignment import is_order
from isthmus.alignment.change import change
from isthmus.alignment.matching import Matching, MatchingRun, MatchingTask
from isthmus.alignment.rotations.frame import Rotatable
from isthmus.alignment.rotations.streams import frame_of
from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate.batchnorm import no_weights
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, cast, check_ends, distance, dot
from isthmus.shown import draw, line, table
from isthmus.structure import Structure
from isthmus.training.progress import Progress, no_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_FEW = 256
_PERMUTATION, _ROTATION, _NORM, _BEFORE = "permutation/", "rotation/", "norm/", "norm before/"
_ERROR = 1e-12
"""The largest relative change of the outputs in float64 that rounding explains, on networks of ordinary depth."""


@dataclass(frozen=True, eq=False)
class Renumbering:
    """A permutation for each group of units, and perhaps rotations, to be made on any parameters of the network.

    Unit u of ``apply(params)`` is unit ``permutations[group][u]`` of `params`; it computes the same function.
    `rotations`: after that, for some groups, the units are rotated: unit u is then the sum over v of
    ``rotations[group][..., u, v]`` times unit v, where the axes before are heads (each turns by itself). `norms`: the
    gains and biases of norms after that, by the names of the tensors (a's own); the weights that read the norms take up
    the difference. `before`: those that ``inverse`` gives back (b's own). `frame`: where the rotated units are.

    `structure`: the groups of units. `permutations`: by the name of the group, [units].
    """

    structure: Structure
    permutations: Mapping[str, Tensor]
    rotations: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    before: Mapping[str, Tensor] = field(default_factory=dict)
    frame: Rotatable | None = None

    def apply(self, params: Mapping[str, Tensor]) -> Params:
        """The parameters with their units renumbered and rotated, such as another checkpoint of the same run.

        Rotations are made in float64; permutations move entries as they are. Errors: ``InputError`` for gains of norms
        that a rotation does not commute with.
        """
        if self.frame is None:
            return self.structure.permute(params, self.permutations)
        return self.frame.apply(params, self.permutations, self.rotations, self.norms)

    def inverse(self) -> Renumbering:
        """The one that takes this one back: of the target it makes b, whose norms it puts back.

        Of other checkpoints it makes networks with b's norms, which compute what they did.
        """
        orders = {k: v.argsort() for k, v in self.permutations.items()}
        if self.frame is None:
            return Renumbering(self.structure, orders)
        back = {k: self.frame.renumbered(k, v.mT.contiguous(), orders) for k, v in self.rotations.items()}
        orders = self.frame.carried(orders, self.rotations)
        return Renumbering(self.structure, orders, back, self.before, self.norms, self.frame)

    def _and(self, later: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The permutations with others after them."""
        return {k: v[later[k]] for k, v in self.permutations.items()}

    def then(self, other: Renumbering) -> Renumbering:
        """This one, and then the other."""
        if other.permutations.keys() != self.permutations.keys():
            raise InputError("other", expected="a renumbering of the same network", got=sorted(other.permutations))
        frame = self.frame or other.frame
        if frame is None:
            return Renumbering(self.structure, self._and(other.permutations))
        frame = frame.joined(other.frame or frame)
        later = frame.carried(other.permutations, {k: v.mT for k, v in self.rotations.items()})
        orders = self._and(later)
        both = frame.composed(self.rotations, orders, other.rotations, other.permutations)
        orders = {k: torch.arange(len(v)) if k in both else v for k, v in orders.items()}
        norms, before = ({**p, **q} for p, q in ((self.norms, other.norms), (other.before, self.before)))
        return Renumbering(self.structure, orders, both, norms, before, frame)

    def __repr__(self) -> str:
        return line(self, self._moved_in_words())

    def _moved_in_words(self) -> str:
        sizes = {k: len(v) for k, v in self.permutations.items()}
        away = sum(round(share * sizes[k]) for k, share in self.moved.items())
        return f"{away} of {sum(sizes.values())} units moved"

    @property
    def moved(self) -> dict[str, float]:
        """For each group the share of its units that have another number."""
        return {
            k: float((v != torch.arange(len(v))).double().mean()) if len(v) else 0.0
            for k, v in self.permutations.items()
        }

    @property
    def tensors(self) -> Params:
        """What ``apply`` needs beside the network, as named tensors for a file; ``of`` is the way back."""
        kinds = {_PERMUTATION: self.permutations, _ROTATION: self.rotations, _NORM: self.norms, _BEFORE: self.before}
        return {kind + name: v for kind, several in kinds.items() for name, v in several.items()}

    @classmethod
    def of(cls, objective: Objective, tensors: Mapping[str, Tensor]) -> Renumbering:
        """From the tensors of an alignment, such as ``connection.tensors``. Errors: of another network."""
        structure, orders = objective.structure, _named(tensors, _PERMUTATION)
        _check_orders(structure, orders)
        rotations, norms, before = (_named(tensors, kind) for kind in (_ROTATION, _NORM, _BEFORE))
        if not rotations and not norms:
            return Renumbering(structure, orders)
        frame = frame_of(objective.program, structure)[0].only(rotations, norms)
        return Renumbering(structure, orders, rotations, norms, before, frame)


def _check_orders(structure: Structure, orders: Mapping[str, Tensor]) -> None:
    sizes = {g.name: g.size for g in structure.groups}
    if orders.keys() != sizes.keys() or not all(is_order(v, sizes[k]) for k, v in orders.items()):
        want = ", ".join(f"{k} ({n})" for k, n in sizes.items())
        got = ", ".join(f"{k} ({len(v)})" for k, v in orders.items()) or "no permutations"
        raise InputError("alignment", expected=f"one of this network's groups of units: {want}", got=got)


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {k.removeprefix(kind): v.cpu() for k, v in tensors.items() if k.startswith(kind)}


@dataclass(frozen=True, eq=False)
class Alignment(Renumbering):
    """What ``align`` found.

    `target` computes f(b). `similarity`: the inner products of a with b and with `target`; `distance`: the distances;
    both without running statistics, and with tied tensors once. `function_error`: max |f(b) - f(target)| / max |f(b)|
    on at most 256 examples, in float64. `runs`: the searches, the best one's permutations are here. `dead`: for each
    group that has any, how many units do not vary over the examples, in a and in b. `notes`: what a matching could not
    do, in words.
    """

    target: Params = field(default_factory=dict)
    similarity: tuple[float, float] = (0.0, 0.0)
    distance: tuple[float, float] = (0.0, 0.0)
    function_error: float = 0.0
    runs: tuple[MatchingRun, ...] = ()
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        before, after = self.distance
        return line(
            self, self._moved_in_words(), f"{len(self.rotations)} groups rotated" if self.rotations else "",
            f"distance {before:.4g} -> {after:.4g}",
            f"function error {self.function_error:.1e}",
        )  # fmt: skip

    def plot(self, ax: Any = None) -> Axes | NDArray[Any]:
        """The share of units that moved in each layer, on `ax`; on two axes, as by default on new ones, also the
        similarity in the course of the search. ``aligned_lines`` has the loss. Needs ``isthmus[plot]``.
        """
        return draw(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as plain values: similarity, distance, function_error, moved, rotated, notes, dead,
        runs."""
        return {
            "similarity": list(self.similarity), "distance": list(self.distance), "function_error": self.function_error,
            "units": {k: len(v) for k, v in self.permutations.items()}, "moved": self.moved,
            "rotated": list(self.rotations), "notes": list(self.notes),
            "dead": {k: list(v) for k, v in self.dead.items()},
            "runs": [asdict(run) | {"trace": list(run.trace)} for run in self.runs],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        moved = self.moved
        rows = [(k, len(v), f"{moved[k]:.1%}") for k, v in self.permutations.items()]
        return table(("group", "units", "moved"), rows, repr(self))


def align(
    objective: Objective,
    a: ParamsLike,
    b: ParamsLike,
    matching: Matching | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Alignment:
    """`b` with its hidden units renumbered to be those of `a`, by `matching`; what it computes stays the same.

    The result's ``target`` holds exactly the entries of b, in other places, unless the matching rotates too. It is
    checked to compute f(b): a change of more than rounding raises. Neither input is touched. The same seed gives the
    same result.

    Errors: what ``objective.structure`` refuses; ``InputError`` for ends that do not fit.

    Source: Ainsworth, Hayase, Srinivasa 2022 (weights), Li et al. 2015 (activations).

    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> objective = Objective(net, data=(x, y))
    >>> b = {k: v.clone() for k, v in net.state_dict().items()}
    >>> a = objective.structure.permute(b, {"0": [1, 0]})
    >>> found = align(objective, a, b)
    >>> found.permutations["0"].tolist(), found.distance[1]
    ([1, 0], 0.0)
    """
    check_kinds(align, locals(), but=["matching"])
    start, goal = objective.check(a, "a"), objective.check(b, "b")
    check_ends(start, goal)
    return aligned(
        MatchingTask(objective, start, goal, torch.Generator().manual_seed(seed), progress),
        chosen(matching),
    )


def chosen(matching: Matching | None) -> Matching:
    """The matching that is given, or the usual one. Errors: what is none."""
    if matching is None:
        return ActivationMatching()
    if not isinstance(matching, Matching):
        raise InputError("matching", expected="a matching such as im.WeightMatching()", got=type(matching).__name__)
    return matching


def aligned(task: MatchingTask, matching: Matching) -> Alignment:
    """What ``align`` does, of a checked task."""
    found, objective = chosen(matching).find(task), task.objective
    how = Renumbering(
        objective.structure, found.permutations, found.rotations, found.norms, found.before, found.frame
    )  # fmt: skip
    target = how.apply(task.b)
    # in float64: rounding to a narrower type afterwards is not what the check is about
    wide = target if found.frame is None else how.apply(cast(task.b, torch.float64))
    out = set(no_weights(objective))
    a, b, c = ({k: v for k, v in p.items() if k not in out} for p in (task.a, task.b, target))
    return Alignment(
        how.structure, how.permutations, how.rotations, how.norms, how.before, how.frame, target,
        (dot(a, b), dot(a, c)), (distance(a, b), distance(a, c)), function_error(objective, task.b, wide),
        found.runs, found.dead, found.notes,
    )  # fmt: skip


def function_error(objective: Objective, b: Params, target: Params) -> float:
    """max |f(b) - f(target)| / max |f(b)| on the first examples in float64. Errors: more than rounding."""
    error = change(objective, b, target, _FEW)
    if not error <= _ERROR:
        raise IsthmusError(f"internal error: the function changed by {error:.1e} of its outputs; please report it")
    return error
