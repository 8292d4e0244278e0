"""Commands that are killed (SIGKILL) at random moments and given again until they end: equal bytes, no litter.

    python -m tests.long.kills COUNT [COMMAND ...]         # COUNT kills per command; seed 0, or SEED=n

Every command is run once without a kill. Then, in an empty folder, it is begun again and again; half of the kills
fall at a random moment, half at a random call that opens, renames or removes a file of the folder (of which one tenth
are past the last), and every third time it is left to end. Then its exit code and every file must be those of the
first run, but for what shows seconds: ``record.json``, pages, and a column of tables. What the kills leave in the
folder of temporary files is counted too. The process is forked from one that has imported everything, and states are
saved every .05 s, so that kills meet the work and not the imports.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sklearn.datasets  # noqa: F401 - imported before the processes part
import torch

import isthmus as im
import isthmus.plot.curves
from isthmus.cli import run_app
from isthmus.storage import FolderMemory

MODEL = ("--model", "mlp:64-16x2-10", "--data", "digits")
FEW = ("--examples", "200")
QUIET = ("-q",)
TRAINED: Mapping[str, tuple[str, ...]] = {
    "Bezier": ("epochs=6",),
    "PolyChain": ("epochs=6",),
    "AutoNEB": ("cycles=[[30, 2], [20, 1]]",),
    "LayerWise": ("moves=1", "epochs=2"),
    "Subnetwork": ("steps=60",),
    "Narrow": (),
    "Dropout": (),
    "StringSampling": ("threshold=0.5", "steps=120", "check=5", "attempts=1", "depth=2"),
    "ConstrainedStringSampling": ("threshold=0.5", "steps=120", "check=5", "attempts=1", "beads=4"),
    "Auto": ("excess=0.001", "budget=120"),
}
"""The methods that train, with options under which each takes about a second here."""
SEEN = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"})
"""The audited events at which a process may die."""


@dataclass
class Tally:
    """What was seen of one command."""

    kills: int = 0
    ends: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        bad = "".join(f"\n    {n} x {text}" for text, n in self.found.items())
        return f"{self.kills} kills, {self.ends} ends, {sum(self.found.values())} faults{bad}"


def inputs(folder: Path) -> None:
    """Two trained networks, a path between them, a graph of them, and a sweep file."""
    for seed in (0, 1):
        out = ("--out", str(folder / f"{seed}.safetensors"))
        assert (
            run_app(["train", *MODEL, *FEW, "--epochs", "300", "--until", ".05", "--seed", str(seed), *out, *QUIET])
            == 0
        )
    a, b = ends(folder)
    low = ["--method", "Bezier", "--option", "epochs=3", "--num-points", "5", "--budget", "0"]
    assert run_app(["connect", a, b, *low, "--out", str(folder / "path"), *FEW, *QUIET]) in {0, 1}
    (folder / "sweep.yaml").write_text(
        "name: small\nnetworks:\n  - {model: 'mlp:64-8x2-10', data: digits, examples: 100, seeds: [0, 1], steps: 40}\n"
        "methods: [Linear, {name: Bezier, epochs: 3}]\nnum_points: 5\nbudget: 1\n"
    )


def ends(folder: Path) -> tuple[str, str]:
    """The files of the two networks."""
    return str(folder / "0.safetensors"), str(folder / "1.safetensors")


def commands(folder: Path, root: Path) -> dict[str, list[str]]:
    """Each command by its name; they write below `root`."""
    a, b = ends(folder)
    path, out = str(folder / "path" / "path.safetensors"), ("--out", str(root / "out"))
    few = ["--num-points", "5", "--budget", "1"]
    made = {
        "train adam": ["train", *MODEL, *FEW, "--epochs", "60", "--until", "0", "--out", str(root / "a.safetensors")],
        "train sgd": ["train", *MODEL, *FEW, "--epochs", "60", "--optimizer", "sgd", "--lr", ".01",
                      "--out", str(root / "a.safetensors")],
        "profile": ["profile", path, *out, "--num-points", "41"],
        "profile tol": ["profile", path, *out, "--tol", "1e-4"],
        "certify": ["certify", path, *out, "--gap", ".05", "--budget", "6", "--examples", "60", "--changed-data"],
        "stability": ["stability", a, *out, "--masks", "4", "--noise", "--noise-examples", "40"],
        "theory": ["theory", a, b, *out, "--masks", "2", "--draws", "2", "--steps", "20", "--sample", "20"],
        "ensemble": ["ensemble", path, *out, "--points", "4"],
        "plane": ["plane", a, b, *out, "--path", path, "--points", "7"],
        "align": ["align", a, b, *out, "--num-points", "5"],
        "graph": ["graph", a, b, *out, "--method", "Bezier", "--option", "epochs=4"],
        "check": ["check", a, b, *out],
        "merge": ["merge", a, b, "--anyway", "--out", str(root / "merged.safetensors")],
        "compare": ["compare", a, b, *out, "--budget", "30"],
        "report": ["report", str(folder / "path"), "--out", str(root / "page.html")],
        "sweep": ["sweep", str(folder / "sweep.yaml"), "--runs", str(root / "runs")],
        "experiment": ["experiment", "run", "compare-digits", "--scale", "smoke", "--only", "Linear",
                       "--runs", str(root / "runs")],
    }  # fmt: skip
    for name, options in TRAINED.items():
        words = [word for option in options for word in ("--option", option)]
        made[f"connect {name}"] = ["connect", a, b, *out, "--method", name, *words, *few, *FEW]
    return {name: words if name == "report" else [*words, *QUIET] for name, words in made.items()}


# -- one process


def forked(words: list[str], root: Path, dies_at: int = 0) -> tuple[int, int]:
    """A process that runs the command; its number, and a pipe on which it writes a byte for each event it sees.

    It kills itself at event `dies_at` (from 1) among those that touch `root`.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    code = 120
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _listen(root, writing, dies_at)
        code = run_app(words)
    finally:
        os._exit(code)


def _listen(root: Path, writing: int, dies_at: int) -> None:
    below, seen = str(root), 0

    def event(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if name not in SEEN or not str(arguments[0]).startswith(below):
            return
        seen += 1
        if seen == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(writing, b".")

    sys.addaudithook(event)


def outcome(process: int, reading: int, seconds: float | None) -> tuple[int | None, int]:
    """The exit code, or None of a process that was killed (by itself, or here after `seconds`); and its events."""
    handle, events = os.pidfd_open(process), 0
    limit = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if limit is None else max(0.0, limit - time.monotonic())
        ready, _, _ = select.select([handle, reading], [], [], left)
        if reading in ready:
            events += len(os.read(reading, 65536))
        if handle in ready:
            break
        if not ready:
            os.kill(process, signal.SIGKILL)
            limit = None
    os.close(handle)
    while more := os.read(reading, 65536):
        events += len(more)
    os.close(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return (None if code < 0 else code), events


# -- what it left


def contents(folder: Path) -> dict[str, str]:
    """Every file below the folder, and the digest of its bytes; of a file that shows seconds only that it is there."""
    found = {}
    for file in sorted(folder.rglob("*")):
        found[str(file.relative_to(folder))] = "folder" if file.is_dir() else hashlib.sha256(_told(file)).hexdigest()
    return found


def _told(file: Path) -> bytes:
    """The bytes of a file without what shows seconds."""
    table = file.parent.name == "tables"
    if table and file.suffix == ".csv":
        with file.open(newline="") as lines:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(lines)]
        return json.dumps(rows).encode()
    return b"" if table or file.name == "record.json" or file.suffix == ".html" else file.read_bytes()


def differences(once: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not as it was after the run without kills."""
    return [
        f"{'differs' if name in once and name in now else 'missing' if name in once else 'litter'}: {name}"
        for name in sorted({*once, *now})
        if once.get(name) != now.get(name)
    ]


def attack(name: str, count: int, given: Path, root: Path, r: random.Random) -> Tally:
    """So many kills of one command."""
    words, tally = commands(given, root)[name], Tally()
    before = contents(given)
    _anew(root)
    begin = time.monotonic()
    code, events = outcome(*forked(words, root), None)
    seconds, once = time.monotonic() - begin, contents(root)
    if code not in {0, 1} or not once:
        tally.found[f"exit code {code} without a kill"] += 1
        return tally
    _anew(root)
    while tally.kills < count:
        how = r.choice(("event", "moment", "not at all"))
        dies_at = r.randint(1, max(2, events * 11 // 10)) if how == "event" else 0
        ended, _ = outcome(*forked(words, root, dies_at), r.uniform(0, 1.1 * seconds) if how == "moment" else None)
        if ended is None:
            tally.kills += 1
            continue
        tally.ends += 1
        if ended != code:
            tally.found[f"exit code {ended}, not {code}"] += 1
        tally.found.update(differences(once, contents(root)))
        _anew(root)
    if contents(given) != before:
        tally.found["what was given has changed"] += 1
    return tally


def _anew(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()


def main(arguments: list[str]) -> int:
    """Kill the commands that are named, or all; the exit code says whether anything was found."""
    count, chosen, seed = int(arguments[0]), arguments[1:], int(os.environ.get("SEED", "0"))
    torch.set_num_threads(1)
    FolderMemory.due = lambda self, step: time.monotonic() - self.shared.last >= 0.05  # ty: ignore
    found = 0
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name).resolve()
        given, root, temporary = (whole / part for part in ("given", "root", "tmp"))
        for folder in (given, root, temporary):
            folder.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        # What is given is made in a process of its own: this one never trains, so that it can be forked.
        process = os.fork()
        if not process:
            inputs(given)
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        for command in commands(given, root):
            if chosen and command not in chosen:
                continue
            begin = time.monotonic()
            tally = attack(command, count, given, root, random.Random(f"{seed} {command}"))
            left = list(temporary.iterdir())
            found += sum(tally.found.values())
            print(f"{command}: {tally}; {len(left)} temporary files; {time.monotonic() - begin:.0f} s", flush=True)
    print(f"isthmus {im.__version__}: {found} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
