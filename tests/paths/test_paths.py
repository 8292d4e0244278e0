from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isthmus as im
from isthmus.connectors import Outcome
from isthmus.params import equal
from isthmus.pipeline import summary
from tests.problems import tied_and_normed
from tests.slow_twins import bezier, polyline_length

numbers = st.floats(-100, 100, allow_nan=False)
controls = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6)


def curve(points) -> im.Curve:
    return im.Curve(tuple({"w": torch.tensor(p, dtype=torch.float64), "same": torch.ones(3)} for p in points))


@given(controls, st.floats(0, 1))
def test_curve_is_the_bernstein_form(points, t):
    c = curve(points)
    want = bezier([p["w"] for p in c.control], t)
    torch.testing.assert_close(c.at(t)["w"], want, rtol=1e-10, atol=1e-9)
    assert c.at(t)["same"] is c.start["same"]


@given(controls)
def test_ends_and_reversal_are_exact(points):
    c = curve(points)
    assert equal(c.at(0), c.start)
    assert equal(c.at(1), c.end)
    assert equal(c.reversed().start, c.end)
    torch.testing.assert_close(c.reversed().at(0.3)["w"], c.at(0.7)["w"], rtol=1e-10, atol=1e-9)


@given(controls, st.floats(0.05, 0.95))
def test_split_gives_the_same_points_and_meets_exactly(points, t):
    c = curve(points)
    left, right = c.split(t)
    assert equal(left.end, right.start)
    torch.testing.assert_close(left.at(0.5)["w"], c.at(t / 2)["w"], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(right.at(0.5)["w"], c.at((1 + t) / 2)["w"], rtol=1e-9, atol=1e-8)


def test_length_agrees_with_a_fine_polyline():
    c = curve([(0, 0), (1, 2), (3, -1), (4, 0)])
    fine = polyline_length([c.at(i / 4000)["w"] for i in range(4001)])
    assert c.length == pytest.approx(fine, rel=1e-6)
    assert curve([(0, 0), (3, 4)]).length == 5.0


def test_path_covers_its_segments_in_equal_parts():
    path = im.Path.through([{"w": torch.tensor([v])} for v in (0.0, 1.0, 5.0, 5.0, 2.0)])
    assert len(path) == 4
    assert [float(p["w"]) for p in path.knots] == [0, 1, 5, 5, 2]
    assert float(path.at(0.375)["w"]) == 3.0
    assert equal(path.at(1), path.end)
    assert path.length == 8
    assert path.normalized_length == 4
    assert float((path + path.reversed()).at(0.75)["w"]) == 5.0
    assert float(path.map(lambda p: {"w": 2 * p["w"]}).at(0.375)["w"]) == 6.0


def test_equal_tensors_are_stored_once():
    big = torch.zeros(1000)
    path = im.Path.through([{"w": big.clone(), "b": torch.tensor([float(i)])} for i in range(5)])
    assert len({p["w"].data_ptr() for p in path.knots}) == 1


def test_misuse_is_refused():
    a, b, c = ({"w": torch.tensor([float(v)])} for v in range(3))
    with pytest.raises(im.InputError, match="segment 1 to start where segment 0 ends, got a gap of length 1"):
        im.Path((im.Curve((a, b)), im.Curve((c, a))))
    with pytest.raises(im.InputError, match=r"number in \[0, 1\]"):
        im.Curve((a, b)).at(1.5)
    with pytest.raises(im.InputError, match="at least 2 control points"):
        im.Curve((a,))
    with pytest.raises(im.InputError, match=r"control\[1\]\['w'\]: expected shape"):
        im.Curve((a, {"w": torch.zeros(2)}))
    with pytest.raises(im.InputError, match="at least one segment"):
        im.Path(())


def test_the_length_of_a_loop_over_no_distance_is_not_a_number():
    a, b = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    assert im.Path.through([a, b, a]).normalized_length != im.Path.through([a, b, a]).normalized_length


def test_extra_state_is_no_point_of_a_path():
    point: dict[str, Any] = {"w": torch.zeros(1), "_extra_state": {"version": 1}}
    with pytest.raises(im.InputError, match=r"expected a torch\.Tensor, got dict; write objective.check\(point\)"):
        im.Path.through([point, {**point, "w": torch.ones(1)}])


def test_lengths_that_are_reported_are_those_of_the_weights():
    """Running statistics, which are computed again where a path is measured, and second names are no way."""
    objective, points, own = tied_and_normed()
    first, middle, last = (torch.cat([p[k].flatten() for k in own]) for p in points)
    length = float((middle - first).norm() + (last - middle).norm())
    path = im.Path.through(points)
    row = summary(objective, im.Connection(path, path.end, Outcome.CONSTRUCTED), None, None)
    assert row["length"] == pytest.approx(length, rel=1e-12)
    assert row["normalized_length"] == pytest.approx(length / float((last - first).norm()), rel=1e-12)
    assert path.length > 1.1 * length
