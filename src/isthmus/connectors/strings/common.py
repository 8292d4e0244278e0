"""What the two forms of string sampling share: the threshold, how beads are trained, and the state of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from isthmus.connectors.base import Task, lasting
from isthmus.connectors.strings.beads import Trainer
from isthmus.connectors.strings.threshold import Scan, Threshold, ThresholdAsked
from isthmus.errors import InputError
from isthmus.evaluate.batchnorm import no_weights
from isthmus.params import distance, equal, norm
from isthmus.paths import Curve, Path, length_of
from isthmus.training.memory import Memory, named, recalled, taken

if TYPE_CHECKING:
    from isthmus.connectors.strings.constrained import ConstrainedStringSampling
    from isthmus.connectors.strings.sampling import StringSampling


@dataclass(eq=False)
class Tools:
    """What a search works with: each look at a segment and each training is kept in a part of the task's memory.

    A search that was killed takes the same steps again, and finds there what they gave.
    """

    task: Task
    given: ThresholdAsked
    limit: Threshold
    trainer: Trainer
    seed: int
    count: int = 0

    @classmethod
    def of(cls, method: StringSampling | ConstrainedStringSampling, task: Task, seed: int) -> Tools:
        """The threshold and the trainer of a method. Errors: a memory that holds the state of another search."""
        given = ThresholdAsked.of(method)
        limit = given.limit(given.judge(task.objective, task.test), (task.a, task.b))
        task.progress(f"{limit.quantity} at most {limit.value:.4g} ({limit.origin})", 0, 1)
        trainer = Trainer.of(task.objective, limit, method.recipe, method.batched, task.a)
        tools = cls(task, given, limit, trainer, seed)
        tools._claim({"method": lasting(method), "limit": limit.value, "seed": seed})
        return tools

    def _claim(self, search: dict[str, Any]) -> None:
        a, b = ({k: v.cpu() for k, v in end.items()} for end in (self.task.a, self.task.b))
        ends = {**named("a", a), **named("b", b)}
        tensors, values = recalled(self.task.memory, lambda: (ends, search))
        if values != search:
            raise InputError("memory", expected="the state of the same search", got="that of another one")
        if not equal(taken(tensors, "a"), a) or not equal(taken(tensors, "b"), b):
            raise InputError("memory", expected="the state of the same search", got="that of other networks")

    def stats(self, path: Path, values: Sequence[float], top: float) -> dict[str, Any]:
        """What both forms say of a string; `values` of its beads, `top` the largest value on it."""
        return {
            "threshold": {"quantity": self.limit.quantity, "value": self.limit.value, "on": self.given.on},
            "threshold_from": self.limit.origin,
            "notes": self.limit.notes(values, top),
            "beads": len(path) - 1,
            "normalized_length": self.length(path),
            "sampling": {"points": self.given.points},
            "batched": self.trainer.together,
        }

    def length(self, path: Path) -> float:
        """That of the weights, over the distance of the ends."""
        return length_of(path, no_weights(self.task.objective))[1]

    def next_part(self, what: str) -> Memory:
        """The memory of the next piece of work."""
        self.count += 1
        return self.task.memory.part(f"{what}{self.count}")

    def scan(self, curve: Curve, limit: Threshold) -> Scan:
        """What is seen on a segment."""
        return Scan(**self.once("look", curve, limit.value, lambda: asdict(limit.scan(curve))))

    def once(self, what: str, curve: Curve, level: float, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` gives for a segment, or gave before; with a larger budget another segment may come here."""
        part, size = self.next_part(what), [norm(curve.start), norm(curve.end), distance(curve.start, curve.end)]
        kept = part.load()
        if kept is None or kept[1]["about"] != [level, *size]:
            kept = {}, {"about": [level, *size], "found": compute()}
            part.save(*kept)
        return kept[1]["found"]
