"""Every layer that torch.nn has: it has a rule, or the reason why it has none is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import isthmus as im
from tests.certify.torch_layers import IMAGE, LINE, ROWS, TORCH, TORCH_LAYERS, VOLUME, Between
from tests.problems import blobs, random_params

WITH_WEIGHTS = """BatchNorm1d BatchNorm2d Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
Embedding GRU GRUCell GroupNorm LSTM LSTMCell LayerNorm Linear MultiheadAttention NonDynamicallyQuantizableLinear
RMSNorm RNN RNNBase RNNCell RNNCellBase SyncBatchNorm Transformer TransformerDecoder TransformerDecoderLayer
TransformerEncoder TransformerEncoderLayer"""
"""Layers with weights, which other cases hold."""
NO_LAYERS = "Module ModuleDict ModuleList Parameter ParameterDict ParameterList Sequential Container DataParallel"
DECIDED = {
    "AdaptiveLogSoftmaxWithLoss": "it is a loss",
    "CrossMapLRN2d": "torch.export cannot follow it; LocalResponseNorm is the same",
    "EmbeddingBag": "no rule yet",
    "FractionalMaxPool2d": "it draws random numbers in evaluation mode too",
    "FractionalMaxPool3d": "it draws random numbers in evaluation mode too",
    "LinearCrossEntropyLoss": "it is a loss",
    "MaxUnpool1d": "it reads places that another layer chose",
    "MaxUnpool2d": "it reads places that another layer chose",
    "MaxUnpool3d": "it reads places that another layer chose",
}
"""Layers without a rule, and why."""
FEW = {"Hardshrink", "Threshold that jumps", "MaxPool2d beyond the padding", "PixelShuffle", "Bilinear", "steps"}
X, Y = blobs(6, (4,), 4)


def test_every_layer_of_torch_is_in_a_case_or_its_absence_is_explained():
    layers = {
        name for name in dir(nn)
        if isinstance(kind := getattr(nn, name), type) and issubclass(kind, nn.Module) and "Lazy" not in name
    }  # fmt: skip
    losses = {name for name in layers if "Loss" in name}
    held = {name.replace(",", " ").split()[0] for name in TORCH_LAYERS}
    assert layers - losses <= held | {*WITH_WEIGHTS.split(), *NO_LAYERS.split(), *DECIDED}
    assert not held & {*DECIDED}


@pytest.mark.parametrize("model", ["box", "chord"])
@pytest.mark.parametrize("name", sorted(FEW))
def test_layers_are_proved_by_both_models(name, model):
    module = TORCH[name]().double().eval()
    objective = im.Objective(module, data=(X, Y))
    a, b = random_params(module, 1), random_params(module, 2)
    path = im.Path.through([a, {k: a[k] + (b[k] - a[k]) / 8 for k in a}])
    c = im.certify(objective, path, 0.5, model=model, budget=4)
    assert c.proved, c.summary
    assert max(objective.loss(path.at(k / 50)) for k in range(51)) <= c.bound


@pytest.mark.parametrize(
    ("layer", "shape", "why"),
    [
        (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE, "weights of both signs"),
        (nn.LPPool1d(2, 2), ROWS, "did not become finite"),
    ],
)
def test_what_has_no_bound_says_why(layer, shape, why):
    module = Between(layer, shape).double().eval()
    objective = im.Objective(module, data=(X, Y))
    c = im.certify(objective, im.Path.through([random_params(module, 1), random_params(module, 2)]), budget=1)
    assert not c.proved
    assert why in c.segments[0].why


def test_a_value_at_a_jump_is_within_its_form():
    """The output jumps from 0 to 1 where a weight passes 1: the bound holds on both sides, and the form is no wider."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Hardshrink(1.0)).double()
    objective = im.Objective(module, "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
    path = im.Path.through([{"0.weight": torch.tensor([[w]])} for w in (0.5, 1.5)])
    c = im.certify(objective, path)
    assert c.proved
    assert 2.25 <= c.bound <= 2.25 * 1.01
    still = im.certify(objective, im.Path.through([{"0.weight": torch.tensor([[w]])} for w in (0.9, 1.0)]))
    assert 1.0 <= still.bound <= 1.0 + 1e-6  # at 1 itself the output is 0, but rounding is enough to pass it


@pytest.mark.parametrize("shape", [LINE, IMAGE, VOLUME])
def test_a_window_of_padding_alone_is_refused(shape):
    n = len(shape) - 1
    layer = [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d][n - 1](2, 2, 1, 2)
    module = Between(lambda h: layer(h[(..., *[slice(0, 1)] * n)]).clamp(-1, 1), shape).double().eval()
    objective = im.Objective(module, data=(X, Y))
    c = im.certify(objective, im.Path.through([random_params(module, 1), random_params(module, 2)]), budget=1)
    assert "a window of padding alone" in c.segments[0].why
