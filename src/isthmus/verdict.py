"""Whether the loss stays below a level on a whole path, and how that is known: by a proof, by samples, or not at all.

A method only says that it constructed its path; this is what says how good the path is. A sample above the level is
enough for "no". "Yes" is proved by a bound below the level, or was measured at the points of a profile. A bound that is
above the level decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from typing import Any, NamedTuple

from isthmus.certify import Certificate
from isthmus.certify.branch import FLOOR
from isthmus.errors import InputError
from isthmus.evaluate import Profile
from isthmus.evaluate.batchnorm import is_interpolated
from isthmus.kinds import check_kinds
from isthmus.shown import largest, one_line, upward

LEVEL = "1.1x"
"""The level where none is asked for: a tenth above the larger end."""


@one_line
@dataclass(frozen=True)
class Level:
    """A loss to stay below: `number` itself, or, if `relative`, so many times the larger end's loss.

    A relative level is the larger end and a share of its size, so that it is above the end where losses are negative
    too, and at least 1e-9 (the floor of certificates) above it, so that ends with loss 0 have one.

    >>> Level.read("1.1x").above((0.2, 0.5)), Level.read(0.3).above((0.2, 0.5))
    (0.55, 0.3)
    >>> Level.read("2x").above((-4.0, -3.0)), Level.read("1.1x").above((0.0, 0.0))
    (0.0, 1e-09)
    """

    number: float
    relative: bool

    @classmethod
    def read(cls, level: float | str) -> Level:
        """From a loss (0.3) or a multiple of the larger end's ("1.1x"). Errors: `InputError` for anything else."""
        text = str(level).strip().lower()
        try:
            out = cls(float(text.removesuffix("x")), text.endswith("x"))
        except ValueError:
            out = cls(nan, False)
        if not isfinite(out.number) or (out.relative and out.number < 1):
            wanted = 'a loss such as 0.3, or a multiple >= 1 of the larger end\'s loss such as "1.1x"'
            raise InputError("level", expected=wanted, got=repr(level))
        return out

    def __str__(self) -> str:
        return f"{self.number:g}x" if self.relative else f"{self.number!r}"

    def above(self, ends: Sequence[float]) -> float:
        """The level in the units of the loss; NaN where the loss of an end, or of any network, is."""
        if not self.relative:
            return self.number
        top = largest(ends)
        return top + max((self.number - 1) * abs(top), FLOOR)

    def said(self, ends: tuple[float, float]) -> str:
        """The level in words, with its number."""
        level = self.above(ends)
        if not self.relative:
            return f"{level:.4g}"
        floor = f", at least {FLOOR:g} above it" if (self.number - 1) * abs(max(ends)) < FLOOR else ""
        return f"{self.number:g} x the larger end{floor} ({loss_in_words(level)})"


class Measured(NamedTuple):
    """Samples of the loss: those at both ends, the largest and its t, and where they were taken, in words.

    `rise`: what the loss is estimated to reach between the samples; None where that was not estimated.
    """

    ends: tuple[float, float]
    highest: float
    at: float
    points: str
    rise: float | None = None

    @classmethod
    def of(
        cls, t: Sequence[float], loss: Sequence[float], num_points: int, tol: float | None, within: float | None
    ) -> Measured:
        """From the samples of a profile, the number of its points per segment, its `tol` and its `within`."""
        k = max(range(len(loss)), key=lambda k: (loss[k] != loss[k], loss[k]))
        points = f"{num_points} points per segment" if tol is None else f"{len(t)} points, chosen to within {tol:g}"
        return cls((loss[0], loss[-1]), loss[k], t[k], points, None if within is None else loss[k] + within)


class Proof(NamedTuple):
    """What a certificate holds: the losses at both ends, the largest sample and its t, the largest bound of the proved
    segments (None: there are none), and how many of how many segments are only measured."""

    ends: tuple[float, float]
    highest: float
    at: float
    bound: float | None
    open: int
    segments: int


@one_line
@dataclass(frozen=True)
class Verdict:
    """Whether the loss is below `level` on the whole path: `below` is True, False or, where nothing decides, None.

    `how`: "proved", "measured", "rises" or "unknown". `said`: the level in words. `why`: the numbers that decide, in
    words. `asked`: the level as it was given. `highest`, `at`: the largest loss that was measured, and its t in [0, 1].
    `bound`: what is proved of the whole path; None where some segment is not. `test`: the same of the test data, which
    are only ever measured. `interpolated`: where BatchNorm's statistics were not interpolated by the profile, the same
    of the path on which they are, which is what certificates are about.
    """

    asked: str
    level: float
    said: str
    how: str
    why: str
    highest: float
    at: float
    bound: float | None = None
    test: Verdict | None = None
    interpolated: Verdict | None = None

    @property
    def below(self) -> bool | None:
        """True, False, or None where it is not known."""
        return {"proved": True, "measured": True, "rises": False}.get(self.how)

    def __str__(self) -> str:
        return f"below {self.said} on the whole path: {ANSWERS[self.how]}{self.why}"

    @property
    def lines(self) -> list[str]:
        """In words: of the training data, of the test data and of interpolated statistics, as far as known."""
        more = {"test data": self.test, "with interpolated statistics": self.interpolated}
        return [str(self), *(f"{name}: {found}" for name, found in more.items() if found is not None)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in result.json."""
        own = {k: getattr(self, k) for k in ("asked", "level", "below", "how", "highest", "at", "bound")}
        beside = {"test": self.test, "interpolated": self.interpolated}
        return own | {"text": str(self)} | {k: None if v is None else v.to_dict() for k, v in beside.items()}


ANSWERS = {"proved": "yes, proved", "measured": "yes, measured", "rises": "no, rises to ", "unknown": "not known"}


def verdict(
    profile: Profile | None = None, certificate: Certificate | None = None, level: float | str = LEVEL
) -> Verdict:
    """Whether the loss stays below `level` on the whole path that `profile` measured and `certificate` is about.

    `level`: a loss, or a multiple of the larger end's loss as text, "1.1x". One of the two results is enough; with a
    certificate alone, "measured" rests on the points of its measured segments. A certificate is about interpolated
    statistics of BatchNorm: where those of the profile are others, it decides `interpolated` alone. Errors:
    `InputError` for another level and for nothing at all.

    >>> import torch
    >>> from isthmus import Objective, Path, certify, profile
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> objective = Objective(torch.nn.Linear(2, 2, bias=False), data=(x, y))
    >>> path = Path.through([{"weight": torch.eye(2)}, {"weight": torch.zeros(2, 2)}, {"weight": torch.eye(2)}])
    >>> print(verdict(profile(objective, path)))
    below 1.1 x the larger end (0.3446) on the whole path: no, rises to 0.6931 (at t = 0.5)
    >>> print(verdict(certificate=certify(objective, path), level=0.7))
    below 0.7 on the whole path: yes, proved (at most 0.6932)
    """
    check_kinds(verdict, locals(), but=["level"])
    asked = Level.read(level)
    if profile is None and certificate is None:
        raise InputError("profile, certificate", expected="one of them", got="neither")
    proof = None if certificate is None else _proof(certificate)
    if profile is None:
        return judge(asked, None, proof)
    test, beside = _measured(profile.test), _measured(profile.beside.get("interpolate"))
    return judge_all(asked, _measured(profile), test, beside, proof, profile.bn)


def judge_all(
    asked: Level,
    measured: Measured | None,
    test: Measured | None,
    interpolated: Measured | None,
    proof: Proof | None,
    bn: str,
) -> Verdict:
    """The verdict with those beside it, from plain numbers. `bn`: the policy under which `measured` was measured."""
    same = is_interpolated(bn)
    found = judge(asked, measured, proof if same else None)
    beside = None if same or (interpolated is None and proof is None) else judge(asked, interpolated, proof)
    return replace(found, test=None if test is None else judge(asked, test, None), interpolated=beside)


def judge(asked: Level, measured: Measured | None, proof: Proof | None) -> Verdict:
    """The verdict from plain numbers; at least one of `measured` and `proof` is there."""
    known = [v for v in (measured, proof) if v is not None]
    ends = known[-1].ends if known else (nan, nan)
    level, said = asked.above(ends), asked.said(ends)
    highest, at = _highest(known)
    bound = proof.bound if proof is not None and not proof.open else None
    if not highest < level:  # also where one of them is NaN
        how, why = "rises", f"{loss_in_words(highest)} (at t = {at:.4g})" + _contradiction(highest, bound)
    elif bound is not None and bound < level:
        how, why = "proved", f" (at most {upward(bound):.4g})"
    else:
        how, why = _unproved(measured, proof, level, highest)
    return Verdict(str(asked), level, said, how, why, highest, at, bound)


def _unproved(measured: Measured | None, proof: Proof | None, level: float, highest: float) -> tuple[str, str]:
    """How the answer is known where no bound below the level is proved, and in words what speaks for it."""
    notes = [] if proof is None else _notes(proof, level)
    if measured is not None:
        if measured.rise is not None and measured.rise >= level:
            notes.append(f"estimated to rise to {measured.rise:.4g} between them")
        return "measured", f" ({'; '.join([f'{measured.points}, at most {highest:.4g}', *notes])})"
    if proof is not None and (proof.bound is None or proof.bound < level):
        return "measured", f" (at most {highest:.4g}; {'; '.join(notes)})"
    return "unknown", f" ({'; '.join([f'the measured maximum is {highest:.4g}', *notes])})"


def _highest(found: list[Measured | Proof]) -> tuple[float, float]:
    """The largest sample and its t; NaN counts as the largest."""
    return max(((v.highest, v.at) for v in found), key=lambda v: (v[0] != v[0], v[0]))


def loss_in_words(loss: float) -> str:
    """A loss in four digits, or in words."""
    return f"{loss:.4g}" if isfinite(loss) else "a loss that is not finite"


def _contradiction(highest: float, bound: float | None) -> str:
    """What to say of a sample above a proved bound."""
    if bound is None or not bound < highest < inf:
        return ""
    return f", though at most {upward(bound):.4g} is proved: rounding in the precision of the profile, or an error"


def _notes(proof: Proof, level: float) -> list[str]:
    """Why a certificate did not decide."""
    out = []
    if proof.open:
        verb = "is" if proof.open == 1 else "are"
        out.append(f"not proved: {proof.open} of {proof.segments} segments {verb} only measured")
    if proof.bound is not None and proof.bound >= level:
        out.append(f"the bound, {upward(proof.bound):.4g}, does not reach the level")
    return out


def _measured(profile: Profile | None) -> Measured | None:
    if profile is None:
        return None
    return Measured.of(profile.t.tolist(), profile.loss.tolist(), profile.num_points, profile.tol, profile.within)


def _proof(certificate: Certificate) -> Proof:
    t, value = certificate.witness
    bounds = [s.bound for s in certificate.segments if s.claim != "measured"]
    n = len(certificate.segments)
    return Proof(certificate.ends, value, t, max(bounds, default=None), n - len(bounds), n)
