"""Both answers of the separability test come with a certificate, checked here against the data alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import isthmus as im
from isthmus.premises import separability as module
from isthmus.premises.separability import TOLERANCE, separate

KINDS = ("each", "argmax")


def cloud(N, D, C, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g, dtype=torch.float64), torch.randint(0, C, (N,), generator=g)


def right(x, y, s):
    """How many examples the separators get right, in extended precision."""
    scores = x.numpy().astype(np.longdouble) @ s.weight.numpy().astype(np.longdouble).T + s.offset.numpy()
    own = np.eye(len(s.weight), dtype=bool)[y.numpy()]
    if s.kind == "each":
        return int(((scores > 0) == own).all(1).sum())
    return int((np.where(own, scores, -np.inf).max(1) > np.where(own, -np.inf, scores).max(1)).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("N", "D", "C"), [(20, 5, 2), (60, 65, 4), (40, 3, 3), (200, 20, 5)])
def test_the_certificate_proves_the_answer(kind, N, D, C):
    x, y = cloud(N, D, C)
    s = separate(x, y, C, kind=kind)
    assert s.separable is not None
    assert s.check(x, y) is s.separable
    if s.separable:
        assert s.margin > 0
        assert right(x, y, s) == N
    else:
        assert right(x, y, s) < N
        assert s.residual <= TOLERANCE


def test_more_dimensions_than_points_are_always_separable_and_random_labels_on_many_points_never():
    for seed in range(5):
        assert separate(*cloud(30, 30, 3, seed), 3).separable is True
        assert separate(*cloud(100, 5, 3, seed), 3).separable is False


def test_the_dual_vector_is_a_combination_that_vanishes():
    """Gordan: sum_j alpha_j s_j [f_j, 1] = 0 with alpha >= 0, sum 1, so no w has all s_j [f_j, 1] w > 0."""
    x, y = cloud(100, 5, 2)
    s = separate(x, y, 2, kind="each")
    assert s.examples is not None
    assert s.dual is not None
    sign = torch.where(y[s.examples] == s.refuted, 1.0, -1.0).double()
    total = (s.dual * sign) @ torch.cat([x[s.examples], torch.ones(len(s.examples), 1)], 1)
    assert bool((s.dual >= 0).all())
    assert abs(float(s.dual.sum()) - 1) < 1e-12
    assert float(total.abs().max()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_for_other_data_proves_nothing(kind):
    x, y = cloud(100, 5, 3)
    s = separate(x, y, 3, kind=kind)
    assert s.separable is False
    assert s.dual is not None
    wrong = [replace(s, dual=s.dual.roll(1)), replace(s, dual=-s.dual), replace(s, dual=2 * s.dual)]
    assert [w.check(x, y) for w in wrong] == [None] * 3
    assert s.check(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(9)), y) is None
    good = separate(*cloud(20, 30, 3), 3, kind=kind)
    x, y = cloud(20, 30, 3)
    assert replace(good, weight=-good.weight).check(x, y) is None


def test_largest_scores_are_weaker_than_a_hyperplane_around_each_class():
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 2])
    assert separate(x, y, kind="each").separable is False
    assert separate(x, y, kind="argmax").separable is True


def test_hyperplanes_through_the_origin():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    assert [separate(x, y, kind=k, bias=b).separable for k in KINDS for b in (True, False)] == [True, False] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_thin_margins_are_found_by_the_linear_programs(kind, monkeypatch):
    """With no steps for the margin solver, linear programs on growing subsets decide alone."""
    monkeypatch.setattr(module, "_FIRST", 1)
    monkeypatch.setattr(module, "_STEPS", 1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 6, generator=g, dtype=torch.float64)
    w = torch.randn(3, 6, generator=g, dtype=torch.float64)
    y = (x @ w.T).argmax(1)
    s = separate(x, y, 3, kind="argmax")
    assert s.separable is True
    assert right(x, y, s) == 2000
    x, y = cloud(300, 6, 3)
    assert separate(x, y, 3, kind=kind).separable is False


def test_equal_points_with_different_labels_refute():
    x = torch.cat([torch.eye(6), torch.eye(6)[:1]])
    y = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    for kind in KINDS:
        s = separate(x, y, kind=kind)
        assert s.separable is False
        assert s.examples is not None
        assert {0, 6} <= set(s.examples.tolist())


def test_the_data_are_not_written_to_and_nothing_random_is_drawn():
    x, y = cloud(50, 5, 3)
    before, state = x.clone(), torch.random.get_rng_state()
    one, two = separate(x, y, 3), separate(x, y, 3)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.weight, two.weight)


def test_misuse_is_refused():
    x, y = cloud(10, 3, 2)
    with pytest.raises(im.InputError, match="'each' or 'argmax'"):
        separate(x, y, kind="pairs")
    with pytest.raises(im.InputError, match="classes: expected two or more"):
        separate(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), 1, kind="argmax")
    with pytest.raises(im.InputError, match="10 class numbers"):
        separate(x, y.double())
    with pytest.raises(im.InputError, match="at least one example with at least one feature"):
        separate(x[:, :0], y)


def test_what_is_too_large_for_the_programs_is_left_open(monkeypatch):
    x, y = cloud(300, 6, 3)
    for name, value in (("_FIRST", 1), ("_STEPS", 1), ("_VARIABLES", 3)):
        monkeypatch.setattr(module, name, value)
    found = separate(x, y, 3)
    assert found.separable is None
    assert found.margin < 0
    assert found.check(x, y) is None
