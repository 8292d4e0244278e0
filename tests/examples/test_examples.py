"""Every example runs, draws a picture, and its answer is what its page says; the examples assert the rest."""

import json
import math
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 60
"""What one example may take, in processor time: the clock of a machine that is shared says little."""

ANSWERS = {
    "plot_01_two_perceptrons.py": (0.0, 0.01),
    "plot_02_batchnorm.py": (0.0, 0.5),
    "plot_03_transformers.py": (0.0, 0.5),
    "plot_04_language_model.py": (1.0, 1.05),
    "plot_05_adapters.py": (0.0, 1.0),
    "plot_06_soups.py": (10.0, 1000.0),
    "plot_07_sublevel.py": (0.0, 1e-9),
    "plot_08_whole_path.py": (0.0, 0.011),
    "plot_09_plane.py": (0.0, 1e-5),
    "plot_10_graph.py": (0.0, 0.2),
    "plot_11_potentials.py": (0.0, 0.1),
    "plot_12_plasma.py": (0.0, 0.05),
}
"""The range in which the answer of each lies."""

RUNNER = """
import json, runpy, sys
from matplotlib import pyplot
sys.path.insert(0, sys.argv[1])
answer = runpy.run_path(sys.argv[2], run_name="__main__")["answer"]
figures = pyplot.get_fignums()
for number in figures:
    pyplot.figure(number).savefig(f"{number}.png")
print(json.dumps({"answer": float(answer), "figures": len(figures)}))
"""


@pytest.mark.parametrize("script", sorted(ANSWERS))
def test_an_example_runs_and_shows_what_it_says(script, tmp_path):
    why = runpy.run_path(str(EXAMPLES / "needs.py"))["missing"](script)
    if why:
        pytest.skip(why)
    command = [sys.executable, "-c", RUNNER, str(EXAMPLES), str(EXAMPLES / script)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    before = _of_children()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=10 * SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert _of_children() - before < SECONDS
    said = done.stdout.splitlines()
    found = json.loads(said[-1])
    low, high = ANSWERS[script]
    assert low <= found["answer"] <= high
    # what the page prints is the number that is tested
    printed = [one for one in said if one.startswith("answer: ")]
    assert len(printed) == 1
    assert math.isclose(float(printed[0].split()[1].rstrip(",;")), found["answer"], rel_tol=1e-2, abs_tol=1e-300)
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == found["figures"] >= 1
    assert all(one.stat().st_size > 5_000 for one in pictures)


def _of_children() -> float:
    """Processor seconds of the processes that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def test_every_example_has_an_answer():
    assert {one.name for one in EXAMPLES.glob("plot_*.py")} == set(ANSWERS)
    assert len(ANSWERS) >= 12
