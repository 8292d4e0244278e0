"""Rotations of residual streams and heads: what is found, what is kept, what was planted is undone."""

from __future__ import annotations

import copy
import itertools
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import isthmus as im
from isthmus.alignment.change import change
from isthmus.alignment.rotations import method
from isthmus.alignment.rotations.frame import Rotatable
from isthmus.alignment.rotations import turning
from isthmus.alignment.rotations.turning import polar
from isthmus.params import Params, cast, equal
from tests.attention_modules import GPT2, Llama
from tests.hugging_face import inputs, network
from tests.problems import perceptron


class Packed(nn.Module):
    """nn.MultiheadAttention in a stream without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.h = nn.Linear(5, 12), nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        return self.h(x + self.a(x, x, x, need_weights=False)[0])


class Encoder(nn.Module):
    """A layer of torch behind a linear map; its head has no bias."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.e, self.last, self.h = nn.Linear(5, 12), nn.LayerNorm(12), nn.Linear(12, 2, bias=False)
        self.a = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=first)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.last(self.a(self.e(x))))


class Even(GPT2):
    """Tied embeddings behind a norm without gains."""

    def __init__(self) -> None:
        super().__init__()
        self.ln3 = nn.LayerNorm(12, elementwise_affine=False)


def words() -> Tensor:
    return torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0))


def places() -> Tensor:
    return torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# the module, its inputs, whether the stream, queries with keys, and values can be rotated
CASES = {
    "packed": (Packed, places, True, True),
    "norm first": (lambda: Encoder(True), places, True, True),
    "norm last": (lambda: Encoder(False), places, False, True),
    "tied": (GPT2, words, False, True),
    "tied, equal gains": (Even, words, True, True),
    "grouped queries, rotary, RMSNorm": (Llama, words, True, False),
    "HF GPT-2": (lambda: copy.deepcopy(network("lm")), lambda: inputs("lm"), False, True),
    "HF Llama": (lambda: copy.deepcopy(network("llama")), lambda: inputs("llama"), True, False),
    "HF BERT": (lambda: copy.deepcopy(network("bert")), lambda: inputs("bert"), False, True),
    "HF ViT": (lambda: copy.deepcopy(network("vit")), lambda: inputs("vit").double(), True, True),
}
cases = pytest.mark.parametrize("name", CASES)


def drawn(module: nn.Module, seed: int) -> Params:
    """Random weights, and gains that are far from equal; tied tensors stay one."""
    g = torch.Generator().manual_seed(seed)
    out: Params = {}
    first: dict[int, str] = {}
    for name, v in module.state_dict(keep_vars=True).items():
        same = first.setdefault(id(v), name)
        gain = v.ndim == 1 and name.endswith("weight")
        noise = torch.randn(v.shape, generator=g, dtype=torch.float64)
        out[name] = out[same] if same != name else 1 + 0.3 * noise.clamp(-2, 2) if gain else 0.4 * noise
    return out


@cache
def problem(name: str) -> tuple[im.Objective, Params, Params]:
    make, x = CASES[name][:2]
    module = make().double().eval()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (x(), torch.zeros(4)))
    return objective, drawn(module, 0), drawn(module, 1)


@cache
def found(name: str) -> im.Alignment:
    return im.align(*problem(name), im.RotationMatching())


@cases
def test_the_function_is_kept_and_what_can_be_rotated_is(name):
    _, a, b = problem(name)
    copies = [{k: v.clone() for k, v in p.items()} for p in (a, b)]
    alignment = found(name)
    assert alignment.function_error <= 1e-12
    assert equal(a, copies[0])
    assert equal(b, copies[1])
    assert alignment.target.keys() == b.keys()
    assert all(v.shape == b[k].shape and v.dtype == b[k].dtype for k, v in alignment.target.items())
    sizes = sorted(v.ndim for v in alignment.rotations.values())
    stream, heads = CASES[name][2:]
    assert (2 in sizes) == stream, alignment.notes
    blocks = (
        sum("in_proj_weight" in k or "c_attn.weight" in k or "v_proj.weight" in k or "value.weight" in k for k in b)
        or 1
    )
    assert sizes.count(3) == blocks * (2 if heads else 1)
    assert bool([n for n in alignment.notes if "not equal" in n]) != stream


@cases
def test_no_round_lowers_the_similarity(name):
    trace = found(name).runs[0].trace
    assert len(trace) > 2
    assert all(q >= p - 1e-12 * abs(p) for p, q in itertools.pairwise(trace))


@cases
def test_a_network_is_its_own_match(name):
    objective, a, _ = problem(name)
    same = im.align(objective, a, a, im.RotationMatching())
    assert same.distance[1] <= 1e-13 * sum(float(v.square().sum()) for v in a.values()) ** 0.5
    assert not any(same.moved.values())


def hidden(frame: Rotatable, params: Params, norms: Params, seed: int) -> tuple[Params, dict[str, Tensor]]:
    """The same function with all that can be turned turned, all else renumbered, and other gains."""
    g = torch.Generator().manual_seed(seed)
    turned = {t.group: turning.drawn(t, g) for t in frame.turns}
    order = {s.name: torch.randperm(s.size, generator=g) for s in frame.structure.groups if s.name not in turned}
    return frame.apply(params, order, turned, norms), turned


@pytest.mark.parametrize("stream", ["activations", "weights"])
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("HF")])
def test_what_was_planted_is_undone(name, stream):
    objective, a, b = problem(name)
    frame = found(name).frame
    assert frame is not None
    planted, turned = hidden(frame, a, frame.norms(b), seed=2)
    back = im.align(objective, a, planted, im.RotationMatching(300, stream))
    size = sum(float(v.square().sum()) for v in a.values()) ** 0.5
    assert back.distance[1] <= 1e-4 * size < 1e-2 * back.distance[0]
    for group in turned:
        if back.rotations[group].ndim == 2:  # that of heads is in another order
            eye = torch.eye(len(turned[group]), dtype=torch.float64)
            torch.testing.assert_close(back.rotations[group] @ turned[group], eye, rtol=0, atol=1e-3)


@cases
def test_other_checkpoints_files_and_the_way_back(name, tmp_path):
    objective, _, b = problem(name)
    alignment = found(name)
    im.save_alignment(alignment, tmp_path / "alignment")
    read = im.load_alignment(tmp_path / "alignment", objective)
    assert equal(read.apply(b), alignment.target)
    later = {k: v + 0.01 * v.roll(1, -1) if v.ndim > 1 else v for k, v in b.items()}
    later |= {k: later[first] for k, first in objective.program.tied.items()}
    assert change(objective, later, read.apply(later), 4) <= 1e-12
    for way in (alignment.inverse().apply(alignment.target), alignment.then(alignment.inverse()).apply(b)):
        for k, v in way.items():
            torch.testing.assert_close(v, b[k], rtol=1e-10, atol=1e-10)
    twice = alignment.inverse().then(alignment).apply(alignment.target)
    for k, v in twice.items():
        torch.testing.assert_close(v, alignment.target[k], rtol=1e-10, atol=1e-10)


def test_a_narrower_type_is_rounded_at_the_end():
    _, a, b = problem("norm first")
    module = Encoder(True).eval()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (places().float(), torch.zeros(4)))
    narrow = im.align(objective, cast(a, torch.float32), cast(b, torch.float32), im.RotationMatching())
    assert narrow.function_error <= 1e-12
    assert {v.dtype for v in narrow.target.values()} == {torch.float32}


def test_a_wrong_fold_is_seen(monkeypatch):
    objective, a, b = problem("norm first")
    monkeypatch.setattr(Rotatable, "fold", lambda self, params: dict(params))
    alignment = im.align(objective, a, b, im.RotationMatching())
    assert not [k for k, v in alignment.rotations.items() if v.ndim == 2]
    monkeypatch.setattr(method, "_holds", lambda *args: True)
    with pytest.raises(im.IsthmusError, match="the function changed"):
        im.align(objective, a, b, im.RotationMatching())


def test_gains_that_became_unequal_are_refused():
    objective, _, b = problem("norm last")
    even = {k: torch.ones_like(v) if "norm" in k and k.endswith("weight") else v for k, v in b.items()}
    alignment = im.align(objective, even, even, im.RotationMatching())
    assert [v for v in alignment.rotations.values() if v.ndim == 2]
    with pytest.raises(im.InputError, match="equal entries"):
        alignment.apply(b)


def test_a_perceptron_is_renumbered():
    module = perceptron([4, 6, 3]).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = im.Objective(module, "cross_entropy", (x, torch.arange(8) % 3))
    a, order = drawn(module, 0), torch.tensor([3, 1, 5, 0, 2, 4])
    alignment = im.align(objective, a, objective.structure.permute(a, {"0": order}), im.RotationMatching())
    assert torch.equal(order[alignment.permutations["0"]], torch.arange(6))
    assert not alignment.rotations
    assert "relu" in alignment.notes[0]


def test_the_polar_factor_keeps_what_it_must():
    g = torch.Generator().manual_seed(0)
    gram = torch.randn(2, 5, 5, generator=g, dtype=torch.float64)
    for centred in (False, True):
        q = polar(gram, centred)
        torch.testing.assert_close(q @ q.mT, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))
        assert bool(((q.sum(-1) - 1).abs() < 1e-12).all()) == centred
    assert torch.equal(polar(torch.zeros(3, 3, dtype=torch.float64), True), torch.eye(3, dtype=torch.float64))


def test_several_networks_are_renumbered_only():
    objective, a, b = problem("packed")
    with pytest.raises(im.InputError, match="one that renumbers"):
        im.align_many(objective, [a, b], im.RotationMatching())
