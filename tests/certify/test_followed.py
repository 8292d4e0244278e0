"""Remainders followed back from the loss: what a rule passes on and what it adds make up all that can be there."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im
from isthmus.certify.affine import Interval, Motion
from isthmus.certify.arithmetic import contract
from isthmus.certify.balls import row_norms, spectral_norm
from isthmus.certify.bounds import Bounds
from isthmus.certify.forms import Form, present
from isthmus.certify.gradient import followed_back
from isthmus.certify.kernel import Kernel
from isthmus.certify.kinks import rectified
from isthmus.certify.origins import Origin, contributions, roundings
from isthmus.certify.smooth import GELU, power, smooth
from tests.certify.functions import ONE, ROWS, SEVERAL, form, signs
from tests.certify.test_forms import at, full
from tests.problems import blobs, random_params

F64 = torch.float64
S = torch.tensor([-1.0, -0.6, -0.2, 0.0, 0.3, 0.8, 1.0], dtype=F64)


class Entrance:
    """A form whose own remainder is known, and what a gradient was when it came back to it."""

    def __init__(self, x: Form, ball: bool = False) -> None:
        nothing = Form(x.centre, None, torch.zeros_like(x.centre))
        self.back = torch.zeros_like(x.centre)
        self.form = Form(x.centre, x.slope, x.radius, x.ulps, x.bend, origin=Origin([(nothing, self.pull)], 0.0))
        if ball:
            self.form.ball = row_norms(full(x)[2])

    def pull(self, g: Tensor) -> Tensor:
        self.back = self.back + g
        return g


def check_followed(rule, f, forms: dict[str, Form], *, ball: bool = False) -> None:
    """g times the remainder of a result is what came through from the arguments, and at most the fresh parts more."""
    entrances = {name: Entrance(x, ball) for name, x in forms.items()}
    found, g = rule(**{name: e.form for name, e in entrances.items()}), torch.Generator().manual_seed(3)
    found = (found[0] if isinstance(found, tuple | list) else found).rounded()
    radii, reach = {name: full(x)[2] for name, x in forms.items()}, full(found)[2] + 1e-12
    one = torch.zeros_like(found.centre)
    one.view(-1)[int(torch.randint(0, one.numel(), (), generator=g))] = 1.0
    for weights in (torch.randn(found.centre.shape, generator=g, dtype=F64), one):
        for e in entrances.values():
            e.back = torch.zeros_like(e.back)
        allowed = sum(contributions(found, weights).values())
        for s in S:
            middles, known = {name: at(x, s) for name, x in forms.items()}, at(found, s)
            for k in range(6):
                rho = {name: signs(r.shape, g, k) * r for name, r in radii.items()}
                out = f(*(v + rho[name] for name, v in middles.items()))
                out = out[0] if isinstance(out, tuple | list) else out
                through = sum(float((e.back * rho[name]).sum()) for name, e in entrances.items())
                new = float((weights * (out - known)).sum()) - through
                assert not abs(new) > allowed * (1 + 1e-9) + 1e-12  # not finite: nothing is said
                # and the radius allows for what comes through, up to what norms made of it
                assert bool(((out - known).abs() <= reach).all())


@pytest.mark.parametrize("width", [0.5, 0.02])
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_form(name, width):
    rule, f, shift = ONE[name]
    for seed, parts in enumerate(("sbr", "r", "sr")):
        check_followed(rule, f, {"x": form(ROWS, seed, width, parts, shift)})


@pytest.mark.parametrize("width", [0.5, 0.02])
@pytest.mark.parametrize("name", SEVERAL)
def test_functions_of_several_forms(name, width):
    rule, f, shapes = SEVERAL[name]
    for seed in range(2):
        check_followed(rule, f, {k: form(v, 7 * seed + i, width, "sbr") for i, (k, v) in enumerate(shapes.items())})


WIDE = {"gelu": (GELU, 20.0, "slope"), "a square": (power(2), 0.5, "radius")}


@pytest.mark.parametrize("name", WIDE)
def test_what_smooth_functions_add_is_needed(name):
    """Where most of it is there: a bend of nearly 1 within a wide form, and the square of a remainder."""
    f, size, part = WIDE[name]
    own = torch.full((3, 2), size, dtype=F64)
    x = Form(torch.zeros(3, 2, dtype=F64), own if part == "slope" else None, own if part == "radius" else None)
    check_followed(lambda x: smooth(f, x), f.value, {"x": x})


@pytest.mark.parametrize("width", [2.0, 0.3, 0.02])
@pytest.mark.parametrize("leak", [0.0, 0.2])
@pytest.mark.parametrize("ball", [False, True])
def test_kinks_by_parabolas(width, leak, ball):
    """Also where the remainder is larger than what moves, the ball smaller than the radii, and all is a point."""
    for parts, share in (("sbr", 0.5), ("sr", 3.0), ("sbr", 0.01)):
        x = form((300, 5), 1, width, parts, spread=0.5 * width)
        x = Form(x.centre, x.slope, present(x.radius) * share, 0, x.bend)
        for i in range(4):  # flat, at the kink, half-way, nowhere
            present(x.slope)[i], x.centre[i] = (0.0, -1.0, 1.0, 1e-310)[i], (0.0, 0.5, -0.5, 0.0)[i]
        check_followed(lambda x: rectified(x, leak), lambda v: F.leaky_relu(v, leak), {"x": x}, ball=ball)


def test_kinks_in_the_norm():
    """Remainders of 40 units, a third as long as their radii allow: what they leave is weighed in the norm."""
    g = torch.Generator().manual_seed(2)
    x = form((25, 40), 4, 0.05, "sbr", spread=0.05)
    entrance = Entrance(Form(x.centre, x.slope, 4 * present(x.radius), 0, x.bend))
    x = entrance.form
    x.ball = row_norms(present(x.radius)) / 3
    out = rectified(x)
    assert out.origin is not None
    assert out.origin.ball is not None
    assert bool((out.origin.ball > 0).any())
    for weights in (torch.randn(25, 40, generator=g, dtype=F64), torch.ones(25, 40, dtype=F64)):
        entrance.back = torch.zeros_like(entrance.back)
        allowed = sum(contributions(out, weights).values())
        assert allowed < 0.7 * float((weights.abs() * present(out.radius)).sum())
        for s in S:
            for k in range(8):
                rho = torch.randn(25, 40, generator=g, dtype=F64).clamp(-1, 1) * present(x.radius)
                if k > 3:  # where it hurts: half of it is left, with the sign of the value
                    rho = weights * at(x, s).sign() * (1 if k % 2 else -1) * 1e-3
                    rho = torch.minimum(torch.maximum(rho, -present(x.radius)), present(x.radius))
                rho *= (present(x.ball) / torch.linalg.vector_norm(rho, dim=-1, keepdim=True)).clamp(max=1)
                left = (at(x, s) + rho).relu() - at(out, s)
                new = float((weights * left).sum() - (entrance.back * rho).sum())
                assert abs(new) <= allowed * (1 + 1e-9)
                assert bool(
                    (torch.linalg.vector_norm(left, dim=-1, keepdim=True) <= present(out.ball) * (1 + 1e-9)).all()
                )


def test_a_parabola_is_nearer_to_a_kink_than_a_chord():
    """|s| / 2 is within 1/16 of a parabola, and within 1/4 of a line."""
    x = Form(torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), -8)
    assert float(present(rectified(x).radius)) == pytest.approx(1 / 4)
    x.origin = Origin()
    assert float(present(rectified(x).radius)) == pytest.approx(1 / 16)


# -- norms


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 20), (64, 64)])
@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e150])
def test_a_spectral_norm_is_above_the_singular_values_and_little_more(shape, scale):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64) * scale
    assert 1 <= spectral_norm(w) / float(torch.linalg.matrix_norm(w, 2)) < 1.2
    assert spectral_norm(torch.zeros(shape, dtype=F64)) < 1e-100


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_norms_along_a_curve(degree):
    g = torch.Generator().manual_seed(degree)
    control = [torch.randn(6, 9, generator=g, dtype=F64) for _ in range(degree + 1)]
    motion = Motion(control)
    for start in torch.rand(20, generator=g, dtype=F64).tolist():
        interval = Interval.between(0.9 * start, 0.9 * start + 0.1)
        form, (fixed, drift) = motion.over(interval), motion.norms(interval, spectral_norm)
        assert float(torch.linalg.matrix_norm(form.centre, 2)) <= fixed
        for s in S:
            assert float(torch.linalg.matrix_norm(at(form, s) - form.centre, 2)) <= drift * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_norms_of_remainders_of_linear_layers(share):
    """The ball of a product is above its remainder, wherever in its ball that of the argument is."""
    g = torch.Generator().manual_seed(0)
    control = [torch.randn(30, 40, generator=g, dtype=F64) / sqrt(40) for _ in range(2)]
    motion, interval = Motion(control), Interval.between(0.5, 0.52)
    w = motion.over(interval)
    w.origin, w.norm = Origin(), lambda norm: motion.norms(interval, norm)
    entrance = Entrance(form((25, 40), 2, 0.3, "sbr"))
    x = entrance.form
    x.ball = share * row_norms(present(x.radius))
    out, weights = contract(F.linear, 40, x, w, None, 1), torch.randn(25, 30, generator=g, dtype=F64)
    allowed = sum(contributions(out, weights).values())
    for s in S:
        for k in range(4):
            rho = torch.randn(25, 40, generator=g, dtype=F64).clamp(-1, 1) * present(x.radius)
            if k > 1:  # along what the weight's movement makes of the weights of the result
                worst = (weights @ (at(w, s) - w.centre)) * (1 if k % 2 else -1) * 1e3
                rho = torch.minimum(torch.maximum(worst, -present(x.radius)), present(x.radius))
            rho *= (present(x.ball) / row_norms(rho)).clamp(max=1) if k else 0
            z = (at(x, s) + rho) @ at(w, s).T
            left = z - at(out, s)
            assert abs(float((weights * left).sum() - (entrance.back * rho).sum())) <= allowed * (1 + 1e-9)
            assert bool((left.abs() <= present(out.radius) * (1 + 1e-9) + 1e-12).all())
            assert bool((row_norms(left) <= present(out.ball) * (1 + 1e-9) + 1e-12).all())
    if share < 0.5:  # no product of moduli was needed
        assert float(present(out.radius).mean()) < 0.5 * float((present(x.radius) @ w.reach().T).mean())


def test_what_a_moving_weight_adds_to_norms_is_needed():
    """The remainder along the rows of the weight where these are longest; nothing else moves."""
    g = torch.Generator().manual_seed(0)
    first = torch.randn(30, 40, generator=g, dtype=F64) / sqrt(40)
    motion, interval = Motion([first, -0.2 * first]), Interval.between(0.5, 0.6)
    w = motion.over(interval)
    w.origin, w.norm = Origin(), lambda norm: motion.norms(interval, norm)
    entrance = Entrance(form((30, 40), 2, 0.3, "r"))
    x = entrance.form
    x.radius = torch.full_like(x.centre, 0.5)
    x.ball = 0.2 * row_norms(x.radius)
    out = contract(F.linear, 40, x, w, None, 1)
    for s in (-1.0, 1.0):
        rho = at(w, s) * present(x.ball) / row_norms(at(w, s))
        rho = torch.minimum(torch.maximum(rho, -present(x.radius)), present(x.radius))
        left = (at(x, s) + rho) @ at(w, s).T - at(out, s)
        assert bool((left.abs() <= present(out.radius) * (1 + 1e-9)).all())
        for sign in (-1.0, 1.0):
            weights = sign * torch.eye(30, dtype=F64)  # of example i the output i, along whose row it strays
            entrance.back = torch.zeros_like(entrance.back)
            allowed = sum(contributions(out, weights).values())
            assert float((weights * left).sum() - (entrance.back * rho).sum()) <= allowed * (1 + 1e-9)


# -- the loss


LOSSES = {
    "mse": ("mse", torch.randn(10, 4, generator=torch.Generator().manual_seed(5), dtype=F64) * 1e3),
    "classes": ("cross_entropy", torch.arange(10) % 4),
    "weighted": (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2, 1.0], dtype=F64)), torch.arange(10) % 4),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), torch.arange(10) % 4),
    "ignored": (nn.CrossEntropyLoss(ignore_index=2), torch.arange(10) % 4),
    "probabilities": ("cross_entropy", 3 * torch.rand(10, 4, generator=torch.Generator().manual_seed(6), dtype=F64)),
    "two classes": ("bce_with_logits", torch.rand(10, 4, generator=torch.Generator().manual_seed(6), dtype=F64)),
    "huber": ("huber", torch.randn(10, 4, generator=torch.Generator().manual_seed(5), dtype=F64)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_the_curvature_of_a_loss(name, size):
    """Where all of a radius may be there, the sum of the losses is at most what the gradient and the curvature give."""
    loss, y = LOSSES[name]
    g = torch.Generator().manual_seed(7)
    objective = im.Objective(nn.Linear(5, 4).double(), loss, (blobs(10, (5,), 4)[0].double(), y))
    c, d, r = (torch.randn(10, 4, generator=g, dtype=F64) for _ in range(3))
    z = Form(c, 0.0 * d, size * r.abs(), -8, origin=Origin())
    found = followed_back(objective, z, y, (huge := torch.full((10,), 1e12, dtype=F64), huge))
    assert found is not None
    leaf = c.clone().requires_grad_()
    steep = torch.autograd.grad(objective.example_losses(leaf, y).sum(), leaf)[0].sign()
    for k in range(40):
        ends = 2.0 * torch.randint(0, 2, (10, 4), generator=g) - 1
        rho = (steep if k == 0 else ends) * present(z.radius)
        assert float(objective.example_losses(c + rho, y).sum()) <= float(found.losses[0].sum())


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, y = LOSSES[name]
    module = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    objective = im.Objective(module, loss, (blobs(10, (5,), 4)[0].double(), y))
    curve = im.Curve((random_params(module, 1), random_params(module, 2)))
    bounds = Bounds(objective, objective.program, curve.control)
    for start in (0.1, 0.4, 0.7):
        bound = bounds.over(start, start + 0.02, followed=True)
        top = max(objective.loss(curve.at(start + 0.02 * k / 20)) for k in range(21))
        assert top <= bound.loss < bounds.over(start, start + 0.02).loss


def test_roundings_cover_cancellation():
    """Two equal halves of a layer cancel to a tenth of a millionth of what they are; in float64 to nothing at all."""
    module = nn.Sequential(nn.Linear(1, 2, False), nn.ReLU(), nn.Linear(2, 2, False), nn.ReLU(), nn.Linear(2, 1, False))
    a = {"0.weight": torch.full((2, 1), 1e8), "2.weight": torch.eye(2) * 1e8, "4.weight": torch.tensor([[1.0, -1.0]])}
    b = {k: v * (1 + 1e-3) for k, v in a.items()}
    a, b = ({k: v.double() for k, v in p.items()} for p in (a, b))
    objective = im.Objective(module.double(), "mse", (torch.ones(3, 1, dtype=F64), torch.zeros(3, 1, dtype=F64)))
    bound = Bounds(objective, objective.program, (a, b)).over(0.0, 1.0, followed=True)
    assert bound.loss >= objective.loss(b)
    assert roundings(Form(torch.zeros(1), origin=Origin(terms=1000))) >= 4000 * 2.0**-53


# -- which model


def deep(widths: int = 8) -> tuple[im.Objective, im.Path]:
    layers = [nn.Linear(5, 12), *(m for _ in range(widths) for m in (nn.ReLU(), nn.Linear(12, 12))), nn.Linear(12, 4)]
    module = nn.Sequential(*layers).double()
    objective = im.Objective(module, data=blobs(20, (5,), 4))
    return objective, im.Path.through([random_params(module, 1), random_params(module, 2)])


def test_following_back_is_nearer_on_deep_networks_and_chosen():
    objective, path = deep()
    kernel = Kernel(objective, path)
    box, chord = (kernel.bound(0, 0.5, 0.5 + 1 / 256, m) for m in ("box", "chord"))
    ends = max(kernel.loss(0, 0.5), kernel.loss(0, 0.5 + 1 / 256))
    assert chord.loss - ends < 0.05 * (box.loss - ends)
    assert sum(chord.shares.values()) <= chord.loss
    found = im.certify(objective, path, 0.01, budget=1)
    predicted = {m: im.certify(objective, path, 0.01, model=m, budget=0.1).predicted for m in ("box", "chord")}
    assert found.model == min(predicted, key=lambda m: predicted[m])
    assert found.predicted == predicted[found.model]
    assert sum(found.sources.values()) == pytest.approx(1)
    assert set(found.sources) <= {n.where or n.base for n in objective.program.nodes}
    assert next(iter(found.sources.values())) == max(found.sources.values())
    with pytest.raises(im.InputError, match="box"):
        im.certify(objective, path, model="affine")
    for model in ("box", "chord"):
        proved = im.certify(objective, path, 0.05, model=model, budget=3)
        assert proved.model == model
        assert proved.proved
        assert proved.cost <= 3.5


def test_a_budget_that_will_not_do_is_told_before_it_is_spent():
    objective, path = deep()
    told = []
    im.certify(objective, path, 1e-6, budget=2, progress=lambda what, done, total: told.append((what, done)))
    first = next(k for k, (what, _) in enumerate(told) if what.startswith("bounding"))
    assert "profiles expected to bring the bound within 0.0001 %, the budget is 2" in told[first][0]
    assert told[first][1] == 0
