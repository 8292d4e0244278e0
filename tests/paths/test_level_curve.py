"""Full-rank paths, level curves and their polygons: exact ends, outputs affine in t, what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus as im
from isthmus.params import cast, distance, equal
from isthmus.paths.full_rank import FullRank, RowSolver, left_divide
from isthmus.paths.level_curve import leaky, preimage

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def point(widths, seed, bias=True):
    out = {"other": torch.ones(2, dtype=F64)}
    for l, (n, m) in enumerate(zip(widths, widths[1:], strict=False)):
        out[f"{l}.weight"] = randn(m, n, seed=10 * seed + l) / n**0.5
        if bias:
            out[f"{l}.bias"] = 0.3 * randn(m, seed=100 * seed + l)
    return out


def curve(widths=(9, 12, 7, 3), n=8, slope=0.2, bias=True, dtype=F64, **options):
    last = len(widths) - 2
    layers = tuple(
        im.LevelLayer(f"{l}.weight", f"{l}.bias" if bias else None, 1.0 if l == last else slope)
        for l in range(last + 1)
    )
    a, b = (cast(point(widths, seed, bias), dtype) for seed in (1, 2))
    return im.LevelCurve(a, b, randn(n, widths[0], seed=5), layers, **options)


# -- full rank


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 3), st.integers(0, 999))
def test_full_rank_paths_keep_singular_values_between_those_of_the_ends(n, more, kind, seed):
    W0, W1 = randn(n + more, n, seed=seed), randn(n + more, n, seed=seed + 1)
    if kind == 1:
        W1 = -W0  # the straight line passes through zero
    if kind == 2:
        W1 = W0 * torch.tensor([-1.0] + [1.0] * (n - 1), dtype=F64)  # a reflection: needs the room outside
    path = FullRank(W0, W1)
    assert torch.equal(path.at(0), W0)
    assert torch.equal(path.at(1), W1)
    before = W0
    for k in range(1, 41):
        W = path.at(k / 40)
        s = torch.linalg.svdvals(W)
        assert float(s[-1]) >= path.smallest * (1 - 1e-10)
        assert float(s[0]) <= path.largest * (1 + 1e-10)
        # continuous: a rotation by at most pi in each plane, in 40 steps
        assert float(torch.linalg.matrix_norm(W - before, 2)) <= path.largest * (math.pi + 1) / 40 + 1e-9
        before = W


def test_full_rank_paths_refuse_what_has_none():
    with pytest.raises(im.InputError, match="full column rank"):
        FullRank(torch.zeros(3, 2, dtype=F64), randn(3, 2))
    with pytest.raises(im.InputError, match="more rows than columns"):
        FullRank(randn(2, 2, seed=1), randn(2, 2, seed=2))
    with pytest.raises(im.InputError, match="full column rank"):
        FullRank(randn(2, 3), randn(2, 3))
    square = randn(2, 2)
    assert torch.equal(FullRank(square, square.clone()).at(0.3), square)


def test_solutions_of_least_norm_are_those_of_the_pseudoinverse():
    M, B, W = randn(5, 9), randn(5, 3, seed=1), randn(6, 4, seed=2)
    torch.testing.assert_close(RowSolver(M).solve(B), torch.linalg.pinv(M) @ B, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left_divide(randn(2, 4), W), randn(2, 4) @ torch.linalg.pinv(W), rtol=1e-12, atol=1e-12)
    with pytest.raises(im.InputError, match="at least as many columns"):
        RowSolver(M.T)


# -- Lemma 3.3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.sampled_from([0.05, 0.2, 1.0, 3.0]), st.booleans(), st.integers(0, 99))
def test_lemma_3_3_any_outputs_have_a_preimage(depth, slope, near, seed):
    widths = [11, 9, 7, 5, 3][: depth + 1]
    W = [randn(n, m, seed=seed + i) for i, (n, m) in enumerate(zip(widths, widths[1:], strict=False))]
    b = [randn(w.shape[1], seed=seed + 50 + i) for i, w in enumerate(W)]
    slopes = [slope] * len(W) + [1.0]
    A = randn(6, widths[len(W)], seed=seed + 7)
    F = [randn(6, w.shape[0], seed=seed + 9) for w in W] if near else None
    h = leaky(preimage(A, W, b, slopes, F), slopes[0])
    for w, c, s in zip(W, b, slopes[1:], strict=True):
        h = leaky(h @ w + c, s)
    torch.testing.assert_close(h, A, rtol=1e-10, atol=1e-10)


def test_the_preimage_near_features_that_map_to_the_outputs_is_these_features():
    W, b = [randn(8, 5), randn(5, 3, seed=1)], [randn(5, seed=2), randn(3, seed=3)]
    F1 = randn(6, 8, seed=4)
    F2 = leaky(F1 @ W[0] + b[0], 0.3)
    found = preimage(F2 @ W[1] + b[1], W, b, [0.3, 0.3, 1.0], [F1, F2])
    torch.testing.assert_close(leaky(found, 0.3), F1, rtol=1e-12, atol=1e-12)
    far = preimage(F2 @ W[1] + b[1], W, b, [0.3, 0.3, 1.0])
    assert float((leaky(far, 0.3) - F1).abs().max()) > 0.1


# -- level curves


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(9, 3), (9, 12, 3), (9, 12, 7, 3), (9, 14, 11, 8, 5, 2)])
def test_outputs_are_affine_and_ends_exact(widths, bias):
    c = curve(widths, bias=bias)
    a, b = point(widths, 1, bias), point(widths, 2, bias)
    assert equal(c.start, a)
    assert equal(c.end, b)
    first, last = c.outputs(a), c.outputs(b)
    for k in range(41):
        # in the middle of the ends' neighbourhoods too, where the formula must meet them
        for t in (k / 40, min(1.0, (k + 1e-7) / 40)):
            want = (1 - t) * first + t * last
            assert float((c.outputs(c.at(t)) - want).abs().max()) <= 1e-12 * float(want.abs().max() + 1)
    for t, end in ((1e-9, a), (1 - 1e-9, b)):
        assert distance(c.at(t), end) < 1e-5
    assert c.at(0.5)["other"] is c.start["other"]


def test_without_the_correction_of_layer_1_the_outputs_would_bend():
    """The law above can fail: a straight line between the same ends strays."""
    c = curve()
    line = im.Curve((c.start, c.end))
    assert float((c.outputs(line.at(0.5)) - c.affine(0.5)).abs().max()) > 1e-2


def test_reversal_and_split_walk_the_same_points_and_meet_bit_for_bit():
    c = curve()
    for t in (0.0, 0.25, 0.7, 1.0):
        assert distance(c.reversed().at(t), c.at(1 - t)) < 1e-12
    left, right = c.split(0.3)
    assert equal(left.end, right.start)
    assert equal(left.start, c.start)
    assert equal(right.end, c.end)
    assert distance(left.at(0.5), c.at(0.15)) < 1e-12
    assert distance(right.reversed().at(0.5), c.at(0.65)) < 1e-12
    torch.testing.assert_close(right.affine(0.5), c.affine(0.65), rtol=1e-12, atol=1e-12)
    path = im.Path((left, right)) + im.Path((right.reversed(),))
    assert equal(path.end, left.end)
    assert equal(path.reversed().start, path.end)
    with pytest.raises(im.InputError, match="Bezier"):
        path.map(lambda p: p)


def test_the_length_is_that_of_a_fine_chain_of_chords():
    c = curve()
    points = [c.at(k / 2000) for k in range(2001)]
    want = sum(distance(p, q) for p, q in zip(points, points[1:], strict=False))
    assert c.length == pytest.approx(want, rel=2e-3)
    assert c.length >= distance(c.start, c.end)


def test_float32_points_are_those_of_float64_rounded_and_layer_1_makes_up_for_the_rounding_of_the_others():
    c = curve(dtype=torch.float32)
    assert all(v.dtype == torch.float32 for v in c.at(0.4).values())
    scale = float(c.affine(0.0).abs().max())
    strays = [float((c.outputs(c.at(k / 20)) - c.affine(k / 20)).abs().max()) for k in range(21)]
    assert max(strays) < 2e-6 * (scale + 1)


def test_what_a_level_curve_cannot_be_is_refused():
    good = curve()
    a, b = good.origin, good.goal
    with pytest.raises(im.InputError, match="slope: expected a number > 0"):
        im.LevelLayer("0.weight", None, 0.0)
    with pytest.raises(im.InputError, match=r"examples, the columns of \[x, 1\]"):
        curve(n=11)
    with pytest.raises(im.InputError, match="another 'other'"):
        im.LevelCurve(a, {**b, "other": torch.zeros(2, dtype=F64)}, good.x, good.layers)
    with pytest.raises(im.InputError, match="full column rank"):
        im.LevelCurve(a, {**b, "1.weight": torch.zeros_like(b["1.weight"])}, good.x, good.layers)
    with pytest.raises(im.InputError, match="distinct names"):
        im.LevelCurve(a, b, good.x, (*good.layers, good.layers[0]))
    with pytest.raises(im.InputError, match="reads 12 features"):
        im.LevelCurve(a, {**a, "0.weight": b["0.weight"]}, good.x, (good.layers[0], good.layers[2]))
    with pytest.raises(im.InputError, match="finite"):
        im.LevelCurve(a, b, good.x * float("nan"), good.layers)
    with pytest.raises(im.InputError, match="another number than lo"):
        im.LevelCurve(a, b, good.x, good.layers, 0.5, 0.5)
    with pytest.raises(im.InputError, match=r"more rows than columns"):
        curve((9, 7, 7, 3))
    with pytest.raises(im.InputError, match=r"hi: expected a number in \[0, 1\], got 1.5"):
        im.LevelCurve(a, b, good.x, good.layers, 0.5, 1.5)
    with pytest.raises(im.InputError, match=r"origin\['0.bias'\]: expected shape"):
        im.LevelCurve({**a, "0.bias": a["0.bias"][:1]}, {**b, "0.bias": b["0.bias"][:1]}, good.x, good.layers)
    for t, words in ((1.0, "strictly between 0 and 1"), (1e-320, "that splits the curve in floating point")):
        with pytest.raises(im.InputError, match=words):
            im.LevelCurve(a, b, good.x, good.layers, 0.5, 1.0).split(t)


# -- polygons


def objective_of(c):
    parts = []
    for l, layer in enumerate(c.layers):
        weight = c.origin[layer.weight]
        parts += [torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)]
        parts += [torch.nn.LeakyReLU(layer.slope)] if l < len(c.layers) - 1 else []
    module = torch.nn.Sequential(*parts).double()
    names = list(module.state_dict())
    own = [n for layer in c.layers for n in (layer.weight, layer.bias) if n]
    to = dict(zip(own, names, strict=True))
    move = lambda p: {to[k]: v for k, v in p.items() if k in to}
    layers = tuple(im.LevelLayer(to[q.weight], q.bias and to[q.bias], q.slope) for q in c.layers)
    objective = im.Objective(module, "cross_entropy", (c.x, torch.arange(len(c.x)) % c.affine(0).shape[1]))
    return objective, im.LevelCurve(move(c.origin), move(c.goal), c.x, layers)


def test_polygons_of_a_level_curve_stay_within_the_tolerance_and_are_proved():
    objective, level = objective_of(curve())
    path = im.Path((level,))
    sizes = []
    for tol in (0.1, 0.02):
        polygon = path.polygonal(tol)
        sizes.append(len(polygon))
        assert all(isinstance(s, im.Curve) and s.is_straight for s in polygon.segments)
        assert equal(polygon.start, path.start)
        assert equal(polygon.end, path.end)
        for chord in polygon.segments:  # the outputs are affine on the curve: half way they are the mean of the ends
            want = (level.outputs(chord.start) + level.outputs(chord.end)) / 2
            assert float((level.outputs(chord.at(0.5)) - want).abs().max()) <= tol * (1 + 1e-9)
    assert sizes[0] < sizes[1]
    by_loss = path.polygonal(0.02, objective.loss)
    for polygon, gap, excess in ((by_loss, 1e-3, 0.02), (path.polygonal(1e-3, objective.loss), 1e-4, 1e-3)):
        certificate = im.certify(objective, polygon, gap, budget=20 * len(polygon) + 100)
        assert certificate.proved
        assert set(certificate.counts) == {"bounded"}
        assert certificate.excess < excess


def test_the_error_of_a_polygon_falls_with_the_square_of_its_pieces():
    _, level = objective_of(curve())
    few, many = (len(im.Path((level,)).polygonal(tol)) for tol in (1e-2, 1e-4))
    assert 4 <= many / few <= 25  # 10 for an even curve


def test_polygons_of_bezier_curves_and_what_they_refuse():
    arc = im.Curve(tuple({"w": torch.tensor(p, dtype=F64)} for p in ([0.0, 0.0], [1.0, 2.0], [2.0, 0.0])))
    line = im.Curve((arc.end, {"w": torch.tensor([5.0, 5.0], dtype=F64)}))
    path = im.Path((arc, line))
    polygon = path.polygonal(1e-3)
    assert polygon.segments[-1] is line
    assert (
        max(distance(s.at(0.5), arc.at((i + 0.5) / (len(polygon) - 1))) for i, s in enumerate(polygon.segments[:-1]))
        < 1e-3
    )
    with pytest.raises(im.InputError, match="4 segments reach"):
        path.polygonal(1e-3, most=4)
    with pytest.raises(im.InputError, match="tol: expected a number > 0"):
        path.polygonal(0.0)
    with pytest.raises(im.InputError, match="the rise of the path"):
        im.Path((arc,)).polygonal(1e-3, loss=lambda p: float(p["w"][1]))
