"""What the page says of its runs: plain values, which the template puts into words and escapes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
import torch

from isthmus.certify.certificate import SEGMENTS
from isthmus.evaluate.band import interval_in
from isthmus.evaluate.batchnorm import beside_in_words, is_interpolated, policy_in_words
from isthmus.evaluate.profile import measured_row
from isthmus.plot.runs import StoredRun
from isthmus.report.judged import far_from, rises, verdict_of
from isthmus.report.render import PageTable, bound_num, num
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

_UNKNOWN = "a kind of claim that this version of the report does not know"


def told(run: StoredRun, place: int, runs: Sequence[StoredRun]) -> dict[str, Any]:
    """All that the template says of one run."""
    return {
        **{"name": f"run-{place + 1}", "label": run.label, "ok": run.ok, "message": run.result["outcome"]["message"]},
        **_among(run, runs),
        **_said(run),
        **{k: run.number(k) for k in ("segments", "normalized_length", "max_loss", "excess", "seed")},
        **{k: run.number(k) for k in ("loss_a", "loss_b", "test_loss_max", "test_error_max")},
        **{k: run.result.get(k) or "" for k in ("reference", "dtype", "version", "torch")},
        **{"seconds": _seconds_of(run), "points": None if run.profile is None else len(run.profile.t)},
        **{"measured": _measured(run), "ends": _ends(run), "proof": _proof(run), "command": _command_of(run)},
        **{"steps": _steps(run), "changed": " and ".join(run.changed)},
    }


def _among(run: StoredRun, runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Whether its excess is the smallest, and which networks it joins where they are not those of all."""
    several = len({_pair_of(r) for r in runs}) > 1
    model, data = (run.result.get(k) or "" for k in ("model", "data"))
    return {"best": run.ok and run.number("excess") == best(runs), "pair": f"{model} on {data}" if several else ""}


def pair(runs: tuple[StoredRun, ...]) -> dict[str, Any] | None:
    """Which networks and which data, and the objective; None where the runs are about several."""
    if len({_pair_of(r) for r in runs}) > 1:
        return None
    run = runs[0]
    held = run.result.get("objective") or {}
    known = "loss" in held and "examples" in held
    return {
        **{k: run.result.get(k) or "not recorded" for k in ("model", "data")},
        **dict(zip(("loss_a", "loss_b"), _own_ends(run), strict=True)),
        "objective": {"penalty": {}, **held} if known else None,
    }


def _said(run: StoredRun) -> dict[str, Any]:
    """The answers, what speaks against a plain success, and whatever else bears on them."""
    found, held_out = verdict_of(run), rises(run)
    beside = {} if found is None else {"": found, "Test data: ": found.test}
    later = {} if found is None else {"With interpolated statistics: ": found.interpolated}
    interval = run.result.get("population") or {}
    return {
        "answers": [judged(name, v, not held_out) for name, v in beside.items() if v is not None],
        "interpolated": [judged(name, v) for name, v in later.items() if v is not None],
        "answer": "" if found is None else ANSWERS[found.how].removesuffix(", rises to "),
        **{"held_out": held_out, "statistics": _statistics(run)},
        **{"population": interval.get("text") or "", "error_interval": interval_in(interval, "error")},
    }


_TAGS = {"proved": "good", "measured": "open", "unknown": "open", "rises": "bad"}
"""The colour of each kind of answer."""


def judged(name: str, found: Verdict, plain: bool = True) -> dict[str, str]:
    """A verdict, with its answer apart, in the colour of its kind; no success is coloured where it is not `plain`."""
    answer, tag = f"{ANSWERS[found.how]}{found.why}", _TAGS[found.how]
    shown = tag if plain or tag != "good" else "open"
    return {"question": f"{name}{str(found).removesuffix(answer)}", "answer": answer, "tag": shown}


def _statistics(run: StoredRun) -> list[str]:
    """What became of BatchNorm's running statistics, and what the other policies give where it matters."""
    if run.profile is None:
        return []
    beside = {policy: float(curves["loss"].max()) for policy, curves in run.profile.beside.items()}
    words = policy_in_words(run.profile.bn), beside_in_words(run.number("max_loss"), beside)
    return [line for line in words if line]


def _measured(run: StoredRun) -> list[list[object]]:
    """A row for each quantity and data set, as a profile shows itself."""
    if run.profile is None:
        return []
    t, population = torch.from_numpy(run.profile.t), run.result.get("population") or {}
    known = {"test loss": interval_in(population, "loss"), "test error": interval_in(population, "error")}
    names = {"train": "training", "test": "test"}
    return [
        measured_row(name := f"{names[part]} {q}", t, torch.from_numpy(curves[q]), known.get(name) or None)
        for part, curves in run.profile.sets()
        for q in ("loss", "error")
        if q == "loss" or not np.isnan(curves[q]).all()  # NaN everywhere: there is none
    ]


def _ends(run: StoredRun) -> dict[str, tuple[float, float] | None]:
    """Test loss and error at both ends; None where they were not measured."""
    curves = None if run.profile is None else run.profile.test
    known = curves or {}
    return {q: (float(known[q][0]), float(known[q][-1])) if q in known else None for q in ("loss", "error")}


COLUMNS = (
    ("Method", "the connector; its source stands below its name"),
    ("Segments", "how many smooth pieces the path has"),
    ("Length / distance", "length of the path divided by the Euclidean distance of its ends; 1 for a straight line"),
    ("Max training loss", "the largest training loss at the measured points, in the units of the loss; below it the "
     "losses of the ends"),
    ("Below the level", "whether the training loss stays below the level that is named above, on the whole path"),
    ("Excess", "max loss on the path minus the larger end's loss; 0 means that the path never rises above its ends"),
    ("Proved bound",
     "no point of the path has a larger training loss, measured or not; rounded up; a dash when it is not proved; "
     "how far it is from the measured maximum stands below it where that is further than was asked"),
    ("Max test loss", "the same of the test set; below it its losses at the ends"),
    ("Max test error",
     "the largest fraction of wrongly classified test examples at the measured points; below it those of the ends, and "
     "the interval for that of the population they were drawn from, at these points"),
    ("Seconds", "wall-clock seconds to construct, measure and certify the path together"),
)  # fmt: skip
"""Of the table of all runs, with their definitions."""

MEASURES = (
    ("at A, at B", "at the two ends of the path"),
    ("max, at t", "the largest value at the measured points, and where it is"),
    ("excess", "max minus the larger end"),
    ("linear", "the largest height above the straight line between the values of the ends"),
    ("mean", "max minus the mean of the ends"),
    ("population", "an interval for the max of the population that the test examples were drawn from"),
)
"""What the columns of a profile are."""


def _proof(run: StoredRun) -> dict[str, Any] | None:
    """What is proved of the whole path, what its segments claim, what is left open; None: no certificate."""
    held = run.certificate
    if held is None:
        return None
    counts, slack = _claim_counts(run), held.get("slack")
    return {
        **{"proved": _is_proved(run), "bound": _bound_of(run), "far": far_from(run)},
        **{"left": counts.get("measured", 0), "total": sum(counts.values())},
        "own": run.profile is None or is_interpolated(run.profile.bn),
        **{"slack": None if slack is None else float(slack), "dtype": held.get("dtype") or "floating point"},
        "claims": [(claim, n, _CLAIMS.get(claim, _UNKNOWN)) for claim, n in counts.items()],
    }


def _steps(run: StoredRun) -> PageTable:
    """The segments one by one, as a certificate or, without one, a connection shows them."""
    labels = run.result.get("labels") or []
    if run.certificate is None:
        return PageTable(f"{run.label}: what each segment does", SEGMENTS[:2], list(enumerate(map(str, labels))))
    rows = [_segment(s, labels) for s in run.certificate["segments"]]
    return PageTable(f"{run.label}: what is claimed of each segment", SEGMENTS, rows)


def _segment(segment: Mapping[str, Any], labels: Sequence[object]) -> tuple[object, ...]:
    i, bound, seen = segment["index"], segment.get("bound"), segment.get("value")
    label = segment.get("label") or (labels[i] if 0 <= i < len(labels) else "")
    bounded = None if bound is None else bound_num(float(bound))
    return (i, label or None, segment["claim"], bounded, seen, segment.get("why") or None)


def _seconds_of(run: StoredRun) -> float:
    """The seconds of all stages together; NaN when none was recorded."""
    known = [float(v) for v in (run.result.get("seconds") or {}).values() if v is not None]
    return sum(known) if known else nan


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


def best(runs: Sequence[StoredRun]) -> float:
    """The smallest excess among the runs that succeeded; NaN when there is none."""
    return min((e for r in runs if r.ok and isfinite(e := r.number("excess"))), default=nan)


def _pair_of(run: StoredRun) -> tuple[object, ...]:
    """What two runs must share to be compared: network, data, objective and the losses of the ends."""
    held = run.result.get("objective") or {}
    objective = tuple(repr(held.get(k)) for k in ("loss", "examples", "penalty"))
    return (run.result.get("model"), run.result.get("data"), *objective, *map(num, _own_ends(run)))


def _own_ends(run: StoredRun) -> tuple[float, float]:
    """The losses of the two networks themselves, with the statistics of BatchNorm that they have."""
    found = run.profile
    curves = None if found is None or is_interpolated(found.bn) else found.beside.get("interpolate")
    if curves is None:
        return run.number("loss_a"), run.number("loss_b")
    return float(curves["loss"][0]), float(curves["loss"][-1])


def _command_of(run: StoredRun) -> str:
    """The recorded command if it is one of ours and nothing more, as readers paste it into a shell."""
    command = run.result.get("command") or ""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return command if words[:1] == ["isthmus"] and command == shlex.join(words) and command.isprintable() else ""
