"""The long attacks on commands, at a small count: killed, refused the disk, several at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes as Linux can")
@pytest.mark.parametrize(("attack", "count", "commands"), [
    ("kills", 2, ["train adam"]), ("faults", 2, ["train sgd"]),
])  # fmt: skip
def test_it_ends_with_the_bytes_of_a_run_that_was_left_alone(attack, count, commands):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEED": "2"}
    words = [sys.executable, "-m", f"tests.long.{attack}", str(count), *commands]
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" 0 faults;") == len(commands)
