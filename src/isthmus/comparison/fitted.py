"""Methods whose training fits into so many passes over the data."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from isthmus.alignment import ActivationMatching, Matching, RotationMatching, WeightMatching
from isthmus.connectors import (
    Aligned,
    Auto,
    AutoNEB,
    Bezier,
    Connection,
    Connector,
    ConstrainedStringSampling,
    DeepLinear,
    Dropout,
    LayerWise,
    Linear,
    MeanField,
    Narrow,
    NoiseDropout,
    PolyChain,
    Renormalised,
    StringSampling,
    Subnetwork,
    Trained,
    TwoLayerReLU,
)
from isthmus.connectors.curves.losses import FEW
from isthmus.connectors.strings.beads import checks
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.structure.blocks import blocks_of
from isthmus.structure.chain import chain_of
from isthmus.training.fit import Recipe

BACKWARD = 3
"""Passes over its examples that a step of training counts as."""
_LOOKS = 45
"""Times that a training of curves looks at up to ``FEW`` examples, about."""
_LOOKS_OF_A_MOVE = 6
"""Times that ``LayerWise`` looks at up to ``FEW`` examples in each step of a block: before, after, and on the way."""
_BEADS = 7
"""Beads of a string, three levels deep."""


def fitted(method: Connector, passes: float, objective: Objective) -> Connector:
    """The method with the epochs, or steps, for which so many passes do; one that does not train is as it is."""
    n = max(1, objective.num_examples)
    match method:
        case Aligned():
            return replace(method, inner=fitted(method.inner, passes, objective))
        case Auto():
            return replace(method, budget=max(3.0, passes))
        case Bezier() | PolyChain():
            epochs = (passes - _LOOKS * min(1.0, FEW / n)) / BACKWARD / method.draws
            return replace(method, recipe=replace(method.recipe, epochs=max(1, int(epochs))))
        case AutoNEB():
            return _band(method, passes, n)
        case LayerWise():
            return _walk(method, passes, objective, n)
        case Narrow() | TwoLayerReLU():
            return replace(method, recipe=_shorter(method.recipe, passes / max(1, method.attempts), n))
        case StringSampling() | ConstrainedStringSampling():
            looks = min(method.budget, max(1, int(passes / 2)))
            return replace(method, recipe=_shorter(method.recipe, passes / 2 / _BEADS, n), budget=looks)
        case Subnetwork(inner=Trained() as inner):
            each = passes / _trainings(objective)
            return replace(method, inner=replace(inner, recipe=_shorter(inner.recipe, each, n)))
    return method


def _shorter(recipe: Recipe, passes: float, n: int) -> Recipe:
    steps = int(passes * n / (BACKWARD * min(recipe.batch, n)))
    return replace(recipe, steps=max(1, min(recipe.steps, steps)))


def _band(method: AutoNEB, passes: float, n: int) -> AutoNEB:
    """All cycles shorter by the same factor; the pivots of each are those before and those put in."""
    pivots = accumulate(new for _, new in method.cycles)
    usual = sum(steps * k for (steps, _), k in zip(method.cycles, pivots, strict=True))
    factor = passes / (BACKWARD * usual * min(method.recipe.batch, n) / n)
    return replace(method, cycles=tuple((max(1, int(factor * steps)), new) for steps, new in method.cycles))


def _walk(method: LayerWise, passes: float, objective: Objective, n: int) -> LayerWise:
    """Fewer moves where the looks at each would take half of the passes, and no halved ones."""
    blocks = len(blocks_of(objective.parameter_names) if method.blocks is None else method.blocks)
    looks = _LOOKS_OF_A_MOVE * min(1.0, FEW / n)
    moves = max(1, min(method.moves, int(passes / blocks / (2 * looks))))
    recipe = replace(method.recipe, epochs=None)
    shorter = _shorter(recipe, passes / blocks / moves - looks, n)
    return replace(method, moves=moves, halvings=0, recipe=shorter)


def _trainings(objective: Objective) -> int:
    """Of ``Subnetwork``, 2L - 1; one where it will refuse the network."""
    try:
        return 2 * chain_of(objective.program, objective.structure).L - 1
    except (InputError, UnsupportedError):
        return 1


def counted(method: Connector, found: Connection, objective: Objective) -> tuple[float | None, bool]:
    """The passes over the data that making the path took, and whether that is an estimate; None where none is known."""
    n = max(1, objective.num_examples)
    if isinstance(method, Auto):
        return found.stats["passes"], False
    inner, matching = (method.inner, _matched(method.matching, n)) if isinstance(method, Aligned) else (method, 0.0)
    cost, recipe = found.cost, getattr(inner, "recipe", None)
    if cost.evaluations is not None and isinstance(recipe, Recipe):
        looks = _looks(inner, found, recipe, n)
        return matching + cost.evaluations + looks + _trained(found, recipe, n), looks > 0
    if isinstance(inner, Renormalised):
        return matching + (2 + inner.knots) * min(inner.examples, n) / n, False
    if isinstance(inner, Linear | DeepLinear):
        return matching, False
    about = _about(inner, found, objective, n)
    return (None if about is None else matching + about), True


def _matched(matching: Matching, n: int) -> float:
    """Each network on the examples of the matching, or the loss half-way for each start."""
    match matching:
        case ActivationMatching(examples=k) | RotationMatching(stream="activations", examples=k):
            return 2 * min(k, n) / n
        case WeightMatching(start=start, restarts=k, choose=choose):
            begun = _matched(ActivationMatching(), n) if start == "activations" else 0.0
            return begun + (k + 1.0) * (choose == "loss")
    return 0.0


def _looks(method: Connector, found: Connection, recipe: Recipe, n: int) -> float:
    """Passes while the beads of a string are trained, one for each check, which its evaluations leave out; about."""
    if not isinstance(method, StringSampling | ConstrainedStringSampling):
        return 0.0
    return (found.cost.gradient_steps or 0) / checks(recipe, n)


def _trained(found: Connection, recipe: Recipe, n: int) -> float:
    return BACKWARD * (found.cost.gradient_steps or 0) * min(recipe.batch, n) / n


def _about(method: Connector, found: Connection, objective: Objective, n: int) -> float | None:
    """What the documentation of a method says that it evaluates at both ends, and its training."""
    match method:
        case Dropout():
            return 2.0 * method.masks * (chain_of(objective.program, objective.structure).L - 1)
        case MeanField():
            return 2.0 * (chain_of(objective.program, objective.structure).L - 1)
        case NoiseDropout():
            return 4.0 * method.draws
        case Narrow():
            return 4.0 * method.draws + _trained(found, method.recipe, n)
        case TwoLayerReLU():
            return _trained(found, method.recipe, n)
        case Subnetwork(inner=Trained() as inner):
            return _trained(found, inner.recipe, n)
    return None
