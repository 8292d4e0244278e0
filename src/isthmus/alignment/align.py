"""``align``: the second of two networks renumbered so that its units are those of the first, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from isthmus.alignment.activations import ActivationMatching
from isthmus.alignment.matching import Matching, MatchingRun, MatchingTask
from isthmus.errors import InputError, IsthmusError
from isthmus.evaluate.batchnorm import statistics
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, cast, check_ends, distance, dot
from isthmus.shown import line, table
from isthmus.structure import Structure
from isthmus.training.progress import Progress, no_progress

_FEW = 256
_PERMUTATION = "permutation/"
_ERROR = 1e-12
"""The largest relative change of the outputs in float64 that rounding explains, on networks of ordinary depth."""


@dataclass(frozen=True, eq=False)
class Renumbering:
    """A permutation for each group of units, to be made on any parameters of the network.

    Unit u of ``apply(params)`` is unit ``permutations[group][u]`` of `params`; it computes the same function.
    """

    structure: Structure
    permutations: Mapping[str, Tensor]

    def apply(self, params: Mapping[str, Tensor]) -> Params:
        """The parameters with their units renumbered, such as another checkpoint of the same run."""
        return self.structure.permute(params, self.permutations)

    def inverse(self) -> Renumbering:
        """The one that takes this one back."""
        return Renumbering(self.structure, {k: v.argsort() for k, v in self.permutations.items()})

    def then(self, other: Renumbering) -> Renumbering:
        """This one, and then the other."""
        if other.permutations.keys() != self.permutations.keys():
            raise InputError("other", expected="a renumbering of the same network", got=sorted(other.permutations))
        return Renumbering(self.structure, {k: v[other.permutations[k]] for k, v in self.permutations.items()})

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
        """What ``apply`` needs beside the structure, as named tensors for a file; ``of`` is the way back."""
        return {_PERMUTATION + k: v for k, v in self.permutations.items()}

    @classmethod
    def of(cls, structure: Structure, tensors: Mapping[str, Tensor]) -> Renumbering:
        """From the tensors of an alignment, such as ``connection.tensors``. Errors: of another network."""
        held = {k.removeprefix(_PERMUTATION): v.cpu() for k, v in tensors.items() if k.startswith(_PERMUTATION)}
        sizes = {g.name: g.size for g in structure.groups}
        if held.keys() != sizes.keys() or not all(_orders(v, sizes[k]) for k, v in held.items()):
            want = ", ".join(f"{k} ({n})" for k, n in sizes.items())
            got = ", ".join(f"{k} ({len(v)})" for k, v in held.items()) or "no permutations"
            raise InputError("alignment", expected=f"one of this network's groups of units: {want}", got=got)
        return Renumbering(structure, held)


@dataclass(frozen=True, eq=False)
class Alignment(Renumbering):
    """What ``align`` found.

    `target` computes f(b). `similarity`: the inner products of a with b and with `target`; `distance`: the distances;
    both without running statistics. `function_error`: max |f(b) - f(target)| / max |f(b)| on at most 256 examples, in
    float64. `runs`: the searches, the best one's permutations are here. `dead`: for each group that has any, how many
    units do not vary over the examples, in a and in b.
    """

    target: Params = field(default_factory=dict)
    similarity: tuple[float, float] = (0.0, 0.0)
    distance: tuple[float, float] = (0.0, 0.0)
    function_error: float = 0.0
    runs: tuple[MatchingRun, ...] = ()
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        before, after = self.distance
        return line(
            self, self._moved_in_words(), f"distance {before:.4g} -> {after:.4g}",
            f"function error {self.function_error:.1e}",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All but the tensors, as plain values: similarity, distance, function_error, moved, dead, runs."""
        return {
            "similarity": list(self.similarity), "distance": list(self.distance), "function_error": self.function_error,
            "units": {k: len(v) for k, v in self.permutations.items()}, "moved": self.moved,
            "dead": {k: list(v) for k, v in self.dead.items()},
            "runs": [asdict(run) | {"trace": list(run.trace)} for run in self.runs],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        moved = self.moved
        rows = [(k, len(v), f"{moved[k]:.1%}") for k, v in self.permutations.items()]
        return table(("group", "units", "moved"), rows, repr(self))


def _orders(order: Tensor, size: int) -> bool:
    """Whether these are the numbers of so many units, each once."""
    return torch.equal(order.sort().values, torch.arange(size))


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

    The result's ``target`` holds exactly the entries of b, in other places, and is checked to compute f(b): a change of
    more than rounding raises. Neither input is touched. The same seed gives the same permutations.

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
        ActivationMatching() if matching is None else matching,
    )


def aligned(task: MatchingTask, matching: Matching) -> Alignment:
    """What ``align`` does, of a checked task."""
    if not isinstance(matching, Matching):
        raise InputError("matching", expected="a matching such as im.WeightMatching()", got=type(matching).__name__)
    objective = task.objective
    found = matching.find(task)
    structure = objective.structure
    target = structure.permute(task.b, found.permutations)
    out = set(statistics(objective))
    a, b, c = ({k: v for k, v in p.items() if k not in out} for p in (task.a, task.b, target))
    return Alignment(
        structure, found.permutations, target, (dot(a, b), dot(a, c)), (distance(a, b), distance(a, c)),
        function_error(objective, task.b, target), found.runs, found.dead,
    )  # fmt: skip


def function_error(objective: Objective, b: Params, target: Params) -> float:
    """max |f(b) - f(target)| / max |f(b)| on the first examples in float64. Errors: more than rounding."""
    few = objective.part(slice(0, _FEW)).cast(torch.float64)
    x = [v for part, _ in few.source.chunks(few.num_examples) for v in tree_leaves(part)]
    # the program computes in float64 throughout, also where the module itself asks for float32
    runs = (tree_leaves(objective.program.run(cast(p, torch.float64), *x)) for p in (b, target))
    pairs = [(v, w) for v, w in zip(*runs, strict=True) if v.is_floating_point()]
    error = max(float((v - w).abs().max()) / (float(v.abs().max()) or 1.0) for v, w in pairs)
    if not error <= _ERROR:
        raise IsthmusError(f"internal error: the function changed by {error:.1e} of its outputs; please report it")
    return error
