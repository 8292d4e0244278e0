"""``align_many``: several networks in one numbering, so that any two of them are aligned and their mean makes sense."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isthmus.alignment.activations import ActivationMatching
from isthmus.alignment.align import Alignment, aligned, chosen
from isthmus.alignment.descent import UnitSearch
from isthmus.alignment.given import Given
from isthmus.alignment.likeness import Likeness
from isthmus.alignment.matching import Matched, Matching, MatchingRun, MatchingTask
from isthmus.alignment.overlap import Orders, Overlap
from isthmus.alignment.seen import first
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import no_weights, refresh, statistics
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_ends, mean
from isthmus.paths.on_demand import OnDemand, loaded
from isthmus.training.progress import Progress, no_progress

ROUNDS = 100
"""Rounds over the networks, at most."""
_ENOUGH = 1e-4
"""They end with one that adds at most this share of the sum: further ones cost as much, and change no barrier."""


def align_many(
    objective: Objective,
    models: Sequence[ParamsLike],
    matching: Matching | None = None,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Alignment, ...]:
    """Each of the networks with its hidden units in the numbering of the first, whose own alignment is the identity.

    Each is aligned to the first by `matching`; then in turns each to all the others, until the sum over all pairs
    hardly rises any more: of the inner products of their weights. With ``ActivationMatching`` also, from the same
    start, of how alike their units are (heads and inner layers of recurrent networks by weights), and what leaves the
    lower loss at the mean of the networks, on the examples of the matching, is taken. What aligns one with another is
    the way through the first, so that going round over any three leads back to where one was. ``runs`` of each has the
    searches, the one that was taken first: that sum round by round in `trace`, the loss in `midpoint`.
    ``StraightLines.between`` measures the lines between the targets, and their mean.

    Errors: fewer than two networks; as ``align``. Source: the objective of Crisostomi et al. 2024, for weights.

    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> objective = Objective(net, data=(torch.eye(2), torch.tensor([0, 1])))
    >>> a = {k: v.clone() for k, v in net.state_dict().items()}
    >>> b = objective.structure.permute(a, {"0": [1, 0]})
    >>> [one.permutations["0"].tolist() for one in align_many(objective, [a, b, a])]
    [[0, 1], [1, 0], [0, 1]]
    """
    check_kinds(align_many, locals(), but=["matching", "models"])
    checked = checked_models(objective, models)
    generator = torch.Generator().manual_seed(seed)
    tasks = [MatchingTask(objective, checked[0], one, generator, progress) for one in checked]
    star = [chosen(matching).find(task) for task in tasks[1:]]
    if any(one.rotations for one in star):
        expected = "one that renumbers, such as im.ActivationMatching()"
        raise InputError("matching", expected=expected, got=type(matching).__name__)
    orders, runs = _best(objective, chosen(matching), checked, star, progress)
    given = [Given(own) for own in orders]
    return tuple(replace(aligned(task, one), runs=runs) for task, one in zip(tasks, given, strict=True))


def checked_models(objective: Objective, models: Sequence[ParamsLike]) -> list[Params]:
    """The networks as the objective evaluates them, in memory. Errors: as ``seen_models``."""
    return [loaded(one) for one in seen_models(objective, models)]


def seen_models(objective: Objective, models: Sequence[ParamsLike]) -> list[Mapping[str, Tensor]]:
    """As ``seen_model``, each. Errors: fewer than two, and networks of different shapes."""
    if isinstance(models, str) or not isinstance(models, Sequence) or len(models) < 2:
        raise InputError("models", expected="two or more networks", got=models)
    checked = [seen_model(objective, one, f"models[{i}]") for i, one in enumerate(models)]
    for one in checked[1:]:
        check_ends(checked[0], one)
    return checked


def seen_model(objective: Objective, given: ParamsLike, what: str) -> Mapping[str, Tensor]:
    """A network as the objective evaluates it; one that is read ``OnDemand`` is looked at and stays there."""
    found = objective.check(given, what)
    return given if isinstance(given, OnDemand) else found


def _best(
    objective: Objective, matching: Matching, models: Sequence[Params], star: Sequence[Matched], progress: Progress
) -> tuple[list[Orders], tuple[MatchingRun, ...]]:
    """By weights, or what is better of that and what units compute."""
    found = [_together(objective, Likeness({}), 0.0, models, star, progress)]
    if not isinstance(matching, ActivationMatching):
        return found[0][0], (found[0][1],)
    alike = Likeness.of(objective, models, matching)
    found.append(_together(objective, alike, matching.ties, models, star, progress))
    few = first(objective, matching.examples)
    losses = [_mean_loss(few, models, orders) for orders, _ in found]
    ranked = sorted(zip(losses, found, strict=True), key=lambda one: (one[0] != one[0], one[0]))
    return ranked[0][1][0], tuple(replace(run, midpoint=loss) for loss, (_, run) in ranked)


def _mean_loss(objective: Objective, models: Sequence[Params], orders: Sequence[Orders]) -> float:
    """Of the mean of the networks, with statistics of BatchNorm that are computed again."""
    several = [objective.structure.permute(one, own) for one, own in zip(models, orders, strict=True)]
    average = mean(several)
    return objective.loss(refresh(objective, average) if statistics(objective) else average)


def _together(
    objective: Objective, alike: Likeness, ties: float, models: Sequence[Params], star: Sequence[Matched],
    progress: Progress,
) -> tuple[list[Orders], MatchingRun]:  # fmt: skip
    """Ascent of the sum over all pairs, the first network held."""
    structure, out = objective.structure, no_weights(objective)
    searches = [UnitSearch(Overlap.between(structure, models[0], one, out)) for one in models]
    for search, begun in zip(searches[1:], star, strict=True):
        search.begin(begun.permutations)
    rest = [g.name for g in structure.groups if g.name not in alike.scores]

    def total() -> float:
        return alike.total([s.orders for s in searches]) + (_total(searches) if rest else 0.0)

    trace = [total()]
    for round_ in range(ROUNDS):
        for k in range(1, len(searches)):
            _improve(searches, k, alike, rest, ties)
        trace.append(total())
        progress("aligning several networks", round_ + 1, ROUNDS)
        if trace[-1] <= trace[-2] + _ENOUGH * abs(trace[-2]):
            break
    name = f"together, by {'activations' if alike.scores else 'weights'}"
    run = MatchingRun(name, trace[-1], len(trace) - 1, 0, len(trace) <= ROUNDS, trace=tuple(trace))
    return [search.orders for search in searches], run


def _improve(searches: Sequence[UnitSearch], k: int, alike: Likeness, rest: Collection[str], ties: float) -> None:
    """Bring one network nearer to all others: by what its units compute where that is known, else by weights."""
    search, others = searches[k], [s for i, s in enumerate(searches) if i != k]
    step = UnitSearch(Overlap(search.overlap.structure, _sum(others), search.b, search.overlap.of))
    orders = [s.orders for s in searches]
    for name in alike.scores:
        step.match(name, alike.to_others(name, k, orders), ties)
    step.climb(1, lambda sweep: None, rest)
    search.orders = {name: v[step.orders[name]] for name, v in search.orders.items()}
    search.b = step.b


def _total(searches: Sequence[UnitSearch]) -> float:
    """The sum of the inner products of any two networks."""
    squares = sum(float(v.double().square().sum()) for s in searches for v in s.b.values())
    return (sum(float(_sum_of(searches, k).square().sum()) for k in searches[0].b) - squares) / 2


def _sum(searches: Sequence[UnitSearch]) -> Params:
    """The sum of the networks as they are numbered now."""
    return {k: _sum_of(searches, k) for k in searches[0].b}


def _sum_of(searches: Sequence[UnitSearch], name: str) -> Tensor:
    return torch.stack([s.b[name].double() for s in searches]).sum(0)
