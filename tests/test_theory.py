"""``im.theory``: every premise flips between holds and fails, and bounds are bounds."""

import json
from dataclasses import asdict
from math import isfinite
from typing import Any

import pytest
import torch
from torch import nn

import isthmus as im
from isthmus.theory import THEOREMS, Row, signs
from isthmus.theory.table import CONCLUSION, cells
from isthmus.training.fit import Recipe, fit
from tests.problems import blobs, classify, perceptron, random_params, small_convnet, tanh_regression, with_ridge
from tests.theory_tables import conclusion, one

QUICK: dict[str, Any] = {"masks": 3, "draws": 2, "steps": 40, "examples": 10}


def table(problem, *theorems, **options):
    return im.theory(problem.objective, problem.a, problem.b, theorems=theorems or None, **(QUICK | options))


@pytest.fixture(scope="module")
def wide():
    return classify("wide", perceptron([5, 40, 40, 40, 4]), (5,))


@pytest.fixture(scope="module")
def full(wide):
    return table(wide)


def test_every_theorem_has_its_rows_and_the_conclusion_is_last(full):
    assert [t for t in dict.fromkeys(r.theorem for r in full.rows)] == [name for name, _ in THEOREMS]
    for name, _ in THEOREMS:
        rows = full.of(name)
        if name == signs.NAME:
            assert "this has 4" in rows[0].note
            continue
        if name == "Shevchenko and Mondelli 2020, Theorem 1 (B)":
            assert "one hidden layer, and this has 3" in rows[0].note
            continue
        assert sum(r.premise == CONCLUSION for r in rows) == (0 if name.endswith("Theorem 4") else 1)
        assert name.endswith("Theorem 4") or rows[-1].premise == CONCLUSION
        assert not any("not applicable" in r.note for r in rows)


def test_a_conclusion_holds_exactly_if_all_premises_do_and_only_then_gives_a_bound(full):
    for name, _ in THEOREMS:
        *premises, last = full.of(name)
        verdicts = {r.holds for r in premises}
        if last.premise == CONCLUSION:
            assert last.holds is (False if False in verdicts else None if None in verdicts else True)
            assert last.bound is None or last.holds
    assert {"Theorem 1", "Theorem 4.1", "Corollary 4.2"} <= {n.rpartition(", ")[2] for n in full.bounds}


def test_the_bounds_are_met_by_the_paths_of_the_theorems(wide, full):
    """Dropout with as many subsets is never above Theorem 1's bound; Subnetwork's path is near Theorem 4.1's."""
    top = max(wide.objective.loss(wide.a), wide.objective.loss(wide.b))
    path = im.connect(wide.objective, wide.a, wide.b, im.Dropout(masks=60)).path
    subsets, hub = (conclusion(full, name).bound for name in ("Theorem 1", "Theorem 4.1"))
    assert subsets is not None
    assert hub is not None
    assert top <= im.profile(wide.objective, path, 5).max <= subsets
    losses = [r.measured for r in full.of("Theorem 4.1") if r.measured is not None and "Q_0" not in r.premise]
    assert hub >= max(top, *losses)
    assert conclusion(full, "Corollary 4.2").bound == subsets


def test_the_bound_of_theorem_4_1_is_the_largest_of_its_parts():
    """Low ends and hardly any training: now the subnetworks make the bound, the cheaper of the two hubs among them."""
    makers = []
    for widths in ([5, 20, 20, 4], [5, 5, 4]):
        problem = classify("low", perceptron(widths), (5,))
        ends = []
        for end in (problem.a, problem.b):
            recipe, g = Recipe(lr=0.01, batch=24, steps=300), torch.Generator().manual_seed(0)
            ends.append(
                fit(problem.objective.batch_loss, problem.objective.loss, end, 24, recipe, generator=g, target=1e-2)
            )
        for steps in (1, 100):
            found = im.theory(
                problem.objective,
                ends[0].params,
                ends[1].params,
                theorems=["4.1", "Theorem 1"],
                draws=1,
                steps=steps,
                masks=1,
            )
            Q = {(r.premise, r.end): r.measured or 0.0 for r in found.rows if r.premise.startswith("loss Q_")}
            epsilon = max(one(found, "Theorem 1", "dropout stability", e).measured or 0.0 for e in "ab")
            assert epsilon > 0.1
            assert conclusion(found, "Theorem 1").bound == pytest.approx(max(e.loss for e in ends) + epsilon)
            hub = min(v for (premise, _), v in Q.items() if "Q_0" in premise)
            rest = {k: v for k, v in Q.items() if "Q_0" not in k[0]}
            top = max(ends[0].loss, ends[1].loss)
            assert conclusion(found, "4.1").bound == pytest.approx(max(top, hub, *rest.values()), rel=1e-12)
            makers.append("hub" if hub > max(top, *rest.values()) else max(rest, key=lambda k: rest[k])[0][:8])
    assert {"hub", "loss Q_1"} <= set(makers)


def test_corollary_4_4_flips_with_the_features_and_the_width(wide):
    good = table(wide, "4.4")
    assert all(r.holds for r in good.of("Corollary 4.4"))
    top = max(wide.objective.loss(wide.a), wide.objective.loss(wide.b))
    assert conclusion(good, "4.4").bound == top
    connection = im.connect(wide.objective, wide.a, wide.b, im.Subnetwork(inner=im.Separated()))
    assert im.certify(wide.objective, connection.path).bound <= top * (1 + 1e-9)
    blind = im.theory(
        wide.objective, wide.a, wide.b | {"4.bias": torch.full((40,), -99.0).double()}, theorems=["4.4"], **QUICK
    )
    assert one(blind, "4.4", "layer 3", "a").holds is True
    assert one(blind, "4.4", "layer 3", "b").holds is False
    assert conclusion(blind, "4.4").holds is False
    assert conclusion(blind, "4.4").bound is None
    thin = classify("thin", perceptron([5, 40, 7, 4]), (5,))
    assert one(table(thin, "4.4"), "4.4", "hidden width").holds is False


def test_a_layer_whose_random_set_fails_but_that_is_separable_stays_open():
    """One unit of 4 tells the classes apart, the others are off: half of the sets of 2 miss it."""
    module = perceptron([1, 4, 2]).double()
    x = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]
    a = random_params(module, 0) | {"0.weight": torch.zeros(4, 1).double(), "0.bias": torch.zeros(4).double()}
    a["0.weight"][0] = 1.0
    objective = im.Objective(module, data=(x, (x[:, 0] > 0).long()))
    found = {
        one(im.theory(objective, a, a, theorems=["4.4"], seed=s, **QUICK), "4.4", "layer 1", "a").holds
        for s in range(8)
    }
    assert found == {True, None}


def curve(widths, N=6):
    t = torch.linspace(-1, 1, N, dtype=torch.float64)
    x = torch.stack([t**k for k in range(1, widths[0] + 1)], 1)
    module = perceptron(widths).double()
    objective = im.Objective(module, "mse", (x, t[:, None]))
    return objective, random_params(module, 1) | {
        f"{2 * l}.bias": torch.full((n,), 50.0 * 10**l).double() for l, n in enumerate(widths[1:-2])
    }


def test_targets_are_the_largest_that_there_are(full):
    labels = one(full, "4.3", "targets")
    assert (labels.measured, labels.holds, labels.note) == (1.0, True, "one-hot class labels")
    objective, a = curve([3, 4, 16, 8, 1])
    x, y = objective.data
    for scale in (0.5, 3.0):
        numbers = one(im.theory(objective.on((x, scale * y)), a, a, theorems=["4.3"], **QUICK), "4.3", "targets")
        assert (numbers.measured, numbers.holds) == (scale, scale <= 1)


def test_corollary_4_3_holds_where_all_its_assumptions_do():
    objective, a = curve([3, 4, 16, 8, 1])
    b = {k: v * 1.01 for k, v in a.items()}
    found = im.theory(objective, a, b, theorems=["4.3"], **QUICK)
    assert [r.premise for r in found.rows if r.holds is not True] == []
    bound = conclusion(found, "4.3").bound
    assert bound is not None
    assert bound >= max(objective.loss(a), objective.loss(b))
    connection = im.connect(objective, a, b, im.Subnetwork(draws=5, inner=im.Memorised()))
    certificate = im.certify(objective, connection.path)
    assert certificate.proved


def test_epsilon_of_corollary_4_3_leaves_the_penalty_out():
    """The network's own loss is 0, and what its penalty adds is no part of the difference."""
    given, a = curve([3, 4, 16, 8, 1])
    exact = (given.data[0], given.outputs(a))
    objective = im.Objective(given.skeleton, "mse", exact, penalty=im.Ridge(1e3))
    found = im.theory(objective, a, a, theorems=["4.1", "4.3"], **QUICK)
    last, epsilon = one(found, "4.1", "loss Q_3", "a"), one(found, "4.3", "(A1-b)", "a")
    assert last.measured is not None
    assert last.measured > 0
    assert epsilon.measured == pytest.approx(last.measured)


@pytest.mark.parametrize(
    ("change", "premise", "end"),
    [
        (lambda o, a: curve([3, 4, 15, 7, 1]), "(A1) examples", ""),
        # affine features of points in R^3: more than 8 of them on a hyperplane of R^8
        (lambda o, a: curve([3, 4, 16, 16, 1], 9), "(A2)", "a"),
        (lambda o, a: (o, a | {"0.bias": torch.full((4,), -1e9).double()}), "(A3) equal features in layer 1", "a"),
        (lambda o, a: (o.on((o.data[0], 2 * o.data[1])), a), "targets", ""),
    ],
)
def test_each_assumption_of_corollary_4_3_fails_by_itself(change, premise, end):
    objective, a = change(*curve([3, 4, 16, 8, 1]))
    found = im.theory(objective, a, a, theorems=["4.3"], **QUICK)
    assert {r.premise for r in found.rows if r.holds is False} == {one(found, "4.3", premise, end).premise, CONCLUSION}
    assert conclusion(found, "4.3").bound is None


def test_equal_inputs_are_counted_and_so_are_their_features():
    objective, a = curve([3, 4, 16, 8, 1], 3)
    twice = objective.on(tuple(torch.cat([v, v]) for v in objective.data))  # type: ignore[arg-type]
    found = im.theory(twice, a, a, theorems=["4.3"], **QUICK)
    assert one(found, "4.3", "inputs that equal").measured == 3
    failing = {r.premise for r in found.rows if r.holds is False}
    assert failing == {"inputs that equal an earlier one", "(A3) equal features in layer 1", CONCLUSION}


def test_penalties_and_losses_that_are_not_convex_fail_a_premise():
    ridge = table(with_ridge(), "Theorem 1", "Theorem 4.1")
    assert one(ridge, "Theorem 1", "no penalty").holds is False
    assert not ridge.bounds
    problem = classify("plain", perceptron([5, 9, 9, 4]), (5,))
    wild = im.Objective(problem.objective.skeleton, lambda z, y: z.sin().sum(1), problem.objective.data)
    found = im.theory(wild, problem.a, problem.b, theorems=["Theorem 1"], **QUICK)
    assert found.rows[0].holds is False
    assert not found.bounds


def test_the_row_of_an_end_says_how_much_of_the_loss_is_the_penalty_where_there_is_one():
    for problem in (with_ridge(), classify("plain", perceptron([5, 9, 9, 4]), (5,))):
        found = table(problem, "2019, Theorem 1")
        for end, p in (("a", problem.a), ("b", problem.b)):
            worst = im.dropout_stability(problem.objective, p, masks=QUICK["masks"], seed=0).limited_by
            said = f"whose penalty is {worst.penalty:.4g}" if problem.objective.penalty else f"layer {worst.entry}"
            assert one(found, "Theorem 1", "dropout stability", end).note.split(", ")[-1].endswith(said)


def test_convolutional_networks_are_outside_the_corollaries_but_measured():
    found = table(classify("convolutional", small_convnet(), (1, 8, 8)))
    for name in ("4.3", "4.4"):
        row = one(found, name, "linear layers")
        assert row.holds is False
        assert "flattened" in row.note
        assert conclusion(found, name).bound is None
    assert one(found, "4.4", "layer 2", "a").measured is not None
    assert conclusion(found, "Theorem 4.1").bound is not None
    assert one(found, "Theorem 2", "noise stability", "b").measured is not None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def test_a_network_outside_every_theorem_gets_a_row_that_says_why():
    problem = classify("recurrent", Recurrent(), (6, 3))  # type: ignore[arg-type]
    found = table(problem)
    assert len(found.rows) == len(THEOREMS)
    assert all(r.holds is None and r.bound is None for r in found.rows)
    assert all("not applicable" in r.note for r in found.rows if not r.theorem.endswith("Theorem 4"))


def test_activations_but_relu_are_refused_where_the_theorem_needs_relu():
    found = table(tanh_regression())
    assert one(found, "Theorem 2", "the theorem's setting").note.startswith("not applicable")
    assert one(found, "4.3", "ReLU").holds is False
    assert "one class per example" in one(found, "4.4", "the theorem's setting").note
    assert conclusion(found, "Theorem 4.1").bound is not None


def test_noise_rows_say_on_how_many_examples(wide, full):
    assert "first 10 examples" in one(full, "Theorem 2", "noise stability", "a").note
    found = table(wide, "Theorem 2", examples=None)
    assert one(found, "Theorem 2", "noise stability", "a").note == "p = 0.5"


@pytest.mark.parametrize("widths", [(6, 40, 40), (40, 6, 40), (40, 40, 6)])
def test_the_narrowest_hidden_layer_says_how_wide_theta_star_may_be(widths):
    problem = classify("one narrow layer", perceptron([5, *widths, 4]), (5,))
    row = one(table(problem, "Theorem 3"), "Theorem 3", "narrow network")
    assert row.measured == 2  # a third of 6: p / 1.5 with p = 1/2
    assert "p = 0.5" in row.note


def test_tables_travel(full):
    plain = json.loads(json.dumps(full.to_dict()))
    assert [Row(**row) for row in plain["rows"]] == [Row(**asdict(r)) for r in full.rows]
    lines = full.to_markdown().splitlines()
    assert len(lines) == len(full.rows) + 2
    assert lines[0].startswith("| theorem | premise | end | measured | needed | holds | bound | note |")
    for row in full.rows:
        shown = cells(row)[6]
        assert (shown == "") if row.bound is None else (float(shown) >= row.bound)
    marked = im.Theory((Row("T", "|x| < 1", holds=True, note="a|b"),)).to_markdown().splitlines()[-1]
    assert marked == r"| T | \|x\| < 1 |  |  |  | yes |  | a\|b |"


def test_the_same_seed_gives_the_same_table_and_nothing_is_written(wide):
    before = {k: v.clone() for k, v in wide.a.items()}
    state = torch.random.get_rng_state()
    assert table(wide) == table(wide)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in wide.a.items())


def test_progress_is_reported(wide):
    seen = set()
    im.theory(wide.objective, wide.a, wide.b, **QUICK, progress=lambda what, done, total: seen.add(what))
    assert {"separating features (a)", "testing how features lie (b)"} <= seen


def test_misuse_is_refused(wide):
    with pytest.raises(im.InputError, match="theorems: expected part of a name"):
        table(wide, "Theorem 9")
    with pytest.raises(im.InputError, match="masks: expected a whole number >= 1"):
        table(wide, masks=0)
    with pytest.raises(im.InputError, match="b: expected the key"):
        im.theory(wide.objective, wide.a, {})
    x, y = blobs(8, (5,), 4)
    flat = im.Objective(nn.Linear(5, 4).double(), data=(x, y))
    point = random_params(nn.Linear(5, 4), 0)
    assert all(
        "not applicable" in r.note for r in im.theory(flat, point, point, **QUICK).rows if "Theorem 4" != r.theorem[-9:]
    )


class Steps(nn.Module):
    def forward(self, x):
        return x.round()


def test_corollary_4_4_asks_for_an_interval_on_which_the_activation_is_strictly_monotonic(wide):
    row = one(table(wide, "4.4"), "4.4", "interval on which the activation")
    assert (row.measured, row.needed, row.holds) == (10.0, "> 0", True)
    for activation, length in ((nn.Tanh, 20.0), (nn.ReLU6, 6.0), (Steps, 0.0)):
        found = table(classify("activation", perceptron([5, 40, 4], activation), (5,)), "4.4")
        row = one(found, "4.4", "interval on which the activation")
        assert row.measured == pytest.approx(length)
        assert row.holds is (length > 0)
        assert length or conclusion(found, "4.4").bound is None


@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("factor", [1e120, 1e200])
def test_an_end_whose_loss_is_not_finite_is_refused_by_name_and_enters_no_bound(wide, end, factor):
    """The larger of a number and NaN is the number: the other end's loss would pass for a bound."""
    ends = {"a": wide.a, "b": wide.b}
    ends[end] = {k: v * factor for k, v in ends[end].items()}
    with pytest.raises(im.InputError, match=f"{end}: expected a network whose loss on these data is finite, got nan"):
        im.theory(wide.objective, ends["a"], ends["b"], **QUICK)


@pytest.mark.parametrize(
    ("activation", "bias"),
    [(nn.ReLU, True), (lambda: nn.LeakyReLU(0.1), False), (nn.Identity, True), (nn.Tanh, False)],
)
def test_degenerate_networks_and_data_give_finite_bounds_and_no_error(activation, bias):
    module = perceptron([5, 17, 9, 3], activation, bias=bias).double()
    x, y = blobs(8, (5,), 3)
    a, b = random_params(module, 1), random_params(module, 2)
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    cases: list[tuple[Any, Any, Any, Any]] = [
        (x, y, zero, zero),
        (x, y, zero, b),
        (0 * x, y, a, b),
        (x[:1].expand(8, 5).clone(), y, a, b),
        (x[:1], y[:1], a, b),
        (x, 0 * y, a, b),
    ]
    for inputs, labels, first, second in cases:
        found = im.theory(im.Objective(module, data=(inputs, labels)), first, second, **QUICK)
        assert all(isfinite(bound) for bound in found.bounds.values())
        assert not [r for r in found.rows if r.measured is not None and r.measured != r.measured]


@pytest.mark.parametrize("widths", [[5, 0, 3], [5, 4, 0, 3]])
def test_layers_without_units_are_refused_by_name(widths):
    module = perceptron(widths).double()
    objective = im.Objective(module, data=blobs(8, (5,), 3))
    found = im.theory(objective, module.state_dict(), module.state_dict(), **QUICK)
    assert not found.bounds
    assert all("a layer has no units" in r.note for r in found.rows if not r.theorem.endswith("2019, Theorem 4"))


def test_signs_of_output_weights_make_every_path_meet_a_smaller_network():
    """One unit: the wall is the best constant; more: it is not known here; as many at both ends: nothing is said."""
    x, y = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None], torch.arange(6.0, dtype=torch.float64)[:, None]
    for units, bias, least in ((1, True, float(y.var(correction=0))), (1, False, 55 / 6), (3, True, None)):
        module = perceptron([1, units, 1], nn.Tanh, bias=bias)
        objective, a = im.Objective(module, "mse", (x, y)), random_params(module, 0)
        b = a | {"2.weight": -a["2.weight"]}
        first, _, last = im.theory(objective, a, b, theorems=[signs.NAME]).rows
        assert first.holds
        assert last.holds
        assert last.bound is None
        assert last.measured == (None if least is None else pytest.approx(least))
        assert least is None or im.profile(objective, im.Path.through([a, b])).max >= least
        assert im.theory(objective, a, a, theorems=[signs.NAME]).rows[-1].holds is None
    wide = perceptron([1, 2, 3])
    two = im.Objective(wide, data=(x, torch.arange(6) % 3))
    row = im.theory(two, random_params(wide, 0), random_params(wide, 1), theorems=[signs.NAME]).rows[0]
    assert "needs one output" in row.note
