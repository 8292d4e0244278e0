"""Random commands with random options on small networks: a result, or one line that says what is wrong.

    python -m tests.long.options FIRST COUNT     # seeds FIRST to FIRST + COUNT - 1

Networks of six kinds (``NETWORKS``), each with data and three checkpoints. An attempt is a command with what it needs
and up to four of its other options, right and wrong ones. It ends with 0, 1 or 2 within ``SECONDS``, without a
traceback or a warning; with 2 in one line, and nothing is left behind; after --json there is JSON, in which nothing is
NaN; half of the results become a page, on which nothing is "nan". Told is each fault with its seed and its command,
then how often each command ended how. The exit code is 1 after a fault.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import typer

from isthmus.cli.app import _loaded
from tests.long.watched import forked, nothing, wait

SECONDS = 120.0
"""An attempt may take so long."""
CODE = """
from torch import nn
def shallow(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
def deep(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
def normed(): return nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
def smooth(): return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))
def linear(): return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 2, bias=False))
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.attention = nn.Embedding(7, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 7)
    def forward(self, x):
        h = self.words(x)
        return self.out(self.norm(h + self.attention(h, h, h, need_weights=False)[0]))
def words(): return Words()
"""
NETWORKS = {
    "shallow": ("row", "class"), "deep": ("row", "class"), "normed": ("image", "class"),
    "smooth": ("row", "numbers"), "linear": ("row", "numbers"), "words": ("words", "words"),
}  # fmt: skip
"""The factories, each with the kind of its inputs and of its targets."""
TRAINED = {
    "Bezier": ("epochs=2",), "PolyChain": ("epochs=2",), "AutoNEB": ("cycles=[[5, 2], [5, 1]]",),
    "LayerWise": ("moves=1", "epochs=1"), "Subnetwork": ("steps=20",), "Auto": ("budget=60",),
    "StringSampling": ("steps=30", "check=5", "attempts=1", "depth=2"),
    "ConstrainedStringSampling": ("steps=30", "check=5", "attempts=1", "beads=3"),
    "Linear": (), "Dropout": (), "NoiseDropout": (), "Narrow": (), "DeepLinear": (), "TwoLayerReLU": ("steps=20",),
    "Sublevel": (), "MeanField": (), "Renormalised": (),
}  # fmt: skip
VALUES: dict[str, str] = {
    "--num-points": "1 2 3 5 9", "--gap": "0 1e-6 .01 .1 1", "--budget": "0 .5 1 3", "--level": "1.1x 2x 1x 0 .5 1000",
    "--bn": "recompute interpolate keep none", "--seed": "-1 0 1 7", "--examples": "1 2 3 10 24 100",
    "--penalty": "none ridge:.01 l1:.1 ridge:0 ridge:.1:0.weight l1:.1:nothing", "--batch": "1 2 7 100",
    "--device": "cpu auto nothing", "--dtype": "float32 float64 bfloat16 auto", "--ignore-index": "-100 0 2 5",
    "--class-axis": "1 2 -1", "--align": "activations weights rotations", "--by": "activations weights rotations",
    "--until": "0 .5 10", "--optimizer": "adam sgd nothing", "--lr": ".01 1 1e-5 -1", "--momentum": "0 .9 1",
    "--weight-decay": "0 .1", "--epochs": "1 2 5", "--at": "0 .3 1 2", "--weight": ".5 1 0 -1", "--density": ".2 1 0",
    "--scale": "1 .5 0 output each", "--tol": "1e-3 .01 .1", "--screen": "auto bf16 nothing", "--goal": "tree all",
    "--masks": "1 3", "--draws": "1 2", "--steps": "1 10", "--sample": "1 5 24", "--points": "2 4", "--margin": "0 -1",
    "--keep": "0 .1 .5 1", "--search": "random greedy gates nothing", "--p": ".1 .5 1", "--noise-examples": "1 5",
    "--bounds": "auto box chord nothing", "--loss": "cross_entropy mse hinge huber nothing", "--key": "model",
}  # fmt: skip
"""What an option that is not a flag is tried with; the others, which name files, are left out."""
FLAGS = (
    "--json", "--prove", "--no-prove", "--curve", "--no-align", "--anyway", "--noise", "--population", "--changed-data",
    "--unsafe-pickle", "--details",
)  # fmt: skip
SMALL = {
    "train": ("--epochs", "3"), "compare": ("--methods", "Linear,Dropout,DeepLinear"),
    "theory": ("--masks", "2", "--draws", "1", "--steps", "5", "--sample", "5"), "stability": ("--masks", "3"),
}  # fmt: skip
NUMBERS = {"train": 0, "stability": 1, "connect": 2, "compare": 2, "theory": 2}
PATHS = ("profile", "certify", "ensemble")
MANY = ("align", "check", "merge", "graph", "plane")
PAGES = ("connect", "compare", "check", "graph", "align")
NAN = re.compile(r"(?<![\w-])nan(?![\w-])", re.IGNORECASE)

Ended = tuple[int | None, str, str]
"""The exit code (None: late), and what was said on stdout and on stderr."""


def alone(words: Sequence[str], folder: Path) -> Ended:
    """A command in a process of its own."""
    with (folder / "out.txt").open("w+") as out:
        ended = wait(*forked([*words], folder, nothing, out.fileno()), SECONDS)
        out.seek(0)
        return ended.code, out.read(), ended.said


def inputs(folder: Path, names: Sequence[str] = tuple(NETWORKS)) -> None:
    """Code, data, three checkpoints of each network, and a path between two."""
    (folder / "nets.py").write_text(CODE)
    for name in names:
        x, y = _drawn(*NETWORKS[name], 24, 1)
        x_test, y_test = _drawn(*NETWORKS[name], 16, 2)
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
        loss = "mse" if NETWORKS[name][1] == "numbers" else "cross_entropy"
        for seed in range(3):
            made = ["--loss", loss, "--epochs", "40", "--lr", ".01", "--until", ".05", "--seed", str(seed), "-q"]
            _done(["train", *_setup(name), *made, "--out", f"{name}{seed}.safetensors"], folder)
        line = ["--method", "Linear", "--num-points", "5", "--budget", "2", "-q", "--out", f"{name}-path"]
        _done(["connect", f"{name}0.safetensors", f"{name}1.safetensors", *_setup(name), *line], folder)


def _drawn(kind: str, targets: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    shape = {"row": (n, 6), "image": (n, 1, 3, 2), "words": (n, 5)}[kind]
    x = g.integers(0, 7, shape) if kind == "words" else g.normal(size=shape).astype("float32")
    if targets == "numbers":
        return x, g.normal(size=(n, 2)).astype("float32")
    if targets == "class":
        return x, g.integers(0, 3, n)
    return x, np.where(g.random(shape) < 0.2, -100, g.integers(0, 7, shape))


def _setup(name: str) -> list[str]:
    return ["--model", f"nets.py:{name}", "--data", f"{name}.npz"]


def _done(words: list[str], folder: Path) -> None:
    code, _, said = alone(words, folder)
    assert code in {0, 1}, said


def drawn(r: random.Random, names: Sequence[str] = tuple(NETWORKS)) -> list[str]:
    """A command with its options, which writes to "o"."""
    name, command = r.choice(names), r.choice([*NUMBERS, *PATHS, *MANY])
    ends = NUMBERS.get(command) or r.choice((2, 3))
    given = [f"{name}{i}.safetensors" for i in range(0 if command == "train" else ends)]
    words = [command, *([f"{name}-path/path.safetensors"] if command in PATHS else given)]
    words += ["--out", "o/r.safetensors" if command in ("train", "merge") else "o/r", *_setup(name), "-q"]
    words += SMALL.get(command, ())
    if command in ("connect", "graph"):
        method = r.choice([*TRAINED])
        words += ["--method", method, *(word for option in TRAINED[method] for word in ("--option", option))]
    if command == "merge":
        method = r.choice(["average", "task", "ties", "slerp", "aligned-average"])
        words += ["--method", method, *(["--base", f"{name}2.safetensors"] if method in ("task", "ties") else [])]
    if command == "plane" and r.random() < 0.4:
        words += ["--path", f"{name}-path/path.safetensors"]
    known = [o for o in options(command) if o not in words]
    for option in r.sample(known, r.randrange(5)):
        words += [option] if option in FLAGS else [option, r.choice(VALUES[option].split())]
    return words


def options(command: str) -> list[str]:
    """Those that a command is tried with."""
    found = typer.main.get_command(_loaded(command)).params
    return [o for p in found for o in (*p.opts, *p.secondary_opts) if o in VALUES or o in FLAGS]


Run = Callable[[Sequence[str], Path], Ended]


def faults(words: list[str], folder: Path, r: random.Random, run: Run = alone) -> tuple[int | None, list[str]]:
    """The exit code of a command, and what was wrong."""
    shutil.rmtree(folder / "o", ignore_errors=True)
    (folder / "o").mkdir()
    code, out, err = run(words, folder)
    left = [str(file.relative_to(folder)) for file in (folder / "o").rglob("*")]
    wrong = {
        "late": code is None,
        f"exit code {code}": code not in (None, 0, 1, 2),
        "a traceback": "Traceback" in out + err,
        "a warning": code != 2 and "Warning" in err,
        "not one line": code == 2 and sum(line.startswith("error: ") for line in err.splitlines()) != 1,
        f"left behind: {left[:3]}": code == 2 and bool(left) and words[0] not in ("graph", "compare"),  # which go on
        "nan": code in (0, 1) and bool(NAN.search(out)),
    }
    found = [what for what, holds in wrong.items() if holds]
    if code in (0, 1) and "--json" in words:
        found += _in_json(out)
    if code in (0, 1) and words[0] in PAGES and _has_page(folder / "o/r") and r.random() < 0.5:
        found += _on_the_page(folder, run)
    return code, [f"{what}: {err.strip()[-300:]}" for what in found]


def _in_json(out: str) -> list[str]:
    def refused(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(out, parse_constant=refused)
    except ValueError as e:
        return [f"no JSON, {e}"]
    return []


def _has_page(result: Path) -> bool:
    """But a comparison of which no method applies."""
    return result.is_dir() and ((result / "comparison.csv").exists() or not (result / "comparison.json").exists())


def _on_the_page(folder: Path, run: Run) -> list[str]:
    code, _, said = run(["report", "o/r", "--out", "o/page.html"], folder)
    if code != 0:
        return [f"no page, {said.strip()[-300:]}"]
    text = re.sub(r"<(script|style|svg)\b.*?</\1>", "", (folder / "o/page.html").read_text(), flags=re.DOTALL)
    return ["nan on the page"] if NAN.search(re.sub(r"<[^>]*>", " ", text)) else []


def main(arguments: list[str]) -> int:
    """Attempts of these seeds."""
    first, count = map(int, arguments)
    torch.set_num_threads(1)
    ended: Counter[str] = Counter()
    found = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        inputs(folder)
        for seed in range(first, first + count):
            r = random.Random(f"options {seed}")
            words = drawn(r)
            code, wrong = faults(words, folder, r)
            ended[f"{words[0]} {code}"] += 1
            found += len(wrong)
            for one in wrong:
                print(f"seed {seed}: isthmus {' '.join(words)}\n    {one}", flush=True)
    print(f"{count} attempts, {found} faults; " + ", ".join(f"{k}: {n}" for k, n in sorted(ended.items())))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
