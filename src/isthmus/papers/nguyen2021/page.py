"""Nguyen, Brechet, Mondelli 2021: the bounds of Theorem 4.1 against dropout stability, layer by layer and by width.

Figures 3, 5, 6 (four tasks), 7 and 8 (other dropout ratios), 4 and 9 (two hidden layers of varying width).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from isthmus.connectors import Dropout
from isthmus.experiments.claims import Claim
from isthmus.experiments.jobs import Pair, Problem
from isthmus.experiments.page import Experiment
from isthmus.experiments.tables import Column, Entry, Reader, Row, Table, first, mean, number, read
from isthmus.papers.nguyen2021.figures import FIGURES
from isthmus.papers.nguyen2021.jobs import PAGE, ExperimentA, ExperimentB, PathA
from isthmus.papers.nguyen2021.tasks import SCALES
from isthmus.shown import largest
from isthmus.storage import read_json
from isthmus.sweep import Cell

_NEAR_ZERO = 0.05
"""A loss that the page calls near zero; the paper gives no number."""
_WIDEST = 3000
"""The last width of Figure 4."""


def cells(scale: str) -> Sequence[Cell]:
    """Network after network of every task, in order of importance; paths after the networks that they join."""
    tasks = SCALES[scale]()
    turns = range(max(task.networks for task in tasks))
    return [cell for k in turns for task in tasks for cell in task.turn(k)]


_TASKS = {task.problem: task for scale in SCALES.values() for task in scale()}
_RATIOS = {1 / 3: "7", 1 / 4: "8"}
"""The figures of appendix B."""


def _of_task(name: str) -> Reader:
    """What is said of the task of a network."""
    return lambda entry: getattr(_TASKS[entry.cell.network.problem], name)


def _numbers(loss: Reader, error: Reader) -> dict[str, Column]:
    """Means over the networks with their 95 % intervals; both experiments measure the network itself."""
    return {
        "networks": lambda entries: len({e.cell.network for e in entries}),
        ".optimizer": first("cell.network.recipe.optimizer"),
        ".layers": first(_of_task("layers")),
        "reference": _once("reference"),
        "A": mean(loss, "±", of=ExperimentA),
        "B": mean(_of_b(loss, True), "±"),
        "B as printed": mean(_of_b(loss, False), "±"),
        "reference test error": _once("test_reference_error"),
        "A test error": mean(error, "±", of=ExperimentA),
        "B test error": mean(_of_b(error, True), "±"),
    }


def _of_b(what: Reader, rescale: bool) -> Reader:
    """Of Experiment B with or without the factor n / kept."""
    return lambda e: read(e, what) if isinstance(e.cell, ExperimentB) and e.cell.rescale is rescale else None


def _once(what: str) -> Column:
    """The mean over the networks, each once."""
    return lambda entries: mean(what, "±")(list({e.cell.network: e for e in entries}.values()))


def _top(what: str) -> Reader:
    """The largest over the layers."""
    return lambda entry: largest(number(layer[what]) for layer in entry["layers"])


def _curve(name: str) -> Column:
    """A column of the profile along the path."""
    return lambda entries: number(read_json(entries[0].stored.folder / "run" / "profile.json")[name])


def _name(entry: Entry) -> str:
    """Of a row; the subsets of path (B) in the paper are random."""
    if isinstance(entry.cell, PathA):
        return "Subnetwork"
    method = entry.cell.method
    name = type(method).__name__
    return f"{name}, searched" if isinstance(method, Dropout) and method.search != "random" else name


def _problem(entry: Entry) -> Problem:
    """Of the ends of a path."""
    return entry.cell.problem if isinstance(entry.cell, PathA) else entry.cell.a.problem


_LAYERS = Table(
    of=(ExperimentA, ExperimentB),
    where=lambda cell: _TASKS[cell.network.problem].width is None,
    each="layers",
    by={
        "figure": lambda e: _RATIOS.get(e.cell.p) or _TASKS[e.cell.network.problem].figure,
        "task": _of_task("name"),
        "p": lambda e: round(e.cell.p, 4),
        "layer": "layer",
    },
    columns=_numbers("loss", "test_error"),
)
_WIDTHS = Table(
    of=(ExperimentA, ExperimentB),
    where=lambda cell: _TASKS[cell.network.problem].width is not None,
    by={"figure": _of_task("figure"), "task": _of_task("name"), "p": "cell.p", "width": _of_task("width")},
    columns=_numbers(_top("loss"), _top("test_error")),
)
_PATHS = Table(
    of=(PathA, Pair),
    by={"figure": lambda e: "3(d)", "task": lambda e: _TASKS[_problem(e)].name, "method": _name},
    columns={
        "segments": first("segments"),
        "max training loss": first("max_loss"),
        "excess": first("excess"),
        "bound": first("bound?"),
        "max test error": first("test_error_max?"),
        "processor seconds": first("record.processor_seconds?"),
        ".t": _curve("t"),
        ".loss": _curve("loss"),
    },
)


def _above(row: Row, kind: str) -> float:
    """How far an experiment is above the network itself."""
    return largest((row[kind] - row["reference"], 0.0))


def _far(rows: list[Row]) -> tuple[bool, str]:
    a, b = (_above(rows[0], kind) for kind in "AB")
    return b >= 10 * largest((a, 1e-3)), f"A {a:.3g}, B {b:.3g} above"


def _layers_of(rows: list[Row]) -> Sequence[int]:
    """Of the network, where they are cells of their own, so that some may be missing."""
    return rows[0].get(".layers") or ()


def _layers_of_b(rows: list[Row]) -> Sequence[int]:
    """There is no B at layer 0."""
    return [l for l in _layers_of(rows) if l]


def _nowhere_above(rows: list[Row]) -> tuple[bool, str]:
    gaps = {r["layer"]: (_above(r, "A"), _above(r, "B")) for r in rows}
    text = "; ".join(f"layer {layer}: {a:.2g} and {b:.2g}" for layer, (a, b) in gaps.items())
    return all(a <= b for a, b in gaps.values()), text


def _far_below(rows: list[Row]) -> tuple[bool | None, str]:
    excess = {r["method"]: r["excess"] for r in rows}
    if not {"Dropout", "Subnetwork"} <= excess.keys():
        return None, "one path is missing"
    a, b = excess["Subnetwork"], excess["Dropout"]
    return 20 * a <= b, f"A {a:.3g}, B {b:.3g}"


def _by_width(rows: list[Row]) -> str:
    known = sorted((r for r in rows if r.get("B") is not None), key=lambda r: r["width"])
    return "width: A / B " + ", ".join(f"{r['width']}: {r['A']:.2g} / {r['B']:.2g}" for r in known)


def _a_of_the_paper(row: Row) -> float | None:
    other = row.get(".optimizer", "sgd") != "sgd" and row["A"] > _NEAR_ZERO
    return None if other else row["A"]


def _half(row: Row) -> bool:
    return "layer" in row and row["p"] == 0.5 and row["figure"].endswith(("3(a)", "3(b)", "3(c)"))


def _widths_of(data: str, low: int, high: int) -> tuple[Claim, Claim]:
    """From which width the paper finds A near zero, and up to which B is not (section 6 on Figure 4).

    What A leaves depends on how the networks were trained: of others than by SGD a large A says nothing of the paper.
    """

    def wide(row: Row) -> bool:
        return "width" in row and row["task"].startswith(f"{data},")

    return (
        Claim(
            f"{{task}}: A is near zero from about {low} neurons to {_WIDEST}", wide, ("task",), needs=("A",),
            value=_a_of_the_paper, at_most=_NEAR_ZERO, says=_by_width, over=("width", low, _WIDEST),
        ),
        Claim(
            f"{{task}}: B is not near zero below {high}", wide, ("task",), needs=("B",),
            value=lambda row: row["B"] if row["width"] < high else None, at_least=_NEAR_ZERO,
            says="smallest B {value:.3g} of {count} widths, at {width}", over=("width", -inf, high),
        ),
    )  # fmt: skip


CLAIMS = (
    Claim(
        "{task}: A is close to the reference at every layer", _half, ("task",), needs=("A",),
        value=lambda row: row["A"] - row["reference"], at_most=_NEAR_ZERO, says="at most {value:.3g} above it",
        every=("layer", _layers_of),
    ),
    Claim(
        "{task}: B is far above it at layer 1", _half, ("task",), needs=("A", "B"), judge=_far, over=("layer", 1, 1)
    ),
    Claim(
        "{task}, dropout ratio {p:.3g}: A is at no layer further above the reference than B",
        lambda row: "layer" in row and row["p"] != 0.5, ("task", "p"), needs=("A", "B"), judge=_nowhere_above,
        every=("layer", _layers_of_b),
    ),
    *_widths_of("MNIST", 200, 2000),
    *_widths_of("CIFAR-10", 500, 3000),
    Claim(
        "{task}: the excess of path (A) is at least 20 times below that of (B)",
        lambda row: "method" in row, ("task",), judge=_far_below,
    ),
)  # fmt: skip
"""What section 6 says of Figures 3, 4 and 3(d), and appendix B of Figures 7 and 8."""

EXPERIMENT = Experiment(
    name=PAGE,
    title="Bounds of Theorem 4.1 by trained subnetworks (A) against dropout stability (B)",
    reference="Nguyen, Brechet, Mondelli 2021, section 6 and appendix B",
    cells=cells,
    tables=(_LAYERS, _WIDTHS, _PATHS),
    figures=FIGURES,
    claims=CLAIMS,
)
