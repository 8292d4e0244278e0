"""Odd networks, by every method: what it says of its path against the plain loop in float64, or a refusal in one line.

    python -m tests.long.constructions FIRST COUNT [METHOD ...]     # seeds FIRST to FIRST + COUNT - 1

A network of ``tests.long.odd`` is connected by each method (of ``isthmus.METHODS``), proved in parallel (`in_parallel`)
and merged (`merge`). The path, its ends, the level that the method states, a profile, the bounds and the verdict are
held against 201 points of the path, at least 9 a segment; and nothing of the user's may have changed. Told is each
fault with its seed, then how often each method ended how: with an outcome, refused, or late (after 15 processor
seconds, or LIMIT=n), and, behind a stroke, how the judgement of its path ended. The exit code is 1 after a fault.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args, get_type_hints

import torch

import isthmus as im
from isthmus.certify import certify
from isthmus.connectors import connect
from isthmus.sweep.parallel import certify_in_parallel, profile_in_parallel
from tests.long.claims import dense, near, of_certificate, of_ends, of_level, of_profile, of_verdict, tolerance
from tests.long.merges import merges
from tests.long.odd import Odd, draw
from tests.long.untouched import Late, changed, state, within

LIMIT = float(os.environ.get("LIMIT", "15"))
"""The processor seconds that a construction may take, and its judgement too."""


@dataclass
class Result:
    """How it ended, what is wrong, and what it was tried on."""

    described: str
    ended: str = ""
    faults: list[str] = field(default_factory=list)


def attack(seed: int, name: str) -> Result:
    """One method on one network."""
    r = random.Random(f"{seed} {name}")
    family = r.choice(["chain", FAMILY.get(name, "chain")])
    odd = draw(seed, family)
    before = state(odd)
    result = Result(odd.case.described)
    if name in OTHERS:
        result.ended = _ended("ok", result, lambda: OTHERS[name](odd, r))
    else:
        _connected(odd, METHODS[name](r), r, result)
    result.faults += changed(before, state(odd))
    return result


def _connected(odd: Odd, method: im.Connector, r: random.Random, result: Result) -> None:
    found: list[im.Connection] = []
    result.described = f"{method!r}: {result.described}"

    def construct() -> Iterator[str]:
        found.append(connect(odd.objective(), odd.a, odd.b, method, seed=r.randrange(5)))
        yield from ()

    result.ended = _ended("made", result, construct)
    if found:
        judged = _ended("judged", result, lambda: _judged(odd, found[0], method, r))
        result.ended = f"{found[0].outcome.name}/{judged}"


def _ended(well: str, result: Result, work: Callable[[], Iterator[str]]) -> str:
    """In a word; faults are kept as they are found."""
    try:
        with within(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for fault in work():
                result.faults.append(fault)
    except im.IsthmusError as e:
        if "internal error" in str(e) or len(str(e).splitlines()) > 1:
            result.faults.append(f"an error of more than one line, or internal: {e}")
        return "refused"
    except Late:
        return "late"
    except Exception:
        result.faults.append(traceback.format_exc(limit=-3))
        return "raw"
    return well


def _judged(odd: Odd, found: im.Connection, method: im.Connector, r: random.Random) -> Iterator[str]:
    """Everything that is said of one path."""
    inner = method.inner if isinstance(method, im.Aligned) else method
    yield from of_ends(odd, found)
    losses = dense(odd, found.path)
    yield from of_level(odd, found, type(inner).__name__, losses)
    objective, bn = odd.objective(), "interpolate" if odd.has_statistics else None
    measured = im.profile(objective, found.path, num_points=5, bn=bn)
    yield from of_profile(odd, measured, found.path)
    certificate = certify(objective, found.path, budget=r.choice([4, 15]))
    yield from of_certificate(odd, certificate, found.path, losses)
    yield from of_verdict(im.verdict(measured, certificate), losses)


def _in_parallel(odd: Odd, r: random.Random) -> Iterator[str]:
    """A path through the ends, proved and measured in chunks of the data, or in parts of its segments."""
    ends = [{k: v.detach() for k, v in p.items()} for p in (odd.a, odd.b)]
    between = {k: v * 0.5 if v.is_floating_point() and "running" not in k else v for k, v in ends[0].items()}
    path = im.Path.through([ends[0], *[between] * (r.random() < 0.4), ends[1]])
    chunk, model, objective = r.choice([1, 2, 3, 7, 100]), r.choice(["box", "box", "chord"]), odd.objective()
    found = certify_in_parallel(objective, path, chunk=chunk, model=model, budget=r.choice([3, 12]), num_points=7)
    losses = dense(odd, path)
    yield from of_certificate(odd, found, path, losses)
    for said, true in zip(found.ends, (odd.truth(ends[0]), odd.truth(ends[1])), strict=True):
        if not near(said, true, tolerance(odd)):
            yield f"certificate: an end {said}, truth {true}"
    bn = "interpolate" if odd.has_statistics else None
    yield from of_profile(odd, profile_in_parallel(objective, path, 5, chunk=chunk, bn=bn), path)


def _few(lr: float | None = 1e-2) -> im.Recipe:
    return im.Recipe(lr=lr, steps=20, batch=4)


def _narrow(r: random.Random) -> im.Connector:
    if r.random() < 0.3:
        return im.Narrow(draws=2, recipe=_few(), p=0.5, counts="bernoulli", attempts=1)
    p, width = r.choice([None, None, 0.5, 0.1]), r.choice([None, None, 1, 2])
    return im.Narrow(draws=r.choice([1, 3]), recipe=_few(), p=p, width=width, attempts=1)


def _dropout(r: random.Random) -> im.Connector:
    hints = get_type_hints(im.Dropout)
    scale, search = (r.choice(get_args(hints[name])) for name in ("scale", "search"))
    return im.Dropout(r.choice([0.5, 0.3]), r.choice([1, 4]), scale, every_vertex=r.random() < 0.3, search=search)


def _subnetwork(r: random.Random) -> im.Connector:
    trained = im.Trained(recipe=im.Recipe(steps=20, batch=4))
    return r.choice([
        im.Subnetwork(inner=trained), im.Subnetwork(subsets="own", inner=trained),
        im.Subnetwork("search", draws=2, inner=trained), im.Subnetwork(inner=im.Memorised()),
        im.Subnetwork(inner=im.Separated()),
    ])  # fmt: skip


def _two_layers(r: random.Random) -> im.Connector:
    recipe = im.Recipe(lr=1e-2, steps=5)
    units, alpha = r.choice([None, 1, 2]), r.choice([0.0, 0.1, 0.5, 1.5])
    return im.TwoLayerReLU(units, alpha, attempts=r.choice([0, 1]), recipe=recipe)


INNER = (
    "Linear", "Renormalised", "Dropout", "MeanField", "Subnetwork", "Bezier", "Sublevel", "LayerWise", "TwoLayerReLU",
    "DeepLinear",
)  # fmt: skip


def _aligned(r: random.Random) -> im.Connector:
    matching = r.choice([im.ActivationMatching(), im.WeightMatching(), im.WeightMatching(), im.RotationMatching()])
    return im.Aligned(METHODS[r.choice(INNER)](r), matching)


METHODS: dict[str, Callable[[random.Random], im.Connector]] = {
    "Linear": lambda r: im.Linear(),
    "Bezier": lambda r: im.Bezier(recipe=_few(None)),
    "PolyChain": lambda r: im.PolyChain(recipe=_few(None)),
    "AutoNEB": lambda r: im.AutoNEB(cycles=((10, 2),)),
    "LayerWise": lambda r: im.LayerWise(moves=2, halvings=1, recipe=_few(None)),
    "Aligned": _aligned,
    "Renormalised": lambda r: im.Renormalised(knots=r.choice([1, 2]), examples=r.choice([2, 1000])),
    "Dropout": _dropout,
    "NoiseDropout": lambda r: im.NoiseDropout(draws=2),
    "Narrow": _narrow,
    "Subnetwork": _subnetwork,
    "MeanField": lambda r: im.MeanField(r.choice(["first", "random"]), r.choice(["same", "opposite"])),
    "StringSampling": lambda r: im.StringSampling(depth=1, points=3, recipe=_few()),
    "ConstrainedStringSampling": lambda r: im.ConstrainedStringSampling(beads=1, points=3, recipe=_few()),
    "Sublevel": lambda r: im.Sublevel(),
    "DeepLinear": lambda r: im.DeepLinear(tolerance=r.choice([1e-2, 1e-3]), max_segments=100),
    "TwoLayerReLU": _two_layers,
    "Auto": lambda r: im.Auto(excess=r.choice([0.05, 0.01]), budget=r.choice([20, 60])),
}
OTHERS: dict[str, Callable[[Odd, random.Random], Iterator[str]]] = {"in_parallel": _in_parallel, "merge": merges}
FAMILY = {"DeepLinear": "linear", "TwoLayerReLU": "two", "Sublevel": "wide", "MeanField": "two"}
"""Networks that a theorem is about, for half of the seeds."""


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    first, count = map(int, arguments[:2])
    ends: Counter[tuple[str, str]] = Counter()
    found, begin = 0, time.process_time()
    for seed in range(first, first + count):
        for name in arguments[2:] or (*METHODS, *OTHERS):
            result = attack(seed, name)
            ends[name, result.ended] += 1
            found += bool(result.faults)
            for fault in result.faults:
                print(f"seed {seed}, {name}: {fault}\n    {result.described}", flush=True)
    for (name, ended), times in sorted(ends.items()):
        print(f"{name:26} {ended:28} {times}")
    seconds = time.process_time() - begin
    print(f"{ends.total()} attempts on {count} networks, {found} with faults, {seconds:.0f} processor seconds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
