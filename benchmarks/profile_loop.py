"""Is a profile ever slower than the loop that one would write, on networks that offer it nothing to save?

With ``isthmus[hf]`` also on small random networks of Hugging Face.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isthmus as im

POINTS, SECONDS = 9, 12.0


class Block(nn.Module):
    """A residual block of convolutions with BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first, self.second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.two(F.relu(self.first(self.one(x))))))


class Encoder(nn.Module):
    """Tokens through a transformer, to three classes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, width), nn.Parameter(torch.zeros(64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.words(x) + self.places[: x.shape[1]])[:, 0])


class Patches(nn.Module):
    """Images in patches of 4 x 4 through a transformer, to ten classes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, width, 4, stride=4), nn.Parameter(torch.zeros(64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.cut(x).flatten(2).transpose(1, 2) + self.places).mean(1))


class Recurrent(nn.Module):
    """Words through an LSTM, to three classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(1000, width), nn.Linear(width, 3)
        self.layers = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.words(x))[0][:, -1])


class Logits(nn.Module):
    """What a network of Hugging Face says, as one tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


def hugging_face(words: Tensor) -> dict[str, tuple[nn.Module, Tensor, int]]:
    """Classifiers of 2 layers of 64; empty where transformers is missing."""
    if find_spec("transformers") is None:
        return {}
    transformers: Any = import_module("transformers")
    sizes = {"vocab_size": 1000, "num_labels": 3, "pad_token_id": 0}
    bert = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    nets = {
        "GPT-2": transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **gpt2)),
        "BERT": transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **bert)),
    }
    return {f"{name} of Hugging Face, 2 layers of 64": (Logits(net), words, 3) for name, net in nets.items()}


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Block(16), Block(16), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16 * 64, 10)
    )  # fmt: skip


def cases() -> dict[str, tuple[nn.Module, Tensor, int]]:
    """Name -> module, inputs, classes."""
    words, images = torch.randint(0, 1000, (256, 64)), torch.randn(256, 3, 32, 32)
    return {
        "encoder, 2 layers of 32": (Encoder(32, 2), words[:, :16], 3),
        "encoder, 4 layers of 128": (Encoder(128, 4), words, 3),
        "vision encoder, 2 layers of 64": (Patches(64, 2), images, 10),
        "LSTM of 128": (Recurrent(128), words, 3),
        "residual network": (residual(), images, 10),
        "perceptron, 5 x 500": (common.perceptron(), torch.randn(2000, 784), 10),
    } | hugging_face(words[:, :32].clamp(min=1))


def moved(module: nn.Module, seed: int) -> im.Params:
    """Every tensor of floating-point numbers, moved a little."""
    g = torch.Generator().manual_seed(seed)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    return {k: v + 0.01 * torch.rand(v.shape, generator=g) if v.is_floating_point() else v for k, v in state.items()}


def main() -> None:
    common.start(f"A profile of {POINTS} points on a line on which everything moves, against the loop")
    rows = []
    for name, (module, x, classes) in cases().items():
        module, y = module.eval(), torch.arange(len(x)) % classes
        a, b = (moved(module, seed) for seed in (1, 2))
        segment = im.Curve((a, b))
        path, ts = im.Path((segment,)), [k / (POINTS - 1) for k in range(POINTS)]
        batch = common.good_batch(module, segment, x, y)
        objective = im.Objective(module, data=(x, y))
        begin = perf_counter()
        first = im.profile(objective, path, POINTS, bn="interpolate")
        seconds = perf_counter() - begin
        times = common.in_turns(
            {
                "profile": lambda objective=objective, path=path: im.profile(objective, path, POINTS, bn="interpolate"),
                "loop": lambda: common.careful(module, segment, ts, x, y, batch),  # noqa: B023
            },
            min(max(5, int(SECONDS / (2 * seconds))), 40),
        )
        ratio = common.ratio(times["loop"], times["profile"])
        print(
            f"  {name}: batches of {batch}; a pass of the loop takes {min(times['loop']) / POINTS:.3f} s, a profile "
            f"{min(times['profile']):.2f}; the first, by the wall, {seconds:.2f}, {first.reading:.2f} for the graph",
            flush=True,
        )
        rows.append((f"times the loop, {name}", ratio, 1 / 1.05))
    common.report(rows)


if __name__ == "__main__":
    main()
