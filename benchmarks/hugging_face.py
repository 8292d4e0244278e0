"""Six networks of Hugging Face, from saved folders by the command line, against ``from_pretrained`` and a plain loop.

Each network is tuned twice from one start by a few steps of AdamW, and the line between the two is measured and proved.
Needs ``isthmus[hf]``. Networks are random and small: nothing is downloaded. ``--width N`` sets their size (default 16),
``--examples N`` the number of examples; ``--no-proof`` measures only. Times are processor seconds of whole commands.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import isthmus as im

POINTS = 9
DATA = """
import torch
import isthmus as im

def {name}():
    return {{"data": torch.load("{file}"), "loss": {loss}}}
"""
PLAIN = """
import json, sys, torch, transformers
import torch.nn.functional as F
torch.set_num_threads(1)
kind, a, b, data, points = getattr(transformers, sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
module, other, batch = kind.from_pretrained(a).eval(), kind.from_pretrained(b).eval(), torch.load(data)
first = {k: v.clone() for k, v in module.state_dict().items()}
last, losses = other.state_dict(), []
labels, inputs = batch.pop("labels"), batch
shift = labels.dim() > 1
with torch.no_grad():
    for k in range(points):
        t, total, count = k / (points - 1), 0.0, 0
        state = {n: torch.lerp(v, last[n], t) if v.is_floating_point() else v for n, v in first.items()}
        module.load_state_dict(state)
        for i in range(0, len(labels), 64):
            logits, y = module(**{n: v[i : i + 64] for n, v in inputs.items()}).logits, labels[i : i + 64]
            if shift:
                logits, y = logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()
            total += float(F.cross_entropy(logits, y, reduction="sum"))
            count += int((y != -100).sum())
        losses.append(total / count)
print(json.dumps(losses))
"""
MEASURED = """
import json, os, resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], env={**os.environ, "OMP_NUM_THREADS": "1"})
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""A small process between: a child counts the memory of the one that started it as its own."""


def networks(width: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> class and what its config holds."""
    words, labels = {"vocab_size": 4 * width}, {"num_labels": 3}
    attention = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4
    }  # fmt: skip
    llama = {**words, **attention, "num_key_value_heads": 2, "max_position_embeddings": 16}
    gpt2 = {**words, "n_positions": 16, "n_embd": width, "n_layer": 2, "n_head": 4}
    resnet = {"embedding_size": width // 2, "hidden_sizes": [width // 2, width], "depths": [1, 1]}
    return {
        "GPT2": ("GPT2LMHeadModel", gpt2 | {"bos_token_id": 0, "eos_token_id": 0}),
        "Llama": ("LlamaForCausalLM", llama),
        "Bert": ("BertForSequenceClassification", {**words, **attention, **labels, "max_position_embeddings": 16}),
        "ViT": ("ViTForImageClassification", {**attention, **labels, "image_size": 8, "patch_size": 4}),
        "ResNet": ("ResNetForImageClassification", {**resnet, **labels, "layer_type": "basic"}),
        "Mixtral": ("MixtralForCausalLM", {**llama, "num_local_experts": 4}),
    }


def batch_of(name: str, words: int, n: int) -> dict[str, Tensor]:
    """Images, or sentences of 4 to 12 words with their mask, and labels."""
    g = torch.Generator().manual_seed(0)
    if name in ("ViT", "ResNet"):
        return {"pixel_values": torch.randn(n, 3, 8, 8, generator=g), "labels": torch.arange(n) % 3}
    mask = (torch.arange(12) < torch.randint(4, 13, (n, 1), generator=g)).long()
    ids = torch.randint(1, words, (n, 12), generator=g) * mask
    labels = torch.arange(n) % 3 if name == "Bert" else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tuned(start: Any, batch: dict[str, Tensor], seed: int) -> Any:
    """A copy after twelve steps of AdamW."""
    torch.manual_seed(seed)
    module = copy.deepcopy(start).train()
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for _ in range(12):
        few = torch.randperm(len(batch["labels"]))[:12]
        optimizer.zero_grad()
        module(**{k: v[few] for k, v in batch.items()}).loss.backward()
        optimizer.step()
    return module.eval()


def prepared(name: str, options: dict[str, Any], kind: str, n: int) -> nn.Module:
    """Two tuned networks in folders, their data, and the code that gives those to the command line."""
    torch.manual_seed(0)
    start = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options))
    batch = batch_of(name, options.get("vocab_size", 0), n)
    torch.save(batch, f"{name}.pt")
    for seed in (1, 2):
        tuned(start, batch, seed).save_pretrained(f"{name}-{seed}")
    loss = "'cross_entropy'" if batch["labels"].dim() == 1 else "im.CrossEntropy(mean='tokens', shift=True)"
    Path(f"{name}.py").write_text(DATA.format(name=name, file=f"{name}.pt", loss=loss))
    return start.eval()


def run(*command: str) -> tuple[str, float, float]:
    """What a command prints, its processor seconds, and its peak memory in MB."""
    out = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True).stdout
    said, _, used = out.rstrip("\n").rpartition("\n")
    return said, *json.loads(used)


def structure_in_words(name: str, module: nn.Module) -> str:
    """How many groups of units there are, or why they are not known."""
    batch = {k: v[:2] for k, v in torch.load(f"{name}.pt").items() if k != "labels"}
    try:
        found = im.derive_structure(module, (), batch)
    except im.IsthmusError as error:
        return str(error)
    return f"{len(found.groups)} groups" + (f", {len(found.fixed)} fixed" if found.fixed else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--no-proof", action="store_true")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, (kind, options) in networks(asked.width).items():
            start = prepared(name, options, kind, asked.examples)
            given = ("--model", f"hf:{name}-1", "--data", f"{name}.py:{name}", "-q")
            proof = ("--gap", "0.04", "--budget", "0" if asked.no_proof else "100")
            ends = (f"{name}-1", f"{name}-2", "--method", "Linear", "--num-points", str(POINTS), "--out", name)
            run("-m", "isthmus", "connect", *ends, *given, *proof, "--bn", "interpolate")
            path = (f"{name}/path.safetensors", "--num-points", str(POINTS), "--bn", "interpolate", "--out", name)
            rows, plain = [], ("", 0.0, 0.0)
            for _ in range(3):
                ours = run("-m", "isthmus", "profile", *path, *given)
                plain = run("-c", PLAIN, kind, f"{name}-1", f"{name}-2", f"{name}.pt", str(POINTS))
                rows.append((ours[1], plain[1], ours[2], plain[2]))
            seconds, loop, memory, least = (min(column) for column in zip(*rows, strict=True))
            measured = json.loads(Path(name, "profile.json").read_text())["loss"]
            apart = max(abs(p - q) / abs(q) for p, q in zip(measured, json.loads(plain[0]), strict=True))
            proved = json.loads(Path(name, "certificate.json").read_text())
            bound = (
                f"bound {proved['bound'] / proved['witness']['loss']:.3f} x" if proved["proved"] else proved["summary"]
            )
            print(
                f"{name}: {structure_in_words(name, start)}; profile = loop to {apart:.0e}; {bound}; "
                f"{memory:.0f} MB against {least:.0f}; {seconds:.1f} s against {loop:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
