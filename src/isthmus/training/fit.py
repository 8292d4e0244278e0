"""The one training loop: batches, optimiser, schedule, stopping, non-finite check, progress, resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from hashlib import sha256
from math import inf, isfinite
from typing import Any, Generic

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.params import Params, moves
from isthmus.training.groups import P, flat, grouped
from isthmus.training.memory import Memory, forget, named, taken
from isthmus.training.progress import Progress, no_progress
from isthmus.training.recipe import Recipe


class Ended(Enum):
    """How a training ended."""

    TARGET = "the target was reached"
    STALLED = "the loss fell no more"
    BUDGET = "the steps ran out"
    NOT_FINITE = "a loss was not finite"

    @property
    def word(self) -> str:
        """For the stats of a path: "done", "budget_exhausted" or "not_finite"."""
        return {"BUDGET": "budget_exhausted", "NOT_FINITE": "not_finite"}.get(self.name, "done")


After = Callable[[Params, Params, list[Params]], None]
"""``after(before, now, kept)``: called after each step with the parameters before it and, to be changed in place, those
after it and what the optimiser keeps of them, of their shapes (momenta). Groups are written "group/name"."""


@dataclass(frozen=True, eq=False)
class Fitted(Generic[P]):
    """The best parameters seen at a check, their loss on all examples, and how training ended."""

    params: P
    loss: float
    steps: int
    ended: Ended


def fit(
    batch_loss: Callable[[P, Tensor], Tensor],
    full_loss: Callable[[P], float],
    params: P,
    num_examples: int,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    target: float = 0.0,
    buffers: Params | None = None,
    due: Callable[[int], bool] | None = None,
    after: After | None = None,
    rate: Callable[[int], float] | None = None,
    memory: Memory = forget,
    progress: Progress = no_progress,
    what: str = "training",
) -> Fitted[P]:
    """Minimise ``full_loss`` over the floating-point tensors of `params`, by steps on ``batch_loss(params, index)``.

    Batches are drawn without replacement, epoch by epoch, from `generator` alone; the batch loss may draw from it
    too, such as the place on a curve. Returns the best parameters that any check has seen, so the result is never
    worse than the start. A loss that is not finite ends training with ``Ended.NOT_FINITE``. `buffers` go with the
    parameters into both losses and into the result; the batch loss may write into them (running statistics of
    BatchNorm). `params` may be grouped, as the points of a curve are: ``{"bend": {"weight": ...}}``. A tensor that a
    batch loss does not use stays where it is in that step. `due`: after which steps ``full_loss`` is computed, in place
    of every `check`-th one. `after`: what else moves the parameters, see ``After``. `rate`: the learning rate of each
    step, in place of that of the recipe.

    With a `memory` the state is saved when it is due and at the end, and a later call with the same arguments goes on
    from there to the same result, bit for bit; a state of other arguments counts as none. L-BFGS keeps its result only.
    """
    (one,) = fit_together(
        batch_loss, lambda p: [full_loss(p)], params, num_examples, recipe,
        generator=generator, target=target, buffers=buffers, due=due, after=after, rate=rate, memory=memory,
        progress=progress, what=what,
    )  # fmt: skip
    return one


def fit_together(
    batch_loss: Callable[[P, Tensor], Tensor],
    full_losses: Callable[[P], Sequence[float]],
    params: P,
    num_examples: int,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    target: float = 0.0,
    enough: int | None = None,
    buffers: Params | None = None,
    due: Callable[[int], bool] | None = None,
    after: After | None = None,
    rate: Callable[[int], float] | None = None,
    memory: Memory = forget,
    progress: Progress = no_progress,
    what: str = "training",
) -> list[Fitted[P]]:
    """``fit`` for T problems of one shape at once, on the same batches: one ``Fitted`` for each.

    Every tensor of `params` and `buffers` has the problem as its first axis; ``full_losses`` gives T numbers and
    ``batch_loss`` the sum of the T losses, so that the gradients, and with SGD or Adam the steps, are those of T fits
    that use these batches. Each keeps its own best parameters. Training stops when `enough` of them (default: all)
    are at the target, or when no loss is finite. L-BFGS has one step length for all, so it takes one problem only.
    """
    leaves = flat(params)
    _check_precision(leaves)
    fitting = _Fitting.start(leaves, buffers or {}, num_examples, recipe, generator)
    fitting.rate = rate or recipe.at
    same = {"recipe": asdict(recipe), "examples": num_examples, "target": target, "enough": enough}
    same |= _begin(leaves, generator) | _rates(rate, recipe.steps)

    def losses() -> Sequence[float]:
        return full_losses(grouped(fitting.now(), params))

    kept = memory.load()
    if kept is None or kept[1].get("same") != same:
        fitting.begin(losses())
    else:
        fitting.resume(*kept)
        if kept[1]["ended"]:
            return fitting.results(target, params)
    while fitting.goes_on(target, enough):
        fitting.advance(lambda now, index: batch_loss(grouped(now, params), index), after)
        if fitting.checks(due):
            found = losses()
            progress(what, fitting.step, recipe.steps)
            fitting.note(found)
        if not fitting.lbfgs and memory.due(fitting.step):
            memory.save(fitting.pack(), {**fitting.values(), "same": same, "ended": False})
    memory.save(fitting.outcome(), {**fitting.values(), "same": same, "ended": True})
    progress(what, recipe.steps, recipe.steps)
    return fitting.results(target, params)


_PATIENCE, _FALLS = 10, 1e-4
"""Checks that "plateau" waits for a loss that is lower by this part of it."""
_PLAIN = ("step", "position", "best_losses", "finite", "stalled", "lowered", "waited", "record")
"""The plain values of the state of a fit."""


@dataclass(eq=False)
class _Fitting:
    """All that changes during a fit; what ``pack`` and ``values`` give is all that a resumed one needs."""

    recipe: Recipe
    generator: torch.Generator
    leaves: Params
    state: Params
    best: Params
    optimizer: Any
    everything: Tensor
    order: Tensor
    position: int
    batch: int
    step: int = 0
    best_losses: list[float] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    stalled: bool = False
    rate: Callable[[int], float] = lambda step: 0.0
    lowered: float = 1.0
    waited: int = 0
    record: float = inf

    @classmethod
    def start(
        cls,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        num_examples: int,
        recipe: Recipe,
        generator: torch.Generator,
    ) -> _Fitting:
        state = {k: v.detach().clone() for k, v in buffers.items()}
        leaves = {k: v.detach().clone().requires_grad_(moves(v)) for k, v in params.items()}
        optimizer = _optimizer(recipe, [v for v in leaves.values() if v.requires_grad])
        batch = num_examples if recipe.optimizer == "lbfgs" else min(recipe.batch, num_examples)
        all_of = torch.arange(num_examples, device=next(v for v in params.values() if moves(v)).device)
        best = _snapshot(leaves, state)
        return cls(recipe, generator, leaves, state, best, optimizer, all_of, all_of, num_examples, batch)

    @property
    def lbfgs(self) -> bool:
        return self.recipe.optimizer == "lbfgs"

    def now(self) -> Params:
        """The present parameters and buffers."""
        return {**_detached(self.leaves), **self.state}

    def begin(self, losses: Sequence[float]) -> None:
        """Take over the check of the first parameters."""
        if self.lbfgs and len(losses) > 1:
            raise InputError("optimizer", expected="'adam' or 'sgd' for several problems at once", got="'lbfgs'")
        self.finite = [isfinite(v) for v in losses]
        self.best_losses = [v if isfinite(v) else inf for v in losses]

    def note(self, losses: Sequence[float]) -> None:
        """Take over a check of the present parameters: where a problem's loss is its lowest, they are its best."""
        self.stalled = self.lbfgs and losses[0] >= self.best_losses[0] - 1e-9 * abs(self.best_losses[0])
        self.finite = [isfinite(v) for v in losses]
        self._wait(sum(losses))
        pairs = enumerate(zip(losses, self.best_losses, strict=True))
        better = [i for i, (new, old) in pairs if isfinite(new) and new < old]
        for i in better:
            self.best_losses[i] = losses[i]
        if len(better) == len(losses):
            self.best = _snapshot(self.leaves, self.state)
        elif better:
            now = self.now()
            for name, v in self.best.items():
                v[better] = now[name][better]

    def _wait(self, total: float) -> None:
        """On "plateau": a lower rate where the sum of the losses has not fallen for `_PATIENCE` checks, like torch."""
        if self.recipe.schedule != "plateau":
            return
        least = _FALLS * abs(self.record) if isfinite(self.record) else 0.0
        better = total < self.record - least
        self.record, self.waited = (total, 0) if better else (self.record, self.waited + 1)
        if self.waited > _PATIENCE:
            self.lowered, self.waited = self.lowered * self.recipe.gamma, 0

    def checks(self, due: Callable[[int], bool] | None) -> bool:
        """Whether the losses are computed after this step: when they are `due`, if that is said, and at the end."""
        if due is not None:
            return due(self.step) or self.step == self.recipe.steps
        every = 1 if self.lbfgs else self.recipe.check or max(1, len(self.everything) // self.batch)
        return self.step % every == 0 or self.step == self.recipe.steps

    def goes_on(self, target: float, enough: int | None) -> bool:
        """Whether there are steps left, and fewer than `enough` problems (None: not all) are at the target."""
        reached = sum(v <= target for v in self.best_losses)
        wanted = len(self.best_losses) if enough is None else enough
        return self.step < self.recipe.steps and reached < wanted and any(self.finite) and not self.stalled

    def results(self, target: float, like: P) -> list[Fitted[P]]:
        """The best of each problem, without the problem axis where there is one problem only."""
        many, out = len(self.best_losses) > 1, []
        for i, (loss, finite) in enumerate(zip(self.best_losses, self.finite, strict=True)):
            how = Ended.TARGET if loss <= target else Ended.STALLED if self.stalled else Ended.BUDGET
            params = {k: v[i] for k, v in self.best.items()} if many else self.best
            out.append(Fitted(grouped(params, like), loss, self.step, how if finite else Ended.NOT_FINITE))
        return out

    def advance(self, batch_loss: Callable[[Params, Tensor], Tensor], after: After | None) -> None:
        """One step of the optimiser on the next batch."""
        if not self.lbfgs:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step) * self.lowered
        index = self.everything if self.lbfgs else self._next_batch()

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = batch_loss({**self.leaves, **self.state}, index)
            loss.backward()
            for v in self.leaves.values():
                if v.grad is not None and v.grad.is_sparse:  # of an embedding: most optimisers want it dense
                    v.grad = v.grad.to_dense()
            return loss

        before = _snapshot(self.leaves, {}) if after else {}
        self.optimizer.step(closure)
        self.step += 1
        if after:
            after(before, _detached(self.leaves), self._kept())

    def _next_batch(self) -> Tensor:
        n = len(self.everything)
        if self.position + self.batch > n:
            self.order = torch.randperm(n, generator=self.generator).to(self.everything.device)
            self.position = 0
        self.position += self.batch
        return self.order[self.position - self.batch : self.position]

    def _kept(self) -> list[Params]:
        """What the optimiser keeps of the parameters, such as momenta: each of their shape, under their names."""
        found: dict[str, Params] = {}
        for name, leaf in self.leaves.items():
            for what, v in self.optimizer.state.get(leaf, {}).items():
                if what != "step" and isinstance(v, Tensor):
                    found.setdefault(what, {})[name] = v
        return list(found.values())

    def values(self) -> dict[str, Any]:
        """The plain values of the state."""
        return {name: getattr(self, name) for name in _PLAIN}

    def outcome(self) -> Params:
        """The tensors that are left of a fit that has ended."""
        return {**named("best", self.best), "generator": self.generator.get_state()}

    def pack(self) -> Params:
        """The tensors of the state."""
        kept = self.optimizer.state_dict()["state"]
        rows = {f"{i}/{k}": v for i, row in kept.items() for k, v in row.items() if isinstance(v, Tensor)}
        groups = {"leaf": _detached(self.leaves), "buffer": self.state, "optimizer": rows, "order": {"": self.order}}
        return self.outcome() | {k: v for name, group in groups.items() for k, v in named(name, group).items()}

    def resume(self, tensors: Params, values: Mapping[str, Any]) -> None:
        """Take over a packed state, or the outcome of a fit that has ended."""
        for name in _PLAIN:
            setattr(self, name, values[name])
        self.generator.set_state(tensors["generator"])
        ended: bool = values["ended"]
        groups = {"best": self.best} if ended else {"best": self.best, "leaf": self.leaves, "buffer": self.state}
        with torch.no_grad():  # copied into torch's own memory: kernels may add in another order elsewhere
            for prefix, into in groups.items():
                for name, v in into.items():
                    v.copy_(tensors[f"{prefix}/{name}"])
        if ended:
            return
        rows: dict[int, dict[str, Tensor]] = {}
        for name, v in taken(tensors, "optimizer").items():
            i, key = name.split("/")
            rows.setdefault(int(i), {})[key] = v.clone()
        self.optimizer.load_state_dict({"state": rows, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.order = tensors["order/"].to(self.everything.device, copy=True)


def _begin(params: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Any]:
    """What tells where a fit begins from where another does: the size of its parameters, and its random numbers."""
    size = sum(float(v.detach().abs().double().square().sum()) for v in params.values())
    return {"size": size, "random": sha256(generator.get_state().numpy().tobytes()).hexdigest()}


def _rates(rate: Callable[[int], float] | None, steps: int) -> dict[str, Any]:
    """What tells learning rates that are given from others."""
    return {} if rate is None else {"rates": [rate(i) for i in range(steps)]}


def _check_precision(params: Mapping[str, Tensor]) -> None:
    """Steps of training are lost to rounding in half precision."""
    if half := next((v.dtype for v in params.values() if v.is_floating_point() and v.dtype.itemsize < 4), None):
        raise InputError(
            "dtype", expected="float32 or float64 to train in", got=half, instead="objective.cast(torch.float32)"
        )


def _snapshot(leaves: Params, state: Params) -> Params:
    return {k: v.detach().clone() for k, v in {**leaves, **state}.items()}


def _detached(leaves: Params) -> Params:
    return {k: v.detach() for k, v in leaves.items()}


def _optimizer(recipe: Recipe, trained: list[Tensor]) -> Any:
    if recipe.optimizer == "lbfgs":
        return torch.optim.LBFGS(trained, lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")
    if recipe.optimizer == "adam":
        real = not any(v.is_complex() for v in trained)
        betas = (0.9, recipe.beta2)
        return torch.optim.Adam(trained, lr=recipe.rate, betas=betas, weight_decay=recipe.weight_decay, fused=real)
    return torch.optim.SGD(
        trained,
        lr=recipe.rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
