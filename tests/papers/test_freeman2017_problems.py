"""What the networks of the page on Freeman & Bruna 2017 learn: polynomials, and images as the authors have them."""

from __future__ import annotations

import pytest
import torch

from isthmus.experiments.jobs import Problem
from isthmus.papers.freeman2017.jobs import Ends, Judge
from isthmus.papers.freeman2017.problems import Images, Polynomial, absolute, cropped, start_of
from isthmus.sweep import Local, Store, run_cells
from isthmus.training.fit import Recipe


def test_the_task_is_that_of_the_paper():
    for name, f in (
        ("quadratic", lambda x: 0.5 * x**2 + 0.25 * x + 0.1),
        ("cubic", lambda x: 8 * x**3 - 10 * x**2 + 3 * x),
    ):
        problem = Polynomial(name)
        objective, test = problem.objectives()
        x, y = objective.data
        assert test is None
        assert isinstance(x, torch.Tensor)
        torch.testing.assert_close(y, f(x), rtol=1e-12, atol=1e-14)
        assert (float(x.min()), float(x.max()), len(x)) == (0.0, 1.0, 200)
        start = problem.start(3)
        squared, _ = Polynomial(name, "squared").objectives()
        off = problem.module(3)(x).detach() - y
        assert objective.loss(start) == pytest.approx(float(off.abs().mean()), rel=1e-12)
        assert squared.loss(start) == pytest.approx(float(off.square().mean()), rel=1e-12)
    closed = Polynomial("quadratic", closed=True).module(0)
    assert all("bias" not in k for k in closed.state_dict())
    assert isinstance(closed[-1], torch.nn.Sigmoid)
    assert sum(p.numel() for p in closed.parameters()) == 4 + 16 + 4
    assert sum(p.numel() for p in Polynomial("cubic").module(0).parameters()) == 33
    assert absolute(torch.tensor([[1.0, -3.0]]), torch.zeros(1, 2)).tolist() == [2.0]


def test_photographs_are_trained_on_crops_and_judged_in_the_middle(tmp_path):
    problem = Images(Problem("conv5:4-4-8", "digits", 60, dtype="float32", tests=40), "cifar10", crop=6, decay=0.3)
    recipe = Recipe("sgd", 0.05, 40, 20, 0.0, 0.0, "steps", 4, gamma=0.1, every=20)
    cell = Ends(problem, Judge("loss", "train", 5), (100.0, 1e-6), recipe, 3)
    train, test = problem.objectives()
    assert test is not None
    whole, (seen, y) = problem.problem.dataset().x_train, train.data
    assert isinstance(seen, torch.Tensor)
    assert torch.equal(seen, whole[..., 1:7, 1:7])
    # a batch of crops: each is a part of its own image, at places that the generator draws
    generator = torch.Generator().manual_seed(0)
    parts, index = cropped(whole, 6, generator), torch.arange(60)
    where = [{(i, j) for i in range(3) for j in range(3) if torch.equal(part, image[:, i : i + 6, j : j + 6])}
             for part, image in zip(parts, whole, strict=True)]  # fmt: skip
    assert all(where)
    assert len(set().union(*where)) > 4
    params = {k: 8 * v for k, v in start_of(problem, 3).items()}  # the start itself is nearly flat
    hidden = [k for k in params if k.endswith("weight") and params[k].ndim == 2][:-1]
    penalty = sum(0.15 * float(params[k].double().square().sum()) for k in hidden)
    outputs = train.forward(params, parts)
    expected = float(torch.nn.functional.cross_entropy(outputs, y)) + penalty
    found = cell.batch_loss(train, torch.Generator().manual_seed(0))(params, index)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(found) != pytest.approx(train.loss(params), rel=1e-5)
    store = Store(tmp_path)
    assert run_cells([cell], store, Local()).ok
    result = store.load(cell).result
    assert result["steps"] == 40
    assert result["best"] < train.loss(start_of(problem, 3))
