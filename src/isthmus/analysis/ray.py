"""Level sets have no end: rays on which the loss stays while the weights grow (Nguyen 2019: 3.2, 4.2, 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log10

import torch
from torch import Tensor

from isthmus.connectors.base import Connection, Outcome
from isthmus.connectors.sublevel.columns import independent_units, move_onto
from isthmus.connectors.sublevel.judge import default_tolerance, measure
from isthmus.connectors.sublevel.trail import Trail
from isthmus.errors import InputError, UnsupportedError
from isthmus.evaluate.level_network import RANK, LevelNetwork, singular_values
from isthmus.objective import Objective
from isthmus.params import cast, check_finite, norm
from isthmus.paths import Path
from isthmus.premises.sublevel import descending, narrowing
from isthmus.stability.noise.measure import Condition
from isthmus.structure.network_units import complement

__all__ = ["ray"]


def ray(
    objective: Objective, a: Mapping[str, Tensor], size: float = 1e6, *, tolerance: float | None = None
) -> Connection:
    """A path from `a` on which the loss stays to a point whose weights have a Euclidean norm of at least `size`.

    Where some hidden layer has more units than its features have rank on the data (n_l > N is enough), the others lose
    their outgoing weights (Lemma 4.3) and grow without effect: two straight segments, for any activation (Theorem 5.1;
    in fact one wide layer will do). Else, where the features of some layer k have rank N and two layers or more that
    get narrower stand above it, with activations onto R (k = 0: Theorem 3.2; n_k = N: Theorem 4.2, second part),
    W_{k+2} grows and layer k + 1 makes up for it, along one ``LevelCurve`` per decade. Under Theorem 4.2 every point
    has the one or the other. `target` is the point reached. The outcome is ok if the loss, measured along the path,
    changes by at most `tolerance` times the larger of 1 and the loss at `a` (default 1e-8, in float32 1e4 of its
    units); stats: the theorem, the `norm` reached, `change`, `drift`.

    Errors: ``UnsupportedError`` where neither applies, with the premises that fail.

    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    >>> far = ray(Objective(net, data=(x, y)), net.state_dict(), 1e9)
    >>> far.outcome.ok, far.stats["norm"] >= 1e9, len(far.path)
    (True, True, 2)
    """
    if not 0 < size < float("inf"):
        raise InputError("size", expected="a finite number > 0", got=size)
    start = {k: v.clone() for k, v in objective.check(a, "a").items()}
    check_finite(start, "a")
    if objective.penalty is not None:
        raise UnsupportedError("the penalty", "it grows with the weights, and the loss with it")
    net = LevelNetwork.of(objective, start)
    trail = Trail(net, start)
    name = _idle_units(trail, size)
    if name is None:
        k = _independent_layer(trail)
        name = _name(net, k)
        _rescaled(trail, k, size)
    path = Path(tuple(trail.segments()))
    first = net.objective.outputs(trail.walk.points[0])
    found = measure(net.objective, path.segments, lambda i, t: first)
    change = max(found.losses) - min(found.losses)
    allowed = default_tolerance(tolerance, objective.dtype) * max(1.0, abs(found.losses[0]))
    reached = norm(cast(path.end, torch.float64))
    stats = {
        "method": {"name": "ray", "size": size},
        "objective": objective.describe(),
        "theorem": name,
        "segments": [str(label) for label in trail.labels],
        "norm": reached,
        "change": change,
        "allowed": allowed,
        "drift": found.drift,
    }
    return Connection(path, path.end, Outcome.CONSTRUCTED if change <= allowed else Outcome.IMPRECISE, stats)


def _independent_layer(trail: Trail) -> int:
    """The layer k below narrowing ones whose features have rank N; of several, that of the best condition number."""
    net, found, failing = trail.net, dict[int, float](), ["there is no hidden layer"] * (trail.net.L < 2)
    for k in range(net.L - 1):
        s = singular_values(net.data(trail.params, k))
        rank = int((s > RANK * s[0]).sum())
        what = f"rank of [{f'F_{k}' if k else 'X'}{', 1' * net.has_bias(k + 1)}]"
        needed = [Condition(what, rank, f"N = {net.N}", rank == net.N), *narrowing(net, k)]
        failing += [f"{c.name}: {c.value:g}, needed {c.needed}" for c in needed if c.holds is False]
        if all(c.holds for c in needed):
            found[k] = float(s[0] / s[-1])
    if not found:
        raise UnsupportedError(
            "the network", f"every unit of every hidden layer acts on these data, and {'; '.join(failing)}"
        )
    return min(found, key=found.__getitem__)


def _name(net: LevelNetwork, k: int) -> str:
    """The theorem that covers layer k; what is used of its proof where the network is not of its kind."""
    if k == 0:
        return "3.2"
    theorem = next(t for t in descending(net) if t.level == k)
    return "4.2" if theorem.holds and theorem.name == "4.2" else f"3.2 above layer {k}"


def _idle_units(trail: Trail, size: float) -> str | None:
    """Free the units that a layer does not need and let them grow; None where every unit is needed."""
    for l in range(1, trail.net.L):
        V = trail.outgoing(l)
        F = trail.reader(l)(trail.columns(l))
        order, rank = independent_units(F)
        if rank == F.shape[1]:
            continue
        free = complement(F.shape[1], order[:rank])
        now = trail.walk.now
        now.A[l + 1] = move_onto(F, V, order[:rank]).permute(2, 0, 1).contiguous()
        trail.walk.step(f"layer {l}, Lemma 4.3: outgoing weights onto {rank} units", "v")
        rows = torch.cat([now.A[l].flatten(1), now.b[l]], 1)[free]
        if float(rows.norm()) == 0:
            rows = torch.ones_like(rows)
        grown = rows * (1.01 * size / float(rows.norm()))
        d = now.A[l][0].numel()
        A, b = now.A[l].clone(), now.b[l].clone()
        A[free], b[free] = grown[:, :d].view_as(A[free]), grown[:, d:]
        now.A[l], now.b[l] = A, b
        trail.walk.step(f"layer {l}, {len(free)} idle units grow", "b")
        return "5.1"
    return None


def _rescaled(trail: Trail, k: int, size: float) -> None:
    """Theorem 3.2 on the features of layer k: layer k + 1 is h((c W_{k+2}, b), F_{k+2}), for a large c.

    W_{k+2} = 0 is brought to full rank first.
    """
    trail.make_weights_full(k)
    now, l = trail.walk.now, k + 1
    norm_now = float(now.A[l + 1].norm())
    steps = max(1, ceil(log10(1.01 * size / norm_now)))
    c = (1.01 * size / norm_now) ** (1 / steps)
    for i in range(steps):  # each at most tenfold: more would cancel in the middle of the curve
        # h((c W, b), F) is the whole of layer k + 1 over c: the activation is positively homogeneous
        now.A[l], now.b[l], now.A[l + 1] = now.A[l] / c, now.b[l] / c, c * now.A[l + 1]
        what = f"W_{l + 1} grows, layer {l} makes up for it, {i + 1} of {steps}"
        trail.follow(range(l, l + 2), f"Theorem 3.2{f' above layer {k}' if k else ''}: {what}")
