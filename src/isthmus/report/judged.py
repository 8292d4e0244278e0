"""The verdict on a stored run, and how close its proof came, from the numbers in its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan, nan
from typing import Any

from isthmus.certify.branch import close
from isthmus.certify.certificate import budget_in_words, distance_in_words
from isthmus.evaluate.batchnorm import is_interpolated
from isthmus.plot.runs import Floats, StoredProfile, StoredRun
from isthmus.verdict import LEVEL, Level, Measured, Proof, Verdict, judge, judge_all

_GOAL = 0.01
"""The gap that was asked for, where a certificate does not say."""


def verdict_of(run: StoredRun) -> Verdict | None:
    """The verdict on the training data, with those beside it; None when nothing was measured or proved."""
    asked, proof = Level.read((run.result.get("verdict") or {}).get("asked", LEVEL)), _proof(run)
    if run.profile is None:
        return None if proof is None else judge(asked, None, proof)
    found = run.profile
    test, beside = (
        None if s is None else _measured(found, s["loss"]) for s in (found.test, found.beside.get("interpolate"))
    )
    return judge_all(asked, _measured(found, found.train["loss"]), test, beside, proof, found.bn)


def rises(run: StoredRun) -> str:
    """What rises above the level on test data where the training loss stays below it, in words; else empty."""
    found, profile = verdict_of(run), run.profile
    if found is None or not found.below or profile is None or profile.test is None:
        return ""
    said = rises_on({q: v.tolist() for q, v in profile.test.items()}, profile.t.tolist(), found.asked)
    return f"The training loss stays low, but on the test data {said}" if said else ""


def rises_on(curves: Mapping[str, Sequence[float | None]], t: Sequence[float], level: float | str) -> str:
    """Which of the curves, "loss" and "error", rise above `level`, in words; empty where none does.

    Errors are held against the same multiple of the larger end's or, where the level is a loss, the usual one; where
    none is defined, against nothing.
    """
    asked = Level.read(level)
    levels = {"loss": asked, "error": asked if asked.relative else Level.read(LEVEL)}
    numbers = {q: list(map(_number, v)) for q, v in curves.items()}
    if all(map(isnan, numbers.get("error", ()))):
        numbers.pop("error", None)
    found = {q: judge(levels[q], Measured.of(t, v, len(t), None, None), None) for q, v in numbers.items()}
    return " and ".join(_rise(q, curves[q], levels[q], v) for q, v in found.items() if v.below is False)


def _rise(name: str, values: Sequence[float | None], level: Level, found: Verdict) -> str:
    ends = sorted((_number(values[0]), _number(values[-1])))
    low, high, most = map(_SHOWN[name], (*ends, found.highest))
    start = high if low == high else f"{low} and {high}"
    above = f"{level.number:g} x the larger end" if level.relative else f"{level.number:g}"
    return f"the {name} rises from {start} at the ends to {most} (at t = {found.at:.4g}), not below {above}"


_SHOWN: Mapping[str, Callable[[float], str]] = {"loss": "{:.4g}".format, "error": lambda v: f"{100 * v:.3g} %"}


def far_from(run: StoredRun) -> str:
    """How far a proved bound is from what was measured, and why, in words; empty when it is close, or not proved."""
    certificate = run.certificate
    if certificate is None or not certificate["proved"]:
        return ""
    bound, best, goal = _bound(certificate), _seen(run), certificate.get("goal") or _GOAL
    if bound is None or not isfinite(best) or close(bound, best, goal):
        return ""
    budget = certificate.get("budget")
    if budget is None or certificate.get("spent") is None:  # of an older version, which did not say
        return distance_in_words(bound, best, goal)
    words = budget_in_words(budget if certificate["spent"] else None, certificate.get("expected"), goal)
    return f"{distance_in_words(bound, best, goal)}: {words}"


def _bound(certificate: Mapping[str, Any]) -> float | None:
    """The largest bound of the segments that are proved."""
    return max((float(s["bound"]) for s in certificate["segments"] if _is_bounded(s)), default=None)


def _is_bounded(segment: Mapping[str, Any]) -> bool:
    return segment["claim"] != "measured" and segment.get("bound") is not None


def _best(run: StoredRun) -> float:
    """The largest loss that was measured, by the certificate or, where it does not say, by the profile."""
    known = (run.certificate or {}).get("witness") or {}
    if known.get("loss") is not None:
        return float(known["loss"])
    return nan if run.profile is None else float(run.profile.train["loss"].max())


def _seen(run: StoredRun) -> float:
    """``_best``, or what the profile of the same statistics saw where that is higher."""
    if run.profile is None or not is_interpolated(run.profile.bn):
        return _best(run)
    return max(_best(run), run.number("max_loss"))


def _proof(run: StoredRun) -> Proof | None:
    certificate = run.certificate
    if certificate is None or not certificate["segments"]:
        return None
    ends = certificate.get("ends")
    if ends is None and run.profile is not None:
        ends = run.profile.train["loss"][[0, -1]].tolist()
    if ends is None:
        return None
    at = (certificate.get("witness") or {}).get("t")
    segments = certificate["segments"]
    unproved = sum(not _is_bounded(s) for s in segments)
    a, b = map(_number, ends)
    return Proof((a, b), _best(run), _number(at), _bound(certificate), unproved, len(segments))


def _number(value: Any) -> float:
    return nan if value is None else float(value)


def _measured(profile: StoredProfile, loss: Floats) -> Measured:
    return Measured.of(profile.t.tolist(), loss.tolist(), profile.num_points, profile.tol, profile.within)
