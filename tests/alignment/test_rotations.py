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
from isthmus.alignment.rotations import guesses, method, turning
from isthmus.alignment.rotations.frame import Rotatable, Turn
from isthmus.alignment.rotations.turning import polar
from isthmus.params import Params, cast, equal
from tests.attention_modules import GPT2, Experts, Llama, SelfAttention
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


class Mixture(nn.Module):
    """Experts in tensors of their own, each weighted by a soft router, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.norm, self.router, self.h = nn.Embedding(11, 8), nn.RMSNorm(8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids)
        h = self.norm(x)
        shares = self.router(h).softmax(-1)
        return self.h(x + sum(shares[..., i : i + 1] * expert(h) for i, expert in enumerate(self.experts)))


class Turned(SelfAttention):
    """Grouped queries whose rotary positions turn the planes (2i, 2i + 1) of the first `rotary` dimensions."""

    def __init__(self, rotary: int) -> None:
        super().__init__(32, 4, 2)
        self.rotary = rotary

    def turned(self, x: Tensor) -> Tensor:
        y, rest = x[..., : self.rotary], x[..., self.rotary :]
        angles = torch.arange(x.size(-2), dtype=x.dtype)[:, None] * 3.0 ** -torch.arange(self.rotary // 2)
        a, b = y[..., 0::2], y[..., 1::2]
        out = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)
        return torch.cat([out.flatten(-2), rest], -1)


class Pairs(nn.Module):
    """One layer of such attention, and a table of words."""

    def __init__(self, rotary: int) -> None:
        super().__init__()
        self.e, self.norm = nn.Embedding(40, 32), nn.RMSNorm(32)
        self.attention, self.h = Turned(rotary), nn.Linear(32, 3, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids)
        return self.h(x + self.attention(self.norm(x)))


def mixtral() -> nn.Module:
    """The network of transformers by an implementation that runs in float64."""
    module = copy.deepcopy(network("mixtral"))
    module.set_experts_implementation("batched_mm")
    return module


def words() -> Tensor:
    return torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(0))


def places() -> Tensor:
    return torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# the module, its inputs, whether the stream can be rotated, and in each layer what in heads is, and planes of what
CASES = {
    "packed": (Packed, places, True, (2, 0)),
    "norm first": (lambda: Encoder(True), places, True, (2, 0)),
    "norm last": (lambda: Encoder(False), places, False, (2, 0)),
    "tied": (GPT2, words, False, (2, 0)),
    "tied, equal gains": (Even, words, True, (2, 0)),
    "grouped queries, rotary, RMSNorm": (Llama, words, True, (1, 1)),
    "rotary in pairs": (lambda: Pairs(8), words, True, (1, 1)),
    "rotary in part": (lambda: Pairs(4), words, True, (2, 1)),
    "looked up experts": (lambda: Llama(Experts), words, True, (1, 1)),
    "mixture": (Mixture, words, True, (0, 0)),
    "HF GPT-2": (lambda: copy.deepcopy(network("lm")), lambda: inputs("lm"), False, (2, 0)),
    "HF Llama": (lambda: copy.deepcopy(network("llama")), lambda: inputs("llama"), True, (1, 1)),
    "HF Mixtral": (mixtral, lambda: inputs("mixtral"), True, (1, 1)),
    "HF BERT": (lambda: copy.deepcopy(network("bert")), lambda: inputs("bert"), False, (2, 0)),
    "HF ViT": (lambda: copy.deepcopy(network("vit")), lambda: inputs("vit").double(), True, (2, 0)),
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
    stream, heads = CASES[name][2:]
    turns = turns_of(alignment)
    assert any(t.kind == "rotation" and not t.keys for t in turns) == stream, alignment.notes
    blocks = (
        sum("in_proj_weight" in k or "c_attn.weight" in k or "v_proj.weight" in k or "value.weight" in k for k in b)
        or 1
    )
    within = [t.kind for t in turns if t.keys]
    assert (within.count("rotation"), within.count("phase")) == tuple(n * blocks for n in heads)
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
@pytest.mark.parametrize("name", [n for n in CASES if n in ("HF Llama", "HF Mixtral") or not n.startswith("HF")])
def test_what_was_planted_is_undone(name, stream):
    objective, a, b = problem(name)
    frame = found(name).frame
    assert frame is not None
    planted, turned = hidden(frame, a, frame.norms(b), seed=2)
    back = im.align(objective, a, planted, im.RotationMatching(300, stream))
    size = sum(float(v.square().sum()) for v in a.values()) ** 0.5
    assert back.function_error <= 1e-12
    assert back.distance[1] <= (1e-6 if stream == "activations" else 1e-4) * size < 1e-2 * back.distance[0]
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


def phases_of(alignment: im.Alignment) -> list[str]:
    return [t.group for t in turns_of(alignment) if t.kind == "phase"]


def turns_of(alignment: im.Alignment) -> tuple[Turn, ...]:
    assert alignment.frame is not None
    return alignment.frame.turns


def test_planes_that_no_guess_has_are_refused_with_a_note(monkeypatch):
    def mirrored(self, x):
        y = torch.cat([x[..., :4], x[..., 4:].flip(-1)], -1)  # planes (i, d - 1 - i)
        y = SelfAttention.turned(self, y)
        return torch.cat([y[..., :4], y[..., 4:].flip(-1)], -1)

    monkeypatch.setattr(Turned, "turned", mirrored)
    module = Pairs(8).double().eval()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (words(), torch.zeros(4)))
    alignment = im.align(objective, drawn(module, 0), drawn(module, 1), im.RotationMatching())
    assert not phases_of(alignment)
    assert [n for n in alignment.notes if "no planes" in n]
    assert alignment.function_error <= 1e-12


def test_wrong_planes_do_not_pass(monkeypatch):
    monkeypatch.setattr(guesses, "_paired", lambda at, layout: at.roll(1, 1).unflatten(1, (2, -1)).transpose(1, 2))
    alignment = im.align(*problem("rotary in pairs"), im.RotationMatching())
    assert not phases_of(alignment)
    assert alignment.function_error <= 1e-12


def test_one_word_alone_confirms_no_planes():
    module = Pairs(8).double().eval()
    objective = im.Objective(module, lambda out, y: out.flatten(1).square().mean(1), (words()[:, :1], torch.zeros(4)))
    alignment = im.align(objective, drawn(module, 0), drawn(module, 1), im.RotationMatching())
    assert not phases_of(alignment)


def test_each_expert_and_each_head_of_keys_has_an_order_of_its_own():
    for name, group in (("looked up experts", "feed"), ("grouped queries, rotary, RMSNorm", "attention.q#2")):
        turn = next(t for t in turns_of(found(name)) if t.group == group)
        assert turn.kind == "order"
        assert (
            len({tuple(one.argmax(-1).tolist()) for one in turning.drawn(turn, torch.Generator().manual_seed(0))}) > 1
        )


def test_experts_change_places_with_the_rows_of_their_router():
    objective, a, _ = problem("mixture")
    places, inner = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 5, 0, 2, 4])
    b = dict(a) | {k: a[k][places] for k in ("router.weight", "router.bias")}
    for i, j in enumerate(places.tolist()):
        b |= {f"experts.{i}.{k}": a[f"experts.{j}.{k}"] for k in ("0.weight", "0.bias", "2.weight", "2.bias")}
    b = objective.structure.permute(b, {"experts.1.0": inner})
    alignment = im.align(objective, a, b, im.RotationMatching())
    assert alignment.distance[1] <= 1e-12
    assert torch.equal(alignment.rotations["experts exchanged"].argmax(1)[places], torch.arange(3))


def test_a_phase_is_no_reflection_and_the_best_of_its_kind():
    grams = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = turning.phases(grams)
    torch.testing.assert_close(torch.linalg.det(q), torch.ones(50, dtype=torch.float64))
    angles = torch.linspace(0, 2 * torch.pi, 2001, dtype=torch.float64)
    tried = angles.cos() * (grams[:, :1, 0] + grams[:, 1:, 1]) + angles.sin() * (grams[:, 1:, 0] - grams[:, :1, 1])
    assert bool(((q * grams).sum((1, 2)) >= tried.max(1).values - 1e-12).all())


@pytest.mark.parametrize("kind", ["rotation", "phase", "order"])
def test_the_score_of_heads_is_what_the_best_turn_reaches(kind):
    grams = torch.randn(3, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = Turn("", 2, (), (("heads", 3),), kind=kind)
    reached = (turning.best(turn, grams) * grams).sum((-3, -2, -1))
    torch.testing.assert_close(turning.reach(turn, grams), reached)


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
