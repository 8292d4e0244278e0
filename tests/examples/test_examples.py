"""Every example runs, draws a picture, and its answer is what its page says; the examples assert the rest."""

import math
import runpy
import time
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

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


@pytest.mark.parametrize("script", sorted(ANSWERS))
def test_an_example_runs_and_shows_what_it_says(script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    why = runpy.run_path(str(EXAMPLES / "needs.py"))["missing"](script)
    if why:
        pytest.skip(why)
    before = time.process_time()
    answer = float(runpy.run_path(str(EXAMPLES / script), run_name="__main__")["answer"])
    assert time.process_time() - before < SECONDS
    low, high = ANSWERS[script]
    assert low <= answer <= high
    # what the page prints is the number that is tested
    printed = [one for one in capsys.readouterr().out.splitlines() if one.startswith("answer: ")]
    assert len(printed) == 1
    assert math.isclose(float(printed[0].split()[1].rstrip(",;")), answer, rel_tol=1e-2, abs_tol=1e-300)
    figures = pyplot.get_fignums()
    assert figures
    for number in figures:
        picture = tmp_path / f"{number}.png"
        pyplot.figure(number).savefig(picture)
        assert picture.stat().st_size > 5_000
    assert set(tmp_path.iterdir()) == {tmp_path / f"{number}.png" for number in figures}  # it writes nothing itself


@pytest.fixture(autouse=True)
def _no_windows():
    """Figures are drawn without a screen, and there are none when a test begins."""
    pyplot.close("all")
    with matplotlib.rc_context({"backend": "Agg"}):
        yield
    pyplot.close("all")


def test_every_example_has_an_answer():
    assert {one.name for one in EXAMPLES.glob("plot_*.py")} == set(ANSWERS)
    assert len(ANSWERS) >= 12
