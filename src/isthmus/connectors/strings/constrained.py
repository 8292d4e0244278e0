"""Constrained Dynamic String Sampling (Freeman and Bruna 2017, appendix A): all beads go down together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from isthmus.connectors.base import About, Connection, Outcome, describe
from isthmus.connectors.strings.beads import Part, Trainer
from isthmus.connectors.strings.common import Strings
from isthmus.connectors.strings.search import PERSISTS, beside
from isthmus.connectors.strings.threshold import Threshold, check_fields
from isthmus.errors import InputError
from isthmus.params import Params, equal, lerp
from isthmus.paths import Curve, Path
from isthmus.training.fit import Checkpoint
from isthmus.training.progress import Progress

SOFT = 0.01
"""Nearer to the middle of its neighbours than this part of their distance, a bead feels the hyperplane less."""

HIGHEST = 1e6
"""In thresholds: the level to start from where the straight line is higher still."""


@dataclass(frozen=True)
class ConstrainedStringSampling(Strings):
    """Appendix A of Freeman and Bruna 2017, corrected: a string with springs that is pulled down level by level.

    It starts as the straight line at the level of its largest value. The level falls by the factor `fall`, down to
    `threshold`, or to `excess` above the larger end; at each level all beads above alpha * level are trained at the
    same time, as one problem with stacked weights where that is faster, on

        F(theta_i) + zeta (|theta_(i-1) - theta_i| + |theta_(i+1) - theta_i|) + kappa |cos of the angle between
        theta_(i-1) - theta_(i+1) and theta_i - (theta_(i-1) + theta_(i+1)) / 2|,

    the neighbours held still: springs, and the pull to the hyperplane equidistant from them (the printed formula has
    a difference for the middle, which depends on the origin). Then every segment that exceeds the level gets a bead
    at its maximum (or half way), until none does.

    When the method does not succeed, the path is the last string that was below its level, the `level` of the stats:
    what the two ends are connected at. ``SUSPECTED_DISCONNECTION``: `patience` insertions at one level have left four
    fifths of the excess. The other fields are those of ``StringSampling``.

    When to use: instead of ``StringSampling`` when the string shall stay short and evenly spread, or to see early at
    which level two networks come apart. Cost: more gradient steps, as every bead is moved at every level.
    """

    threshold: float | None = None
    quantity: str = "loss"
    on: str = "train"
    zeta: float = 1e-4
    kappa: float = 1e-4
    fall: float = 0.7
    position: str = "maximum"
    alpha: float = 0.9
    beads: int = 100
    patience: int = 5
    budget: int = 200_000
    points: int = 21
    optimizer: str = "adam"
    lr: float = 2e-3
    batch: int = 256
    steps: int = 2000
    attempts: int = 3
    check: int | None = None
    schedule: str = "cosine"
    batched: bool | None = None
    excess: float | None = None

    about = About(
        makes="straight segments between beads trained together, each below a threshold",
        reference="Freeman & Bruna 2017, appendix A",
        needs="any module",
        cost="a training of all beads at every level",
        convex=False,
    )

    def __post_init__(self) -> None:
        check_fields(self.quantity, self.threshold, self.excess, self.on, self.points)
        if self.position not in ("maximum", "half"):
            raise InputError("position", expected="'maximum' or 'half'", got=repr(self.position))
        for name in ("zeta", "kappa"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(name, expected="a number >= 0", got=getattr(self, name))
        if not 0 < self.fall < 1:
            raise InputError("fall", expected="a number in (0, 1)", got=self.fall)
        if not 0 < self.alpha <= 1:
            raise InputError("alpha", expected="a number in (0, 1]", got=self.alpha)
        for name in ("beads", "patience", "budget", "attempts"):
            if getattr(self, name) < 1:
                raise InputError(name, expected="a whole number >= 1", got=getattr(self, name))
        self.recipe()

    def job(
        self,
        limit: Threshold,
        trainer: Trainer,
        generator: torch.Generator,
        progress: Progress,
        checkpoint: Checkpoint | None,
    ) -> _Descent:
        """The string on its way down."""
        seed = int(torch.randint(2**62, (), generator=generator))
        return _Descent(self, limit, trainer, seed, progress, checkpoint)


def pull(weights: Params, rows: list[int], a: Params, b: Params, zeta: float, kappa: float) -> Tensor:
    """The springs and the pull to the hyperplane, summed over the beads `rows`; `weights` is stacked in their order.

    Neighbours are held still, so each bead feels its own terms only.

    >>> a, b = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 0.0])}
    >>> bead = {"w": torch.tensor([[2.0, 1.5]])}
    >>> float(pull(bead, [0], a, b, zeta=2.0, kappa=1.0))
    10.0
    """
    left, right, across, off, along = (torch.zeros(len(rows)).to(next(iter(weights.values()))) for _ in range(5))
    for name, v in weights.items():
        fixed = v.detach()
        p = torch.cat([a[name][None], fixed[:-1]])[rows]
        q = torch.cat([fixed[1:], b[name][None]])[rows]
        own = v[rows]
        d, n = own - (p + q) / 2, p - q
        left, right = left + _squares(own - p), right + _squares(own - q)
        across, off, along = across + _squares(n), off + _squares(d), along + (n * d).flatten(1).sum(1)
    tiny = torch.finfo(left.dtype).tiny
    springs = (left + tiny).sqrt() + (right + tiny).sqrt()
    cosine = along.abs() / ((across + tiny) * (off + SOFT**2 * across + tiny)).sqrt()
    return zeta * springs.sum() + kappa * cosine.sum()


def _squares(v: Tensor) -> Tensor:
    return v.square().flatten(1).sum(1)


@dataclass
class _State:
    """All plain values that change. `maxima[i]` is what was last seen on segment i, at `places[i]`; None: it moved."""

    level: float
    values: list[float]
    maxima: list[float | None]
    places: list[float]
    reached: float | None = None
    round: int = 0
    attempt: int = 0
    excess: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    outcome: str = ""


class _Descent:
    """The string on its way down, one piece of work at a time."""

    def __init__(
        self,
        method: ConstrainedStringSampling,
        limit: Threshold,
        trainer: Trainer,
        seed: int,
        progress: Progress,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.method, self.limit, self.trainer, self.seed, self.progress = method, limit, trainer, seed, progress
        self.checkpoint, self.kept = checkpoint, None if checkpoint is None else checkpoint.load()
        self.beads: list[Params] = []
        self.best: list[Params] = []
        self.now = _State(0.0, [], [], [])
        self.ticks = 0

    def begin(self, a: Params, b: Params) -> None:
        """Start with the straight line, or where the checkpoint stands."""
        if self.kept is None:
            self.beads = self.best = [a, b]
            line = self.limit.scan(Curve((a, b)))
            level = min(max(line.max, self.limit.value), HIGHEST * (self.limit.value or 1.0))
            top = line.max if isfinite(line.max) else 1e300  # JSON has no infinity
            self.now = _State(level, [self.limit.of(a), self.limit.of(b)], [top], [line.t])
            self.now.samples = line.samples
            return
        tensors, values = self.kept
        if any(values.get(k) != v for k, v in self._same().items()):
            raise InputError("checkpoint", expected="the state of the same search", got="that of another one")
        self.beads, self.best = (_unpack(tensors, name, self.trainer.order) for name in ("bead", "best"))
        if not equal(self.beads[0], a) or not equal(self.beads[-1], b):
            raise InputError("checkpoint", expected="the state of the same search", got="that of other networks")
        for string in (self.beads, self.best):
            string[0], string[-1] = a, b
        self.now = _State(**values["now"])
        if self.now.outcome == Outcome.BUDGET_EXHAUSTED.name and values.get("room") != self._room():
            self.now.outcome = ""

    def step(self) -> bool:
        """Train the beads, look at one segment, go a level down, or put new beads; False at the end."""
        now, more = self.now, True
        if now.outcome:  # the state of a search that had ended
            return False
        if any(v > now.level for v in now.values):
            more = now.steps < self.method.budget and self._train()
        elif None in now.maxima:
            self._look(now.maxima.index(None))
        elif max(v for v in now.maxima if v is not None) <= now.level:
            self._down()
        else:
            more = now.steps < self.method.budget and self._insert()
        if not more:
            now.outcome = now.outcome or Outcome.BUDGET_EXHAUSTED.name
        self.ticks += 1
        if self.checkpoint is not None and (now.outcome or self.checkpoint.due(self.ticks)):
            self.checkpoint.save(*self._pack())
        return not now.outcome

    def _look(self, i: int) -> None:
        seen = self.limit.at(self.now.level).scan(Curve((self.beads[i], self.beads[i + 1])))
        self.now.maxima[i], self.now.places[i] = seen.max if isfinite(seen.max) else 1e300, seen.t
        self.now.samples += seen.samples
        self.progress("looking at segments", i + 1, len(self.now.maxima))

    def _down(self) -> None:
        """The whole string is below its level: keep it, and lower the level to what it has or by the factor."""
        now, highest = self.now, max(v for v in self.now.maxima if v is not None)
        self.best = list(self.beads)
        now.reached = max(highest, self.limit.value) if highest <= self.limit.value else now.level
        path = Path.through(self.best)
        row = {"level": now.reached, "beads": len(self.best) - 2, "normalized_length": path.normalized_length}
        now.rows.append(row | {"maximum": highest, "steps": now.steps})
        if highest <= self.limit.value:
            now.outcome = Outcome.CONSTRUCTED.name
            return
        now.level = max(self.limit.value, self.method.fall * min(now.level, highest))
        now.excess, now.attempt = [], 0

    def _insert(self) -> bool:
        """Every segment above the level gets a bead. False: a maximum persists, or there is no room for more beads."""
        now, method = self.now, self.method
        now.excess.append(max(v for v in now.maxima if v is not None) - now.level)
        if len(now.excess) > method.patience and now.excess[-1] > PERSISTS * now.excess[-1 - method.patience]:
            now.outcome = Outcome.SUSPECTED_DISCONNECTION.name
            return False
        before = len(self.beads)
        for i in reversed(range(len(now.maxima))):
            top = now.maxima[i] or 0.0
            if top > now.level and len(self.beads) - 2 < method.beads:
                t = min(max(now.places[i], 0.1), 0.9) if method.position == "maximum" else 0.5
                point = Curve((self.beads[i], self.beads[i + 1])).at(t)
                value = self.limit.of(point)
                self.beads.insert(i + 1, point)
                now.values.insert(i + 1, value if isfinite(value) else 1e300)
                # above the level, both halves are; else they are looked at
                now.maxima[i : i + 1] = [None, None] if value <= now.level else [top, top]
                now.places[i : i + 1] = [0.5, 0.5]
        now.attempt = 0
        return len(self.beads) > before

    def _train(self) -> bool:
        """All beads go down to the level together. False: one could not."""
        now, method = self.now, self.method
        inner, a, b = self.beads[1:-1], self.beads[0], self.beads[-1]
        part = None if self.checkpoint is None else Part(self.checkpoint, "training", self._pack, self.kept)
        high = [i for i, v in enumerate(now.values) if v > now.level]
        starts = list(inner)
        if now.attempt:
            for i in high:
                left, right = self.beads[i - 1], self.beads[i + 1]
                seed, names = self.seed + now.round, self.trainer.objective.parameter_names
                starts[i - 1] = beside(lerp(left, right, 0.5), left, right, seed, names)
        trained = self.trainer.train(
            starts, method.alpha * now.level, steps=min(method.steps, -(-(method.budget - now.steps) // len(inner))),
            seed=self.seed + now.round, checkpoint=part, progress=self.progress,
            what=f"training {len(inner)} beads to {now.level:.3g}",
            extra=lambda weights, rows: pull(weights, rows, a, b, method.zeta, method.kappa),
        )  # fmt: skip
        now.round += 1
        now.steps += sum(found.steps for found in trained)
        for i, found in enumerate(trained, start=1):
            if found.steps or i in high:
                self.beads[i], now.values[i] = found.params, found.value if isfinite(found.value) else 1e300
                now.maxima[i - 1] = now.maxima[i] = None
        now.attempt += 1
        if any(v > now.level for v in now.values) and now.attempt >= method.attempts:
            now.outcome = Outcome.BEAD_FAILED.name
            return False
        return True

    # -- the state as tensors and plain values, and the result

    def _same(self) -> dict[str, Any]:
        method = {k: v for k, v in describe(self.method).items() if k not in ("budget", "beads")}
        return {"method": method, "limit": self.limit.value, "seed": self.seed}

    def _pack(self) -> tuple[Params, dict[str, Any]]:
        strings = {"bead": self.beads, "best": self.best}
        tensors = {f"{n}/{i}/{k}": v for n, s in strings.items() for i, p in enumerate(s) for k, v in p.items()}
        return tensors, {**self._same(), "room": self._room(), "now": asdict(self.now)}

    def _room(self) -> list[int]:
        """What may be larger when a search goes on."""
        return [self.method.budget, self.method.beads]

    def connection(self) -> Connection:
        """The last string below its level, with what was seen."""
        now, path = self.now, Path.through(self.best)
        outcome = Outcome[now.outcome]
        level = now.reached if now.reached is not None else float("nan")
        labels = [f"sampled below {level:.4g}"] * len(path)
        stats: dict[str, Any] = {
            "threshold": {"quantity": self.limit.quantity, "value": self.limit.value, "on": self.method.on},
            "threshold_from": self.limit.origin,
            "notes": self.limit.notes(now.values, now.rows[-1]["maximum"] if now.rows else inf),
            "level": level,
            "beads": len(self.best) - 2,
            "normalized_length": path.normalized_length,
            "gradient_steps": now.steps,
            "evaluations": now.samples,
            "sampling": {"points": self.method.points},
            "batched": self.trainer.together,
            "maximum": now.rows[-1]["maximum"] if now.rows else None,
            "levels": now.rows,
            "segments": labels,
        }
        if not outcome.ok:
            highest = max(v for v in (*now.maxima, *now.values) if v is not None)
            stats["evidence"] = {
                "level_tried": now.level, "beads": len(self.beads) - 2, "highest": highest, "excess": now.excess,
                "bead_values": now.values,
            }  # fmt: skip
        return Connection(path, self.best[-1], outcome, stats)


def _unpack(tensors: Params, name: str, order: tuple[str, ...]) -> list[Params]:
    count = 1 + max(int(k.split("/")[1]) for k in tensors if k.startswith(f"{name}/"))
    # copied into torch's own memory: kernels may add in another order elsewhere
    return [{k: tensors[f"{name}/{i}/{k}"].clone() for k in order} for i in range(count)]
