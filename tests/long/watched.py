"""Commands on small networks, each in a process of its own that may be ended or refused the disk, and what they leave.

A process is forked from one that has imported everything and trains nothing, and saves states every .05 s.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sklearn.datasets  # noqa: F401 - imported before the processes part
import torch
import torch._dynamo  # else each of the processes would, which takes over a second

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
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SEEN = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"})
"""The audited events at which a process may die."""


@dataclass
class Tally:
    """What was seen of one command: how often it was hindered, how often it ended after that, and what was wrong."""

    hindered: int = 0
    ends: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        bad = "".join(f"\n    {n} x {text}" for text, n in self.found.items())
        return f"{self.hindered} times hindered, {self.ends} ends, {sum(self.found.values())} faults{bad}"


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
        "compare": ["compare", a, b, *out, "--budget", "3", "--num-points", "5", "--examples", "60"],
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


@dataclass(frozen=True)
class Ended:
    """A process that is gone: its exit code (None: killed), the events it saw, and what it wrote on stderr."""

    code: int | None
    events: int
    changes: int
    """The events that make, write, rename or remove a file."""
    said: str


Event = Callable[[int, str, str], None]
"""Called at the n-th event (from 1) below a folder, with its name, and "w" where it writes, "d" where it removes."""


def forked(words: list[str], root: Path, event: Event, out: int | None = None) -> tuple[int, int, int]:
    """A process that runs the command: its number, a pipe with a byte for each event that it saw, and its stderr.

    `out`: an open file for its stdout; default: none.
    """
    (seen, seeing), (said, saying) = os.pipe(), os.pipe()
    process = os.fork()
    if process:
        os.close(seeing)
        os.close(saying)
        return process, seen, said
    code = 120
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream, to in ((0, null), (1, null if out is None else out), (2, saying)):
            os.dup2(to, stream)
        _listen(root, seeing, event)
        code = run_app(words)
    except Exception as e:  # what is looked for
        print(f"Traceback: {e!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listen(root: Path, seeing: int, event: Event) -> None:
    below, count = str(root), 0

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if name not in SEEN or not str(arguments[0]).startswith(below):
            return
        count += 1
        writes = name in {"os.rename", "os.mkdir", "os.link", "os.truncate"} or (
            name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        )
        mode = "w" if writes else "d" if name in {"os.remove", "os.rmdir"} else "r"
        os.write(seeing, mode.encode())
        event(count, name, mode)

    sys.addaudithook(hook)


def wait(process: int, seen: int, said: int, seconds: float | None = None, by: int = signal.SIGKILL) -> Ended:
    """Wait for a process; after `seconds` it gets the signal `by`, and 60 s later SIGKILL."""
    handle, events, text = os.pidfd_open(process), b"", b""
    limit = None if seconds is None else time.monotonic() + seconds
    open_ones = {seen, said}
    while True:
        left = None if limit is None else max(0.0, limit - time.monotonic())
        ready, _, _ = select.select([handle, *open_ones], [], [], left)
        for pipe in open_ones & {*ready}:
            more = os.read(pipe, 65536)
            events, text = (events + more, text) if pipe == seen else (events, text + more)
            if not more:
                open_ones.discard(pipe)
        if ready == [handle]:
            break
        if not ready:
            os.kill(process, by)
            limit, by = time.monotonic() + 60, signal.SIGKILL
    for one in (handle, seen, said):
        os.close(one)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    changes = len(events) - events.count(b"r")
    return Ended(None if code < 0 else code, len(events), changes, text.decode(errors="replace"))


def nothing(count: int, name: str, mode: str) -> None:
    """What happens at the events of a process that is left alone."""


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


def anew(root: Path) -> None:
    """An empty folder."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()


@dataclass(frozen=True)
class Alone:
    """A command that was left alone: how it ended, what it wrote, and how many seconds it took."""

    ended: Ended
    once: Mapping[str, str]
    seconds: float

    @classmethod
    def run(cls, words: list[str], root: Path, tally: Tally) -> Alone | None:
        """In an empty folder; None, and told, where it fails or writes nothing."""
        anew(root)
        begin = time.monotonic()
        ended = wait(*forked(words, root, nothing))
        found = cls(ended, contents(root), time.monotonic() - begin)
        if ended.code in {0, 1} and found.once:
            return found
        tally.found[f"exit code {ended.code} when left alone: {ended.said[-300:]}"] += 1
        return None

    def count(self, ended: Ended, root: Path, tally: Tally) -> None:
        """Another end, which must be like this one, with all that is in the folder."""
        tally.ends += 1
        if ended.code != self.ended.code:
            tally.found[f"exit code {ended.code}, not {self.ended.code}: {ended.said[-300:]}"] += 1
        tally.found.update(differences(self.once, contents(root)))


def main(arguments: list[str], attack: Callable[[str, int, Path, Path, random.Random], Tally]) -> int:
    """Attack the commands that are named, or all; the exit code says whether anything was found."""
    count, chosen, seed = int(arguments[0]), arguments[1:], int(os.environ.get("SEED", "0"))
    torch.set_num_threads(1)
    FolderMemory.due = lambda self, step: time.monotonic() - self.shared.last >= 0.05
    found = hindered = 0
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name).resolve()
        given, root, temporary = (whole / part for part in ("given", "Größe 日本", "tmp"))
        for folder in (given, root, temporary):
            folder.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        attacked = {k: words for k, words in commands(given, root).items() if not chosen or k in chosen}
        if any(word.startswith(str(given)) for words in attacked.values() for word in words):
            _in_another_process(lambda: inputs(given))
        for command in attacked:
            begin, before = time.monotonic(), contents(given)
            tally = attack(command, count, given, root, random.Random(f"{seed} {command}"))
            if contents(given) != before:
                tally.found["what was given has changed"] += 1
            found, hindered = found + sum(tally.found.values()), hindered + tally.hindered
            left = sum(1 for f in temporary.iterdir() if not f.name.startswith("torchinductor_"))  # torch's own
            print(f"{command}: {tally}; {left} temporary files; {time.monotonic() - begin:.0f} s", flush=True)
    print(f"isthmus {im.__version__}: {hindered} times hindered, {found} faults")
    return 1 if found else 0


def _in_another_process(work: Callable[[], object]) -> None:
    """This one must not train, so that it can be forked."""
    process = os.fork()
    if not process:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
