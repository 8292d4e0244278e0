import pytest
import torch

import isthmus as im
from isthmus.evaluate.profile import Barriers
from tests.problems import two_layers


@pytest.fixture
def problem():
    return two_layers()


def three_knots(problem):
    middle = {k: v * 0.5 for k, v in problem.a.items()}
    return im.Path.through([problem.a, middle, problem.b])


def test_samples_are_the_losses_at_their_t(problem):
    path = three_knots(problem)
    p = im.profile(problem.objective, path, 5)
    assert len(p.t) == 2 * 4 + 1
    assert p.t.tolist() == pytest.approx([i / 8 for i in range(9)])
    assert p.segment.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    for t, loss, error in zip(p.t, p.loss, p.error, strict=True):
        assert float(loss) == pytest.approx(problem.objective.loss(path.at(float(t))), rel=1e-13)
        assert float(error) == problem.objective.error(path.at(float(t)))


def test_the_three_definitions(problem):
    p = im.profile(problem.objective, three_knots(problem), 7)
    a, b = float(p.loss[0]), float(p.loss[-1])
    assert p.max == float(p.loss.max())
    assert p.excess == p.barrier == p.max - max(a, b)
    loss = p.barriers["loss"]
    assert loss.mean == pytest.approx(p.max - (a + b) / 2)
    assert loss.linear == pytest.approx(float((p.loss - ((1 - p.t) * a + p.t * b)).max()))
    assert loss.linear >= loss.excess
    assert p.barriers["error"].max == float(p.error.max())


def test_a_second_data_set_is_measured_on_the_same_points(problem):
    x, y = problem.objective.data
    test = problem.objective.on((x[:5], y[:5]))
    p = im.profile(problem.objective, three_knots(problem), 4, test=test)
    assert p.test is not None
    assert torch.equal(p.test.t, p.t)
    assert float(p.test.loss[2]) == pytest.approx(test.loss(three_knots(problem).at(float(p.t[2]))))
    assert p.to_dict()["test"]["barriers"]["loss"]["max"] == p.test.max


def test_a_nan_is_never_a_number():
    t = torch.linspace(0, 1, 3)
    bars = Barriers.of(t, torch.tensor([0.0, float("nan"), 1.0]))
    assert all(v != v for v in (bars.max, bars.excess, bars.linear, bars.mean))
    assert Barriers.of(t, torch.tensor([0.0, float("inf"), 1.0])).max == float("inf")


def test_progress_and_misuse(problem):
    calls = []
    im.profile(problem.objective, three_knots(problem), 3, progress=lambda *c: calls.append(c))
    assert calls[-1] == ("measuring", 5, 5)
    with pytest.raises(im.InputError, match="at least 2 points"):
        im.profile(problem.objective, three_knots(problem), 1)
