"""The page: complete, self-contained, equal every time, and deaf to what names try to make it do."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest

from isthmus.cli import run_app
from isthmus.errors import FileError, MissingExtraError
from isthmus.plot.runs import read_runs
from isthmus.report import write_report
from isthmus.report.figures import MAX_POINTS, thin
from isthmus.report.render import bound_num, num
from isthmus.storage import read_sealed
from tests.plot.test_plot import edit
from tests.report.fabricate import make_run, make_runs

VOID = {"meta", "input", "br", "img", "link", "hr"}
SVG_ONLY = {"path", "use", "rect", "g", "svg", "defs", "style", "clippath", "circle"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; scripts and still pictures kept apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[1])


def report(folder: File) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_page_says_what_was_stored(tmp_path: File, count: int):
    page = report(make_runs(tmp_path, count))
    assert not page.open
    for run in read_runs(tmp_path):
        for value in ("normalized_length", "max_loss", "excess", "test_error_max"):
            assert num(run.number(value)) in page.text
        assert run.label in page.text
        assert "population: [0.0125, 0.0468]" in page.text
        assert "[1.25, 2.5]" in page.text  # of the largest test loss, in the table of quantities
        assert "largest loss in [1, 2] (asymptotic)" in page.text
        assert run.result["reference"] in page.text
        assert run.result["command"] in page.text
        assert run.certificate is not None
        if run.certificate["proved"]:
            assert f"proved to be at most {bound_num(run.certificate['bound'])} everywhere" in page.text
    assert "not proved: 1 of 1 segments is only measured" in page.text
    assert "max loss on the path minus the larger end's loss" in page.text
    assert sum(t == "svg" for t, _ in page.tags) == 2
    assert page.data["curves"]["runs"][0]["name"] == "Linear"
    assert len(page.data["plane"]["runs"]) == count
    assert [a["class"] for t, a in page.tags if t == "td" and "class" in a] == ["best"]


def test_the_best_excess_is_of_a_method_that_succeeded(tmp_path: File):
    make_runs(tmp_path, 2)
    make_run(tmp_path / "z", "Subnetwork", excess=0.0, outcome={"ok": False, "name": "NOT_FINITE", "message": "m e"})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"<td class=\"best\">([^<]*)", text) == ["1.45"]
    page = Page(text)
    assert "The smallest excess of the methods that succeeded is highlighted." in page.text
    assert "Methods that did not succeed" in page.text
    assert "Subnetwork: m e" in page.text


def test_the_figures_hold_the_stored_numbers(tmp_path: File):
    page = report(make_runs(tmp_path, 3))
    for run, drawn in zip(read_runs(tmp_path), page.data["curves"]["runs"], strict=True):
        assert run.profile is not None
        assert run.profile.test is not None
        for part, curves in run.profile.sets():
            for quantity in ("loss", "error"):
                assert np.allclose(drawn[part][quantity], curves[quantity], rtol=1e-5)
        assert drawn["max"]["loss"][1] == pytest.approx(run.number("max_loss"), rel=1e-5)
    assert page.data["curves"]["log"] is True
    assert [end[0] for end in page.data["plane"]["ends"]] == ["A", "B"]


def test_nothing_is_fetched(tmp_path: File):
    page = report(make_runs(tmp_path, 2))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert not {"src", "action", "srcset"} & set(attributes)
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
        assert not [a for a in attributes if a.startswith("on")]
    # plotly's default buttons hold one that sends the figure to its makers' server
    assert 'plotlyServerURL: ""' in page.scripts[2]
    assert "modeBarButtons: [" in page.scripts[2]
    assert "Cloud" not in page.scripts[2]


def test_equal_results_give_equal_bytes_and_the_page_is_small(tmp_path: File):
    one, two = (write_report(make_runs(tmp_path / d, 12), tmp_path / f"{d}.html") for d in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 6e6
    assert str(tmp_path) not in one.read_text(encoding="utf-8")


HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script><!-- $x$ \u2028'\""


def test_hostile_strings_stay_text(tmp_path: File):
    make_run(tmp_path / "clean", "Dropout")
    clean = report(tmp_path)
    keys = ("reference", "model", "data", "dtype", "command", "version", "torch")
    make_run(
        tmp_path / "clean",
        HOSTILE,
        labels=[HOSTILE] * 3,
        outcome={"name": HOSTILE, "ok": False, "message": HOSTILE},
        **dict.fromkeys(keys, HOSTILE),
    )

    def poison(d: dict) -> None:
        d["dtype"] = HOSTILE
        for segment in d["segments"]:
            segment.update(claim=HOSTILE, why=HOSTILE, label=HOSTILE)

    edit(tmp_path / "clean" / "certificate.json", poison)
    page = report(tmp_path)
    assert not page.open
    assert not [t for t, _ in page.tags if t in ("img", "b")]
    assert len(page.scripts) == len(clean.scripts) == 3
    assert page.scripts[0] == clean.scripts[0]
    assert page.scripts[2] == clean.scripts[2]
    assert "<" not in page.scripts[1]
    # plotly reads tags and $formulas$ in its labels: none may reach it
    for run in page.data["curves"]["runs"] + page.data["plane"]["runs"]:
        for text in (run["name"], *run.get("text", [])):
            assert not set("<>$") & set(text)
    assert "onerror=alert(1)" in page.text


def test_missing_files_get_a_sentence(tmp_path: File):
    folder = make_run(tmp_path / "r", "Dropout", test=False, seed=None, command=None)
    (folder / "certificate.json").unlink()
    page = report(tmp_path)
    assert "nothing was proved (there is no certificate)" in page.text
    assert "Lemma 1 (a)" in page.text
    assert "No command was recorded" in page.text
    assert [a for t, a in page.tags if t == "input" and a.get("id") == "test" and "disabled" in a]
    make_run(tmp_path / "s", "Bezier")
    (tmp_path / "s" / "profile.json").unlink()
    (tmp_path / "s" / "path.safetensors").unlink()
    page = report(tmp_path)
    assert "Not drawn, as there is no profile.json: Bezier." in page.text
    assert "Not drawn, as there is no path.safetensors of a network like the first: Bezier." in page.text
    (folder / "profile.json").unlink()
    (folder / "path.safetensors").unlink()
    page = report(tmp_path)
    assert "the loss along the paths was not measured" in page.text
    assert "The loss was not measured" not in page.text  # result.json has the largest one
    assert "there is no path to draw" in page.text
    assert page.scripts == []


def test_runs_that_cannot_be_compared(tmp_path: File):
    make_run(tmp_path / "a", "Linear")
    assert "different networks or data sets" not in report(tmp_path).text
    make_run(tmp_path / "b", "Dropout", model="vgg11:16", data="cifar10")
    page = report(tmp_path)
    assert "different networks or data sets" in page.text
    assert "vgg11:16 on cifar10" in page.text


def test_long_curves_keep_their_extremes(tmp_path: File):
    folder = make_run(tmp_path / "r", "Dropout")
    n = 5000
    noise = np.random.default_rng(0).random((4, n))
    noise[0, 1234], noise[3, 4321] = 9, 7

    def change(d: dict) -> None:
        d.update(t=np.linspace(0, 1, n).tolist(), segment=[0] * n, loss=noise[0].tolist(), error=noise[1].tolist())
        d["test"].update(loss=noise[2].tolist(), error=noise[3].tolist())

    edit(folder / "profile.json", change)
    profile = read_runs(tmp_path)[0].profile
    assert profile is not None
    keep = thin(profile)
    assert {0, n - 1, 1234, 4321} <= set(keep.tolist())
    assert len(keep) <= MAX_POINTS + 10
    assert "no maximum is left out" in report(tmp_path).text


def test_where_it_is_written(tmp_path: File):
    make_run(tmp_path / "r")
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert write_report(tmp_path / "r", tmp_path / "other.html") == tmp_path / "other.html"
    with pytest.raises(FileError, match="is a folder"):
        write_report(tmp_path, tmp_path / "r")


def test_refusals(tmp_path: File, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileError, match=r"isthmus connect .* --out"):
        write_report(tmp_path)
    with pytest.raises(FileError, match="no such folder"):
        write_report(tmp_path / "none")
    make_run(tmp_path / "r")
    (tmp_path / "r" / "path.safetensors").write_bytes(b"broken")
    with pytest.raises(FileError, match=r"path\.safetensors"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match="plotly"):
        write_report(tmp_path)


def test_printed_bounds_are_bounds():
    for value in np.random.default_rng(0).lognormal(size=500, sigma=8):
        printed = float(bound_num(float(value)))
        assert value <= printed <= value * 1.0011


# -- the verdict, and proofs that are far from what was measured


def tags(page: Page, kind: str) -> int:
    return sum(t == "span" and a.get("class") == f"tag {kind}" for t, a in page.tags)


def test_a_barrier_is_no_and_a_low_path_is_yes(tmp_path: File):
    make_runs(tmp_path, 3)  # 1.45, 1.5166 and 0.0026, of ends at 0.00019
    page = report(tmp_path)
    assert "Linear: below 1.1 x the larger end (0.000209) on the whole path: no, rises to 1.45" in page.text
    assert " connected" not in page.text.replace("networks connected by a low-loss path?", "")
    assert tags(page, "good") == 2  # the proofs
    assert tags(page, "bad") == 3 + 2  # on the training and on the test data
    make_run(tmp_path / "r", "MeanField", index=10, verdict={"asked": "3x"})
    yes = "below 3 x the larger end (0.00057) on the whole path: yes, proved (at most 0.000384)"
    assert yes in report(tmp_path).text


def test_a_stored_level_that_is_none_is_refused(tmp_path: File):
    for asked in ("low", "0.5x", ["1.1x"], "<b>"):
        make_run(tmp_path / "r", verdict={"asked": asked})
        with pytest.raises(FileError, match=r"result\.json: verdict: level: expected"):
            write_report(tmp_path)


def test_a_useless_bound_is_no_success(tmp_path: File):
    folder = make_run(tmp_path / "r", "Dropout", index=2)

    def far(d: dict) -> None:
        d.update(bound=94.7, spent=True, budget=40.0, evaluations=40, expected=20_000)
        d["segments"][3].update(claim="bounded", bound=94.7)

    edit(folder / "certificate.json", far)
    page = report(tmp_path)
    assert tags(page, "good") == 0
    ratio = "37000 times the measured maximum (0.00258)"
    assert page.text.count(f"proved, but {ratio}: the budget of 40 profiles was spent; about 20000 are") == 1
    assert f"proved to be at most 94.71 everywhere on the path, but that is {ratio}: the budget of 40" in page.text
    assert f"94.71{ratio}" in page.text  # in the table
    assert "does not reach the level" not in page.text  # a sample is above it: that decides
    assert "halving them until the bound was close" not in page.text


def test_a_far_bound_of_an_older_version(tmp_path: File):
    folder = make_run(tmp_path / "r", "Dropout", index=2)

    def far(d: dict) -> None:
        d["segments"][3].update(claim="bounded", bound=94.7)
        for key in ("spent", "expected", "goal", "witness", "ends", "evaluations", "budget"):
            del d[key]

    edit(folder / "certificate.json", far)
    page = report(tmp_path)
    assert tags(page, "good") == 0
    assert "times the measured maximum (0.00258)" in page.text


@pytest.mark.parametrize(("bn", "words"), [("interpolate", "certificates speak about those"), ("recompute", "ones")])
def test_the_policy_of_batchnorm_is_named_and_other_statistics_are_another_path(tmp_path: File, bn: str, words: str):
    folder = make_run(tmp_path / "r", "Dropout", index=10, verdict={"asked": "3x"})
    assert "BatchNorm" not in report(tmp_path).text
    edit(folder / "profile.json", lambda d: d.update(bn=bn))
    text = report(tmp_path).text
    assert f"BatchNorm (bn={bn}): the running statistics" in text
    assert words in text
    proved = "With interpolated statistics: below 3 x the larger end (0.00057) on the whole path: yes, proved"
    assert (proved in text) is (bn == "recompute")
    assert ("with interpolated statistics" in text) is (bn == "recompute")
    assert ("(0.00057) on the whole path: yes, measured (21 points" in text) is (bn == "recompute")


def test_losses_that_are_not_numbers_are_no(tmp_path: File):
    folder = make_run(tmp_path / "r", "Linear", index=0)

    def broken(d: dict) -> None:
        d["loss"][4] = None

    edit(folder / "profile.json", broken)
    assert "on the whole path: no, rises to a loss that is not finite" in report(tmp_path).text


def test_a_low_path_whose_test_error_rises_is_no_plain_success(tmp_path: File):
    folder = make_run(tmp_path / "r", "MeanField", index=10, verdict={"asked": "3x"})
    assert tags(report(tmp_path), "good") == 1 + 1  # the answer, and the proof

    def worse(d: dict) -> None:
        middle = len(d["t"]) // 2
        d["test"]["error"] = [0.01] * len(d["t"])
        d["test"]["error"][0], d["test"]["error"][-1], d["test"]["error"][middle] = 0.011, 0.012, 0.111

    edit(folder / "profile.json", worse)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    said = "on the test data the error rises from 1.1 % and 1.2 % at the ends to 11.1 % (at t = 0.5)"
    assert f"{said}, not below 3 x the larger end" in page.text
    assert tags(page, "good") == 1  # the proof
    assert 'class="best warned"' in text
    assert "ends 0.011, 0.012" in page.text
    # where the level is a loss, errors are held against the usual multiple
    make_run(tmp_path / "r", "MeanField", index=10, verdict={"asked": "0.5"})
    edit(folder / "profile.json", worse)
    assert f"{said}, not below 1.1 x the larger end" in report(tmp_path).text
    # nor where no error is defined, as in regression
    edit(folder / "profile.json", lambda d: d["test"].update(error=[None] * len(d["t"])))
    assert "stays low, but" not in report(tmp_path).text
    # nothing is said of paths whose training loss is high already
    make_run(tmp_path / "r", "Linear", index=0)
    edit(folder / "profile.json", worse)
    assert "stays low, but" not in report(tmp_path).text


def test_a_file_of_results_that_has_lost_its_digest_counts_as_changed(tmp_path: File, capsys):
    run = make_run(tmp_path / "run")
    for name in ("result.json", "profile.json"):
        (run / name).write_text(json.dumps(read_sealed(run / name)))
    assert run_app(["report", str(run)]) == 0
    assert "result.json and profile.json. What this page says" in (run / "report.html").read_text()
    (run / "certificate.json").write_text(json.dumps(read_sealed(run / "certificate.json")))
    assert run_app(["report", str(run)]) == 2
    assert "certificate.json: was changed or damaged" in capsys.readouterr().err
