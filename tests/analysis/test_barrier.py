"""Barriers as numbers: their definitions, where they sit, and who carries them."""

from dataclasses import replace
from math import isnan
from typing import Any

import pytest
import torch

import isthmus as im
from isthmus.errors import InputError, UnsupportedError
from isthmus.structure.blocks import blocks_of
from tests.problems import Problem, made_once, perceptron, random_params, small_convnet


@made_once
def pair() -> Problem:
    """A network that is right on its data, and a noisy renumbering of it, far away by the straight line."""
    module = perceptron([5, 7, 6, 3]).double()
    a = random_params(module, 1)
    a["4.weight"] *= 4
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module.load_state_dict(a)
    objective = im.Objective(module, data=(x, module(x).argmax(1)))
    noise = random_params(module, 2)
    near = {k: v + 0.05 * noise[k] for k, v in a.items()}
    b = objective.structure.permute(near, {"0": [3, 4, 5, 6, 0, 1, 2], "2": [2, 5, 0, 1, 3, 4]})
    return Problem("pair", objective, a, b)


@made_once
def normed() -> Problem:
    module = small_convnet().double().eval()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 1, 8, 8, generator=g, dtype=torch.float64)
    objective = im.Objective(module, data=(x, torch.randint(0, 4, (40,), generator=g)))
    return Problem("normed", objective, random_params(module, 1), random_params(module, 2))


def by_hand(p, definition, points=25):
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    losses = [p.objective.loss({k: torch.lerp(v, p.b[k], float(s)) for k, v in p.a.items()}) for s in t]
    floors = {
        "excess": [max(losses[0], losses[-1])] * points,
        "mean": [(losses[0] + losses[-1]) / 2] * points,
        "linear": [(1 - float(s)) * losses[0] + float(s) * losses[-1] for s in t],
        "max": [0.0] * points,
    }
    above = [loss - floor for loss, floor in zip(losses, floors[definition], strict=True)]
    return max(above), float(t[above.index(max(above))])


@pytest.mark.parametrize("definition", ["excess", "linear", "mean", "max"])
def test_a_barrier_is_what_its_definition_says(definition):
    p = pair()
    found = im.barrier(p.objective, p.a, p.b, definition)
    value, t = by_hand(p, definition)
    assert float(found) == pytest.approx(value, rel=1e-12)
    assert found.t == pytest.approx(t)
    assert found.ends == pytest.approx((p.objective.loss(p.a), p.objective.loss(p.b)), rel=1e-12)
    assert str(found).startswith(f"{definition} barrier {value:.4g}")


def test_held_out_numbers_and_their_interval_stand_beside():
    p = pair()
    found = im.barrier(p.objective, p.a, p.b, test=p.objective.subset(30))
    assert found.test is not None
    assert found.test.interval is not None
    assert float(found.test) == pytest.approx(by_hand(replace(p, objective=p.objective.subset(30)), "excess")[0])
    assert found.test.interval.lo <= float(found.test) <= found.test.interval.hi
    assert found.interval is None  # of training data
    mean = im.barrier(p.objective, p.a, p.b, "mean", test=p.objective.subset(30)).test
    assert mean is not None
    assert mean.interval is None
    wrong: Any = "height"
    with pytest.raises(InputError, match="one of excess, linear, mean, max"):
        im.barrier(p.objective, p.a, p.b, wrong)


def test_other_methods_have_barriers_too():
    p = pair()
    found = im.barrier(p.objective, p.a, p.b, method=im.Aligned())
    assert float(found) < 0.1 < 1 < float(im.barrier(p.objective, p.a, p.b))
    assert found.method["name"] == "Aligned"


def test_a_matrix_is_symmetric_and_named():
    p = pair()
    models = [p.a, p.b, p.a]
    found = im.barrier_matrix(p.objective, models, num_points=5, names=["x", "y", "z"], test=p.objective.subset(20))
    assert torch.equal(found.values, found.values.T)
    assert found.values.diagonal().tolist() == [0, 0, 0]
    assert float(found.values[0, 2]) == 0
    assert float(found[1, 0]) == float(found.values[0, 1]) == pytest.approx(by_hand(p, "excess", 5)[0])
    assert found.max == float(found.values.max())
    assert found.test is not None
    assert "x" in found._repr_html_()
    bad = im.barrier_matrix(p.objective, [*models[:2], {k: v * 1e200 for k, v in p.a.items()}], num_points=3)
    assert bad.max != bad.max
    losses = im.barrier_matrix(p.objective, models, "max", num_points=3).values
    assert losses.diagonal().tolist() == pytest.approx([p.objective.loss(m) for m in models])
    with pytest.raises(InputError, match="names: expected 3 names, got 1"):
        im.barrier_matrix(p.objective, models, names=["x"])
    with pytest.raises(InputError, match="two different numbers from 0 to 2"):
        found[1, 1]


def test_each_block_moves_alone_and_with_those_before_it():
    p = pair()
    found = im.block_barriers(p.objective, p.a, p.b, ts=(0.25, 1.0))
    top = max(p.objective.loss(p.a), p.objective.loss(p.b))
    for i, row in enumerate(found.rows):
        own = {k for k in p.a if k.startswith(f"{row.name}.")}
        alone = {
            t: p.objective.loss({k: torch.lerp(v, p.b[k], t) if k in own else v for k, v in p.a.items()})
            for t in (0.25, 1.0)
        }
        assert row.alone == pytest.approx(max(alone.values()) - top, abs=1e-12)
        assert row.t == max(alone, key=alone.__getitem__)
        through = {k for r in found.rows[: i + 1] for k in p.a if k.startswith(f"{r.name}.")}
        mixed = {k: p.b[k] if k in through else v for k, v in p.a.items()}
        assert row.through == pytest.approx(p.objective.loss(mixed) - top, abs=1e-12)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.parameters for row in found.rows) == sum(v.numel() for v in p.a.values())
    assert found.highest.alone == max(row.alone for row in found.rows)
    assert found["2"] is found.rows[1]
    with pytest.raises(InputError, match="no tensor 'x'"):
        im.block_barriers(p.objective, p.a, p.b, blocks={"all": ["x"]})
    with pytest.raises(InputError, match="one name twice"):
        im.block_barriers(p.objective, p.a, p.b, blocks={"a": ["0.weight"], "b": ["0.weight"]})


def test_statistics_of_blocks_are_computed_again():
    p = normed()
    again, moved = (im.block_barriers(p.objective, p.a, p.b, bn=bn) for bn in ("recompute", "interpolate"))
    assert again.bn == "recompute"
    assert again["4"].alone != pytest.approx(moved["4"].alone)
    assert moved.rows[-1].through == pytest.approx(p.objective.loss(p.b) - max(moved.ends), abs=1e-12)


@pytest.mark.parametrize("bn", ["recompute", "interpolate", "keep"])
def test_a_block_of_everything_is_the_line_of_a_profile(bn):
    """Under every policy of the statistics, at the ends too."""
    p = normed()
    line = im.profile(p.objective, im.Path.through([p.a, p.b]), 5, bn=bn).loss
    found = im.block_barriers(p.objective, p.a, p.b, blocks={"all": list(p.a)}, ts=(0.5,), bn=bn)
    assert found.bn == bn
    assert found.ends == pytest.approx((float(line[0]), float(line[-1])), rel=1e-12)
    assert found["all"].alone == pytest.approx(float(line[2]) - max(found.ends), abs=1e-12)
    assert found["all"].through == pytest.approx(float(line[-1]) - max(found.ends), abs=1e-12)


def test_blocks_are_told_from_names():
    names = ["embed.weight", "layers.0.a.weight", "layers.0.b.0.bias", "layers.11.a.weight", "norm.weight"]
    assert blocks_of(names) == {
        "embed": names[:1], "layers.0": names[1:3], "layers.11": names[3:4], "norm": names[4:]
    }  # fmt: skip
    assert list(blocks_of(["fc1.weight", "fc1.bias", "fc2.weight"])) == ["fc1", "fc2"]
    assert list(blocks_of(["weight", "bias"])) == ["weight", "bias"]
    assert list(blocks_of(["net.0.1.weight", "net.0.2.weight", "net.0.5.bias"])) == ["net.0.1", "net.0.2", "net.0.5"]


@pytest.mark.parametrize("penalty", [None, im.Ridge(0.01)])
def test_what_examples_add_is_the_barrier(penalty):
    p = pair()
    objective = im.Objective(p.objective.skeleton, data=p.objective.data, penalty=penalty, dtype=torch.float64)
    line = im.connect(objective, p.a, p.b)
    found = im.contributions(objective, line)
    excess = im.profile(objective, line, 25).excess
    assert float(found.each.sum()) + found.penalty == pytest.approx(excess, abs=1e-10)
    assert found.value == pytest.approx(excess, abs=1e-10)
    assert (found.penalty != 0) == (penalty is not None)
    assert sum(found.by_class().values()) == pytest.approx(float(found.each.sum()), abs=1e-10)
    index, value = found.top(1)[0]
    end = {0.0: p.a, 1.0: p.b}[found.end]
    middle = {k: torch.lerp(v, p.b[k], found.t) for k, v in p.a.items()}
    assert value == pytest.approx(float((objective.losses(middle) - objective.losses(end))[index] / 60))
    summed = found.each.sort(descending=True).values.cumsum(0)
    assert summed[round(found.half * 60) - 1] >= float(found.each.sum()) / 2
    with pytest.raises(InputError, match=r"a number in \[0, 1\]"):
        im.contributions(objective, line, 1.5)


def test_an_ignored_label_is_no_class():
    p = pair()
    x, y = p.objective.data
    objective = im.Objective(p.objective.skeleton, data=(x, torch.where(y == 1, 7, y)), ignore_index=7)
    found = im.contributions(objective, im.Path.through([p.a, p.b]), 0.5)
    assert set(found.by_class()) == {0, 2}
    assert sum(found.by_class().values()) == pytest.approx(found.value, abs=1e-12)


def test_examples_are_needed_to_tell_what_they_add():
    p = pair()
    numbers = im.Objective(
        perceptron([5, 7, 6, 3]).double(), evaluate=lambda params: {"loss": p.objective.loss(params)}
    )
    with pytest.raises(UnsupportedError):
        im.contributions(numbers, im.Path.through([p.a, p.b]), 0.5)


def test_task_vectors_against_their_base():
    p = normed()
    g = torch.Generator().manual_seed(0)
    step = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in p.a.items() if v.is_floating_point()}
    near = {k: v + step[k] if k in step else v for k, v in p.a.items()}
    back = {k: v - 2 * step[k] if k in step else v + 5 for k, v in p.a.items()}  # a counter, which is no weight
    found = im.task_vectors(p.a, [near, back, p.a])
    norm = sum(float(v.square().sum()) for v in step.values()) ** 0.5
    assert found.norms.tolist() == pytest.approx([norm, 2 * norm, 0])
    assert found.cosines[0].tolist() == pytest.approx([1, -1, 0])
    assert found.signs[0].tolist() == [1, 0, 1]
    assert found.relative[0] == pytest.approx(
        norm / sum(float(v.double().square().sum()) for k, v in p.a.items() if k in step) ** 0.5
    )
    nothing = {k: torch.zeros_like(v) for k, v in p.a.items()}
    assert im.task_vectors(
        nothing, [step | {k: v for k, v in p.a.items() if k not in step}, nothing]
    ).relative.tolist() == [
        float("inf"),
        0,
    ]
    with pytest.raises(InputError):
        im.task_vectors(p.a, [{"0.weight": p.a["0.weight"]}])


def test_the_largest_of_several_lines_is_no_number_where_one_is_not():
    p = pair()
    objective = p.objective.cast(torch.float32)
    a, b, far = ({k: (v * s).float() for k, v in q.items()} for q, s in ((p.a, 1), (p.b, 1), (p.a, 1e30)))
    for models in ([a, b, far], [far, a, b]):
        found = im.StraightLines.between(objective, models, num_points=3)
        assert sum(map(isnan, found.excesses)) == 2
        assert isnan(found.max)
