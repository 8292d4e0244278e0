from itertools import count, pairwise
from math import cos, pi
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.storage.state import FolderMemory
from isthmus.training.fit import Ended, Recipe, fit
from isthmus.training.memory import forget

x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
y = 3 * x - 1


def batch_loss(p, index):
    return (x[index] * p["w"] + p["b"] - y[index]).square().mean()


def full_loss(p):
    return float(batch_loss(p, torch.arange(40)))


def start():
    return {"w": torch.zeros(1, dtype=torch.float64), "b": torch.zeros(1, dtype=torch.float64)}


def run(recipe, **options):
    return fit(batch_loss, full_loss, start(), 40, recipe, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
def test_every_optimiser_solves_least_squares(optimizer):
    fitted = run(Recipe(optimizer, lr=0.05, steps=800, batch=10), target=1e-8)
    assert fitted.loss <= 1e-8
    assert fitted.ended is Ended.TARGET
    assert float(fitted.params["w"]) == pytest.approx(3, abs=1e-3)
    assert full_loss(fitted.params) == fitted.loss


def test_the_best_point_seen_is_returned_and_the_budget_is_kept():
    seen = []

    def recording(p):
        seen.append(full_loss(p))
        return seen[-1]

    fitted = fit(
        batch_loss, recording, start(), 40, Recipe("sgd", lr=0.9, steps=30, batch=4, check=1, schedule="constant"),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert fitted.loss == min(seen)
    assert fitted.steps == 30
    assert fitted.ended is Ended.BUDGET


def test_no_step_is_made_when_the_start_is_good_enough():
    fitted = run(Recipe(), target=100.0)
    assert fitted.steps == 0
    assert float(fitted.params["w"]) == 0


def test_a_loss_that_is_not_finite_ends_training_with_the_last_finite_weights():
    fitted = run(Recipe("sgd", lr=1e200, steps=50, batch=10))
    assert fitted.ended is Ended.NOT_FINITE
    assert all(bool(v.isfinite().all()) for v in fitted.params.values())


def test_the_start_is_not_written_to_and_seeds_repeat():
    one, two = (run(Recipe(lr=0.05, steps=50, batch=10)) for _ in range(2))
    assert torch.equal(one.params["w"], two.params["w"])
    assert float(start()["w"]) == 0


def test_progress_is_reported():
    calls = []
    run(Recipe(steps=20, batch=10), progress=lambda *c: calls.append(c), what="training")
    assert calls[-1] == ("training", 20, 20)
    assert len(calls) > 3


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "linear"},
        {"batch": 0},
        {"check": 0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"every": 5},
        {"schedule": "steps"},
        {"hold": 5},
        {"gamma": 0.0},
    ],
)
def test_bad_recipes_are_refused(bad):
    with pytest.raises(im.InputError):
        Recipe(**bad)


def test_schedules_move_the_learning_rate_as_they_say():
    """Plain SGD on a slope of 1: each step is the learning rate."""
    rates = {}
    for schedule in ("cosine", "halving", "steps", "constant"):
        seen: list[float] = []

        def full(p: dict, seen: list[float] = seen) -> float:
            seen.append(float(p["w"]))
            return -1.0 - seen[-1]

        fit(
            lambda p, index: -p["w"].sum(), full, {"w": torch.zeros((), dtype=torch.float64)}, 4,
            Recipe("sgd", lr=0.5, steps=20, batch=4, momentum=0.0, schedule=schedule, check=1,
                   **({"every": 5, "hold": 3, "gamma": 0.1} if schedule == "steps" else {})),
            generator=torch.Generator().manual_seed(0), target=-1e9,
        )  # fmt: skip
        rates[schedule] = [b - a for a, b in pairwise(seen)]
    assert rates["constant"] == pytest.approx([0.5] * 20)
    assert rates["halving"] == pytest.approx([0.5 * 0.5 ** (k // 2) for k in range(20)])
    assert rates["steps"] == pytest.approx([0.5 * 0.1 ** (max(0, k - 3) // 5) for k in range(20)])
    assert rates["cosine"] == pytest.approx([0.5 * (0.01 + 0.99 * (1 + cos(pi * k / 20)) / 2) for k in range(20)])


def _moved(losses: list[float], **recipe: Any) -> list[float]:
    """The steps of plain SGD on a slope of 1 whose checks find those losses."""
    seen, values = [0.0], iter(losses)
    fit(
        lambda p, index: -p["w"].sum(), lambda p: (seen.append(float(p["w"])), next(values))[1],
        {"w": torch.zeros((), dtype=torch.float64)}, 4,
        Recipe("sgd", lr=1.0, steps=len(losses) - 1, batch=4, check=1, **recipe),
        generator=torch.Generator().manual_seed(0), target=-1e9,
    )  # fmt: skip
    return [b - a for a, b in pairwise(seen[1:])]


def test_a_plateau_lowers_the_rate_after_ten_checks_without_a_lower_loss():
    steps = _moved([3.0, 2.0, *[2.0] * 11, 1.0, *[1.0] * 12], momentum=0.0, schedule="plateau", gamma=0.1)
    assert steps == pytest.approx([1.0] * 12 + [0.1] * 12 + [0.01])


def test_momentum_is_nesterovs_unless_the_recipe_says_not():
    assert _moved([1.0] * 3, momentum=0.5, schedule="constant") == pytest.approx([1.5, 1.75])
    assert _moved([1.0] * 3, momentum=0.5, schedule="constant", nesterov=False) == pytest.approx([1.0, 1.5])


class _StopError(Exception):
    pass


def bent(bends, stop=0, memory=forget):
    """Points by name; each step draws from the fit's own generator which of `bends` it trains."""
    generator, calls = torch.Generator().manual_seed(3), count(1)

    def loss(p, index):
        if next(calls) == stop:
            raise _StopError
        return batch_loss(p[bends[int(torch.randint(len(bends), (), generator=generator))]], index)

    points = {"one": start(), "two": {k: v + 1 for k, v in start().items()}}
    recipe = Recipe(lr=0.05, steps=40, batch=10, check=5, weight_decay=0.1, schedule="constant")
    full = lambda p: sum(full_loss(point) for point in p.values())
    return fit(loss, full, points, 40, recipe, generator=generator, memory=memory).params


def test_groups_of_parameters_go_on_to_the_same_bits(tmp_path):
    whole = bent(["one", "two"])
    with pytest.raises(_StopError):
        bent(["one", "two"], 23, FolderMemory(tmp_path, "me", steps=3))
    resumed = bent(["one", "two"], 0, FolderMemory(tmp_path, "me", steps=3))
    assert [list(point) for point in whole.values()] == [["w", "b"], ["w", "b"]]
    assert all(torch.equal(resumed[k][n], v) for k, point in whole.items() for n, v in point.items())


def test_a_group_that_no_batch_uses_stays():
    """Not even the weight decay moves it."""
    found = bent(["two"])
    assert float(found["one"]["w"]) == 0
    assert float(found["two"]["w"]) > 1
