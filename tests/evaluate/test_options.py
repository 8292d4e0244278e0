"""The options of ``profile``: screening in bfloat16, a tolerance, what becomes of running statistics."""

import json
import math
import sys

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.evaluate import batchnorm, screen
from isthmus.evaluate.profile import Barriers, beside_others
from isthmus.evaluate.refine import START, Samples, refine
from isthmus.paths import Curve
from tests.evaluate.networks import CASES, Case, ends, flops, objective_of
from tests.problems import convolutional, perceptron

PERCEPTRON, CONVNET = CASES[0], CASES[2]


def tensors(objective):
    x, y = objective.data
    assert isinstance(x, torch.Tensor)
    return x, y


# -- screening


def both(case, dtype=torch.float64, points=25, **options):
    a, b = ends(case, dtype)
    objective = objective_of(case, dtype, n=60)
    path = im.Path.through([a, b])
    return im.profile(objective, path, points), im.profile(objective, path, points, screen="bf16", **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.name != "recurrent"], ids=lambda c: c.name)
def test_what_is_reported_is_confirmed(case, dtype):
    exact, fast = both(case, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    ok = fast.confirmed
    assert ok[[0, -1, int(exact.loss.argmax())]].tolist() == [True] * 3
    assert fast.loss[ok].tolist() == pytest.approx(exact.loss[ok].tolist(), rel=tolerance)
    assert fast.error[ok].tolist() == exact.error[ok].tolist()
    for name in ("loss", "error"):
        for kind in ("max", "excess", "linear", "mean"):
            want = getattr(exact.barriers[name], kind)
            assert getattr(fast.barriers[name], kind) == pytest.approx(want, rel=1e-5, abs=1e-7), (name, kind)
    assert fast.screen == "bf16"
    assert exact.screen is None
    assert bool(exact.confirmed.all())


def test_the_other_points_keep_their_screened_values():
    exact, fast = both(PERCEPTRON)
    rest = ~fast.confirmed
    assert 5 < int(rest.sum()) < 25
    assert bool((fast.loss[rest] != exact.loss[rest]).all())
    assert float((fast.loss[rest] - exact.loss[rest]).abs().max()) < 0.05 * exact.max
    # none of them reaches a reported maximum, even with the margin
    assert bool((fast.loss[rest] + fast.margin["loss"] < fast.max).all())
    assert bool((fast.error[rest] + fast.margin["error"] < fast.barriers["error"].max).all())


def test_segments_that_cost_nothing_are_not_screened():
    a, b = ends(PERCEPTRON)
    last = {**a, "6.weight": b["6.weight"]}
    p = im.profile(objective_of(PERCEPTRON), im.Path.through([a, last, b]), 15, screen="bf16")
    assert bool(p.confirmed[:15].all())
    assert not bool(p.confirmed[15:].all())


def test_a_second_data_set_is_confirmed_too():
    a, b = ends(PERCEPTRON)
    objective = objective_of(PERCEPTRON, n=60)
    x, y = tensors(objective)
    test = objective.on((-x[:30], y[:30]))
    path = im.Path.through([a, b])
    exact, fast = (im.profile(objective, path, 25, test=test, screen=s) for s in (None, "bf16"))
    assert fast.test is not None
    assert exact.test is not None
    assert fast.test.max == pytest.approx(exact.test.max, rel=1e-12)
    assert fast.test.barriers["error"].max == exact.test.barriers["error"].max
    assert torch.equal(fast.test.confirmed, fast.confirmed)


def test_confirm_repeats_until_nothing_can_matter():
    """A screened value that is far too low at the top: the difference seen there widens the margin."""
    exact = torch.tensor([0.0, 1.0, 5.0, 4.8, 4.0, 1.0, 0.0])
    low = torch.tensor([0.0, 1.0, 4.7, 4.6, 4.0, 1.0, 0.0])
    filled, asked = low.clone(), []

    def measure(indices):
        asked.append(indices)
        filled[indices] = exact[indices]

    t = torch.linspace(0, 1, 7)
    ok, (margin,) = screen.confirm([low], t, torch.zeros(7, dtype=torch.bool), measure, [filled])
    assert ok.tolist() == [True, False, True, True, True, False, True]
    assert len(asked) > 1
    assert margin == pytest.approx(screen.TIMES * 0.3 + screen.SHARE * 5)


def test_auto_asks_the_machine(monkeypatch):
    a, b = ends(PERCEPTRON)
    objective, path = objective_of(PERCEPTRON), im.Path.through([a, b])
    for pays in (True, False):
        # the package's name `profile` is the function, so the module is found by its full name
        monkeypatch.setattr(sys.modules["isthmus.evaluate.profile"], "bf16_pays", lambda *_, pays=pays: pays)
        assert im.profile(objective, path, 9, screen="auto").screen == ("bf16" if pays else None)
    assert screen.bf16_pays(objective, a) in (True, False)
    assert not screen.bf16_pays(objective_of(CASES[5]), ends(CASES[5])[0])  # no program, no gain to be had


# -- a tolerance


def bump(t, centre, width):
    return math.exp(-(((t - centre) / width) ** 2))


HARD = {
    "narrow": lambda t: bump(t, 0.37, 0.08),
    "two peaks": lambda t: bump(t, 0.2, 0.1) + 1.001 * bump(t, 0.81, 0.07),
    "flat": lambda t: 1.0,
    "line": lambda t: 3 * t,
    "valley": lambda t: (t - 0.4) ** 2,
    "kink": lambda t: 1 - abs(t - 0.3141),
    "oscillating": lambda t: math.sin(9 * t) + 0.5 * math.sin(17 * t + 1),
}


@pytest.mark.parametrize("f", HARD.values(), ids=HARD)
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_refinement_reaches_the_maximum_with_few_evaluations(f, tol):
    calls = []

    def measure(t):
        calls.append(t)
        return f(t)

    ts = [k / (START - 1) for k in range(START)]
    samples = Samples(ts, [f(t) for t in ts])
    best = refine(samples, -math.inf, tol, measure)
    dense = [f(k / 100_000) for k in range(100_001)]
    assert best <= max(dense) + 1e-8
    assert max(dense) - best <= tol
    assert samples.highest()[1] <= best + tol
    # a uniform grid needs a step of sqrt(8 tol / max|f''|) for a smooth f, or about 2 tol for the kink
    bend = max(abs(dense[k - 100] - 2 * dense[k] + dense[k + 100]) / 1e-6 for k in range(100, 99_900, 50))
    uniform = 1 / math.sqrt(8 * tol / bend) if bend > 1e-6 else 1
    assert len(calls) + START <= max(2.5 * START, 0.75 * uniform)


def test_a_surprise_is_counted_and_raises_the_estimate():
    samples = Samples([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.1, 0.0, 0.0])
    before = samples.bend(0)
    samples.add(0, 5.0)
    assert samples.surprises == 1
    assert samples.safety == 4.0
    assert samples.bend(0) > before


def test_values_elsewhere_save_work():
    calls = []
    samples = Samples([k / 8 for k in range(9)], [bump(k / 8, 0.37, 0.2) for k in range(9)])
    assert refine(samples, 10.0, 1e-9, lambda t: calls.append(t) or 0.0) == 10.0
    assert calls == []


def trained(case, seed):
    """Weights of low loss, by a few steps of gradient descent: the line between two of them has a barrier."""
    objective = objective_of(case, n=60)
    p = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in ends(case, count=seed)[-1].items()}
    optimizer = torch.optim.Adam(list(p.values()), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        objective.batch_loss(p, torch.arange(60)).backward()
        optimizer.step()
    return objective, {k: v.detach() for k, v in p.items()}


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_a_profile_to_a_tolerance(tol):
    (objective, a), (_, b) = trained(PERCEPTRON, 1), trained(PERCEPTRON, 2)
    path = im.Path.through([a, b])
    p = im.profile(objective, path, tol=tol)
    dense = im.profile(objective, path, 4001)
    assert p.excess > 0.1  # there is something to find
    assert 0 <= dense.max - p.max <= tol
    assert p.within <= tol
    assert p.tol == tol
    assert len(p.t) < 60
    assert bool((p.t.diff() > 0).all())
    assert p.loss.tolist() == pytest.approx([objective.loss(path.at(float(t))) for t in p.t], rel=1e-12)
    assert p.error.tolist() == [objective.error(path.at(float(t))) for t in p.t]


def test_segments_that_cannot_rise_get_their_ends_only():
    a, b = ends(PERCEPTRON)
    last = {**a, "6.weight": b["6.weight"]}
    objective = objective_of(PERCEPTRON)
    test = objective.subset(7)
    p = im.profile(objective, im.Path.through([a, last, a, b]), tol=1e-3, test=test)
    assert p.segment.tolist()[:3] == [0, 0, 1]
    assert int((p.segment == 2).sum()) >= START - 1
    path = im.Path.through([a, last, a, b])
    assert p.test is not None
    assert p.test.loss.tolist() == pytest.approx([test.loss(path.at(float(t))) for t in p.t], rel=1e-12)
    # a closed Bezier curve of the last layer is polynomial in t: its ends do not bound it
    loop = Curve((a, last, a))
    assert len(im.profile(objective, im.Path((loop,)), tol=1e-3).t) > 2
    # and a penalty on an unchanged Bezier segment is not constant
    dead = {**a, "6.weight": torch.zeros_like(b["6.weight"])}
    loop = Curve((dead, {**dead, "2.weight": -9 * a["2.weight"]}, dead))
    ridge = objective_of(PERCEPTRON, penalty=im.Ridge(1.0))
    p = im.profile(ridge, im.Path((loop,)), tol=1e-3)
    assert p.max > float(p.loss[0]) + 1


def test_a_path_that_is_not_finite_ends_without_an_estimate():
    a, b = ends(PERCEPTRON)
    b = {**b, "2.weight": torch.full_like(b["2.weight"], float("nan"))}
    p = im.profile(objective_of(PERCEPTRON), im.Path.through([a, b]), tol=1e-3)
    assert p.max != p.max


# -- running statistics


def bn_path(count=2):
    return objective_of(CONVNET, n=40), im.Path.through(ends(CONVNET, count=count))


def slow_statistics(module, params, batches):
    """Averages of the batch statistics, the way torch itself accumulates them."""
    module = module.double()
    module.load_state_dict(params)
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.reset_running_stats()
    norm.momentum = None
    module.train()
    with torch.no_grad():
        for x in batches:
            module(x)
    return norm.running_mean.clone(), norm.running_var.clone()


def test_interpolated_statistics_are_those_of_the_path():
    objective, path = bn_path()
    p = im.profile(objective, path, 5, bn="interpolate")
    assert p.bn == "interpolate"
    assert p.loss.tolist() == pytest.approx([objective.loss(path.at(float(t))) for t in p.t], rel=1e-12)


def test_kept_statistics_are_those_of_the_start():
    objective, path = bn_path(3)
    p = im.profile(objective, path, 5, bn="keep")
    kept = {k: v for k, v in path.start.items() if "running" in k}
    assert p.bn == "keep"
    assert p.loss.tolist() == pytest.approx([objective.loss({**path.at(float(t)), **kept}) for t in p.t], rel=1e-12)
    assert p.max != im.profile(objective, path, 5, bn="interpolate").max


def test_recomputed_statistics_are_those_of_fixed_batches(monkeypatch):
    monkeypatch.setattr(batchnorm, "BATCH", 10)
    objective, path = bn_path()
    x, _ = tensors(objective)
    test = objective.subset(9)
    p = im.profile(objective, path, 4, test=test)
    assert p.test is not None
    assert p.bn == p.test.bn == "recompute"
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for t, loss, other in zip(p.t, p.loss, p.test.loss, strict=True):
        params = path.at(float(t))
        mean, var = slow_statistics(CONVNET.module(), params, [x[i] for i in order.split(10)])
        fresh = {**params, "4.running_mean": mean, "4.running_var": var}
        assert float(loss) == pytest.approx(objective.loss(fresh), rel=1e-9)
        assert float(other) == pytest.approx(test.loss(fresh), rel=1e-9)
    assert torch.equal(im.profile(objective, path, 4, bn="recompute").loss, p.loss)  # the batches are fixed


def test_statistics_are_part_of_a_construction(tmp_path):
    p = convolutional()
    file = tmp_path / "path.safetensors"
    found = im.connect(p.objective, p.a, p.b, im.Dropout(masks=2))
    im.save(found, file)
    again = im.load_connection(file)
    for path in (found, found.path, found.path.reversed(), again, again.path):
        measured = im.profile(p.objective, path, 5)
        assert measured.bn == "interpolate"
        assert measured.max <= im.certify(p.objective, path).bound
    assert im.profile(p.objective, str(file), 5).bn == "interpolate"
    assert im.profile(p.objective, found, 5, bn="recompute").bn == "recompute"
    assert im.profile(p.objective, im.connect(p.objective, p.a, p.b), 5).bn == "recompute"
    a, b = ends(PERCEPTRON)
    assert "bn" not in im.connect(objective_of(PERCEPTRON), a, b, im.Dropout(masks=2)).stats


def test_other_policies_stand_beside():
    objective, path = bn_path(3)
    test = objective.subset(9)
    found = beside_others(im.profile(objective, path, 4, test=test), objective, path, test=test)
    assert set(found.beside) == {"interpolate", "keep"}
    for policy, other in found.beside.items():
        alone = im.profile(objective, path, 4, bn=policy, test=test)
        assert other.test is not None
        assert alone.test is not None
        assert torch.equal(other.loss, alone.loss)
        assert torch.equal(other.test.loss, alone.test.loss)
    stored, kept = json.loads(json.dumps(found.to_dict()))["beside"]["keep"], found.beside["keep"]
    assert kept.test is not None
    assert stored["loss"] == kept.loss.tolist()
    assert stored["test"]["barriers"]["loss"]["max"] == kept.test.max
    with pytest.raises(im.InputError, match="on a grid"):
        beside_others(im.profile(objective, path, tol=0.1), objective, path)


def test_recomputing_writes_into_nothing_of_the_users():
    module = CONVNET.module().double().eval()
    a, b = ends(CONVNET)
    objective = im.Objective(module, data=objective_of(CONVNET, n=40).data)
    before = [{k: v.clone() for k, v in p.items()} for p in (module.state_dict(), a, b)]
    im.profile(objective, im.Path.through([a, b]), 3, bn="recompute")
    for p, q in zip((module.state_dict(), a, b), before, strict=True):
        assert all(torch.equal(p[k], q[k]) for k in p)
    assert not any(m.training for m in module.modules())
    assert objective.loss(a) == pytest.approx(objective_of(CONVNET, n=40).loss(a), rel=1e-12)


def test_refusals_and_networks_without_statistics():
    objective, path = bn_path()
    with pytest.raises(im.UnsupportedError, match="running statistics"):
        im.profile(objective, path, 3, bn="error")
    with pytest.raises(im.InputError, match="bn"):
        im.profile(objective, path, 3, bn="freeze")
    a, b = ends(PERCEPTRON)
    p = im.profile(objective_of(PERCEPTRON), im.Path.through([a, b]), 3, bn="error")
    assert p.bn == "none"
    for wrong, what in (
        ({"tol": 0.0}, "tol"),
        ({"screen": "fp8"}, "screen"),
        ({"tol": 1.0, "screen": "bf16"}, "screen"),
    ):
        with pytest.raises(im.InputError, match=what):
            im.profile(objective, path, 3, **wrong)  # type: ignore[arg-type]


def test_a_refreshed_segment_is_a_segment():
    objective, path = bn_path()
    (segment,), _ = batchnorm.segments_under(objective, path, "recompute")
    left, right = segment.split(0.5)
    for p, q in ((left.end, right.start), (segment.reversed().at(0.25), segment.at(0.75))):
        assert all(torch.allclose(v, q[k], rtol=1e-12, atol=1e-14) for k, v in p.items())
    few = [{k: v for k, v in p.items() if "running" not in k} for p in (path.start, path.end)]
    assert segment.length == pytest.approx(im.Path.through(few).length)


# -- storage


def test_the_options_are_stored():
    a, b = ends(PERCEPTRON)
    objective, path = objective_of(PERCEPTRON), im.Path.through([a, b])
    stored = json.loads(json.dumps(im.profile(objective, path, 9, screen="bf16").to_dict()))
    assert (stored["screen"], len(stored["confirmed"]), set(stored["margin"])) == ("bf16", 9, {"loss", "error"})
    stored = json.loads(json.dumps(im.profile(objective, path, tol=0.01).to_dict()))
    assert (stored["tol"], stored["bn"]) == (0.01, "none")
    assert 0 <= stored["within"] <= 0.01


def test_a_profile_made_by_hand_is_confirmed():
    t = torch.linspace(0, 1, 3)
    p = im.Profile(t, torch.zeros(3), t, t, 3)
    assert p.confirmed.tolist() == [True] * 3
    assert p.barriers["loss"] == Barriers.of(t, t)


def test_an_adaptive_profile_needs_fewer_passes():
    case = Case("wide", lambda: perceptron([5, 40, 40, 4]), (5,))
    objective, a = trained(case, 1)
    _, b = trained(case, 2)
    path = im.Path.through([a, b])
    im.profile(objective, path, 2)
    dense = flops(lambda: im.profile(objective, path, 400))
    assert flops(lambda: im.profile(objective, path, tol=1e-3)) < 0.2 * dense
