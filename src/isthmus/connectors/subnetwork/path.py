"""The path of Theorem 4.1 of Nguyen, Brechet, Mondelli 2021, from any subnetworks xi_l: a construction, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isthmus.connectors.moves.units import WeightWalk, join, labels_as_text
from isthmus.errors import InputError
from isthmus.params import Params
from isthmus.paths import Path
from isthmus.structure.chain import Chain, Weights
from isthmus.structure.network_units import Units, complement, places


def build(
    chain: Chain, held_a: Units, held_b: Units, a: Params, b: Params, xi: Sequence[Mapping[int, Weights]]
) -> tuple[Path, list[str]]:
    """The path from `a` to `b` through ``xi[end][l]``, l = 0 .. L-1, end 0 at a and 1 at b, and one label per segment.

    `held_a` and `held_b` are the sets I_l of both ends, ascending, each of at least half of the units of hidden
    layer l; ``xi[end][l]`` holds layers l + 1 .. L in compact form: it reads the held units of layer l (all inputs
    for l = 0) and has n_p - |I_p| units in layer p > l. The loss on the path is at most the largest of the ends' and
    of the subnetworks' losses, if it is convex in the outputs. Every end takes 2L - 1 segments to its hub xi_0, and
    the hubs are joined by

    - 1 segment, if both ends have the same sets and the same hub: 4L - 1 in all;
    - 5, if the hub is the same but stands on different units (Claim 5.1 for all layers at once): 4L + 3;
    - 7, if the hubs differ, as they must where |I_l| does: B's hub is written on dead units beside A's, which are
      at most half, the output switches to it, and it moves to its places: 4L + 5.

    Errors: sets that are too small or xi_l of other shapes.
    """
    for e, held in enumerate((held_a, held_b)):
        _check(chain, held, xi[e], "AB"[e])
    walks, place = [], []
    for e, (params, held) in enumerate(((a, held_a), (b, held_b))):
        walk = WeightWalk(chain, params)
        place.append(_sparsify(walk, held, xi[e], "AB"[e]))
        walks.append(walk)
    there, back = walks
    if not _same(xi[0][0], xi[1][0]):
        place[0] = _switch(there, place[0], place[1], xi[1][0])
    elif all(torch.equal(place[0][l], place[1][l]) for l in place[0]):
        there.now = back.now.copy()
        there.step("join the hubs", "b")
        return _joined(there, back)
    there.permute_live(place[0], place[1], "Claim 5.1", arrive=back.now)
    return _joined(there, back)


def _sparsify(walk: WeightWalk, held: Units, xi: Mapping[int, Weights], end: str) -> Units:
    """From theta to the hub, through xi_{L-1}, ..., xi_1: 2L - 1 segments; returns the units that the hub lives in."""
    chain, L = walk.chain, walk.L
    free = {p: complement(chain.widths[p], held[p]) for p in held}
    live: Units = {L - 1: held[L - 1]}
    place: Units = {}
    walk.put_output(held[L - 1], xi[L - 1].A[L], xi[L - 1].b[L])
    walk.step(f"at {end}, output of xi_{L - 1}", "a")
    for l in range(L - 2, -1, -1):
        # xi_{l+1} reads the held units of layer l + 1 and lives in free, held, free, ... units above it
        live[l + 1] = held[l + 1]
        place = {p: free[p] if (p - l) % 2 else held[p][: len(free[p])] for p in range(l + 1, L)}
        for p in range(l + 1, L):
            walk.zero_rows(p, complement(chain.widths[p], live[p]))
            before = None if p == 1 else held[l] if p == l + 1 else place[p - 1]
            walk.put_rows(p, place[p], before, xi[l].A[p], xi[l].b[p])
        walk.step(f"at {end}, write xi_{l} into dead units", "b")
        walk.put_output(place[L - 1], xi[l].A[L], xi[l].b[L])
        walk.step(f"at {end}, switch to xi_{l}", "a")
        live = dict(place)
    return place


def _switch(walk: WeightWalk, live: Units, home: Units, hub: Weights) -> Units:
    """Write another hub on dead units, on its final ones where they are dead, and switch to it: 2 segments."""
    chain, L = walk.chain, walk.L
    place: Units = {}
    for p in home:
        dead = complement(chain.widths[p], live[p])
        place[p] = places(home[p], dead)
        walk.zero_rows(p, dead)
        walk.put_rows(p, place[p], None if p == 1 else place[p - 1], hub.A[p], hub.b[p])
    walk.step("write the hub of B into dead units", "b")
    walk.put_output(place[L - 1], hub.A[L], hub.b[L])
    walk.step("switch from the hub of A to that of B", "a")
    return place


def _joined(there: WeightWalk, back: WeightWalk) -> tuple[Path, list[str]]:
    path, labels = join(there, back)
    return path, labels_as_text(labels)


def _same(p: Weights, q: Weights) -> bool:
    """Whether two subnetworks are equal bit for bit."""
    pairs: list[tuple[Tensor, Tensor]] = [(v, getattr(q, k)[l]) for k in ("A", "b") for l, v in getattr(p, k).items()]
    return p is q or all(torch.equal(v, w) for v, w in pairs)


def _check(chain: Chain, held: Units, xi: Mapping[int, Weights], end: str) -> None:
    L, widths = chain.L, chain.widths
    for l in range(1, L):
        if not widths[l] / 2 <= len(held[l]) <= widths[l]:
            raise InputError(f"I_{l} at {end}", expected=f"{-(-widths[l] // 2)} to {widths[l]} units", got=len(held[l]))
        if len(held[l]) > 1 and not bool((held[l][1:] > held[l][:-1]).all()):
            raise InputError(f"I_{l} at {end}", expected="units in ascending order", got=held[l].tolist())
    for l in range(L):
        _check_shapes(chain, held, xi[l], l, end)


def _check_shapes(chain: Chain, held: Units, xi: Weights, l: int, end: str) -> None:
    L, widths = chain.L, chain.widths
    for p in range(l + 1, L + 1):
        rows = widths[L] if p == L else widths[p] - len(held[p])
        columns = widths[0] if p == 1 else len(held[l]) if p == l + 1 else widths[p - 1] - len(held[p - 1])
        shape = tuple(xi.A[p].shape)
        if shape[:2] != (rows, columns):
            raise InputError(f"xi_{l} at {end}, layer {p}", expected=f"shape ({rows}, {columns}, ...)", got=shape)
