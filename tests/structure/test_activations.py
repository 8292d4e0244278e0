"""What a chain tells of its activations, and the random weights that it draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import UnsupportedError
from isthmus.structure.activations import monotonic
from isthmus.structure.chain import Chain, chain_of
from tests.problems import classify, perceptron
from tests.structure.models import Lambda


def chain(activation: type[nn.Module], widths: tuple[int, ...] = (5, 9, 4)) -> Chain:
    problem = classify("chain", perceptron(list(widths), activation), (5,))
    return chain_of(problem.objective.program, problem.objective.structure)


@pytest.mark.parametrize(
    ("activation", "length"), [(nn.ReLU, 10.0), (nn.LeakyReLU, 20.0), (nn.ReLU6, 6.0), (nn.Softplus, 20.0)]
)
def test_the_longest_interval_on_which_an_activation_is_strictly_monotonic(activation, length):
    assert monotonic(chain(activation), 1) == pytest.approx(length, abs=0.01)


def test_the_last_layer_has_half_the_variance_of_hes_weights():
    """No ReLU follows it: outputs are as large as what it reads."""
    wide = chain(nn.ReLU, (5, 400, 300, 4))
    like = {layer.weight: torch.zeros((), dtype=torch.float64) for layer in wide.layers}
    A = wide.he_init(torch.Generator().manual_seed(0), like).A
    assert [float(A[l].square().mean()) * w for l, w in ((2, 400), (3, 300))] == pytest.approx([2.0, 1.0], rel=0.1)


@pytest.mark.parametrize("bias", [False, True])
def test_a_number_that_divides_the_outputs_is_moved_below_the_last_layer_where_that_has_no_bias(bias):
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=bias), Lambda(lambda x: x / 7)).double()
    problem = classify("divided", module, (5,))
    program, structure = problem.objective.program, problem.objective.structure
    if bias:
        with pytest.raises(UnsupportedError, match="it follows the output layer"):
            chain_of(program, structure)
        return
    assert chain_of(program, structure).layers[0].nodes[-1].base == "div"
