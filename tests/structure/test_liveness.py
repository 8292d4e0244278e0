"""Dead and equal units, and how values depend on t, against the network itself."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from isthmus.evaluate.plan import combine
from isthmus.params import Params
from isthmus.program.export import trace
from isthmus.structure import derive_structure
from isthmus.structure.liveness import AFFINE, CONSTANT, NEITHER, changed_tensors, effective_changes, levels, live_units
from tests.evaluate.networks import CASES, ends
from tests.problems import blobs, perceptron, random_params, small_convnet


def network(make, shape):
    module = make().double().eval()
    x, _ = blobs(4, shape, 4)
    return module, trace(module, (x,)), derive_structure(module, (x,)), x


@pytest.fixture
def chain():
    return network(lambda: perceptron([5, 6, 7, 4]), (5,))


def reachable(module: nn.Module, params: Params, names: tuple[str, ...], unit: int, x: torch.Tensor) -> bool:
    """Whether the output changes when the incoming weights of a unit do."""
    changed = dict(params)
    for name in names:
        changed[name] = params[name].clone()
        changed[name][unit] += 3.0
    return not torch.equal(
        torch.func.functional_call(module, params, x), torch.func.functional_call(module, changed, x)
    )


def test_a_unit_is_live_exactly_if_its_row_acts(chain):
    module, _, structure, _ = chain
    p = random_params(module, 1)
    p["2.weight"][:, [1, 3]] = 0
    p["2.weight"][:4, 2] = 0  # unit 2 of the first layer now reaches only rows 4, 5, 6 ...
    p["4.weight"][:, 4:] = 0  # ... which reach nothing
    live = live_units([p], structure)
    assert live["0"].tolist() == [True, False, False, False, True, True]
    assert live["2"].tolist() == [True] * 4 + [False] * 3
    g = torch.Generator().manual_seed(0)
    many = torch.randn(500, 5, generator=g, dtype=torch.float64)
    for u in range(6):
        assert reachable(module, p, ("0.weight", "0.bias"), u, many) == bool(live["0"][u])


def test_a_unit_dead_at_one_control_point_only_is_live(chain):
    module, _, structure, _ = chain
    a, b = random_params(module, 1), random_params(module, 2)
    a["2.weight"][:, :3] = 0
    b["2.weight"][:, 2:] = 0
    assert live_units([a, b], structure)["0"].tolist() == [True, True, False, True, True, True]


def test_channels_with_batch_norm_die_with_all_their_positions():
    module, _, structure, _ = network(small_convnet, (1, 8, 8))
    p = random_params(module, 1)
    p["7.weight"][:, 4:8] = 0  # all four positions of channel 1
    p["7.weight"][:, 8:11] = 0  # three of the four of channel 2
    assert live_units([p], structure)["3"].tolist() == [True, False, True, True, True, True]


def effective(control, structure, program):
    return effective_changes(control, changed_tensors(control), live_units(control, structure), structure, program)


def test_what_does_not_matter_is_left_out_and_what_does_is_not(chain):
    module, program, structure, x = chain
    a, other = random_params(module, 1), random_params(module, 2)
    a["2.weight"][:, 1] = 0
    for rows, matters in (([1], False), ([0], True), ([0, 1], True)):
        b = {k: v.clone() for k, v in a.items()}
        b["0.weight"][rows] = other["0.weight"][rows]
        assert effective((a, b), structure, program) == ({"0.weight"} if matters else set())
        same = torch.allclose(*(torch.func.functional_call(module, p, x) for p in (a, b)), rtol=1e-13)
        assert same == (not matters)


def test_equal_units_may_exchange_outgoing_weights_through_two_layers(chain):
    module, program, structure, x = chain
    a = random_params(module, 1)
    for name in ("0.weight", "0.bias"):
        a[name][1] = a[name][0]
    # rows 0 and 1 of the second layer agree only after units 0 and 1 of the first are merged
    a["2.weight"][1] = a["2.weight"][0]
    a["2.weight"][1, 0], a["2.weight"][1, 1] = a["2.weight"][0, 1], a["2.weight"][0, 0]
    a["2.bias"][1] = a["2.bias"][0]
    b = {k: v.clone() for k, v in a.items()}
    b["4.weight"][:, 0], b["4.weight"][:, 1] = a["4.weight"][:, 1], a["4.weight"][:, 0]
    assert effective((a, b), structure, program) == set()
    assert torch.allclose(*(torch.func.functional_call(module, p, x) for p in (a, b)), rtol=1e-12)
    b["4.weight"][0, 0] += 1
    assert effective((a, b), structure, program) == {"4.weight"}
    a["2.bias"][1] += 1e-9  # no longer equal
    assert effective((a, {**b, "2.bias": a["2.bias"]}), structure, program) == {"4.weight"}


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "not exportable"], ids=lambda c: c.name)
def test_levels_are_what_the_values_do(case):
    """Every value that is called constant or affine is so, along a line and along a curve of degree 2."""
    module = case.module().double().eval()
    x, _ = blobs(4, case.shape, 4)
    program = trace(module, (x,))
    a, b, c = ends(case, count=3)

    def values(params):
        env = {p: params[n] for p, n in program.tensors.items()} | dict(program.constants) | {program.inputs[0]: x}
        for node in program.nodes:
            args = tree_map(lambda v: env[v.name] if hasattr(v, "name") else v, node.args)
            env[node.name] = node.target(*args, **node.kwargs)
        return env

    for name in a:
        if not a[name].is_floating_point():
            continue
        points = [{**a, name: v[name]} for v in (a, b, c)]
        level, culprit = levels(program, {name})
        at = values({**a, name: combine([p[name] for p in points], 0.3)})
        known = [values(p) for p in points]
        for node in program.nodes:
            if level[node.name] == NEITHER or node.shape is None:
                continue
            want = known[0][node.name] if level[node.name] == CONSTANT else combine([v[node.name] for v in known], 0.3)
            torch.testing.assert_close(at[node.name], want, rtol=1e-9, atol=1e-11, msg=f"{name}: {node.op}")
        assert (culprit != "") == (NEITHER in level.values())
        assert AFFINE in level.values()
