"""One small model per rule: what it is, and the groups that it must have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from isthmus.program.export import Program, trace
from isthmus.structure import Structure, structure_of
from tests.architectures import Named, noise, tokens
from tests.structure import models as m
from tests.structure import sequences as s
from tests.structure.models import Lambda, between, between_convs
from tests.structure.sequences import LanguageModel


@dataclass(frozen=True, eq=False)
class Case(Named):
    """A module, the arguments of its forward pass, and name -> size of its groups (negative: not separable)."""

    args: tuple[Any, ...]
    groups: dict[str, int]

    @cached_property
    def program(self) -> Program:
        """Its program, traced once."""
        return trace(self.module(), self.args)

    @cached_property
    def structure(self) -> Structure:
        """Its groups, derived once and not verified."""
        return structure_of(self.program, {k: v.shape for k, v in self.module().state_dict().items()})


ACTIVATIONS = [
    *(nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid()),
    *(nn.Softplus(), nn.Hardtanh(), nn.ReLU6(), nn.Mish(), nn.Hardswish(), nn.SELU(), nn.Softsign(), nn.PReLU()),
    *(nn.Identity(), nn.Dropout(0.5), nn.LogSigmoid(), nn.Hardsigmoid(), nn.CELU(), nn.PReLU(6)),
]
X, IMAGE, LINE, SEQUENCE = noise(3, 4), noise(3, 3, 8, 8), noise(3, 3, 9), noise(3, 7, 5)
NUMBERS = torch.tensor([0, 2, 5])
RESIDUAL = {"wte": -12, "block.qkv.heads": 3, "block.qkv.head_dim": -4, "block.qkv.value_dim": 4, "block.up": 24}
ENCODER = {"embedding": -8} | {
    f"encoder.layers.{i}.{k}": n
    for i in (0, 1)
    for k, n in (("self_attn.heads", 2), ("self_attn.head_dim", -4), ("self_attn.value_dim", 4), ("linear1", 16))
}

CASES = [
    Case(
        "perceptron",
        lambda: between(nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)),
        (X,),
        {"0": 6, "2": 5, "4": 6},
    ),
    Case("no bias", lambda: nn.Sequential(nn.Linear(4, 6, False), nn.ReLU(), nn.Linear(6, 3, False)), (X,), {"0": 6}),
    *(Case(f"activation {f}", lambda f=f: between(f), (X,), {"0": 6}) for f in ACTIVATIONS),
    Case("BatchNorm1d", lambda: between(nn.BatchNorm1d(6), nn.ReLU()), (X,), {"0": 6}),
    Case("LayerNorm", lambda: between(nn.LayerNorm(6), nn.ReLU()), (X,), {"0": -6}),
    Case("softmax", lambda: between(nn.Softmax(1)), (X,), {"0": -6}),
    Case("GLU", lambda: nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 3)), (X,), {"0": 6}),
    Case(
        "log_softmax out",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LogSoftmax(1)),
        (X,),
        {"0": 6},
    ),
    Case(
        "max pool, flatten",
        lambda: between_convs(
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.Unflatten(1, (5, 1, 1)), read=5
        ),
        (IMAGE,),
        {"0": 4, "4": 5},
    ),
    *(
        Case(f"pool {pool}", lambda pool=pool: between_convs(pool), (IMAGE,), {"0": 4})
        for pool in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2))
    ),
    Case(
        "conv1d",
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.AvgPool1d(2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3)
        ),
        (LINE,),
        {"0": 4},
    ),
    Case(
        "conv same",
        lambda: between_convs(nn.ReLU(), nn.Conv2d(4, 5, 3, padding="same", dilation=2), nn.Tanh(), read=5),
        (IMAGE,),
        {"0": 4, "2": 5},
    ),
    Case(
        "transposed conv",
        lambda: between_convs(nn.ConvTranspose2d(4, 5, 2, 2), nn.ReLU(), read=5),
        (IMAGE,),
        {"0": 4, "1": 5},
    ),
    *(
        Case(name, lambda conv=conv, n=n: between_convs(conv, nn.ReLU(), read=n), (IMAGE,), groups)
        for name, conv, n, groups in (
            ("grouped conv", nn.Conv2d(4, 6, 3, groups=2), 6, {"0": 2, "0#2": 2, "1": 3}),
            ("grouped transposed conv", nn.ConvTranspose2d(4, 6, 2, 2, groups=2), 6, {"0": 2, "0#2": 2, "1": 3}),
            ("depthwise conv", nn.Conv2d(4, 4, 3, groups=4), 4, {"0": 4}),
            ("two filters for each channel", nn.Conv2d(4, 8, 3, groups=4, bias=False), 8, {"0": 4, "1": 2}),
        )
    ),
    Case("GroupNorm", lambda: between_convs(nn.GroupNorm(2, 4), nn.ReLU()), (IMAGE,), {"0.groups": 2, "0": -2}),
    Case(
        "InstanceNorm",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 2, 1)),
        (IMAGE,),
        {"0": 4},
    ),
    Case("VGG with BatchNorm", m.vgg, (IMAGE,), {"0": 4, "4": 5, "9": 6}),
    Case("ResNet", m.ResNet, (IMAGE,), {"stem": 4, "blocks.0.conv1": 4, "blocks.1.conv1": 6, "blocks.1.conv2": 6}),
    Case("padded shortcut", m.PaddedShortcut, (IMAGE,), {"stem": 4, "conv": 2, "conv#2": 2}),
    Case("LSTM", LanguageModel, (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case(
        "LSTM without bias",
        lambda: LanguageModel(bias=False),
        (tokens(3, 5),),
        {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8},
    ),
    Case(
        "LSTM, both directions",
        lambda: LanguageModel(bidirectional=True),
        (tokens(3, 5),),
        {"embedding": 6} | {f"rnn.hidden.{i}{r}": 8 for i in (0, 1) for r in ("", ".reverse")},
    ),
    Case("LSTM, tied", lambda: LanguageModel(tied=True), (tokens(3, 5),), {"embedding": -6, "rnn.hidden.0": 6}),
    Case(
        "LSTM, last state",
        s.LastState,
        (noise(3, 4, 3),),
        {f"rnn.hidden.{i}{r}": 5 for i in (0, 1) for r in ("", ".reverse")},
    ),
    Case("GRU", lambda: LanguageModel(nn.GRU), (tokens(3, 5),), {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8}),
    Case(
        "plain RNN",
        lambda: LanguageModel(nn.RNN),
        (tokens(3, 5),),
        {"embedding": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8},
    ),
    Case("GPT", s.GPT, (tokens(3, 5),), RESIDUAL),
    Case("GPT, tied", lambda: s.GPT(tied=True), (tokens(3, 5),), RESIDUAL),
    Case(
        "GPT, hand-written attention",
        lambda: s.GPT(s.HandBlock),
        (tokens(3, 5),),
        {"wte": -12, "block.qkv": 3, "block.qkv#2": -4, "block.qkv#3": 4, "block.up": 24},
    ),
    Case("TransformerEncoder", s.Transformer, (SEQUENCE,), ENCODER),
    Case(
        "TransformerEncoder, norm first",
        lambda: s.Transformer(norm_first=True, activation="gelu"),
        (SEQUENCE,),
        ENCODER,
    ),
    Case(
        "ViT",
        s.ViT,
        (noise(3, 3, 4, 4),),
        {"patch": 8} | {f"attention.{k}": n for k, n in (("heads", 2), ("head_dim", -4), ("value_dim", 4))},
    ),
    Case("cat and split", m.Branches, (X,), {"left": 3, "right": 5, "join": 2, "join#2": 4}),
    Case("SwiGLU, RMSNorm", m.Gated, (X,), {"gate": 6, "down": -5}),
    Case("low rank", m.LowRank, (X,), {"A": 2, "W": 6}),
    Case("raw weights", m.Raw, (X,), {"U": 6, "V": 5, "W": 7}),
    Case("reshapes", m.Reshaped, (noise(3, 3, 5, 5),), {"conv": 4, "fc": 2, "fc#2": 3, "mix": 5}),
    Case("shared layer", m.Shared, (X,), {"inp": 6}),
    Case(
        "weight_norm",
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            nn.ReLU(),
            nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
            nn.ReLU(),
            nn.Linear(5, 3),
        ),
        (X,),
        {"0": -6, "2.parametrizations.weight": 5},
    ),
    Case(
        "maxout",
        lambda: nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (6, 2)), Lambda(lambda x: x.amax(-1)), nn.Linear(6, 3)),
        (X,),
        {"0": 6, "0#2": -2},
    ),
    Case(
        "channel shuffle",
        lambda: between_convs(nn.Unflatten(1, (2, 2)), Lambda(lambda x: x.transpose(1, 2).flatten(1, 2))),
        (IMAGE,),
        {"0": 2, "0#2": 2},
    ),
    Case("rotary positions", s.Rotary, (tokens(3, 5),), {"embedding": -16, "q.heads": 2, "v.value_dim": 8}),
    Case("attention by einsum", s.EinsumAttention, (SEQUENCE,), {"q": 3, "q#2": -4, "v": 4}),
    Case(
        "attention weights",
        s.WindowAttention,
        (SEQUENCE,),
        {"inp": 8, "attention": -2, "attention#2": -4, "attention#3": 4},
    ),
    Case("cells", s.Cells, (noise(3, 4, 3),), {"lstm": 5, "gru": 4}),
    Case("hand-written LSTM", s.HandRecurrent, (noise(3, 4, 3),), {"inp": 5}),
    Case("learned first state", s.LearnedState, (noise(3, 4, 3),), {"rnn.hidden.0": 5}),
    Case("mean of the last states", s.MeanState, (noise(3, 4, 3),), {"rnn.hidden.0": 5}),
    Case("shared keys and values", s.Banded, (SEQUENCE,), {"q": 2, "q#2": -3, "v": 4}),
    Case("standardised weights", m.Standardised, (IMAGE,), {"a": -4, "b": 5}),
    Case("GroupNorm of one group", lambda: between_convs(nn.GroupNorm(1, 4)), (IMAGE,), {"0": -4}),
    Case("writes", s.Writes, (SEQUENCE,), {"inp": 6}),
    Case(
        "BatchNorm of the batch",
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 2)
        ),
        (X,),
        {"0": 6},
    ),
    Case("moves", s.Moves, (SEQUENCE,), {"inp": 6, "wide": 4}),
    Case("dense and U-shaped", m.Skips, (IMAGE,), {"a": 4, "b": 6, "up": 4}),
    Case("squeeze and excitation", m.Squeezed, (IMAGE,), {"conv": 6, "down": 4}),
    Case(
        "packed, repeated keys",
        lambda: s.Packed(2),
        (SEQUENCE,),
        {"qkv.heads": 2, "qkv.heads#2": 2, "qkv.head_dim": -3, "qkv.value_dim": 3},
    ),
    Case(
        "packed, shared keys",
        lambda: s.Packed(2, fused=True),
        (SEQUENCE,),
        {"qkv.heads": 2, "qkv.queries": 2, "qkv.head_dim": -3, "qkv.value_dim": 3},
    ),
    Case(
        "packed, one key",
        lambda: s.Packed(1, fused=True),
        (SEQUENCE,),
        {"qkv.queries": 4, "qkv.head_dim": -3, "qkv.value_dim": 3},
    ),
    Case("a vector by a matrix", m.Scaled, (X,), {"inp": 6, "matrix": 5}),
    Case(
        "units picked by number",
        lambda: nn.Sequential(nn.Linear(4, 6), Lambda(lambda x: x.index_select(1, NUMBERS)), nn.Linear(3, 2)),
        (X,),
        {},
    ),
    Case("units renumbered", s.Renumbered, (SEQUENCE,), {}),
    Case("units that win", s.Winners, (SEQUENCE,), {"inp": -6}),
    Case("along time", s.Along, (SEQUENCE,), {"inp": 6}),
    Case(
        "two axes looked up",
        lambda: between_convs(Lambda(lambda x: x[[0, 2], :, [1, 3]]), Lambda(lambda x: x[..., None])),
        (IMAGE,),
        {"0": 4},
    ),
    Case(
        "two axes looked up, one between",
        lambda: between_convs(Lambda(lambda x: x.movedim(1, 0)[:, [0, 2], :, [1, 3]]), Lambda(lambda x: x[..., None])),
        (IMAGE,),
        {"0": 4},
    ),
    Case("several inputs and outputs", m.Several, (X, noise(3, 2)), {"a": 6}),
    Case(
        "PixelShuffle",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(2, 2, 1)),
        (IMAGE,),
        {"0": 2},
    ),
    Case(
        "PixelShuffle by three, to a layer",
        lambda: nn.Sequential(nn.Conv2d(3, 72, 7), nn.PixelShuffle(3), nn.Flatten(), nn.Linear(8 * 6 * 6, 2)),
        (IMAGE,),
        {"0": 8},
    ),
    Case("PixelUnshuffle", lambda: between_convs(nn.PixelUnshuffle(2), nn.ReLU(), read=16), (IMAGE,), {"0": 4}),
    Case("ChannelShuffle", lambda: between_convs(nn.ChannelShuffle(2), nn.ReLU()), (IMAGE,), {"0": 2, "0#2": 2}),
    Case(
        "Unfold and Fold",
        lambda: between_convs(nn.Unfold(2, padding=1, stride=2), nn.ReLU(), nn.Fold((6, 6), 2, padding=1, stride=2)),
        (IMAGE,),
        {"0": 4},
    ),
    Case("Bilinear", m.Bilinear, (X,), {"one": 6, "two": 5, "both": 4}),
    *(
        Case(f"{layer}", lambda layer=layer: m.Compared(layer), (X,), {"one": -6, "rows": 4})
        for layer in (nn.CosineSimilarity(-1), nn.PairwiseDistance())
    ),
    Case("rot90", lambda: between_convs(Lambda(lambda x: x.rot90(-1, (-1, 1)).rot90(1, (1, 3)))), (IMAGE,), {}),
    Case("rot90 of places", lambda: between_convs(Lambda(lambda x: x.rot90(1, (2, -1)).relu())), (IMAGE,), {"0": 4}),
    Case("tile", lambda: between_convs(Lambda(lambda x: x.tile(2, 1, 1).relu()), read=8), (IMAGE,), {"0": 4}),
    Case(
        "over three axes",
        lambda: nn.Sequential(
            nn.Conv3d(3, 4, 1), nn.MaxPool3d(2, 1), nn.Upsample(scale_factor=1.5, mode="trilinear"), nn.Conv3d(4, 2, 1)
        ),
        (noise(3, 3, 3, 4, 4),),
        {"0": 4},
    ),
]
