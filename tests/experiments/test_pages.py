"""Pages as data: tables from stored results, claims on their rows, figures, and jobs whose needs are their fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from isthmus.errors import InputError
from isthmus.experiments import Claim, Network, Problem, Table
from isthmus.experiments.lines import Lines, Look
from isthmus.experiments.page import columns_of
from isthmus.experiments.tables import count, first, half_width, largest, mean, sd, so_many
from isthmus.sweep import Cell, Job, Stored, identity, with_needs


@dataclass(frozen=True)
class Reader:
    """Something that reads data."""

    name: str
    label: str = "a file"

    def digests(self) -> dict[str, str]:
        return {"data": self.name}


@dataclass(frozen=True)
class Measured(Cell):
    page: ClassVar[str] = "toy"
    what: ClassVar[str] = "measure"

    ends: tuple[Network, ...]
    reader: Reader = Reader("x")
    p: float = 0.5

    def run(self, job: Job) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Other(Measured):
    pass


GAUSSIANS = Problem("mlp:6-5x1-2", "gaussians:N=60,d=6,seed=1")
ENDS = (Network(GAUSSIANS, 0), Network(GAUSSIANS, 1))


def test_what_a_job_needs_reads_and_is_called_follows_from_its_fields():
    cell = Measured(ENDS, p=0.25)
    assert cell.group == "toy"
    assert cell.label == "measure a file, p 0.25"
    assert Measured(ENDS).label == "measure a file"
    assert cell.needs() == ENDS
    assert with_needs([cell, Measured(ENDS)]) == [*ENDS, cell, Measured(ENDS)]
    assert cell.digests() == {"data": GAUSSIANS.digests()["data"], "data'": "x"}
    assert identity(cell) != identity(Measured(ENDS, Reader("y"), 0.25))


def result(cell: Cell, **values: Any) -> tuple[Cell, Stored]:
    return cell, Stored("", Path(), values, {"seconds": 2.0})


DONE = [
    result(Measured(ENDS, p=0.1), loss=1.0, parts=[{"layer": 1, "v": 5.0}, {"layer": 2, "v": 6.0}], bound=None),
    result(Measured(ENDS, Reader("y"), 0.1), loss=3.0, parts=[{"layer": 1, "v": 7.0}], bound=4.0),
    result(Measured(ENDS, p=0.2), loss=8.0, parts=[], bound=9.0),
    result(Other(ENDS, p=0.2), loss=100.0, parts=[], bound=None),
]


def test_rows_are_groups_of_results_in_the_order_of_the_cells():
    table = Table(
        of=Measured,
        where=lambda cell: cell.reader.name != "z",
        by={"p": "cell.p"},
        columns={
            "n": len,
            "loss %": mean("loss", "sd", scale=100),
            "own": mean("loss", "±", of=Other),
            "bound": largest("bound", of_all=True),
            "found": largest("bound?"),
            "there": so_many("bound"),
            "low": count(lambda e: e["loss"] < 2),
            "seconds": first("record.seconds"),
            "none": first("nothing?"),
        },
    )
    low, high = table.rows(DONE)
    assert low == {
        "p": 0.1, "n": 2, "loss %": 200.0, "loss sd": pytest.approx(2**0.5 * 100), "own": None, "own ±": None,
        "bound": None, "found": 4.0, "there": "1 of 2", "low": 1, "seconds": 2.0, "none": None,
    }  # fmt: skip
    assert (high["n"], high["own"], high["own ±"], high["found"]) == (2, 100.0, None, 9.0)
    assert columns_of([low, high])[4:] == ["own", "found", "there", "low", "seconds"]
    assert table.rows([]) == []


def test_a_number_that_was_not_finite_is_not_left_out():
    table = Table(
        of=Measured, by={"p": "cell.p"},
        columns={"top": largest("loss"), "mean": mean("loss", "sd"), "known": mean("loss?"), "n": len},
    )  # fmt: skip
    (row,) = table.rows([result(Measured(ENDS, p=0.1), loss=1.0), result(Measured(ENDS, Reader("y"), 0.1), loss=None)])
    assert np.isnan([row["top"], row["mean"]]).all()
    assert np.isnan(row["mean sd"])
    assert (row["known"], row["n"]) == (1.0, 2)


def test_each_makes_entries_of_the_parts_of_a_result():
    table = Table(of=Measured, each="parts", by={"layer": "layer"}, columns={"v": mean("v"), "loss": mean("loss")})
    assert table.rows(DONE) == [{"layer": 1, "v": 6.0, "loss": 2.0}, {"layer": 2, "v": 6.0, "loss": 1.0}]


def test_a_result_without_the_value_of_a_column_is_an_error_not_a_blank():
    for path in ("nothing", "cell.nothing", "parts.nothing"):
        with pytest.raises((KeyError, AttributeError)):
            Table(of=Measured, by={}, columns={"x": first(path)}).rows(DONE)


def test_spreads_are_none_for_one_value():
    assert sd([1.0]) is None
    assert half_width([1.0]) is None
    assert half_width([0.0, 2.0]) == pytest.approx(12.7062, rel=1e-5)


ROWS = [{"task": "a", "x": 1.0, "n": 1}, {"task": "a", "x": 3.0, "n": 2}, {"task": "b", "x": None, "n": 3}]


def of(**options: Any) -> list[tuple[str, bool | None, str]]:
    claim = Claim("{task}: low", lambda row: "x" in row, ("task",), **options)
    return [(f.statement, f.holds, f.measured) for f in claim.findings(ROWS)]


def test_the_number_that_decides_is_the_largest_or_with_at_least_the_smallest():
    nothing = ("b: low", None, "no results")
    assert of(value="x", at_most=3) == [("a: low", True, "3"), nothing]
    assert of(value="x", at_most=2.9, says="{value} at {n} of {count}") == [("a: low", False, "3.0 at 2 of 2"), nothing]
    assert of(value="x", at_least=1) == [("a: low", True, "1"), nothing]
    assert of(value="x", at_least=1.5)[0][1] is False
    assert of(value=lambda row: row["x"] and -row["x"], at_most=0, says=lambda rows: "all")[0] == (
        "a: low",
        True,
        "all",
    )
    for values in ([0.5, float("nan")], [float("nan"), 0.5]):
        for claim in (
            Claim("x", lambda row: True, value="x", at_most=1),
            Claim("x", lambda row: True, value="x", at_least=0),
        ):
            assert claim.findings([{"x": v} for v in values])[0].holds is False


def test_one_number_decides_against_one_bound():
    with pytest.raises(InputError, match="at_most, at_least: expected one of them"):
        Claim("x", lambda row: True, value="x", at_most=1, at_least=0)


def test_a_judge_sees_the_rows_that_have_what_is_needed():
    assert of(needs=("x",), judge=lambda rows: (len(rows) == 2, "two")) == [
        ("a: low", True, "two"), ("b: low", None, "no results"),
    ]  # fmt: skip
    alone = Claim("all", lambda row: False, judge=lambda rows: (True, ""))
    assert [f.holds for f in alone.findings(ROWS)] == [None]
    assert Claim("{task}", lambda row: False, ("task",), "x").findings(ROWS) == []


def reach(rows, **options: Any) -> bool | None:
    return Claim("x", lambda row: True, **options).findings(rows)[0].holds


def test_a_range_that_was_not_reached_is_not_measured():
    wide = [{"n": n, "x": 1.0} for n in (100, 400)]
    assert reach(wide, value="x", at_most=1, over=("n", 100, 400)) is True
    assert reach(wide, value="x", at_most=1, over=("n", 100, float("inf"))) is True
    assert reach(wide, value="x", at_most=1, over=("n", 50, 400)) is None
    assert reach(wide, value="x", at_most=1, over=("n", 100, 2000)) is None
    assert reach(wide, value="x", at_most=1, over=("n", 500, 2000)) is None
    # a number in the range refutes, one outside does not; a trend says nothing of a range of which a part is missing
    assert reach(wide, value="x", at_most=0.5, over=("n", 100, 2000)) is False
    assert reach(wide, value="x", at_most=0.5, over=("n", 500, 2000)) is None
    assert reach(wide, judge=lambda rows: (False, ""), over=("n", 100, 400)) is False
    assert reach(wide, judge=lambda rows: (False, ""), over=("n", 100, 2000)) is None
    assert reach(wide, value="x", at_most=1, every=("n", (100, 400))) is True
    assert reach(wide, value="x", at_most=1, every=("n", (100, 200))) is None


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_lines_have_a_panel_per_value_and_bands(log):
    rows = [{"task": t, "k": k, "v": v, "v ±": 0.1} for t in ("a", "b") for k, v in ((2, 4.0), (1, 3.0))]
    lines = Lines("k", {"v": Look("ours", "#000000", "o"), "w": Look("none", "#ff0000")}, log=log, scale=10)
    drawn = lines(rows)
    assert [axes.get_title() for axes in drawn.axes] == ["a", "b"]
    (line,) = drawn.axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [1, 2]
    assert np.asarray(line.get_ydata()).tolist() == [30.0, 40.0]
    assert len(drawn.axes[0].collections) == 1
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["ours"]
    both = Lines("k", lines.y, below=lines)(rows)
    assert len(both.axes) == 4


def test_values_below_zero_are_drawn_where_they_are():
    rows = [{"task": "a", "k": k, "v": v} for k, v in ((1, -2.0), (2, 1.0))]
    (axes,) = Lines("k", {"v": Look("ours", "#000000", "o")})(rows).axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [-2.0, 1.0]
    assert axes.get_ylim()[0] < -2 < 1 < axes.get_ylim()[1]
