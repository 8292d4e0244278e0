"""What functions and modules compute, told apart; folders of work that hold another one's state."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path as File
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace

import isthmus as im
from isthmus.alignment.matching import Matched
from isthmus.connectors.base import Connection, Outcome
from isthmus.objective import functions
from isthmus.objective.described import bound
from isthmus.objective.functions import digest_of
from isthmus.objective.outside import globals_of, names_read
from isthmus.paths import Path
from tests.problems import two_layers

FACTOR = 2.0


def scaled(out, y):
    return FACTOR * F.cross_entropy(out, y, reduction="none")


def times(factor, by=1.0):
    return lambda out, y, more=by: more * factor * F.cross_entropy(out, y, reduction="none")


class Weighted(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.tensor(weight)

    def forward(self, out, y):
        return self.weight * F.cross_entropy(out, y, reduction="none")


def plus(out, y, extra):
    return F.cross_entropy(out, y, reduction="none") + extra


class Layers(nn.Module):
    """Two layers: what `act` and `scale` do is in no name of a parameter and in no line of its repr."""

    def __init__(self, act=F.relu, scale=1.0, hook=None, mask=1.0, config=None):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 3)
        self.act, self.scale, self.config = act, scale, config
        self.register_buffer("mask", torch.full((8,), mask), persistent=False)
        if hook is not None:
            self.inner.register_forward_hook(hook)

    def forward(self, x):
        return self.outer(self.act(self.inner(x)) * self.mask) * self.scale


def network(**options):
    return im.Objective(Layers(**options), data=(torch.eye(4), torch.tensor([0, 1, 2, 0])))


def told(**options):
    return lambda: network(**options).skeleton


@dataclass(slots=True)
class Config:
    depth: int


ONE = [
    ("lambda", lambda: lambda out, y: 2.0 * out, lambda: lambda out, y: 3.0 * out),
    ("a nested function", lambda: lambda out, y: (lambda v: v + 1)(out), lambda: lambda out, y: (lambda v: v + 2)(out)),
    ("closure", lambda: times(2.0), lambda: times(3.0)),
    ("default", lambda: times(2.0), lambda: times(2.0, 2.0)),
    ("tensor", lambda: times(torch.ones(2)), lambda: times(torch.tensor([1.0, 2.0]))),
    ("what is called", lambda: lambda out, y: plus(out, y, 1), lambda: lambda out, y: scaled(out, y)),
    ("module", lambda: Weighted(2.0), lambda: Weighted(3.0)),
    ("method", lambda: Weighted(2.0).forward, lambda: Weighted(3.0).forward),
    ("partial", lambda: functools.partial(plus, extra=1), lambda: functools.partial(plus, extra=2)),
    ("network: a function", told(), told(act=torch.tanh)),
    ("network: a function of the user's", told(act=lambda x: x.abs()), told(act=lambda x: x.square())),
    ("network: a number", told(), told(scale=2.0)),
    ("network: a hook", told(hook=lambda m, x, y: y + 1), told(hook=lambda m, x, y: y + 2)),
    ("network: a buffer that no state holds", told(), told(mask=0.5)),
    ("network: slots", told(config=Config(1)), told(config=Config(2))),
    (
        "network: a trace",
        lambda: symbolic_trace(Layers()).to("meta"),
        lambda: symbolic_trace(Layers(F.gelu)).to("meta"),
    ),
    ("network: a class", lambda: nn.LSTM(2, 2).to("meta"), lambda: nn.GRU(2, 2).to("meta")),
    ("other attributes", lambda: lambda out, y: out.abs(), lambda: lambda out, y: out.square()),
]


@pytest.mark.parametrize(("one", "other"), [case[1:] for case in ONE], ids=[case[0] for case in ONE])
def test_functions_are_told_apart(one, other):
    assert digest_of(one()) == digest_of(one()) != digest_of(other())
    assert digest_of(other()) is not None


def test_a_global_that_is_read_counts_and_packages_by_their_names(monkeypatch):
    before = digest_of(scaled)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert digest_of(scaled) != before
    assert digest_of(F.cross_entropy) != digest_of(F.nll_loss)
    assert digest_of(F.cross_entropy) is not None


def test_another_version_of_a_package_counts(tmp_path, monkeypatch):
    file = tmp_path / "site-packages" / "my_package.py"
    file.parent.mkdir()
    monkeypatch.syspath_prepend(file.parent)
    digests = []
    for text in ("def f(x): return x", "def f(x): return -x"):
        file.write_text(text)
        monkeypatch.delitem(sys.modules, "my_package", raising=False)
        importlib.invalidate_caches()
        functions._version_of.cache_clear()  # a later process
        digests.append(digest_of(importlib.import_module("my_package").f))
    assert digests[0] != digests[1]


def test_what_is_an_attribute_is_no_global():
    assert dict(names_read(lambda x: x.FACTOR, globals_of)) == {}
    assert dict(names_read(lambda x: x.FACTOR * FACTOR, globals_of)) == {"FACTOR": FACTOR}


def test_it_is_the_same_in_another_process():
    told = "digest_of(scaled), digest_of(Weighted(2.0)), digest_of(network(config=[{3, 'a'}, 'b']).skeleton)"
    code = f"from tests.objective.test_functions import *; print({told}, end='')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=File.cwd())
    assert found.stdout.split() == [*map(str, eval(told))]
    assert "None" not in found.stdout


def objective(loss):
    p = two_layers()
    return im.Objective(p.objective.skeleton, loss, p.objective.data)


CURVE = im.Bezier(recipe=im.Recipe(lr=None, steps=4, batch=8))
WORK = {
    "connect": lambda o, p, folder: im.connect(o, p.a, p.b, CURVE, memory=folder),
    "plane": lambda o, p, folder: im.plane(
        o, p.a, p.b, {k: v.flip(0) for k, v in p.a.items()}, points=2, folder=folder
    ),
    "cycles": lambda o, p, folder: im.fast_geometric_ensemble(o, p.a, cycles=1, epochs=1, memory=folder),
}


@pytest.mark.parametrize("work", WORK)
def test_a_folder_is_of_one_loss(tmp_path, work):
    """Two functions of one name, on the same data."""
    p = two_layers()
    WORK[work](objective(times(2.0)), p, tmp_path)
    WORK[work](objective(times(2.0)), p, tmp_path)
    with pytest.raises(im.FileError, match="another"):
        WORK[work](objective(times(3.0)), p, tmp_path)


@pytest.mark.parametrize("work", WORK)
def test_a_folder_is_of_one_network(tmp_path, work):
    """Two modules of one class, with the same parameters on the same data."""
    p = SimpleNamespace(a=drawn(0), b=drawn(1))
    WORK[work](network(), p, tmp_path)
    WORK[work](network(), p, tmp_path)
    with pytest.raises(im.FileError, match="another"):
        WORK[work](network(scale=2.0), p, tmp_path)


def drawn(seed):
    torch.manual_seed(seed)
    return {k: v.detach() for k, v in Layers().state_dict().items()}


def test_a_graph_and_a_comparison_are_of_one_network(tmp_path):
    tops = [
        im.minima_graph(network(scale=k), [drawn(0), drawn(1)], folder=tmp_path / "graph").bottleneck for k in (1, 8)
    ]
    assert tops[1] > 1.1 * tops[0]
    compared = [network(scale=k) for k in (1, 8)]
    im.compare(compared[0], drawn(0), drawn(1), [im.Linear()], folder=tmp_path / "rows")
    with pytest.raises(im.FileError, match="another call"):
        im.compare(compared[1], drawn(0), drawn(1), [im.Linear()], folder=tmp_path / "rows")


def method(share):
    """A method of the user's: `share` is in no field of it."""

    @dataclass(frozen=True)
    class Detour(im.Connector):
        about = im.Linear.about

        def find(self, task):
            middle = {k: share * v for k, v in task.a.items()}
            return Connection(Path.through([task.a, middle, task.b]), task.b, Outcome.CONSTRUCTED)

    return Detour()


def test_a_graph_and_a_comparison_are_of_one_method(tmp_path):
    p, tops = two_layers(), []
    for share in (0.5, 0.5, 8.0):
        graph = im.minima_graph(p.objective, [p.a, p.b], method(share), folder=tmp_path / "graph")
        tops.append(graph.edges[0].max)
    assert tops[0] == tops[1] < tops[2]
    assert len(list((tmp_path / "graph/edges").glob("*/result.json"))) == 2
    im.compare(p.objective, p.a, p.b, [im.Aligned(method(0.5))], folder=tmp_path / "rows")
    with pytest.raises(im.FileError, match="another call"):
        im.compare(p.objective, p.a, p.b, [im.Aligned(method(8.0))], folder=tmp_path / "rows")
    assert im.Aligned(im.Bezier()).digests() == {}
    codes = [im.Aligned(im.Bezier(), matching(k)).digests()["Ours"] for k in (1, 1, 2)]
    assert codes[0] == codes[1] != codes[2]


def matching(shift):
    @dataclass(frozen=True)
    class Ours(im.WeightMatching):
        def find(self, task):
            return Matched({name: order.roll(shift) for name, order in super().find(task).permutations.items()})

    return Ours()


def test_a_graph_is_of_one_loss(tmp_path):
    p = two_layers()
    tops = [im.minima_graph(objective(times(k)), [p.a, p.b], folder=tmp_path).bottleneck for k in (2.0, 3.0)]
    assert tops[1] == pytest.approx(1.5 * tops[0])


def test_what_cannot_be_told_is_gone_on_with_by_nobody_else(monkeypatch):
    ones = (1.0 for _ in range(10**6))
    one = objective(lambda out, y: F.cross_entropy(out, y, reduction="none") * next(ones))
    assert digest_of(one._loss) is None
    assert one.describe()["functions"] is None
    assert bound(one) == bound(one)
    here = bound(one)
    monkeypatch.setattr("isthmus.objective.described.PROCESS", "another")
    assert bound(one) != here
    assert "functions" not in two_layers().objective.describe()
