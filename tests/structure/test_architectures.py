"""The units of twenty architectures and of six models of transformers: what is found, and the two laws."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from isthmus.program.export import Program, trace
from isthmus.structure import Structure, structure_of, verify
from tests.architectures import HAND_WRITTEN, HUGGING_FACE, Architecture
from tests.structure.test_derive import difference, random_params


def layers(pattern: str, count: int, **groups: int) -> dict[str, int]:
    """The groups of `count` layers alike, with their names as written, "__" for a dot."""
    return {f"{pattern.format(i)}.{k.replace('__', '.')}": n for i in range(count) for k, n in groups.items()}


ENCODER = {"self_attn__heads": 2, "self_attn__head_dim": -4, "self_attn__value_dim": 4, "linear1": 10}
LLAMA = {"embedding": -16, "attention.q": 2, "attention.q#2": 2, "attention.v": 4}
DECODER = {"self_attn.q_proj.heads": 2, "self_attn.q_proj.heads#2": 2, "self_attn.v_proj.value_dim": 4}
RESNET = {"layer__0__convolution": 3, "layer__1__convolution": 3}

GROUPS: dict[str, dict[str, int]] = {
    "ResNet": {"0.0": 4, "1.body.0.0": 4, "2.body.0.0": 6, "2.body.1.0": 6, "3.body.0.0": 6},
    "WideResNet": {"0.0": 4, "1.conv1": 6, "1.conv2": 6, "2.conv1": 6, "2.conv2": 6},
    "DenseNet": {"0.0": 4, "1.conv": 3, "2.conv": 3, "3.0": 5},
    "MobileNetV2": {"0.0": 4, "1.expand.0": 6, "2.expand.0": 8},
    "EfficientNet": {"0.0": 4, "1.expand.0": 6, "1.gate.1": 3, "2.expand.0": 6, "2.gate.1": 2},
    "ConvNeXt": {"0": -6, "1.up": 12, "2.up": 12},
    "U-Net": {"first.0.groups": 2, "first.0": -2, "lower.0.groups": 3, "lower.0": -2, "up": 4}
    | {"last.0.groups": 2, "last.0": -2},
    "autoencoder": {"0": 4, "3": 5, "5": 4},
    "ViT": {"patch": -8, "feed.0": 10} | layers("attention", 1, heads=2, head_dim=-4, value_dim=4),
    "ViT by TransformerEncoder": {"patch": -8} | layers("encoder.layers.{}", 2, **ENCODER),
    "GPT-2": {"wte": -12, "attn.heads": 3, "attn.head_dim": -4, "attn.value_dim": 4, "fc": 16},
    "Llama": LLAMA | {"feed.gate": 6},
    "experts": LLAMA | {"feed.router": -3, "feed": 6},
    "BERT": {"words": -12, "q.heads": 3, "q.head_dim": -4, "v.value_dim": 4, "up": 16, "pooler": 12},
    "T5": {"words": -12, "near": 2, "own.0": -3, "own.2": 3, "up": 10}
    | {"own.3": 2, "own.3#2": -3, "own.5": 3, "cross.0": 2, "cross.0#2": -3, "cross.2": 3},
    "LSTM": {"words": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8},
    "GRU": {"words": 6, "rnn.hidden.0": 8, "rnn.hidden.1": 8},
    "graph": {"inp": 6, "own": 6, "message": 5},
    "tabular": {"tables.0": 3, "tables.1": 2, "body.0": 8, "body.3": 6},
    "two towers": {"left.0": 8, "left.2": -5, "right.0": 6, "right.2": 7},
    "GPT2LMHeadModel": {"inner.transformer.wte": -16}
    | layers("inner.transformer.h.{}", 2, attn__c_attn__heads=4, attn__c_attn__head_dim=-4, attn__c_attn__value_dim=4)
    | layers("inner.transformer.h.{}.mlp", 2, c_fc=64),
    "LlamaForCausalLM": {"inner.model.embed_tokens": -16}
    | layers("inner.model.layers.{}", 2, **DECODER, mlp__gate_proj=24),
    "BertForSequenceClassification": {"inner.bert.embeddings.word_embeddings": -16, "inner.bert.pooler.dense": 16}
    | layers("inner.bert.encoder.layer.{}.attention.self", 2, query__heads=4, query__head_dim=-4, value__value_dim=4)
    | layers("inner.bert.encoder.layer.{}", 2, intermediate__dense=24),
    "ViTForImageClassification": {"inner.vit.embeddings.patch_embeddings.projection": -16}
    | layers("inner.vit.layers.{}.attention", 2, q_proj__heads=4, q_proj__head_dim=-4, v_proj__value_dim=4)
    | layers("inner.vit.layers.{}", 2, mlp__fc1=24),
    "ResNetForImageClassification": {"inner.resnet.embedder.embedder.convolution": 4}
    | layers(
        "inner.resnet.encoder.stages.0.layers", 1, **{"0__layer__0__convolution": 2, "0__layer__1__convolution": 2}
    )
    | layers("inner.resnet.encoder.stages.0.layers.0", 1, layer__2__convolution=8)
    | layers("inner.resnet.encoder.stages.1.layers.{}", 2, **RESNET)
    | layers("inner.resnet.encoder.stages.1.layers.0", 1, layer__2__convolution=12),
    "MixtralForCausalLM": {"inner.model.embed_tokens": -16}
    | layers("inner.model.layers.{}", 2, **DECODER, mlp__experts=24),
}
"""Name and size of the groups of each, negative if they are not separable."""


def outputs(program: Program, args: tuple[Tensor, ...], params: dict[str, Tensor]) -> Tensor:
    wide = (x.double() if x.is_floating_point() else x for x in args)
    out = program.run(params, *wide)
    return torch.cat([y.reshape(-1) for y in (out if isinstance(out, tuple) else (out,))])


def silenced(
    structure: Structure, name: str, params: dict[str, Tensor], other: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Two points that differ in what makes the first half of the units, which are silenced in both."""
    group, changed = structure.group(name), dict(params)
    units = list(range((group.size + 1) // 2))
    for m in group.ins:
        at = m.index[units].reshape(-1)
        changed[m.tensor] = changed[m.tensor].index_copy(m.dim, at, other[m.tensor].index_select(m.dim, at))
    return [structure.silence(p, {name: units}) for p in (params, changed)]


@pytest.mark.parametrize("a", HAND_WRITTEN + HUGGING_FACE, ids=lambda a: a.name)
def test_units_of(a: Architecture) -> None:
    module, args = a.module(), a.args()
    program = trace(module, args, every_batch=False)
    structure = structure_of(program, {k: v.shape for k, v in module.state_dict().items()})
    assert {g.name: g.size if g.separable else -g.size for g in structure.groups} == GROUPS[a.name]
    assert verify(structure, module, args, program=program).startswith("verified on inputs of")

    f = partial(outputs, program, args)
    params, other = random_params(module, 5), random_params(module, 6)
    before = f(params)
    g = torch.Generator().manual_seed(7)
    orders = {group.name: torch.randperm(group.size, generator=g) for group in structure.groups}
    assert difference(before, f(structure.permute(params, orders))) <= 1e-12
    for group in structure.groups:
        assert difference(before, f(structure.permute(params, {group.name: torch.arange(group.size).flip(0)}))) <= 1e-12
        if group.separable:
            one, two = silenced(structure, group.name, params, other)
            assert difference(f(one), f(two)) <= 1e-12, group.name
            assert difference(before, f(one)) > 1e-6, group.name


def test_what_rotary_positions_hold_fixed_is_named() -> None:
    llama = next(a for a in HAND_WRITTEN if a.name == "Llama")
    module = llama.module()
    structure = structure_of(trace(module, llama.args()), {k: v.shape for k, v in module.state_dict().items()})
    assert "in forward: k, v = self.repeated(self.turned(k)), self.repeated(v)" in "".join(structure.fixed.values())
