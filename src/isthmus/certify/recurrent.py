"""Rules for recurrent layers: the steps one after the other, as the equations of torch have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from isthmus.certify.arithmetic import add, contract, joined, moved, multiply
from isthmus.certify.forms import Form, Refused
from isthmus.certify.kinks import rectified
from isthmus.certify.smooth import SIGMOID, TANH, smooth
from isthmus.certify.windows import Arguments
from isthmus.program.export import Node

__all__ = ["RECURRENT"]

State = tuple[Form, ...]
Cell = Callable[[Form, State, "Weights"], State]


class Weights:
    """Those of one layer in one direction."""

    def __init__(self, several: Sequence[Form]) -> None:
        self.own, self.back = several[:2]
        self.biases = several[2:] or (None, None)

    def both(self, x: Form, h: Form) -> tuple[Form, Form]:
        """What the input and what the state give, each with its bias."""
        parts = zip((x, h), (self.own, self.back), self.biases, strict=True)
        one, two = (contract(F.linear, w.centre.shape[1], v, w, b, 1) for v, w, b in parts)
        return one, two


def _parts(x: Form, n: int) -> list[Form]:
    width = x.centre.shape[-1] // n
    return [moved(lambda p, i=i: p[..., i * width : (i + 1) * width], x) for i in range(n)]


def _lstm_cell(x: Form, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = _parts(add(*weights.both(x, h)), 4)
    kept, fresh = multiply(smooth(SIGMOID, f), c), multiply(smooth(SIGMOID, i), smooth(TANH, g))
    c = add(kept, fresh)
    return multiply(smooth(SIGMOID, o), smooth(TANH, c)), c


def _gru_cell(x: Form, state: State, weights: Weights) -> State:
    """n + z (h - n)."""
    (h,) = state
    ours, backs = (_parts(v, 3) for v in weights.both(x, h))
    r, z = (smooth(SIGMOID, add(p, q)) for p, q in zip(ours[:2], backs[:2], strict=True))
    n = smooth(TANH, add(ours[2], multiply(r, backs[2])))
    return (add(n, multiply(z, add(h, n, -1.0))),)


def _plain_cell(f: Callable[[Form], Form], x: Form, state: State, weights: Weights) -> State:
    return (f(add(*weights.both(x, state[0]))),)


def _steps(cell: Cell, x: Form, state: State, weights: Weights, backwards: bool) -> tuple[list[Form], State]:
    order = range(len(x.centre))
    out = []
    for t in reversed(order) if backwards else order:
        state = cell(moved(lambda p, t=t: p[t], x), state, weights)
        out.append(state[0])
    return out[::-1] if backwards else out, state


def _stacked(several: Sequence[Form], dim: int = 0) -> Form:
    return joined(lambda parts: torch.stack(list(parts), dim), several)


def _layers(cell: Cell, node: Node, a: Arguments) -> tuple[Form, ...]:
    """All layers, in both directions where there are two; steps first inside."""
    _check(a, _each(a) * (1 + a["bidirectional"]) * a["num_layers"])
    x, last = _swapped(a["x"], a), []
    for layer in range(a["num_layers"]):
        x, ends = _layer(cell, x, a, layer)
        last += ends
    return (_swapped(x, a), *(_stacked(column) for column in zip(*last, strict=True)))


def _each(a: Arguments) -> int:
    """How many tensors of weights a layer has in one direction."""
    return 2 + 2 * a["has_biases"]


def _layer(cell: Cell, x: Form, a: Arguments, layer: int) -> tuple[Form, list[State]]:
    """The outputs of one layer, and its last states, in each direction."""
    starts = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    directions, each = 1 + a["bidirectional"], _each(a)
    found, ends = [], []
    for d in range(directions):
        k = layer * directions + d
        state = tuple(moved(lambda p, k=k: p[k], s) for s in starts)
        steps, end = _steps(cell, x, state, Weights(a["params"][each * k : each * (k + 1)]), d == 1)
        found.append(_stacked(steps))
        ends.append(end)
    return joined(lambda parts: torch.cat(list(parts), -1), found), ends


def _check(a: Arguments, weights: int) -> None:
    if a["train"] and a["dropout"]:
        raise Refused("it is in training mode, with dropout")
    if "batch_sizes" in a:
        raise Refused("packed sequences have no rule")
    if len(a["params"]) != weights:
        raise Refused("projections have no rule")


def _swapped(x: Form, a: Arguments) -> Form:
    """Between examples first and steps first."""
    return moved(lambda p: p.transpose(0, 1), x) if a["batch_first"] else x


RECURRENT = {
    "lstm": partial(_layers, _lstm_cell),
    "gru": partial(_layers, _gru_cell),
    "rnn_tanh": partial(_layers, partial(_plain_cell, partial(smooth, TANH))),
    "rnn_relu": partial(_layers, partial(_plain_cell, rectified)),
}
