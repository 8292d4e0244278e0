"""Graphs of minima: what is tried and when it stops, files, paths, resuming."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from math import inf

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster

import isthmus as im
from isthmus.graph import Edge, Minimum
from isthmus.graph.cells import AlignmentCell, EdgeCell
from isthmus.params import equal
from isthmus.sweep import Local
from tests.graph.test_tree import random_graph
from tests.mortal import Killed
from tests.problems import blobs, permuted, random_params


def networks(n=5):
    """Three networks that are permutations of one another, low and apart, and poor ones."""
    p = permuted()
    c = dict(p.a) | {f"0.{k}": p.a[f"0.{k}"].flip(0) for k in ("weight", "bias")}
    c["2.weight"] = c["2.weight"].flip(1)
    nets = {"a": p.a, "b": p.b, "c": c, "poor": random_params(p.objective.skeleton, 5)}
    nets["worse"] = random_params(p.objective.skeleton, 7)
    return p.objective, dict(list(nets.items())[:n]), p.objective.part(slice(0, 8))


CURVE = im.Bezier(recipe=im.Recipe(lr=None, steps=12, batch=8))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    objective, nets, test = networks()
    folder = tmp_path_factory.mktemp("graph")
    told = []
    graph = im.minima_graph(
        objective, nets, CURVE, folder=folder, test=test, progress=lambda *said: told.append(said), num_points=9
    )
    return objective, nets, test, folder, graph, told


def contents(folder):
    """All that must be the same bytes: records say when and where."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != "record.json")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_edges_are_the_profiles_of_connections(made):
    objective, nets, test, _, graph, told = made
    assert [m.name for m in graph.minima] == list(nets)
    for m, params in zip(graph.minima, nets.values(), strict=True):
        assert (m.loss, m.error) == pytest.approx(objective.measure(params), rel=1e-12)
        assert (m.test_loss, m.test_error) == pytest.approx(test.measure(params), rel=1e-12)
    edge = graph.edges[0]
    a, b = (list(nets.values())[i] for i in edge.pair)
    found = im.connect(objective, a, b, CURVE)
    measured = im.profile(objective, found, 9, test=test)
    assert measured.test is not None
    assert edge.max == max(measured.max, graph.floor(*edge.pair))
    assert edge.error == measured.barriers["error"].max
    assert (edge.test_loss, edge.test_error) == (measured.test.max, measured.test.barriers["error"].max)
    assert edge.gradient_steps == 12
    assert not edge.moved
    assert told[-1] == (told[-1][0], len(graph.edges), 10)
    assert "joining" in told[-1][0]


def test_the_tree_is_that_of_all_pairs_within_the_tolerance(made):
    objective, nets, test, folder, graph, _ = made
    whole = im.minima_graph(objective, nets, CURVE, folder=folder, test=test, goal="all", num_points=9)
    assert len(whole.edges) == 10 >= len(graph.edges) >= 4
    assert whole.stop == "all pairs were tried"
    assert graph.complete
    assert graph.bottleneck <= 1.01 * whole.bottleneck
    assert np.all(graph.saddles <= 1.01 * whole.saddles)
    assert {e.pair: e for e in graph.edges}.items() <= {e.pair: e for e in whole.edges}.items()
    again = im.minima_graph(objective, nets, CURVE, folder=folder, test=test, num_points=9)
    assert again.to_dict() == graph.to_dict()


def test_paths_follow_the_tree(made):
    objective, nets, _, _, graph, _ = made
    for i, j in combinations(nets, 2):
        path = graph.path(i, j)
        assert equal(path.start, nets[i])
        assert equal(path.end, nets[j])
        assert im.profile(objective, path, 9).max <= graph.saddle(i, j) * (1 + 1e-9)
        assert graph.saddle(i, j) == graph.saddle(j, i) >= graph.floor(i, j)
    with pytest.raises(im.InputError, match="a twice"):
        graph.path("a", 0)
    with pytest.raises(im.InputError, match="network: expected one of a, b, c"):
        graph.saddle("a", "z")


def full(source, path):
    """A copy that fails when half of it is written."""
    path.write_bytes(source.read_bytes()[:100])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_graph_is_read_back_and_saved_elsewhere(made, tmp_path):
    _, nets, _, folder, graph, _ = made
    graph.save(folder)
    again = im.load_graph(folder)
    assert again.to_dict() == json.loads((folder / "graph.json").read_text()) == json.loads(json.dumps(graph.to_dict()))
    assert len(repr(again)) < 200
    assert "5 networks" in repr(again)
    assert "<table>" in again._repr_html_()
    copy = im.load_graph(again.save(tmp_path / "copy"))
    assert equal(copy.path("a", "b").end, nets["b"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(im.FileError, match="no space left"):
            again.save(tmp_path / "full")
    assert not [f for f in (tmp_path / "full").rglob("*") if f.is_file()]  # nothing is there by half
    with pytest.raises(im.FileError, match=r"gone.*there is no folder"):
        replace(again, folder=tmp_path / "gone").save(tmp_path / "full")
    (tmp_path / "copy/graph.json").write_text('{"format": 2}')
    with pytest.raises(im.FileError, match="not a graph of this version"):
        im.load_graph(tmp_path / "copy")


def test_components_and_the_dendrogram_are_those_of_the_saddles(made):
    *_, graph, _ = made
    links = graph.dendrogram()
    assert links[:, 2].tolist() == sorted(e.max for e in graph.tree)
    for level in (0.0, *sorted({*graph.saddles.ravel()})):
        parts = graph.components(level)
        low = [m.name for m in graph.minima if m.loss <= level]
        assert sorted(name for part in parts for name in part) == sorted(low)
        clusters = fcluster(links, level, "distance")
        for i, j in combinations(low, 2):
            together = any(i in part and j in part for part in parts)
            assert together == (graph.saddle(i, j) <= level)
            assert together == (clusters[graph.number(i)] == clusters[graph.number(j)])


@pytest.mark.parametrize("after", [2, 5])
def test_killed_and_started_again_it_is_the_same_bytes(made, tmp_path, monkeypatch, after):
    objective, nets, test, folder, graph, _ = made
    count, real = [0], EdgeCell.run

    def run(self, job):
        count[0] += 1
        found = real(self, job)
        if count[0] == after:
            raise Killed
        return found

    monkeypatch.setattr(EdgeCell, "run", run)
    given = {"folder": tmp_path, "test": test, "num_points": 9}
    with pytest.raises(Killed):
        im.minima_graph(objective, nets, CURVE, **given)
    made_again = im.minima_graph(objective, nets, CURVE, **given)
    assert made_again.to_dict() == graph.to_dict()
    assert count[0] == len(graph.edges) + 1
    graph.save(folder)
    whole = contents(folder)
    assert all(whole[name] == held for name, held in contents(tmp_path).items())


@dataclass(frozen=True)
class Wide(Local):
    """Keeps how many pairs it was given at a time."""

    count: int = 1
    rounds: list[int] = field(default_factory=list)

    @property
    def at_once(self):
        return self.count

    def map(self, function, shared, items, after=None):
        self.rounds.extend([len(items)] if items else [])
        return Local.map(self, function, shared, items, after)


def test_more_at_once_give_the_same_graph_in_fewer_rounds(tmp_path, monkeypatch):
    """Heights from a table; a pair that is tried ahead and fails is none that was wanted."""
    losses, weights = random_graph(6, 3)
    module = torch.nn.Linear(1, 1, bias=False)
    objective = im.Objective(module, "mse", (torch.ones(2, 1), torch.zeros(2, 1)))
    nets = [{"weight": torch.full((1, 1), v**0.5 + 1e-4 * i)} for i, v in enumerate(losses)]
    digests = [im.storage.digest(p) for p in nets]
    failing: set[tuple[int, int]] = set()

    def run(self, job):
        pair = digests.index(self.a), digests.index(self.b)
        if pair in failing:
            raise im.InputError("pair", expected="one that is wanted", got=str(pair))
        for name in ("path.safetensors", "profile.json", "profile.csv"):
            (job.folder / name).write_text("")
        rest = dict.fromkeys(("error", "test_loss", "test_error", "gradient_steps"))
        return {"max": weights[pair], "t": 0.5, "outcome": "CONSTRUCTED", "moved": False, "length": 1.0, **rest}

    monkeypatch.setattr(EdgeCell, "run", run)
    graphs, rounds = [], []
    for count in (1, 2, 9):
        engine = Wide(count)
        graph = im.minima_graph(objective, nets, folder=tmp_path / str(count), workers=engine)
        assert all(e.max >= graph.floor(*e.pair) for e in graph.edges)
        graphs.append(graph.to_dict())
        rounds.append(len(engine.rounds))
        failing |= weights.keys() - {(e["a"], e["b"]) for e in graphs[0]["edges"]}
    assert graphs[0] == graphs[1] == graphs[2]
    assert rounds[0] - 2 == len(graphs[0]["edges"]) - 5 >= 4  # the networks, the first five pairs, and one by one
    assert rounds[2] < rounds[1] < rounds[0]


def test_jobs_travel_to_other_processes(made, tmp_path):
    class Sent(Local):
        def map(self, function, shared, items, after=None):
            shared, items = pickle.loads(pickle.dumps((shared, list(items))))
            return Local.map(self, function, shared, items, after)

    objective, nets, test, *_ = made
    few = dict(list(nets.items())[:2])
    sent = im.minima_graph(objective, few, CURVE, folder=tmp_path, test=test, num_points=9, workers=Sent())
    here = im.minima_graph(objective, few, CURVE, test=test, num_points=9)
    assert sent.edges == here.edges
    assert len(here.edges) == 1
    with pytest.raises(im.InputError, match="workers"):
        im.minima_graph(objective, few, workers=0)


def test_without_a_folder_and_without_a_method():
    objective, nets, _ = networks(3)
    graph = im.minima_graph(objective, list(nets.values()))
    assert [m.name for m in graph.minima] == ["0", "1", "2"]
    assert graph.minima[0].test_loss is None
    assert graph.method["name"] == "Linear"
    assert equal(graph.path(0, 2).end, nets["c"])


def test_networks_are_brought_into_one_numbering_first(tmp_path, monkeypatch):
    """Three of them are permutations of one another: aligned they are one, and edges that meet continue each other."""
    objective, nets, _ = networks(4)
    given = {"folder": tmp_path / "own", "align": im.WeightMatching(), "num_points": 5}
    graph = im.minima_graph(objective, nets, **given)
    plain = im.minima_graph(objective, nets, num_points=5)
    assert plain.saddle("a", "c") > 1.1 * plain.floor("a", "c")
    assert graph.saddle("a", "c") == pytest.approx(graph.floor("a", "c"), rel=1e-12)
    assert graph.floor("poor", "c") == pytest.approx(plain.floor("poor", "c"), rel=1e-12)
    path = graph.path("poor", "b")
    assert im.profile(objective, path, 5).max <= graph.saddle("poor", "b") * (1 + 1e-12)
    assert equal(path.end, nets["a"])
    torch.testing.assert_close(objective.outputs(path.start), objective.outputs(nets["poor"]), rtol=1e-12, atol=1e-12)

    copy = im.load_graph(graph.save(tmp_path / "copy"))
    assert copy.to_dict() == json.loads(json.dumps(graph.to_dict()))
    assert copy.aligned["matching"]["name"] == "WeightMatching"
    for i, params in enumerate(nets.values()):
        how = im.load_alignment(copy.folder / copy.aligned["folder"] / f"{i}.alignment.safetensors", objective)
        assert i == 3 or equal(how.apply(params), nets["a"])
    monkeypatch.setattr(AlignmentCell, "run", None)  # what was found is not looked for again
    assert im.minima_graph(objective, nets, **given).to_dict() == graph.to_dict()


def test_files_are_named_by_theirs(tmp_path):
    objective, nets, _ = networks(2)
    for name, params in nets.items():
        im.save_params(params, tmp_path / f"{name}.safetensors", {})
    graph = im.minima_graph(objective, [tmp_path / "a.safetensors", str(tmp_path / "b.safetensors")])
    assert [m.name for m in graph.minima] == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"params": {"a": None}}, "at least two"),
        ({"params": {1: None, "1": None, "b": None}}, "names that differ as text"),
        ({"params": "a.safetensors"}, "params: expected networks by name"),
        ({"goal": "most"}, "goal"),
        ({"tol": -1.0}, "tol"),
        ({"tol": "a"}, "tol: expected a number"),
        ({"tolerance": 1.0}, "options: expected some of tol"),
        ({"num_points": 1}, "num_points"),
        ({"align": "weights"}, "align: expected a Matching"),
        ({"method": im.Bezier}, "method"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, what):
    objective, nets, _ = networks(2)
    with pytest.raises(im.InputError, match=what):
        im.minima_graph(objective, **{"params": nets} | wrong)


@pytest.mark.parametrize("bad", [float("nan"), inf])
def test_a_network_without_a_finite_loss_is_named(bad):
    given, nets, _ = networks(2)
    loss = lambda out, y: torch.where(out.abs().amax(1) > 1e3, bad, 1.0)
    objective = im.Objective(given.skeleton, loss, given.data)
    broken = {k: 1e4 * v for k, v in nets["b"].items()}
    with pytest.raises(im.InputError, match="b: expected a network of finite loss"):
        im.minima_graph(objective, nets | {"b": broken})


def test_a_pair_that_cannot_be_joined_is_named():
    objective, nets, _ = networks(2)
    with pytest.raises(im.IsthmusError, match=r"a to b: .*while connecting with DeepLinear"):
        im.minima_graph(objective, nets, im.DeepLinear())


def test_statistics_are_under_the_policy_of_the_paths():
    module = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    objective = im.Objective(module.double().eval(), data=blobs(24, (5,), 4))
    nets = [random_params(module, seed) for seed in (1, 2)]
    graph = im.minima_graph(objective, nets, num_points=5)
    measured = im.profile(objective, im.connect(objective, nets[0], nets[1]), 5)
    assert [m.loss for m in graph.minima] == pytest.approx([float(measured.loss[0]), float(measured.loss[-1])])
    assert graph.bottleneck == measured.max
    own = im.minima_graph(objective, nets, replace(CURVE, bn="interpolate"), num_points=2)
    assert [m.loss for m in own.minima] == pytest.approx([objective.loss(p) for p in nets])
    assert own.minima[0].loss != pytest.approx(graph.minima[0].loss)


def test_paths_that_keep_the_statistics_of_their_start_end_at_no_network():
    module = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4)).double().eval()
    nets = [random_params(module, seed) for seed in (1, 2)]
    with pytest.raises(im.UnsupportedError, match="statistics of their start"):
        im.minima_graph(im.Objective(module, data=blobs(24, (5,), 4)), nets, replace(CURVE, bn="keep"))


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """Joined with their units renumbered, and those of these paths that make a chain."""
    objective, nets, _ = networks(4)
    folder = tmp_path_factory.mktemp("aligned")
    graph = im.minima_graph(objective, nets, im.Aligned(), folder=folder, num_points=9, goal="all")
    chain = tuple(e for e in graph.edges if e.b == e.a + 1)
    return objective, nets, folder, replace(graph, edges=chain)


def test_a_way_goes_on_from_renumbered_networks(aligned):
    objective, nets, folder, graph = aligned
    assert sum(e.moved for e in graph.tree) >= 2
    assert all(e.aligned for e in graph.edges if e.moved)
    lengths = set()
    for i, j in permutations(nets, 2):
        way = graph.way(i, j)
        lengths.add(len(way.path))
        assert equal(way.path.start, nets[i])
        assert equal(way.path.end, way.target)
        how = im.Renumbering.of(objective, way.tensors) if way.tensors else None
        assert equal(way.target, nets[j] if how is None else how.apply(nets[j]))
        assert torch.allclose(objective.outputs(way.target), objective.outputs(nets[j]), rtol=1e-12)
        assert im.profile(objective, way, 9).max <= graph.saddle(i, j) * (1 + 1e-9)
        assert len(way.labels) == len(way.path)
    assert lengths == {1, 2, 3}
    read = im.load_graph(folder)
    back = next(e for e in graph.tree if e.moved)
    with pytest.raises(im.InputError, match="objective: expected the one that the graph was made with"):
        read.path(back.b, back.a)
    assert equal(read.path(back.b, back.a, objective).end, graph.path(back.b, back.a).end)


def test_a_way_is_not_continued_from_an_unknown_numbering(made, tmp_path):
    objective, nets, *_ = made
    moved = objective.structure.permute(
        nets["b"], {g.name: list(range(g.size))[::-1] for g in objective.structure.groups}
    )
    ends = {"ab": (nets["a"], moved), "bc": (nets["b"], nets["c"])}
    for name, (a, b) in ends.items():
        (tmp_path / name).mkdir()
        found = replace(im.connect(objective, a, b), tensors={})
        im.save(found, tmp_path / name / "path.safetensors")
    row = (1.0, 0.5, 0, None, None, "CONSTRUCTED")
    chain = Edge(0, 1, *row, True, 1.0, None, "ab"), Edge(1, 2, *row, False, 1.0, None, "bc")
    broken = im.MinimaGraph(tuple(Minimum(name, 0.0, 0.0) for name in "abc"), chain, tmp_path)
    for way in (("a", "c"), ("c", "a"), ("b", "a")):
        with pytest.raises(im.UnsupportedError, match="the path from a to b: it ends at a permutation of b"):
            broken.path(*way)
    assert equal(broken.path("a", "b").end, moved)


def test_pictures(made):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    *_, graph, _ = made
    tree, matrix = graph.plot()
    heights = {round(float(y), 9) for line in tree.get_lines() for y in line.get_ydata()}
    assert {round(e.max, 9) for e in graph.tree} <= heights
    assert {text.get_text() for text in tree.get_xticklabels()} == {m.name for m in graph.minima}
    assert f"{graph.bottleneck:.3g}" in {text.get_text() for text in matrix.texts}
    assert len(matrix.patches) == 2 * len(graph.edges)
    alone = pyplot.subplots()[1]
    assert graph.plot(alone) is alone
    pyplot.close("all")
