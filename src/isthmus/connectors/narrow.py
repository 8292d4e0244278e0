"""Paths through a narrow network of low loss (Kuditipudi et al. 2019, Theorem 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from isthmus.checks import check_at_least_zero, check_choices, check_several, check_whole
from isthmus.connectors.base import About, Connection, Connector, Outcome, Task
from isthmus.connectors.moves.units import WeightWalk, join, labels_as_text
from isthmus.connectors.noise_dropout import End, bernoulli_count, best_of, report
from isthmus.errors import InputError
from isthmus.evaluate.chain import losses_of, require_hidden_chain
from isthmus.kinds import check_fields
from isthmus.objective.data import single
from isthmus.params import Params, check_finite
from isthmus.stability.dropout.subsets import rescaling
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units, common_places, complement, kept_count, random_units
from isthmus.training.fit import Ended, Fitted, Recipe, fit


@dataclass(frozen=True)
class Narrow(Connector):
    """Theorem 3 of Kuditipudi et al. 2019: through a narrow network theta* that needs only the units dropped.

    Both ends go straight to theta_1 of Algorithm 1 (see ``NoiseDropout``), here with a small dropout probability;
    theta* is written into units that theta_1 of a has dropped, moved to units that theta_1 of b has dropped, and
    exchanged for theta_1 of b, whose dropped rows are restored. Units dropped at both ends serve first, so that
    the only room needed is h*_l dropped units at each end. 13 straight segments for any depth: 1 + 8 + 3 + 1. The
    11 in the middle are proved: at most the largest of L(theta_1) of both ends and L(theta*), the penalty left out.

    theta* is the given `network` (a state_dict of the same module with narrower layers) or trained here with h*_l
    = `width` units (a number, or one per hidden layer; default: as many as are dropped) by `recipe`, until its loss
    is at most the larger end's + `slack`, both without the penalty; from `attempts` random starts the best is kept.

    `p`: the dropout probability; exactly ceil(p n_l) units are dropped (``counts="fixed"``) or as many as
    Algorithm 1 draws, given that there are at least h*_l ("bernoulli"; the theorem takes p >= 1.5 max h*_l / n_l).
    Default: where theta* has given widths, exactly h*_l units are dropped and the others multiplied by
    n_l / (n_l - h*_l), else p = 0.3. The best of `draws` draws is taken, judged as in ``NoiseDropout``.

    `num_points`: those at which the first and the last segment are measured, for the stats.

    When to use: for wide networks that a narrow one can replace; the less is dropped the lower the straight
    segments. Needs a chain of layers and a loss that is convex in the outputs. Cost: one training of a narrow
    network, 2 evaluations per draw and end.
    """

    width: int | tuple[int, ...] | None = None
    p: float | None = None
    draws: int = 20
    counts: Literal["fixed", "bernoulli"] = "fixed"
    num_points: int = 11
    recipe: Recipe = Recipe(steps=8000)  # noqa: RUF009 - frozen
    slack: float = 0.0
    attempts: int = 2
    # not among the stored fields: tensors are no plain values, and the path holds them
    network: InitVar[Mapping[str, Any] | None] = None

    about = About(
        makes="13 straight segments through a narrow network",
        reference="Kuditipudi et al. 2019, Theorem 3",
        needs="a chain of layers (perceptron, plain convolutional network) with units to spare",
        cost="one training of a narrow network, 2 x draws evaluations per end",
        convex=True,
        statistics="interpolate",
    )

    def __post_init__(self, network: Mapping[str, Any] | None) -> None:
        object.__setattr__(self, "network", None if network is None else dict(network))
        check_fields(self)
        if self.width is not None and network is not None:
            raise InputError("width, network", expected="one of them", got="both")
        check_several(self, "width")
        if self.p is not None and not 0 < self.p < 1:
            raise InputError("p", expected="a dropout probability in (0, 1)", got=self.p)
        if self.counts == "bernoulli" and self.p is None:
            raise InputError("p", expected="a number, for counts='bernoulli'", got=None)
        check_at_least_zero(self, "slack")
        check_choices(self)
        check_whole(self, "attempts", "draws")
        check_whole(self, "num_points", least=2)

    def find(self, task: Task) -> Connection:
        """Choose how many units to drop, train or read theta*, draw at both ends, then build the path."""
        objective, a, b = task.objective, task.a, task.b
        chain = require_hidden_chain(objective, instead="Linear()")
        given: Mapping[str, Any] | None = vars(self)["network"]
        if given is not None:
            hub, widths = _read_network(chain, given, a)
        else:
            hub, widths = None, self._widths(chain)
        drop, factors = self._drop(chain, widths)

        def draw() -> Units:
            return self._draw(chain, widths, drop, task.generator)

        ends = best_of(objective, chain, (a, b), draw, factors, self.draws, task.progress)
        fitted: Fitted | None = None
        cost = {}
        if hub is None:
            target = max(objective.loss(end) - objective.penalty_of(end) for end in (a, b)) + self.slack
            hub, fitted, cost["gradient_steps"] = self._train(task, chain, widths, target)
        there, back = (e.walk("AB"[k]) for k, e in enumerate(ends))
        _through_hub(there, hub, ends)
        _leave_hub(there, back, ends[1])
        path, labels = join(there, back)
        noise = report(objective, path, ends, self.num_points)
        dropped = {end: [chain.widths[l] - len(e.kept[l]) for l in drop] for end, e in zip("ab", ends, strict=True)}
        loss = objective.loss(path.knots[9])  # after 1 + 8 segments: theta*
        stats = {
            "segments": labels_as_text(labels),
            "noise": noise,
            "network": {
                "widths": [widths[l] for l in sorted(widths)],
                "dropped": dropped,
                "loss": loss,
                **_source(fitted),
            },
            **cost,
        }
        bad = fitted is not None and fitted.ended is Ended.NOT_FINITE
        return Connection(path, b, Outcome.NOT_FINITE if bad else Outcome.CONSTRUCTED, stats)

    def _probability(self) -> float | None:
        """p of Algorithm 1; None where the widths of theta* say how many units to drop."""
        free = self.width is None and vars(self)["network"] is None
        return 0.3 if self.p is None and free else self.p

    def _widths(self, chain: Chain) -> dict[int, int]:
        """h*_l of the network to train."""
        hidden = range(1, chain.L)
        if self.width is None:
            p = cast(float, self._probability())
            return {l: max(1, chain.widths[l] - kept_count(chain.widths[l], 1 - p)) for l in hidden}
        widths = (self.width,) * len(hidden) if isinstance(self.width, int) else tuple(self.width)
        if len(widths) != len(hidden):
            raise InputError("width", expected=f"one number, or {len(hidden)} for the hidden layers", got=widths)
        return dict(zip(hidden, widths, strict=True))

    def _drop(self, chain: Chain, widths: Mapping[int, int]) -> tuple[dict[int, int], dict[int, float]]:
        """How many units to drop in each hidden layer, and the factor on the outgoing weights of the others."""
        p = self._probability()
        drop, factors = {}, {}
        for l, h in widths.items():
            n = chain.widths[l]
            if h > n:
                raise InputError(f"theta*, hidden layer {l}", expected=f"at most the layer's {n} units", got=h)
            drop[l] = h if p is None else max(1, n - kept_count(n, 1 - p))
            factors[l] = rescaling(n, n - h) if p is None else 1 / (1 - p)
            if self.counts == "fixed" and drop[l] < h:
                raise InputError(
                    "p",
                    expected=f"at least {h / n:.4g}: theta* has {h} of the {n} units of hidden layer {l}",
                    got=f"{p}, which drops {drop[l]}",
                )
        return drop, factors

    def _draw(
        self, chain: Chain, widths: Mapping[int, int], drop: Mapping[int, int], generator: torch.Generator
    ) -> Units:
        """The units that stay in one draw of Algorithm 1."""
        n = chain.widths
        if self.counts == "fixed":
            sizes = {l: n[l] - k for l, k in drop.items()}
        else:
            sizes = {l: bernoulli_count(n[l], cast(float, self.p), n[l] - widths[l], generator) for l in drop}
        return random_units(n, sizes, generator)

    def _train(self, task: Task, chain: Chain, widths: Mapping[int, int], target: float) -> tuple[Weights, Fitted, int]:
        """theta* from random weights, the best of the attempts, which stop when one reaches the target; their steps."""
        objective, like = task.objective, task.a
        x, y = single(objective.data[0]), objective.data[1]
        trained = [n for l in range(1, chain.L + 1) for n in chain.layer(l).trainable]
        best: Fitted | None = None
        spent = 0
        for attempt in range(self.attempts):
            start = chain.write(chain.he_init(task.generator, like, widths), like)
            fixed = {n: v for n, v in start.items() if n not in trained}

            def batch_loss(small: Params, index: Tensor, fixed: Params = fixed) -> Tensor:
                return objective.example_losses(chain.forward({**fixed, **small}, x[index]), y[index]).mean()

            def full_loss(small: Params, fixed: Params = fixed) -> float:
                return losses_of(objective, chain, {**fixed, **small}, x)[0]

            fitted = fit(
                batch_loss, full_loss, {n: start[n] for n in trained}, objective.num_examples, self.recipe,
                generator=task.generator, target=target, progress=task.progress,
                memory=task.memory.part(f"attempt{attempt}"),
                what="training the narrow network" + " again" * bool(attempt),
            )  # fmt: skip
            spent += fitted.steps
            fitted = Fitted({**fixed, **fitted.params}, fitted.loss, fitted.steps, fitted.ended)
            if best is None or fitted.loss < best.loss:
                best = fitted
            if best.loss <= target + abs(target):
                break
        best = cast(Fitted, best)
        return chain.read(best.params), best, spent


def _source(fitted: Fitted | None) -> dict[str, Any]:
    if fitted is None:
        return {"source": "given"}
    return {"source": "trained", "steps": fitted.steps, "training": fitted.ended.word}


def _read_network(chain: Chain, given: Mapping[str, Tensor], like: Params) -> tuple[Weights, dict[int, int]]:
    """A given narrow state_dict by layer, with its widths; every tensor is checked by name."""
    names = sorted({n for l in range(1, chain.L + 1) for n in (chain.layer(l).weight, *chain.layer(l).vectors)})
    _check_names(given, names, like)
    small = {n: given[n].detach().to(like[n]) for n in names}
    check_finite(small, "network")
    widths = {l: len(small[chain.layer(l).weight]) for l in range(1, chain.L)}
    for l in range(1, chain.L + 1):
        layer = chain.layer(l)
        shape = like[layer.weight].shape
        rows, before = widths.get(l, chain.widths[l]), widths.get(l - 1, chain.widths[l - 1])
        columns = before * (shape[1] // chain.widths[l - 1])
        wanted = {layer.weight: (rows, columns, *shape[2:])} | {v: (rows,) for v in layer.vectors}
        for name, want in wanted.items():
            if tuple(small[name].shape) != want:
                raise InputError(f"network[{name!r}]", expected=f"shape {want}", got=tuple(small[name].shape))
    return chain.read(small), widths


def _check_names(given: Mapping[str, Tensor], names: Sequence[str], like: Params) -> None:
    """Refuse a state_dict without these tensors, with others than the module's, or of another precision."""
    for name in names:
        if not isinstance(given.get(name), Tensor):
            raise InputError("network", expected=f"the tensor {name!r}", got=f"only {sorted(given)[:4]} and so on")
    if extra := sorted(set(given) - set(like)):
        raise InputError("network", expected="only keys of the module", got=f"also {extra[0]!r}")
    for name in names:
        dtype = like[name].dtype
        if torch.promote_types(given[name].dtype, dtype) != dtype:
            raise InputError(f"network[{name!r}]", expected=f"{dtype}", got=given[name].dtype)


def _through_hub(walk: WeightWalk, hub: Weights, ends: tuple[End, End]) -> None:
    """From theta_1 of a to theta* on units that b has dropped, by the 8 segments of Lemma 2."""
    chain, L = walk.chain, walk.L
    place: Units = {}
    home: Units = {}
    for l in range(1, L):
        n, size = chain.widths[l], len(hub.A[l])
        free_a, free_b = (complement(n, end.kept[l]) for end in ends)
        # where dropped at both ends theta* can stay; the places of the other units have no unit in common
        place[l], home[l] = common_places(size, free_a, free_b)
        walk.zero_rows(l, free_a)
    for l in range(1, L):
        walk.put_rows(l, place[l], None if l == 1 else place[l - 1], hub.A[l], hub.b[l])
    walk.step("Lemma 2, write the narrow network into dropped units", "b")
    walk.put_output(place[L - 1], hub.A[L], hub.b[L])
    walk.step("Lemma 2, switch to the narrow network", "a")
    for l in range(1, L):
        walk.zero_rows(l, complement(chain.widths[l], place[l]))
    walk.step("Lemma 2, clear theta_1 of A", "b")
    walk.permute_live(place, home, "Lemma 4")


def _leave_hub(there: WeightWalk, back: WeightWalk, end: End) -> None:
    """From theta* on units that theta_1 of b has dropped to theta_1 of b: 3 segments."""
    L, target = there.L, back.now
    for l in range(1, L):
        live = end.kept[l]
        before = None if l == 1 else end.kept[l - 1]
        rows = target.A[l][live]
        there.put_rows(l, live, before, rows if before is None else rows[:, before], target.b[l][live])
    there.step("Lemma 2, write theta_1 of B into dead units", "b")
    there.put_output(end.kept[L - 1], target.A[L][:, end.kept[L - 1]], target.b[L])
    there.step("Lemma 2, switch to theta_1 of B", "a")
    there.now = target.copy()
    there.step("Lemma 2, restore the rows of dropped units", "b")
