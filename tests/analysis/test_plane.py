"""Planes through three networks: axes, corners, the path's place, screening, going on after a kill, and pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.errors import FileError
from isthmus.evaluate.batchnorm import refresh, statistics
from isthmus.objective.drawn import on_some
from isthmus.params import distance, dot, equal, lerp
from isthmus.paths import Curve, Path
from isthmus.plot.surface import Surface, surface_figure
from isthmus.report.surfaces import write_plane_page
from isthmus.training.memory import forget
from tests.analysis.test_ensemble import normalised
from tests.mortal import Mortal, to_the_end
from tests.problems import odd_widths, perceptron, random_params, tanh_regression, two_layers


def third(p):
    drawn = random_params(p.objective.skeleton, 5)
    return {k: v if v.is_floating_point() else p.a[k] for k, v in drawn.items()}


def test_axes_are_orthonormal_and_corners_are_the_networks_themselves():
    p = two_layers()
    c = third(p)
    found = im.plane(p.objective, p.a, p.b, c, points=4, test=p.objective.part(slice(0, 9)))
    u, v = found.frame.axes
    assert [dot(u, u), dot(v, v), dot(u, v)] == pytest.approx([1, 1, 0], abs=1e-14)
    assert found.corners[1].tolist() == pytest.approx([distance(p.a, p.b), 0])
    assert found.test is not None
    for k, network in enumerate((p.a, p.b, c)):
        assert equal(found.frame.at(*found.corners[k].tolist()), network)
        assert float(found.train.corner_loss[k]) == p.objective.loss(network)
        assert float(found.train.corner_error[k]) == p.objective.error(network)
        assert float(found.test.corner_loss[k]) == p.objective.part(slice(0, 9)).loss(network)
        x, y, off = found.frame.place(network)
        assert [x, y] == pytest.approx(found.corners[k].tolist())
        assert off < 1e-12 * found.frame.width


def test_a_plane_with_c_near_the_line_has_the_losses_of_its_points():
    """Points far from c are many times what tells it from the line: sums in float32 lose them."""
    module = perceptron([4, 16, 3]).float()
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    objective = im.Objective(module, "cross_entropy", data)
    a, b, d = ({k: v.float() for k, v in random_params(module, seed).items()} for seed in range(3))
    c, far = ({k: (a[k] + b[k]) / 2 + share * d[k] for k in a} for share in (3e-6, 1.0))
    found = im.plane(objective, a, b, c, path=Path.through([a, far, b]), points=3)
    exact = im.Objective(module.double(), "cross_entropy", (data[0].double(), data[1]))
    for j in range(3):
        for i in range(3):
            x, y = float(found.x[i]), float(found.y[j])
            point = {k: a[k].double() + x * found.frame.axes[0][k] + y * found.frame.axes[1][k] for k in a}
            assert float(found.loss[j, i]) == pytest.approx(exact.loss(point), rel=1e-5)


def test_the_grid_covers_the_corners_and_holds_the_loss():
    p = two_layers()
    found = im.plane(p.objective, p.a, p.b, third(p), points=5, margin=0.25)
    for axis, k in ((found.x, 0), (found.y, 1)):
        low, high = float(found.corners[:, k].min()), float(found.corners[:, k].max())
        assert axis.tolist() == pytest.approx(
            torch.linspace(low - (high - low) / 4, high + (high - low) / 4, 5).tolist()
        )
    point = found.frame.at(float(found.x[3]), float(found.y[1]))
    assert float(found.loss[1, 3]) == p.objective.loss(point)
    assert float(found.error[1, 3]) == p.objective.error(point)
    away = distance(point, p.a) ** 2
    assert away == pytest.approx(float(found.x[3] ** 2 + found.y[1] ** 2))
    assert found.exact.all()


def test_a_quadratic_curve_lies_in_the_plane_of_its_control_points():
    p = odd_widths()
    c = third(p)
    for path in (Path((Curve((p.a, c, p.b)),)), Path.through([p.a, c, p.b])):
        found = im.plane(p.objective, p.a, p.b, c, path, points=2)
        assert float(found.off.max()) < 1e-12 * found.frame.width
        assert found.path[0].tolist() == pytest.approx([0, 0], abs=1e-12)
        t = found.t.tolist().index(0.25)
        assert found.path[t].tolist() == pytest.approx(found.frame.place(path.at(0.25))[:2])
    bent = im.plane(
        p.objective, p.a, p.b, c, Path((Curve((p.a, random_params(p.objective.skeleton, 8), p.b)),)), points=2
    )
    assert float(bent.off.max()) > 0.1


def test_a_path_stands_for_three_networks():
    p = two_layers()
    c, near = third(p), lerp(p.a, p.b, 0.4)
    bent = Path((Curve((p.a, c, p.b)),))
    want = im.plane(p.objective, p.a, p.b, c, bent, points=3).to_dict()
    connection = im.Connection(bent, p.b, im.Outcome.CONSTRUCTED)
    assert im.plane(p.objective, bent, points=3).to_dict() == want
    assert im.plane(p.objective, connection, points=3).to_dict() == want
    chain = Path.through([p.a, near, c, p.b])  # the knot that is farthest from the line
    assert equal(im.plane(p.objective, chain, points=2).frame.c, c)
    with pytest.raises(im.InputError, match="c: expected a network off the straight line"):
        im.plane(p.objective, Path.through([p.a, p.b]))
    with pytest.raises(im.InputError, match=r"a: expected a network where b, c or path are given"):
        im.plane(p.objective, bent, path=bent)
    cases: list[tuple[Any, str]] = [((p.a,), "b"), ((p.a, p.b), "c")]
    for given, missing in cases:
        with pytest.raises(im.InputError, match=f"{missing}: expected a network, or a path in place of a, b and c"):
            im.plane(p.objective, *given)


def test_networks_on_a_line_span_no_plane():
    p = two_layers()
    for c in (lerp(p.a, p.b, 0.3), p.a, p.b):
        with pytest.raises(im.InputError, match="c: expected a network off the straight line"):
            im.plane(p.objective, p.a, p.b, c)
    a = {k: v.float() for k, v in p.a.items()}
    b = {k: v + 1e-2 * torch.randn_like(v) for k, v in a.items()}
    with pytest.raises(im.InputError, match="c: expected a network off the straight line"):  # but for its rounding
        im.plane(p.objective.cast(torch.float32), a, b, lerp(a, b, 0.5))
    with pytest.raises(im.InputError, match="b: expected another network than a"):
        im.plane(p.objective, p.a, p.a, p.b)
    wrong: list[dict[str, Any]] = [{"points": 1}, {"margin": -1}, {"screen": 1}, {"bn": "forget"}]
    for given in wrong:
        with pytest.raises(im.InputError, match=next(iter(given))):
            im.plane(p.objective, p.a, p.b, third(p), **given)


def test_a_path_of_other_networks_is_refused():
    p = two_layers()
    foreign = ({k: v[:1] for k, v in p.a.items()}, {"other": torch.ones(2)})
    for point in foreign:
        with pytest.raises(im.InputError, match="path"):
            im.plane(p.objective, p.a, p.b, third(p), Path.through([point, point]), points=3)


def test_screened_cells_are_named_and_the_others_are_exact():
    p = two_layers()
    path = Path((Curve((p.a, third(p), p.b)),))
    full = im.plane(p.objective, p.a, p.b, third(p), path, points=9, test=p.objective.part(slice(4, 20)))
    found = im.plane(
        p.objective, p.a, p.b, third(p), path, points=9, test=p.objective.part(slice(4, 20)), screen=6
    )  # fmt: skip
    few = im.plane(
        on_some(p.objective, 6), p.a, p.b, third(p), path, points=9, test=on_some(p.objective.part(slice(4, 20)), 6)
    )
    exact = found.exact
    assert 9 < int(exact.sum()) < 81
    for name in ("train", "test"):
        grid, all_of, some = (getattr(v, name).loss for v in (found, full, few))
        assert torch.equal(grid[exact], all_of[exact])
        assert torch.equal(grid[~exact], some[~exact])
        assert torch.equal(getattr(found, name).corner_loss, getattr(full, name).corner_loss)
    step = float(found.x[1] - found.x[0]), float(found.y[1] - found.y[0])
    for x, y in [*found.path.tolist(), *found.corners.tolist()]:
        near = ((found.x - x).abs() <= step[0])[None] & ((found.y - y).abs() <= step[1])[:, None]
        assert exact[near].all()
    i, j = divmod(int(few.loss.argmin()), 9)
    assert exact[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].all()


def test_screening_sees_examples_of_all_classes():
    """Sorted ones too, of which the first are of one class."""
    p = two_layers()
    x, y = p.objective.data
    assert isinstance(x, torch.Tensor)
    order = y.argsort(stable=True)
    ordered = p.objective.on((x[order], y[order]))
    count = int((y == 0).sum())
    assert len(on_some(ordered, count).data[1].unique()) > 1
    found, first = (
        im.plane(o, p.a, p.b, third(p), points=9, screen=s)
        for o, s in ((ordered, count), (ordered.subset(count), None))
    )
    rough = ~found.exact
    assert not torch.isclose(found.loss[rough], first.loss[rough]).any()


@pytest.mark.parametrize("screen", [None, 6])
def test_it_goes_on_after_a_kill_to_the_same_bytes(tmp_path, screen):
    p = two_layers()

    def measured(folder=forget):
        found = im.plane(p.objective, p.a, p.b, third(p), points=5, screen=screen, test=p.objective, folder=folder)
        return json.dumps(found.to_dict())

    once, memory = measured(), Mortal(seed=1, lives=(2, 4), after_saves=(1, 3))
    assert to_the_end(lambda: measured(memory)) == once
    assert memory.deaths >= 2
    assert [measured(tmp_path / "rows") for _ in range(2)] == [once, once]
    with pytest.raises(FileError, match="another"):
        im.plane(p.objective, p.a, p.b, third(p), points=6, screen=screen, test=p.objective, folder=tmp_path / "rows")
    other = im.Objective(perceptron([5, 9, 4], nn.Tanh), data=p.objective.data, dtype=torch.float64)
    assert other.describe() == p.objective.describe()
    with pytest.raises(FileError, match="another"):
        im.plane(other, p.a, p.b, third(p), points=5, screen=screen, test=p.objective, folder=tmp_path / "rows")


def test_statistics_are_no_coordinates_unless_they_are_interpolated():
    p = normalised()
    c, names = third(p), statistics(p.objective)
    found = {bn: im.plane(p.objective, p.a, p.b, c, points=2, bn=bn) for bn in ("recompute", "keep", "interpolate")}
    bare = [{k: v for k, v in q.items() if k not in names} for q in (p.a, p.b)]
    assert found["recompute"].frame.width == found["keep"].frame.width == pytest.approx(distance(*bare))
    assert found["interpolate"].frame.width == pytest.approx(distance(p.a, p.b))
    want = {"recompute": refresh(p.objective, p.b), "keep": {**p.b, **{k: p.a[k] for k in names}}, "interpolate": p.b}
    for bn, plane in found.items():
        assert float(plane.train.corner_loss[1]) == p.objective.loss(want[bn])
        assert plane.bn == bn
    assert im.plane(p.objective, p.a, p.b, c, points=2, bn="keep", screen=4).screen == 4
    moving = replace(im.Path.through([p.a, p.b]), bn="interpolate")
    assert im.plane(p.objective, p.a, p.b, c, moving, points=2, margin=0.0).bn == "interpolate"


def test_statistics_have_no_say_in_which_point_is_farthest():
    p = normalised()
    c, names = third(p), statistics(p.objective)
    other = lerp(p.a, p.b, 0.5) | {k: p.a[k] + 100 for k in names}
    path = Path.through([p.a, other, c, p.b])
    assert equal(im.plane(p.objective, path, points=2, bn="recompute").frame.c, c)
    assert equal(im.plane(p.objective, path, points=2, bn="interpolate").frame.c, other)


def test_statistics_are_those_of_the_training_data():
    p = normalised()
    test = p.objective.part(slice(0, 9))
    found = im.plane(p.objective, p.a, p.b, third(p), points=7, margin=1.0, test=test, screen=12)
    assert found.test is not None
    assert float(found.test.corner_loss[1]) == test.loss(refresh(p.objective, p.b))
    i, j = (~found.exact).nonzero()[0].tolist()
    point = refresh(on_some(p.objective, 12), found.frame.at(float(found.x[j]), float(found.y[i])))
    assert float(found.test.loss[i, j]) == pytest.approx(on_some(test, 12).loss(point), rel=1e-12)


# -- what is drawn of it


@pytest.fixture(scope="module")
def plane():
    p = two_layers()
    path = Path((Curve((p.a, third(p), p.b)),))
    return im.plane(p.objective, p.a, p.b, third(p), path, points=6, test=p.objective.part(slice(0, 9)), screen=8)


def test_colours_end_at_the_largest_value_on_the_line(plane):
    surface = Surface.of(plane.to_dict())
    low, top = surface.range("training loss")
    line = [plane.frame.at(float(t), 0.0) for t in torch.linspace(0, plane.frame.width, 9)]
    seen = max(two_layers().objective.loss(v) for v in line)
    assert top == pytest.approx(seen, rel=0.3)
    grid = surface.clipped("training loss")
    assert (grid.min(), grid.max()) == (low, top)
    assert low == pytest.approx(max(float(plane.loss.min()), 1e-4 * top))


def test_the_picture_has_equal_scales_the_path_and_the_corners(plane):
    figure = surface_figure(Surface.of(plane.to_dict()))
    axes = [a for a in figure.axes if a.get_ylabel() == "towards c"]
    assert len(axes) == 2
    for ax in axes:
        assert ax.get_aspect() == 1
        assert [t.get_text() for t in ax.texts] == ["a", "b", "c"]
        drawn = next(line for line in ax.get_lines() if line.get_label() == "path")
        assert torch.equal(torch.tensor(drawn.get_xydata()), plane.path)
        assert "on 8 outside" in ax.get_title()
    regression = tanh_regression()
    alone = im.plane(regression.objective, regression.a, regression.b, third(regression), points=3)
    assert list(Surface.of(alone.to_dict()).values) == ["training loss"]


def test_the_page_holds_the_values_and_fetches_nothing(plane, tmp_path):
    write_plane_page(Surface.of(plane.to_dict()), tmp_path / "plane.html")
    text = (tmp_path / "plane.html").read_text()
    assert "default-src 'none'" in text
    held = json.loads(text.split('id="data">')[1].split("</script>")[0])["surfaces"][0]
    assert held["values"]["training loss"]["told"][2][3] == f"{float(plane.loss[2, 3]):.4g}"
    assert len(held["path"]) == len(plane.t)
    assert sorted(held["values"]) == ["test error", "test loss", "training error", "training loss"]
    assert "measured on all examples" in text


@pytest.mark.parametrize(
    "change",
    [{"x": [0, 0, 0]}, {"train": None, "x": "y"}, {"corners": [[0, 0]]}, {"path": [[0, 0]]}, {"exact": [[True]]}],
)
def test_a_damaged_file_is_refused(plane, tmp_path, change):
    file = tmp_path / "plane.json"
    file.write_text(json.dumps(plane.to_dict() | change))
    with pytest.raises(FileError, match="does not hold the values of a plane"):
        Surface.read(file)


def test_a_sum_over_some_examples_stands_for_that_over_all():
    """All examples are equal: every cell, screened or not, is the sum over the whole data set."""
    p = two_layers()
    x, y = p.objective.data
    assert isinstance(x, torch.Tensor)
    for loss in (nn.CrossEntropyLoss(reduction="sum"), nn.MultiMarginLoss(reduction="sum")):
        same = im.Objective(p.objective.skeleton, loss, (x[:1].repeat(20, 1), y[:1].repeat(20)))
        found, full = (im.plane(same, p.a, p.b, third(p), points=9, screen=s) for s in (6, None))
        assert not found.exact.all()
        assert torch.allclose(found.loss, full.loss)
