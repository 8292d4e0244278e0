"""Upper bands for every t: what is certified of every example, and how often what is statistical holds."""

import json

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.certify.everywhere import _of_examples
from isthmus.certify.kernel import Kernel
from isthmus.evaluate.everywhere import upper_band
from tests.problems import perceptron, random_params

F64 = torch.float64
GRID = 33
"""Points of a segment: the intervals between them."""


@pytest.fixture(scope="module")
def population():
    """All examples there are, a network and a path."""
    module = perceptron([3, 6, 6, 3]).double()
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1500, 3, generator=g, dtype=F64), torch.randint(0, 3, (1500,), generator=g)
    return im.Objective(module, data=(x, y)), im.Path.through([random_params(module, s) for s in (0, 1)])


@pytest.fixture(scope="module")
def columns(population):
    """Of every example, what is certified over every interval: [examples, intervals, 2], [examples, intervals]."""
    objective, path = population
    bounds = Kernel(objective, path).forms(0)
    found = [_of_examples(objective, bounds, k / (GRID - 1), (k + 1) / (GRID - 1)) for k in range(GRID - 1)]
    return torch.stack([u for u, _ in found], 1), torch.stack([m for _, m in found], 1)


def part(objective, index):
    x, y = objective.data
    return objective.on((x[index], y[index]))


def test_no_example_is_above_its_line_nor_wrong_without_a_mark(population, columns):
    """The certified part, example by example, at many t."""
    objective, path = population
    above, marks = columns
    for k in range(0, GRID - 1, 5):
        for share in (0.0, 0.3, 0.5, 0.9, 1.0):
            point = path.at((k + share) / (GRID - 1))
            line = (1 - share) * above[:, k, 0] + share * above[:, k, 1]
            assert bool((objective.losses(point) <= line).all())
            wrong = objective.outputs(point).argmax(1) != objective.data[1]
            assert bool((marks[wrong, k] == 1).all())


def test_the_lines_of_an_example_do_not_depend_on_the_others(population, columns):
    objective, path = population
    few = part(objective, slice(7, 12))
    found, marks = _of_examples(few, Kernel(few, path).forms(0), 0.25, 0.25 + 1 / 32)
    torch.testing.assert_close(found, columns[0][7:12, 8], rtol=1e-12, atol=1e-12)
    assert torch.equal(marks, columns[1][7:12, 8])


@pytest.mark.parametrize("n", [200, 500])
def test_the_band_holds_as_often_as_it_says(columns, n):
    """A known population: its means are at most the upper ends, all at once, in 200 samples of n."""
    above, marks = columns
    true, wrong = above.mean(0), marks.mean(0)
    nothing, ends = torch.zeros(GRID - 1, 2, dtype=F64), torch.zeros(GRID - 1, 2, dtype=F64)
    g = torch.Generator().manual_seed(1)
    held = held_error = 0
    for seed in range(200):
        index = torch.randint(0, len(above), (n,), generator=g)
        band = upper_band(above[index], marks[index], nothing, ends, 0.9, seed)
        held += bool((torch.stack([band.left, band.right], 1) >= true).all())
        held_error += bool((band.error >= wrong).all())
    assert held >= 200 * (0.9 - 0.06)  # asymptotic: .9 but for chance, and for few examples
    assert held_error >= 200 * 0.9 - 10  # .9 or more, but for chance
    assert held < 200 * 0.99  # nor is it wider than it must be


def test_the_true_loss_is_below_the_band_at_every_t(population):
    objective, path = population
    test = part(objective, torch.randperm(1500, generator=torch.Generator().manual_seed(3))[:400])
    band = im.population(test, path, grid=GRID, certified=True)
    plain = im.population(test, path, grid=GRID)
    assert plain.everywhere is None
    assert torch.equal(plain.hi, band.hi)
    up = band.everywhere
    assert up is not None
    assert up.error is not None
    truth = im.profile(objective, path, 501)
    for t, loss, error in zip(truth.t.tolist(), truth.loss.tolist(), truth.error.tolist(), strict=True):
        assert loss <= up.at(t)
        assert error <= float(up.error[(up.start <= t) & (t <= up.end)].min())
    assert up.highest >= up.sample >= float(im.certify(test, path, budget=0.0).witness[1])
    assert up.highest <= 1.5 * truth.max  # and it says something
    finer = im.population(test, path, grid=4 * GRID, certified=True).everywhere
    assert finer is not None
    assert finer.highest < up.highest
    held = json.loads(json.dumps(band.to_dict()))
    assert held["everywhere"]["highest"] == up.highest
    for words in (band.words, held["text"]):
        assert "every t: largest loss at most" in words
        assert "certified between the points" in words
        assert "(asymptotic)" in words
    assert "every t" in band._repr_html_()
    assert "asymptotic" in repr(up)


def test_penalties_are_added_and_what_cannot_be_proved_is_refused(population):
    objective, path = population
    ridge = im.Objective(objective.skeleton, data=objective.data, penalty=im.Ridge(0.1))
    test = im.population(ridge.subset(50), path, grid=9, certified=True).everywhere
    plain = im.population(objective.subset(50), path, grid=9, certified=True).everywhere
    assert test is not None
    assert plain is not None
    assert test.highest > plain.highest
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    other = im.Objective(normed, data=objective.data)
    line = im.Path.through([random_params(normed, 0), random_params(normed, 1)])
    with pytest.raises(im.UnsupportedError, match="interpolate"):
        im.population(other.subset(40), line, grid=3, certified=True, train=other, bn="recompute")
    assert im.population(other.subset(40), line, grid=65, certified=True, bn="interpolate").everywhere is not None
    x, y = objective.data
    ignored = im.Objective(objective.skeleton, data=(x[:30], y[:30].masked_fill(torch.arange(30) == 3, -100)))
    with pytest.raises(im.UnsupportedError, match="do not weigh the same"):
        im.population(ignored, path, grid=3, certified=True)


def test_losses_that_are_all_the_same_leave_nothing_to_chance(population):
    """One example again and again: the upper end is the certified number itself, whatever its size."""
    objective, path = population
    x, y = objective.data
    same = objective.on((x[:1].expand(20, -1), y[:1].expand(20)))
    up = im.population(same, path, grid=5, certified=True).everywhere
    assert up is not None
    assert up.highest == pytest.approx(up.sample, rel=1e-12)


def test_smoothed_labels_weigh_the_same(population):
    objective, path = population
    x, y = objective.data
    smooth = im.Objective(objective.skeleton, im.CrossEntropy(label_smoothing=0.2), (x[:40], y[:40]))
    up = im.population(smooth, path, grid=9, certified=True).everywhere
    assert up is not None
    assert all(smooth.loss(path.at(k / 64)) <= up.at(k / 64) for k in range(65))
