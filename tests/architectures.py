"""Twenty architectures of today, each as small as it can be, as modules and examples of their arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A module in float32 and eval mode, and the arguments of its forward pass (two examples)."""

    name: str
    make: Callable[[], nn.Module]
    args: Callable[[], tuple[Tensor, ...]]

    def module(self) -> nn.Module:
        """The module, with the weights of seed 0 (the global generator is left as it was)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return copy.deepcopy(self.make()).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int, high: int = 11) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


# -- images


def conv(
    n: int, m: int, kernel: int = 3, stride: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU, **options: Any
):
    own = nn.Conv2d(n, m, kernel, stride, kernel // 2, bias=False, **options)
    return nn.Sequential(own, nn.BatchNorm2d(m), *([act()] if act else []))


class Residual(nn.Module):
    """ResNet's basic block: an identity shortcut, or a projection where the shape changes."""

    def __init__(self, n: int, m: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(n, m, 3, stride), conv(m, m, act=None))
        self.short = conv(n, m, 1, stride, act=None) if n != m else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x), inplace=True)


class PreActivated(nn.Module):
    """WideResNet's block: normalised and activated first."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, m, 3, padding=1, bias=False)
        self.bn2, self.drop, self.conv2 = nn.BatchNorm2d(m), nn.Dropout(0.3), nn.Conv2d(m, m, 3, padding=1, bias=False)
        self.short = nn.Conv2d(n, m, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        return self.conv2(self.drop(F.relu(self.bn2(self.conv1(h))))) + self.short(h)


class Dense(nn.Module):
    """DenseNet's layer: what it makes is put beside what it read."""

    def __init__(self, n: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n), nn.Conv2d(n, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Inverted(nn.Module):
    """MobileNetV2's block, and EfficientNet's with squeeze and excitation."""

    def __init__(self, n: int, expand: int, act: Callable[[], nn.Module] = nn.ReLU6, squeeze: int = 0) -> None:
        super().__init__()
        self.expand, self.depthwise = conv(n, expand, 1, act=act), conv(expand, expand, 3, act=act, groups=expand)
        self.project = conv(expand, n, 1, act=None)
        self.gate = nn.Identity()
        if squeeze:
            parts = (nn.Conv2d(expand, squeeze, 1), nn.SiLU(), nn.Conv2d(squeeze, expand, 1), nn.Sigmoid())
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *parts)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(self.expand(x))
        return x + self.project(h * self.gate(h) if self.squeeze else h)


class ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(n, n, 7, padding=3, groups=n), nn.LayerNorm(n)
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.scale = nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)


def pooled(*body: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


class UNet(nn.Module):
    """Down and up again with GroupNorm, transposed convolutions and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.lower = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.GroupNorm(3, 6), nn.SiLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.last = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(torch.cat([first, self.up(self.lower(first))], 1))


# -- attention


class SelfAttention(nn.Module):
    """Grouped queries with rotary positions and a causal mask, keys and values repeated as Hugging Face does."""

    def __init__(self, d: int, heads: int, kept: int) -> None:
        super().__init__()
        self.heads, self.kept, self.dim = heads, kept, d // heads
        self.q, self.o = (nn.Linear(d, d, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(d, kept * self.dim, bias=False) for _ in range(2))

    def turned(self, x: Tensor) -> Tensor:
        rates = 10.0 ** -torch.arange(self.dim // 2, dtype=x.dtype)
        angles = torch.arange(x.size(-2), dtype=x.dtype)[:, None] * rates
        angles = torch.cat([angles, angles], -1)
        a, b = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()

    def repeated(self, x: Tensor) -> Tensor:
        b, kept, t, d = x.shape
        times = self.heads // kept
        return x[:, :, None].expand(b, kept, times, t, d).reshape(b, kept * times, t, d)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, -1, self.dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = self.repeated(self.turned(k)), self.repeated(v)
        scores = self.turned(q) @ k.transpose(2, 3) * self.dim**-0.5
        mask = torch.full((t, t), float("-inf"), dtype=x.dtype).triu(1)
        y = F.softmax(scores + mask, dim=-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, d))


class RMSNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SwiGLU(nn.Module):
    def __init__(self, d: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(d, inner, bias=False), nn.Linear(d, inner, bias=False)
        self.down = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """The best two of three experts for each token, whose matrices are looked up by their numbers."""

    def __init__(self, d: int, inner: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, 3, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(3, 2 * inner, d)), nn.Parameter(torch.randn(3, d, inner))

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.router(x).softmax(-1).topk(2, -1)
        h = self.up[which] @ x[..., None, :, None]
        gate, up = h.squeeze(-1).chunk(2, -1)
        y = (self.down[which] @ (F.silu(gate) * up)[..., None]).squeeze(-1)
        return ((best / best.sum(-1, keepdim=True))[..., None] * y).sum(-2)


class Llama(nn.Module):
    def __init__(self, feed: Callable[[int, int], nn.Module] = SwiGLU) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11, bias=False)
        self.before, self.attention = RMSNorm(16), SelfAttention(16, 4, 2)
        self.between, self.feed, self.last = RMSNorm(16), feed(16, 6), RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.attention(self.before(x))
        x = x + self.feed(self.between(x))
        return self.head(self.last(x))


class GPT2(nn.Module):
    """Packed queries, keys and values, fused causal attention, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 12), nn.Embedding(8, 12)
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(12) for _ in range(3))
        self.attn, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.fc, self.out = nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        b, t = ids.shape
        x = self.wte(ids) + self.wpe(torch.arange(t))
        q, k, v = (z.view(b, t, 3, 4).transpose(1, 2) for z in self.attn(self.ln1(x)).split(12, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, 12))
        return self.head(self.ln3(x + self.out(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))))


class BERT(nn.Module):
    """Tokens and segments, and an attention mask turned into a bias inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(11, 12), nn.Embedding(8, 12), nn.Embedding(2, 12)
        self.norm, self.norm1, self.norm2 = (nn.LayerNorm(12) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.pooler, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        b, t = ids.shape
        places = torch.arange(t)[None].gather(1, (mask.cumsum(1) - 1).clamp(min=0)[:1])
        allowed = (mask[:, None, None, :] > 0) & (torch.arange(t)[:, None] >= 0)
        kinds = torch.where(ids.diff(dim=1, prepend=ids[:, :1]) > 20, 1, 0)
        x = self.norm(self.words(ids) + self.places(places) + self.kinds(kinds))
        bias = x.new_zeros(allowed.shape).masked_fill(~allowed, torch.finfo(x.dtype).min)
        q, k, v = (f(x).view(b, t, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.o(y))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class ViT(nn.Module):
    """Patches by convolution, a class token, nn.MultiheadAttention, or nn.TransformerEncoder."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.by_hand = by_hand
        if by_hand:
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.feed = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        else:
            layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1) + self.position
        if self.by_hand:
            h = self.norm1(x)
            x = x + self.attention(h, h, h, need_weights=False)[0]
            x = x + self.feed(self.norm2(x))
        else:
            x = self.encoder(x)
        return self.head(x[:, 0])


class T5(nn.Module):
    """An encoder and a decoder that looks at it, biases for relative positions, narrow keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 12), nn.Linear(12, 11, bias=False)
        self.near = nn.Embedding(4, 2)
        self.norms = nn.ModuleList(RMSNorm(12) for _ in range(4))
        self.own = nn.ModuleList(nn.Linear(12, 6, bias=False) for _ in range(6))
        self.cross = nn.ModuleList(nn.Linear(12, 6, bias=False) for _ in range(3))
        self.outs = nn.ModuleList(nn.Linear(6, 12, bias=False) for _ in range(3))
        self.up, self.down = nn.Linear(12, 10, bias=False), nn.Linear(10, 12, bias=False)

    def attend(self, x: Tensor, y: Tensor, maps: Any, out: nn.Module, bias: Tensor | float) -> Tensor:
        q, k, v = (f(z).unflatten(-1, (2, 3)).transpose(1, 2) for f, z in zip(maps, (x, y, y), strict=True))
        weights = F.softmax(q @ k.transpose(-2, -1) + bias, -1)
        return out((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        places = torch.arange(read.size(1))
        apart = (places[None] - places[:, None]).clamp(-1, 2) + 1
        x, y = self.words(read), self.words(written)
        h = self.norms[0](x)
        x = x + self.attend(h, h, self.own[:3], self.outs[0], self.near(apart).permute(2, 0, 1)[None])
        x = x + self.down(F.relu(self.up(self.norms[1](x))))
        t = written.size(1)
        late = torch.ones(t, t, dtype=torch.bool).triu(1)
        h = self.norms[2](y)
        y = y + self.attend(h, h, self.own[3:], self.outs[1], torch.zeros(t, t).to(h.dtype).masked_fill(late, -1e9))
        y = y + self.attend(self.norms[3](y), x, self.cross, self.outs[2], 0.0)
        return self.head(y)


# -- others


class Recurrent(nn.Module):
    """Two layers whose first state is zeros like an entry of a weight, read at the last step."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(11, 6), kind(6, 8, 2, batch_first=True), nn.Linear(8, 3)
        self.lstm = isinstance(self.rnn, nn.LSTM)

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(cast(Any, self.rnn).weight_hh_l0[0]).expand(2, len(x), 8).contiguous()
        out, _ = self.rnn(self.words(x), (zero, zero) if self.lstm else zero)
        return self.head(out[:, -1])


class Graph(nn.Module):
    """Two rounds of messages along edges, normalised by degree, and the mean over the vertices."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.own, self.other = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.message, self.head = nn.Linear(12, 5), nn.Linear(6, 3)
        self.back = nn.Linear(5, 6)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.inp(x))
        near = edges + torch.eye(edges.size(-1), dtype=edges.dtype)
        near = near / near.sum(-1, keepdim=True)
        h = F.elu(self.own(h) + near @ self.other(h))
        n = h.size(1)
        pairs = torch.cat([h[:, :, None].expand(-1, n, n, -1), h[:, None].expand(-1, n, n, -1)], -1)
        sent = (near[..., None] * F.mish(self.message(pairs))).sum(2)
        return self.head((h + self.back(sent)).mean(1))


class Tabular(nn.Module):
    """Numbers beside embeddings of categories."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(4, 2)])
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(9, 8), nn.PReLU(8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Hardswish())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        parts = [table(kinds[:, i]) for i, table in enumerate(self.tables)]
        return self.head(self.body(torch.cat([*parts, self.norm(x)], 1)))


class Towers(nn.Module):
    """Two towers whose outputs are compared by their normalised inner products."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 5))
        self.right = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, 5))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        left, right = F.normalize(self.left(x), dim=-1), F.normalize(self.right(ids), dim=-1)
        return self.scale.exp() * (left * right).sum(-1, keepdim=True)


def autoencoder() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 64)),
        *(nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 2, 2)),
    )


def image() -> tuple[Tensor, ...]:
    return (noise(2, 3, 8, 8),)


def words() -> tuple[Tensor, ...]:
    return (tokens(2, 5),)


def masked() -> tuple[Tensor, ...]:
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    return tokens(2, 5), mask


HAND_WRITTEN = [
    Architecture(
        "ResNet", lambda: pooled(conv(3, 4), Residual(4, 4), Residual(4, 6, 2), Residual(6, 6), width=6), image
    ),
    Architecture(
        "WideResNet",
        lambda: pooled(conv(3, 4), PreActivated(4, 6), PreActivated(6, 6), nn.BatchNorm2d(6), nn.ReLU(), width=6),
        image,
    ),
    Architecture("DenseNet", lambda: pooled(conv(3, 4), Dense(4, 3), Dense(7, 3), conv(10, 5, 1), width=5), image),
    Architecture(
        "MobileNetV2", lambda: pooled(conv(3, 4, act=nn.ReLU6), Inverted(4, 6), Inverted(4, 8), width=4), image
    ),
    Architecture(
        "EfficientNet",
        lambda: pooled(conv(3, 4, act=nn.SiLU), Inverted(4, 6, nn.SiLU, 3), Inverted(4, 6, nn.SiLU, 2), width=4),
        image,
    ),
    Architecture("ConvNeXt", lambda: pooled(nn.Conv2d(3, 6, 2, 2), ConvNeXtBlock(6), ConvNeXtBlock(6), width=6), image),
    Architecture("U-Net", UNet, image),
    Architecture("autoencoder", autoencoder, lambda: (noise(2, 1, 8, 8),)),
    Architecture("ViT", lambda: ViT(by_hand=True), lambda: (noise(2, 3, 4, 4),)),
    Architecture("ViT by TransformerEncoder", lambda: ViT(by_hand=False), lambda: (noise(2, 3, 4, 4),)),
    Architecture("GPT-2", GPT2, words),
    Architecture("Llama", Llama, words),
    Architecture("experts", lambda: Llama(Experts), words),
    Architecture("BERT", BERT, masked),
    Architecture("T5", T5, lambda: (tokens(2, 5), tokens(2, 4))),
    Architecture("LSTM", lambda: Recurrent(nn.LSTM), words),
    Architecture("GRU", lambda: Recurrent(nn.GRU), words),
    Architecture("graph", Graph, lambda: (noise(2, 4, 4), (noise(2, 4, 4) > 0).float())),
    Architecture("tabular", Tabular, lambda: (noise(2, 4), tokens(2, 2, high=4))),
    Architecture("two towers", Towers, lambda: (noise(2, 4), tokens(2, 3))),
]


# -- from transformers


class Logits(nn.Module):
    """A model of transformers as a module of tensors that returns its logits."""

    def __init__(self, inner: nn.Module, *names: str) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.inner(**dict(zip(self.names, tensors, strict=True))).logits


def hugging_face(name: str, config: str, names: Any = ("input_ids",), **options: Any) -> Logits:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)(**options)
    return Logits(getattr(transformers, name)(made), *names)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = SMALL | {"vocab_size": 11, "max_position_embeddings": 16}
GROUPED = TEXT | {"num_key_value_heads": 2, "use_cache": False}

HUGGING_FACE = [
    Architecture(
        "GPT2LMHeadModel",
        lambda: hugging_face(
            *("GPT2LMHeadModel", "GPT2Config"),
            **{"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 11, "n_positions": 16, "use_cache": False},
        ),
        words,
    ),
    Architecture("LlamaForCausalLM", lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", **GROUPED), words),
    Architecture(
        "BertForSequenceClassification",
        lambda: hugging_face(
            "BertForSequenceClassification", "BertConfig", ("input_ids", "attention_mask"), **TEXT, num_labels=3
        ),
        masked,
    ),
    Architecture(
        "ViTForImageClassification",
        lambda: hugging_face(
            *("ViTForImageClassification", "ViTConfig", ("pixel_values",)),
            **SMALL,
            image_size=8,
            patch_size=4,
        ),
        image,
    ),
    Architecture(
        "ResNetForImageClassification",
        lambda: hugging_face(
            *("ResNetForImageClassification", "ResNetConfig", ("pixel_values",)),
            embedding_size=4,
            hidden_sizes=[8, 12],
            depths=[1, 2],
        ),
        lambda: (noise(2, 3, 32, 32),),
    ),
    Architecture(
        "MixtralForCausalLM",
        lambda: hugging_face(
            *("MixtralForCausalLM", "MixtralConfig"),
            **GROUPED | {"num_hidden_layers": 1},
            num_local_experts=3,
        ),
        words,
    ),
]
