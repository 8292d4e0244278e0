"""What can be checked of the premises of Shevchenko and Mondelli 2020: (A1) to (A4) and (B1) to (B4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import inf, isfinite, log, nan, prod, sqrt

from torch import Tensor

from isthmus.errors import InputError
from isthmus.objective import Objective
from isthmus.objective.data import single
from isthmus.program.export import Node
from isthmus.stability.noise.measure import Condition
from isthmus.structure.chain import RESHAPE, Chain, chain_of, factor

_StepFunction = Callable[[float], float]

_FINE = 1000
"""Intervals on which the step-size function is looked at, and then four times as many."""


def two_layer_premises(
    objective: Objective,
    *,
    time: float,
    xi: _StepFunction | None = None,
    start: Mapping[str, Tensor] | None = None,
    bound: float | None = None,
) -> tuple[Condition, ...]:
    """Theorem 1: the form (3.1) and the conditions (A1) to (A4), each with the number found.

    `time`: T, `xi`: the step-size function (None: constant 1), `start`: the parameters before training, `bound`: K_4,
    beyond which their distribution has no mass in the last layer. `holds` is None where it was not said, or where no
    finite sample can tell.
    """
    chain = chain_of(objective.program, objective.structure)
    x = chain.entered(single(objective.data[0])).flatten(1)
    suprema = _activations(chain)
    gradient = suprema[1] * float((x.square().sum(1) + bool(chain.layer(1).vectors)).max().sqrt())
    return (
        Condition("layers", chain.L, "2 (3.1)", chain.L == 2),
        Condition("outputs", chain.widths[-1], "1 (3.1)", chain.widths[-1] == 1),
        *_form(chain),
        _square_loss(objective),
        Condition("time T", time, ">= 1 (Theorem 1)", time >= 1),
        *_step_size("A1", xi, time),
        _responses("A2", objective),
        Condition("sup |sigma'| max |x|", gradient, "finite: sub-Gaussian gradient (A2)", _finite(gradient)),
        *_bounded("A3", suprema),
        _support("A4", chain, start, bound, [chain.L]),
    )


def multilayer_premises(
    objective: Objective,
    params: Mapping[str, Tensor] | None = None,
    *,
    time: float,
    xi: _StepFunction | None = None,
    start: Mapping[str, Tensor] | None = None,
    bound: float | None = None,
) -> tuple[Condition, ...]:
    """Theorem 2: the form (1.1) and the conditions (B1) to (B4), as `two_layer_premises`.

    `params`: the parameters after training, which must have the first and last layer of `start`.
    """
    chain = chain_of(objective.program, objective.structure)
    widths = set(chain.widths[1:-1])
    biases = sum(bool(chain.layer(l).vectors) for l in range(2, chain.L + 1))
    return (
        Condition("layers L + 1", chain.L, ">= 4 (4.1)", chain.L >= 4),
        Condition("different hidden widths", len(widths), "1 (4.1)", len(widths) == 1),
        *_form(chain),
        Condition("layers with bias after the first", biases, "0 (4.1)", biases == 0),
        _square_loss(objective),
        _fixed_ends(chain, start, params),
        *_step_size("B1", xi, time),
        _responses("B2", objective),
        *_bounded("B3", _activations(chain)),
        _support("B4", chain, start, bound, range(2, chain.L + 1)),
    )


def dropout_rate(widths: Sequence[int], kept: int, step: float) -> float:
    """The bracket of (3.7) for two layers, of (4.4) for more, at z = 0: what epsilon_D is a constant multiple of.

    `widths` = (inputs, hidden widths..., outputs), `kept`: the least number of units that any layer keeps, `step`:
    alpha.

    >>> round(dropout_rate((32, 400, 1), 100, 0.0), 4), round(dropout_rate((32, 400, 400, 400, 1), 100, 0.0), 4)
    (0.2146, 0.6881)
    """
    if len(widths) < 3 or not 1 <= kept <= min(widths[1:-1]) or step < 0:
        raise InputError("widths, kept, step", expected="a network and 1 to N units of it", got=(widths, kept, step))
    D, N = widths[0], max(widths[1:-1])
    if len(widths) == 3:
        return sqrt(log(kept) / kept) + sqrt(step * (D + log(N)))
    # in the form (1.1) the values between the layers are numbers, so d is that of the inputs or of the outputs
    d = max(widths[0], widths[-1])
    return sqrt(d / kept) + sqrt(log(N) / N) + sqrt(step * (d + log(N)))


def _finite(value: float) -> bool | None:
    return None if value != value else isfinite(value)


def _form(chain: Chain) -> tuple[Condition, Condition]:
    """Fully connected layers, each of which reads the average over the units before it."""
    other = sum(n.kind == "affine" and n.base != "linear" for layer in chain.layers for n in layer.nodes)
    off = 0.0
    for l in range(2, chain.L + 1):
        after, before = _parts(chain, l - 1)[1], _parts(chain, l)[0]
        off = max(off, abs(prod(factor(n) or 1.0 for n in (*after, *before)) * chain.widths[l - 1] - 1))
    return (
        Condition("convolutions", other, "0: fully connected", other == 0),
        Condition("largest |N c - 1|", off, "0: the factor c before a layer is 1 / N", off < 1e-6),
    )


def _parts(chain: Chain, l: int) -> tuple[list[Node], list[Node]]:
    """The nodes of a layer before its first and after its last operation that is neither affine nor a factor."""
    nodes = chain.layer(l).nodes
    bends = [i for i, n in enumerate(nodes) if n.kind not in ("affine", *RESHAPE) and factor(n) is None]
    return (list(nodes[: bends[0]]), list(nodes[bends[-1] + 1 :])) if bends else (list(nodes), [])


def _square_loss(objective: Objective) -> Condition:
    square = objective.named_loss == "mse"
    return Condition("square loss", float(square), "1: (y - f(x))^2 (3.2)", square)


def _responses(name: str, objective: Objective) -> Condition:
    y = objective.data[1]
    largest = float(y.flatten(1).norm(dim=1).max()) if y.is_floating_point() and y.dim() > 1 else 1.0
    if y.is_floating_point() and y.dim() == 1:
        largest = float(y.abs().max())
    return Condition("max |y|", largest, f"finite: K_2 ({name})", isfinite(largest))


def _step_size(name: str, xi: _StepFunction | None, time: float) -> tuple[Condition, Condition]:
    """xi > 0, bounded and Lipschitz; a jump is a slope that grows as the grid gets finer."""
    if not 0 <= time < inf:
        raise InputError("time", expected="a number >= 0", got=time)
    if xi is None or time == 0:
        value = 1.0 if xi is None else float(xi(0.0))
        slopes = [0.0, 0.0]
        values = [value]
    else:
        slopes, values = [], []
        for n in (_FINE, 4 * _FINE):
            values = [float(xi(time * i / n)) for i in range(n + 1)]
            slopes.append(max(abs(q - p) for p, q in pairwise(values)) * n / time)
    positive = min(values) > 0 and isfinite(max(values))
    smooth = isfinite(slopes[1]) and slopes[1] <= 1.5 * slopes[0] + 1e-9
    return (
        Condition("max xi on [0, T]", max(values), f"finite, and xi > 0: K_1 ({name})", positive),
        Condition("Lipschitz constant of xi", slopes[1], f"finite: K_1 ({name})", smooth),
    )


def _activations(chain: Chain) -> tuple[float, float, float]:
    """The largest suprema over the activations; NaN where an operation is not in the table."""
    nodes = [node for layer in chain.layers for node in layer.behind]
    found = [_suprema(node) for node in nodes if node.kind not in RESHAPE and factor(node) is None]
    if any(v != v for row in found for v in row):
        return nan, nan, nan
    value, slope, curvature = map(max, zip((0.0, 0.0, 0.0), *found, strict=True))
    return value, slope, curvature


def _suprema(node: Node) -> tuple[float, ...]:
    if node.base == "hardtanh":
        low, high = (float(node.named()[k]) for k in ("min_val", "max_val"))
        return max(abs(low), abs(high)), 1.0, inf
    about = node.about
    return tuple(nan if v is None else v for v in (about.bound, about.lipschitz, about.curvature))


def _bounded(name: str, suprema: tuple[float, float, float]) -> tuple[Condition, ...]:
    what = ("sup |sigma|", "sup |sigma'|", "Lipschitz constant of sigma'")
    extra = "; section 3.3 lifts it for bounded data" if name == "A3" else ""
    needed = (f"finite: K_3 ({name}{extra})", f"finite: K_3 ({name})", f"finite: K_3 ({name})")
    return tuple(Condition(w, v, n, _finite(v)) for w, v, n in zip(what, suprema, needed, strict=True))


def _support(
    name: str, chain: Chain, start: Mapping[str, Tensor] | None, bound: float | None, layers: Sequence[int]
) -> Condition:
    """The largest weight before training, beside the bound of its distribution."""
    largest = nan
    if start is not None:
        largest = max(float(start[chain.layer(l).weight].abs().max()) for l in layers)
    holds = None if bound is None else isfinite(bound) and not largest > bound
    needed = f"<= K_4 ({name})" if bound is None else f"<= {bound:.4g} = K_4 ({name})"
    return Condition("max |a| at the start", largest, needed, holds)


def _fixed_ends(chain: Chain, start: Mapping[str, Tensor] | None, params: Mapping[str, Tensor] | None) -> Condition:
    moved = nan
    if start is not None and params is not None:
        names = [k for l in (1, chain.L) for k in (chain.layer(l).weight, *chain.layer(l).vectors)]
        moved = max(float((params[k] - start[k]).abs().max()) for k in names)
    needed = "0: first and last layer fixed (4.3)"
    return Condition("movement of the first and last layer", moved, needed, None if moved != moved else moved == 0)
