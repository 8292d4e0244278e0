"""The page of a check, and its pictures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.analysis.check import table_of
from isthmus.plot.check import StoredCheck, check_figure
from isthmus.plot.figures import save_figure
from isthmus.report.judged import rises_on
from isthmus.report.render import PageTable, picture, write_page

FILE = "check.json"


def write_check_files(file: Path) -> list[Path]:
    """The pictures and the page of a check.json, beside it. Errors: ``FileError``, ``MissingExtraError``."""
    found = StoredCheck.read(file)
    figure = check_figure(found)
    written = [save_figure(figure, file.with_suffix(f".{kind}")) for kind in ("svg", "png")]
    return [*written, _write_page(found, file.parent / "report.html")]


def write_stored_check(folder: Path, out: Path | None = None) -> Path | None:
    """The page of the check in a folder; None where there is none."""
    file = folder / FILE
    if not file.is_file():
        return None
    return _write_page(StoredCheck.read(file), folder / "report.html" if out is None else out)


def _write_page(found: StoredCheck, out: Path) -> Path:
    held = found.document
    proof, (a, b) = held["certificate"], found.pair
    alt = f"The loss on the straight line between {a} and {b}, and what each block adds to it."
    return write_page(
        out, "check.html",
        **{k: held[k] for k in ("names", "go", "notes", "bn")}, why=str(held["why"]), pair=found.pair,
        lowest=_lowest(held), picture=picture(check_figure(found), "check", alt),
        lines=PageTable("On each straight line, and at the mean of the weights", *table_of(held)),
        rises=_rises(held), others=_others(held), blocks=_blocks(held, found.pair), carriers=_carriers(held),
        vectors=_vectors(held), policies=list(held["policies"].items()),
        population=[f"{row['data']}: {row['population']['text']}" for row in held["lines"] if row["population"]],
        proof=_PROOFLESS if proof is None else str(proof.get("summary", "")),
        passes=f"{held['passes']:.1f}", commands=[held["command"]] if held.get("command") else [],
    )  # fmt: skip


_PROOFLESS = "Losses are measured at points; a proof for the whole line was not made (--prove)."


def _lowest(held: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the line of two networks that may be averaged is lowest."""
    if not held["go"] or len(held["names"]) != 2:
        return None
    t, loss = held["best"]
    return {"t": f"{t:.3g}", "loss": loss, "data": held["sets"][min(1, len(held["sets"]) - 1)]}


def _rises(held: Mapping[str, Any]) -> list[str]:
    """The error on every line that may be averaged by its loss, where it rises above the level nonetheless."""
    said = []
    for row in held["lines"] if held["go"] else []:
        if text := rises_on({"error": row["error"]}, row["t"], held["level"]):
            pair = " \N{EN DASH} ".join(held["names"][row[k]] for k in "ab")
            said.append(f"{pair}, {row['data']}: the loss stays low, but {text}.")
    return said


def _others(held: Mapping[str, Any]) -> PageTable:
    """Naive, aligned and curve, on every data set, of the worst pair."""
    rows: list[list[object]] = []
    for what, key in (("straight line", "lines"), ("straight line, units renumbered", "aligned")):
        own = [row for row in held[key] if [row["a"], row["b"]] == list(held["worst"])]
        rows += [[what, row["data"], row["barriers"]["loss"]["max"], row["barriers"]["loss"]["excess"]] for row in own]
    if held["curve"] is not None:
        curve = held["curve"]
        rows.append(["trained curve", held["sets"][0], *(curve["barriers"]["loss"][k] for k in ("max", "excess"))])
        if curve["test"] is not None:
            test = curve["test"]["barriers"]["loss"]
            rows.append(["trained curve", held["sets"][1], test["max"], test["excess"]])
    heading = ("path", "data", "largest loss", "excess over the larger end")
    return PageTable("Between the two whose line rises most", heading, rows)


def _blocks(held: Mapping[str, Any], pair: tuple[str, str]) -> PageTable | None:
    if held["blocks"] is None:
        return None
    heading = ("block", "numbers", "share of the squared distance", "alone", "at t", "all up to it")
    keys = ("name", "parameters", "share", "alone", "t", "through")
    rows = [[row[k] for k in keys] for row in held["blocks"]["blocks"]]
    on = f"on {held['blocks']['examples']:,} examples; loss above the larger end"
    return PageTable(f"{pair[0]} with blocks of {pair[1]}, {on}", heading, rows)


def _carriers(held: Mapping[str, Any]) -> dict[str, Any] | None:
    found = held["carriers"]
    if found is None or not (found["value"] or 0) > 0:  # files hold None for what is not finite
        return None
    classes = [[name, found["by_class"][name]] for name in sorted(found["by_class"], key=int)]
    tables = [PageTable("Examples that add most", ("example", "adds"), found["top"])]
    tables += [PageTable("What each class adds", ("class", "adds"), classes)] if classes else []
    shown = {"t": f"{found['t']:.3g}", "half": f"{found['half']:.2%}", "examples": f"{found['examples']:,}"}
    return {"value": found["value"], **shown, "tables": tables}


def _vectors(held: Mapping[str, Any]) -> list[PageTable]:
    names: Sequence[str] = held["names"]
    apart = [[f"{names[i]} \N{EN DASH} {names[j]}", d] for i, j, d in held["distances"]]
    norms = list(zip(names, held["norms"], strict=True))
    told = [
        PageTable("The norm of all weights", ("network", "norm"), norms),
        PageTable("How far apart the networks are", ("pair", "distance"), apart),
    ]
    found = held["vectors"]
    if found is None:
        return told
    heading = ["network", "moved from the base", "share of its norm", *(f"cosine with {name}" for name in names)]
    heading += [f"same sign as {name}" for name in names]
    each = zip(names, found["norms"], found["relative"], found["cosines"], found["signs"], strict=True)
    rows = [[name, norm, part, *cosines, *signs] for name, norm, part, cosines, signs in each]
    return [*told, PageTable("What training added to the base", heading, rows)]
