"""Ensembles along a path: the averages against numpy, members by length, statistics, and cycles of training."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.analysis import fge
from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.params import distance, equal, lerp
from isthmus.paths import Curve, Path, by_length
from tests.evaluate.networks import Residual
from tests.mortal import Mortal, to_the_end
from tests.problems import (
    blobs,
    classify,
    made_once,
    odd_widths,
    perceptron,
    random_params,
    tanh_regression,
    tied_and_normed,
    two_layers,
)


def line(p):
    return Path.through([p.a, p.b])


# -- places


def test_places_are_equally_far_apart_along_a_curve():
    p = two_layers()
    bent = Curve((p.a, random_params(p.objective.skeleton, 7), p.b))
    path = Path((Curve((p.a, p.a)), bent, Curve((p.b, p.a))))
    ts = by_length(path, [i / 8 for i in range(9)])
    fine = np.linspace(0, 1, 601)
    points = [path.at(float(t)) for t in fine]
    along = np.concatenate([[0], np.cumsum([distance(u, v) for u, v in zip(points, points[1:], strict=False)])])
    assert np.interp(ts, fine, along) / along[-1] == pytest.approx(np.arange(9) / 8, abs=1e-3)
    assert (ts[0], ts[-1]) == (0.0, 1.0)
    assert by_length(Path((Curve((p.a, p.a)),)), [0, 0.5, 1]) == [0, 0.5, 1]
    bias = {k for k in p.a if "bias" in k}
    assert by_length(line(p), [0.25], but=bias) == pytest.approx([0.25])


def test_tied_weights_have_one_share_in_the_way():
    objective, (a, middle, b), _ = tied_and_normed()
    path = Path((Curve((a, middle, b)),))
    found = im.ensemble(objective, path, points=4)
    weights = ["table.weight", "norm.weight", "norm.bias"]
    once = Path((Curve(tuple({k: p[k] for k in weights} for p in (a, middle, b))),))
    assert found.t == pytest.approx(by_length(once, [0, 1 / 3, 2 / 3, 1]), abs=1e-12)


# -- scores, against numpy


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def by_numpy(p, y, w):
    """Scores of probabilities p [k, classes] of labels y [k] with weights w [k]."""
    k, w = np.arange(len(y)), w / w.sum()
    sure, right = p.max(1), p.argmax(1) == y
    bins = [(sure > i / 15) & (sure <= (i + 1) / 15) for i in range(15)]
    return {
        "error": (w * ~right).sum(),
        "nll": -(w * np.log(p[k, y])).sum(),
        "ece": sum(abs((w * (right - sure))[b].sum()) for b in bins),
        "brier": (w * (((p - np.eye(p.shape[1])[y]) ** 2).sum(1))).sum(),
    }


def tokens(options):
    """A network of words, whose outputs [n, positions, classes] are judged where labels are not -100."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, x):
            return self.last(self.table(x).cumsum(1).tanh())

    module = Words().double()
    g = torch.Generator().manual_seed(3)
    x, y = torch.randint(0, 9, (11, 5), generator=g), torch.randint(0, 9, (11, 5), generator=g)
    y[:6, 3:], y[0] = -100, -100
    objective = im.Objective(module, im.CrossEntropy(**options), (x, y), class_axis=-1)
    return objective, random_params(module, 1), random_params(module, 2)


def test_members_at_close_t_have_names_of_their_own_and_equal_t_are_refused():
    objective, a, b = tokens({})
    close = im.ensemble(objective, Path.through([a, b]), ts=[0.50001, 0.50002])
    assert {"t = 0.50001", "t = 0.50002"} <= {row.name for row in close.rows}
    with pytest.raises(im.InputError, match="ts: expected each t once"):
        im.ensemble(objective, Path.through([a, b]), ts=[0.5, 0.5])


@pytest.mark.parametrize("mean", ["examples", "tokens"])
def test_the_averages_of_tokens_are_those_of_numpy(mean):
    objective, a, b = tokens({"mean": mean})
    found = im.ensemble(objective, Path.through([a, b]), ts=[0.0, 0.3, 1.0])
    y = objective.data[1].numpy()
    z = [objective.outputs(lerp(a, b, t)).numpy() for t in (0.0, 0.3, 1.0)]
    counts = y != -100
    weights = counts if mean == "tokens" else counts / np.maximum(counts.sum(1, keepdims=True), 1)
    keep = counts.ravel()
    flat = [softmax(v, -1).reshape(-1, 9)[keep] for v in z]
    want = by_numpy(np.mean(flat, 0), y.ravel()[keep], weights.ravel()[keep].astype(float))
    row = found["probability average"]
    assert {k: asdict(row.train)[k] for k in want} == pytest.approx(want, rel=1e-12)
    assert row.train.loss == pytest.approx(want["nll"], rel=1e-12)
    w = weights.ravel()[keep] / weights.sum()
    classes = [v.argmax(1) for v in flat]
    apart = np.mean([(w * (classes[i] != classes[j])).sum() for i, j in ((0, 1), (0, 2), (1, 2))])
    assert row.train.disagreement == pytest.approx(apart)
    assert found["t = 0.3"].train.loss == pytest.approx(objective.loss(lerp(a, b, 0.3)), rel=1e-12)
    assert found["t = 0.3"].train.error == pytest.approx(objective.error(lerp(a, b, 0.3)))


def test_a_confidence_at_the_upper_end_of_a_bin_is_in_it():
    """Of two examples in one bin, .2 that is right and .15 that is wrong, what is off is |.8 - .15| / 2."""
    shares = torch.tensor([[0.2, *[0.8 / 9] * 9], [0.15, *[0.85 / 9] * 9]], dtype=torch.float64)
    objective = im.Objective(nn.Embedding(2, 10), nn.NLLLoss(), (torch.arange(2), torch.tensor([0, 1])))
    found = im.ensemble(objective.cast(torch.float64), [{"weight": shares.log()}])
    assert found["member"].train.ece == pytest.approx(0.325, rel=1e-6)


def test_a_yes_or_no_is_a_probability_too():
    module = perceptron([3, 6, 2]).double()
    x, _ = blobs(20, (3,), 4)
    objective = im.Objective(module, "bce_with_logits", (x, (x[:, :2] > 0).double()))
    ps = [random_params(module, k) for k in (1, 2)]
    found = im.ensemble(objective, ps)["probability average"].train
    y, p = objective.data[1].numpy(), np.mean([1 / (1 + np.exp(-objective.outputs(v).numpy())) for v in ps], 0)
    two = by_numpy(np.stack([1 - p.ravel(), p.ravel()], 1), y.ravel().astype(int), np.ones(y.size))
    want = two | {"brier": ((p - y) ** 2).mean(), "loss": two["nll"]}
    assert {k: asdict(found)[k] for k in want} == pytest.approx(want, rel=1e-10)


def test_an_output_of_zero_is_a_no():
    """As the error has it: a network that is dead gives the class of one that says no everywhere."""
    module = nn.Linear(2, 1).double()
    objective = im.Objective(module, "bce_with_logits", (torch.eye(2).double(), torch.ones(2, 1).double()))
    dead, no = ({"weight": torch.zeros(1, 2).double(), "bias": torch.tensor([v]).double()} for v in (0.0, -1.0))
    found = im.ensemble(objective, [dead, no])
    assert [row.train.error for row in found.rows[:2]] == [1.0, 1.0]
    assert found["network 2"].train.disagreement == 0


def squares(outputs, y):
    return (outputs - nn.functional.one_hot(y, outputs.shape[1])).square().sum(1)


def is_low(outputs, y):
    return (outputs.amax(1) < 0.5).double()


@pytest.mark.parametrize(("loss", "error"), [(squares, None), ("cross_entropy", is_low), (squares, is_low)])
def test_the_row_of_one_network_is_what_the_objective_says_of_it(loss, error):
    """Functions that tell outputs from logarithms of probabilities."""
    module = perceptron([5, 7, 4]).double()
    objective = im.Objective(module, loss, blobs(24, (5,), 4), error=error)
    a, b = (random_params(module, k) for k in (1, 2))
    found = im.ensemble(objective, Path.through([a, b]), points=3, independent=[b])
    for name, point in (("a", a), ("t = 0.5", lerp(a, b, 0.5)), ("independent 1", b)):
        assert found[name].train.loss == pytest.approx(objective.loss(point), rel=1e-12)
        assert found[name].train.error == objective.error(point)
    assert found["weight average"].train.loss == pytest.approx(objective.loss(found.average), rel=1e-12)


def test_outputs_are_averaged_where_there_are_no_probabilities():
    p = tanh_regression()
    found = im.ensemble(p.objective, line(p), points=4, test=p.objective.part(slice(0, 7)))
    z = torch.stack([p.objective.outputs(line(p).at(t)) for t in found.t]).mean(0)
    row = found["probability average"]
    assert row.name == "output average, 4 networks"
    assert row.train.loss == pytest.approx(float((z - p.objective.data[1]).square().mean()), rel=1e-12)
    assert asdict(row.train) == {"loss": row.train.loss} | dict.fromkeys(
        ("error", "nll", "ece", "brier", "disagreement")
    )
    assert found.table()[0] == ["prediction", "test loss", "train loss", "passes", "training s"]


# -- laws


@pytest.mark.parametrize("options", [{}, {"penalty": im.Ridge(1e-2)}, {"memory": 1}])
def test_one_point_is_that_network_and_two_equal_ones_are_one(options):
    p = classify("", perceptron([5, 7, 4]), (5,), **options)
    for t in (0.0, 0.4):
        row = im.ensemble(p.objective, line(p), ts=[t])["probability average"]
        point = line(p).at(t)
        assert row.train.loss == pytest.approx(float(p.objective.losses(point).mean()), rel=1e-12)
        assert row.train.error == p.objective.error(point)
        twice = im.ensemble(p.objective, [point, dict(point)])
        assert twice["probability average"].train.disagreement == 0
        for name in ("loss", "nll", "ece", "brier", "error"):
            assert getattr(twice["probability average"].train, name) == pytest.approx(getattr(row.train, name))


def test_the_weight_average_of_points_around_the_middle_of_a_line_is_the_middle():
    p = odd_widths()
    found = im.ensemble(p.objective, line(p), points=6)
    assert distance(found.average, lerp(p.a, p.b, 0.5)) < 1e-12 * distance(p.a, p.b)
    assert found["weight average"].train.loss == pytest.approx(p.objective.loss(found.average))
    assert equal(found.member(0), p.a)
    assert found.t == pytest.approx([i / 5 for i in range(6)])
    assert found["member"].seconds is None


def test_the_rows_are_the_ends_the_members_the_averages_and_the_others(tmp_path):
    p = two_layers()
    others = [random_params(p.objective.skeleton, k) for k in range(3, 8)]
    connection = im.connect(p.objective, p.a, p.b)
    found = im.ensemble(p.objective, connection, points=3, independent=others)
    names = [row.name for row in found.rows]
    assert names == [
        *("a", "b", "a and b", "t = 0", "t = 0.5", "t = 1", "probability average, 3 networks"),
        *("weight average, 3 networks", *(f"independent {k}" for k in range(1, 6))),
        *("2 independent networks", "3 independent networks", "5 independent networks"),
    ]
    passes = {row.name: row.passes for row in found.rows}
    assert (passes["a"], passes["a and b"], passes["probability average, 3 networks"]) == (1, 2, 3)
    assert passes["5 independent networks"] == 5
    classes = [p.objective.outputs(v).argmax(1) for v in (p.a, p.b)]
    assert found["b"].train.disagreement == pytest.approx(float((classes[0] != classes[1]).double().mean())) != 0
    assert found["t = 0.5"].seconds == found["weight average"].seconds == connection.seconds
    three = im.ensemble(p.objective, others[:3])["probability average"].train
    assert found["3 independent networks"].train == pytest.approx(three)
    im.save(connection, tmp_path / "path.safetensors")
    again = im.ensemble(p.objective, tmp_path / "path.safetensors", points=3, independent=others)
    for one, other in zip(found.rows, again.rows, strict=True):
        assert asdict(one.train) == pytest.approx(asdict(other.train), abs=1e-12)
    fewer = im.ensemble(p.objective, connection, points=9, independent=others)
    assert fewer.rows[-1].name == "5 independent networks"


def test_a_network_of_nan_is_named():
    p = two_layers()
    bad = {k: v.clone() for k, v in p.b.items()}
    bad["2.bias"][1] = float("nan")
    with pytest.raises(im.InputError, match=r"independent 2: expected outputs that are numbers, got NaN"):
        im.ensemble(p.objective, line(p), independent=[p.a, bad])
    with pytest.raises(im.InputError, match=r"network 2"):
        im.ensemble(p.objective, [p.a, bad])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"points": 0}, "points: expected a whole number >= 1"),
        ({"points": 3, "ts": [0.5]}, "in place of points"),
        ({"ts": [1.5]}, r"t: expected a number in \[0, 1\]"),
        ({"bn": "forget"}, "bn"),
    ],
)
def test_wrong_options_are_refused(given, says):
    p = two_layers()
    with pytest.raises(im.InputError, match=says):
        im.ensemble(p.objective, line(p), **given)
    if "bn" not in given:
        with pytest.raises(im.InputError, match=r"None for networks without a path|points"):
            im.ensemble(p.objective, [p.a, p.b], **given)


# -- statistics


@made_once
def normalised():
    return classify("normalised", Residual(), (1, 8, 8))


def test_statistics_follow_the_policy():
    p = normalised()
    names = statistics(p.objective)
    for bn in ("recompute", "interpolate", "keep"):
        found = im.ensemble(p.objective, line(p), points=3, bn=bn)
        middle = lerp(p.a, p.b, 0.5)
        want = {"recompute": refresh(p.objective, middle), "keep": {**middle, **{k: p.a[k] for k in names}}}
        assert found.bn == bn
        assert distance(found.member(1), want.get(bn, middle)) < 1e-10
        assert distance(found.average, want.get(bn, middle)) < 1e-10
        assert found["a"].train.loss == pytest.approx(p.objective.loss(p.a))
    for networks in (line(p), [p.a, p.b]):
        with pytest.raises(im.UnsupportedError, match="running statistics"):
            im.ensemble(p.objective, networks, bn="error")


# -- fast geometric ensembling


def test_networks_are_kept_at_the_minima_of_the_rate(monkeypatch):
    p, seen = odd_widths(), []
    real = fge._Cycles.rate
    monkeypatch.setattr(fge._Cycles, "rate", lambda self, step: seen.append(real(self, step)) or seen[-1])
    monkeypatch.setattr(fge, "_BATCH", 4)
    told, fit, recipes = [], fge.fit, []
    monkeypatch.setattr(fge, "fit", lambda *args, **kw: recipes.append(args[4]) or fit(*args, **kw))
    found = im.fast_geometric_ensemble(
        p.objective, p.a, cycles=3, epochs=2, lr_max=0.05, lr_min=0.001, seed=1,
        progress=lambda what, done, total: told.append(done),
    )  # fmt: skip
    assert told[:3] == [6, 18, 30]
    assert (recipes[0].optimizer, recipes[0].momentum, recipes[0].batch) == ("sgd", 0.9, 4)
    rates = seen[: len(seen) // 2]  # once for the record, once for the steps
    assert len(rates) == 5 * 6
    assert rates[0] == 0.05
    falling = [0.05 + (0.001 - 0.05) * k / 6 for k in range(6)]
    rising = [0.001 + (0.05 - 0.001) * k / 6 for k in range(6)]
    assert rates == pytest.approx([*falling, *rising, *falling, *rising, *falling])
    assert len(found) == 3
    losses = [p.objective.loss(v) for v in (p.a, *found)]
    assert max(losses[1:]) < losses[0]
    assert min(distance(u, v) for u, v in zip(found, found[1:], strict=False)) > 0
    table = im.ensemble(p.objective, found)
    assert len(table.members) == 3
    assert equal(table.member(2), found[2])


def test_cycles_go_on_after_a_kill_to_the_same_networks(tmp_path):
    p = normalised()
    told: list[int] = []
    once = im.fast_geometric_ensemble(
        p.objective, p.a, cycles=4, epochs=6, progress=lambda what, done, total: told.append(done)
    )
    assert len(set(told)) == 4
    memory = Mortal(seed=2, lives=(3, 12), after_saves=(1, 2))
    again = to_the_end(lambda: im.fast_geometric_ensemble(p.objective, p.a, cycles=4, epochs=6, memory=memory))
    assert memory.deaths >= 2
    in_folder = [
        im.fast_geometric_ensemble(p.objective, p.a, cycles=4, epochs=6, memory=tmp_path / "state") for _ in range(2)
    ]
    for found in (again, *in_folder):
        assert len(found) == 4
        assert all(map(equal, once, found))
    assert all(equal(v, refresh(p.objective, v)) for v in once)
    with pytest.raises(im.FileError, match="another"):
        im.fast_geometric_ensemble(p.objective, p.a, cycles=5, epochs=6, memory=tmp_path / "state")
    other = copy.deepcopy(p.objective)
    other.skeleton.register_module("another", nn.Tanh())
    with pytest.raises(im.FileError, match="another"):
        im.fast_geometric_ensemble(other, p.a, cycles=4, epochs=6, memory=tmp_path / "state")


def test_cycles_that_cannot_be_are_refused():
    p = two_layers()
    wrong: list[dict[str, Any]] = [{"cycles": 0}, {"epochs": 0}, {"lr_min": 1.0}]
    wrong += [{"cycles": float("inf")}, {"lr_max": float("nan")}]
    for given in wrong:
        with pytest.raises(im.InputError):
            im.fast_geometric_ensemble(p.objective, p.a, **given)
    numbers = im.Objective(p.objective.skeleton, evaluate=lambda params: {"loss": 1.0})
    with pytest.raises(im.UnsupportedError, match="evaluate= gives only the loss"):
        im.fast_geometric_ensemble(numbers, p.a)
    with pytest.raises(im.InputError, match="lr_max: expected a rate at which training goes on"):
        im.fast_geometric_ensemble(tanh_regression().objective, tanh_regression().a, epochs=40, lr_max=1e30)
