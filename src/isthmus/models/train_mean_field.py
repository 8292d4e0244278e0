"""Training of mean-field networks: SGD with steps that do not shrink as the network grows.

In a layer of a mean-field network the gradient of one weight is of the order 1 / (number of weights that are averaged
over), so (3.3) and (4.3) of Shevchenko and Mondelli 2020 multiply it by N in the first and last layer and by N^2
between: by the number of units that the weight leaves, times that of those it enters, inputs and outputs not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.models.mean_field import Init, linear_layers, mean_field_init
from isthmus.objective.losses import LossFunction
from isthmus.params import Params, check_like, nonfinite
from isthmus.training.progress import Progress, no_progress

Sample = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""``sample(k, generator)``: k fresh examples (x [k, features], y [k, ...])."""

_CHECK = 100
"""Steps between two looks at whether the loss is finite."""


def train_mean_field(
    module: nn.Module,
    sample: Sample | tuple[Tensor, Tensor],
    *,
    step: float,
    time: float,
    batch: int = 1,
    seed: int = 0,
    loss: str | LossFunction = "square",
    xi: Callable[[float], float] | None = None,
    start: Init | Params = "unimodal",
    train_ends: bool = True,
    reuse: bool = True,
    progress: Progress = no_progress,
) -> Params:
    """The parameters after time T = steps * `step`: theta <- theta - s_k * (N or N^2) * gradient, steps = T / `step`.

    `sample`: a stream, ``sample(k, generator)`` -> k fresh examples (one pass, as the theorems want), or a data
    set (x, y), taken in a new random order in every epoch; ``reuse=False`` refuses more than one epoch. Each step uses
    the mean gradient of `batch` examples and s_k = `step` * `xi` (k * `step`), xi = 1 by default. `loss`: "square"
    (|y - f(x)|^2 summed over the outputs, as in the theorems), "cross_entropy", or a function (outputs, y) ->
    losses [n]. `start`: an initial distribution (see `mean_field_init`), drawn from `seed` as the data are, or
    parameters, such as ``module.state_dict()``. ``train_ends=False`` keeps the first and the last layer as they were
    drawn, as Theorem 2 does. The module gives the architecture, precision and device; it is not written to.

    `module`: a network of ``mean_field``. `time`: T. `train_ends`: train the first and the last layer too. `reuse`:
    take examples of a data set more than once.

    Errors: a loss that is not finite (`step` is too large), a module that is no mean-field network.
    Source: Shevchenko and Mondelli 2020, (3.3), (4.3), section 5.

    >>> from isthmus.models.mean_field import mean_field
    >>> def sample(k, g):
    ...     x = torch.randn(k, 2, generator=g)
    ...     return x, x[:, :1].tanh()
    >>> net = mean_field((2, 50, 1), "tanh", seed=0)
    >>> p = train_mean_field(net, sample, step=0.05, time=10.0, batch=10)
    >>> x, y = sample(1000, torch.Generator().manual_seed(1))
    >>> bool((torch.func.functional_call(net, p, (x,)) - y).square().mean() < 0.05 * y.square().mean())
    True
    """
    trials = mean_field_trials(
        module, sample, step=step, time=time, batch=batch, seeds=(seed,), loss=loss, xi=xi, start=start,
        train_ends=train_ends, reuse=reuse, progress=progress,
    )  # fmt: skip
    return trials[float(time)][0]


def mean_field_trials(
    module: nn.Module,
    sample: Sample | tuple[Tensor, Tensor],
    *,
    step: float,
    time: float,
    batch: int = 1,
    seeds: Sequence[int] = range(20),
    times: Sequence[float] | None = None,
    loss: str | LossFunction = "square",
    xi: Callable[[float], float] | None = None,
    start: Init | Params = "unimodal",
    train_ends: bool = True,
    reuse: bool = True,
    progress: Progress = no_progress,
) -> dict[float, list[Params]]:
    """For each of `times` (default: T alone) the parameters of one training per seed, all trained as one problem.

    Every layer's weights of all trials are one tensor, so that a step costs one batched product per layer; the
    result of a trial is that of `train_mean_field` with its seed, up to rounding. Pays for narrow networks, where
    a step of one trial is mostly overhead. Memory: trials * (snapshots + 1) copies of the weights. The other
    arguments are those of `train_mean_field`.

    `module`, `sample`, `step`, `time`, `batch`, `loss`, `xi`, `start`, `train_ends`, `reuse`: as for
    ``train_mean_field``. `seeds`: one for each trial. Errors: as there. Source: Shevchenko and Mondelli 2020, section
    5.

    >>> from isthmus.models.mean_field import mean_field
    >>> net, data = mean_field((1, 4, 1), seed=0), (torch.ones(2, 1), torch.ones(2, 1))
    >>> found = mean_field_trials(net, data, step=0.1, time=0.2, batch=2, seeds=(0, 1), times=(0.1, 0.2))
    >>> {t: len(trials) for t, trials in found.items()}
    {0.1: 2, 0.2: 2}
    """
    steps = _steps(step, time, batch, seeds)
    whens = {float(t): _index(t, step, steps) for t in ((time,) if times is None else times)}
    stack = _Stack.start(module, start, seeds, loss, train_ends)
    feed = _Feed.of(sample, batch, stack, steps, reuse)
    found: dict[float, list[Params]] = {}
    for k in range(steps + 1):
        for t in (t for t, at in whens.items() if at == k):
            found[t] = stack.results(k)
        if k == steps:
            break
        value = stack.advance(*feed.next(), _size(step, xi, k))
        if k % _CHECK == 0:
            stack.check(value, k)
            progress("training", k, steps)
    progress("training", steps, steps)
    return {t: found[t] for t in whens}


def _steps(step: float, time: float, batch: int, seeds: Sequence[int]) -> int:
    if not 0 < step < float("inf"):
        raise InputError("step", expected="a positive number", got=step)
    if not 0 <= time < float("inf"):
        raise InputError("time", expected="a number >= 0, the number of steps times step", got=time)
    if batch != int(batch) or batch < 1:
        raise InputError("batch", expected="a whole number >= 1", got=batch)
    if not len(seeds):
        raise InputError("seeds", expected="at least one seed", got="none")
    return round(time / step)


def _size(step: float, xi: Callable[[float], float] | None, k: int) -> float:
    size = step * (1.0 if xi is None else xi(k * step))
    if not (isfinite(size) and size > 0):
        raise InputError("xi", expected="a positive number at every time", got=f"{size / step} at {k * step:g}")
    return size


def _index(t: float, step: float, steps: int) -> int:
    if not 0 <= round(t / step) <= steps:
        raise InputError("times", expected=f"times from 0 to {steps * step:g}", got=t)
    return round(t / step)


def _square(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().flatten(1).sum(1)


def _entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


_LOSSES: dict[str, LossFunction] = {"square": _square, "cross_entropy": _entropy}


def _loss(loss: str | LossFunction) -> LossFunction:
    if isinstance(loss, str) and loss not in _LOSSES:
        raise InputError("loss", expected=f"one of {', '.join(_LOSSES)} or a callable", got=repr(loss))
    return _LOSSES[loss] if isinstance(loss, str) else loss


def _points(
    module: nn.Module, start: Init | Params, like: Params, generators: Sequence[torch.Generator]
) -> list[Params]:
    if not isinstance(start, Mapping):
        return [mean_field_init(module, start, g) for g in generators]
    check_like(start, like, "start")
    return [dict(start)] * len(generators)


def _stacked(points: Sequence[Params], name: str) -> Tensor:
    return torch.stack([p[name].detach() for p in points])


def _between(module: nn.Module, names: Sequence[str]) -> list[nn.Sequential]:
    """What runs behind each of these layers, up to the next."""
    parts = dict(module.named_children())
    at = [*(list(parts).index(n) for n in names), len(parts)]
    return [nn.Sequential(*list(parts.values())[i + 1 : j]) for i, j in pairwise(at)]


@dataclass(eq=False)
class _Stack:
    """The weights of all trials, W[l] [trials, n_l, n_(l-1)] and b[l] [trials, n_l], and what runs between them."""

    names: list[str]
    W: list[Tensor]
    b: list[Tensor | None]
    between: list[nn.Sequential]
    like: Params
    generators: list[torch.Generator]
    loss: LossFunction
    trained: range

    @classmethod
    def start(
        cls, module: nn.Module, start: Init | Params, seeds: Sequence[int], loss: str | LossFunction, ends: bool
    ) -> _Stack:
        layers = linear_layers(module)
        if not ends and len(layers) < 3:
            raise InputError("train_ends", expected="True for two layers: there is nothing between them", got=False)
        function = _loss(loss)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        like = {k: v.detach() for k, v in module.state_dict().items()}
        points = _points(module, start, like, generators)
        names = [name for name, _ in layers]
        W = [_stacked(points, f"{n}.weight") for n in names]
        b = [_stacked(points, f"{n}.bias") if f"{n}.bias" in like else None for n in names]
        between = _between(module, names)
        trained = range(len(names)) if ends else range(1, len(names) - 1)
        return cls(names, W, b, between, like, generators, function, trained)

    def advance(self, x: Tensor, y: Tensor, size: float) -> Tensor:
        """One step on x [trials, batch, features], y [trials, batch, ...]; the mean loss before it, [trials].

        Gradients are taken at the values before the activations; those of the weights are products of two thin
        matrices, added to the weights without ever being stored.
        """
        h, read, z = x, [], []
        for l, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            read.append(h.detach())
            value = torch.bmm(h, W.mT) if b is None else torch.baddbmm(b.unsqueeze(1), h, W.mT)
            z.append(value if value.requires_grad or l < self.trained.start else value.requires_grad_())
            h = self.between[l](z[-1])
        losses = self._losses(h, y)
        slopes = torch.autograd.grad(losses.sum(), [z[l] for l in self.trained])
        n = [1, *(W.shape[1] for W in self.W[:-1]), 1]
        for l, slope in zip(self.trained, slopes, strict=True):
            self.W[l].baddbmm_(slope.mT, read[l], alpha=-size * n[l] * n[l + 1])
            if (b := self.b[l]) is not None:
                b.sub_(slope.sum(1), alpha=size * n[l + 1])
        return losses.detach()

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        trials, batch = outputs.shape[:2]
        flat, targets = outputs.flatten(0, 1), y.flatten(0, 1)
        if self.loss is _square and flat.shape != targets.shape:
            raise InputError("y", expected=f"shape {tuple(outputs.shape[1:])}, as the outputs", got=tuple(y.shape[1:]))
        values = self.loss(flat, targets)
        if values.shape != (trials * batch,):
            raise InputError("loss", expected=f"one value per example, shape ({batch},)", got=tuple(values.shape))
        return values.reshape(trials, batch).mean(1)

    def results(self, k: int) -> list[Params]:
        """A copy of every trial's parameters, all finite."""
        out = []
        for i in range(len(self.generators)):
            own = {f"{n}.weight": W[i] for n, W in zip(self.names, self.W, strict=True)}
            own |= {f"{n}.bias": b[i] for n, b in zip(self.names, self.b, strict=True) if b is not None}
            params = {name: own[name].clone() for name in self.like}
            if nonfinite(params) is not None:
                _diverged(k)
            out.append(params)
        return out

    def check(self, losses: Tensor, k: int) -> None:
        """Refuse to go on where some trial has diverged."""
        if not bool(losses.isfinite().all()):
            _diverged(k)


def _diverged(k: int) -> None:
    got = f"a loss that is not finite after {k} steps"
    raise InputError("step", expected="a step at which training converges", got=got, instead="a smaller step")


@dataclass(eq=False)
class _Feed:
    """The examples of every step, for all trials at once."""

    stream: Sample | None
    x: Tensor
    y: Tensor
    batch: int
    stack: _Stack
    order: Tensor

    @classmethod
    def of(cls, sample: Sample | tuple[Tensor, Tensor], batch: int, stack: _Stack, steps: int, reuse: bool) -> _Feed:
        nothing = torch.empty(0)
        if not isinstance(sample, tuple):
            return cls(sample, nothing, nothing, batch, stack, nothing)
        x, y = sample
        if len(x) != len(y) or not len(x):
            raise InputError("sample", expected="as many x as y, at least one", got=f"{len(x)} and {len(y)}")
        if not reuse and steps * batch > len(x):
            got = f"{steps} steps of {batch}"
            raise InputError("sample", expected=f"at most {len(x)} examples, each used once", got=got)
        order = torch.empty(len(stack.generators), 0, dtype=torch.int64)
        return cls(None, *_ready(x, y, stack.W[0]), batch, stack, order)

    def next(self) -> tuple[Tensor, Tensor]:
        """x [trials, batch, features] and y [trials, batch, ...]."""
        if self.stream is not None:
            xs, ys = zip(*(self._drawn(self.stream, g) for g in self.stack.generators), strict=True)
            return torch.stack(xs), torch.stack(ys)
        while self.order.shape[1] < self.batch:  # epochs follow each other without a gap: no example is left out
            more = [torch.randperm(len(self.x), generator=g) for g in self.stack.generators]
            self.order = torch.cat([self.order, torch.stack(more)], 1)
        index, self.order = self.order[:, : self.batch], self.order[:, self.batch :]
        index = index.to(self.x.device)
        return self.x[index], self.y[index]

    def _drawn(self, stream: Sample, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = stream(self.batch, generator)
        if len(x) != self.batch or len(y) != self.batch:
            got = f"{len(x)} and {len(y)}"
            raise InputError("sample(k, generator)", expected=f"k = {self.batch} x and as many y", got=got)
        return _ready(x, y, self.stack.W[0])


def _ready(x: Tensor, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    if x.flatten(1).shape[1] != like.shape[-1]:
        expected = f"{like.shape[-1]} features per example, as the first layer has"
        raise InputError("x", expected=expected, got=x.flatten(1).shape[1])
    return x.flatten(1).to(like), y.to(like) if y.is_floating_point() else y.to(like.device)
