"""The law of every method that trains: killed anywhere and started again, it gives the same path, wrapped or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import isthmus as im
from isthmus.cli import run_app
from isthmus.cli.common import method_of
from isthmus.connectors.base import About, Connection, Connector, Task
from isthmus.params import equal
from isthmus.storage import FolderMemory
from isthmus.storage.methods import connector_from, connector_to_dict
from isthmus.training.fit import Recipe
from tests.laws.test_methods import QUICK
from tests.mortal import Killed, Mortal, to_the_end
from tests.problems import Problem, odd_widths, permuted, tanh_regression, two_layers


@dataclass(frozen=True)
class Handed(Connector):
    """A wrapper that does nothing but hand its task on."""

    inner: Connector = im.Linear()  # noqa: RUF009

    about = About(makes="what the inner method makes", reference="-", needs="-", cost="-", convex=False)

    def find(self, task: Task) -> Connection:
        return self.inner.find(task)


TRAINED: dict[str, tuple[Connector, Callable[[], Problem]]] = {
    "Narrow": (QUICK[im.Narrow], odd_widths),
    "Subnetwork": (QUICK[im.Subnetwork], odd_widths),
    "Subnetwork-search": (
        im.Subnetwork("search", subsets="own", draws=2, inner=im.Trained(recipe=im.Recipe(steps=20, batch=8))),
        odd_widths,
    ),
    "Subnetwork-dropout": (
        im.Subnetwork(subsets="own", inner=im.Trained(recipe=im.Recipe(steps=20, batch=8), init="dropout", masks=4)),
        odd_widths,
    ),
    "StringSampling": (replace(QUICK[im.StringSampling], excess=0.005), tanh_regression),
    "ConstrainedStringSampling": (replace(QUICK[im.ConstrainedStringSampling], excess=0.005), tanh_regression),
    "TwoLayerReLU": (QUICK[im.TwoLayerReLU], two_layers),
    "Dropout": (QUICK[im.Dropout], odd_widths),
    "Bezier": (im.Bezier(bends=4, recipe=im.Recipe(lr=None, epochs=8, batch=8)), permuted),
    "PolyChain": (replace(QUICK[im.PolyChain], draws=2), permuted),
    "AutoNEB": (replace(QUICK[im.AutoNEB], cycles=((14, 2), (14, 2)), spacing="loss"), permuted),
    "LayerWise": (QUICK[im.LayerWise], permuted),
    "Auto": (im.Auto(excess=1e-4, budget=150), permuted),
}


@cache
def alone(name: str) -> tuple[Problem, im.Connection]:
    method, make = TRAINED[name]
    problem = make()
    return problem, im.connect(problem.objective, problem.a, problem.b, method)


def assert_equal(one: im.Connection, two: im.Connection) -> None:
    assert all(equal(p, q) for p, q in zip(one.path.knots, two.path.knots, strict=True))
    assert equal(one.target, two.target)
    first, second = ({k: v for k, v in c.stats.items() if k != "method"} for c in (one, two))
    assert first == second
    assert one.outcome is two.outcome


@pytest.mark.parametrize(
    ("name", "wrapped"), [*((name, False) for name in TRAINED), *((name, True) for name in ("Subnetwork", "Bezier"))]
)
def test_killed_at_random_moments_and_after_every_save_it_gives_the_same_path(name, wrapped):
    problem, once = alone(name)
    method = Handed(TRAINED[name][0]) if wrapped else TRAINED[name][0]
    memory = Mortal(seed=3, lives=(8, 40), after_saves=(1, 2, 3, 5, 8))
    again = to_the_end(lambda: im.connect(problem.objective, problem.a, problem.b, method, memory=memory))
    assert memory.deaths >= 1
    assert_equal(once, again)
    saves = memory.saves
    assert_equal(once, im.connect(problem.objective, problem.a, problem.b, method, memory=memory))
    assert memory.saves == saves, "finished work was done again"


@pytest.mark.parametrize("name", ["Subnetwork", "StringSampling"])
def test_a_folder_is_a_memory(name, tmp_path, monkeypatch):
    problem, once = alone(name)
    assert len(once.path) > 1
    method, count, real = TRAINED[name][0], [0], FolderMemory.save

    def save(self, tensors, values):
        real(self, tensors, values)
        count[0] += 1
        if count[0] == 3:
            raise Killed

    monkeypatch.setattr(FolderMemory, "save", save)
    with pytest.raises(Killed):
        im.connect(problem.objective, problem.a, problem.b, method, memory=tmp_path)
    assert_equal(once, im.connect(problem.objective, problem.a, problem.b, method, memory=str(tmp_path)))
    with pytest.raises(im.FileError, match="the state of another search"):
        im.connect(problem.objective, problem.a, problem.b, method, seed=1, memory=tmp_path)


def test_bounds_of_subnetworks_go_on_too():
    problem = odd_widths()
    recipe = Recipe(steps=30, batch=8)
    given = {"draws": 3, "recipe": recipe, "init": "dropout", "masks": 4}
    once = im.subnetwork_bounds(problem.objective, problem.a, **given)
    memory = Mortal(seed=1, lives=(5, 40), after_saves=(1, 2))
    again = to_the_end(lambda: im.subnetwork_bounds(problem.objective, problem.a, **given, memory=memory))
    assert memory.deaths >= 2
    for one, two in zip(once.layers, again.layers, strict=True):
        assert one.losses == two.losses
        assert all(torch.equal(v, two.weights.A[l]) for l, v in one.weights.A.items())


def test_a_wrapper_keeps_what_its_inner_method_can_do():
    problem = odd_widths()
    string = replace(QUICK[im.StringSampling], on="test", threshold=None)
    assert Handed(string).judged
    assert not Handed(im.Dropout()).judged
    test = problem.objective.part(slice(0, 4))
    found = im.connect(problem.objective, problem.a, problem.b, Handed(string), test=test)
    assert found.stats["threshold"]["on"] == "test"
    with pytest.raises(im.InputError, match="test"):
        im.connect(problem.objective, problem.a, problem.b, Handed(im.Dropout()), test=test)
    other = im.Objective(problem.objective.skeleton, lambda z, y: z.sin().mean(1), problem.objective.data)
    with pytest.raises(im.InputError, match="convex"):
        im.connect(other, problem.a, problem.b, Handed(im.Dropout()))


def test_a_wrapper_keeps_the_options_of_its_inner_method(monkeypatch, capsys):
    for module in ("isthmus.storage.methods", "isthmus.cli.commands"):
        monkeypatch.setattr(f"{module}.METHODS", (*im.METHODS, Handed))
    chosen = connector_from({"name": "handed", "inner": "Dropout", "masks": 3})
    assert chosen == Handed(im.Dropout(masks=3))
    assert connector_from({"name": "Handed", "inner": {"name": "dropout", "masks": 3}}) == chosen
    assert connector_from(connector_to_dict(chosen)) == chosen
    assert method_of("Handed", ["inner=dropout", "masks=3"]) == chosen
    with pytest.raises(im.InputError, match=r"options among .*inner.*got .'masks'"):
        connector_from({"name": "Handed", "masks": 3})
    assert run_app(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["Handed"]["options"] == {"inner": "Linear"}
