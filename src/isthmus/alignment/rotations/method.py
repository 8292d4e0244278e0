"""Units of transformers matched up to rotations of the residual stream and inside heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from isthmus.alignment.change import change
from isthmus.alignment.descent import UnitSearch
from isthmus.alignment.matching import Matched, Matching, MatchingRun, MatchingTask
from isthmus.alignment.overlap import Overlap
from isthmus.alignment.rotations.frame import Guess, Rotatable, Turn, uniform
from isthmus.alignment.rotations.guesses import PHASES
from isthmus.alignment.rotations.solve import Rounds
from isthmus.alignment.rotations.streams import frame_of
from isthmus.alignment.rotations.turning import drawn
from isthmus.alignment.seen import first, seen
from isthmus.checks import check_choices, check_whole
from isthmus.evaluate.batchnorm import no_weights
from isthmus.kinds import check_fields
from isthmus.params import Params, cast

_FEW = 8
_KEPT = 1e-9
"""The largest change of outputs, relative to the largest, under rotations that commute with the network."""
_SURE = 1e-12
"""That under turns which nothing in the program says commute; those of one tensor alone must change more than _KEPT."""


@dataclass(frozen=True)
class RotationMatching(Matching):
    """Rotations of residual streams and inside attention heads, with permutations of all other units, by the weights.

    Between its norms a transformer computes the same in any orthonormal basis of its residual stream, of the queries
    with the keys of a head, and of its values. Which units these are is read off the program and checked on random
    rotations. Gains and biases of norms are moved into the weights that read them, all is matched there, in turns that
    each raise the inner product, at most `rounds` times; then a's own gains and biases are put back, so that the norms
    of both ends are equal and a is untouched. What does not commute is renumbered only, and the result's `notes` say
    why: a stream whose norm is itself the stream (BERT), or whose last norm feeds tied embeddings, unless all gains are
    equal there; units behind a nonlinearity. A network without anything to rotate gets permutations.

    Behind rotary positions queries and keys are rotated in each plane, by one phase for the heads that share a head of
    keys; query heads in such a group, and the units inside of experts, get orders of their own there; experts that are
    modules change places with the rows of their router. These are guessed from sizes and names, tried on b at random
    in float64, and taken only where the function stays and turning one tensor alone would change it.

    `stream`: residual streams are rotated by the "activations" on the first `examples` examples, once, or by the
    "weights" like all else. The weights of two networks agree in too many ways; what weights read does not.

    When to use: for transformers, where permutations alone leave most of the barrier.

    Source: Theus et al. 2025, which replaces LayerNorm; here the architecture stays.
    """

    rounds: int = 20
    stream: Literal["activations", "weights"] = "activations"
    examples: int = 500

    def __post_init__(self) -> None:
        check_fields(self)
        check_choices(self)
        check_whole(self, "rounds")
        check_whole(self, "examples")

    def find(self, task: MatchingTask) -> Matched:
        """Fold, match in turns, unfold."""
        objective = task.objective
        frame, notes = usable(task, *frame_of(objective.program, objective.structure))
        a, b = (frame.fold(cast(p, torch.float64)) for p in (task.a, task.b))
        alike = _alike(task, frame, (a, b), self.examples) if self.stream == "activations" else {}
        c, d = (_centred(frame, p) for p in (a, b))
        turned = {name for t in frame.turns for name in t.tensors}
        overlap = Overlap.between(objective.structure, c, d, no_weights(objective), turned)
        rounds = Rounds(frame, UnitSearch(overlap), alike)
        rounds.run(self.rounds, lambda k: task.progress("matching units", k, self.rounds))
        search, norms = rounds.search, frame.norms(task.a)
        run = MatchingRun(
            self.stream, search.similarity, len(rounds.trace) - 1, search.assignments, rounds.converged,
            trace=tuple(rounds.trace),
        )  # fmt: skip
        before = {k: task.b[k].double().clone() for k in norms}
        return Matched(rounds.orders, (run,), {}, rounds.rotations, norms, before, frame, notes)


def _centred(frame: Rotatable, params: Params) -> Params:
    """Without what LayerNorm does not see: the mean over the units."""
    means = {t.group: torch.full((t.size, t.size), 1 / t.size, dtype=torch.float64) for t in frame.turns if t.centred}
    return frame.rotate(params, {k: torch.eye(len(v), dtype=torch.float64) - v for k, v in means.items()})


def _alike(task: MatchingTask, frame: Rotatable, ends: tuple[Params, Params], examples: int) -> dict[str, Tensor]:
    """How alike the units of both networks are in what the weights read, where no other group is renumbered."""
    turns = frame.visible
    pairs = [(t.group, held) for t in turns for held in t.seen]
    names = [held.tensor for _, held in pairs]
    few = first(task.objective, examples)
    out = {t.group: torch.zeros(t.shape, dtype=torch.float64) for t in turns}
    for values in seen(few, ends, names, torch.float64):
        for group, held in pairs:
            a, b = (held.rows(v).cpu() for v in values)
            out[group] += a @ b.mT
    return out


def usable(task: MatchingTask, frame: Rotatable, refused: Mapping[str, str]) -> tuple[Rotatable, tuple[str, ...]]:
    """What of a frame holds for these two networks, and why the rest does not."""
    task = replace(task, objective=first(task.objective, _FEW))  # made once: all trials are on the same examples
    notes = {k: why for k, why in refused.items() if task.objective.structure.group(k).size > 1}
    for gain in frame.gains:
        if gain.carried and not all(uniform(p, gain) for p in (task.a, task.b)):
            what = f"the gains {gain.gain!r} are not equal, and what reads them is no weight of their own"
            notes.setdefault(gain.group, what)
    frame = _without(frame, notes)
    wrong = _wrong(task, frame)
    notes |= dict.fromkeys(wrong, "a random rotation changes the function")
    frame = _without(frame, wrong)
    frame = replace(frame, gains=tuple(g for g in frame.gains if g.group not in wrong))
    frame, notes = _with_guesses(task, frame, notes)
    return frame, tuple(f"{group} is renumbered, not rotated: {why}" for group, why in notes.items())


def _with_guesses(task: MatchingTask, frame: Rotatable, notes: Mapping[str, str]) -> tuple[Rotatable, dict[str, str]]:
    """The frame with the guesses that the network confirms, and the notes on the rest."""
    confirmed = _confirmed(task, frame)
    more = {t.group: t for turns in confirmed.values() for t in turns}
    missed = [g.subject for g in frame.guesses if g.subject.endswith(PHASES) and g.subject not in confirmed]
    notes = {**notes, **dict.fromkeys(missed, "rotations in no planes of positions keep the function")}
    left = {k: why for k, why in notes.items() if k not in more}
    return replace(frame, turns=(*frame.turns, *more.values()), guesses=()), left


def _wrong(task: MatchingTask, frame: Rotatable) -> list[str]:
    """The groups that may not be rotated although nothing in the program says so."""
    if _holds(task, frame, frame.turns):
        return []
    return [t.group for t in frame.turns if not _holds(task, frame, [t])]


def _confirmed(task: MatchingTask, frame: Rotatable) -> dict[str, tuple[Turn, ...]]:
    """For each subject the turns of the first guess that the network confirms; all of one name are tried at once."""
    found: dict[str, tuple[Turn, ...]] = {}
    for name in dict.fromkeys(g.name for g in frame.guesses):
        some = _open(frame, name, found)
        right = some if _sure(task, frame, [t for g in some for t in g.turns]) else [
            g for g in some if _sure(task, frame, g.turns)
        ]  # fmt: skip
        found |= {g.subject: g.turns for g in right if _shows(task, frame, g)}
    return found


def _open(frame: Rotatable, name: str, done: Collection[str]) -> list[Guess]:
    return [g for g in frame.guesses if g.name == name and g.subject not in done]


def _sure(task: MatchingTask, frame: Rotatable, turns: Sequence[Turn]) -> bool:
    """Whether turns at random keep the function but for rounding."""
    return _turned(task, frame, turns) <= _SURE


def _shows(task: MatchingTask, frame: Rotatable, guess: Guess) -> bool:
    """Whether the examples could have told otherwise: turns of one tensor alone change the outputs."""
    return all(_turned(task, frame, [replace(t, members=t.members[:1])]) > _KEPT for t in guess.turns)


def _without(frame: Rotatable, groups: Collection[str]) -> Rotatable:
    return replace(frame, turns=tuple(t for t in frame.turns if t.group not in groups))


def _holds(task: MatchingTask, frame: Rotatable, turns: Sequence[Turn]) -> bool:
    """Whether random rotations keep the function of b, with the norms of a."""
    return _turned(task, frame, turns) <= _KEPT


def _turned(task: MatchingTask, frame: Rotatable, turns: Sequence[Turn]) -> float:
    """By how much random turns change the function of b, with the norms of a."""
    turned = {t.group: drawn(t, task.generator) for t in turns}
    b = cast(task.b, torch.float64)
    return change(task.objective, b, replace(frame, turns=tuple(turns)).apply(b, {}, turned, frame.norms(task.a)), _FEW)
