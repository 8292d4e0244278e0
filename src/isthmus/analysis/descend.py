"""``descend``: down to the infimum of the loss, without ever rising (Nguyen 2019, Theorems 3.2, 4.2, 6.1)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import Connection, Outcome
from isthmus.connectors.sublevel.columns import Unreachable
from isthmus.connectors.sublevel.judge import default_tolerance, measure, prove
from isthmus.connectors.sublevel.lower import Lowered, lower
from isthmus.connectors.sublevel.method import plain_premises, premises
from isthmus.connectors.sublevel.trail import Trail
from isthmus.errors import InputError, OutcomeError, UnsupportedError
from isthmus.evaluate.level_network import RANK, LevelNetwork, rank_of
from isthmus.kinds import check_kinds
from isthmus.objective import Objective
from isthmus.objective.given import ParamsLike
from isthmus.params import Params, check_finite
from isthmus.paths import Curve, Path
from isthmus.premises.sublevel import Theorem, descending
from isthmus.training.progress import Progress, no_progress

__all__ = ["descend"]


def descend(
    objective: Objective,
    a: ParamsLike,
    tolerance: float = 1e-12,
    *,
    limit: float = 1e6,
    rounding: float | None = None,
    prove: bool = True,
    seed: int = 0,
    throw: bool = False,
    progress: Progress = no_progress,
) -> Connection:
    """A path from `a` to a point whose loss is within `tolerance` of the infimum, on which the loss never rises.

    `prove`: prove that the path does not rise, too. `throw`: raise ``OutcomeError`` where the loss did not get low.
    Errors: ``InputError`` for numbers that do not fit; a network that no theorem is about is an outcome.

    Needs a hidden layer k of at least N units (N samples) above which the layers get narrower, with an activation
    strictly monotone onto R between them (leaky ReLU); k = L - 1 needs no such activation. First the loss stays: the
    features of layer k get rank N (Lemma 5.2; the layers before too, where some samples look alike to layer k) and a
    condition number of at most `limit` if there is room, the weights above full rank (Lemma 3.4). Then layer k + 1
    moves so that the outputs go along straight lines to lower ones: the targets for mean squared error, a margin for
    the labels for cross-entropy and hinge losses, what L-BFGS finds for any other convex loss.

    The result's `target` is the point reached. Its outcome is ok if the loss there is small enough and the path,
    measured in float64, nowhere rises by more than `rounding` (default 1e-8, in float32 1e4 of its units) times the
    larger of 1 and the loss at `a`, nor above the loss at `a` by what ``certify`` proves (unless ``prove=False``).
    stats: "theorem", "premises", "loss" at the start and the end, "rise", "drift", "growth", condition numbers. The
    theorem is the one whose premises hold, from any point: "3.2", "4.2", "6.1 (case 1)"; where none is about this
    network but the parts of their proofs did it from this point, it names these ("Lemma 5.2 for layer 2, ..."). Where
    these fail too, the path stays at `a`. Source: Nguyen 2019, Theorems 3.2, 4.2 and 6.1, case 1.

    >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).double()
    >>> low = descend(Objective(net, data=(x, y)), {k: torch.zeros_like(v) for k, v in net.state_dict().items()})
    >>> low.outcome.ok, low.stats["loss"][1] < 1e-12
    (True, True)
    """
    check_kinds(descend, locals())
    if not 0 < tolerance < float("inf"):
        raise InputError("tolerance", expected="a number > 0", got=tolerance)
    if not limit > 1:
        raise InputError("limit", expected="a condition number > 1", got=limit)
    start = {k: v.clone() for k, v in objective.check(a, "a").items()}
    check_finite(start, "a")
    begin, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    method = {"name": "descend", "tolerance": tolerance, "limit": limit, "rounding": rounding, "prove": prove}
    found = _descend(objective, start, method, generator, progress)
    stats = {"method": method, "seed": seed, "objective": objective.describe(), **found.stats}
    connection = replace(found, stats=stats, seconds=time.perf_counter() - begin)
    if throw and not connection.outcome.ok:
        raise OutcomeError(f"descend: {connection.outcome}")
    return connection


def _descend(
    objective: Objective, start: Params, method: dict[str, Any], generator: torch.Generator, progress: Progress
) -> Connection:
    failing: list[str] = []
    try:
        plain_premises(objective)
        net = LevelNetwork.of(objective, start)
    except UnsupportedError as e:
        return _refused(objective, start, [str(e)])
    for theorem in descending(net):
        if not theorem.holds:
            failing += [f"layer {theorem.level}: {text}" for text in theorem.failing]
            continue
        trail = Trail(net, start)
        try:
            _prepare(trail, theorem.level, method["limit"], generator)
        except Unreachable as e:
            failing.append(str(e))
            continue
        progress("lowering the outputs", 0, 1)
        return _lowered(objective, trail, theorem, method)
    return _refused(objective, start, failing)


def _prepare(trail: Trail, k: int, limit: float, generator: torch.Generator) -> None:
    """Full rank for the features of layer k and the weights above it, at the same outputs."""
    net = trail.net
    if k > 0:
        if rank_of(trail.net.data(trail.params, k)) < net.N:
            for l in range(1, k):  # where two samples look alike, their features can never differ
                if _alike(net.design(trail.params, l + 1).flatten(1)):
                    trail.make_features_full(l, generator, limit=limit, demand=False)
        trail.make_features_full(k, generator, limit=limit)
    trail.note_condition(k)
    trail.make_weights_full(k)


def _alike(F: Tensor) -> bool:
    """Whether two rows are equal up to rounding."""
    return len(F) > 1 and not float(torch.pdist(F).min()) > 1e4 * RANK * float(F.norm(dim=1).max())


def _lowered(objective: Objective, trail: Trail, theorem: Theorem, method: dict[str, Any]) -> Connection:
    net, k, tolerance = trail.net, theorem.level, method["tolerance"]
    first = net.objective.outputs(trail.params)
    still = len(trail.labels)
    goal = lower(net.objective, first, tolerance / 2)
    for i, Z in enumerate(goal.outputs):
        trail.level(k, net.L, Z, f"lower the outputs, line {i + 1} of {len(goal.outputs)}")
    segments = trail.segments()
    stops = [first, *goal.outputs]

    def kept(i: int, t: float) -> Tensor:
        return first if i < still else torch.lerp(stops[i - still], stops[i - still + 1], t)

    found = measure(net.objective, segments, kept)
    allowed = default_tolerance(method["rounding"], objective.dtype) * max(1.0, abs(found.losses[0]))
    stats: dict[str, Any] = {
        "theorem": theorem.name,
        "layer": k,
        "segments": [str(label) for label in trail.labels],
        "premises": premises(theorem),
        "conditions": trail.conditions,
        "loss": [found.losses[0], found.losses[-1]],
        "rise": found.rise,
        "allowed": allowed,
        "drift": found.drift,
        "digits_lost": found.digits_lost,
        "growth": found.growth,
        "outputs": {"how": goal.how, "loss": goal.loss, "slope": goal.slope},
    }
    path = Path(tuple(segments))
    outcome = _outcome(goal, found.losses[-1], found.rise, tolerance, allowed)
    if method["prove"] and found.rise <= allowed:
        shown = prove(objective, path, found.losses[0])
        stats["certificate"], proof = shown.facts, shown.outcome(allowed)
        outcome = proof if outcome.ok or not proof.ok else outcome
    return Connection(path, path.end, outcome, stats)


def _outcome(goal: Lowered, reached: float, rise: float, tolerance: float, allowed: float) -> Outcome:
    if not (rise <= allowed and reached <= max(tolerance, goal.loss + tolerance / 2)):
        return Outcome.IMPRECISE
    # a loss whose infimum is not 0 is near it where its slope vanishes: what is left is of the slope's square
    at_infimum = goal.loss <= tolerance or goal.slope**2 <= tolerance
    return Outcome.CONSTRUCTED if at_infimum else Outcome.BUDGET_EXHAUSTED


def _refused(objective: Objective, start: Params, failing: list[str]) -> Connection:
    value = objective.cast(torch.float64).loss(start)
    stats = {"theorem": None, "segments": ["stay"], "premises": failing, "loss": [value, value]}
    return Connection(Path((Curve((start, start)),)), start, Outcome.PREMISE_FAILS, stats)
