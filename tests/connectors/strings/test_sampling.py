"""Algorithm 1 of Freeman and Bruna: what a string that is found satisfies, and what is said when none is."""

from __future__ import annotations

from functools import cache
from math import exp

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.connectors.strings.beads import Goal, Trainer
from isthmus.connectors.strings.threshold import Threshold
from isthmus.params import distance, equal, lerp
from isthmus.pipeline import train
from isthmus.storage.methods import connector_from
from isthmus.sweep.store import FolderMemory
from isthmus.training.fit import Recipe
from tests.connectors.strings.strings import LEVEL, Killed, Mortal, highest, quadratic, quick, with_deaths
from tests.problems import blobs, random_params, small_convnet


@cache
def found(**options):
    objective, a, b = quadratic()
    return objective, im.connect(objective, a, b, quick(**options))


def test_every_segment_of_a_found_string_is_below_the_threshold():
    objective, connection = found()
    stats = connection.stats
    assert connection.outcome is im.Outcome.CONSTRUCTED
    assert highest(objective, connection.path) <= LEVEL
    assert stats["maximum"] <= LEVEL
    assert stats["beads"] == len(connection.path) - 1 >= 3
    # the straight line is not, so that the beads are what did it
    assert highest(objective, im.Path.through([connection.path.start, connection.path.end])) > 2 * LEVEL
    inner = connection.path.knots[1:-1]
    assert all(objective.loss(p) <= 0.9 * LEVEL for p in inner)
    assert stats["values"][1:-1] == [objective.loss(p) for p in inner]
    assert stats["normalized_length"] == connection.path.normalized_length > 1
    assert stats["gradient_steps"] == sum(row["steps"] for row in stats["rounds"]) > 0
    assert [row["depth"] for row in stats["rounds"]] == list(range(stats["depth"] + 1))
    assert stats["rounds"][-1]["above"] == 0
    assert max(stats["born"]) == stats["depth"]
    assert stats["threshold"] == {"quantity": "loss", "value": LEVEL, "on": "train"}
    assert stats["sampling"]["largest_spacing"] <= 1 / 20 + 1e-12


def test_with_certify_every_segment_is_proved_below_the_threshold():
    objective, connection = found(certify=True)
    assert connection.outcome.ok
    assert all("proved" in label for label in connection.stats["segments"])
    assert all(bound <= LEVEL for bound in connection.stats["bounds"])
    proof = im.certify(objective, connection.path, gap=1.0)
    assert proof.proved
    for segment, bound in zip(connection.path.segments, connection.stats["bounds"], strict=True):
        assert highest(objective, im.Path((segment,)), 101) <= bound


def test_a_proof_that_needs_shorter_segments_gets_them():
    """One bound per segment proves little: beads are put where nothing sampled is too high."""
    _, sampled = found()
    objective, proved = found(certify=True, effort=1)
    assert proved.outcome.ok
    assert len(proved.path) > len(sampled.path)
    assert highest(objective, proved.path) <= max(proved.stats["bounds"]) <= LEVEL


@pytest.mark.parametrize("options", [{"order": "depth"}, {"batched": False}, {"order": "depth", "batched": True}])
def test_neither_the_order_nor_batching_changes_the_string(options):
    _, one = found(batched=True)
    _, other = found(**options)
    assert one.stats["batched"] is True
    assert len(one.path) == len(other.path)
    assert one.stats["born"] == other.stats["born"]
    assert one.stats["gradient_steps"] == other.stats["gradient_steps"]
    for p, q in zip(one.path.knots, other.path.knots, strict=True):
        for name in p:
            torch.testing.assert_close(p[name], q[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"batched": False}, {"order": "depth"}, {"certify": True}])
def test_a_search_killed_at_random_moments_ends_with_the_same_string_bit_for_bit(options):
    alone = found(**options)[1]
    checkpoint = Mortal(seed=5)
    again = with_deaths(checkpoint, *quadratic(), quick(**options))
    assert checkpoint.deaths > 3
    assert all(equal(p, q) for p, q in zip(alone.path.knots, again.path.knots, strict=True))
    assert again.outcome is alone.outcome
    same = ("rounds", "values", "born", "gradient_steps", "evaluations", "segments")
    assert {k: again.stats[k] for k in same} == {k: alone.stats[k] for k in same}


def test_a_killed_search_does_not_start_from_the_beginning(tmp_path):
    objective, a, b = quadratic()
    method = quick(batched=False, lr=0.002)
    file = FolderMemory(tmp_path, "test", steps=20)
    said: list[list[str]] = [[], [], []]

    def dies(what, done, total):
        said[0].append(what)
        if what.startswith("training beads at depth 2"):
            raise Killed

    with pytest.raises(Killed):
        im.connect(objective, a, b, method, memory=file, progress=dies)
    again = im.connect(objective, a, b, method, memory=file, progress=lambda what, *_: said[1].append(what))
    alone = im.connect(objective, a, b, method, progress=lambda what, *_: said[2].append(what))
    first, second, whole = (sum("depth 1" in what for what in row) for row in said)
    assert first == whole > 4
    assert second <= 3
    assert all(equal(p, q) for p, q in zip(alone.path.knots, again.path.knots, strict=True))


def test_a_search_that_ran_out_of_its_budget_goes_on_with_a_larger_one():
    objective, a, b = quadratic()
    checkpoint = Mortal(seed=0, lives=(10**6, 10**6))
    short = im.connect(objective, a, b, quick(budget=30), memory=checkpoint)
    assert short.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert 30 <= short.stats["gradient_steps"] < 60
    long = im.connect(objective, a, b, quick(), memory=checkpoint)
    assert long.outcome.ok
    assert equal(long.path.knots[0], short.path.knots[0])
    fresh = found()[1]
    assert all(equal(p, q) for p, q in zip(fresh.path.knots, long.path.knots, strict=True))
    with pytest.raises(im.InputError, match="state of the same search, got that of another one"):
        im.connect(objective, a, b, quick(alpha=0.5), memory=checkpoint)
    with pytest.raises(im.InputError, match="that of other networks"):
        im.connect(objective, a, a, quick(), memory=checkpoint)


@pytest.mark.parametrize("options", [{"steps": 60, "lr": 0.003, "attempts": 2}, {"batched": False, "attempts": 1}])
def test_budgets_that_grow_end_with_the_string_of_the_largest(options):
    objective, a, b = quadratic()
    memory = Mortal(seed=0, lives=(10**6, 10**6))
    for budget in (10, 35, 110, 300):
        grown = im.connect(objective, a, b, quick(budget=budget, **options), memory=memory)
        fresh = im.connect(objective, a, b, quick(budget=budget, **options))
        assert grown.outcome is fresh.outcome
        assert all(equal(p, q) for p, q in zip(fresh.path.knots, grown.path.knots, strict=True))


def test_with_always_a_line_that_is_below_gets_one_bead():
    objective, a, b = quadratic()
    method = quick(threshold=1.0)
    assert im.connect(objective, a, b, method).stats["beads"] == 0
    connection = im.connect(objective, a, b, quick(threshold=1.0, always=True))
    assert connection.outcome.ok
    assert connection.stats["beads"] == 1
    assert connection.stats["born"] == [0, 1, 0]
    bead = connection.path.knots[1]
    assert objective.loss(bead) <= 0.9  # alpha * threshold, reached without a step: the middle of the line
    assert all(torch.allclose(bead[k], (a[k] + b[k]) / 2) for k in a)
    # a line that is above gets it anyway
    plain, always = found()[1], im.connect(objective, a, b, quick(always=True))
    assert all(equal(p, q) for p, q in zip(plain.path.knots, always.path.knots, strict=True))


def test_depth_is_a_budget_too():
    _, connection = found(depth=1)
    assert connection.outcome is im.Outcome.BUDGET_EXHAUSTED
    assert connection.stats["beads"] == 1
    assert len(connection.stats["segments"]) == 2


def test_a_bead_that_cannot_be_trained_is_said_to_have_failed():
    objective, a, b = quadratic()
    connection = im.connect(objective, a, b, quick(lr=1e-9, steps=20, attempts=2))
    assert connection.outcome is im.Outcome.BEAD_FAILED
    assert connection.stats["gradient_steps"] == 40
    assert connection.stats["values"][1] > LEVEL


def test_beads_start_at_the_maximum_or_half_way():
    for position in ("maximum", "half"):
        objective, connection = found(position=position, lr=1e-9, steps=1, attempts=1)
        a, bead, b = connection.path.knots
        line = Threshold(objective, "loss", LEVEL, 21).scan(im.Curve((a, b)))
        t = line.t if position == "maximum" else 0.5
        assert abs(line.t - 0.5) > 0.01
        assert distance(bead, lerp(a, b, t)) < 1e-6


def classifiers(module: nn.Module, shape: tuple[int, ...], dtype=torch.float64):
    module = module.to(dtype).eval()
    x, y = blobs(60, shape, 4)
    fit_on, test = (x[:40].to(dtype), y[:40]), (x[40:].to(dtype), y[40:])
    recipe = Recipe(lr=0.01, steps=1500, batch=20, check=10)
    ends = []
    for seed in (1, 2):
        start = random_params(module, seed, dtype)
        module.load_state_dict(start)
        ends.append(train(module, fit_on, recipe, seed=seed, target=0.02).params)
    return im.Objective(module, data=fit_on), im.Objective(module, data=test), *ends


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutional_networks_with_batchnorm_and_thresholds_on_a_test_set(dtype):
    objective, test, a, b = classifiers(small_convnet(), (1, 8, 8), dtype)
    larger = max(test.error(a), test.error(b))
    method = im.StringSampling(
        larger + 0.051, quantity="error", on="test", alpha=1.0, recipe=im.Recipe(lr=0.01, steps=300, batch=20)
    )
    connection = im.connect(objective, a, b, method, test=test)
    assert connection.outcome.ok
    profile = im.profile(test, connection.path, 41)
    assert profile.barriers["error"].max <= larger + 0.051
    below = im.connect(objective, a, b, im.StringSampling(0.05, recipe=im.Recipe(lr=0.01, steps=300, batch=20)))
    assert below.outcome.ok
    assert below.stats["beads"] >= 1
    # the threshold is on the statistics that the path holds
    assert im.profile(objective, below.path, 41, bn="interpolate").max <= 0.05
    # running statistics move on the line, and are not trained
    left, bead, right = (p["4.running_var"] for p in below.path.knots[:3])
    assert bool((bead >= torch.minimum(left, right) - 1e-6).all()) or len(below.path) > 2
    assert all(v.dtype == dtype for p in below.path.knots for v in p.values() if v.is_floating_point())


class Language(nn.Module):
    """A two-layer LSTM that predicts the next word, with the words' vectors shared by input and output."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.lstm = nn.LSTM(6, 6, 2, batch_first=True)
        self.out = nn.Linear(6, 7)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.lstm(self.words(x))[0]).transpose(1, 2)


def per_word(outputs, y):
    return nn.functional.cross_entropy(outputs, y, reduction="none").mean(1)


def test_a_recurrent_network_with_its_own_loss_and_tied_weights():
    generator = torch.Generator().manual_seed(0)
    text = (torch.arange(20)[:, None] + torch.arange(9)) % 7
    text[torch.rand(text.shape, generator=generator) < 0.1] = 0
    module = Language().double()
    objective = im.Objective(module, per_word, (text[:, :-1], text[:, 1:]), convex=True)
    recipe = Recipe(lr=0.02, steps=200, batch=20, check=10, schedule="constant")
    limit = Threshold(objective, "perplexity", 2.5, 9)
    ends: list[im.Params] = []
    for seed in (1, 2):
        start = im.models.seeded(lambda: Language().double(), seed).state_dict()
        start = objective.check({k: v.clone() for k, v in start.items()})
        trainer = Trainer.of(objective, limit, recipe, False, start)
        (end,) = trainer.train([start], Goal(2.4, 600, seed))
        ends.append(end.params)
    method = im.StringSampling(
        2.5, quantity="perplexity", points=9, recipe=im.Recipe(lr=0.02, steps=600, batch=20, schedule="constant")
    )
    connection = im.connect(objective, ends[0], ends[1], method)
    assert connection.outcome.ok
    assert connection.stats["batched"] is False
    assert connection.stats["beads"] >= 1
    assert exp(highest(objective, connection.path, 41)) <= 2.5
    assert all(torch.equal(p["words.weight"], p["out.weight"]) for p in connection.path.knots)
    with pytest.raises(im.UnsupportedError, match=r"Language.*cannot be trained as one batched problem"):
        im.connect(objective, ends[0], ends[1], im.StringSampling(2.5, quantity="perplexity", batched=True))
    with pytest.raises(im.UnsupportedError, match="can only be measured"):
        im.connect(objective, ends[0], ends[1], im.StringSampling(9.0, quantity="perplexity", certify=True))


class Attending(nn.Module):
    """Where nothing needs a gradient torch runs its attention as one operation, which it cannot batch."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.filterwarnings("error")
def test_what_torch_cannot_batch_is_found_without_its_warnings():
    module = Attending().eval()
    objective = im.Objective(module, data=(torch.randn(6, 3, 4), torch.tensor([0, 1, 0, 1, 0, 1])))
    ends = [im.models.seeded(Attending, seed).state_dict() for seed in (1, 2)]
    found = im.connect(objective, ends[0], ends[1], im.StringSampling(9.0, always=True, recipe=Recipe(steps=1)))
    assert found.stats["batched"] is False


class Branching(nn.Module):
    """Its flow depends on its data: torch.export and batching refuse it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 9), nn.Linear(9, 4)

    def forward(self, x):
        return self.last(self.first(x).relu()) if float(self.first.weight.detach().sum()) < 1e9 else x


def test_a_module_that_cannot_be_exported():
    objective, _, a, b = classifiers(Branching(), (5,))
    with pytest.raises(im.UnsupportedError):
        objective.program  # noqa: B018
    connection = im.connect(objective, a, b, im.StringSampling(0.03, recipe=im.Recipe(lr=0.01, steps=500, batch=20)))
    assert connection.outcome.ok
    assert highest(objective, connection.path, 41) <= 0.03
    assert connection.stats["batched"] is False


def test_a_penalty_counts():
    objective, a, b = quadratic()
    x, y = objective.data
    ridge = im.Objective(objective.skeleton, "mse", (x, y), penalty=im.Ridge(1e-5))
    larger = max(ridge.loss(a), ridge.loss(b))
    connection = im.connect(ridge, a, b, quick(threshold=1.05 * larger, alpha=1.0))
    assert connection.outcome.ok
    assert highest(ridge, connection.path, 61) <= 1.05 * larger


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -1.0}, "threshold: expected a number > 0"),
        ({"threshold": 1.0, "quantity": "perplexity"}, "threshold: expected a number > 1"),
        ({"quantity": "accuracy"}, "quantity"),
        ({"on": "valid"}, "on: expected"),
        ({"points": 2}, "points"),
        ({"position": "end"}, "position"),
        ({"order": "random"}, "order"),
        ({"alpha": 0.0}, "alpha"),
        ({"depth": 0}, "depth"),
        ({"patience": 0}, "patience"),
        ({"attempts": 0}, "attempts"),
        ({"optimizer": "lbfgs"}, "optimizer"),
        ({"certify": True, "quantity": "error"}, "certify"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(im.InputError, match=match):
        connector_from({"name": "StringSampling"} | options)


def test_ends_above_the_threshold_and_sets_that_are_not_there_are_refused():
    objective, a, b = quadratic()
    with pytest.raises(im.InputError, match=r"threshold: expected at least .*, the loss of the larger end"):
        im.connect(objective, a, b, quick(threshold=1e-6))
    with pytest.raises(im.InputError, match=r"on: .*connect\(..., test=objective\)"):
        im.connect(objective, a, b, quick(on="test"))
    with pytest.raises(im.InputError, match="on='test'"):
        im.connect(objective, a, b, quick(), test=objective)
    with pytest.raises(im.InputError, match="test: expected a method that searches"):
        im.connect(objective, a, b, im.Linear(), test=objective)
    with pytest.raises(im.UnsupportedError, match="no error rate"):
        im.connect(objective, a, b, quick(quantity="error", threshold=0.5))
    example = im.counterexamples.disconnected()
    with pytest.raises(im.InputError, match=r"threshold: expected a number \(the larger end has 0\)"):
        im.connect(example.objective, *example.minima, im.StringSampling())
