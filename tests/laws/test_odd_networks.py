"""Odd networks by every method: what is said of a path is so, or is refused in one line; and what is not so is told."""

from dataclasses import replace

import pytest

import isthmus as im
from isthmus.certify import Certificate
from tests.long import constructions
from tests.long.constructions import METHODS, OTHERS, attack

SEEDS = dict.fromkeys((*METHODS, *OTHERS), 3) | {"DeepLinear": 20, "Sublevel": 7, "TwoLayerReLU": 7, "in_parallel": 738}
"""Networks that the methods can connect; one that casts, with a mean of squares, in parts."""


def test_every_method_is_attacked():
    assert set(METHODS) == {method.__name__ for method in im.METHODS}


@pytest.mark.parametrize("name", SEEDS)
def test_what_is_said_is_so(name):
    result = attack(SEEDS[name], name)
    assert not result.faults, result.described
    assert result.ended in ("ok", "CONSTRUCTED/judged", "BUDGET_EXHAUSTED/judged"), result.described


@pytest.mark.parametrize("name", ["Linear", *OTHERS])
@pytest.mark.parametrize("seed", [0, 4])
def test_what_is_said_is_so_or_is_refused(seed, name):
    result = attack(seed, name)
    assert not result.faults, result.described
    assert result.ended != "late", result.described


def lowered(certificate: Certificate) -> Certificate:
    """Every bound a little below the largest loss that was seen."""
    low = [replace(s, bound=s.value - 1e-9 * max(1.0, abs(s.value))) for s in certificate.segments]
    return replace(certificate, segments=tuple(low))


@pytest.mark.parametrize(("name", "prover"), [("Linear", "certify"), ("in_parallel", "certify_in_parallel")])
def test_a_bound_below_the_loss_is_told(name, prover, monkeypatch):
    proved = getattr(constructions, prover)
    monkeypatch.setattr(constructions, prover, lambda *given, **options: lowered(proved(*given, **options)))
    assert any(fault.startswith("bound (") for fault in attack(3, name).faults)


def connects(monkeypatch, wrong):
    """The path of ``connect`` as `wrong` makes it."""
    right = constructions.connect
    monkeypatch.setattr(constructions, "connect", lambda *given, **options: wrong(right(*given, **options), *given))


@pytest.mark.parametrize(("name", "key"), [("Dropout", "dropped"), ("MeanField", "halved")])
def test_a_level_that_is_understated_is_told(name, key, monkeypatch):
    def understated(found, *_):
        return replace(found, stats=found.stats | {key: []})

    monkeypatch.setattr("tests.long.claims._ends", lambda odd: (0.0, 0.0))
    connects(monkeypatch, understated)
    assert any(fault.startswith("level 0.0") for fault in attack(3, name).faults)


def written(found, objective, a, b, method):
    next(iter(a.values())).data.mul_(2)
    return found


def reversed_path(found, *_):
    return replace(found, path=found.path.reversed())


def broken(*_):
    raise ValueError("of torch")


def lines(*_):
    raise im.IsthmusError("one\ntwo")


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (written, "changed: a"),
        (reversed_path, "the path does not begin at a"),
        (broken, "Traceback"),
        (lines, "an error of more than one line"),
    ],
)
def test_other_faults_are_told(wrong, fault, monkeypatch):
    connects(monkeypatch, wrong)
    assert any(told.startswith(fault) for told in attack(3, "Linear").faults)


def test_what_takes_too_long_is_late_and_no_fault(monkeypatch):
    def endless(*_):
        while True:
            pass

    connects(monkeypatch, endless)
    monkeypatch.setattr(constructions, "LIMIT", 0.2)
    result = attack(3, "Linear")
    assert (result.ended, result.faults) == ("late", [])
