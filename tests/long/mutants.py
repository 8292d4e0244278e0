"""Mutants of every format that is read: what they end in, counted.

    python -m tests.long.mutants COUNT [FORMAT ...]        # COUNT mutants per format; seed 0, or SEED=n

Each file is changed in its bytes (flipped, cut, doubled, spliced) or, where it holds JSON or YAML, in its values (a
hostile one in the place of another, keys renamed and dropped), and read again. A house error is right, and so is a
result; counted are errors of any other kind ("raw"), results of our own files that differ without an error
("silent"), and readings of more than ten processor seconds ("slow").
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import isthmus as im
from isthmus import pipeline as runs
from isthmus.cli.common import _values
from isthmus.errors import IsthmusError
from isthmus.experiments.sweep_file import read_sweep
from isthmus.graph.stored import load_graph
from isthmus.plot.runs import read_run
from isthmus.report import write_report
from isthmus.storage import load_alignment, load_connection, read_json, save_alignment
from isthmus.storage.methods import connector_from
from isthmus.storage.paths import _seal
from isthmus.storage.tensors import digest, read_metadata, read_tensors, save_tensors
from tests.long.hostile import HOSTILE, OPTIONS, in_bytes, in_values, json_file, yaml_file

SLOW = 10.0


@dataclass(frozen=True)
class Format:
    """One kind of file: `file` is changed and `read`; `same`: whether what was read is what the file held."""

    file: Path
    read: Callable[[], Any]
    same: Callable[[Any], bool] | None = None
    change: Callable[[bytes, random.Random], bytes] | None = None


@dataclass
class Tally:
    """What mutants of one format ended in."""

    counts: Counter[str] = field(default_factory=Counter)
    raw: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{k} {self.counts[k]}" for k in ("house", "read", "raw", "silent", "slow"))
        return "\n".join([f"{counts}; longest {self.longest:.2f} s", *(f"    {n} x {k}" for k, n in self.raw.items())])


# -- what is read


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def ends() -> tuple[im.Objective, Any, Any]:
    g = torch.Generator().manual_seed(0)
    objective = im.Objective(network(), data=(torch.randn(12, 4, generator=g), torch.randint(3, (12,), generator=g)))
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append({k: v.detach() for k, v in network().state_dict().items()})
    return objective, *made


def formats(root: Path) -> dict[str, Format]:
    """All formats, with a good file of each under `root`."""
    objective, a, b = ends()
    run, out = root / "run", {}
    runs.run(objective, a, b, im.Dropout(), run, num_points=3, about={"model": "mlp:4-5-3", "data": "d.npz"})
    path = run / "path.safetensors"
    found = load_connection(path)
    out["path"] = Format(path, lambda: load_connection(path), lambda c: same_connection(c, found))
    out["manifest"] = Format(path, lambda: use_path(path), change=resealed)
    stored = run / "certificate.json"
    kept = read_json(stored)

    def verify() -> Any:
        held = read_json(stored)
        wrong = im.verify_certificate(objective, found, held, num_points=2) + runs.about_another(objective, path, held)
        return None if wrong else held

    out["certificate"] = Format(stored, verify, lambda held: held is None or held == kept, json_file)
    shown = told_by(use_run(run))

    def as_shown(held: Any) -> bool:
        return told_by(held) == shown or bool(held.changed)

    for name in ("result", "profile", "certificate"):
        file = run / f"{name}.json"
        out[f"folder-{name}"] = Format(file, lambda: use_run(run), as_shown, json_file)
    aligned = root / "b.alignment.safetensors"
    matched = im.align(objective, a, b)
    save_alignment(matched, aligned)
    true = matched.tensors
    out["alignment"] = Format(
        aligned, lambda: load_alignment(aligned, objective), lambda r: digest(r.tensors) == digest(true)
    )
    own = root / "own.safetensors"
    im.save_params(a, own, {"model": "mlp:4-5-3", "loss": "cross_entropy"})
    held = digest(a), told(own)
    out["checkpoint"] = Format(
        own,
        lambda: (digest(im.load_params(own)), told(own)),
        lambda got: got == held,
    )  # fmt: skip
    for name, legacy in (("pt", False), ("pt-legacy", True)):
        file = root / f"{name}.pt"
        torch.save(
            {"state_dict": a, "epoch": 3, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}, file,
            _use_new_zipfile_serialization=not legacy,
        )  # fmt: skip
        out[name] = Format(file, lambda file=file: im.load_params(file))
    sweep = root / "sweep.yaml"
    sweep.write_text(
        "name: mine\nnetworks:\n  - model: mlp:64-8-10\n    seeds: [0, 1]\n    steps: 5\n    lr: 0.01\nmethods:\n"
        "  - Linear\n  - name: Bezier\n    steps: 4\nseeds: [0]\nnum_points: 5\ngap: 0.01\npairs: all\n"
    )
    out["sweep"] = Format(sweep, lambda: read_sweep(sweep).cells(), change=yaml_file)
    options = root / "option.txt"
    options.write_text("masks=3")
    out["option"] = Format(options, lambda: use_option(options), change=option)
    graph, c = root / "graph", {k: v + 0.1 for k, v in a.items()}

    def again() -> Any:
        return im.minima_graph(objective, {"a": a, "b": b, "c": c}, im.Linear(), folder=graph, num_points=3)

    made = again().to_dict()
    cell = next((graph / "edges").glob("*/result.json"))
    out["graph"] = Format(graph / "graph.json", lambda: load_graph(graph), change=json_file)
    out["store"] = Format(cell, again, lambda got: got.to_dict() == made, json_file)
    out |= of_hugging_face(root, a) | of_data(root)
    return out


def of_hugging_face(root: Path, a: Any) -> dict[str, Format]:
    """A folder with an index and shards, and an adapter on it."""
    base, lora = root / "base", root / "lora"
    base.mkdir()
    lora.mkdir()
    first, last = dict(list(a.items())[:2]), dict(list(a.items())[2:])
    save_tensors(first, base / "model-1.safetensors", {"format": "pt"})
    save_tensors(last, base / "model-2.safetensors", {"format": "pt"})
    where = {k: "model-1.safetensors" for k in first} | {k: "model-2.safetensors" for k in last}
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}))
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    g = torch.Generator().manual_seed(0)
    tensors = {
        "base_model.model.0.lora_A.weight": torch.randn(2, 4, generator=g),
        "base_model.model.0.lora_B.weight": torch.randn(5, 2, generator=g),
    }
    save_tensors(tensors, lora / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["0"],
        "base_model_name_or_path": str(base),
    }
    (lora / "adapter_config.json").write_text(json.dumps(config))
    return {
        "hf-index": Format(index, lambda: im.load_params(base), change=json_file),
        "hf-shard": Format(base / "model-1.safetensors", lambda: im.load_params(base)),
        "peft-config": Format(lora / "adapter_config.json", lambda: im.load_params(lora), change=json_file),
        "peft-weights": Format(lora / "adapter_model.safetensors", lambda: im.load_params(lora)),
    }


def of_data(root: Path) -> dict[str, Format]:
    """A data set of the user's."""
    file = root / "d.npz"
    np.savez(file, x_train=np.zeros((4, 3)), y_train=np.arange(4))
    return {"npz": Format(file, lambda: im.data.load(str(file)))}


def told(file: Path) -> dict[str, str]:
    """What commands take from a checkpoint."""
    return {k: v for k, v in read_metadata(file).items() if k in ("model", "loss", "data")}


def use_path(path: Path) -> Any:
    """All that reads a manifest."""
    from isthmus.cli.asked import of_path
    from isthmus.cli.options import Asked
    from isthmus.cli.paths import _labels

    found = load_connection(path)
    repr(found), found.labels, found.info, found.cost, found.message, found._repr_html_()
    _labels(path, found)
    return of_path(path, found.stats, Asked(model="mlp:64-5-10", data="digits", changed_data=True))


def use_run(folder: Path) -> Any:
    """All that reads a folder of results; the page of one in fifty."""
    run = read_run(folder)
    if random.random() < 0.02:
        write_report(folder)
    return run


def told_by(run: Any) -> Any:
    """What a folder of results says: its documents, with the numbers of its profile."""
    p = run.profile
    measured = {k: v.tolist() for k, v in [("t", p.t), ("segment", p.segment), *p.train.items()]}
    return run.result, run.certificate, measured, p.num_points, p.bn, p.tol, p.within


def use_option(file: Path) -> Any:
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    return connector_from({**_values([text]), "name": "Dropout"}, "--method")


def option(data: bytes, r: random.Random) -> bytes:
    if r.random() < 0.3:
        return in_bytes(data, r)
    return f"{r.choice(('masks', 'keep', 'search', 'x'))}={r.choice(OPTIONS + HOSTILE)}".encode(
        "utf-8", "surrogatepass"
    )


def resealed(data: bytes, r: random.Random) -> bytes:
    """A path file whose manifest was changed by somebody who renews its digest."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p"
        file.write_bytes(data)
        tensors, metadata = read_tensors(file)
        header = json.loads(metadata["isthmus"])
        header["manifest"] = in_values(header["manifest"], r)
        header["digest"] = _seal(
            header["version"], header["tensors"], header["manifest"].encode("utf-8", "replace").decode()
        )
        text = json.dumps(header | {"manifest": header["manifest"].encode("utf-8", "replace").decode()})
        save_tensors(tensors, file, {"isthmus": text})
        return file.read_bytes()


def same_connection(c: Any, d: Any) -> bool:
    ends = all(digest(p) == digest(q) for s, t in zip(c.path.segments, d.path.segments, strict=True)
               for p, q in zip(s.control, t.control, strict=True))  # fmt: skip
    return ends and c.stats == d.stats and c.outcome is d.outcome and digest(c.target) == digest(d.target)


# -- the count


def attack(made: Format, count: int, r: random.Random) -> Tally:
    """So many mutants of one file, which is as it was afterwards."""
    tally, good = Tally(), made.file.read_bytes()
    whole = made.read()  # the good file is read
    assert made.same is None or made.same(whole)
    for _ in range(count):
        bad = (made.change or in_bytes)(good, r)
        made.file.write_bytes(bad)
        begin = time.process_time()
        word, said = _end(made, good, bad)
        seconds = time.process_time() - begin
        tally.longest = max(tally.longest, seconds)
        tally.counts[word] += 1
        if seconds > SLOW:
            tally.counts["slow"] += 1
            tally.raw[f"slow: {_difference(good, bad)!r}"] += 1
        tally.raw.update([said] if said else [])
    made.file.write_bytes(good)
    return tally


def _end(made: Format, good: bytes, bad: bytes) -> tuple[str, str]:
    """What a mutant ends in, and what is said of it where that is a fault."""
    try:
        got = made.read()
        right = made.same is None or bad == good or made.same(got)
    except IsthmusError as e:
        return ("raw", repr(e)) if "\n" in str(e) else ("house", "")
    except Exception as e:  # what is looked for
        return "raw", _place(e)
    return ("read", "") if right else ("silent", f"silent: {_difference(good, bad)!r}")


def _place(e: Exception) -> str:
    """An error and the last line of the package that it passed."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "/isthmus/" in f.filename]
    last = (own or frames)[-1]
    return f"{type(e).__name__}: {str(e)[:80]!r} at {last.filename.rpartition('/isthmus/')[2]}:{last.lineno}"


def _difference(good: bytes, bad: bytes) -> bytes:
    at = next((i for i, (x, y) in enumerate(zip(good, bad, strict=False)) if x != y), min(len(good), len(bad)))
    return bad[max(0, at - 30) : at + 30]


def main(arguments: list[str]) -> int:
    """Attack the formats that are named, or all; the exit code says whether anything fell."""
    count, chosen, seed = int(arguments[0]), arguments[1:], int(os.environ.get("SEED", "0"))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fell = 0
    root = Path(tempfile.mkdtemp())
    try:
        for name, made in formats(root).items():
            if chosen and name not in chosen:
                continue
            begin = time.perf_counter()
            random.seed(seed)
            tally = attack(made, count, random.Random(f"{seed} {name}"))
            fell += tally.counts["raw"] + tally.counts["silent"] + tally.counts["slow"]
            print(f"{name}: {count} mutants in {time.perf_counter() - begin:.0f} s: {tally}", flush=True)
    finally:
        shutil.rmtree(root)
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
