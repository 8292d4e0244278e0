"""``merge``: one network from the weights of several, with what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from isthmus.alignment import align_many
from isthmus.alignment.many import seen_model
from isthmus.analysis.averaging import Mean
from isthmus.analysis.check import sets_of
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import POLICIES, followed, refresh, statistics
from isthmus.evaluate.profile import profile
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite, check_like, in_dtype, in_parts, moves, nonfinite, on_circle
from isthmus.paths import Path
from isthmus.shown import brief, line, table
from isthmus.training.progress import Progress, no_progress
from isthmus.verdict import LEVEL, Level, loss_in_words

MergeMethod = Literal["average", "slerp", "task", "ties", "aligned-average"]
METHODS: dict[str, str] = {
    "average": "the mean of the weights, or of two networks the point at `at` of the straight line",
    "slerp": "of two networks, tensor by tensor, the point at `at` of the great circle (Shoemake 1985)",
    "task": "the base and the weighted sum of what each network moved (Ilharco et al. 2023)",
    "ties": "as task, of each network the largest moves, of each entry those of the elected sign (Yadav et al. 2023)",
    "aligned-average": "the mean after the units were renumbered to be those of the first (Ainsworth et al. 2022)",
}
_ON_BASE = ("task", "ties")
_DENSITY = 0.2
"""The share of entries that "ties" keeps where none is asked for (Yadav et al. 2023)."""
_GRID = 9
"""Points among which the best `at` is looked for."""


@dataclass(frozen=True, eq=False)
class Merged:
    """The network that ``merge`` made, `params`, and how: `method`, `at` or `weights`, `density`, `scale`. `searched`:
    whether `at` is the lowest of the points that were tried.

    `worth`: its loss and error by data set, and the level that the loss must stay below, from the networks' own losses;
    empty without an objective. `ends`: these losses, by data set. `bn`: what became of BatchNorm's statistics. `level`:
    as it was asked for.
    """

    params: Params = field(repr=False)
    method: str
    at: float | None = None
    weights: tuple[float, ...] = ()
    density: float | None = None
    scale: float | None = None
    worth: Mapping[str, Mean] = field(default_factory=dict)
    ends: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    level: str = LEVEL
    bn: str = "none"
    searched: bool = False

    def __repr__(self) -> str:
        losses = [f"{name} {brief(one.loss)}" for name, one in self.worth.items()]
        return line(self, self.method, *losses, *([] if self.ok is None else ["ok" if self.ok else "above the level"]))

    @property
    def ok(self) -> bool | None:
        """Whether the loss is below its level on all data sets; None where nothing was measured."""
        return all(one.below for one in self.worth.values()) if self.worth else None

    @property
    def why(self) -> str:
        """One sentence."""
        if not self.worth:
            return "Nothing was measured: give an objective."
        said = [f"{name}: {_judged(one, self.ends[name])}" for name, one in self.worth.items()]
        best = f" No point between is better than network {self.at:g}." if self.searched and self.at in (0, 1) else ""
        return f"The merged network is {'' if self.ok else 'not '}below {self._level()} ({'; '.join(said)}).{best}"

    def _level(self) -> str:
        read = Level.read(self.level)
        return f"{read.number:g} x the largest loss of the networks" if read.relative else f"{read.number:g}"

    def _repr_html_(self) -> str:
        rows = [(name, *self.ends[name], one.loss, one.level, one.error) for name, one in self.worth.items()]
        networks = [str(i) for i in range(len(next(iter(self.ends.values()), ())))]
        return table(("data", *networks, "merged", "level", "error"), rows, self.why)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the weights of the network."""
        own = {k: getattr(self, k) for k in ("method", "at", "density", "scale", "level", "bn", "ok", "why")}
        worth = {k: asdict(v) for k, v in self.worth.items()}
        return own | {"weights": list(self.weights), "worth": worth, "ends": {k: list(v) for k, v in self.ends.items()}}


def _judged(merged: Mean, ends: Sequence[float]) -> str:
    """The loss of a merged network and its level, in words."""
    lost = [i for i, loss in enumerate(ends) if not isfinite(loss)]
    if lost:
        return f"the loss of network {lost[0]} is not finite"
    return f"{loss_in_words(merged.loss)}, level {merged.level:.4g}"


@dataclass(frozen=True)
class _Recipe:
    """What the methods read: `models` as checked, their `weights`, `masks` by name, the rest as ``merge`` has it."""

    models: Sequence[Mapping[str, Tensor]]
    weights: tuple[float, ...]
    at: float | None
    base: Mapping[str, Tensor] | None
    density: float
    scale: float
    weighted: bool
    masks: frozenset[str]

    @property
    def between(self) -> bool:
        """Whether the merged network is a point between two, at `at`."""
        return len(self.models) == 2 and self.base is None and not self.weighted


def merge(
    objective: Objective | None,
    models: Sequence[ParamsLike],
    method: MergeMethod = "average",
    at: float | None = None,
    *,
    weights: Sequence[float] | None = None,
    base: ParamsLike | None = None,
    density: float = _DENSITY,
    scale: float = 1.0,
    test: Mapping[str, Objective] | Objective | None = None,
    level: float | str = LEVEL,
    bn: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Merged:
    """One network from the weights of several, and its loss beside theirs.

    `method`: one of "average", "slerp", "task", "ties", "aligned-average". `at`: of two networks, how far from the
    first; default: where the loss is lowest of 9 points, on `test` data if there are any; the middle without an
    objective and for "slerp". `weights`: of the networks, default equal (in "task" and "ties" 1 each). `base`: what the
    networks began from, for "task" and "ties"; `density`: the share of each tensor's entries that "ties" keeps;
    `scale`: of what is added to the base.

    BatchNorm's statistics are computed again from the objective's data (`bn`, as for ``profile``). `level`: as for
    ``verdict``, over the largest loss of the networks; ``merged.ok`` says whether the merged one is below it. Without
    an objective `models` are dictionaries of tensors with equal names, and nothing is measured. Networks are merged in
    float64, tensor by tensor, and kept in their own precision; tensors that cannot move, and those with infinities (a
    mask, the same in all), are the first's.

    Cost: a pass over the data for each network and for the merged one, and 9 to look for `at`. Errors:
    ``InputError`` for options that do not fit the method.

    >>> merge(None, [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], at=0.25).params["w"]
    tensor([1.5000])
    >>> models = [{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([-1.0, 3.0])}]
    >>> merge(None, models, "ties", base={"w": torch.zeros(2)}, density=0.5).params["w"]
    tensor([2., 3.])
    """
    check_kinds(merge, locals(), but=["models", "method", "base", "test", "level"])
    asked = Level.read(level)
    if method not in get_args(MergeMethod):
        raise InputError("method", expected=f"one of {', '.join(METHODS)}", got=repr(method))
    networks = _checked(objective, models)
    start = None if base is None else _one(objective, base, "base", networks[0])
    each, masks = _weights(method, weights, len(networks)), _masks(networks, start)
    recipe = _Recipe(networks, each, at, start, density, scale, weights is not None, masks)
    _check_fits(method, recipe)
    sets = _sets_for(method, objective, test)
    if objective is None:
        return _told(_made(method, recipe), method, recipe)
    policy = followed(objective, bn or POLICIES[0])
    if method == "aligned-average":
        found = align_many(objective, networks, seed=seed, progress=progress)
        recipe = replace(recipe, models=[one.target for one in found])
    if searched := recipe.between and at is None and method != "slerp":
        recipe = replace(recipe, at=_best(recipe, list(sets.values()), bn, progress))
    params = _with_statistics(objective, objective.check(_made(method, recipe)), recipe, policy)
    return _measured(replace(_told(params, method, recipe), searched=searched), sets, networks, asked, policy)


def _sets_for(
    method: str, objective: Objective | None, test: Mapping[str, Objective] | Objective | None
) -> dict[str, Objective]:
    if objective is not None:
        return sets_of(objective, test)
    if method == "aligned-average" or test is not None:
        raise InputError("objective", expected="one, for this method and for test data", got=None)
    return {}


def _measured(
    merged: Merged, sets: Mapping[str, Objective], networks: Sequence[Mapping[str, Tensor]], level: Level, policy: str
) -> Merged:
    """With its loss beside those of the networks."""
    ends = {name: tuple(one.loss(p) for p in networks) for name, one in sets.items()}
    worth = {name: Mean(*one.measure(merged.params), level.above(ends[name])) for name, one in sets.items()}
    return replace(merged, worth=worth, ends=ends, level=str(level), bn=policy)


def _told(params: Params, method: str, recipe: _Recipe) -> Merged:
    """The network with what was read of its recipe."""
    on_base = method in _ON_BASE
    at = (0.5 if recipe.at is None else recipe.at) if recipe.between else None
    density = recipe.density if method == "ties" else None
    weights = () if recipe.between else recipe.weights
    return Merged(params, method, at, weights, density, recipe.scale if on_base else None)


def _checked(objective: Objective | None, models: Sequence[ParamsLike]) -> list[Mapping[str, Tensor]]:
    if not isinstance(models, Sequence) or isinstance(models, str) or len(models) < 2:
        raise InputError("models", expected="two or more networks", got=models)
    found: list[Mapping[str, Tensor]] = []
    for i, one in enumerate(models):
        found.append(_one(objective, one, f"models[{i}]", found[0] if found else None))
    return found


def _one(
    objective: Objective | None, given: ParamsLike, what: str, like: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """A network as it is merged, of the shapes of another one; what is read ``OnDemand`` stays where it is."""
    found: Mapping[str, Tensor]
    if objective is not None:
        found = seen_model(objective, given, what)
    elif isinstance(given, Mapping):
        found = dict(given)
    else:
        raise InputError(what, expected="state_dicts without an objective", got=type(given).__name__)
    check_like(found, found if like is None else like, what)
    return found


def _masks(models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None) -> frozenset[str]:
    """The tensors with infinities, which are the same in every network; refuse NaN, and infinities that differ."""
    networks = {f"models[{i}]": one for i, one in enumerate(models)} | ({} if base is None else {"base": base})
    found = frozenset(k for one in networks.values() for k, v in one.items() if nonfinite({k: v}))
    for name in found:
        _check_same({what: one[name] for what, one in networks.items()}, name)
    return found


def _check_same(several: Mapping[str, Tensor], name: str) -> None:
    """Refuse a tensor that is not finite, but for one that is the same in all; NaN is equal to nothing."""
    first, *_ = several.values()
    if not all(torch.equal(first, v) for v in several.values()):
        for what, v in several.items():
            check_finite({name: v}, what)


def _weights(method: str, given: Sequence[float] | None, n: int) -> tuple[float, ...]:
    each = (1.0 if method in _ON_BASE else 1 / n,) * n
    found = each if given is None else tuple(map(float, given))
    total = sum(found)
    if len(found) != n or not all(map(isfinite, found)) or not total:
        raise InputError("weights", expected=f"{n} numbers with a sum other than 0", got=list(found))
    return found if method in _ON_BASE else tuple(w / total for w in found)


def _check_fits(method: str, recipe: _Recipe) -> None:
    """Refuse options that the method would not read."""
    between, on_base = len(recipe.models) == 2 and not recipe.weighted, method in _ON_BASE
    at_fits = recipe.at is None or (between and not on_base and 0 <= recipe.at <= 1)
    base = f"the network that all began from, for {method}" if on_base else f"None for {method}"
    for name, fits, expected in (
        ("at", at_fits, "a number in [0, 1], for two networks without weights or base"),
        ("models", between or method != "slerp", "two networks without weights for slerp"),
        ("base", on_base == (recipe.base is not None), base),
        *_of_the_methods(method, recipe),
    ):
        if not fits:
            raise InputError(name, expected=expected, got=brief(getattr(recipe, name)))


def _of_the_methods(method: str, recipe: _Recipe) -> list[tuple[str, bool, str]]:
    """What only some methods read or bear: the name, whether it fits, and what would."""
    ties, density, scale = method == "ties", recipe.density, recipe.scale
    real = not ties or not any(v.is_complex() for v in recipe.models[0].values())
    return [
        ("models", real, "real weights for ties, which elects signs"),
        ("density", 0 < density <= 1 and (ties or density == _DENSITY), "a number in (0, 1], for ties"),
        ("scale", isfinite(scale) and (method in _ON_BASE or scale == 1), "a finite number, for task and ties"),
    ]


def _best(recipe: _Recipe, sets: Sequence[Objective], bn: str | None, progress: Progress) -> float:
    """Where the loss is lowest on the line: on held-out data, if there are any, with statistics of the first set."""
    test = sets[1] if len(sets) > 1 else None
    found = profile(sets[0], Path.through(list(recipe.models)), _GRID, test=test, bn=bn, progress=progress)
    judged = found if found.test is None else found.test
    return float(judged.t[int(judged.loss.nan_to_num(nan=torch.inf).argmin())])


def _made(method: str, recipe: _Recipe) -> Params:
    """Tensor by tensor; what is one tensor under several names in all networks, and in the base, stays one."""
    made: dict[tuple[int, ...] | str, Tensor] = {}
    networks = [*recipe.models, *([] if recipe.base is None else [recipe.base])]
    held = all(isinstance(one, dict) for one in networks)
    out: Params = {}
    for name in recipe.models[0]:
        several = [one[name] for one in networks]
        if _stays(name, several, recipe):
            out[name] = several[0]
            continue
        # what is read on demand is another tensor each time, and what is tied is told by the objective
        same = tuple(map(id, several)) if held else name
        if same not in made:
            made[same] = _merged(method, several, recipe)
        out[name] = made[same]
    return out


def _stays(name: str, several: Sequence[Tensor], recipe: _Recipe) -> bool:
    """Whether a tensor is the first network's: it cannot move, is a mask, or is shared by all."""
    shared = recipe.base is None and all(v is several[0] for v in several)
    return not moves(several[0]) or name in recipe.masks or shared


def _merged(method: str, several: Sequence[Tensor], recipe: _Recipe) -> Tensor:
    """One tensor of each network, and last that of the base, if there is one; in parts where entries are apart."""
    out, n = torch.empty_like(several[0], memory_format=torch.contiguous_format), len(recipe.models)
    apart = method in ("average", "aligned-average", "task")
    for part, *own in in_parts(out, *several) if apart else [(out, *several)]:
        wide = [in_dtype(v, torch.float64) for v in own]
        part.copy_(_OF_A_TENSOR[method](wide[:n], wide[n] if len(wide) > n else None, recipe))
    return out


def _with_statistics(objective: Objective, params: Params, recipe: _Recipe, policy: str) -> Params:
    """BatchNorm's statistics are no task vectors: a mean of the networks' own, the first's, or computed again."""
    if policy in ("none", "recompute"):
        return params if policy == "none" else refresh(objective, params)
    names = statistics(objective)
    if policy == "keep":
        return params | {k: recipe.models[0][k] for k in names}
    own = {k: [p[k] for p in recipe.models] for k in names if moves(params[k])}
    return params | {k: _mean([v.double() for v in vs], recipe).to(vs[0].dtype) for k, vs in own.items()}


def _mean(several: Sequence[Tensor], recipe: _Recipe) -> Tensor:
    """By the weights of an average; those on a base are none."""
    equal = _weights("average", None, len(several))
    return _average(several, None, recipe if recipe.base is None else replace(recipe, base=None, weights=equal))


def _average(several: Sequence[Tensor], base: Tensor | None, recipe: _Recipe) -> Tensor:
    if recipe.at is not None:
        return torch.lerp(several[0], several[1], recipe.at)
    return sum((w * v for w, v in zip(recipe.weights, several, strict=True)), torch.zeros_like(several[0]))


def _slerp(several: Sequence[Tensor], base: Tensor | None, recipe: _Recipe) -> Tensor:
    """Along the great circle through both; straight where they point the same way, or one of them is zero."""
    a, b = several
    t = 0.5 if recipe.at is None else recipe.at
    shares = on_circle(a, b, t)
    return torch.lerp(a, b, t) if shares is None else shares[0] * a + shares[1] * b


def _task(several: Sequence[Tensor], base: Tensor | None, recipe: _Recipe) -> Tensor:
    assert base is not None  # noqa: S101 - _check_fits
    moved = sum((w * (v - base) for w, v in zip(recipe.weights, several, strict=True)), torch.zeros_like(base))
    return base + recipe.scale * moved


def _ties(several: Sequence[Tensor], base: Tensor | None, recipe: _Recipe) -> Tensor:
    """Trim, elect the sign of each entry by the sum, then the weighted mean of the moves that have it."""
    assert base is not None  # noqa: S101 - _check_fits
    kept = [_trimmed(v - base, recipe.density) for v in several]
    weighted = [w * v for w, v in zip(recipe.weights, kept, strict=True)]
    elected = sum(weighted, torch.zeros_like(base)).sign()
    agree = [(v.sign() == elected) & (v != 0) for v in weighted]
    total = sum((v * m for v, m in zip(weighted, agree, strict=True)), torch.zeros_like(base))
    weight = sum((w * m.double() for w, m in zip(recipe.weights, agree, strict=True)), torch.zeros_like(base))
    mean = torch.where(weight != 0, total / torch.where(weight != 0, weight, torch.ones_like(weight)), 0.0)
    return base + recipe.scale * mean


def _trimmed(moved: Tensor, density: float) -> Tensor:
    """The largest entries, a share `density` of them, at least one; the others zero."""
    k = max(1, int(density * moved.numel()))
    if k >= moved.numel():
        return moved
    kept = moved.abs().flatten().topk(k).indices
    return torch.zeros_like(moved).flatten().index_copy(0, kept, moved.flatten()[kept]).view_as(moved)


_OF_A_TENSOR: dict[str, Callable[[Sequence[Tensor], Tensor | None, _Recipe], Tensor]] = {
    "average": _average,
    "aligned-average": _average,
    "slerp": _slerp,
    "task": _task,
    "ties": _ties,
}
