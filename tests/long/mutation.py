"""Changes of the source, one at a time, in a copy of the package: do the tests of its folder notice each?

    python -m tests.long.mutation 40 certify                           # 40 mutants, drawn with seed 0, or SEED=n
    python -m tests.long.mutation 0 certify --only bounds.py:120       # every mutant of one line
    python -m tests.long.mutation 0 certify --only bounds.py:120 --tests tests/certify/test_parts.py

The tests of the table are run once without a change, which tells how long each takes and which lines it reaches. Then
a process is forked for each mutant, in which the functions of the file are given their changed code; it runs the tests
that reach the line, quickest first, until one fails. A mutant that no test reaches is told at once. What is changed
outside of functions is tested by a new Python, which takes longer, and so is one that survives: what the package and
the tests remember from the first run can hide a change. With `--afresh` every mutant is.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest
import torch

from tests.long.changed import Finder, Mutant

HERE = Path(__file__).parents[2]
TESTS = {
    "certify": ["tests/certify", "tests/analysis/test_check.py"],
    "connectors/moves": ["tests/connectors/test_walks.py", "tests/connectors/test_constructions.py"],
    "structure": ["tests/structure", "tests/connectors/test_constructions.py", "tests/connectors/test_narrow.py"],
    "theory": [
        *("tests/test_theory.py", "tests/test_theory_ends.py"),
        *("tests/test_theory_constructions.py", "tests/test_theory_nguyen.py"),
    ],
}  # fmt: skip
"""The tests that belong to a folder."""
BUDGET = float(os.environ.get("BUDGET", "60"))
"""Seconds of the processor that the tests of one mutant take at most where nothing is changed."""
UNMATCHED = 70
"""The exit code of a process in which no function could be given its changed code."""


def codes(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The code of each function of a file, and what it is after the change."""
    yield old, new
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new)]
    for pair in zip(*inner, strict=True):
        yield from codes(*pair)


def swap(file: Path, old: bytes, new: bytes) -> None:
    """Give every function of a file that is there its changed code; ValueError if the two do not match."""
    becomes = dict(codes(compile(old, str(file), "exec"), compile(new, str(file), "exec")))
    for f in gc.get_objects():
        if type(f) is FunctionType and f.__code__.co_filename == str(file):
            f.__code__ = becomes[f.__code__]


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Judge:
    """The plugin that runs the tests once and then again for each mutant."""

    copy: Path
    root: Path
    mutants: list[Mutant]
    afresh: bool
    cover: coverage.Coverage
    items: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reach: Mapping[str, Mapping[int, list[str]]] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)
    forked: bool = False
    failed: bool = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest: the first test that fails ends the process of a mutant."""
        if report.failed and self.forked:
            print(report.nodeid, str(report.longrepr).strip().splitlines()[-1:], flush=True)
            os._exit(1)
        if report.failed:
            print(report.longrepr)
            self.failed = True

    def pytest_runtestloop(self, session: Any) -> bool:
        """Called by pytest, in the place of its own loop."""
        self.items = {item.nodeid: item for item in session.items}
        self._run(session.items)
        self.cover.stop()
        if self.failed:
            raise SystemExit("the tests fail without any change")
        data = self.cover.get_data()
        self.reach = {f: data.contexts_by_lineno(f) for f in data.measured_files()}
        for cached in (x for x in gc.get_objects() if isinstance(x, functools._lru_cache_wrapper)):
            if str(getattr(cached, "__module__", "")).startswith(("isthmus", "tests")):
                cached.cache_clear()
        print(f"\n{len(self.items)} tests in {sum(self.seconds.values()):.0f} s without a change", flush=True)
        for mutant in self.mutants:
            self._judge(mutant)
        return True

    def _run(self, items: list[Any]) -> None:
        for item, after in zip(items, [*items[1:], None], strict=True):
            if not self.forked:
                self.cover.switch_context(item.nodeid)
            begin = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            self.seconds[item.nodeid] = time.process_time() - begin

    def _judge(self, m: Mutant) -> None:
        file, begin = self.root / m.file, time.monotonic()
        good = file.read_bytes()
        file.write_bytes(m.of(good))  # for the processes that tests start
        word, said = self._result(m, file, good)
        file.write_bytes(good)
        self.tally[word] += 1
        print(f"{word} in {time.monotonic() - begin:.1f} s: {m.file}:{m.line}:{m.text} | {said[:200]}", flush=True)
        if word == "survived":
            before, after = (x.decode().splitlines() for x in (good, m.of(good)))
            print("\n".join(difflib.unified_diff(before, after, m.file, "mutant", "", "", 1, "")), flush=True)

    def _result(self, m: Mutant, file: Path, good: bytes) -> tuple[str, str]:
        lines = self.reach.get(str(file), {})
        names = {name for line in m.lines for name in lines.get(line, [])}
        if not names:
            return "survived", "no test of the table reaches it"
        chosen = self._order(names)
        limit = 20 + 3 * sum(self.seconds[name] for name in chosen)
        if m.inside and names != {""} and not self.afresh:
            try:
                word, said = self._forked(m, file, good, chosen, int(limit))
                if word != "survived":
                    return word, said
            except ValueError:
                pass
        return self._anew(chosen, 60 + limit)

    def _order(self, names: set[str]) -> list[str]:
        """The tests that reach a line, quickest first, then the others of their files, as far as `BUDGET` goes."""
        time_of = self.seconds.__getitem__
        first = sorted((names & self.seconds.keys()) or self.seconds, key=time_of)
        files = {name.split("::")[0] for name in first}
        others = (self.seconds.keys() - first) if names - {""} else ()
        rest = sorted((n for n in others if n.split("::")[0] in files), key=time_of)
        chosen, spent = list[str](), 0.0
        for name in first + rest:
            spent += time_of(name)
            if not chosen or spent <= BUDGET:
                chosen.append(name)
        return chosen

    def _forked(self, m: Mutant, file: Path, good: bytes, chosen: list[str], limit: int) -> tuple[str, str]:
        said = self.copy / "said"
        pid = os.fork()
        if not pid:
            code = UNMATCHED
            try:
                os.setpgid(0, 0)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
                out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(out, 2)
                swap(file, good, m.of(good))
                self.forked, code = True, 1
                self._run([self.items[name] for name in chosen])
                code = 0
            finally:
                os._exit(code)
        until = time.monotonic() + 20 * limit
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        if code == UNMATCHED:
            raise ValueError("the functions do not match")
        words = {0: "survived", -signal.SIGTERM: "stopped by hand"}
        lines = said.read_text(errors="replace").splitlines()
        return words.get(code, "killed"), f"{len(chosen)} tests" if not code else f"{lines[-1:]} {code}"

    def _anew(self, chosen: list[str], limit: float) -> tuple[str, str]:
        """The tests in a new Python."""
        command = [
            sys.executable,
            "-B",
            "-m",
            "pytest",
            "-o",
            "addopts=--import-mode=importlib",
            "-qx",
            "--tb=line",
            "--doctest-modules",
        ]
        command += ["-p", "no:cacheprovider", f"--basetemp={self.copy / 'anew'}", *chosen]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5 * limit, check=False)
        except subprocess.TimeoutExpired:
            return "killed", "time"
        end = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return ("killed", str(end[:1])) if done.returncode else ("survived", f"{len(chosen)} tests, in a new Python")


def main(arguments: list[str]) -> int:
    """The exit code says whether a mutant survived."""
    parser = argparse.ArgumentParser(prog="tests.long.mutation")
    parser.add_argument("count", type=int)
    parser.add_argument("folder", choices=list(TESTS))
    parser.add_argument("--only", action="append", default=[], help="FILE:LINE, or FILE:LINE:TEXT of the change")
    parser.add_argument("--tests", nargs="+", help="instead of those of the table")
    parser.add_argument("--afresh", action="store_true", help="each mutant in a new Python")
    given = parser.parse_args(arguments)
    os.chdir(HERE)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name).resolve()
        shutil.copytree(HERE / "src" / "isthmus", copy / "isthmus", ignore=shutil.ignore_patterns("__pycache__"))
        root = copy / "isthmus" / given.folder
        found = [m for f in sorted(root.rglob("*.py")) for m in Finder(str(f.relative_to(root)), f.read_bytes()).found]
        asked = [m for m in found if {f"{m.file}:{m.line}", f"{m.file}:{m.line}:{m.text}"} & set(given.only)]
        drawn = random.Random(os.environ.get("SEED", "0")).sample(found, min(given.count, len(found)))
        print(f"{given.folder}: {len(found)} mutants", flush=True)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"], sys.dont_write_bytecode = f"{copy}:.", True
        cover = coverage.Coverage(data_file=None, include=[f"{root}/*"])
        judge = Judge(copy, root, asked or sorted(drawn, key=lambda m: (m.file, m.piece)), given.afresh, cover)
        cover.start()
        options = ["-o", "addopts=--import-mode=importlib", "-q", "--capture=no", "-p", "no:cacheprovider"]
        tests = given.tests or [*TESTS[given.folder], "--doctest-modules", str(root)]
        pytest.main([*options, f"--basetemp={copy / 'tmp'}", *tests], plugins=[judge])
        print(f"{given.folder}: {dict(judge.tally)}")
    return 1 if judge.tally["survived"] or not judge.tally else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
