"""Affine forms enclose what they stand for: every rule against dense samples, with remainders at their extremes."""

from fractions import Fraction
from functools import partial
from math import inf, pi

import pytest
import torch
import torch.nn.functional as F

import isthmus as im
from isthmus.certify import smooth as sm
from isthmus.certify.affine import Interval, Motion, Reading
from isthmus.certify.arithmetic import add, average, contract, moved, multiply, scaled, squared
from isthmus.certify.bounds import Bounds
from isthmus.certify.choices import CHOICES
from isthmus.certify.forms import Form
from isthmus.certify.kinks import maximum, piecewise, rectified
from isthmus.certify.norms import centred, normalised
from isthmus.certify.reductions import REDUCTIONS
from isthmus.certify.rules import RULES
from isthmus.certify.smooth import smooth
from isthmus.certify.softmax import log_softmax, softmax
from tests.certify.cases import CASES
from tests.certify.made import NARROW, Made
from tests.certify.uses import USES
from tests.problems import blobs

GRID = torch.linspace(-1, 1, 21, dtype=torch.float64)
SMOOTH = {
    "tanh": sm.TANH, "sigmoid": sm.SIGMOID, "silu": sm.SILU, "gelu": sm.GELU, "gelu tanh": sm.GELU_TANH,
    "softplus": sm.softplus(1.5, 20.0), "cut": sm.softplus(2.0, 2.0), "elu": sm.elu(1.0, 1.0, 1.0),
    "selu": sm.elu(1.673, 1.05, 1.0), "celu": sm.elu(0.7, 1.0, 1 / 0.7), "kink": sm.elu(0.3, 1.0, 1.0),
}  # fmt: skip
PIECEWISE = {
    "relu": (torch.relu, rectified),
    "leaky": (lambda v: F.leaky_relu(v, 0.3), lambda x: rectified(x, 0.3)),
    "clamp": (lambda v: v.clamp(-0.5, 0.8), lambda x: piecewise(lambda v: v.clamp(-0.5, 0.8), (-0.5, 0.8), x)),
    "steep": (lambda v: F.leaky_relu(v, 2.0), lambda x: piecewise(lambda v: F.leaky_relu(v, 2.0), (0.0,), x)),
}


def random_form(n: int, seed: int, width: float = 1.0) -> Form:
    """Half of the entries have a bend, and a fourth has neither that nor a slope."""
    g = torch.Generator().manual_seed(seed)
    c0, c1, r, q = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(4))
    c1[::4], q[::2] = 0, 0
    return Form(2 * c0, width * c1, width * r.abs(), 0, width * q)


def full(x: Form) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre, slope and radius, zeros where a part is not there."""
    zero = torch.zeros_like(x.centre)
    return x.centre, zero if x.slope is None else x.slope, zero if x.radius is None else x.radius


def at(x: Form, s: torch.Tensor | float) -> torch.Tensor:
    """The value at s without remainder."""
    centre, slope, _ = full(x)
    return centre + s * slope + (0 if x.bend is None else (s * s - 0.5) * x.bend)


def samples(x: Form):
    """(s, values) with the remainder at -1, -0.3, 0, 1 times the radius."""
    for s in GRID:
        for e in (-1.0, -0.3, 0.0, 1.0):
            yield s, at(x, s) + e * full(x)[2]


def excess(form: Form, s: torch.Tensor | float, value: torch.Tensor) -> float:
    """How far a value leaves the form."""
    return max(float(((value - at(x, s)).abs() - full(x)[2]).max()) for x in (form.rounded(), form.settled()))


@pytest.mark.parametrize("width", [3.0, 0.5, 0.02])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name, width):
    x = random_form(4000, 1, width)
    form = smooth(SMOOTH[name], x)
    assert max(excess(form, s, SMOOTH[name].value(v)) for s, v in samples(x)) <= 0
    if width == 0.02 and name != "cut":
        assert float(full(form)[2].median()) < 0.03


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_and_turning_points(name):
    """Slopes and curvatures are the derivatives of the values, and keep within the range found from the turns."""
    f, x = SMOOTH[name], torch.linspace(-7, 7, 5000, dtype=torch.float64).requires_grad_()
    if name in ("cut", "selu", "kink"):
        x = torch.linspace(-7, -0.01, 5000, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(f.value(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, f.slope(x), rtol=1e-9, atol=1e-12)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(curvature, f.curvature(x.detach()), rtol=1e-9, atol=1e-12)
    ends = x.detach()[[0, -1]]
    for g, turns, all_ in ((f.slope, f.slope_turns, slope), (f.curvature, f.curvature_turns, curvature)):
        corners = g(torch.cat([ends, torch.tensor(turns, dtype=torch.float64)]).clamp(ends[0], ends[1]))
        assert float(all_.detach().max()) <= float(corners.max()) + 1e-12
        assert float(all_.detach().min()) >= float(corners.min()) - 1e-12


@pytest.mark.parametrize("width", [3.0, 0.1])
@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_linear_functions(name, width):
    f, rule = PIECEWISE[name]
    x = random_form(4000, 2, width)
    form = rule(x)
    assert max(excess(form, s, f(v)) for s, v in samples(x)) <= 0
    centre, slope, radius = full(x.settled())
    far = centre - slope.abs() - radius > 1  # where the function is one line
    factor = {"clamp": 0.0, "steep": 1.0}.get(name, 1.0)
    torch.testing.assert_close(full(form)[2][far], factor * full(x)[2][far], atol=1e-9, rtol=0)


def test_relu_is_tight():
    """The chord of max(v, 0) over [-1, 3] has the slope 3/4 and a height of 3/4."""
    x = Form(
        torch.ones(1, dtype=torch.float64),
        torch.full((1,), 1.5, dtype=torch.float64),
        torch.full((1,), 0.5, dtype=torch.float64),
    )
    out = rectified(x)
    assert [round(float(p), 12) for p in full(out)] == [1.125, 1.125, 0.75]


def test_maxima_of_two():
    a, b = random_form(3000, 3), random_form(3000, 4)
    form = maximum(a, b)
    for (s, v), (_, w) in zip(samples(a), samples(b), strict=True):
        assert excess(form, s, torch.maximum(v, w)) <= 0
    for s, v in samples(a):
        for e in (-1.0, 1.0):
            assert excess(form, s, torch.maximum(v, at(b, s) + e * full(b)[2])) <= 0


def test_a_maximum_is_not_off_by_the_rounding_of_a_far_smaller_value():
    """The slope of the chord rounds: times the far value that is more than the near one has in its last place."""
    number = partial(torch.full, (1,), dtype=torch.float64)
    for far, rest in ((-204.0598298380339, 3.5e-12), (-4.376955194775475e299, -1.5e284), (-5.97761666e8, -0.369)):
        for near in (-1.6e-5, 0.0, 1e-323):
            a, b = Form(number(far), number(-far + rest)), Form(number(near))
            form = maximum(a, b)
            for s in (-1.0, 0.0, 1.0):
                assert excess(form, s, torch.maximum(at(a, s), at(b, s))) <= 0


def test_products_entry_by_entry():
    a, b = random_form(3000, 5), random_form(3000, 6)
    product, square = multiply(a, b), squared(a)
    for s, v in samples(a):
        assert excess(square, s, v * v) <= 1e-14
        for e in (-1.0, 1.0):
            assert excess(product, s, v * (at(b, s) + e * full(b)[2])) <= 1e-14
    line = Form(b.centre, b.slope)
    for form in (multiply(line, line), squared(line)):
        assert float(full(form)[2].max()) < 1e-12  # a square of a line is what a form can hold
        torch.testing.assert_close(at(form, GRID[-1]), at(line, GRID[-1]).square(), rtol=1e-9, atol=1e-12)


def weights(rows: int, columns: int, seed: int, curved: bool) -> Form:
    g = torch.Generator().manual_seed(seed)
    c0, c1, q, e = (torch.randn(rows, columns, generator=g, dtype=torch.float64) for _ in range(4))
    return Form(c0, 0.3 * c1, 0.02 * e.abs() if curved else None, 8, 0.4 * q if curved else None)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("spread", [False, True])
def test_matrix_products(curved, spread):
    """Every sign of the remainders that makes one output extreme; without remainders the worst s reaches the radius."""
    w, b, x = weights(4, 6, 1, curved), random_form(4, 2, 0.1), random_form(6, 3, 0.2)
    if not spread:
        x, b = (Form(v.centre, v.slope, None, 0, v.bend) for v in (x, b))
    form = contract(F.linear, 6, moved(lambda p: p[None], x), w, b)
    extra, b2, x2, radius = (full(v)[2] for v in (w, b, x, form))
    reached = torch.zeros(4, dtype=torch.float64)
    for s in GRID:
        for sign in (-1.0, 1.0):
            for i in range(4):
                v, m = at(x, s), at(w, s).clone()
                m[i] += sign * extra[i] * v.sign()
                value = m @ (v + sign * x2 * m[i].sign()) + at(b, s) + sign * b2
                assert excess(form, s, value[None]) <= 0
                reached[i] = torch.maximum(reached[i], ((value - at(form, s)[0]).abs() / radius[0])[i])
    assert float(reached.min()) > (0.5 if curved else 0.999 if not spread else 0.7)


def test_averages():
    x = random_form(60, 7)
    x = moved(lambda p: p.view(1, 60), x)
    form = average(lambda v: v.mean(1), 60, x)
    assert max(excess(form, s, v.mean(1)) for s, v in samples(x)) <= 0
    assert excess(form.rounded(), GRID[-1], (at(x, GRID[-1]) + full(x)[2]).mean(1)) > -1e-12


@pytest.mark.parametrize("width", [1.0, 0.02])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "centred", "normalised", "sine"])
def test_functions_of_rows(name, width):
    """Random signs of the remainders of 200 rows of 5, some of which a softmax leaves out."""
    x, g = moved(lambda p: p.view(200, 5), random_form(1000, 9, width)), torch.Generator().manual_seed(1)
    out = torch.rand(200, 5, generator=g) < 0.3
    out[:, 0] = False

    def masked(x: Form) -> Form:
        return Form(x.centre, x.slope, x.radius, x.ulps, x.bend, out)

    rule, f = {
        "softmax": (lambda x: softmax(masked(x), 1), lambda v: v.masked_fill(out, -inf).softmax(1)),
        "log_softmax": (lambda x: log_softmax(x, 1), lambda v: v.log_softmax(1)),
        "centred": (lambda x: centred(x, 1), lambda v: v - v.mean(1, keepdim=True)),
        "normalised": (lambda x: normalised(x, 1, 0.1), lambda v: F.rms_norm(v, (5,), eps=0.1)),
        "sine": (lambda x: sm.sine(x, False), torch.sin),
    }[name]  # fmt: skip
    form = rule(x)
    if width == 0.02:
        assert float(full(form)[2].median()) < 0.08
    for s in GRID:
        signs = [torch.randint(-1, 2, x.centre.shape, generator=g) for _ in range(4)]
        signs += [2 * (torch.arange(5) == i).double() - 1 for i in range(5)]  # one against all others
        for sign in signs:
            assert excess(form, s, f(at(x, s) + sign * full(x)[2])) <= 0


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "normalised", "tanh", "square"])
def test_what_s_alone_does_is_off_by_third_order(name):
    """Halving the interval makes the remainder less than a sixth."""
    rule = {
        "softmax": lambda x: softmax(x, 1), "log_softmax": lambda x: log_softmax(x, 1),
        "normalised": lambda x: normalised(x, 1, 0.1), "tanh": partial(smooth, sm.TANH),
        "square": lambda x: smooth(sm.power(3.0), squared(x)),
    }[name]  # fmt: skip
    sizes = []
    for width in (2.0**-5, 2.0**-6):
        x = moved(lambda p: p.view(200, 5), random_form(1000, 9))
        x = Form(x.centre, x.slope * width, None, 0, x.bend * width**2)  # type: ignore[operator]
        sizes.append(float(full(rule(x))[2].mean()))
    assert sizes[1] < sizes[0] / 6


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_weights_on_curves(degree):
    g = torch.Generator().manual_seed(degree)
    control = [torch.randn(50, generator=g, dtype=torch.float64) for _ in range(degree + 1)]
    curve = im.Curve(tuple({"w": c} for c in control))
    motion = Motion(control)
    for start, end in ((0.0, 1.0), (0.25, 0.5), (0.3, 0.31)):
        interval = Interval.between(start, end)
        form = motion.over(interval)
        for s in GRID:
            t = min(max(interval.middle + float(s) * interval.half, 0.0), 1.0)
            assert excess(form, s, curve.at(t)["w"]) <= 0
        if form.radius is not None:
            assert float(form.radius.max()) < (1e-12 if degree == 2 else 60 * (end - start) ** 3)


def dyadic(values: torch.Tensor) -> list[Fraction]:
    return [Fraction(float(v)) for v in values.flatten()]


@pytest.mark.parametrize("moving", [False, True])
def test_rounding_is_in_the_radius(moving):
    """Sums that cancel, against exact rational arithmetic: at a point, and on a line of far ends."""
    g = torch.Generator().manual_seed(0)
    n, worst = 40, Fraction(0)
    x = torch.randn(1, n, generator=g, dtype=torch.float64) * 10.0 ** torch.randint(-3, 8, (1, n), generator=g)
    ends = [torch.randn(30, n, generator=g, dtype=torch.float64) for _ in range(2)]
    t = 0.3
    if moving:  # at t the weights almost vanish: what rounds is the size of their ends
        ends[1] = ends[0] * -7 / 3 * (1 + 1e-6 * ends[1])
        half = 2.0**-20
        w = Motion(ends).over(Interval(t, half))
    else:
        w = Form(ends[0])
    form = contract(F.linear, n, Form(x), w).settled()
    for i in range(30):
        at = [
            p + Fraction(t) * (q - p) if moving else p
            for p, q in zip(dyadic(ends[0][i]), dyadic(ends[1][i]), strict=True)
        ]
        exact = sum((p * q for p, q in zip(at, dyadic(x), strict=True)), Fraction(0))
        off = abs(exact - Fraction(float(form.centre[0, i])))
        assert off <= Fraction(float(full(form)[2][0, i]))
        worst = max(worst, off)
    assert worst > 0


ROUNDED = {
    "sum": (
        lambda x, y: add(scaled(x, 1 / 3), scaled(x, 0.333), -1.0),
        lambda x, y: x * Fraction(1 / 3) - x * Fraction(0.333),
    ),
    "shift": (lambda x, y: add(scaled(x, 1 / 3), y), lambda x, y: x * Fraction(1 / 3) + y),
    "product": (multiply, lambda x, y: x * y),
    "relu": (lambda x, y: rectified(multiply(x, y)), lambda x, y: max(x * y, Fraction(0))),
    "clamp": (
        lambda x, y: piecewise(lambda v: v.clamp(-1.0, 1.0), (-1.0, 1.0), scaled(x, 1 / 3)),
        lambda x, y: min(max(x * Fraction(1 / 3), Fraction(-1)), Fraction(1)),
    ),
    "maximum": (lambda x, y: maximum(scaled(x, 1 / 3), multiply(x, y)), lambda x, y: max(x * Fraction(1 / 3), x * y)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_elementwise_rounding_is_in_the_radius(name):
    rule, exact = ROUNDED[name]
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(200, generator=g, dtype=torch.float64) for _ in range(2))
    form = rule(Form(x), Form(y)).settled()
    off = [abs(exact(p, q) - c) for p, q, c in zip(dyadic(x), dyadic(y), dyadic(form.centre), strict=True)]
    assert max(off) > 0
    assert all(e <= r for e, r in zip(off, dyadic(full(form)[2]), strict=True))


def test_rounding_of_averages_is_in_the_radius():
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, 1:] -= x.mean(1, keepdim=True) + x[:, :1] / 39
    form = average(lambda v: v.mean(1), 40, Form(x))
    off = [abs(sum(dyadic(row), Fraction(0)) / 40 - Fraction(float(c))) for row, c in zip(x, form.centre, strict=True)]
    assert max(off) > 0
    assert all(e <= r for e, r in zip(off, dyadic(full(form)[2]), strict=True))


# -- whole networks


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_sample_leaves_its_form_or_exceeds_its_bound(case):
    """Random networks and paths on which all tensors move: outputs, mean loss and error rate at dense samples."""
    objective = case.objective()
    for degree, seed in ((1, 0), (3, 1)):
        g = torch.Generator().manual_seed(degree + seed)
        control = case.control(degree, seed)
        curve = im.Curve(tuple(control))
        bounds = Bounds(objective, objective.program, curve.control)
        for width in (0.3, 0.02):
            start = float(torch.rand((), generator=g)) * (1 - width)
            interval, bound = Interval.between(start, start + width), bounds.over(start, start + width)
            form, size = collected(bounds.reading, interval)
            assert bool(size.isfinite().all())
            for t in torch.linspace(start, start + width, 7).double().clamp(start, start + width).tolist():
                point, s = curve.at(t), torch.tensor((t - interval.middle) / interval.half, dtype=torch.float64)
                outputs, y = objective.outputs(point), objective.data[1]
                assert excess(form, s, outputs) <= 0, (degree, t)
                assert float(F.cross_entropy(outputs, y)) <= bound.loss
                assert float((outputs.argmax(1) != y).double().mean()) <= bound.error


def collected(reading: Reading, interval: Interval) -> tuple[Form, torch.Tensor]:
    parts = [z.settled() for z, _ in reading.outputs(interval)]
    centre, slope, radius = (torch.cat(column) for column in zip(*map(full, parts), strict=True))
    return Form(centre, slope, radius, -8), centre.abs() + slope.abs() + radius


@pytest.mark.parametrize("name", USES)
def test_a_case_uses_the_operations_that_it_stands_for(name):
    x, y = blobs(4, (4,), 3)
    case = next((c for c in CASES if c.name == name), None)
    objective = case.objective() if case else im.Objective(Made(NARROW[name]), data=(x.float(), y))
    assert set(USES[name].split()) <= {node.base for node in objective.program.nodes}


def test_every_operation_with_a_rule_is_in_some_case():
    used = set(" ".join(USES.values()).split())
    # names that torch.export gives to the same operations only after it had to rewrite a graph
    rewritten = "alias detach lift_fresh lift_fresh_copy _to_copy _unsafe_view max_pool2d_with_indices constant_pad_nd"
    by_themselves = {*CHOICES, *REDUCTIONS}  # in tests/certify/test_rules.py
    refused = {"upsample_bicubic2d"}  # in tests/certify/test_torch_layers.py
    assert set(RULES) - used <= {*rewritten.split(), *by_themselves, *refused}
    assert len({c.name for c in CASES} | set(NARROW)) == len(CASES) + len(NARROW)


def test_what_does_not_move_is_computed_once_and_chunks_do_not_matter():
    case = next(c for c in CASES if c.name == "deep")
    objective = case.objective()
    a, b = case.control(1)
    b = {k: b[k] if k.startswith(("6", "8")) else a[k] for k in a}
    kept = Reading(objective, objective.program, (a, b), 1 << 20)
    assert {n.op.split(".")[1] for n in kept.before} == {"linear", "relu"}
    assert len(kept.after) == 3
    interval = Interval.between(0.25, 0.5)
    one, _ = collected(kept, interval)
    assert kept.kept
    none, _ = collected(Reading(objective, objective.program, (a, b), 0), interval)
    several = case.objective(memory=8 * objective.bytes_each * 3)
    three = Reading(several, several.program, (a, b), 1 << 20)
    assert three.chunk == 3
    for other in (none, collected(three, interval)[0]):
        torch.testing.assert_close(one.centre, other.centre, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(full(one)[2], full(other)[2], rtol=1e-9, atol=1e-12)


def test_gelu_constant():
    assert float(sm.GELU.slope(torch.zeros(1, dtype=torch.float64))) == 0.5
    assert float(sm.GELU.curvature(torch.zeros(1, dtype=torch.float64))) == pytest.approx((2 / pi) ** 0.5)
