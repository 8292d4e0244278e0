"""The laws of every alignment: the function and the entries are kept, planted orders are found, nothing is touched."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import isthmus as im
from isthmus.alignment.overlap import Overlap
from isthmus.params import Params, dot, equal, lerp
from isthmus.structure import Structure
from tests.alignment.problems import ALL, drawn, objective, planted
from tests.hugging_face import Logits, inputs, network
from tests.problems import blobs, classify, convolutional, odd_widths, perceptron, permuted, random_params

FAST = ("perceptron", "ResNet", "ConvNeXt", "ViT by TransformerEncoder", "T5", "experts", "LSTM", "GPT2LMHeadModel")
MATCHINGS = (im.WeightMatching(), im.WeightMatching("barycentre"), im.ActivationMatching())
matchings = pytest.mark.parametrize("matching", MATCHINGS, ids=["forward", "barycentre", "activations"])


@pytest.mark.parametrize("name", FAST)
def test_an_order_that_was_planted_is_found(name):
    pair = planted(name, seed=3)
    for matching in MATCHINGS:
        found = im.align(pair.objective, pair.a, pair.b, matching)
        assert equal(found.target, pair.near), f"{matching}: {found}"
        assert found.function_error <= 1e-12
        assert equal(im.align(pair.objective, pair.a, pair.a, matching).target, pair.a)


@matchings
@pytest.mark.parametrize("make", [odd_widths, convolutional, permuted])
def test_the_function_and_the_entries_are_kept(make, matching):
    problem = make()
    a, b = ({k: v.clone() for k, v in p.items()} for p in (problem.a, problem.b))
    state = torch.random.get_rng_state()
    found = im.align(problem.objective, problem.a, problem.b, matching)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(problem.a, a)
    assert equal(problem.b, b)
    want, have = (problem.objective.outputs(p) for p in (b, found.target))
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)
    for name, v in found.target.items():
        assert torch.equal(v.flatten().sort().values, b[name].flatten().sort().values), name
    assert equal(found.apply(b), found.target)
    assert equal(found.inverse().apply(found.target), b)
    assert equal(found.then(found.inverse()).apply(b), b)
    again = im.align(problem.objective, problem.a, problem.b, matching)
    assert equal(again.target, found.target)


@pytest.mark.parametrize("start", ["forward", "barycentre"])
@pytest.mark.parametrize("name", ["perceptron", "LSTM", "experts"])
def test_how_b_is_numbered_plays_no_part(name, start):
    pair = planted(name, seed=1, noise=40.0)  # nothing is left of the order that was planted
    matching = im.WeightMatching(start)
    one, other = (im.align(pair.objective, pair.a, b, matching) for b in (pair.near, pair.b))
    assert equal(one.target, other.target)
    assert 0 < max(one.moved.values())


@pytest.mark.parametrize("start", ["forward", "barycentre", "identity"])
@pytest.mark.parametrize("name", ["perceptron", "LSTM", "GPT2LMHeadModel"])
def test_the_similarity_never_falls_and_the_distance_follows(name, start):
    pair = planted(name, seed=2, noise=3.0)
    found = im.align(pair.objective, pair.a, pair.b, im.WeightMatching(start))
    trace = found.runs[0].trace
    assert found.runs[0].converged
    assert all(q >= p - 1e-9 * abs(p) for p, q in itertools.pairwise(trace))
    once = [k for k, v in pair.a.items() if v.is_floating_point() and k not in pair.objective.program.tied]
    squares = sum(float(p[k].square().sum()) for p in (pair.a, pair.b) for k in once)
    for similarity, distance in zip(found.similarity, found.distance, strict=True):
        assert distance**2 == pytest.approx(squares - 2 * similarity, rel=1e-9)


def exhaustive(found: im.Objective, a: Params, b: Params) -> float:
    """The largest inner product over all orders, one by one."""
    overlap = Overlap.between(found.structure, a, b)
    first, second = found.structure.groups
    orders = itertools.product(itertools.permutations(range(first.size)), itertools.permutations(range(second.size)))
    named = ({first.name: torch.tensor(p), second.name: torch.tensor(q)} for p, q in orders)
    return max(overlap.value(overlap.permuted(order)) for order in named)


def test_no_search_is_above_the_best_of_all_orders_and_restarts_reach_it():
    module, reached = perceptron([5, 5, 4, 3]).double(), 0
    found = im.Objective(module, "cross_entropy", blobs(12, (5,), 3))
    for seed in range(6):
        a, b = (drawn(found, module, 2 * seed + k) for k in range(2))
        best, tops = exhaustive(found, a, b), []
        for matching in (*MATCHINGS, im.WeightMatching(restarts=9)):
            run = im.align(found, a, b, matching, seed=seed)
            assert len(run.runs) == (10 if matching not in MATCHINGS else 1)
            tops.append(max(one.similarity for one in run.runs))
            gain = tops[-1] - Overlap.between(found.structure, a, b).value(b)
            assert run.similarity[1] - run.similarity[0] == pytest.approx(gain, abs=1e-9)
        assert max(tops) <= best + 1e-9 * abs(best)
        reached += tops[-1] >= best - 1e-9 * abs(best)
    assert reached >= 5


def test_choosing_by_the_loss_half_way():
    problem = permuted()
    found = im.align(problem.objective, problem.a, problem.b, im.WeightMatching(restarts=3, choose="loss"))
    middle = lerp(problem.a, found.target, 0.5)
    losses = [run.midpoint for run in found.runs]
    assert problem.objective.loss(middle) == pytest.approx(min(v for v in losses if v is not None))


def test_a_recurrent_group_needs_the_guard():
    """Ascent by the scores of one axis, the other held, lowers the inner product of some pairs."""
    found, module = objective("LSTM"), ALL["LSTM"].module().double()
    fell = 0
    for seed in range(4):
        a, b = (drawn(found, module, 2 * seed + k) for k in range(2))
        a, b = ({k: 4 * v if "weight_hh" in k else v for k, v in p.items()} for p in (a, b))
        overlap = Overlap.between(found.structure, a, b)
        now = overlap.b
        for _ in range(10):
            for group in found.structure.groups:
                order = torch.from_numpy(_solved(overlap.gram(group, now)))
                step = overlap.permuted({group.name: order}, now)
                fell += overlap.value(step) < overlap.value(now) - 1e-9
                now = step
        run = im.align(found, a, b, im.WeightMatching("identity")).runs[0]
        assert all(q >= p - 1e-9 for p, q in itertools.pairwise(run.trace))
    assert fell


def _solved(scores: Tensor):
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(scores.numpy(), maximize=True)[1]


def test_activations_do_not_see_how_units_are_scaled():
    module = perceptron([5, 7, 6, 4], lambda: nn.LeakyReLU(0.2))  # no unit is still
    problem = classify("leaky", module, (5,))
    g = torch.Generator().manual_seed(7)
    scaled = dict(problem.b)
    for layer, reader in ((0, 2), (2, 4)):
        factor = 0.2 + 3 * torch.rand(len(scaled[f"{layer}.bias"]), generator=g, dtype=torch.float64)
        scaled[f"{layer}.weight"] = scaled[f"{layer}.weight"] * factor[:, None]
        scaled[f"{layer}.bias"] = scaled[f"{layer}.bias"] * factor
        scaled[f"{reader}.weight"] = scaled[f"{reader}.weight"] / factor
    matching = im.ActivationMatching(ties=0.0)
    plain, other = (im.align(problem.objective, problem.a, b, matching) for b in (problem.b, scaled))
    assert all(torch.equal(v, other.permutations[k]) for k, v in plain.permutations.items())
    inner = im.ActivationMatching(ties=0.0, measure="inner")
    plain, other = (im.align(problem.objective, problem.a, b, inner) for b in (problem.b, scaled))
    assert any(not torch.equal(v, other.permutations[k]) for k, v in plain.permutations.items())


def test_units_that_do_not_vary_are_counted_and_told_by_their_weights():
    problem = permuted()
    a, b = (dict(p) for p in (problem.a, problem.b))
    for params, units in ((a, [0, 1]), (b, [7, 6])):  # permuted() reverses the order
        params["0.bias"] = params["0.bias"].index_fill(0, torch.tensor(units), -50.0)
    found = im.align(problem.objective, a, b)
    own = im.align(problem.objective, problem.a, problem.b).dead.get("0", (0, 0))
    assert found.dead["0"] == (own[0] + 2, own[1] + 2)
    assert found.permutations["0"].tolist() == list(range(8))[::-1]


@pytest.mark.parametrize("value", [0.3, 30.7, 313.3, 12345.6])
def test_units_that_never_vary_are_told_whatever_they_are_worth(value):
    """The squares of a large value have no digits left for a variance of 0."""
    module = perceptron([4, 8, 3]).double()
    objective = im.Objective(module, data=blobs(500, (4,), 3))
    ends = [random_params(module, seed) for seed in (1, 2)]
    for p in ends:
        p["0.weight"][:2], p["0.bias"][:2] = 0.0, torch.tensor([value, 1.3 * value])
    assert im.align(objective, ends[0], ends[1], im.ActivationMatching(ties=0.0)).dead == {"0": (2, 2)}


def test_few_examples_are_looked_at_where_few_are_asked():
    problem = permuted()
    few = im.align(problem.objective, problem.a, problem.b, im.ActivationMatching(examples=3, ties=0.0))
    part = im.align(problem.objective.subset(3), problem.a, problem.b, im.ActivationMatching(ties=0.0))
    assert all(torch.equal(v, part.permutations[k]) for k, v in few.permutations.items())


def test_a_permutation_that_changes_the_function_is_an_error(monkeypatch):
    problem = odd_widths()
    exact = Structure.permute

    def broken(self: Structure, params: Params, orders: dict[str, Tensor]) -> Params:
        out = exact(self, params, orders)
        return out | {"2.weight": out["2.weight"].flip(1)}  # a reader that was forgotten

    monkeypatch.setattr(Structure, "permute", broken)
    with pytest.raises(im.IsthmusError, match="the function changed by"):
        im.align(problem.objective, problem.a, problem.b)


def test_running_statistics_are_moved_and_not_compared():
    problem = convolutional()
    found = im.align(problem.objective, problem.a, problem.b, im.WeightMatching())
    far = {k: v * 100 if k.endswith("running_mean") else v for k, v in problem.a.items()}
    other = im.align(problem.objective, far, problem.b, im.WeightMatching())
    assert equal(found.target, other.target)
    assert found.similarity == other.similarity
    order = found.permutations["3"]
    assert torch.equal(found.target["4.running_mean"], problem.b["4.running_mean"][order])


def test_given_permutations_are_made_and_wrong_ones_refused():
    problem = odd_widths()
    found = im.align(problem.objective, problem.a, problem.b, im.Given({"2": [2, 0, 1]}))
    assert found.permutations["2"].tolist() == [2, 0, 1]
    assert torch.equal(found.target["2.bias"], problem.b["2.bias"][[2, 0, 1]])
    first = im.align(problem.objective, problem.a, problem.b)
    assert equal(im.align(problem.objective, problem.a, problem.b, im.Given(first.permutations)).target, first.target)
    for wrong, said in (
        ({"9": [0]}, "groups among"),
        ({"2": [0, 0, 1]}, "each of 0 .. 2 once"),
        ({"2": [1, 0]}, "0 .. 2"),
    ):
        with pytest.raises(im.InputError, match=said):
            im.align(problem.objective, problem.a, problem.b, im.Given(wrong))
    with pytest.raises(im.InputError, match="matching"):
        im.align(problem.objective, problem.a, problem.b, im.WeightMatching)  # type: ignore[arg-type]


def test_an_alignment_is_kept_in_a_file_and_made_on_another_checkpoint(tmp_path):
    problem = permuted()
    found = im.align(problem.objective, problem.a, problem.b)
    im.save_alignment(found, tmp_path / "alone")
    connection = im.connect(problem.objective, problem.a, problem.b, im.Aligned())
    im.save(connection, tmp_path / "path")
    later = {k: v + 0.1 for k, v in problem.b.items()}
    for name in ("alone", "path"):
        read = im.load_alignment(tmp_path / name, problem.objective)
        assert equal(read.apply(later), found.apply(later))
        with pytest.raises(im.InputError, match="this network's groups of units"):
            im.load_alignment(tmp_path / name, odd_widths().objective)
    assert equal(im.load_connection(tmp_path / "path").tensors, connection.tensors)
    plain = im.connect(problem.objective, problem.a, problem.b)
    im.save(plain, tmp_path / "line")
    with pytest.raises(im.FileError, match="aligned nothing"):
        im.load_alignment(tmp_path / "line", problem.objective)
    im.save_params(problem.a, tmp_path / "weights")
    with pytest.raises(im.FileError, match="is no alignment"):
        im.load_alignment(tmp_path / "weights", problem.objective)
    bits = bytearray((tmp_path / "alone").read_bytes())
    bits[-9] ^= 1
    (tmp_path / "flipped").write_bytes(bits)
    with pytest.raises(im.FileError, match="digest"):
        im.load_alignment(tmp_path / "flipped", problem.objective)


def likeness_by_hand(objective, networks):
    """Over all pairs, the sum of the correlations of units of one number, as the weights behind them see them."""
    values = [objective.program.seen(p, [objective.data[0]], ["relu", "relu_1", "relu_2", "relu_3"]) for p in networks]
    total = 0.0
    for p, q in itertools.combinations(values, 2):
        for name in p:
            x, y = (v[name].double() for v in (p, q))
            x, y = (v - v.mean(0) for v in (x, y))
            size = x.norm(dim=0) * y.norm(dim=0)
            total += float(torch.where(size > 1e-9, (x * y).sum(0) / size.clamp(min=1e-9), 0 * size).sum())
    return total


@pytest.mark.parametrize("matching", [im.WeightMatching(), im.ActivationMatching()])
def test_several_networks_in_one_numbering(matching):
    problem = odd_widths()
    models = [random_params(problem.objective._materialised(), seed) for seed in range(4)]
    found = im.align_many(problem.objective, models, matching)
    (trace,) = {one.runs[0].trace for one in found}
    assert equal(found[0].target, models[0])
    assert all(q >= p - 1e-9 for p, q in itertools.pairwise(trace))
    assert trace[-1] > trace[0]
    hidden = [{k: v for k, v in one.target.items() if k != "8.bias"} for one in found]  # which holds no units
    pairs = itertools.combinations(hidden, 2)
    runs = found[0].runs
    assert len(runs) == 1 + isinstance(matching, im.ActivationMatching)
    losses = [run.midpoint for run in runs]
    if len(runs) == 2:
        mean = {k: torch.stack([one.target[k] for one in found]).mean(0) for k in models[0]}
        assert losses[0] == pytest.approx(problem.objective.loss(mean))
        assert float(losses[0] or 0) <= float(losses[1] or 0)
    by_weights = runs[0].start == "together, by weights"
    by_hand = (
        sum(dot(p, q) for p, q in pairs)
        if by_weights
        else likeness_by_hand(problem.objective, [one.target for one in found])
    )
    assert by_hand == pytest.approx(trace[-1], rel=1e-9)
    first, second, third = ([one.apply(model) for one in found[:3]] for model in models[:3])
    assert not equal(first[1], second[1])
    assert equal(third[2], found[2].target)
    # from 1 to 2 by way of 0, and back
    way = found[1].then(found[2].inverse())
    assert equal(way.then(way.inverse()).apply(models[1]), models[1])


def test_lines_before_and_after_and_the_mean():
    """Against the definitions, with statistics of BatchNorm computed again for the mean."""
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double().eval()
    objective, test = (im.Objective(module, data=blobs(n, (5,), 4)) for n in (24, 16))
    models = [random_params(module, seed) for seed in range(3)]
    found = im.align_many(objective, models)
    lines = im.aligned_lines(objective, models, found, test=test, num_points=5)
    for networks, got in ((models, lines.before), ([one.target for one in found], lines.after)):
        for (i, j), measured in got.profiles.items():
            wanted = im.profile(objective, im.Path.through([networks[i], networks[j]]), 5, test=test)
            assert measured.loss.tolist() == wanted.loss.tolist()
            assert measured.test is not None
            assert wanted.test is not None
            assert measured.test.error.tolist() == wanted.test.error.tolist()
        assert got.max == max(p.excess for p in got.profiles.values()) >= got.mean
        again = im.ensemble(objective, networks)
        assert equal(got.average, again.average)
        assert got.scores["loss"] == pytest.approx(again["weight average"].train.loss, rel=1e-9)
        assert got.scores["test_error"] == test.measure(again.average)[1]
    assert not equal(lines.before.average, lines.after.average)
    assert len(repr(lines)) < 200
    assert lines.to_dict()["after"]["lines"][2]["b"] == 2
    alone = im.aligned_lines(objective, models[:2], found[1], num_points=5)
    assert alone.after.excesses == lines.after.excesses[:1]
    for wrong in (found, found[0:1], ()):
        with pytest.raises(im.InputError, match="found: expected what align gave for two models"):
            im.aligned_lines(objective, models[:2], wrong)
    with pytest.raises(im.InputError, match=r"an alignment of models\[1\], got one of another network"):
        im.aligned_lines(objective, [models[0], models[2]], found[1])


def test_pictures_show_the_lines_the_units_and_the_search():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    problem = permuted()
    found = im.align(problem.objective, problem.a, problem.b, im.WeightMatching("identity"))
    lines = im.aligned_lines(problem.objective, [problem.a, problem.b], found, test=problem.objective, num_points=5)
    drawn, units, search = np.ravel(np.array(lines.plot()))
    heights = {round(float(y), 9) for one in drawn.get_lines() for y in one.get_ydata()}
    assert {round(float(v), 9) for one in (lines.before, lines.after) for v in one.profiles[0, 1].loss} == heights
    assert [one.get_linestyle() for one in drawn.get_lines()] == ["--", "-", "--", "-"]
    assert [bar.get_height() for bar in units.patches] == pytest.approx([100 * v for v in found.moved.values()])
    assert search.get_lines()[0].get_ydata().tolist() == list(found.runs[0].trace)
    alone = pyplot.subplots()[1]
    assert found.plot(alone) is alone
    assert np.array(found.plot()).shape == (2,)
    pyplot.close("all")


@pytest.mark.parametrize("matching", [im.WeightMatching(), im.ActivationMatching()])
def test_planted_orders_of_several_networks_are_found(matching):
    pair = planted("perceptron", seed=5)
    g = torch.Generator().manual_seed(9)
    orders = [{k: torch.randperm(len(v), generator=g) for k, v in pair.order.items()} for _ in range(3)]
    models = [pair.a, *(pair.objective.structure.permute(pair.near, order) for order in orders)]
    for one in im.align_many(pair.objective, models, matching)[1:]:
        assert equal(one.target, pair.near)


@pytest.mark.parametrize("matching", [*MATCHINGS, im.RotationMatching()])
def test_streamed_data_give_what_data_in_memory_give(matching):
    problem = odd_widths()
    x, y = problem.objective.data
    assert isinstance(x, Tensor)
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    streamed = im.Objective(problem.objective._materialised(), "cross_entropy", loader, stream=True)
    held, other = (im.align(o, problem.a, problem.b, matching) for o in (problem.objective, streamed))
    assert equal(held.target, other.target)


@cache
def experts() -> tuple[im.Objective, Params]:
    pytest.importorskip("transformers")
    module, x = Logits(network("mixtral")), inputs("mixtral")
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (x, torch.zeros(len(x))))
    return objective, {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("matching", [im.WeightMatching(), im.RotationMatching()])
def test_a_module_that_runs_in_a_narrow_type_only_is_aligned(matching):
    """Experts of transformers are products of groups of rows, which torch has in no wider type than float32."""
    objective, a = experts()
    orders = {group.name: torch.arange(group.size).flip(0) for group in objective.structure.groups}
    found = im.align(objective, a, objective.structure.permute(a, orders), matching)
    assert found.function_error <= 1e-12
    assert found.distance[1] <= 1e-4 * found.distance[0]
