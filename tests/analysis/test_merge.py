"""Merged weights against their formulas, and what is said of what came out."""

from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.errors import InputError
from tests.analysis.test_barrier import normed, pair

T = torch.tensor


def params(*values):
    return {"w": torch.tensor(values, dtype=torch.float64), "count": torch.tensor(3)}


def merged(models, method: Any = "average", at=None, **options):
    return im.merge(None, models, method, at, **options).params["w"].tolist()


def test_averages_and_points_between():
    a, b, c = params(1.0, 2.0), params(3.0, 0.0), params(5.0, 4.0)
    assert merged([a, b]) == [2, 1]
    assert merged([a, b, c]) == [3, 2]
    assert merged([a, b], at=0.25) == [1.5, 1.5]
    assert merged([a, b, c], weights=[2, 1, 1]) == [2.5, 2]
    assert im.merge(None, [a, b]).params["count"] is a["count"]
    assert im.merge(None, [a, b]).at == 0.5
    assert im.merge(None, [a, b, c]).weights == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize("method", ["average", "slerp", "task", "ties"])
def test_a_mask_of_infinities_stays_and_others_are_refused(method):
    mask = T([0.0, -torch.inf])
    a, b, base = (params(v) | {"mask": mask.clone()} for v in (2.0, 6.0, 1.0))
    start = base if method in ("task", "ties") else None
    found = im.merge(None, [a, b], method, base=start).params
    assert found["mask"].tolist() == mask.tolist()
    assert found["w"].isfinite().all()
    for odd in (-torch.inf, torch.nan):
        with pytest.raises(InputError, match=r"models\[1\]\['mask'\]"):
            im.merge(None, [a | {"mask": T([0.0, 0.0])}, b | {"mask": T([0.0, odd])}], method, base=start)


def test_slerp_is_on_the_great_circle():
    a, b = params(2.0, 0.0), params(0.0, 2.0)
    t = 0.3
    angle = torch.pi / 2
    want = [2 * torch.sin(T((1 - t) * angle)).item(), 2 * torch.sin(T(t * angle)).item()]
    assert merged([a, b], "slerp", t) == pytest.approx(want)
    assert merged([a, params(4.0, 0.0)], "slerp", 0.5) == pytest.approx([3, 0])
    assert merged([params(0.0, 0.0), b], "slerp", 0.5) == pytest.approx([0, 1])
    assert merged([a, b], "slerp", 0.0) == [2, 0]


def test_task_arithmetic_and_ties():
    base = params(1.0, 1.0, 1.0, 1.0)
    a, b = params(2.0, 5.0, 1.0, 0.0), params(3.0, -2.0, 1.0, 1.0)
    assert merged([a, b], "task", base=base) == pytest.approx([4, 2, 1, 0])
    assert merged([a, b], "task", base=base, weights=[0.5, 1], scale=2) == pytest.approx([6, -1, 1, 0])
    # moves (1, 4, 0, -1) and (2, -3, 0, 0); half of them kept: (1, 4, ., .) or (., 4, ., -1), and (2, -3)
    every = merged([a, b], "ties", base=base, density=1.0)
    assert every == pytest.approx([1 + 1.5, 1 + 4, 1, 0])
    one = merged([a, b], "ties", base=base, density=0.25)
    assert one == pytest.approx([1, 1 + 4, 1, 1])
    weighted = merged([a, b], "ties", base=base, density=1.0, weights=[1, 3], scale=0.5)
    assert weighted == pytest.approx([1 + 0.5 * (1 + 6) / 4, 1 - 0.5 * 3, 1, 1 - 0.5])


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("mean", {}, "method: expected one of average, slerp"),
        ("average", {"density": 0.5}, "density: expected a number in .*, for ties"),
        ("average", {"scale": 2.0}, "scale: expected .*, for task and ties"),
        ("average", {"base": params(1.0, 1.0)}, "base: expected None for average"),
        ("ties", {}, "base: expected the network that all began from"),
        ("average", {"at": 0.5, "weights": [1, 2]}, "at: expected a number in"),
        ("average", {"at": 1.5}, "at: expected a number in"),
        ("ties", {"base": params(1.0, 1.0), "density": 0.0}, "density: expected a number in"),
        ("task", {"base": params(1.0, 1.0), "scale": float("nan")}, "scale: expected a finite number"),
        ("average", {"weights": [1, -1]}, "weights: expected 2 numbers"),
        ("slerp", {"weights": [1, 2]}, "models: expected two networks"),
        ("aligned-average", {}, "objective: expected one"),
    ],
)
def test_options_that_do_not_fit_are_refused(method, options, said):
    with pytest.raises(InputError, match=said):
        im.merge(None, [params(1.0, 2.0), params(2.0, 1.0)], method, **options)


def test_networks_that_do_not_fit_are_refused():
    a = params(1.0)
    for models, said in (
        ([a], "two or more"),
        ([a, {"w": torch.ones(2, dtype=torch.float64), "count": a["count"]}], "shape"),
        ([a, params(float("nan"))], "finite"),
        (["x.pt", "y.pt"], "state_dicts without an objective"),
    ):
        with pytest.raises(InputError, match=said):
            im.merge(None, models)
    waves = [{"w": torch.tensor([v + 1j])} for v in (1.0, 2.0, 4.0)]
    with pytest.raises(InputError, match="real weights for ties"):
        im.merge(None, waves[:2], "ties", base=waves[2])


def test_a_network_without_a_loss_has_no_level():
    p = pair()
    bad = {k: v * 1e200 for k, v in p.a.items()}
    for models in ([p.a, bad], [bad, p.a]):
        made = im.merge(p.objective, models, at=0.0 if models[0] is p.a else 1.0)
        assert made.worth["training data"].level != made.worth["training data"].level
        assert not made.ok
        assert f"the loss of network {int(models[1] is bad)} is not finite" in made.why


def test_statistics_need_two_examples():
    p = normed()
    one = p.objective.subset(1)
    for made in (
        lambda: im.merge(one, [p.a, p.b], "slerp"),
        lambda: im.block_barriers(one, p.a, p.b),
        lambda: im.barrier(one, p.a, p.b),
    ):
        with pytest.raises(InputError, match="at least 2 examples, to compute statistics"):
            made()


def test_the_best_point_is_found_and_judged():
    p = pair()
    again = im.merge(p.objective, [p.a, p.b])
    losses = [p.objective.loss({k: torch.lerp(v, p.b[k], i / 8) for k, v in p.a.items()}) for i in range(9)]
    assert again.at == losses.index(min(losses)) / 8
    assert again.ok
    assert f"No point between is better than network {again.at:g}" in again.why  # one of the ends, as these are apart
    given = im.merge(p.objective, [p.a, p.b], at=again.at)
    assert "No point between" not in given.why  # none was looked at
    bad = im.merge(p.objective, [p.a, p.b], at=0.5, test=p.objective.subset(30), level=0.9)
    worth = bad.worth["training data"]
    assert worth.loss == pytest.approx(losses[4], rel=1e-12)
    assert (bad.ok, worth.below, worth.level) == (False, False, 0.9)
    assert bad.ends["training data"] == pytest.approx((losses[0], losses[8]))
    assert set(bad.worth) == {"training data", "held-out data"}
    good = im.merge(p.objective, [p.a, p.b], "aligned-average", 0.5, level="20x")
    assert good.ok
    assert good.worth["training data"].loss < 0.2 * losses[4]
    assert im.merge(None, [p.a, p.b]).ok is None
    equal = im.merge(p.objective, [p.a, p.b], weights=[1, 1])
    assert (equal.at, equal.weights) == (None, (0.5, 0.5))
    assert equal.worth["training data"].loss == pytest.approx(losses[4], rel=1e-12)


def test_the_best_point_is_that_of_held_out_data():
    module = torch.nn.Linear(1, 1, bias=False).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    train, test = (im.Objective(module, "mse", (x, torch.full_like(x, y))) for y in (0.25, 0.75))
    ends = [{"weight": torch.full((1, 1), w, dtype=torch.float64)} for w in (0.0, 1.0)]
    assert im.merge(train, ends).at == 0.25
    assert im.merge(train, ends, test=test).at == 0.75


def test_statistics_are_computed_again_or_kept_as_asked():
    p = normed()
    names = [k for k in p.a if "running" in k]
    plain = im.merge(p.objective, [p.a, p.b], at=0.5, bn="interpolate").params
    for k in names:
        torch.testing.assert_close(plain[k], (p.a[k] + p.b[k]) / 2)
    fresh = im.merge(p.objective, [p.a, p.b], at=0.5)
    assert fresh.bn == "recompute"
    assert not torch.allclose(fresh.params[names[0]], plain[names[0]])
    kept = im.merge(p.objective, [p.a, p.b], at=0.5, bn="keep").params
    assert all(torch.equal(kept[k], p.a[k]) for k in names)
    task = im.merge(p.objective, [p.a, p.b], "task", base=p.a, bn="interpolate").params
    torch.testing.assert_close(task[names[0]], (p.a[names[0]] + p.b[names[0]]) / 2)
    torch.testing.assert_close(task["0.weight"], p.b["0.weight"])


def test_statistics_move_by_the_weights_of_an_average():
    """A network that weighs all is itself, with its own statistics."""
    p = normed()
    still = [k for k in p.a if "running" in k]
    one = im.merge(p.objective, [p.a, p.b], weights=[1.0, 0.0], bn="interpolate")
    assert one.worth["training data"].loss == pytest.approx(p.objective.loss(p.a), rel=1e-12)
    found = im.merge(p.objective, [p.a, p.b, p.a], weights=[1.0, 3.0, 4.0], bn="interpolate").params
    assert all(torch.allclose(found[k], torch.lerp(p.a[k], p.b[k], 3 / 8)) for k in still)


def test_tied_tensors_stay_one():
    w, v = (torch.tensor([k]) for k in (1.0, 3.0))
    made = im.merge(None, [{"a": w, "b": w}, {"a": v, "b": v}]).params
    assert made["a"] is made["b"]


def test_tied_tensors_are_two_where_those_of_the_base_are():
    one, two = (torch.tensor([v]) for v in (3.0, 5.0))
    base = {"w": torch.tensor([1.0]), "v": torch.tensor([100.0])}
    merged = im.merge(None, [{"w": one, "v": one}, {"w": two, "v": two}], "task", base=base).params
    assert [float(merged[k]) for k in "wv"] == [1 + 2 + 4, 100 - 97 - 95]
    tied = im.merge(None, [{"w": one, "v": one}, {"w": two, "v": two}], "task", base={"w": one, "v": one}).params
    assert tied["w"] is tied["v"]
