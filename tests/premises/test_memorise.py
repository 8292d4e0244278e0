"""The memorising networks: exact on their points, no larger than promised, and as large a set as promised."""

import pytest
import torch

from isthmus.premises.memorise import line, line_capacity, slab_capacity, slabs


def points(N, d, seed=0):
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(N, m, seed=1):
    return torch.randn(N, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("d", "units", "m"), [(1, 40, 1), (5, 24, 1), (30, 30, 1), (10, 33, 2), (12, 40, 3)])
def test_one_layer_memorises_as_many_points_in_general_position_as_promised(d, units, m):
    N = slab_capacity(d, units, m)
    x, y = points(N, d), values(N, m)
    found = slabs(x, y, units, points(10, d, 2))
    assert found is not None
    assert len(found.U) <= units
    assert float((found.values(x) - y).abs().max()) == found.error < 1e-7
    assert slabs(points(N + 1, d), values(N + 1, m), units, points(10, d, 2)) is None


@pytest.mark.parametrize(("first", "units", "m"), [(1, 20, 1), (2, 20, 1), (9, 12, 1), (30, 30, 1), (11, 30, 2)])
def test_two_layers_memorise_as_many_points_on_a_line_as_promised(first, units, m):
    N = line_capacity(first, units, m)
    z, y = torch.linspace(0, 1, N, dtype=torch.float64), values(N, m)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    found = line(z[shuffled], y[shuffled], first, units)
    assert found is not None
    assert len(found.knots) <= first
    assert len(found.gates.U) <= units
    at = found.gates.values((z[:, None] - found.knots).relu())
    assert float((at - y).abs().max()) < 1e-7
    more = torch.linspace(0, 1, N + 1, dtype=torch.float64)
    assert line(more, values(N + 1, m), first, units) is None


def test_runs_of_equal_values_count_once():
    """1000 points on a line, 5 runs: 10 units do, where 1000 different values would need 2000 of one layer."""
    z = torch.linspace(0, 1, 1000, dtype=torch.float64)[:, None]
    y = (z * 4.999).floor()
    found = slabs(z, y, 10, torch.ones(1, 1, dtype=torch.float64))
    assert found is not None
    assert len(found.U) == 10
    assert found.error < 1e-9
    assert slabs(z, y, 9, torch.ones(1, 1, dtype=torch.float64)) is None
    two = line(z[:, 0], y, 1, 10)
    assert two is not None
    assert two.error < 1e-6


def test_points_that_coincide_are_memorised_only_with_equal_values():
    x = points(20, 4)
    x[7] = x[3]
    y = values(20, 1)
    assert slabs(x, y, 40, points(10, 4, 2)) is None
    y[7] = y[3]
    found = slabs(x, y, 40, points(10, 4, 2))
    assert found is not None
    assert found.error < 1e-8


def test_points_that_nearly_coincide_are_not_memorised_with_other_values():
    """On a line: neither where a piece ends between them, nor where a gate opens there."""
    z, y = torch.arange(8, dtype=torch.float64), values(8, 1)
    for k in (2, 4):
        near = z.clone()
        near[k] = near[k - 1] + 1e-13
        assert line(z / 8, y, 3, 4) is not None
        assert line(near / 8, y, 3, 4) is None


def test_the_direction_with_the_smallest_error_is_taken():
    x, y = points(60, 3), 1e4 * values(60, 1)
    x[:, 0] *= 1e-5
    several = torch.cat([torch.eye(3, dtype=torch.float64)[:1], points(3, 3, 2)])
    alone = [slabs(x, y, 44, d[None]) for d in several]
    found = slabs(x, y, 44, several)
    assert found is not None
    assert found.error == min(one.error for one in alone if one is not None)


def test_a_miss_allows_larger_slabs():
    """An affine function needs one slab however many the points; noise of 0.1 is missed by less than 0.3."""
    x = points(500, 6)
    y = x @ points(6, 1, 5) + 0.1 * torch.rand(500, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert slabs(x, y, 20, points(5, 6, 2)) is None
    found = slabs(x, y, 20, points(5, 6, 2), 0.3)
    assert found is not None
    assert found.error <= 0.31


def test_no_units_memorise_nothing():
    assert slabs(points(5, 2), values(5, 1), 1, points(3, 2)) is None
    assert line(points(5, 1)[:, 0], values(5, 1), 5, 1) is None
