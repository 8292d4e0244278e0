"""Networks with attention, each as small as it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
