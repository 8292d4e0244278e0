"""The page of a check, and its pictures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from isthmus.plot.check import StoredCheck, check_figure
from isthmus.plot.figures import save_figure, svg_text
from isthmus.plot.html import html_page
from isthmus.report.assets import CSS
from isthmus.report.graph import html_table, in_a_cell
from isthmus.storage.files import write_text

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
    title = f"May {'these two networks' if len(held['names']) == 2 else 'these networks'} be averaged?"
    sections = [
        f"<section class='summary'><p><b>{escape(str(held['why']))}</b></p>{_advice(held)}</section>",
        f"<section><h2>The loss on the way</h2><div class='scroll'>{svg_text(check_figure(found))}</div>"
        f"<p class='note'>{_note(found)}</p>{_lines(held)}{_means(held)}{_population(held)}</section>",
        _side_by_side(held), _blocks(held, found.pair), _carriers(held), _vectors(held), _statistics(held),
        f"<section><h2>What is proved</h2>{_proof(held)}</section>", _cost(held),
    ]  # fmt: skip
    write_text(out, html_page("Isthmus check", CSS, "\n".join([f"<h1>{title}</h1>", *filter(None, sections)])))
    return out


def _advice(held: Mapping[str, Any]) -> str:
    t, loss = held["best"]
    names = held["names"]
    if held["go"] and len(names) == 2:
        return (
            f"<p>The lowest point of the line is at t = {t:.3g}, with the loss {in_a_cell(loss)} "
            f"({escape(held['sets'][min(1, len(held['sets']) - 1)])}).</p>"
        )
    return ""


def _note(found: StoredCheck) -> str:
    a, b = map(escape, found.pair)
    return (
        f"The line between {a} and {b}, which rises most. Dotted lines are the levels. Right: how far the loss rises "
        "above the larger end when one block of the first network becomes that of the second, and when all up to it do."
    )


def _lines(held: Mapping[str, Any]) -> str:
    heading = (
        "straight line",
        "data",
        "ends",
        "largest loss",
        "at t",
        "may rise to",
        "level",
        "largest error",
        "verdict",
    )
    rows: list[list[object]] = []
    for when, key in (("", "lines"), (", aligned", "aligned")):
        for row in held[key]:
            ends = f"{in_a_cell(row['loss'][0])}, {in_a_cell(row['loss'][-1])}"
            top, error = (row["barriers"][k]["max"] for k in ("loss", "error"))
            name = f"{held['names'][row['a']]} \N{EN DASH} {held['names'][row['b']]}{when}"
            below = "below" if row["below"] else "not below"
            rows.append([name, row["data"], ends, top, row["at"], row["rise"], row["level"], error, below])
    return html_table(heading, rows)


def _means(held: Mapping[str, Any]) -> str:
    rows = [
        [what, name, one["loss"], one["error"], one["level"], "below" if _is_below(one) else "not below"]
        for what, key in (("mean of the weights", "mean"), ("mean, aligned", "aligned_mean"))
        for name, one in held[key].items()
    ]
    return html_table(("network", "data", "loss", "error", "level", "verdict"), rows)


def _is_below(one: Mapping[str, Any]) -> bool:
    """False where the loss is not finite, which files have not."""
    return None not in (one["loss"], one["level"]) and one["loss"] < one["level"]


def _population(held: Mapping[str, Any]) -> str:
    said = [f"{escape(row['data'])}: {escape(row['population']['text'])}" for row in held["lines"] if row["population"]]
    return "".join(f"<p class='note'>{text}.</p>" for text in said)


def _side_by_side(held: Mapping[str, Any]) -> str:
    """Naive, aligned and curve, on the training data, of the worst pair."""
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
    table = html_table(("path", "data", "largest loss", "excess over the larger end"), rows)
    return f"<section><h2>What else connects them</h2>{table}</section>"


def _blocks(held: Mapping[str, Any], pair: tuple[str, str]) -> str:
    if held["blocks"] is None:
        return ""
    heading = ("block", "numbers", "share of the squared distance", "alone", "at t", "all up to it")
    keys = ("name", "parameters", "share", "alone", "t", "through")
    rows = [[row[k] for k in keys] for row in held["blocks"]["blocks"]]
    a, b = map(escape, pair)
    note = f"{a} with blocks of {b}, on {held['blocks']['examples']:,} examples; loss above the larger end."
    return f"<section><h2>Where the barrier sits</h2><p class='note'>{note}</p>{html_table(heading, rows)}</section>"


def _carriers(held: Mapping[str, Any]) -> str:
    found = held["carriers"]
    if found is None or not found["value"] > 0:
        return ""
    said = (
        f"The mean loss rises by {in_a_cell(found['value'])} to t = {found['t']:.3g}; {found['half']:.2%} of the "
        f"{found['examples']:,} examples carry half of it."
    )
    table = html_table(("example", "adds"), found["top"])
    rows = [[name, found["by_class"][name]] for name in sorted(found["by_class"], key=int)]
    classes = html_table(("class", "adds"), rows) if rows else ""
    return f"<section><h2>Which examples carry it</h2><p>{said}</p>{table}{classes}</section>"


def _vectors(held: Mapping[str, Any]) -> str:
    names: Sequence[str] = held["names"]
    apart = [[f"{names[i]} \N{EN DASH} {names[j]}", d] for i, j, d in held["distances"]]
    norms = [[name, norm] for name, norm in zip(names, held["norms"], strict=True)]
    told = html_table(("network", "norm"), norms) + html_table(("pair", "distance"), apart)
    found = held["vectors"]
    if found is not None:
        heading = ["network", "moved from the base", "share of its norm", *(f"cosine with {name}" for name in names)]
        heading += [f"same sign as {name}" for name in names]
        each = zip(names, found["norms"], found["relative"], found["cosines"], found["signs"], strict=True)
        told += html_table(heading, [[name, norm, part, *cosines, *signs] for name, norm, part, cosines, signs in each])
    return f"<section><h2>The weights</h2>{told}</section>"


def _statistics(held: Mapping[str, Any]) -> str:
    if held["bn"] == "none":
        return ""
    middle = "".join(f"; {in_a_cell(loss)} with bn={escape(name)}" for name, loss in held["policies"].items())
    return (
        f"<section><h2>BatchNorm</h2><p>All of this is with bn={escape(held['bn'])}. The loss at the middle of the "
        f"line is{middle.lstrip(';')}.</p></section>"
    )


def _proof(held: Mapping[str, Any]) -> str:
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in held["notes"])
    found = held["certificate"]
    if found is None:
        return f"<p>Losses are measured at points; a proof for the whole line was not made (--prove).</p>{notes}"
    return f"<p>{escape(str(found.get('summary', '')))}</p>{notes}"


def _cost(held: Mapping[str, Any]) -> str:
    command = f"<pre>{escape(str(held['command']))}</pre>" if held.get("command") else ""
    return (
        f"<section><h2>To repeat this</h2><p>{held['passes']:.1f} passes over the training data.</p>{command}</section>"
    )
