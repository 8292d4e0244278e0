"""The subnetworks xi_l without training: memorising and separating ones (Corollaries 4.3 and 4.4).

Source: Nguyen, Brechet, Mondelli 2021, appendix A.2 and A.3, with two changes. Class labels need one memorised
function, not n_L: its value v gives class c the score 2 c v - c^2, largest for the c nearest to v. And scores, of
which that of the own class is the largest, pass through ReLU layers unharmed, so hyperplanes that separate each class
from all others are not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.connectors.subnetwork.choose import Choice
from isthmus.connectors.subnetwork.identity_layers import Wires, class_labels, half_space, is_convolution
from isthmus.connectors.subnetwork.train import Start, Subnet
from isthmus.errors import InputError, UnsupportedError
from isthmus.objective import Objective
from isthmus.premises.memorise import Gates, Line, line, line_capacity, slab_capacity, slabs
from isthmus.premises.separability import separate
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import random_units

_MISS = 0.3
"""How far the memorised class number may be off; at 1/2 it would be another."""

_DIRECTIONS = 24
"""Random directions along which memorising networks try to order the examples."""

_INTERVAL = 0.5
"""Activations other than ReLU are used at most so far from 0, where the usual ones are strictly monotonic."""


def memorising(objective: Objective, start: Start, generator: torch.Generator, target: float = 0.0) -> Subnet:
    """xi_l that memorises the data from the features `start` says it reads, l <= L-2, with loss at most `target`.

    Layers l+1 .. L-3 carry one unit (two without biases), layers L-2 and L-1 memorise; for l = L-2, layer L-1
    alone does. For losses whose infimum interpolation reaches: "cross_entropy" with class labels (scaled scores, m = 1
    function) and "mse" (m = n_L). With n units free in layer L-1 (one less where the output layer has no bias to
    hold a constant), d features at layer L-2 and n' free units there, N examples need

        l = L-2: N <= d floor(n / (m+1));    l < L-2: N <= 2 floor((n'+1)/2) floor(n / (m+1)).

    Neighbours with equal labels count once where that helps, so good features need fewer units. Convolutional
    layers after l carry channels of the network's own free filters, or random ones.

    Errors: ``InputError`` naming the layer and how many examples it can hold, or that the precision does not
    suffice; ``UnsupportedError`` for other losses, activations but ReLU, convolutional layers L-1.

    Without biases the examples must lie in an open half-space, whose functional takes the place of the constant 1.
    """
    aim = _aim(objective, start.chain)
    return _first_that_works(objective, start, generator, lambda wires: _memorise(wires, aim, generator), target)


def separating(objective: Objective, start: Start, generator: torch.Generator, target: float = 0.0) -> Subnet:
    """xi_l that separates the classes linearly in the features `start` says it reads, with loss at most `target`.

    The scores of a linear classifier pass through one unit per class in layers l+1 .. L-1: shifted to where ReLU is
    the identity (two units per class, for the positive and negative parts, without biases and half-space), or scaled
    into a short interval where another activation is monotonic. Cross-entropy with class labels only.

    Errors: ``InputError`` naming the layer whose features are not linearly separable, with the margin that no separator
    exceeds, or that has too few free units; ``UnsupportedError`` for other losses.
    """
    if not class_labels(objective):
        raise UnsupportedError(
            f"loss {objective.describe()['loss']!r}", "separating needs cross_entropy with class labels"
        )
    return _first_that_works(objective, start, generator, _separate, target)


def _first_that_works(
    objective: Objective,
    start: Start,
    generator: torch.Generator,
    make: Callable[[Wires], None],
    target: float,
) -> Subnet:
    """The construction behind the network's own free filters, else behind random ones."""

    def build(own: Weights) -> Subnet:
        wires = Wires(objective, start)
        wires.through_convolutions(own)
        make(wires)
        return wires.subnet(target)

    if is_convolution(start.chain, start.l + 1):
        try:
            return build(start.theta().weights)
        except InputError:
            return build(start.random(generator).weights)
    return build(start.theta().weights)


def fill(choice: Choice, kind: str, objective: Objective) -> None:
    """Put subnetworks without training into a choice: ``kind="memorise"`` or "separate".

    Where xi_l cannot be built at both ends, further sets I_l are tried, ``draws`` in all. xi_{L-1} of a memorising path
    is the convex problem of assumption (A1-b), solved to its minimum.
    """
    make, chain, generator = _MAKERS[kind], choice.chain, choice.training.generator

    def build(l: int, e: int) -> Subnet:
        start = Start(chain, choice.params[e], l, choice.held[e])
        if kind == "memorise" and l == chain.L - 1:
            what = f"solving for xi_{l} at {'AB'[e]}"
            return choice.training.train(l, choice.params[e], [start.theta()], target=choice.target, what=what)[0]
        return make(objective, start, generator, choice.target)

    choice.training.progress(f"building subnetworks that {kind}", 0, chain.L)
    hub = build(0, 0)
    choice.xi[0][0] = choice.xi[1][0] = hub
    for l in range(1, chain.L):
        for attempt in range(choice.options.draws):
            try:
                for e in (0, 1):
                    choice.xi[e][l] = build(l, e)
                break
            except InputError as error:
                if attempt == choice.options.draws - 1:
                    error.add_note(f"xi_{l}, {attempt + 1} draw(s) of I_{l}")
                    raise
            sizes = {e: len(choice.held[e][l]) for e in (0, 1)}
            sets = [random_units(chain.widths, {l: sizes[e]}, generator)[l] for e in (0, 1)]
            for e in (0, 1):
                choice.held[e][l] = sets[e if choice.options.own else 0]
        choice.training.progress(f"building subnetworks that {kind}", l + 1, chain.L)


# -- memorising


@dataclass(frozen=True, eq=False)
class _Aim:
    """What is memorised: functions `wanted` [N, m], and the outputs ``wanted @ M.T + c`` made of them."""

    wanted: Tensor
    M: Tensor
    c: Tensor
    scores: bool


def _aim(objective: Objective, chain: Chain) -> _Aim:
    y, n = objective.data[1], chain.widths[chain.L]
    if class_labels(objective):
        centres = torch.arange(n, dtype=torch.float64, device=y.device) - (n - 1) / 2
        return _Aim(centres[y][:, None], 2 * centres[:, None], -centres.square(), True)
    if objective.named_loss == "mse" and y.dim() == 2:
        eye = torch.eye(n, dtype=torch.float64, device=y.device)
        return _Aim(y.double(), eye, eye.new_zeros(n), False)
    raise UnsupportedError(
        f"loss {objective.describe()['loss']!r}", "memorising needs cross_entropy with class labels, or mse"
    )


def _memorise(wires: Wires, aim: _Aim, generator: torch.Generator) -> None:
    L, at = wires.L, wires.at
    with_bias = _biased(wires)
    x, one, wanted = wires.x, None, aim.wanted
    if not with_bias:
        one = half_space(x)
        if one is None:
            raise InputError(
                f"features of layer {at}", expected="an open half-space that holds them (no biases)", got="none"
            )
        size = (x @ one)[:, None]
        x, wanted = x / size, wanted if aim.scores else wanted / size
    constant = bool(aim.c.any()) and not (with_bias and wires.has_bias(L))
    units = wires.free(L - 1) - constant
    directions = _directions(x, wanted, generator)
    if at == L - 2:
        found = slabs(x, wanted, units, directions, *([_MISS] if aim.scores else []))
        room = slab_capacity(x.shape[1], units, wanted.shape[1])
    else:
        found = _on_a_line(wires, x, wanted, units, directions, one)
        room = line_capacity(wires.free(L - 2) - (not with_bias), units, wanted.shape[1])
        one = None if one is None else torch.nn.functional.one_hot(torch.tensor(wires.free(L - 2) - 1)).to(x)
    if found is None:
        raise _not_memorised(wires, x, room, len(directions))
    _write(wires, found, aim, constant, one)


def _biased(wires: Wires) -> bool:
    """Whether all layers that memorise have biases; refuses others than linear ones with ReLU."""
    if wires.at > wires.L - 2:
        raise UnsupportedError(f"layer {wires.L - 1}", "memorising needs a linear layer L-1 after the features")
    own = range(wires.at + 1, wires.L)
    for p in own:
        if not wires.is_relu(p):
            raise UnsupportedError(f"layer {p}", "memorising needs linear layers with ReLU")
    return all(wires.has_bias(p) for p in own)


def _not_memorised(wires: Wires, x: Tensor, room: int, directions: int) -> InputError:
    """Why: there are too few units, or the examples are not in general position."""
    L, at, N = wires.L, wires.at, len(x)
    if room < N:
        where = f"layer {L - 1}" if at == L - 2 else f"layers {L - 2} and {L - 1}"
        return InputError(f"free units of {where}", expected=f"enough to memorise {N} examples", got=f"room for {room}")
    rank = int(torch.linalg.matrix_rank(x - x.mean(0)))
    return InputError(
        f"features of layer {at}",
        expected=f"groups of up to {x.shape[1]} neighbours in general position, and different where labels are",
        got=f"none in {directions} directions; all {N} examples together have affine rank {rank}",
    )


def _write(wires: Wires, found: Gates, aim: _Aim, constant: bool, one: Tensor | None) -> None:
    """Layers L-1 and L: the gates, and the outputs made of them; a unit of its own for the `constant`."""
    L, U, u, V = wires.L, found.U, found.u, aim.M @ found.V
    if constant:
        U, u = torch.cat([U, torch.zeros_like(U[:1])]), torch.cat([u, u.new_ones(1)])
        V = torch.cat([V, aim.c[:, None]], 1)
    wires.put(L - 1, U, u) if one is None else wires.put(L - 1, U + u[:, None] * one)
    out = V.new_zeros(len(V), wires.free(L - 1))
    out[:, : V.shape[1]] = V
    wires.put(L, out, None if constant else aim.c)


def _directions(x: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Directions [n, d] to order points along: the best linear guess of what is wanted, then random ones."""
    centred = x - x.mean(0)
    guess = torch.linalg.lstsq(centred.cpu(), (wanted - wanted.mean(0)).cpu(), driver="gelsd").solution.T.to(x)
    random = torch.randn(_DIRECTIONS, x.shape[1], generator=generator, dtype=torch.float64).to(x)
    guess = guess[guess.norm(dim=1) > 0]
    return torch.cat([guess, random / centred.norm(dim=1).mean().clamp(min=1e-300)])


def _on_a_line(
    wires: Wires, x: Tensor, wanted: Tensor, units: int, directions: Tensor, one: Tensor | None
) -> Gates | None:
    """Layers up to L-2 that carry one projection of the points, and the gates of layer L-1 on its knots.

    Without biases the functional `one` is carried along, in the last unit of each layer.
    """
    n, at = wires.free(wires.L - 2), wires.at
    best = _best_line(x, wanted, directions, n - (one is not None), units)
    if best is None:
        return None
    found, w = best
    weight, shift = _carried(wires, x, w, one)
    K = len(found.knots)
    t = found.knots + shift
    if one is None:
        wires.put(wires.L - 2, weight.expand(K, -1), -t)
    else:
        here = one if at == wires.L - 3 else torch.eye(wires.x.shape[1], dtype=w.dtype, device=w.device)[1]
        rows = w.new_zeros(n, wires.x.shape[1])
        rows[:K], rows[-1] = weight - t[:, None] * here, here
        wires.put(wires.L - 2, rows)
    U = w.new_zeros(len(found.gates.U), n)
    U[:, :K] = found.gates.U
    return Gates(U, found.gates.u, found.gates.V, found.error)


def _best_line(x: Tensor, wanted: Tensor, directions: Tensor, most: int, units: int) -> tuple[Line, Tensor] | None:
    """The direction along which `most` knots and so many units tell what is wanted best, and how."""
    best: tuple[Line, Tensor] | None = None
    for direction in directions:
        z = x @ direction
        spread = float(z.max() - z.min())
        if spread > 0 and (found := line(z / spread, wanted, most, units)):
            best = (found, direction / spread) if best is None or found.error < best[0].error else best
    return best


def _carried(wires: Wires, x: Tensor, w: Tensor, one: Tensor | None) -> tuple[Tensor, float]:
    """Layers up to L-3 that carry the projection on w: what reads it behind them, and its shift."""
    at, extra, weight, shift = wires.at, int(one is not None), w[None], 0.0
    for p in range(at + 1, wires.L - 2):
        if wires.free(p) <= extra:
            raise InputError(f"free units of layer {p}", expected=f"at least {1 + extra}", got=wires.free(p))
        if p == at + 1:  # far enough from 0 for ReLU to be the identity on all examples
            shift = 0.1 - float((x @ w).min())
            rows = weight if one is None else torch.stack([w + shift * one, one])
            wires.put(p, rows, None if one is not None else w.new_full((1,), shift))
        else:
            wires.put(p, torch.eye(1 + extra, wires.x.shape[1], dtype=w.dtype, device=w.device))
        weight = torch.zeros_like(wires.x[:1])
        weight[0, 0] = 1
    return weight, shift


# -- separating


def _separate(wires: Wires) -> None:
    L, y, C = wires.L, wires.objective.data[1], wires.chain.widths[wires.L]
    p, x = wires.at + 1, wires.x
    found = separate(x, y, C, kind="argmax", bias=wires.has_bias(p))
    if not found.separable:
        got = f"proof that no margin exceeds {found.residual:.1g}" if found.separable is False else "no separator"
        raise InputError(f"features of layer {p - 1}", expected="linearly separable classes", got=got)
    W, c = found.weight, found.offset
    if p == L:
        wires.put(L, W, c)
        return
    scores = x @ W.T + c
    size = float((scores - scores.mean(1, keepdim=True)).abs().max())
    W, c, scores = W / size, c / size, scores / size
    if not all(wires.is_relu(q) for q in range(p, L)):
        _through_any(wires, W, c, C)
        return
    if wires.has_bias(p):
        # a shift that all classes share changes no difference of scores
        _pass_on(wires, W, c + 0.1 - float(scores.min()), C)
    elif (one := half_space(x)) is not None:
        _pass_on(wires, W + one * (0.1 - float((scores / (x @ one)[:, None]).min())), None, C)
    else:
        _pass_on(wires, torch.cat([W, -W]), None, C)


def _need(wires: Wires, n: int) -> None:
    for q in range(wires.at + 1, wires.L):
        if wires.free(q) < n:
            raise InputError(
                f"free units of layer {q}", expected=f"at least {n} to pass the classes on", got=wires.free(q)
            )


def _pass_on(wires: Wires, W: Tensor, c: Tensor | None, C: int) -> None:
    """Through ReLU layers, whose values stay >= 0; a second half of W holds negative parts."""
    _need(wires, len(W))
    wires.put(wires.at + 1, W, c)
    while wires.at < wires.L - 1:
        wires.put(wires.at + 1, torch.eye(len(W), wires.x.shape[1], dtype=W.dtype, device=W.device))
    out = torch.eye(C, wires.x.shape[1], dtype=W.dtype, device=W.device)
    if len(W) > C:
        out[:, C : 2 * C] = -torch.eye(C, dtype=W.dtype, device=W.device)
    wires.put(wires.L, out)


def _through_any(wires: Wires, W: Tensor, c: Tensor, C: int) -> None:
    """Through layers of another activation: values scaled into a short interval, on which it keeps their order."""
    _need(wires, C)
    here = torch.arange(C, device=W.device)
    while wires.at < wires.L - 1:
        p = wires.at + 1
        values = wires.x @ W.T + c
        middle = (values.max() + values.min()) / 2 if wires.has_bias(p) else values.new_zeros(())
        size = float((values - middle).abs().max()) / _INTERVAL
        wires.put(p, W / size, (c - middle) / size if wires.has_bias(p) else None)
        W, c = W.new_zeros(C, wires.x.shape[1]), torch.zeros_like(c)
        W[here, here] = 1
    wires.put(wires.L, W)


_MAKERS = {"memorise": memorising, "separate": separating}
"""The constructions by name."""
