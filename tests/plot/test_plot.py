"""Figures: what is drawn is what was stored, and files are the same every time."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch

from isthmus.errors import FileError, InputError, MissingExtraError
from isthmus.params import cast, dot
from isthmus.paths import Curve, Path
from isthmus.plot import loss_along_paths, plane, project, read_run, read_runs, save_figure
from isthmus.plot.curves import log_floor, wants_log
from isthmus.storage import read_sealed, write_sealed
from tests.report.fabricate import make_run, make_runs, point


def edit(file: File, change: Any) -> None:
    document = read_sealed(file)
    change(document)
    write_sealed(file, document)


@pytest.fixture
def folder(tmp_path: File) -> File:
    return make_runs(tmp_path, 4)


def lines(figure: Any) -> list[Any]:
    return [line for line in figure.axes[0].get_lines() if np.size(line.get_xdata()) > 1]


def test_curves_hold_the_stored_numbers(folder: File):
    runs = read_runs(folder)
    figure = loss_along_paths(runs)
    assert [run.label for run in runs] == ["Linear", "Dropout", "Subnetwork", "Bezier"]
    drawn = lines(figure)
    assert len(drawn) == 8
    for i, run in enumerate(runs):
        assert run.profile is not None
        assert run.profile.test is not None
        assert np.array_equal(drawn[2 * i].get_ydata(), run.profile.train["loss"])
        assert np.array_equal(drawn[2 * i + 1].get_ydata(), run.profile.test["loss"])
        assert drawn[2 * i].get_linestyle() == ("--" if run.is_baseline else "-")
        assert drawn[2 * i + 1].get_linestyle() == "--"
        assert drawn[2 * i].get_color() == drawn[2 * i + 1].get_color()
    marks = [line for line in figure.axes[0].get_lines() if np.size(line.get_xdata()) == 1]
    stored = [run.number("max_loss") for run in runs]
    assert [float(np.asarray(m.get_ydata())[0]) for m in marks] == stored
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words[:4] == [f"{r.label}: max {v:.4g}" for r, v in zip(runs, stored, strict=True)]
    assert words[4:] == ["largest training value", "training set", "test set"]
    ticks = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("A", "B")


def test_scale_is_chosen_and_can_be_set(folder: File):
    runs = read_runs(folder)
    assert loss_along_paths(runs).axes[0].get_yscale() == "log"
    assert loss_along_paths(runs, quantity="error").axes[0].get_yscale() == "linear"
    assert loss_along_paths(runs, log=False).axes[0].get_yscale() == "linear"
    assert wants_log(np.array([0.01, 0.4]), "loss") is False
    assert wants_log(np.array([-1.0, 0.001, 5.0]), "loss") is False
    assert wants_log(np.zeros(3), "loss") is False
    assert log_floor(np.array([0.02, 3.0])) == 0.01


def test_zeros_and_gaps_are_drawn(folder: File):
    def change(d: dict) -> None:
        d["loss"][0] = d["loss"][-1] = 0
        d["loss"][5] = None

    edit(folder / "01-dropout" / "profile.json", change)
    figure = loss_along_paths(read_runs(folder))
    axes = figure.axes[0]
    assert axes.get_yscale() == "symlog"
    assert axes.get_ylim()[0] == 0
    y = lines(figure)[2].get_ydata()
    assert y[0] == 0
    assert np.isnan(y[5])
    assert save_figure(figure, folder / "f.png").stat().st_size > 10_000


def test_all_zero_one_run_and_nothing_finite(tmp_path: File):
    folder = make_run(tmp_path / "r", "Linear", test=False)
    for value in (0, None):
        edit(folder / "profile.json", lambda d, v=value: d.update(loss=[v] * len(d["t"]), error=[v] * len(d["t"])))
        figure = loss_along_paths(read_runs(folder))
        assert save_figure(figure, tmp_path / "f.svg").is_file()
        assert figure.axes[0].get_yscale() == "linear"
    assert "nan" in figure.legends[0].get_texts()[0].get_text()


def test_refusals(folder: File):
    runs = read_runs(folder)
    with pytest.raises(InputError, match="'loss' or 'error'"):
        loss_along_paths(runs, quantity="accuracy")
    edit(folder / "01-dropout" / "profile.json", lambda d: d["loss"].__setitem__(0, -1.0))
    assert loss_along_paths(read_runs(folder)).axes[0].get_yscale() == "linear"
    with pytest.raises(InputError, match="negative"):
        loss_along_paths(read_runs(folder), log=True)
    for name in ("profile.json", "path.safetensors"):
        for file in folder.glob(f"*/{name}"):
            file.unlink()
    with pytest.raises(InputError, match=r"profile\.json, got 4 without"):
        loss_along_paths(read_runs(folder))
    with pytest.raises(InputError, match=r"path\.safetensors, got 4 without"):
        plane(read_runs(folder))
    with pytest.raises(InputError, match="at least one path"):
        project([])


def dense(path: Path, count: int) -> torch.Tensor:
    """The slow twin's points: everything flattened, one row per knot or sample."""
    rows = []
    for segment in path.segments:
        n = 1 if isinstance(segment, Curve) and segment.is_straight else count
        rows += [segment.at(i / n) for i in range(n)]
    rows.append(path.end)
    return torch.stack([torch.cat([v.double().flatten() for v in r.values()]) for r in rows])


def test_projection_is_the_svd_of_all_points():
    p = {s: cast(point(s), torch.float64) for s in (1, 2, 3, 4, 5, 7, 8, 9)}
    straight = Path.through([p[s] for s in (1, 3, 4, 5, 2)])
    bent = Path((Curve((p[1], p[7], p[8], p[2])), Curve((p[2], p[9]))))
    got = project([straight, bent])
    x = torch.cat([dense(straight, 24), dense(bent, 24)])
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    want = (u[:, :2] * s[:2]).numpy()
    have = np.concatenate(got.points)
    for axis in range(2):
        sign = np.sign(have[:, axis] @ want[:, axis])
        assert np.abs(have[:, axis] - sign * want[:, axis]).max() < 1e-9 * float(s[0])
    assert np.allclose(got.variance, (s[:2] ** 2 / (s**2).sum()).numpy(), atol=1e-12)
    assert [int(k.sum()) for k in got.knots] == [5, 3]
    assert got.points[0][-1, 0] > got.points[0][0, 0]


def test_projection_keeps_what_lies_in_the_plane():
    e = [{"w": torch.tensor(v, dtype=torch.float64)} for v in ([0.0, 0, 5], [3.0, 0, 5], [3.0, 4, 5])]
    got = project([Path.through(e)])
    lengths = [float(np.linalg.norm(q - p)) for p, q in pairwise(got.points[0])]
    assert np.allclose(lengths, [3, 4], atol=1e-12)
    assert abs(sum(got.variance) - 1) < 1e-12
    still = project([Path.through([e[0], {"w": e[0]["w"].clone()}])])
    assert np.array_equal(still.points[0], np.zeros((2, 2)))


def test_projection_has_the_digits_of_small_differences():
    big = {"w": torch.full((50,), 1e6, dtype=torch.float64)}
    step = {"w": torch.arange(50, dtype=torch.float64) * 1e-6}
    path = Path.through([big, {"w": big["w"] + step["w"]}])
    exact = dot({"w": path.end["w"] - big["w"]}, {"w": path.end["w"] - big["w"]}) ** 0.5
    points = project([path]).points[0]
    assert abs(np.linalg.norm(points[1] - points[0]) / exact - 1) < 1e-9


def test_plane_leaves_out_other_networks_and_names_other_ends(tmp_path: File):
    from isthmus.connectors.base import Connection, Outcome
    from isthmus.storage.paths import save

    make_runs(tmp_path, 3)
    other = Path.through([point(1, 5), point(2, 5)])
    save(Connection(other, other.end, Outcome.CONSTRUCTED, {}), tmp_path / "01-dropout" / "path.safetensors")
    moved = Path.through([point(1), point(3), point(4)])
    save(Connection(moved, moved.end, Outcome.CONSTRUCTED, {}), tmp_path / "02-subnetwork" / "path.safetensors")
    figure = plane(read_runs(tmp_path))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Linear", "Subnetwork"]
    assert {t.get_text() for t in figure.axes[0].texts} == {"A", "B", "B'"}
    assert "% of the variance" in figure.axes[0].get_xlabel()
    with pytest.raises(InputError, match="same parameters"):
        project([other, moved])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_are_equal_byte_for_byte(folder: File, kind: str):
    runs = read_runs(folder)
    for name, draw in (("a", loss_along_paths), ("b", plane)):
        first = save_figure(draw(runs), folder / f"{name}1.{kind}").read_bytes()
        assert first == save_figure(draw(read_runs(folder)), folder / f"{name}2.{kind}").read_bytes()
    assert not list(folder.glob(".*"))
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        save_figure(plane(runs), folder / "f.jpg")
    with pytest.raises(FileError, match="no folder"):
        save_figure(plane(runs), folder / "none" / f"f.{kind}")


def test_names_are_taken_literally(tmp_path: File):
    make_run(tmp_path / "a", "$\\frac{$ <b> _", test=False)
    make_run(tmp_path / "b", "_hidden " + "x" * 80, test=False)
    figure = loss_along_paths(read_runs(tmp_path))
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words[0].startswith("$\\frac{$ <b> _: max")
    assert words[1].startswith(" _hidden xxx")
    assert len(words[1]) < 60
    assert save_figure(figure, tmp_path / "f.svg").stat().st_size > 1000


def test_no_pyplot_and_no_lasting_settings(folder: File):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_figure(plane(read_runs(folder)), folder / "f.png")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib(folder: File, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"isthmus\[plot\]"):
        loss_along_paths(read_runs(folder))


def test_labels_of_equal_methods(tmp_path: File):
    for name in ("x", "y"):
        make_run(tmp_path / name, "Bezier")
    make_run(tmp_path, "Dropout")
    assert sorted(r.label for r in read_runs(tmp_path)) == ["Bezier (x)", "Bezier (y)", "Dropout"]
    assert read_run(tmp_path / "x").label == "Bezier"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("result", lambda d: d.update(format=2), "format 2"),
        ("result", lambda d: d.pop("method"), "method: expected a dict"),
        ("result", lambda d: d["outcome"].update(ok=1), "ok: expected a bool, got int"),
        ("result", lambda d: d.update(excess="0.1"), "excess: expected a number, got str"),
        ("result", lambda d: d.update(excess=True), "excess: expected a number, got bool"),
        ("result", lambda d: d["seconds"].update(connect=[]), "connect: expected a number"),
        ("profile", lambda d: d["loss"].pop(), "expected 401 numbers, as in t, got 400"),
        ("profile", lambda d: d.update(t=[1, 0]), "increasing"),
        ("profile", lambda d: d.update(t=[0]), "at least two"),
        ("profile", lambda d: d["error"].__setitem__(0, "x"), "error: expected a list of numbers"),
        ("profile", lambda d: d["segment"].__setitem__(0, None), "segment: expected whole numbers"),
        ("profile", lambda d: d.update(test=[]), "test: expected a dict"),
        ("certificate", lambda d: d.update(segments={}), "segments: expected a list"),
        ("certificate", lambda d: d["segments"].append(3), "expected objects, got int"),
        ("certificate", lambda d: d["segments"][0].pop("claim"), "claim: expected a str"),
        ("certificate", lambda d: d.pop("proved"), "proved: expected a bool"),
    ],
)
def test_damaged_documents(tmp_path: File, name: str, change: Any, words: str):
    folder = make_run(tmp_path / "r", "Dropout")
    edit(folder / f"{name}.json", change)
    with pytest.raises(FileError) as caught:
        read_runs(tmp_path)
    assert words in str(caught.value)
    assert f"{name}.json" in str(caught.value)
    (folder / f"{name}.json").write_text('{"format": 1')
    with pytest.raises(FileError, match="not valid JSON"):
        read_runs(tmp_path)
    (folder / f"{name}.json").write_text("[1]")
    with pytest.raises(FileError, match="expected a JSON object"):
        read_runs(tmp_path)
