"""Sweeps of every method by every engine: equal bytes. Other numbers of threads and examples at a time: nearly so.

    python -m tests.long.engines bytes                      # one process; Ray, 1, 2 and 4 workers; 3 shards at once
    python -m tests.long.engines numbers [COMMAND ...]      # 1, 2 and 4 threads; 1, 7 and all examples at a time

Of what may not be equal the largest difference of losses and errors is printed, relative to the largest of them, and
compared with what is promised: `SAME` of a path that is there, by the precision that it is measured in; a method that
trains adds up its own rounding errors, and ends as high up to `MOVED`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import isthmus as im
from tests.long.watched import TRAINED, contents, differences, ends, inputs

SAME = {"float32": 1e-6, "float64": 1e-12}
MOVED = 0.05
GAP = 0.5
"""Asked of certificates: which bounds are taken to it depends on what they cost, and so on examples at a time."""
ENGINES: Mapping[str, Sequence[Sequence[str]]] = {
    "this process": [[]],
    "Ray, 1 worker": [["--workers", "1"]],
    "Ray, 2 workers": [["--workers", "2"]],
    "Ray, 4 workers": [["--workers", "4"]],
    "3 shards at once": [["--shard", f"{i}/3"] for i in (1, 2, 3)],
}
"""The calls of each engine, which run at the same time."""
SHORT: Mapping[str, str] = {
    "Auto": "budget: 60",
    "AutoNEB": "cycles: [[10, 2], [6, 1]]",
    "Bezier": "epochs: 2",
    "ConstrainedStringSampling": "threshold: 2.4, steps: 30, attempts: 1, beads: 2",
    "DeepLinear": "tolerance: 1.0e-3",
    "Dropout": "masks: 3",
    "LayerWise": "moves: 1, epochs: 1",
    "Narrow": "draws: 3",
    "NoiseDropout": "draws: 3",
    "PolyChain": "epochs: 2",
    "StringSampling": "threshold: 2.4, steps: 30, attempts: 1, depth: 2",
    "Subnetwork": "steps: 30",
    "TwoLayerReLU": "units: 4, attempts: 0, steps: 30",
}
OF_THEIR_OWN = {
    "DeepLinear": "linear.py:make",
    "MeanField": "meanfield:64-8-10",
    "Sublevel": "mlp:64-80x1-10",
    "TwoLayerReLU": "mlp:64-12x1-10",
}
"""The networks of methods with premises; other methods take another one."""
LINEAR = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 65), nn.Linear(65, 10))
"""


def sweeps(folder: Path) -> dict[Path, list[str]]:
    """A sweep of all methods that any perceptron suits, and one for each other method: their files, and more words."""
    (folder / "linear.py").write_text(LINEAR)
    anywhere = [m.__name__ for m in im.METHODS if m.__name__ not in OF_THEIR_OWN]
    made = {"general": ("mlp:64-8x2-10", anywhere)} | {k: (v, [k]) for k, v in OF_THEIR_OWN.items()}
    files = {}
    for name, (model, methods) in made.items():
        rows = ", ".join(f"{{name: {m}, {SHORT[m]}}}" if m in SHORT else m for m in methods)
        file = folder / f"{name}.yaml"
        own = model.endswith(".py:make")
        network = str(folder / model) if own else model
        files[file] = ["--model", network] if own else []
        file.write_text(
            f"name: {name.lower()}\nnetworks:\n"
            f"  - {{model: '{network}', data: digits, examples: 60, seeds: [0, 1], steps: 30}}\n"
            f"methods: [{rows}]\nnum_points: 5\nbudget: 1\n"
        )
    return files


def run(*words: str) -> subprocess.Popen[str]:
    """A command of this library."""
    command = [sys.executable, "-m", "isthmus", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def failed(process: subprocess.Popen[str]) -> bool:
    """Wait for it; what failed is told."""
    _, said = process.communicate()
    if process.returncode:
        print(f"exit code {process.returncode}: {process.args}\n{said[-3000:]}")
    return process.returncode != 0


def bytes_of(folder: Path) -> int:
    """How many calls failed, and files are not those of the first engine."""
    files, found = sweeps(folder), 0
    once: dict[str, str] = {}
    for engine, calls in ENGINES.items():
        runs = folder / engine
        for file, more in files.items():
            words = ["sweep", str(file), "--runs", str(runs), "-q", *more]
            found += sum(map(failed, [run(*words, *call) for call in calls]))
            if len(calls) > 1:
                found += failed(run(*words))  # the table of what the shards did
        now = {k: v for k, v in contents(runs).items() if ".locks" not in k}
        once = once or now
        bad = differences(once, now)
        found += len(bad)
        cells = sum(name.endswith("result.json") for name in now)
        print(f"{engine}: {len(now)} files, {cells} cells, {len(bad)} differ {bad[:3]}", flush=True)
    return found


OTHERWISE: Mapping[str, Mapping[str, str]] = {
    **{f"{n} threads": {"threads": str(n)} for n in (2, 4)},
    **{f"{n} at a time": {"batch": str(n)} for n in (1, 7)},
}
"""What is changed in a run with one thread and all examples at a time."""


def numbers(folder: Path) -> int:
    """How many runs are not what is promised."""
    inputs(folder)
    a, b = ends(folder)
    few = ["--examples", "200", "-q"]
    commands: dict[str, list[str]] = {}
    for method in ("Linear", "Aligned", "NoiseDropout", "Renormalised", *TRAINED):
        options = [word for option in TRAINED.get(method, ()) for word in ("--option", option)]
        measured = ["--num-points", "9", "--budget", "0"]
        commands[f"connect {method}"] = ["connect", a, b, "--method", method, *options, *measured, *few]
    commands["profile"] = ["profile", str(folder / "path" / "path.safetensors"), "--num-points", "41", "-q"]
    commands["certify"] = [
        "certify",
        str(folder / "path" / "path.safetensors"),
        "--budget",
        "5",
        *few,
        "--changed-data",
    ]
    commands["ensemble"] = ["ensemble", str(folder / "path" / "path.safetensors"), "--points", "4", "-q"]
    commands["check"] = ["check", a, b, *few]
    for name in ("connect Linear", "profile", "ensemble", "check"):
        commands[f"{name}, float64"] = [*commands[name], "--dtype", "float64"]
    found = 0
    for name, words in commands.items():
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        once = losses(folder / name / "first", words)
        apart = {how: far(once, losses(folder / name / how, words, **what)) for how, what in OTHERWISE.items()}
        trained = name.removeprefix("connect ") in TRAINED
        most = MOVED if trained else GAP if name == "certify" else SAME["float64" if "float64" in words else "float32"]
        bad = [how for how, by in apart.items() if not by <= most]
        found += len(bad)
        print(f"{name}: {', '.join(f'{how} {by:.2g}' for how, by in apart.items())}{'  BAD' * bool(bad)}", flush=True)
    return found


def losses(folder: Path, words: Sequence[str], threads: str = "1", batch: str | None = None) -> list[float]:
    """The numbers of what a command wrote, in order."""
    more = [] if batch is None else ["--batch", batch]
    folder.parent.mkdir(exist_ok=True)
    process = run("--threads", threads, *words, "--out", str(folder), *more)
    process.communicate()
    assert process.returncode in {0, 1}, words
    texts = [json.loads(f.read_text()) for f in sorted(folder.glob("*.json")) if f.name != "record.json"]
    return [v for text in texts for v in _numbers(text)]


def _numbers(value: object, name: str = "") -> list[float]:
    """What stands under a name of a loss, a barrier, a bound or an error, at any depth."""
    if isinstance(value, Mapping):
        return [v for k, one in value.items() for v in _numbers(one, str(k))]
    if isinstance(value, list):
        return [v for one in value for v in _numbers(one, name)]
    told = isinstance(value, int | float) and any(word in name for word in ("loss", "bound", "excess", "error"))
    return [float(value)] if told else []  # type: ignore[arg-type]


def far(once: list[float], now: list[float]) -> float:
    """The largest difference of numbers, relative to the largest of them; infinite where there are more or fewer."""
    if len(once) != len(now):
        return float("inf")
    return max((abs(p - q) for p, q in zip(once, now, strict=True)), default=0.0) / max(map(abs, once), default=1.0)


def main() -> int:
    """Exit code 1 where something is not as it should be."""
    os.environ["OMP_NUM_THREADS"] = "4"
    with tempfile.TemporaryDirectory() as name:
        found = {"bytes": bytes_of, "numbers": numbers}[sys.argv[1]](Path(name).resolve())
    print(f"isthmus {im.__version__}: {found} not as promised")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
