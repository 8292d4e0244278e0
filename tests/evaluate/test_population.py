"""Bands for the population: against the plain formulas, on streams, and how often they hold."""

import json

import pytest
import torch
from torch import nn

import isthmus as im
from benchmarks.population import covered
from isthmus.evaluate import columns
from isthmus.evaluate.band import band_of, chernoff, clopper_pearson
from isthmus.evaluate.columns import Columns
from tests.problems import perceptron, random_params


class Regular(nn.Module):
    """Three layers in which only the middle one moves, behind batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x)


def drawn(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=g)


@pytest.fixture(scope="module")
def pair():
    module = perceptron([3, 6, 3]).double()
    return module, im.Path.through([random_params(module, s) for s in (0, 1, 2)])


def test_every_route_of_the_engine_gives_the_losses_of_single_examples(pair):
    """Nothing moves, the last layer moves, all moves, in blocks, and through a stream: the columns are ``losses``."""
    module, path = pair
    x, y = drawn(40, 0)
    start, end = path.start, path.end
    last = {k: end[k] if k.startswith("2") else v for k, v in start.items()}
    whole = im.Path.through([start, start, last, end])
    objective = im.Objective(module, data=(x, y), penalty=im.Ridge(0.01))
    grid = [whole.at(float(t)) for t in torch.linspace(0, 1, 13, dtype=torch.float64)]
    expected = torch.stack([objective.losses(p) for p in grid], 1)
    mean = torch.tensor([objective.loss(p) for p in grid], dtype=torch.float64)
    held = Columns(losses=list(expected.T), errors=[40 * objective.error(p) for p in grid])
    twin = band_of(held, torch.linspace(0, 1, 13, dtype=torch.float64), mean)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    for other in (objective, im.Objective(module, data=(x, y), penalty=im.Ridge(0.01), memory=2000 * 8)):
        other.memory = max(other.memory, 40 * 13 * 8)
        assert_close(im.population(other, whole, grid=5), twin)
    assert_close(
        im.population(im.Objective(module, data=loader, stream=True, penalty=im.Ridge(0.01)), whole, 0.95, 5), twin
    )


def assert_close(found, twin):
    for name in ("loss", "lo", "hi"):
        torch.testing.assert_close(getattr(found, name), getattr(twin, name))
    assert found.barrier == pytest.approx(twin.barrier)
    torch.testing.assert_close(found.error.hi, twin.error.hi)


def test_profile_of_a_test_set_shows_the_same(pair):
    module, path = pair
    train, test = (im.Objective(module, data=drawn(30, s)) for s in (1, 2))
    profile = im.profile(train, path, 5, test=test)
    band = im.population(test, path, grid=5)
    assert profile.population is None
    assert profile.test is not None
    assert profile.test.population is not None
    assert json.dumps(profile.test.population.to_dict()) == json.dumps(band.to_dict())
    assert profile.to_dict()["test"]["population"]["asymptotic"]
    assert "asymptotic" in repr(band)
    assert "(asymptotic)" in band.words
    assert band.asymptotic
    assert band.error is not None
    assert not band.error.asymptotic
    assert (band.lo <= band.loss).all()
    assert (band.loss <= band.hi).all()
    other = im.population(test, path, grid=5, seed=1)
    assert not torch.equal(other.lo, band.lo)
    assert other.error is not None
    assert torch.equal(other.error.lo, band.error.lo)
    wider = im.population(test, path, 0.99, 5)
    assert (wider.hi > band.hi).all()
    assert wider.error is not None
    assert (wider.error.hi >= band.error.hi).all()


def test_statistics_are_recomputed_from_the_training_data_or_not_at_all():
    module = Regular().double().eval()
    path = im.Path.through([random_params(module, s) for s in (0, 1)])
    train, test = (im.Objective(module, data=drawn(30, s)) for s in (1, 2))
    with pytest.raises(im.UnsupportedError, match="tie its examples together; give train="):
        im.population(test, path)
    band, shown = im.population(test, path, grid=5, train=train), im.profile(train, path, 5, test=test).test
    assert shown is not None
    assert shown.population is not None
    assert torch.equal(band.hi, shown.population.hi)
    assert not torch.allclose(band.loss, im.population(test, path, grid=5, bn="interpolate").loss)


def test_few_examples_at_a_time_are_no_reason_to_have_no_band(pair):
    module, path = pair
    many, few = im.Objective(module, data=drawn(30, 2)), im.Objective(module, data=drawn(30, 2), memory=1)
    assert few.chunk == 1
    assert torch.allclose(im.population(few, path, grid=5).hi, im.population(many, path, grid=5).hi, rtol=1e-12)


def test_what_has_no_band_is_refused_and_profile_goes_without(pair, monkeypatch):
    monkeypatch.setattr(columns, "LEAST", 0)
    module, path = pair
    data, train = drawn(30, 2), im.Objective(module, data=drawn(30, 1))
    numbers = im.Objective(module, evaluate=lambda p: {"loss": 1.0, "error": 0.5})
    classes = im.Objective(module, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), data)
    balanced = 30 / (3 * torch.bincount(data[1]).double())  # their mean over the examples is 1
    sums = im.Objective(module, nn.MSELoss(reduction="sum"), (data[0], data[0]))
    few = im.Objective(module, data=data, memory=1000)
    one = train.subset(1)
    kinds = (
        (numbers, "evaluate="),
        (classes, "weights of classes"),
        (im.Objective(module, nn.CrossEntropyLoss(weight=balanced), data), "weights of classes"),
        (sums, "and sums"),
        (im.Objective(module, nn.MultiMarginLoss(reduction="sum"), data), "and sums"),
        (few, "bytes for the losses"),
        (one, "two examples"),
    )
    for test, why in kinds:
        with pytest.raises(im.IsthmusError, match=why):
            im.population(test, path, grid=5)
    measured = im.profile(train, path, 5, test=few).test
    assert measured is not None
    assert measured.population is None
    with pytest.raises(im.InputError, match="level"):
        im.population(train, path, 1.0)


def test_ignored_labels_make_a_ratio_of_two_means():
    """Half of the positions count nowhere: the spread is that of the ratio, by the delta method."""
    module = nn.Conv1d(3, 3, 1).double()
    path = im.Path.through([random_params(module, s) for s in (0, 1)])
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 3, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (50, 4), generator=g)
    y[torch.rand(50, 4, generator=g) < 0.5] = -100
    objective = im.Objective(module, nn.CrossEntropyLoss(), (x, y))
    band = im.population(objective, path, grid=2)
    sums = torch.nn.functional.cross_entropy(objective.outputs(path.start), y, reduction="none").sum(1)
    counts = (y >= 0).double().sum(1)
    spread = (sums - sums.sum() / counts.sum() * counts).std() / counts.mean() / 50**0.5
    assert float(band.hi[0] - band.loss[0]) / float(spread) == pytest.approx(2.2, abs=0.15)  # between 1.96 and 2.24
    assert band.error is None


def test_examples_that_count_nowhere_count_no_error(pair):
    """No example is wrong, so that every error is 0 or 1; but most of them have no label."""
    module, path = pair
    x, _ = drawn(40, 0)
    y = im.Objective(module, data=(x, torch.zeros(40, dtype=torch.int64))).outputs(path.start).argmax(1)
    still = im.Path.through([path.start, path.start])
    few = torch.where(torch.arange(40) < 10, y, -100)
    for loss in ("cross_entropy", nn.CrossEntropyLoss(), lambda z, y: z.square().sum(1)):
        objective = im.Objective(module, loss, (x, few))
        assert objective.error(path.start) == 0
        assert im.population(objective, still, grid=2).error is None
    whole = im.population(im.Objective(module, data=(x, y)), still, grid=2).error
    assert whole is not None
    assert whole.highest == pytest.approx((0, clopper_pearson(0, 40, 0.05 / 2).hi))


def test_rounding_between_equal_networks_does_not_widen_the_barrier(pair):
    """From a network to itself with its units in another order: the interval is that of the differences' spread."""
    module, path = pair
    a, order = path.start, torch.tensor([2, 0, 1, 5, 3, 4])
    b = {"0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order], "2.weight": a["2.weight"][:, order]}
    line = im.Path.through([a, {**a, **b}])
    x, y = drawn(2000, 3)
    right = im.Objective(module, data=(x, y)).outputs(a).argmax(1)
    objective = im.Objective(module, data=(x, right))
    losses = torch.stack([objective.losses(line.at(t)) for t in (0.0, 0.5)])
    spread = float((losses[1] - losses[0]).std()) / 2000**0.5
    band = im.population(objective, line, grid=3)
    assert band.barrier.hi - float((losses[1] - losses[0]).mean()) == pytest.approx(1.96 * spread, rel=0.1)


def test_intervals_for_counts_and_for_shares():
    assert clopper_pearson(3, 10, 0.05) == pytest.approx((0.0667395, 0.6524529), abs=1e-6)  # scipy's binomtest
    for k, n in ((0, 7), (7, 7), (3, 7)):
        exact, wider = clopper_pearson(k, n, 0.05), chernoff(k, n, 0.05)
        assert wider.lo <= exact.lo <= k / n <= exact.hi <= wider.hi


def test_how_often_bands_hold():
    """A population with known means; ``benchmarks/population.py`` counts more sets, and small ones."""
    loss, barrier, error = covered(n=1000, sets=100)
    assert 0.92 <= loss < 1
    assert barrier >= 0.92
    assert error >= 0.95


def test_as_many_labels_as_examples_are_not_one_for_each():
    """Half of the examples have two labels, half have none: their mean number is 1."""
    module = nn.Conv1d(3, 3, 1, bias=False).double()
    path = im.Path.through([{"weight": k * torch.eye(3, dtype=torch.float64)[:, :, None]} for k in (4, 6)])
    y = (torch.arange(40) % 3)[:, None].repeat(1, 2)
    x = nn.functional.one_hot(y, 3).double().movedim(2, 1)
    half = torch.where(torch.arange(40)[:, None] < 20, y, -100)
    loss = im.CrossEntropy(mean="tokens")
    assert im.population(im.Objective(module, loss, (x, half)), path, grid=2).error is None
    whole, own = (im.population(im.Objective(module, loss, (x[:n], y[:n])), path, grid=2).error for n in (40, 20))
    assert whole is not None
    assert own is not None
    assert whole.highest.hi < own.highest.hi
