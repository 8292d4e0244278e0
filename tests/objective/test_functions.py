"""What a function computes, told apart; folders of work that hold another one's state."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isthmus as im
from isthmus.objective.described import bound
from isthmus.objective.functions import digest_of
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


def test_it_is_the_same_in_another_process():
    code = "from tests.objective.test_functions import *; print(digest_of(scaled), digest_of(Weighted(2.0)), end='')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.split() == [digest_of(scaled), digest_of(Weighted(2.0))]


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


def test_a_graph_is_of_one_loss(tmp_path):
    p = two_layers()
    tops = [im.minima_graph(objective(times(k)), [p.a, p.b], folder=tmp_path).bottleneck for k in (2.0, 3.0)]
    assert tops[1] == pytest.approx(1.5 * tops[0])


def test_what_cannot_be_told_is_gone_on_with_by_nobody_else(monkeypatch):
    lock = threading.Lock()
    one = objective(lambda out, y: F.cross_entropy(out, y, reduction="none") * (lock is not None))
    assert digest_of(one._loss) is None
    assert one.describe()["functions"] is None
    assert bound(one) == bound(one)
    here = bound(one)
    monkeypatch.setattr("isthmus.objective.described._PROCESS", "another")
    assert bound(one) != here
    assert "functions" not in two_layers().objective.describe()
