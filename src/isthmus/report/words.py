"""The words and numbers of the page: every string that leaves here is HTML, and escaped."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from html import escape
from math import isfinite, nan
from typing import Any

from isthmus.evaluate.band import interval_in
from isthmus.evaluate.batchnorm import beside_in_words, policy_in_words
from isthmus.pipeline import upward
from isthmus.plot.runs import StoredRun
from isthmus.report.judged import far_from, verdict_of
from isthmus.verdict import ANSWERS, Verdict

_CLAIMS = {
    "unchanged": "the outputs on the data stay as they are (only weights into silent units move, or weight moves "
    "between identical units), so the loss stays that of the segment's ends, which was bounded with its rounding",
    "convex": "every example's output is affine in t and the loss is convex in the outputs, so no point of the segment "
    "has a higher loss than the highest of its control points, which was bounded with its rounding",
    "analytic": "the segment is a closed-form curve on which the outputs move along a straight line; its premises were "
    "checked again, its loss in real arithmetic was bounded, and the rounding of its own points was measured",
    "bounded": "the loss was bounded from above by propagating intervals of t through the network, and halving those "
    "with the largest bound until it was close or the budget was spent",
    "measured": "the loss was only evaluated at points of the segment; between them nothing is proved",
}
"""One sentence per kind of claim, strongest first."""

_NONE = "–"


def num(value: float) -> str:
    """Four significant digits; a dash for what was not measured.

    >>> num(0.00259312), num(1220.0), num(float("nan"))
    ('0.002593', '1220', '–')
    """
    if not isfinite(value):
        return _NONE
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")


def bound_num(value: float) -> str:
    """Four significant digits rounded up, so that what is printed is still a bound.

    >>> num(0.00259312), bound_num(0.00259312), bound_num(0.25)
    ('0.002593', '0.002594', '0.25')
    """
    if not isfinite(value):
        return _NONE
    return num(upward(value))


def whole(value: float) -> str:
    """A whole number, or a dash."""
    return f"{value:.0f}" if isfinite(value) else _NONE


def _seconds_of(run: StoredRun) -> float:
    """The seconds of all stages together; NaN when none was recorded."""
    known = [float(v) for v in (run.result.get("seconds") or {}).values() if v is not None]
    return sum(known) if known else nan


def _text_of(run: StoredRun, key: str) -> str:
    """A string of result.json, escaped; empty when absent."""
    return escape(run.result.get(key) or "")


def _is_proved(run: StoredRun) -> bool:
    """Whether there is a certificate in which every segment is proved."""
    return bool(run.certificate is not None and run.certificate["proved"])


def _bound_of(run: StoredRun) -> float:
    """The proved bound on the loss along the path; NaN when it is not proved."""
    value = run.certificate.get("bound") if run.certificate is not None else None
    return float(value) if value is not None and _is_proved(run) else nan


def _claim_counts(run: StoredRun) -> dict[str, int]:
    """How many segments have each claim, known kinds first."""
    if run.certificate is None:
        return {}
    count = Counter(s["claim"] for s in run.certificate["segments"])
    order = [*_CLAIMS, *sorted(set(count) - set(_CLAIMS))]
    return {claim: count[claim] for claim in order if count[claim]}


def best(runs: tuple[StoredRun, ...]) -> float:
    """The smallest excess among the runs that succeeded; NaN when there is none."""
    return min((e for r in runs if r.ok and isfinite(e := r.number("excess"))), default=nan)


def _pair_of(run: StoredRun) -> tuple[object, ...]:
    """What two runs must share to be compared: network, data, objective and the losses of the ends."""
    held = run.result.get("objective") or {}
    objective = tuple(repr(held.get(k)) for k in ("loss", "examples", "penalty"))
    ends = (num(run.number("loss_a")), num(run.number("loss_b")))
    return (run.result.get("model"), run.result.get("data"), *objective, *ends)


def _objective_of(run: StoredRun) -> str:
    """The loss, how many examples it is the mean over, and the penalty, in words; empty where not recorded."""
    held = run.result.get("objective") or {}
    if "loss" not in held or "examples" not in held:
        return ""
    penalty = held.get("penalty") or {}
    plus = f" plus the penalty {penalty.get('name')} of {penalty.get('kappa')}" if penalty else ""
    return f" (<code>{escape(str(held['loss']))}</code> on {held['examples']:,} training examples{escape(plus)})"


def introduction(runs: tuple[StoredRun, ...]) -> str:
    """Which networks, which data, and how much the ends lose."""
    if len({_pair_of(r) for r in runs}) > 1:
        return (
            "<p>The runs below are about <strong>different networks or data sets</strong>: compare only rows with the "
            "same network, data and end losses.</p>"
        )
    run = runs[0]
    model, data = _text_of(run, "model") or "not recorded", _text_of(run, "data") or "not recorded"
    return (
        f"<p>Two trained networks, A and B, of the kind <code>{model}</code> on the data <code>{data}</code>. "
        f"Their training losses{_objective_of(run)} are "
        f"{num(run.number('loss_a'))} (A) and {num(run.number('loss_b'))} (B). "
        "Each method below joins A to B by a path in weight space; "
        "the question is how high the loss rises on the way.</p>"
    )


_TAGS = {"proved": "good", "measured": "open", "unknown": "open", "rises": "bad"}
"""The colour of each kind of answer."""


def verdict(run: StoredRun) -> str:
    """On one method: whether its path stays below the level, and what was measured and proved."""
    head = f"<strong>{escape(run.label)}</strong>: "
    if not run.ok:
        head += "<em>did not succeed</em> (see below); on its path "
    found = verdict_of(run)
    said = [] if found is None else [judged(found)]
    if found is not None and found.test is not None:
        said.append(f"Test data: {judged(found.test)}")
    if population := (run.result.get("population") or {}).get("text"):
        said.append(f"{escape(population)}.")
    if found is not None and found.interpolated is not None:
        said.append(f"With interpolated statistics: {judged(found.interpolated)}")
    said += [_numbers(run), *(f"{escape(line)}." for line in _statistics(run))]
    return head + "<br>".join(said)


def _statistics(run: StoredRun) -> list[str]:
    """What became of BatchNorm's running statistics, and what the other policies give where it matters."""
    if run.profile is None:
        return []
    beside = {policy: float(curves["loss"].max()) for policy, curves in run.profile.beside.items()}
    words = policy_in_words(run.profile.bn), beside_in_words(run.number("max_loss"), beside)
    return [line for line in words if line]


def judged(found: Verdict) -> str:
    """A verdict with its answer in the colour of its kind."""
    answer = f"{ANSWERS[found.how]}{found.why}"
    question = str(found).removesuffix(answer)
    return f"{escape(question)}<span class='tag {_TAGS[found.how]}'>{escape(answer)}</span>"


def _numbers(run: StoredRun) -> str:
    """What was measured and what was proved, in one sentence."""
    top = num(run.number("max_loss"))
    points = f"the {len(run.profile.t):,} points" if run.profile is not None else "the points"
    said = f"The training loss is at most <strong>{top}</strong> at {points} measured"
    said = "The loss was not measured" if top == _NONE else said
    if run.certificate is None:
        return f"{said}; nothing was proved (there is no certificate)."
    if _is_proved(run):
        bound, far = bound_num(_bound_of(run)), far_from(run)
        own = run.profile is None or run.profile.bn in ("none", "interpolate")
        it = "it" if own else "with interpolated statistics it"
        if far:
            proved = f"{it} is proved to be at most {bound} everywhere on the path"
            return f"{said}; {proved}, <strong>but that is {escape(far)}</strong>."
        return f"{said}, and {it} is <strong>proved</strong> to be at most {bound} everywhere on the path."
    counts = _claim_counts(run)
    left, total = counts.get("measured", 0), sum(counts.values())
    verb = "is" if left == 1 else "are"
    return f"{said}; <strong>not proved</strong>: {left} of {total} segments {verb} only measured."


_COLUMNS = (
    ("Method", "the connector; its source stands below its name"),
    ("Segments", "how many smooth pieces the path has"),
    ("Length / distance", "length of the path divided by the Euclidean distance of its ends; 1 for a straight line"),
    ("Max training loss", "the largest training loss at the measured points, in the units of the loss"),
    ("Below the level", "whether the training loss stays below the level that is named above, on the whole path"),
    ("Excess", "max loss on the path minus the larger end's loss; 0 means that the path never rises above its ends"),
    (
        "Proved bound",
        "no point of the path has a larger training loss, measured or not; rounded up; a dash when it is not proved; "
        "how far it is from the measured maximum stands below it where that is further than was asked",
    ),
    (
        "Max test error",
        "the largest fraction of wrongly classified test examples at the measured points; below it the interval for "
        "that of the population they were drawn from, at these points",
    ),
    ("Seconds", "wall-clock seconds to construct, measure and certify the path together"),
)


def table(runs: tuple[StoredRun, ...]) -> str:
    """The comparison, with the definition of every column under it."""
    top, several = best(runs), len({_pair_of(r) for r in runs}) > 1
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in _COLUMNS)
    rows = "\n".join(_row(run, top, several) for run in runs)
    notes = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(what)}</dd></div>" for name, what in _COLUMNS)
    mark = "<p class='note'>The smallest excess is highlighted.</p>" if isfinite(top) else ""
    return (
        f"<div class='scroll'><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"
        f"{mark}\n<dl class='columns'>\n{notes}\n</dl>"
    )


def _for_population(run: StoredRun) -> str:
    """The interval for the largest error of the population, below the largest of the test set."""
    interval = interval_in(run.result.get("population"), "error")
    return f"<small>population: {escape(interval)}</small>" if interval else ""


def _row(run: StoredRun, top: float, several: bool) -> str:
    excess, found = run.number("excess"), verdict_of(run)
    winner = " class='best'" if run.ok and isfinite(excess) and excess == top else ""
    pair = f"<small>{_text_of(run, 'model')} on {_text_of(run, 'data')}</small>" if several else ""
    failed = "" if run.ok else " <span class='tag bad'>did not succeed</span>"
    method = f"{escape(run.label)}{failed}<small>{_text_of(run, 'reference')}</small>{pair}"
    cells = (
        whole(run.number("segments")),
        num(run.number("normalized_length")),
        num(run.number("max_loss")),
        _NONE if found is None else ANSWERS[found.how].removesuffix(", rises to "),
        num(excess),
        bound_num(_bound_of(run)) + (f"<small>{escape(far_from(run).split(':')[0])}</small>" if far_from(run) else ""),
        num(run.number("test_error_max")) + _for_population(run),
        num(_seconds_of(run)),
    )
    marks = ["", "", "", "", winner, "", "", ""]
    tds = "".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, cells, strict=True))
    return f'<tr><th scope="row">{method}</th>{tds}</tr>'


def failures(runs: tuple[StoredRun, ...]) -> str:
    """The messages of the methods that did not succeed; empty when all did."""
    items = "\n".join(
        f"<li><strong>{escape(r.label)}</strong>: {escape(r.result['outcome']['message'])}</li>"
        for r in runs
        if not r.ok
    )
    return (
        f"<div class='alert' role='alert'><h2>Methods that did not succeed</h2><ul>{items}</ul></div>" if items else ""
    )


def proofs(runs: tuple[StoredRun, ...]) -> str:
    """For each method, what its certificate claims, and the list of its segments."""
    return "\n".join(_proof(run) for run in runs)


def _proof(run: StoredRun) -> str:
    heading = f"<h3>{escape(run.label)}</h3>"
    labels = run.result.get("labels") or []
    if run.certificate is None:
        nothing = "<p>There is no certificate.json beside this result: nothing was proved about this path.</p>"
        rows = "".join(f"<tr><td>{i}</td><td>{escape(str(label))}</td></tr>" for i, label in enumerate(labels))
        head = "<tr><th>Segment</th><th>What it does</th></tr>"
        return heading + nothing + (_details(len(labels), head, rows) if labels else "")
    segments = run.certificate["segments"]
    claims = "".join(_claim(claim, n) for claim, n in _claim_counts(run).items())
    rows = "".join(_segment_row(s, labels) for s in segments)
    head = "<tr><th>Segment</th><th>What it does</th><th>Claim</th><th>Bound</th><th>Why</th></tr>"
    return heading + _statement(run, run.certificate) + claims + _details(len(segments), head, rows)


def _statement(run: StoredRun, certificate: Mapping[str, Any]) -> str:
    """What is proved about the whole path."""
    if not _is_proved(run):
        return "<p><span class='tag open'>not proved</span> At least one segment is only measured.</p>"
    slack, dtype = certificate.get("slack"), escape(certificate.get("dtype") or "floating point")
    far = far_from(run)
    kind, tag = ("open", f"proved, but {escape(far)}") if far else ("good", "proved")
    share = "" if slack is None else f": {num(float(slack))} of the bound"
    return (
        f"<p><span class='tag {kind}'>{tag}</span> The training loss is at most "
        f"<strong>{bound_num(_bound_of(run))}</strong> on the whole path. "
        f"The statement is about the network in real arithmetic, evaluated in {dtype}, the rounding of the "
        f"evaluation itself included{share}.</p>"
    )


def _claim(claim: str, n: int) -> str:
    why = _CLAIMS.get(claim, "a kind of claim that this version of the report does not know")
    noun = "segment" if n == 1 else "segments"
    return f"<p class='claim'><strong>{n} {noun} {escape(claim)}</strong>: {escape(why)}.</p>"


def _segment_row(segment: dict[str, object], labels: list[object]) -> str:
    i = segment["index"]
    label = segment.get("label") or (labels[i] if isinstance(i, int) and 0 <= i < len(labels) else "")
    bound = segment.get("bound")
    cells = (i, label or _NONE, segment["claim"], bound_num(float(str(bound))) if bound is not None else _NONE)
    tds = "".join(f"<td>{escape(str(c))}</td>" for c in (*cells, segment.get("why") or _NONE))
    return f"<tr>{tds}</tr>"


def _details(count: int, head: str, rows: str) -> str:
    noun = "segment" if count == 1 else "segments"
    return (
        f"<details><summary>{count} {noun}, one by one</summary><div class='scroll'><table class='segments'>"
        f"<thead>{head}</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _command_of(run: StoredRun) -> str:
    """The recorded command if it is one of ours and nothing more, as readers paste it into a shell."""
    command = run.result.get("command") or ""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return command if words[:1] == ["isthmus"] and command == shlex.join(words) and command.isprintable() else ""


def repeat(runs: tuple[StoredRun, ...]) -> str:
    """The commands, versions and seeds."""
    commands = "\n".join(escape(command) for r in runs if (command := _command_of(r)))
    shown = f"<pre>{commands}</pre>" if commands else "<p>No command was recorded.</p>"
    rows = "\n".join(
        f"<tr><th scope='row'>{escape(r.label)}</th><td>{whole(r.number('seed'))}</td>"
        + "".join(f"<td>{_text_of(r, key) or _NONE}</td>" for key in ("dtype", "version", "torch"))
        + "</tr>"
        for r in runs
    )
    head = "<tr><th>Method</th><th>Seed</th><th>dtype</th><th>isthmus</th><th>torch</th></tr>"
    return f"{shown}\n<div class='scroll'><table class='plain'><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
